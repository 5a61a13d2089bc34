"""The same bytes for the same source: archives written anew, without what tells when, where and by whom they were made.

setuptools puts the files' times and modes, its user's id and the time of the build into what it makes. Here every
member gets one time, one of two modes and no owner, and the members stand in a fixed order. The time is that of
`SOURCE_DATE_EPOCH` (seconds since 1970, as https://reproducible-builds.org/specs/source-date-epoch/ has it), or the
first that a zip can hold.

What is left to differ is the compression of another zlib.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

#: 1 January 1980, where a zip's time begins, in seconds since 1970.
FIRST = 315_532_800


def epoch():
    """Return the time that all members get, in seconds since 1970.

    Raises:
        SystemExit: `SOURCE_DATE_EPOCH` is no number.
    """
    asked = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not asked.isascii() or not (asked.isdigit() or asked == ""):
        raise SystemExit(f"SOURCE_DATE_EPOCH must be a number of seconds, not {asked!r}")
    return max(int(asked or FIRST), FIRST)


def mode(old):
    """Return the mode of a member: what may be run, may be run by anybody."""
    return 0o755 if old & 0o100 else 0o644


def replace(path, content):
    """Write a file in one step, lest an interrupted build leave half of one."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    beside.replace(path)


def rewrite_sdist(path):
    """Write a source distribution (`.tar.gz`) anew."""
    unpacked = io.BytesIO()
    # USTAR has no fields of its own for times below a second, which PAX adds.
    with tarfile.open(path) as old, tarfile.open(fileobj=unpacked, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.pax_headers = epoch(), {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() else mode(member.mode)
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    replace(Path(path), gzip.compress(unpacked.getvalue(), mtime=epoch()))


def rewrite_wheel(path):
    """Write a wheel anew: the package first, its metadata behind it, as PEP 427 recommends."""
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        # RECORD is the last: it lists the others.
        order = sorted(old.infolist(), key=lambda info: (".dist-info/" in info.filename, info.filename))
        for info in order:
            member = zipfile.ZipInfo(info.filename, time.gmtime(epoch())[:6])
            member.create_system = 3  # Unix, whose modes follow
            member.external_attr = (0o100000 | mode(info.external_attr >> 16)) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(member, old.read(info))
    replace(Path(path), packed.getvalue())

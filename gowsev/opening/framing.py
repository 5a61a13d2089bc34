"""Where a request ends, and which host it is for, as its head says: RFC 9112 sections 3.2 and 6, without I/O.

This is decided here for pages and upgrades, on our listeners and behind another server. Of two servers in a row that
disagree about where a request ends, the second takes a part of its body for the next request, which the first has not
checked. What can be read in two ways is therefore refused, also where the RFC lets a server choose a reading.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Framing", "absolute_form", "check_target", "judge_framing", "tokens"]

#: RFC 9110 section 7.2: "Host = uri-host [ ":" port ]", where RFC 3986 section 3.2.2 has the host: an address in
#: brackets, or a name. A comma, which a name might have, is refused: servers in between join two `Host` lines with one.
_HOST = re.compile(
    r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?:[-A-Za-z0-9._~!$&'()*+;=]|%[0-9A-Fa-f]{2})*)(?::(?P<port>[0-9]{0,5}))?"
)
#: RFC 9110 section 8.6: "Content-Length = 1*DIGIT". 18 of them are more than any body has.
_LENGTH = re.compile(r"[0-9]{1,18}")
#: RFC 9112 section 3.2.2: "absolute-form = absolute-URI".
_ABSOLUTE_FORM = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


class Framing(NamedTuple):
    """Where a request ends."""

    length: int | None
    """The bytes of its body, where it says so."""
    chunked: bool
    """Its body is chunked, and says by itself where it ends."""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


def tokens(values: Iterable[str]) -> list[str]:
    """Return the elements of a header that is a list (RFC 9110 section 5.6.1), in lower case."""
    return [token for value in values for part in value.split(",") if (token := part.strip(" \t").lower())]


def judge_framing(version: str, fields: Iterable[tuple[str, str]]) -> Framing:
    """Tell where a request ends.

    Args:
        version: of the protocol, such as `HTTP/1.1`.
        fields: the name and value of each header line.

    Raises:
        ValueError: that is unclear, or the request does not say which host it is for; it is answered with 400, and the
            connection ends.
    """
    codings: list[str] = []
    lengths: list[str] = []
    hosts: list[str] = []
    wanted = {"transfer-encoding": codings, "content-length": lengths, "host": hosts}
    for name, value in fields:
        found = wanted.get(name.lower())
        if found is not None:
            found.append(value.strip(" \t"))
    # RFC 9112 section 3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message
    # that lacks a Host header field and to any request message that contains more than one Host header field line or a
    # Host header field with an invalid field value."
    if len(hosts) > 1 or (not hosts and version != "HTTP/1.0"):
        raise ValueError(f"A request must have one Host header, not {len(hosts)}.")
    if hosts and not _is_host(hosts[0]):
        raise ValueError(f"The Host header is no host: {hosts[0][:100]!r}.")
    if codings:
        return _chunked(version, codings, lengths)
    if not lengths:
        return Framing(None, False)
    # RFC 9112 section 6.3: "If a message is received without Transfer-Encoding and with an invalid Content-Length
    # header field, then the message framing is invalid and the recipient MUST treat it as an unrecoverable error". A
    # repeated one it lets a server accept where both say the same.
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise ValueError(f"Content-Length must be one number, not {', '.join(lengths)[:100]!r}.")
    return Framing(int(lengths[0]), False)


def _is_host(value: str) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or int(match["port"] or 0) > 65535:
        return False
    try:
        return not match["literal"] or bool(IPv6Address(match["literal"]))
    except ValueError:  # it only looked like an address
        return False


def _chunked(version: str, codings: list[str], lengths: list[str]) -> Framing:
    # RFC 9112 section 6.1: "A server or client that receives an HTTP/1.0 message containing a Transfer-Encoding header
    # field MUST treat the message as if the framing is faulty".
    if version == "HTTP/1.0":
        raise ValueError("HTTP/1.0 has no Transfer-Encoding.")
    # Section 6.1: "A server MAY reject a request that contains both Content-Length and Transfer-Encoding".
    if lengths:
        raise ValueError("A request has a Content-Length or a Transfer-Encoding, not both.")
    # Section 6.3: "If a Transfer-Encoding header field is present in a request and the chunked transfer coding is not
    # the final encoding, the message body length cannot be determined reliably; the server MUST respond with the 400
    # (Bad Request) status code and then close the connection." Other codings are not known here.
    if [coding.lower() for coding in codings] != ["chunked"]:
        raise ValueError(f"Transfer-Encoding must be chunked, not {', '.join(codings)[:100]!r}.")
    return Framing(None, True)


def check_target(method: str, target: str) -> None:
    """Check the target of a request to an origin server.

    Raises:
        ValueError: the target is in none of the forms of RFC 9112 section 3.2, in that of a proxy (`CONNECT`), or names
            no host; the answer is 400.
    """
    if target.startswith("/") or (method == "OPTIONS" and target == "*"):
        return
    match = _ABSOLUTE_FORM.match(target)
    # With another scheme it would name a host too, which must not be ignored in favour of that in `Host`.
    if match is None:
        raise ValueError(f"The target is neither a path nor an http or https URI: {target[:100]!r}.")
    # RFC 9110 section 4.2.1: "A sender MUST NOT generate an "http" URI with an empty host identifier. A recipient that
    # processes such a URI reference MUST reject it as invalid."
    if not match[1].partition(":")[0]:
        raise ValueError(f"The target has no host: {target[:100]!r}.")


def absolute_form(target: str) -> tuple[str, str] | None:
    """Split a request's target in absolute form; `None` for any other.

    RFC 9112 section 3.2.2: "When an origin server receives a request with an absolute-form of request-target, the
    origin server MUST ignore the received Host header field (if any) and instead use the host information of the
    request-target."

    Returns:
        The authority, for which `Host` would stand, and the path with its query.
    """
    match = _ABSOLUTE_FORM.match(target)
    if match is None:
        return None
    path = target[match.end() :]
    return match[1], path if path.startswith("/") else "/" + path

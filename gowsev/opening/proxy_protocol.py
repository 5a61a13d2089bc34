"""The PROXY protocol, versions 1 and 2: in front of all else, a proxy says whose connection it passes on. No I/O.

What is quoted is HAProxy's `doc/proxy-protocol.txt`. Either version is taken, from the proxies that are trusted, and
nobody else may connect where it is expected. Section 2: "The receiver MUST be configured to only receive the protocol
described in this specification and MUST not try to guess whether the protocol header is present or not. [...] The
receiver SHOULD ensure proper access filtering so that only trusted proxies are allowed to use this protocol."
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Malformed", "ProxyHeader", "Trusted"]

#: Section 2.1: "a string identifying the protocol", and "exactly one space".
_V1 = b"PROXY "
#: Section 2.1: "If the CRLF sequence is not found in the first 107 characters, the receiver should declare the line
#: invalid."
_MOST_V1 = 107
#: Section 2.1: "The TCP source port represented as a decimal integer [...]. Heading zeroes are not permitted".
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")

#: Section 2.2: "The binary header format starts with a constant 12 bytes block".
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
#: Behind it: version and command, family and transport, and the length of the rest.
_FIELDS = struct.Struct("!12xBBH")
_LOCAL, _PROXY = 0x20, 0x21
_STREAM = 1
#: By family: the addresses, which stand in front of the TLVs. For unix sockets, they are paths.
_ADDRESSES = {1: struct.Struct("!4s4sHH"), 2: struct.Struct("!16s16sHH"), 3: struct.Struct("!108s108s")}
_UNSPECIFIED, _UNIX = 0, 3


class Malformed(Exception):
    """What has come is no header of the PROXY protocol; the text says why."""


class Trusted:
    """Who may say whose connection it is.

    Args:
        names: addresses and networks; "unix" for whoever connects over a unix socket.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._unix = "unix" in names
        self._networks = [ip_network(name) for name in names if name != "unix"]

    def __contains__(self, address: Any) -> bool:
        """Whether this is the address of one, as `accept` returned it."""
        if not isinstance(address, tuple):
            return self._unix
        ip = ip_address(address[0].partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip  # IPv4 through an IPv6 socket
        return any(ip in network for network in self._networks)


class ProxyHeader:
    """One header, as its bytes come."""

    def __init__(self) -> None:
        self._held = bytearray()
        self.complete = False
        self.client: tuple[str, int] | str | None = None
        """The client's address as `accept` would have it; `None` for the connection's own peer, which says so."""

    @property
    def begun(self) -> bool:
        """Whether a part of it has come."""
        return bool(self._held)

    def feed(self, data: bytes) -> int:
        """Take the next bytes of a connection; return how many of them belong to the header.

        Section 2: "The receiver may be tolerant to partial headers [...]. Recommendation is to be tolerant".

        Raises:
            Malformed: they do not begin or continue one.
        """
        before = len(self._held)
        self._held += data
        size = _size_of(self._held)
        if size is not None and size <= len(self._held):
            del self._held[size:]
            self.complete = True
            self.client = _client_v1(self._held) if self._held.startswith(_V1) else _client_v2(self._held)
        return len(self._held) - before


def _size_of(head: bytearray) -> int | None:
    """Return how long the header is, as soon as that can be told."""
    if head.startswith(_V2):
        # Section 2.2: "the length of the protocol header in bytes is always exactly 16 + this value", which is 65,551
        # at most. What it has besides addresses ("TLV vectors") is skipped.
        return _FIELDS.size + int(_FIELDS.unpack_from(head)[2]) if len(head) >= _FIELDS.size else None
    if head.startswith(_V1):
        end = head.find(b"\r\n", 0, _MOST_V1)
        if end < 0 and len(head) >= _MOST_V1:
            raise Malformed(f"its first line has more than {_MOST_V1} bytes")
        return end + 2 if end >= 0 else None
    if _V1.startswith(head) or _V2.startswith(head):
        return None
    # Section 2.2: "otherwise the protocol is not covered by this specification and the connection must be dropped."
    raise Malformed(f"it begins with {bytes(head[:20])!r}")


def _client_v1(line: bytearray) -> tuple[str, int] | None:
    # Section 2.1: "Any sequence which does not exactly match the protocol must be discarded and cause the receiver to
    # abort the connection."
    family, *rest = line[len(_V1) : -2].decode("latin-1").split(" ")
    if family == "UNKNOWN":
        # "the receiver must ignore anything presented before the CRLF is found", and "SHOULD [...] use the real
        # connection's parameters".
        return None
    kinds: dict[str, type[IPv4Address | IPv6Address]] = {"TCP4": IPv4Address, "TCP6": IPv6Address}
    kind = kinds.get(family)
    if kind is None or len(rest) != 4:
        raise Malformed(f"its line is {bytes(line)!r}")
    try:
        source, _ = (_ip(kind(text)) for text in rest[:2])
    except ValueError:
        raise Malformed(f"an address of {bytes(line)!r} is none of {family}") from None
    # A scope, such as %eth0, means something on one machine only, and is not in the protocol.
    if "%" in rest[0] + rest[1] or not all(_PORT.fullmatch(text) and int(text) <= 65535 for text in rest[2:]):
        raise Malformed(f"its line is {bytes(line)!r}")
    return source, int(rest[2])


def _client_v2(header: bytearray) -> tuple[str, int] | str | None:
    command, kind, length = _FIELDS.unpack_from(header)
    # Section 2.2: "The highest four bits contains the version. [...] the receiver must only accept" 2.
    if command == _LOCAL:
        # "The receiver must [...] use the real connection endpoints and discard the protocol block including the
        # family which is ignored."
        return None
    if command != _PROXY:
        # "Receivers must drop connections presenting unexpected values here."
        raise Malformed(f"its version and command are {command:#x}")
    family, transport = divmod(kind, 16)
    if family > _UNIX or transport > 2:
        # "other values are unspecified [...] and must be rejected as invalid by receivers."
        raise Malformed(f"its family and transport are {kind:#x}")
    if family == _UNSPECIFIED or transport != _STREAM:
        # "The receiver should ignore address information." It "automatically falls back to the UNSPEC mode for the
        # valid combinations above that it does not support": no datagram is passed on to us.
        return None
    addresses = _ADDRESSES[family]
    if length < addresses.size:
        raise Malformed(f"its {length} bytes of addresses are too few")
    if family == _UNIX:
        return ""  # which has a peer, but no address that means anything here
    source, _, port, _ = addresses.unpack_from(header, _FIELDS.size)
    return _ip(ip_address(source)), port


def _ip(address: IPv4Address | IPv6Address) -> str:
    """Return an address as text; one of IPv4 that is written as one of IPv6, as what it is."""
    return str(getattr(address, "ipv4_mapped", None) or address)

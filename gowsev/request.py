"""A request for a WebSocket as the program sees it, the program's answer, and headers that may be sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NotRequired, TypedDict, cast

from websockets.datastructures import Headers

from gowsev.arguments import TOKEN

__all__ = ["FRAMING", "Accept", "Headers", "PeerCertificate", "Reject", "Request", "header_pairs"]

#: The headers of a message's framing and of its connection, which are not the program's business.
FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})
# RFC 9110 section 5.5.
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class PeerCertificate(TypedDict):
    """A verified certificate: the dict that `ssl.SSLSocket.getpeercert` returns."""

    subject: tuple[tuple[tuple[str, str], ...], ...]
    """Whose it is, such as `((("commonName", "meter-7"),),)`."""
    issuer: tuple[tuple[tuple[str, str], ...], ...]
    """The authority that has signed it, in the same form."""
    version: int
    serialNumber: str
    """In hexadecimal digits; with the issuer, it names one certificate."""
    notBefore: str
    """Since when it is valid; `ssl.cert_time_to_seconds` understands it."""
    notAfter: str
    subjectAltName: NotRequired[tuple[tuple[str, str], ...]]
    """More names, such as `(("DNS", "meter-7.example"), ("URI", "spiffe://example/meter-7"))`."""
    OCSP: NotRequired[tuple[str, ...]]
    caIssuers: NotRequired[tuple[str, ...]]
    crlDistributionPoints: NotRequired[tuple[str, ...]]


class Request:
    """What a client asked for when it opened its connection; for `ConnRequested`, and behind `Conn`. Read-only."""

    # The headers are kept as the bytes that they were: as objects, they would be half of what an idle connection holds.
    __slots__ = ("_headers", "_local", "_path", "_peer", "_peer_certificate", "_query", "_tls")

    def __init__(
        self,
        path: str,
        query: str,
        headers: Headers,
        peer: tuple[str, int],
        local: tuple[str, int],
        tls: bool,
        peer_certificate: PeerCertificate | None = None,
    ) -> None:
        self._path = path
        self._query = query
        self._headers = headers.serialize()
        self._peer = peer
        self._local = local
        self._tls = tls
        self._peer_certificate = peer_certificate

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} peer={self.peer}>"

    @property
    def path(self) -> str:
        """The path, its percent-encoding undone, without the query."""
        return self._path

    @property
    def query(self) -> str:
        """What stands behind the `?`, as it was sent; empty if nothing does."""
        return self._query

    @property
    def headers(self) -> Headers:
        """The request's headers (for a dialled connection, the response's): a mapping whose keys ignore case.

        `get_all(name)` returns every value of a repeated one. They are made of the request's bytes at each access,
        within 5 to 10 us: a callback that needs several asks once.
        """
        lines = self._headers.decode("latin-1").split("\r\n")
        return Headers((name, value) for name, colon, value in (line.partition(": ") for line in lines) if colon)

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The subprotocols that the client offers, its favourite first (RFC 6455 section 4.1)."""
        values = self.headers.get_all("Sec-WebSocket-Protocol")
        names = [name.strip(" \t") for value in values for name in value.split(",")]
        return tuple(name for name in names if TOKEN.fullmatch(name))

    @property
    def peer(self) -> tuple[str, int]:
        """The address at the other end; `("", 0)` for a unix socket.

        Behind a proxy that is the proxy's, unless `Options.proxy_protocol` believes it.
        """
        return self._peer

    @property
    def local(self) -> tuple[str, int]:
        """Our own address; of a unix socket, its path and 0."""
        return self._local

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted here."""
        return self._tls

    @property
    def peer_certificate(self) -> PeerCertificate | None:
        """The peer's certificate, as `ssl.SSLSocket.getpeercert` has it; `None` if none was verified here."""
        return self._peer_certificate


class Accept:
    """The answer of `ConnRequested` that lets a connection in, and hands over what the program has found out.

    Args:
        data: anything, such as the user; it is `Conn.data` from `ConnAccepted` on.
        headers: more headers for the response 101, such as Set-Cookie: a mapping, or pairs of name and value.
        subprotocol: the one to speak, out of `Request.subprotocols`; `None` leaves it to `Options.subprotocols`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `subprotocol` is no token, or a header holds what may not stand in one (RFC 9110 section 5), or
            belongs to the handshake itself.
    """

    __slots__ = ("data", "headers", "subprotocol")

    def __init__(
        self,
        data: object = None,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        subprotocol: str | None = None,
    ) -> None:
        self.data: object = data
        self.headers: tuple[tuple[str, str], ...] = _own_headers(headers)
        if subprotocol is not None and not isinstance(subprotocol, str):
            raise TypeError(f"subprotocol must be str or None, not {subprotocol!r}")
        if subprotocol is not None and not TOKEN.fullmatch(subprotocol):
            raise ValueError(f"subprotocol must be a name without blanks or separators, not {subprotocol!r}")
        self.subprotocol: str | None = subprotocol

    def __repr__(self) -> str:
        return f"Accept({self.data!r}, headers={self.headers!r}, subprotocol={self.subprotocol!r})"


class Reject:
    """The answer of `ConnRequested` that refuses a connection.

    Args:
        status: HTTP status, 300 to 599.
        reason: plain text to send as the response's body.
        headers: more headers for the response: a mapping, or pairs of name and value.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the status is out of range, `reason` cannot be encoded, or a header holds what may not stand in
            one (RFC 9110 section 5), or says how long the response is or what becomes of its connection.
    """

    __slots__ = ("headers", "reason", "status")

    def __init__(
        self, status: int = 403, reason: str = "", headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> None:
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"status must be an int, not {status!r}")
        if not 300 <= status <= 599:
            raise ValueError(f"status must be from 300 to 599, not {status!r}")
        if not isinstance(reason, str):
            raise TypeError(f"reason must be str, not {reason!r}")
        self.status: int = int(status)
        reason.encode()
        self.reason: str = reason
        self.headers: tuple[tuple[str, str], ...] = _own_headers(headers)

    def __repr__(self) -> str:
        return f"Reject({self.status}, {self.reason!r}, {self.headers!r})"


def _own_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Check headers that a program adds to the answer of a handshake."""
    pairs = header_pairs(headers)
    for name, _ in pairs:
        if name.lower() in FRAMING or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"header {name} is made by the server itself")
    return pairs


def header_pairs(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Check headers that a program wants to send.

    Raises:
        TypeError: they are no mapping and no pairs of str.
        ValueError: one holds what may not stand in a header (RFC 9110 section 5), such as the end of its line.
    """
    if isinstance(headers, Headers):
        pairs = tuple(headers.raw_items())
    elif isinstance(headers, str | bytes) or not isinstance(headers, Iterable):
        raise TypeError(f"headers must be a mapping or pairs of str, not {headers!r}")
    else:
        items = headers.items() if isinstance(headers, Mapping) else headers
        pairs = tuple(cast("Iterable[tuple[str, str]]", items))
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise TypeError(f"headers must be a mapping or pairs of str, not {pair!r}")
        name, value = pair
        if not TOKEN.fullmatch(name):
            raise ValueError(f"invalid header name {name!r}")
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"invalid value {value!r} of header {name}")
    return pairs

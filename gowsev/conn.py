"""`Conn`: what is known of one connection, for the program to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.datastructures import Headers

    from gowsev.connection.connection import Connection
    from gowsev.request import PeerCertificate

__all__ = ["Conn"]


class Conn:
    """A view of one connection. It is live: reading an attribute tells how things stand at that moment."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.path!r} peer={self.peer}>"

    @property
    def id(self) -> int:
        """The context's number for it; 0 while it belongs to none."""
        return self._connection.id

    @property
    def data(self) -> Any:  # its type is the program's affair: `user: User = conn.data`
        """What the program has found out about it: of its `Accept`, or what it sets here; `None` at first."""
        return self._connection.data

    @data.setter
    def data(self, data: object) -> None:
        self._connection.data = data

    @property
    def path(self) -> str:
        """The path that was asked for, without the query."""
        return self._connection.request.path

    @property
    def query(self) -> str:
        """The query string as it was sent; `urllib.parse.parse_qs` parses it."""
        return self._connection.request.query

    @property
    def headers(self) -> Headers:
        """The handshake's headers as the peer sent them; keys ignore case, `get_all` returns repeated ones.

        They are kept as bytes, and made of them at each access, within 5 to 10 us.
        """
        return self._connection.request.headers

    @property
    def peer(self) -> tuple[str, int]:
        """Host and port at the other end; `("", 0)` for a unix socket."""
        return self._connection.request.peer

    @property
    def local(self) -> tuple[str, int]:
        """Our own host and port; path and 0 for a unix socket."""
        return self._connection.request.local

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol negotiated, if any (RFC 6455 section 1.9)."""
        return self._connection.subprotocol

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted here."""
        return self._connection.tls

    @property
    def peer_certificate(self) -> PeerCertificate | None:
        """The peer's certificate, as `ssl.SSLSocket.getpeercert` has it; `None` if none was verified here."""
        return self._connection.request.peer_certificate

    @property
    def close_code(self) -> int | None:
        """`None` while open; then the code of the peer's close frame: 1005 if it had none, 1006 if none came."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str:
        """The reason in the peer's close frame; empty if there is none."""
        return self._connection.close_reason

    @property
    def messages_received(self) -> int:
        """Messages read from it, those that still wait for the loop included."""
        return self._connection.messages_received

    @property
    def messages_sent(self) -> int:
        """Messages that writes have accepted for it."""
        return self._connection.messages_sent

    @property
    def bytes_received(self) -> int:
        """Bytes read from its socket since the handshake."""
        return self._connection.bytes_received

    @property
    def bytes_sent(self) -> int:
        """Bytes that the kernel has taken for it since the handshake."""
        return self._connection.bytes_sent

    @property
    def round_trip(self) -> float | None:
        """Seconds from a ping to its pong, the last time that one was answered; `None` before the first."""
        return self._connection.liveness.round_trip

    @property
    def outbox_bytes(self) -> int:
        """Bytes that wait for it here, not yet taken by the kernel."""
        return self._connection.outbox_bytes

"""`Dial`: a client connection. It is usable by itself in a synchronous script, and ready for `Context.AddConn`.

How it comes about is in `attempt`. After its handshake, a connection is the same `Connection` that a server's is, with
a queue of its own until a context takes it over.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from gevent.queue import SimpleQueue

from gowsev.conn import Conn
from gowsev.connection.connection import Connection
from gowsev.connection.events import CLOSED
from gowsev.connection.fork import tell_in_child
from gowsev.connection.gathering import Batch
from gowsev.connection.keepalive import Keepalive
from gowsev.connection.sockets import take_over
from gowsev.errors import ConnectionClosed
from gowsev.opening.attempt import check_wanted, open_connection
from gowsev.wire import deflate
from gowsev.wire.encoder import MaskingEncoder
from gowsev.wire.frames import ABNORMAL, BINARY, TEXT, encode_close_payload
from gowsev.wire.protocol import Protocol

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta
    from typing import Literal

    from gowsev.errors import GowsevError
    from gowsev.opening.attempt import Wanted
    from gowsev.options import Options

__all__ = ["BinaryMessage", "Dial", "DialledConn", "TextMessage", "connection_of", "release"]

# As gorilla/websocket names them; their values are the opcodes of RFC 6455 section 5.2.
TextMessage = TEXT
BinaryMessage = BINARY

_WRONG_DATA = {
    TextMessage: "data of a TextMessage must be str, or its UTF-8 as bytes, not {}",
    BinaryMessage: "data of a BinaryMessage must be bytes, bytearray or memoryview, not {}; a str goes as TextMessage",
}


class _Inbox:
    """The events of a dialled connection that belongs to no context."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: Any = SimpleQueue()

    def put(self, event: tuple[int, Any, Any] | None) -> None:
        """Add an event; never blocks."""
        self._queue.put(event)

    def get(self) -> tuple[int, Any, Any] | None:
        """Wait for the next event; `None` where the connection has been given away."""
        event: tuple[int, Any, Any] | None = self._queue.get()
        return event

    def take_all(self) -> list[Any]:
        """Return every event that is there; a greenlet that waits for one gets `None`."""
        events = [self._queue.get() for _ in range(len(self._queue))]
        self.put(None)
        return events


class DialledConn(Conn):
    """A connection that `Dial` opened.

    `Context.AddConn` hands it to a loop; from then on it is the loop's, and these methods raise `RuntimeError`.
    """

    __slots__ = ("__weakref__", "_ended", "_inbox", "_owned")

    def __init__(self, connection: Connection, inbox: _Inbox, ended: Event) -> None:
        super().__init__(connection)
        self._inbox = inbox
        self._ended = ended
        self._owned = False
        tell_in_child(self)

    def ReadMessage(self) -> tuple[int, bytes | str]:
        """Wait for the next message; blocks the calling greenlet only.

        Returns:
            `(BinaryMessage, bytes)` or `(TextMessage, str)`.

        Raises:
            ConnectionClosed: the connection has ended, and everything read before has been returned.
            RuntimeError: the connection belongs to a context.
        """
        self._check_mine("ReadMessage")
        inbox = self._inbox
        event = inbox.get()
        if event is None or event[0] == CLOSED:
            inbox.put(event)  # for the next read
            self._check_mine("ReadMessage")  # another greenlet may have called AddConn meanwhile
            raise self._closed()
        kind, _, payload = event
        self._connection.credit.refund(len(payload))
        return (TextMessage, payload.decode()) if kind == TEXT else (BinaryMessage, payload)

    def WriteMessage(self, type: int, data: bytes | bytearray | memoryview | str) -> None:
        """Send a message; blocks the calling greenlet until the kernel has taken it.

        Args:
            type: `TextMessage` or `BinaryMessage`.
            data: for a text message a str or its UTF-8; for a binary one bytes, a bytearray or a memoryview.

        Raises:
            TypeError, ValueError: `type` or `data` is none of these.
            ConnectionClosed: the connection has ended, or is about to.
            RuntimeError: the connection belongs to a context.
        """
        self._check_mine("WriteMessage")
        if type not in (TextMessage, BinaryMessage):
            raise ValueError(f"type must be TextMessage (1) or BinaryMessage (2), not {type!r}")
        if isinstance(data, str) and type == TextMessage:
            payload = data.encode()
        elif isinstance(data, bytes | bytearray | memoryview):
            payload = bytes(data)
            if type == TextMessage:
                payload.decode()  # 5.6: "text data encoded as UTF-8"; UnicodeDecodeError is a ValueError
        else:
            raise TypeError(_WRONG_DATA[type].format(data.__class__.__name__))
        self._send(lambda: self._connection.outbox.write(type, payload))

    def Ping(self) -> None:
        """Send a ping; blocks the calling greenlet until the kernel has taken it. Its pong makes `round_trip`.

        Raises:
            ConnectionClosed: the connection has ended, or is about to.
            RuntimeError: the connection belongs to a context.
        """
        self._check_mine("Ping")
        self._send(self._connection.ping)

    def _send(self, give: Callable[[], GowsevError | None]) -> None:
        """Give the connection something to send, and wait until the kernel has taken it."""
        self._connection.wait_sent()  # another greenlet's message comes first
        error = give()
        if not self._connection.wait_sent() or error is not None:
            raise self._closed() from error

    def Close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection: send a close frame, and wait for the end, for at most `Options.close_timeout` seconds.

        Messages that were not read yet are thrown away. Closing a closed connection does nothing.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
            reason: for the peer; what exceeds 123 bytes of UTF-8 is cut off.

        Raises:
            TypeError: `code` is no int, or `reason` no str.
            ValueError: `code` may not be sent.
            RuntimeError: the connection belongs to a context.
        """
        self._check_mine("Close")
        encode_close_payload(code, reason)
        self._connection.close(code, reason)
        with suppress(ConnectionClosed):
            while True:  # the peer's close frame stands behind the messages that it sent before
                self.ReadMessage()
        self._ended.wait()

    def disown(self) -> None:
        """Leave the connection to the parent; called in a forked child, where it has ended."""
        if not self._owned:
            # New ones: copies of greenlets that wait for the old ones go on waiting.
            self._inbox = _Inbox()
            self._inbox.put((CLOSED, self._connection, None))
            self._ended = Event()
            self._ended.set()

    def __enter__(self) -> DialledConn:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._owned:
            self.Close()

    def _closed(self) -> ConnectionClosed:
        connection = self._connection
        code = connection.close_code or ABNORMAL
        return ConnectionClosed(code, connection.end if code == ABNORMAL else connection.close_reason)

    def _check_mine(self, method: str) -> None:
        if self._owned:
            raise RuntimeError(f"{method} on connection {self.id}: it belongs to a Context since AddConn")


def release(conn: DialledConn) -> tuple[Connection, list[tuple[int, Any, Any]]]:
    """Take the connection out of a `DialledConn`, which can't use it any more; return it with its unread events.

    Raises:
        ValueError: it was taken over already.
    """
    if conn._owned:
        raise ValueError(f"{conn!r} was added to a Context before")
    conn._owned = True
    return conn._connection, conn._inbox.take_all()


def Dial(
    url: str,
    *,
    timeout: float | timedelta | None = 10.0,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    origin: str | None = None,
    subprotocols: Iterable[str] = (),
    ssl_context: ssl.SSLContext | None = None,
    options: Options | None = None,
    proxy: str | Literal[True] | None = True,
    unix: str | os.PathLike[str] | None = None,
    follow_redirects: int = 0,
) -> DialledConn:
    """Open a client connection. Blocks the calling greenlet only.

    Args:
        url: `ws://` or `wss://`; user and password in it are sent as basic authorization.
        timeout: seconds for the whole of it: name, TCP, proxy, TLS, handshake, redirects; `None` for no limit.
        headers: more headers for the request. `Host` (one at most), `Origin` and `Authorization` replace ours.
        origin: the request's `Origin`.
        subprotocols: those offered, in order of preference.
        ssl_context: for `wss://`, with a certificate of the client's where the server wants one; by default one that
            checks the server's certificate against the system's authorities.
        options: limits and intervals of this connection. `AddConn` does not change them: those of a context are for the
            clients that come to it.
        proxy: the URL of a proxy, with user and password where it wants them: `http://` (by CONNECT), `socks5://`, or
            `socks5h://`, which looks up the server's name itself. `None` for none; `True` for that of the environment
            (`wss_proxy`, `https_proxy`, `all_proxy` and so on, but for what `no_proxy` names).
        unix: the path of a unix socket to connect to, in place of the host and port in `url`.
        follow_redirects: how many redirects to follow, 0 to 20. None is followed from `wss://` to `ws://`. To another
            host or port go neither user and password nor the headers `Authorization`, `Cookie` and `Host`.

    Raises:
        ValueError: `url` is no WebSocket URL, or `proxy` none of a proxy; a header or subprotocol cannot be sent, or is
            the handshake's own; `follow_redirects` is out of range.
        TypeError: an argument has the wrong type.
        ImportError: a SOCKS proxy is to be used, and the extra `socks` is not installed.
        DialError: the connection could not be opened; `status` is the HTTP status if the server refused.
    """
    return connection_of(
        check_wanted(
            url,
            timeout=timeout,
            headers=headers,
            origin=origin,
            subprotocols=subprotocols,
            ssl_context=ssl_context,
            options=options,
            proxy=proxy,
            unix=unix,
            follow_redirects=follow_redirects,
        )
    )


def connection_of(wanted: Wanted, *, answer_pings: bool = True) -> DialledConn:
    """Dial, with arguments that were checked.

    Args:
        wanted: what to dial.
        answer_pings: as for `Protocol`.

    Raises:
        DialError: the connection could not be opened.
    """
    opened = open_connection(wanted)
    options = opened.options
    codec = deflate.negotiated(opened.client.extensions, options)
    ended = Event()
    inbox = _Inbox()
    protocol = Protocol(client=True, max_message_bytes=options.max_message_bytes, deflate=codec)
    protocol.answer_pings = answer_pings
    connection = Connection(
        take_over(opened.sock),
        request=opened.request,
        subprotocol=opened.client.subprotocol,
        protocol=protocol,
        encoder=MaskingEncoder(codec),
        options=options,
        put=inbox.put,
        batch=Batch(),
        keepalive=Keepalive(options, ended.set),
    )
    connection.start(opened.leftover)
    return DialledConn(connection, inbox, ended)

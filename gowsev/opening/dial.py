"""`Dial`: a client connection. It is usable by itself in a synchronous script, and ready for `Context.AddConn`.

The opening handshake is the `websockets` library's `ClientProtocol`, on gevent sockets; after it, a connection is the
same `Connection` that a server's is, with a queue of its own until a context takes it over.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import gevent
from gevent.event import Event
from gevent.queue import SimpleQueue
from websockets.client import ClientProtocol

from gowsev.arguments import as_seconds, as_tokens
from gowsev.conn import Conn
from gowsev.connection.connection import Connection
from gowsev.connection.events import CLOSED
from gowsev.connection.fork import tell_in_child, telling_in_child
from gowsev.connection.gathering import Batch
from gowsev.connection.keepalive import Keepalive
from gowsev.connection.sockets import close_socket, take_over
from gowsev.connection.tls import TLSSocket
from gowsev.errors import ConnectionClosed, DialError
from gowsev.opening.client_handshake import Refused, shake_hands
from gowsev.opening.connecting import connect
from gowsev.opening.framing import judge_framing
from gowsev.opening.handshake import SILENT, HTTPRequest
from gowsev.opening.upgrade import Ends, describe
from gowsev.opening.url import parse_url
from gowsev.options import Options
from gowsev.request import FRAMING, Request, header_pairs
from gowsev.wire import deflate
from gowsev.wire.encoder import MaskingEncoder
from gowsev.wire.frames import ABNORMAL, BINARY, TEXT, encode_close_payload
from gowsev.wire.protocol import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from websockets.typing import Origin, Subprotocol

    Value = TypeVar("Value")

__all__ = ["BinaryMessage", "Dial", "DialledConn", "TextMessage", "release"]

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
        connection = self._connection
        connection.wait_sent()  # another greenlet's message comes first
        error = connection.write(type, payload)
        if not connection.wait_sent() or error is not None:
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
) -> DialledConn:
    """Open a client connection. Blocks the calling greenlet only.

    Args:
        url: `ws://` or `wss://`; user and password in it are sent as basic authorization.
        timeout: seconds for the whole of it: name, TCP, TLS, handshake; `None` for no limit.
        headers: more headers for the request. `Host` (one at most), `Origin` and `Authorization` replace ours.
        origin: the request's `Origin`.
        subprotocols: those offered, in order of preference.
        ssl_context: for `wss://`; by default one that checks the certificate against the system's authorities.
        options: limits and intervals, as for a context.

    Raises:
        ValueError: `url` is no WebSocket URL; a header or subprotocol cannot be sent, or is the handshake's own.
        TypeError: an argument has the wrong type.
        DialError: the connection could not be opened; `status` is the HTTP status if the server refused.
    """
    # Longer than most: each step that can fail has an error of its own, and none may leave the socket open.
    uri, host, safe_url = parse_url(url)
    options = _checked("options", options, Options) or Options()
    seconds = as_seconds("timeout", timeout)
    offered = as_tokens("subprotocols", subprotocols)
    pairs = header_pairs(headers or ())
    for name, _ in pairs:
        if name.lower() in FRAMING or name.lower().startswith("sec-websocket-"):
            raise ValueError(
                f"header {name} is made by the handshake itself; subprotocols= and options= say what it offers"
            )
    if hosts := [pair for pair in pairs if pair[0].lower() == "host"]:
        judge_framing("HTTP/1.1", hosts)  # RFC 9112 section 3.2: a server refuses two, and one that is none
    if origin is not None:
        header_pairs([("Origin", origin)])
    _checked("ssl_context", ssl_context, ssl.SSLContext)
    client = ClientProtocol(
        uri,
        origin=cast("Origin | None", origin),
        extensions=deflate.client_factories(options),
        subprotocols=cast("Sequence[Subprotocol]", offered) or None,
        logger=SILENT,
    )
    sock: Any = None
    dialling = _Dialling()
    step = "connecting"
    limit = gevent.Timeout(seconds)
    try:
        with limit, telling_in_child(dialling):
            sock = connect(host, uri.port)
            ends = Ends(sock.getpeername(), sock.getsockname(), uri.secure)  # now: after a reset they are unknown
            if uri.secure:
                step = "in the TLS handshake"
                sock = TLSSocket(sock, ssl_context or ssl.create_default_context(), uri.host)
                sock.do_handshake()
            step = "in the opening handshake"
            headers, leftover = shake_hands(sock, client, pairs)
            request = describe(HTTPRequest(uri.resource_name, headers), ends)
    except gevent.Timeout as expired:
        dialling.close(sock)
        if expired is not limit:
            raise
        raise DialError(f"dial {safe_url}: timed out after {seconds} s {step}") from None
    except Refused as refused:
        dialling.close(sock)
        raise DialError(f"dial {safe_url}: {refused}", refused.status) from refused.__cause__
    except OSError as error:
        dialling.close(sock)
        raise DialError(f"dial {safe_url}: {error} ({step})") from error
    except BaseException:
        dialling.close(sock)
        raise
    return _connect(sock, client, request, leftover, options)


class _Dialling:
    """The greenlet of a `Dial` in progress."""

    def __init__(self) -> None:
        self._greenlet = gevent.getcurrent()
        self._hub = gevent.get_hub()
        self._disowned = False

    def close(self, sock: Any) -> None:
        """Close the socket of a `Dial` that has failed, if there is one yet."""
        if sock is None:
            return
        if self._disowned:
            sock.close()
        else:
            close_socket(sock)

    def disown(self) -> None:
        """In a forked child: let the copy of the greenlet fail before it uses the socket, which is the parent's."""
        self._disowned = True
        error = ConnectionAbortedError("the process was forked meanwhile, and only the parent goes on with it")
        self._hub.loop.run_callback(self._greenlet.throw, error)


def _checked(name: str, value: Value | None, kind: type[Value]) -> Value | None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__} or None, not {value!r}")
    return value


def _connect(sock: Any, client: ClientProtocol, request: Request, leftover: bytes, options: Options) -> DialledConn:
    codec = deflate.negotiated(client.extensions, options)
    ended = Event()
    inbox = _Inbox()
    connection = Connection(
        take_over(sock),
        request=request,
        subprotocol=client.subprotocol,
        protocol=Protocol(client=True, max_message_bytes=options.max_message_bytes, deflate=codec),
        encoder=MaskingEncoder(codec),
        options=options,
        put=inbox.put,
        batch=Batch(),
        keepalive=Keepalive(options, ended.set),
    )
    connection.start(leftover)
    return DialledConn(connection, inbox, ended)

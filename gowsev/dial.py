"""`Dial`: a client connection. It is usable by itself in a synchronous script, and ready for `Context.AddConn`.

The opening handshake is the `websockets` library's `ClientProtocol`, on gevent sockets; after it, a connection is the
same `Connection` that a server's is, with a mailbox of its own until a context takes it over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import gevent
import gevent.socket
import gevent.ssl
from gevent.event import Event
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, InvalidURI
from websockets.http11 import Response
from websockets.uri import WebSocketURI, parse_uri

from gowsev import deflate
from gowsev.conn import Conn
from gowsev.connection import CLOSED, Connection, take_over
from gowsev.errors import ConnectionClosed, DialError
from gowsev.frames import BINARY, TEXT, encode_close_payload
from gowsev.handshake import Headers, Request, header_pairs
from gowsev.keepalive import Keepalive
from gowsev.mailbox import Mailbox
from gowsev.options import Options
from gowsev.outbox import Batch
from gowsev.protocol import MaskingEncoder, Protocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping

    from websockets.typing import Origin, Subprotocol

__all__ = ["BinaryMessage", "Dial", "DialledConn", "TextMessage", "adopt"]

# As gorilla/websocket names them; their values are the opcodes of RFC 6455 section 5.2.
TextMessage = TEXT
BinaryMessage = BINARY

#: The response's head must fit; a proxy's error page behind it is read no further than `ClientProtocol` does.
_MAX_HEAD_BYTES = 1 << 16


class DialledConn(Conn):
    """A connection that `Dial` opened.

    `Context.AddConn` hands it to a loop; from then on it is the loop's, and these methods raise `RuntimeError`.
    """

    __slots__ = ("_drained", "_ended", "_owned")

    def __init__(self, connection: Connection, ended: Event) -> None:
        super().__init__(connection)
        self._ended = ended
        self._drained = Event()
        self._owned = False

    def ReadMessage(self) -> tuple[int, bytes | str]:
        """Wait for the next message; blocks the calling greenlet only.

        Returns:
            `(BinaryMessage, bytes)` or `(TextMessage, str)`.

        Raises:
            ConnectionClosed: the connection has ended, and everything read before has been returned.
            RuntimeError: the connection belongs to a context.
        """
        self._check_mine("ReadMessage")
        connection = self._connection
        kind, _, payload = connection.mailbox.get(None)
        if kind == CLOSED:
            connection.mailbox.put((kind, connection, payload))  # for whoever reads once more
            raise self._closed()
        connection.credit.refund(len(payload))
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
            raise TypeError(f"data of message type {type} must not be {data!r}")
        outbox = self._connection.outbox
        error = self._connection.write(type, payload)
        if error is not None:
            raise self._closed() from error
        if outbox.size:
            self._drained.clear()
            outbox.drained = self._drained.set
            gevent.wait([self._drained, self._ended], count=1)
            outbox.drained = None
            if not self._drained.is_set():
                raise self._closed()

    def Close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection: send a close frame, and wait for the end, for at most `Options.close_timeout` seconds.

        Messages that come meanwhile can still be read. Closing a closed connection does nothing.

        Raises:
            ValueError: `code` may not be sent (RFC 6455 section 7.4).
            RuntimeError: the connection belongs to a context.
        """
        self._check_mine("Close")
        encode_close_payload(code, reason)
        self._connection.close(code, reason)
        self._ended.wait()

    def __enter__(self) -> DialledConn:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._owned:
            self.Close()

    def _closed(self) -> ConnectionClosed:
        protocol = self._connection.protocol
        return ConnectionClosed(protocol.close_code, protocol.close_reason or self._connection.end)

    def _check_mine(self, method: str) -> None:
        if self._owned:
            raise RuntimeError(f"{method} on connection {self.id}: it belongs to a Context since AddConn")


def adopt(conn: object) -> Connection:
    """Take the connection out of what was given to `AddConn`, which can then not use it any more.

    Raises:
        TypeError: it is nothing that can be taken over.
        ValueError: it was taken over already.
    """
    if isinstance(conn, DialledConn):
        if conn._owned:
            raise ValueError(f"{conn!r} was added to a Context before")
        conn._owned = True
        return conn._connection
    raise TypeError(f"AddConn takes what gowsev.Dial returns, not {conn!r}")


def Dial(
    url: str,
    *,
    timeout: float | None = 10.0,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    origin: str | None = None,
    subprotocols: Iterable[str] = (),
    ssl_context: ssl.SSLContext | None = None,
    options: Options | None = None,
) -> DialledConn:
    """Open a client connection. Blocks the calling greenlet only.

    Args:
        url: `ws://` or `wss://`; user and password in it are sent as basic authorization.
        timeout: seconds for the whole of it: name, TCP, TLS, handshake; `None` for any time.
        headers: more headers for the request.
        origin: the request's `Origin`.
        subprotocols: those offered, in order of preference.
        ssl_context: for `wss://`; by default one that checks the certificate against the system's authorities.
        options: limits and intervals, as for a context.

    Raises:
        ValueError: `url` is no WebSocket URL, or a header cannot be sent.
        TypeError: an argument has the wrong type.
        DialError: the connection could not be opened; `status` is the HTTP status if the server refused.
    """
    options = _checked("options", options, Options) or Options()
    uri = _parse(url)
    pairs = header_pairs(headers or ())
    sock: Any = None
    step = "connecting"
    limit = gevent.Timeout(timeout)
    try:
        with limit:
            sock = gevent.socket.create_connection((uri.host, uri.port))
            if uri.secure:
                step = "in the TLS handshake"
                sock = _start_tls(sock, uri.host, ssl_context)
            step = "in the opening handshake"
            client = ClientProtocol(
                uri,
                origin=cast("Origin | None", origin),
                extensions=deflate.client_factories() if options.compression else None,
                subprotocols=[cast("Subprotocol", name) for name in subprotocols] or None,
            )
            response, leftover = _shake_hands(sock, client, pairs)
    except gevent.Timeout as expired:
        _close(sock)
        if expired is not limit:
            raise
        raise DialError(f"dial {url}: timed out after {timeout} s {step}") from None
    except (OSError, EOFError) as error:
        _close(sock)
        raise DialError(f"dial {url}: {error} ({step})") from error
    except BaseException:
        _close(sock)
        raise
    if client.handshake_exc is not None:
        _close(sock)
        status = response.status_code if isinstance(client.handshake_exc, InvalidStatus) and response else None
        raise DialError(f"dial {url}: {client.handshake_exc}", status) from client.handshake_exc
    assert response is not None
    return _connect(sock, uri, client, response, leftover, options)


def _parse(url: str) -> WebSocketURI:
    if not isinstance(url, str):
        raise TypeError(f"url must be str, not {url!r}")
    try:
        uri = parse_uri(url)
        uri.host.encode("idna")
        return uri
    except (InvalidURI, UnicodeError) as error:
        raise ValueError(f"url must be like ws://host:port/path or wss://host/path, not {url!r}: {error}") from None


def _checked(name: str, value: Any, kind: type) -> Any:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__} or None, not {value!r}")
    return value


def _start_tls(sock: Any, host: str, context: ssl.SSLContext | None) -> Any:
    context = context or gevent.ssl.create_default_context()
    # The cooperative socket, whichever `ssl` the context was made with.
    return gevent.ssl.SSLSocket(sock=sock, server_hostname=host, _context=context)


def _shake_hands(sock: Any, client: ClientProtocol, pairs: Iterable[tuple[str, str]]) -> tuple[Response | None, bytes]:
    """Send the request; return the response, and what came behind it."""
    request = client.connect()
    for name, value in pairs:
        request.headers[name] = value
    client.send_request(request)
    sock.sendall(b"".join(client.data_to_send()))
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD_BYTES:
        data = sock.recv(1 << 16)
        if not data:
            raise EOFError("the server closed the connection without a response")
        head += data
    leftover = b""
    if head.startswith(b"HTTP/1.1 101"):
        # What follows is frames, and those are not for `ClientProtocol`.
        head, _, leftover = head.partition(b"\r\n\r\n")
        head += b"\r\n\r\n"
    client.receive_data(head)
    while True:
        events = client.events_received()
        if events or client.handshake_exc is not None:
            return next((event for event in events if isinstance(event, Response)), None), leftover
        data = sock.recv(1 << 16)
        if data:
            client.receive_data(data)
        else:
            client.receive_eof()


def _connect(
    sock: Any, uri: WebSocketURI, client: ClientProtocol, response: Response, leftover: bytes, options: Options
) -> DialledConn:
    request = Request(
        path=uri.path or "/",
        query=uri.query,
        headers=Headers(response.headers.raw_items()),
        peer=sock.getpeername()[:2],
        local=sock.getsockname()[:2],
        tls=uri.secure,
    )
    codec = deflate.negotiated(client.extensions)
    if uri.secure:
        sock.settimeout(0.0)
    else:
        sock = take_over(sock)
    ended = Event()
    mailbox = Mailbox()

    def end() -> None:
        mailbox.close()
        ended.set()

    connection = Connection(
        sock,
        request=request,
        subprotocol=client.subprotocol,
        tls=uri.secure,
        protocol=Protocol(client=True, max_message_bytes=options.max_message_bytes, deflate=codec),
        encoder=MaskingEncoder(codec),
        options=options,
        mailbox=mailbox,
        batch=Batch(),
        keepalive=Keepalive(options, end),
    )
    connection.start(leftover)
    return DialledConn(connection, ended)


def _close(sock: Any) -> None:
    if sock is not None:
        sock.close()

"""Connections that another library opened: taking the socket out of its hands.

Three kinds of owners: a WSGI server (for `Context.ServeHTTP`), gevent-websocket, and websocket-client (both for
`Context.AddConn`). What they have already read and not used comes with it.

An owner that is a server still holds its socket object when the socket is ours, and will read from it, write to it and
close it when its request is over. It finds a *dead end* there: a socket whose peer is gone. It reads the end of the
stream and cannot write, as after any client that has left, which no server logs as an error. A closed socket raises
"bad file descriptor", which some servers do.

websocket-client is not imported, nor a class of gevent-websocket: a program that has such an object has imported it.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import gevent.socket
from gevent import monkey

from gowsev.connection.sockets import is_tls, leave_dead_end, take_over
from gowsev.opening.handshake import HTTPRequest
from gowsev.opening.upgrade import HEADERS, Ends, certificate_of, describe, read_buffered
from gowsev.request import Headers, Request
from gowsev.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Adopted",
    "adopt",
    "ends_of",
    "from_gevent_websocket",
    "is_gevent_websocket",
    "request_of",
    "socket_of",
    "take_from_server",
]


class Adopted(NamedTuple):
    """A connection that has been taken out of its owner's hands."""

    sock: Any
    """Non-blocking."""
    client: bool
    """Whether we are the client."""
    request: Request
    subprotocol: str | None
    leftover: bytes
    """What was read of it already, and not used."""


def adopt(conn: Any) -> Adopted:
    """Take over a connection that was given to `AddConn`.

    Raises:
        TypeError: it is nothing that can be taken over.
        ValueError: it is closed, or was taken before.
    """
    if is_gevent_websocket(conn):
        return from_gevent_websocket(conn)
    if _is_a(conn, "websocket", "WebSocket"):
        return _from_websocket_client(conn)
    raise TypeError(
        "AddConn takes what gowsev.Dial returns, a WebSocket of gevent-websocket, or a connected WebSocket of "
        f"websocket-client, not {conn!r}"
    )


def is_gevent_websocket(conn: Any) -> bool:
    """Whether this is a `WebSocket` of gevent-websocket."""
    return _is_a(conn, "geventwebsocket.websocket", "WebSocket")


def _is_a(conn: Any, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(conn, kind)


def from_gevent_websocket(websocket: Any) -> Adopted:
    """Take the connection of a `geventwebsocket.websocket.WebSocket`, which is closed for its application from then on.

    Raises:
        ValueError: it is closed, or was taken before.
    """
    handler = websocket.handler
    sock = getattr(handler, "socket", None)
    if websocket.closed or sock is None:
        raise ValueError(f"{websocket!r} is closed, or was added before")
    subprotocol = None
    for name, value in handler.response_headers or ():
        if name.lower() == b"sec-websocket-protocol":
            subprotocol = value.decode("latin-1")
    request = describe(request_of(websocket.environ), ends_of(sock))
    leftover = read_buffered(handler.rfile, sock)
    # It must neither read nor, when its application returns, send a close frame.
    websocket.closed = True
    websocket.stream = websocket.raw_read = websocket.raw_write = None
    return Adopted(take_from_server(sock), False, request, subprotocol, leftover)


def _from_websocket_client(websocket: Any) -> Adopted:
    """Take the connection of a `websocket.WebSocket`, which is not connected from then on."""
    sock = websocket.sock
    if not websocket.connected or sock is None:
        raise ValueError(f"{websocket!r} is not connected, or was added before")
    if not isinstance(sock, gevent.socket.socket | monkey.get_original("socket", "socket")):
        raise TypeError(f"AddConn can take a websocket-client WebSocket on a socket, not on {sock!r}")
    answer = websocket.handshake_response
    request = describe(HTTPRequest("", Headers(answer.headers if answer is not None else ())), ends_of(sock))
    leftover = _unread(websocket)
    websocket.sock = None
    websocket.connected = False
    return Adopted(take_over(sock), True, request, websocket.subprotocol, leftover)


def _unread(websocket: Any) -> bytes:
    """Return what a websocket-client WebSocket has read and not delivered, as it came.

    A `recv` that timed out may have left the first fragments of a message, or the beginning of a frame.
    """
    gathered = b""
    fragments = websocket.cont_frame.cont_data
    if fragments is not None:
        opcode, payload = fragments
        gathered = frames.encode_frame(opcode, bytes(payload))  # without FIN
    buffer = websocket.frame_buffer
    if buffer.header is not None:
        fin, rsv1, rsv2, rsv3, opcode, masked, length = buffer.header
        first = fin << 7 | rsv1 << 6 | rsv2 << 5 | rsv3 << 4 | opcode
        if buffer.length is None:
            gathered += bytes((first, masked << 7 | length))
        else:
            gathered += frames.encode_header(first, buffer.length, bool(masked))
            gathered += buffer.mask_value or b""
    return gathered + b"".join(buffer.recv_buffer)


# -- sockets -----------------------------------------------------------------------------------------------------------


def take_from_server(sock: Any) -> Any:
    """Take the connection out of a server's gevent socket, and leave a dead end there; return a non-blocking socket."""
    taken = take_over(sock)
    leave_dead_end(sock)
    return taken


def ends_of(sock: Any) -> Ends:
    """Return the two ends of a connection; the peer of a socket that is broken already is unknown."""
    try:
        peer = sock.getpeername()
    except OSError:  # reset; the next use of the socket finds out, and reports it
        peer = None
    return Ends(peer, sock.getsockname(), is_tls(sock), certificate_of(sock, peer))


# -- WSGI servers ------------------------------------------------------------------------------------------------------


def request_of(environ: dict[str, Any]) -> HTTPRequest:
    """Return the request that a WSGI server has read.

    Raises:
        websockets.exceptions.InvalidHeaderValue: a header has a value that may not stand in one.
    """
    if HEADERS in environ:
        headers = Headers(environ[HEADERS])
    else:
        headers = Headers()
        for key, value in environ.items():
            if key.startswith("HTTP_"):
                # Servers join repeated headers. Host is split again, so that a second one is found.
                for part in value.split(",") if key == "HTTP_HOST" else (value,):
                    headers[key[5:].replace("_", "-").title()] = part
        for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if environ.get(key):
                headers[key.replace("_", "-").title()] = environ[key]
    path = _sent(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))
    target = quote(path) + "?" + _sent(environ.get("QUERY_STRING", "")).decode("latin-1")
    return HTTPRequest(target, headers, environ.get("REQUEST_METHOD", ""), environ.get("SERVER_PROTOCOL", ""))


def _sent(value: str) -> bytes:
    """Return the UTF-8 of a string of WSGI's, which PEP 3333 has decoded as latin-1, unless bottle decoded it again."""
    try:
        sent = value.encode("latin-1")
        sent.decode()
    except UnicodeError:
        return value.encode()
    return sent


def socket_of(environ: dict[str, Any]) -> tuple[Any, Callable[[], bytes]]:
    """Find the gevent socket of a request, and a function that returns what the server has read beyond the request.

    Raises:
        RuntimeError: the server does not let go of its sockets, or is not gevent's.
    """
    stream = environ.get("wsgi.input")
    sock = environ.get("gunicorn.socket")
    if sock is not None:
        unreader = getattr(getattr(stream, "reader", None), "unreader", None)
        take_buffered = None if unreader is None else lambda: _take_unread(unreader)
    else:
        rfile = getattr(stream, "rfile", stream)
        sock = getattr(getattr(rfile, "raw", None), "_sock", None)
        take_buffered = lambda: read_buffered(rfile, sock)  # noqa: E731
    if take_buffered is None or not isinstance(sock, gevent.socket.socket):
        raise RuntimeError(
            f"ServeHTTP cannot take a connection out of this server ({environ.get('SERVER_SOFTWARE', 'unknown')}). It "
            "can under gevent.pywsgi.WSGIServer, gunicorn -k gevent and gunicorn -k gowsev.gunicorn.Worker, if nothing "
            "in between has replaced environ['wsgi.input']. Under any other server let the context listen on a port of "
            "its own: ListenAndServe."
        )
    return sock, take_buffered


def _take_unread(unreader: Any) -> bytes:
    """Take what gunicorn's parser has read beyond the request."""
    data: bytes = unreader.buf.getvalue()
    unreader.buf = io.BytesIO()
    return data

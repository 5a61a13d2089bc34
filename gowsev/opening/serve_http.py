"""`Context.ServeHTTP`: an upgrade under somebody else's WSGI server, inside any web framework.

The response 101 is written to the socket here, not given to `start_response`: frameworks and servers change what goes
through it, and the socket must not be taken before it has left. What the application returns then goes into the dead
end that `adoption` leaves behind. `handshake_timeout` bounds how long all this may take.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.connection.fork import close_descriptor, telling_in_child
from gowsev.opening.adoption import (
    from_gevent_websocket,
    is_gevent_websocket,
    peer_of,
    request_of,
    socket_of,
    take_from_server,
)
from gowsev.opening.handshake import Handshake, HTTPRequest, Response, refusal
from gowsev.opening.upgrade import Receiver, format_address, judge, refuse_late, start
from gowsev.request import Request
from gowsev.wire import frames
from gowsev.wire.frames import POLICY, TRY_AGAIN_LATER

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["serve"]

logger = logging.getLogger("gowsev")

_SWITCHING = "101 Switching Protocols"


def serve(receiver: Receiver, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer a request for an upgrade, and hand its connection to the receiver. May block the calling greenlet.

    Raises:
        RuntimeError: the server is none that this works under, or this is not the receiver's thread.
    """
    websocket = environ.get("wsgi.websocket")
    if is_gevent_websocket(websocket):
        receiver.check_thread()
        _accept_late(receiver, environ, websocket)
        start_response(_SWITCHING, [])
        return []
    sock, take_buffered = socket_of(environ)
    receiver.check_thread()
    request, handshake = _judge(receiver, environ, sock)
    if request is not None and handshake.response.status_code == 101:
        leftover = take_buffered()
        if _sent(sock, handshake.response, receiver.options.handshake_timeout):
            receiver.accept(take_from_server(sock), request.tls, request, handshake, leftover)
            start_response(_SWITCHING, [])  # for middleware and logs; it is not sent
            return []
        handshake = Handshake(refusal(400, "The request is incomplete.\n"))
    start_response(*start(handshake.response))
    return [bytes(handshake.response.body)]


class _Handed:
    """The socket of a request that is being judged."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def disown(self) -> None:
        """In a forked child: let the server find the socket closed; the answer is the parent's to give."""
        close_descriptor(self._sock)


def _judge(receiver: Receiver, environ: WSGIEnvironment, sock: Any) -> tuple[Request | None, Handshake]:
    """Negotiate, within the time there is."""

    def read() -> tuple[HTTPRequest, Request]:
        request = request_of(environ, sock)
        method, version = environ.get("REQUEST_METHOD", ""), environ.get("SERVER_PROTOCOL", "")
        return HTTPRequest(request.path, request.headers, method, version), request

    peer = peer_of(sock)
    limit = receiver.options.handshake_timeout
    silent: Any = False
    with gevent.Timeout(limit, silent), telling_in_child(_Handed(sock)):
        return judge(receiver, read, peer, environ.get("PATH_INFO", ""))
    return None, Handshake(refuse_late(receiver, peer, environ.get("PATH_INFO", "")))


def _sent(sock: Any, response: Response, limit: float | None) -> bool:
    """Send the response; return whether it has left."""
    try:
        sock.settimeout(limit)
        sock.sendall(response.serialize())
    except OSError as error:
        logger.info("lost %s during its request: %s", format_address(peer_of(sock)), error)
        return False
    return True


def _accept_late(receiver: Receiver, environ: WSGIEnvironment, websocket: Any) -> None:
    """Accept a connection whose upgrade gevent-websocket has answered before we could judge it.

    It can be refused with a close frame only, and what the options offer has not been negotiated.
    """
    _, handshake = _judge(receiver, environ, websocket.handler.socket)
    response = handshake.response
    if response.status_code == 101:
        adopted = from_gevent_websocket(websocket)
        agreed = Handshake(response, adopted.subprotocol)
        receiver.accept(adopted.sock, adopted.tls, adopted.request, agreed, adopted.leftover)
        return
    code = TRY_AGAIN_LATER if response.status_code == 503 else POLICY
    reason = bytes(response.body).decode("utf-8", "replace").strip()
    try:
        websocket.raw_write(frames.encode_frame(frames.FIN | frames.CLOSE, frames.encode_close_payload(code, reason)))
    except OSError as error:  # the peer has not waited for the refusal, which is no error of the application
        logger.info("lost %s during its request: %s", format_address(websocket.handler.client_address), error)
    websocket.closed = True

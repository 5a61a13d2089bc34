"""`Context.ServeHTTP`: an upgrade under another WSGI server, inside any web framework.

The response 101 is written to the socket, not given to `start_response`: frameworks and servers change what goes
through it, and the socket must not be taken before it has left. What the application returns then goes into the dead
end that `adoption` leaves behind. `handshake_timeout` bounds how long all this may take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

from gowsev.connection.fork import close_descriptor, telling_in_child
from gowsev.opening.adoption import (
    ends_of,
    from_gevent_websocket,
    is_gevent_websocket,
    request_of,
    socket_of,
    take_from_server,
)
from gowsev.opening.handshake import Handshake, refusal
from gowsev.opening.upgrade import (
    Ends,
    Receiver,
    asks_for_websocket,
    judge,
    note_loss,
    note_lost_upgrade,
    note_refusal,
    note_unsent,
    refusal_by_time,
    respond,
    switch_protocols,
    upgrade_required,
)
from gowsev.request import Accept, Request
from gowsev.wire import frames
from gowsev.wire.frames import POLICY, TRY_AGAIN_LATER

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["serve"]

_SWITCHING = "101 Switching Protocols"


def serve(
    receiver: Receiver, environ: WSGIEnvironment, start_response: StartResponse, decided: Accept | None = None
) -> list[bytes]:
    """Answer a request, and hand its connection to the receiver if it is upgraded. May block the calling greenlet.

    Args:
        receiver: gets the connection.
        environ: the request, as PEP 3333 has it.
        start_response: begins the response, likewise.
        decided: the program's answer, where it has decided already.

    Raises:
        ValueError: `decided` names a subprotocol that the client does not offer.
        RuntimeError: this does not work under the server, or this is not the receiver's thread.
    """
    if not asks_for_websocket(environ):
        note_lost_upgrade(environ)
        return upgrade_required(environ, start_response)
    websocket = environ.get("wsgi.websocket")
    if is_gevent_websocket(websocket):
        receiver.check_thread()
        _accept_late(receiver, environ, websocket, decided)
        start_response(_SWITCHING, [])
        return []
    sock, take_buffered = socket_of(environ)
    receiver.check_thread()
    ends = ends_of(sock)
    request, handshake = _judge(receiver, environ, sock, ends, decided)
    if request is None:
        return respond(handshake.response, start_response)
    try:
        sock.settimeout(receiver.options.handshake_timeout)
        switch_protocols(receiver, sock, request, handshake, lambda: (take_buffered(), take_from_server(sock)))
    except OSError as error:
        note_loss(ends.peer, error)
        return respond(refusal(400, "The request is incomplete.\n"), start_response)
    start_response(_SWITCHING, [])  # for middleware and logs; it is not sent
    return []


class _Handed:
    """The socket of a request that is being judged."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def disown(self) -> None:
        """In a forked child: let the server find the socket closed; the answer is the parent's to give."""
        close_descriptor(self._sock)


def _judge(
    receiver: Receiver, environ: WSGIEnvironment, sock: Any, ends: Ends, decided: Accept | None
) -> tuple[Request | None, Handshake]:
    """Judge a request, within `handshake_timeout`."""
    silent: Any = False
    request: Request | None = None
    handshake = Handshake(refusal_by_time(receiver.options))
    with gevent.Timeout(receiver.options.handshake_timeout, silent), telling_in_child(_Handed(sock)):
        request, handshake = judge(receiver, ends, lambda: request_of(environ), decided)
    if request is None:
        note_refusal(receiver, handshake.response, ends.peer, environ.get("PATH_INFO", ""))
    return request, handshake


def _accept_late(receiver: Receiver, environ: WSGIEnvironment, websocket: Any, decided: Accept | None) -> None:
    """Accept a connection whose upgrade gevent-websocket has answered before we could judge it.

    It can be refused with a close frame only, and neither what the options offer nor what the program adds to the
    answer has been sent.
    """
    ends = ends_of(websocket.handler.socket)
    request, handshake = _judge(receiver, environ, websocket.handler.socket, ends, decided)
    response = handshake.response
    if request is not None:
        adopted = from_gevent_websocket(websocket)
        if handshake.accept is not None:
            note_unsent(handshake.accept, adopted.subprotocol)
        handshake = Handshake(response, adopted.subprotocol, accept=handshake.accept)
        receiver.accept(adopted.sock, adopted.request, handshake, adopted.leftover)
        return
    websocket.closed = True
    code = TRY_AGAIN_LATER if response.status_code == 503 else POLICY
    reason = bytes(response.body).decode("utf-8", "replace").strip()
    try:
        websocket.raw_write(frames.encode_frame(frames.FIN | frames.CLOSE, frames.encode_close_payload(code, reason)))
    except OSError as error:  # the peer has not waited for the refusal, which is no error of the application
        note_loss(ends.peer, error)

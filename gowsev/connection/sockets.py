"""Sockets below gevent's: out of its hands, closed for the peer too, and looked at by the hub.

Nothing here knows what a socket carries.
"""

from __future__ import annotations

import socket
from typing import Any

import gevent
from gevent import monkey

from gowsev.connection.tls import TLSSocket

__all__ = ["close_socket", "poll_sockets", "take_over"]

#: Seconds of a sleep without length, for which the hub still has to look at its timers and its sockets.
_NO_TIME = 1e-9


def take_over(sock: Any) -> Any:
    """Take the file descriptor out of a gevent socket into a plain non-blocking one; below TLS, where there is TLS.

    The reader needs none of what gevent's socket adds, and whoever still wants to close the gevent one (pywsgi and
    its server do, when a request is over) closes an empty shell.
    """
    if isinstance(sock, TLSSocket):
        sock.sock = take_over(sock.sock)
        return sock
    family, kind, proto = sock.family, sock.type, sock.proto
    plain = monkey.get_original("socket", "socket")(family, kind, proto, sock.detach())
    plain.setblocking(False)
    return plain


def close_socket(sock: Any) -> None:
    """Close a socket so that the peer sees the end, even where a forked process still holds the descriptor."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # the peer was faster, or it was never connected
        pass
    sock.close()


def poll_sockets() -> None:
    """Let the hub look at its sockets once, and every reader that has something run."""
    # The timer of this sleep is due in the very round in which the sockets are looked at, but may come before them;
    # the second one, which only runs the hub's callbacks, lets that round end. By itself it would not begin one.
    gevent.sleep(_NO_TIME)
    gevent.sleep(0)

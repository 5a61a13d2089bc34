"""Sockets below gevent's: out of an owner's hands, accepted, closed for the peer too, and looked at by the hub.

This is the one module that reaches below gevent's public interface: into `gevent.socket.socket` (what is inside it, how
it accepts without waiting, whom it wakes) and `gevent.ssl.SSLSocket` (OpenSSL's object, how the two come apart). What
it needs is checked when it is imported. Nothing here knows what a socket carries.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Any, Final

import gevent
import gevent.socket
import gevent.ssl
from gevent import monkey

from gowsev.connection.tls import TakenTLS, TLSSocket

__all__ = [
    "ServedSocket",
    "accept",
    "close_socket",
    "half_close",
    "is_tls",
    "leave_dead_end",
    "poll_sockets",
    "send_at_once",
    "take_over",
    "unacknowledged",
]

#: Not gevent's, patched or not.
_Socket: Any = monkey.get_original("socket", "socket")

_INT: Final = struct.Struct("i")

#: Seconds of a sleep without length, for which the hub still has to look at its timers and its sockets.
_NO_TIME = 1e-9

#: The attributes of gevent's sockets that are used here, and the function that must have or know each.
_NEEDED = {
    "_sock": gevent.socket.socket.__init__,
    "_read_event": gevent.socket.socket.__init__,
    "_write_event": gevent.socket.socket.__init__,
    "_accept": gevent.socket.socket.accept,
    "_sslobj": gevent.ssl.SSLSocket.__init__,
    "_detach_socket": gevent.ssl.SSLSocket.detach,
}


def missing(needed: dict[str, Any]) -> list[str]:
    """Return which attributes the functions that should know them do not name."""
    return [name for name, function in needed.items() if name not in function.__code__.co_names]


if missing(_NEEDED):  # pragma: no cover - with no version of gevent that there is
    raise ImportError(
        f"gowsev needs {', '.join(missing(_NEEDED))} of gevent's sockets, which gevent {gevent.__version__} has not; "
        "versions from 25.4.1 to 26.9 have them"
    )


class ServedSocket(gevent.socket.socket):  # type: ignore[misc]  # gevent has no types
    """A client's socket for pywsgi, which remembers that sending has failed.

    pywsgi tells that to nobody, and what it raises looks like an error of the application's.
    """

    failed = False

    def send(self, *args: Any, **kwargs: Any) -> int:
        """Send some of what is given, which `sendall` does too; may block the calling greenlet."""
        try:
            return int(super().send(*args, **kwargs))
        except OSError:
            self.failed = True
            raise


def accept(listening: Any) -> tuple[Any, Any] | None:
    """Accept a connection of a listening gevent socket, without waiting for one.

    Returns:
        A plain non-blocking socket and the peer's address; `None` if no connection waits.

    Raises:
        OSError: the system cannot accept.
    """
    try:
        descriptor, address = listening._accept()
    except BlockingIOError:
        return None
    sock = _Socket(listening.family, listening.type, listening.proto, descriptor)
    sock.setblocking(False)
    return sock, address


def take_over(sock: Any) -> Any:
    """Take the file descriptor out of a socket into a plain non-blocking one; below TLS, where there is TLS.

    The reader needs none of what gevent's socket adds. What still closes the gevent one (pywsgi and its server do, when
    a request is over) closes an empty shell.
    """
    if isinstance(sock, TLSSocket):
        sock.sock = take_over(sock.sock)
        return sock
    if isinstance(sock, gevent.ssl.SSLSocket):
        taken = TakenTLS(sock._sock, sock._sslobj)
        sock._detach_socket("detached")
        sock._sslobj = None
        return taken
    if isinstance(sock, monkey.get_original("ssl", "SSLSocket")):
        sock.setblocking(False)
        return sock
    family, kind, proto = sock.family, sock.type, sock.proto
    plain = _Socket(family, kind, proto, sock.detach())
    plain.setblocking(False)
    return plain


def leave_dead_end(sock: Any) -> None:
    """Put a socket whose peer is gone into a gevent socket that was taken over, for its owner to find."""
    ours, theirs = monkey.get_original("socket", "socketpair")()
    theirs.close()
    dead = gevent.socket.socket(ours.family, ours.type, ours.proto, ours.detach())
    sock._sock, sock._read_event, sock._write_event = dead._sock, dead._read_event, dead._write_event


def is_tls(sock: Any) -> bool:
    """Whether this is a TLS socket of gevent's or the standard library's."""
    return isinstance(sock, gevent.ssl.SSLSocket | monkey.get_original("ssl", "SSLSocket"))


def send_at_once(sock: Any) -> None:
    """Let the kernel hold nothing back: small messages are gathered already, and would only be delayed once more."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def half_close(sock: Any, tls: bool) -> bool:
    """Say to the peer that nothing more will come, in TLS too; return whether it was still there."""
    try:
        if tls:
            sock.unwrap()
    except OSError:
        # TLS's own farewell is a courtesy, and the peer's answer to it is not waited for.
        pass
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def close_socket(sock: Any) -> None:
    """Close a socket so that the peer sees the end, even where a forked process still holds the descriptor."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # the peer was faster, or it was never connected
        pass
    sock.close()


def unacknowledged(sock: Any) -> int:
    """Return how many bytes the kernel has taken and the peer's has not; 0 where the kernel does not tell."""
    try:
        (count,) = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
    except OSError:  # a kernel, or a kind of socket, that has no such number
        return 0
    return int(count)


def poll_sockets() -> None:
    """Let the hub look at its sockets once, and every reader that has something run."""
    # The timer of this sleep is due in the very round in which the sockets are looked at, but may come before them;
    # the second one, which only runs the hub's callbacks, lets that round end. By itself it would not begin one.
    gevent.sleep(_NO_TIME)
    gevent.sleep(0)

"""Shutting down several things together: all contexts of a process, or a context and other servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from gowsev.connection.events import CALL
from gowsev.loop.loop import Loop, loops
from gowsev.loop.signals import end_on_signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.pywsgi import WSGIServer

__all__ = ["shut_down_all", "shut_down_on_signal"]

#: Seconds between looks at whether the loop has ended, where another server waits for that.
_LOOK = 0.05


def shut_down_all(timeout: float) -> Callable[[], bool]:
    """Shut down every context of this process; return a function that tells whether all have ended.

    One that is not driven has ended when its sockets are closed.

    Args:
        timeout: as for `Context.Shutdown`.
    """
    all_ = tuple(loops)
    for loop in all_:
        if loop.is_here:
            loop.stop(timeout)
        elif not loop.finished:
            loop.queue.post((CALL, lambda _context, loop=loop: loop.stop(timeout), ()))  # it belongs to another thread
    return lambda: all(loop.ended for loop in all_)


def shut_down_on_signal(servers: tuple[WSGIServer, ...], loop: Loop, timeout: float | None) -> None:
    """Let SIGTERM and SIGINT shut down a loop together with other servers, from now on.

    Raises:
        ValueError: a server has not been started, or this is not the main thread.
        RuntimeError: this is not the loop's thread.
    """
    for server in servers:
        if not server.started:
            raise ValueError(f"servers must have been started, which {server!r} is not: call its start() first")
    loop.check_thread()
    end_on_signal(lambda: _shut_down_with(servers, loop, timeout), lambda: loop.finished)


def _shut_down_with(servers: tuple[WSGIServer, ...], loop: Loop, timeout: float | None) -> None:
    """Shut down a loop together with other servers, from the first listener to the last connection. Blocks."""
    for server in servers:
        if not server.closed:
            # Not `close`: `serve_forever` would return, and the program end, before the connections are closed.
            server.stop_accepting()
            server.socket.close()
    loop.stop(timeout)
    while not loop.ended:
        gevent.sleep(_LOOK)
    for server in servers:
        server.stop()

"""A worker class for gunicorn: `gunicorn -k gowsev.gunicorn.Worker app:app`.

It is gunicorn's gevent worker, with one thing more. When that one ends (a restart, a reload, `max_requests`), it waits
for its requests and exits; WebSocket connections are no requests any more by then, and would be cut off. This one shuts
its contexts down: each connection is closed with 1001, and the loops end.

The order is what matters. A client that is closed comes back at once, and must not come back to this worker, which
would refuse it. So connections are closed only when the worker's listeners are, and when every client that was accepted
before has been answered. gunicorn's quick shutdown (Ctrl-C) waits for none of these: no worker stays to come back to.

The only importer of gunicorn, which is an extra; no other module imports this one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gevent
from gunicorn.workers.ggevent import GeventWorker

from gowsev.loop.shutdown import shut_down_all

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Worker"]

#: Seconds between looks at whether the worker is to end.
_LOOK = 0.1
#: What the connections get of gunicorn's `graceful_timeout`, after which the worker is killed.
_SHARE = 0.8
#: Seconds that a client that was accepted last has to ask for its upgrade.
_LAST_ARRIVALS = 1.0
#: Seconds that connections get of a quick shutdown, which is not to take long.
_QUICK = 1.0


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker, which closes WebSocket connections with 1001 before it ends.

    They have four fifths of gunicorn's `graceful_timeout` to answer, or `Options.close_timeout` where that is shorter.
    The worker's listeners are closed first, which gunicorn does within a second: give `graceful_timeout` three or more.
    On SIGINT and SIGQUIT, gunicorn's quick shutdown, connections are closed at once, and have a second to answer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # gunicorn's, which its versions may change
        super().__init__(*args, **kwargs)
        #: The sockets of clients whose first request has not been answered.
        self._arrivals: set[Any] = set()

    def run(self) -> None:
        """Serve until told to end."""
        closing = gevent.spawn(self._close_connections)
        try:
            super().run()
            closing.join()
        finally:
            closing.kill()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one client."""
        self._arrivals.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._arrivals.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Answer one request."""
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            self._arrivals.discard(sock)

    def handle_quit(self, sig: Any, frame: Any) -> None:  # pragma: no cover - it ends the process
        """Begin a quick shutdown. A signal's handler, which must not wait."""
        gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: Any, frame: Any) -> None:  # pragma: no cover - it ends the process
        self._wait_until(shut_down_all(_QUICK), time.monotonic() + _QUICK)
        super().handle_quit(sig, frame)

    def _close_connections(self) -> None:
        while self.alive:
            gevent.sleep(_LOOK)
        deadline = time.monotonic() + self.cfg.graceful_timeout * _SHARE
        self._wait_until(lambda: all(sock.fileno() == -1 for sock in self.sockets), deadline)
        self._wait_until(lambda: not self._arrivals, min(deadline, time.monotonic() + _LAST_ARRIVALS))
        self._wait_until(shut_down_all(max(0, deadline - time.monotonic())), deadline)

    def _wait_until(self, condition: Callable[[], bool], deadline: float) -> None:
        while not condition() and time.monotonic() < deadline:
            self.notify()  # else the master kills the worker, where its `timeout` is shorter than this
            gevent.sleep(_LOOK)

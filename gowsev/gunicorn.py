"""A worker class for gunicorn: `gunicorn -k gowsev.gunicorn.Worker app:app`.

It is gunicorn's gevent worker, with one thing more. When that one ends (a restart, a reload, `max_requests`), it waits
for its requests and exits; WebSocket connections are no requests any more by then, and would be cut off. This one shuts
its contexts down: each connection is closed with 1001, and the loops end.

The only importer of gunicorn, which is an extra; nobody else imports this module.
"""

from __future__ import annotations

import time

import gevent
from gunicorn.workers.ggevent import GeventWorker

from gowsev.context import shut_down_all

__all__ = ["Worker"]

#: Seconds between looks at whether the worker is to end.
_LOOK = 0.1
#: What the connections get of gunicorn's `graceful_timeout`, after which the worker is killed.
_SHARE = 0.8


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker, which closes WebSocket connections with 1001 before it ends.

    They have four fifths of gunicorn's `graceful_timeout` to answer, or `Options.close_timeout` where that is shorter.
    """

    def run(self) -> None:
        """Serve until told to end."""
        closing = gevent.spawn(self._close_connections)
        try:
            super().run()
            closing.join()
        finally:
            closing.kill()

    def _close_connections(self) -> None:
        while self.alive:
            gevent.sleep(_LOOK)
        timeout = self.cfg.graceful_timeout * _SHARE
        deadline = time.monotonic() + timeout
        drained = shut_down_all(timeout)
        while not drained() and time.monotonic() < deadline:
            gevent.sleep(_LOOK)

"""How a process fares, for load balancers and supervisors: the page behind `/healthz`.

    health = Health(context, channels)        # a WSGI application, to be called by the program's own for these paths

Two questions have two answers. *Ready*: may new clients come? *Alive*: or should the process be restarted, with all its
connections lost? A process whose Redis is away is not ready, and very much alive.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from gevent.event import Event

from gowsev.arguments import as_seconds, check_callable, check_whole
from gowsev.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta
    from wsgiref.types import StartResponse, WSGIEnvironment

    from gowsev.channels import Channels
    from gowsev.context import Context

__all__ = ["Health"]

#: A channel that is asked who is there, so that channels connect. Its name is no longer than any limit allows.
_ANY = "0"


class Health:
    """The pages `/healthz` and `/healthz/alive`: a WSGI application. Belongs to the thread of the context.

    Both say the same, as JSON: states and counts, and neither names nor addresses, so that anyone may read them. The
    status is 200, or 503 where the process is not ready; at a path that ends in `/alive`, where it is not alive.

    Args:
        context: not ready while its loop does not turn.
        channels: not ready while they are away, or lag. They connect at once. `None` if there are none.
        own: called for each answer, without arguments: what the program adds to it, or puts in place of something. With
            `"ready": False` the process is not ready, whatever else is true.
        ready_within: seconds in which the loop handles a call, if it is to be ready. So long an answer may take.
        alive_within: the same, if it is to be alive; counted from the first request that found the loop busy.
        most_lag: messages of channels that may wait for the loop.

    Raises:
        TypeError, ValueError: `own` is not callable, a time no number of seconds of at least 0, or `most_lag` no whole
            number of at least 0.
    """

    def __init__(
        self,
        context: Context,
        channels: Channels | None = None,
        *,
        own: Callable[[], Mapping[str, object]] | None = None,
        ready_within: float | timedelta = 1.0,
        alive_within: float | timedelta = 30.0,
        most_lag: int = 10_000,
    ) -> None:
        check_callable("own", own, optional=True)
        check_whole("most_lag", most_lag, 0)
        self._context = context
        self._channels = channels
        self._own = own
        self._ready_within = as_seconds("ready_within", ready_within)
        self._alive_within = as_seconds("alive_within", alive_within)
        self._most_lag = most_lag
        self._began = self._asked = time.monotonic()
        self._turned = Event()
        """Set when the loop has handled what it was asked last."""
        self._turned.set()
        if channels is not None:
            # Else a process whose channels wait for a first client would get none.
            channels.Members(_ANY, lambda _context, _members, _error: None)

    def look(self) -> dict[str, object]:
        """Return what the pages say, as a dictionary. Blocks the greenlet for up to `ready_within` seconds."""
        turns = self._loop_turns()
        stats = self._context.Stats()
        ready, refused = turns, sum(stats.refusals.values())
        found: dict[str, object] = {
            "alive": turns or time.monotonic() - self._asked < self._alive_within,
            "loop": "turns" if turns else "busy",
            "connections": stats.connections,
            "version": __version__,
            "uptime_seconds": round(time.monotonic() - self._began, 1),
        }
        if self._channels is not None:
            status = self._channels.Status()
            ready = ready and status.up and status.lag < self._most_lag
            refused += status.refused
            found |= {"channels": "up" if status.up else "away", "lag": status.lag, "gaps": status.gaps}
        found |= {"refused": refused, "ready": True} | dict(self._own() if self._own is not None else {})
        found["ready"] = bool(ready and found["ready"])
        return {"status": "ok" if found["ready"] else "degraded", **found}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Answer a request."""
        found = self.look()
        good = found["alive" if environ["PATH_INFO"].endswith("/alive") else "ready"]
        body = json.dumps(found).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("200 OK" if good else "503 Service Unavailable", [*headers, ("Cache-Control", "no-store")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _loop_turns(self) -> bool:
        """Ask the loop for a call, unless it has not handled the last one yet; wait for that."""
        if self._turned.is_set():
            self._turned, self._asked = Event(), time.monotonic()
            try:
                self._context.Post(lambda _context, turned: turned.set(), self._turned)
            except RuntimeError:  # the context has been shut down, and will not turn again
                return False
        return bool(self._turned.wait(self._ready_within))

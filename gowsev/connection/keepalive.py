"""The clock of a set of connections: one timer for all of them, however many.

A timer for each connection, started again by each message, would cost more than the message. Instead the hub sweeps
over the open connections every tick and lets each look at the clock. A tick is an eighth of the shortest interval
there is to keep, and at most a second; that is how much later than stated a ping, or an end, may come.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from gowsev.connection.fork import tell_in_child
from gowsev.connection.liveness import Clock
from gowsev.connection.round_trips import RoundTrips

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.options import Options

__all__ = ["Keepalive"]

_SHORTEST_TICK, _LONGEST_TICK = 0.01, 1.0


class _Checked(Protocol):
    def check(self, now: float) -> None: ...
    def disown(self) -> None: ...


class Keepalive:
    """The open connections, and the timer that makes each look at the clock.

    Args:
        options: the intervals to keep.
        emptied: called when the last connection has left.
    """

    __slots__ = ("__weakref__", "_emptied", "_tick", "_timer", "clock", "connections", "round_trips")

    def __init__(self, options: Options, emptied: Callable[[], None]) -> None:
        intervals = [s for s in (options.ping_interval, options.ping_timeout, options.close_timeout) if s is not None]
        self._tick = max(_SHORTEST_TICK, min([_LONGEST_TICK * 8, *intervals]) / 8)
        self._timer: Any = None
        self._emptied = emptied
        self.connections: set[Any] = set()
        self.clock = Clock(time.monotonic())
        self.round_trips = RoundTrips()
        """Those of these connections, and of those that have left."""
        tell_in_child(self)

    def add(self, connection: _Checked) -> None:
        """Begin to call `connection.check` every tick."""
        self.connections.add(connection)
        if self._timer is None:
            self.clock.now = time.monotonic()
            # Not `ref`: the timer alone must not keep the hub of a program alive.
            self._timer = gevent.get_hub().loop.timer(self._tick, self._tick, ref=False)
            self._timer.start(self.sweep)

    def remove(self, connection: _Checked) -> None:
        """Stop calling it; a connection that is not here is no error."""
        if connection in self.connections:
            self.connections.remove(connection)
            if not self.connections:
                self._timer.stop()
                self._timer.close()
                self._timer = None
                self._emptied()

    def disown(self) -> None:
        """In a forked child: let go of every connection, which are the parent's."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        for connection in self.connections:
            connection.disown()
        self.connections.clear()

    def sweep(self) -> None:
        """Let each look at the clock; called every tick."""
        self.clock.now = now = time.monotonic()
        for connection in tuple(self.connections):
            connection.check(now)

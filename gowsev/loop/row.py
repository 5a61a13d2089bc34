"""The events that are there at once, handled in a row: what their callbacks write leaves together.

It knows the queue and the batch, not what an event means.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gowsev.connection.sockets import poll_sockets
from gowsev.loop.queue import MOST_IN_A_ROW, Empty

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.connection.events import Event
    from gowsev.connection.gathering import Batch
    from gowsev.loop.queue import EventQueue

__all__ = ["Row"]

#: Seconds for which the loop gathers what is written while events keep coming: as long as the last flush took, but
#: within these. What is gathered for longer leaves in fewer and larger sends. To flush after each 64 events cost an
#: eighth more CPU a message where 50 clients had 16 in flight. To flush 10,000 outboxes each millisecond, where that
#: takes 60, cost the relay four fifths more CPU a delivery. The clock is looked at after each event (0.04 to 0.09 us),
#: since any callback may be a slow one.
_SHORTEST_GATHERING = 0.001
_LONGEST_GATHERING = 0.1


class Row:
    """Handles events in rows.

    Args:
        queue: where they come from.
        batch: what their callbacks write is gathered there, and held.
    """

    __slots__ = ("_batch", "_gathering", "_queue", "ended")

    def __init__(self, queue: EventQueue, batch: Batch) -> None:
        self._queue = queue
        self._batch = batch
        self._gathering = _SHORTEST_GATHERING
        self.ended = False
        """Set by a callback: no further event is handled."""

    def handle(self, event: Event, handle: Callable[[Event], None]) -> None:
        """Handle an event, and those that are there behind it."""
        queue, batch, now = self._queue, self._batch, time.monotonic
        take = queue.get_nowait
        events = 0
        due = now() + self._gathering
        while True:
            handle(event)
            events += 1
            if (began := now()) >= due:
                batch.flush()
                queue.collect()
                ended = now()
                self._gathering = max(_SHORTEST_GATHERING, min(ended - began, _LONGEST_GATHERING))
                due = ended + self._gathering
            if not events % MOST_IN_A_ROW:
                poll_sockets()
            if self.ended:
                return
            try:
                event = take()
            except Empty:
                return

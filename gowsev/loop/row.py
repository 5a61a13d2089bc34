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

#: Seconds for which the loop gathers what is written while events keep coming. What is gathered for longer
#: leaves in fewer and larger sends: to flush after each 64 events cost an eighth more CPU a message where 50 clients
#: had 16 in flight. The clock is looked at after each event (0.04 to 0.09 us), since any callback may be a slow one.
_LONGEST_GATHERING = 0.001


class Row:
    """Handles events in rows.

    Args:
        queue: where they come from.
        batch: what their callbacks write is gathered there, and held.
    """

    __slots__ = ("_batch", "_queue", "ended")

    def __init__(self, queue: EventQueue, batch: Batch) -> None:
        self._queue = queue
        self._batch = batch
        self.ended = False
        """Set by a callback: no further event is handled."""

    def handle(self, event: Event, handle: Callable[[Event], None]) -> None:
        """Handle an event, and those that are there behind it."""
        queue, batch, now = self._queue, self._batch, time.monotonic
        take = queue.get_nowait
        events = 0
        due = now() + _LONGEST_GATHERING
        while True:
            handle(event)
            events += 1
            if now() >= due:
                batch.flush()
                queue.collect()
                due = now() + _LONGEST_GATHERING
            if not events % MOST_IN_A_ROW:
                poll_sockets()
            if self.ended:
                return
            try:
                event = take()
            except Empty:
                return

"""Events handled in a row: for how long what they write is gathered."""

import time

import pytest

from gowsev.connection.gathering import Batch
from gowsev.loop.queue import EventQueue
from gowsev.loop.row import Row


class Gatherer:
    """Something that takes long to flush."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.held = 0
        self.flushed = []

    def flush(self):
        self.flushed.append(self.held)
        self.held = 0
        time.sleep(self.seconds)


def compute(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize(
    ("flush", "event", "flushed"),
    [
        # The first event takes longer than the shortest gathering. Behind a long flush, all others leave together.
        (0.2, 0.0015, [1]),
        # Were a flush longer than any gathering, no more than that much is gathered.
        (0.3, 0.11, [1] * 8),
        # Where a flush takes no time, nothing waits behind an event that computes.
        (0, 0.11, [1] * 8),
    ],
    ids=["long flush", "very long flush", "short flush"],
)
def test_a_row_gathers_for_as_long_as_a_flush_takes(flush, event, flushed):
    queue, batch, gatherer = EventQueue(), Batch(), Gatherer(flush)
    batch.held = True

    def handle(_event):
        compute(event)
        if not gatherer.held:
            batch.add(gatherer)
        gatherer.held += 1

    for number in range(1, 8):
        queue.put((number, None, None))
    Row(queue, batch).handle((0, None, None), handle)
    assert gatherer.flushed == flushed
    batch.flush()
    assert sum(gatherer.flushed) == 8

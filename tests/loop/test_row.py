"""Events handled in a row: for how long what they write is gathered."""

import time

import pytest

from gowsev.connection.gathering import Batch
from gowsev.loop.queue import EventQueue
from gowsev.loop.row import Row


class Clock:
    """The time in which nothing else runs: a busy machine stands still for as long as what is gathered here."""

    def __init__(self):
        self.now = 0.0

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock.now)
        yield clock


class Gatherer:
    """Something that takes long to flush."""

    def __init__(self, take_time):
        self._take_time = take_time
        self.held = 0
        self.flushed = []

    def flush(self):
        self.flushed.append(self.held)
        self.held = 0
        self._take_time()


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
def test_a_row_gathers_for_as_long_as_a_flush_takes(flush, event, flushed, clock):
    queue, batch, gatherer = EventQueue(), Batch(), Gatherer(lambda: clock.pass_by(flush))
    batch.held = True

    def handle(_event):
        clock.pass_by(event)
        if not gatherer.held:
            batch.add(gatherer)
        gatherer.held += 1

    for number in range(1, 8):
        queue.put((number, None, None))
    Row(queue, batch).handle((0, None, None), handle)
    assert gatherer.flushed == flushed
    batch.flush()
    assert sum(gatherer.flushed) == 8

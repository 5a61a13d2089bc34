"""The list of those who have gathered something. How frames leave is in `test_outbox` and `test_groups`."""

import gevent
import pytest

from gowsev.connection.gathering import Batch


def test_a_flush_without_memory_is_made_up_for_by_the_next():
    class Gatherer:
        def __init__(self, scarce):
            self.scarce, self.flushes = scarce, 0

        def flush(self):
            if self.scarce:
                self.scarce = False
                raise MemoryError
            self.flushes += 1

    batch = Batch()
    batch.held = True
    gatherers = [Gatherer(scarce) for scarce in (True, False, False)]
    for gatherer in gatherers:
        batch.add(gatherer)
    with pytest.raises(MemoryError):
        batch.flush()
    batch.flush()
    assert [gatherer.flushes for gatherer in gatherers] == [1, 1, 1]


class Noting:
    """A gatherer that counts how often it is flushed."""

    def __init__(self):
        self.flushes = 0

    def flush(self):
        self.flushes += 1


def test_while_it_is_not_held_who_gathers_is_flushed_at_once():
    batch, noting = Batch(), Noting()
    batch.add(noting)
    assert noting.flushes == 1
    batch.flush()
    assert noting.flushes == 1


def test_while_it_is_held_the_hub_flushes_once():
    batch, noting = Batch(), Noting()
    batch.held = True
    for flushes in (1, 2):
        batch.add(noting)
        assert noting.flushes == flushes - 1
        gevent.sleep(0)
        assert noting.flushes == flushes
    gevent.sleep(0)
    assert noting.flushes == 2

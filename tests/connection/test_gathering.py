"""The list of those who have gathered something. How frames leave is in `test_outbox` and `test_groups`."""

import gevent
import pytest

from gowsev.connection.gathering import Batch, Held
from gowsev.wire.encoder import FRAGMENT_BYTES


@pytest.mark.parametrize(("scarce", "before", "after"), [("a", "", "bcdea"), ("c", "ab", "dec"), ("e", "abcd", "e")])
def test_what_a_flush_without_memory_leaves_is_flushed_by_the_next_and_last_what_it_was_at(scarce, before, after):
    flushed, lacking = [], [scarce]

    class Gatherer:
        def __init__(self, name):
            self.name = name

        def flush(self):
            if self.name in lacking:
                lacking.remove(self.name)
                raise MemoryError
            flushed.append(self.name)

    batch = Batch()
    batch.held = True
    for name in "abcde":
        batch.add(Gatherer(name))
    with pytest.raises(MemoryError):
        batch.flush()
    assert flushed == [*before]
    batch.flush()
    assert flushed == [*before, *after]


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


def test_held_counts_messages_and_their_bytes():
    held, stream = Held(), object()
    assert (held.take(), held.size, held.count) == (None, 0, 0)
    held.add(1, b"abc")
    held.add_stream(stream)  # as long as a fragment, and not counted as a message
    held.add(2, b"de")
    assert (held.size, held.count) == (5 + FRAGMENT_BYTES, 2)
    taken = [(held.take(), held.size, held.count) for _ in range(4)]
    assert taken == [
        ((1, b"abc"), 2 + FRAGMENT_BYTES, 1),
        ((0, stream), 2, 1),
        ((2, b"de"), 0, 0),
        (None, 0, 0),
    ]

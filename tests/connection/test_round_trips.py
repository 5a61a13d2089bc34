"""`RoundTrips`: a histogram."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import PROPERTY

from gowsev.connection.round_trips import BOUNDS, RoundTrips


def test_it_begins_at_nothing():
    trips = RoundTrips()
    assert (trips.count, trips.seconds) == (0, 0.0)
    assert trips.within == dict.fromkeys(BOUNDS, 0)


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_bound_is_the_longest_that_it_has(bound):
    trips = RoundTrips()
    trips.add(bound)
    trips.add(math.nextafter(bound, math.inf))
    assert trips.within == {other: (other >= bound) + (other > bound) for other in BOUNDS}
    assert trips.count == 2


@PROPERTY
@given(st.lists(st.floats(0, 30) | st.sampled_from(BOUNDS)))
def test_they_are_counted_as_by_hand(seconds):
    trips = RoundTrips()
    for one in seconds:
        trips.add(one)
    assert trips.count == len(seconds)
    assert trips.seconds == pytest.approx(math.fsum(seconds))
    assert trips.within == {bound: sum(one <= bound for one in seconds) for bound in BOUNDS}

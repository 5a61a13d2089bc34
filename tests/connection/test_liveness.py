"""`Liveness`: which pong answers which ping, and how long that took. When pings are due is in `test_connection`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import PROPERTY

from gowsev.connection.liveness import Liveness
from gowsev.connection.round_trips import RoundTrips

#: Pings that may wait for their pongs, each with its time.
MOST = 16


class Peer:
    """A peer and the clock: what is sent to it, and what it sends."""

    def __init__(self):
        self.now = 1000.0
        self.liveness = Liveness(self.now)
        self.trips = RoundTrips()

    def ping(self, after=1.0):
        self.now += after
        return self.liveness.ping(self.now)

    def pong(self, *payloads, after=0.25):
        self.now += after
        self.liveness.take_pongs(list(payloads), self.now, self.trips)


def test_before_the_first_pong_nothing_is_known():
    peer = Peer()
    assert peer.liveness.round_trip is None
    peer.ping()
    assert peer.liveness.round_trip is None


def test_each_ping_has_a_payload_of_its_own():
    peers = [Peer() for _ in range(10)]
    payloads = [peer.ping() for peer in peers for _ in range(10)]
    assert len(set(payloads)) == 100
    assert {len(payload) for payload in payloads} == {4}


# RFC 6455 section 5.5.3. What the peer answers to three pings, a second apart, each after a quarter of a second more,
# with the numbers of the pings or bytes that are none; the round trips that are measured.
ANSWERS = [
    # "a Pong frame sent in response to a Ping frame must have identical "Application data""
    ("to each in its turn", [[0], [1], [2]], [2.25, 1.5, 0.75]),
    ("to all at once", [[0, 1, 2]], [2.25, 1.25, 0.25]),
    # "the endpoint MAY elect to send a Pong frame for only the most recently processed Ping frame"
    ("to the newest only", [[2]], [0.25]),
    ("to the second, which stands for the first", [[1], [0], [2]], [1.25, 0.75]),
    ("to the newest, which stands for all", [[2], [0], [1]], [0.25]),
    ("twice", [[0, 0], [0]], [2.25]),
    ("never", [], []),
    # "A Pong frame MAY be sent unsolicited."
    ("something else", [[b""], [b"none"], [bytes(125)]], []),
    ("something else before and after", [[b"none"], [b"", 2, b""]], [0.5]),
]


@pytest.mark.parametrize(("answers", "measured"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_what_answers_a_ping(answers, measured):
    peer = Peer()
    pings = [peer.ping() for _ in range(3)]
    seen = []
    for answer in answers:
        peer.now += 0.25
        for one in answer:
            before = peer.trips.count
            peer.pong(one if isinstance(one, bytes) else pings[one], after=0)
            if peer.trips.count > before:
                seen.append(peer.liveness.round_trip)
    assert seen == measured
    assert (peer.trips.count, peer.trips.seconds) == (len(measured), sum(measured))
    assert peer.liveness.round_trip == (measured[-1] if measured else None)


def test_several_pongs_are_taken_at_once():
    peer = Peer()
    first, second = peer.ping(), peer.ping()
    peer.pong(first, b"none", second)
    assert (peer.trips.count, peer.trips.seconds, peer.liveness.round_trip) == (2, 1.5, 0.25)


def test_pings_that_are_forgotten_are_not_answered_any_more():
    peer = Peer()
    forgotten = peer.ping()
    peer.liveness.forget_pings()
    later = peer.ping()
    peer.pong(forgotten)
    assert peer.liveness.round_trip is None
    peer.pong(later)
    assert peer.liveness.round_trip == 0.5


@PROPERTY
@given(
    st.lists(st.tuples(st.just("ping") | st.just("pong"), st.integers(0, 40), st.integers(0, 1000)), max_size=120),
)
def test_no_pong_makes_a_false_round_trip(steps):
    """Whatever is pinged and answered: what is measured is the time of that very ping, each once, in their order."""
    peer = Peer()
    sent, waiting = [], []
    newest = -1
    for step, which, milliseconds in steps:
        if step == "ping":
            sent.append((peer.ping(milliseconds / 1000), peer.now))
            waiting.append(len(sent) - 1)
            continue
        number = len(sent) - 1 - which
        before = peer.trips.count
        peer.pong(sent[number][0] if number >= 0 else b"none", after=milliseconds / 1000)
        if peer.trips.count > before:
            assert peer.trips.count == before + 1
            assert number > newest
            assert peer.liveness.round_trip == peer.now - sent[number][1]
        else:
            assert number <= newest or number < 0 or len(waiting) > MOST
        if number > newest and peer.trips.count > before:
            newest = number
            waiting = [one for one in waiting if one > number]


@PROPERTY
@given(st.integers(1, 100), st.integers(1, 8))
def test_however_late_the_answers_are_some_round_trips_are_measured(late, every):
    """A peer whose answers are `late` pings behind, and that answers one ping in `every`."""
    peer = Peer()
    sent = []
    for number in range(late * 4 + every * 64):
        sent.append(peer.ping())
        answered = number - late
        if answered >= 0 and answered % every == 0:
            peer.pong(sent[answered], after=0)
    assert peer.trips.count > 0
    assert peer.liveness.round_trip == late


def test_pings_without_an_answer_take_bounded_memory():
    peer = Peer()
    pings = [peer.ping() for _ in range(1000)]
    for ping in pings:
        peer.pong(ping, after=0)
    assert 0 < peer.trips.count <= MOST

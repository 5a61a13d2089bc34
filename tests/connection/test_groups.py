from __future__ import annotations

import errno
import random
import socket
import zlib
from unittest import mock

import gevent
import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st
from tables import frame

import gowsev
from gowsev.connection import groups as groups_module
from gowsev.connection.connection import Connection
from gowsev.connection.gathering import MOST_GATHERED, MOST_JOINED, Batch
from gowsev.connection.groups import Groups
from gowsev.connection.keepalive import Keepalive
from gowsev.wire.deflate import Deflate
from gowsev.wire.encoder import LARGE, Encoder
from gowsev.wire.frames import BINARY
from gowsev.wire.protocol import Protocol

pytestmark = pytest.mark.usefixtures("quiet_hub")

#: Which broadcast to the same ids is the first to a group.
WORTH_IT = 8
#: How many more it takes where that was not worth it.
PAUSE = 64


class Socket:
    """A socket that takes what it is given, as much of it as it is told."""

    def __init__(self):
        self.sends = []
        self.room = 1 << 30
        self.error = None
        self.ours, self.theirs = socket.socketpair()  # a descriptor for the writer to wait at, writable for ever

    def fileno(self):
        return self.ours.fileno()

    family = socket.AF_UNIX

    def recv(self, size):
        raise BlockingIOError

    def shutdown(self, how):
        pass

    def send(self, data):
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError(errno.EAGAIN, "no room")
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.sends.append(taken)
        return len(taken)

    def sendmsg(self, chunks):
        return self.send(b"".join(chunks))

    def close(self):
        self.ours.close()
        self.theirs.close()


class Room:
    """Some connections of a context, and its broadcasts."""

    def __init__(self, size=6, limit=1 << 22):
        self.batch = Batch()
        self.batch.held = True
        self.encoder = Encoder()
        self.sockets = {}
        self.events = []
        self.options = gowsev.Options(outbox_bytes=limit, ping_interval=None)
        self.keepalive = Keepalive(self.options, lambda: None)
        self.connections = {}
        for id in range(1, size + 1):
            self.connect(id, self.encoder)
        self.ids = tuple(self.connections)
        self.groups = Groups(self.connections, self.batch)

    def put(self, event):
        self.events.append(event)

    def connect(self, id, encoder):
        self.sockets[id] = Socket()
        self.connections[id] = connection = Connection(
            self.sockets[id],
            request=gowsev.Request("/", "", gowsev.Headers(), ("", 0), ("", 0), False),
            subprotocol=None,
            protocol=Protocol(),
            encoder=encoder,
            options=self.options,
            put=self.put,
            batch=self.batch,
            keepalive=self.keepalive,
        )
        connection.id = id

    def reconnect(self, id, encoder):
        self.connections[id].abort("another comes")
        self.connect(id, encoder)

    @property
    def lost(self):
        """Why connections have ended."""
        return [connection.end for _, connection, _ in self.events]

    @property
    def known(self):
        """The ids of each group."""
        return list(self.groups._known)

    def forget_what_was_seen(self):
        self.groups._seen.clear()

    def outbox(self, id):
        return self.connections[id].outbox

    def shares(self, id):
        return id in self.connections and self.outbox(id)._shared is not None

    def sends(self, id):
        return self.sockets[id].sends

    def write(self, id, payload):
        assert self.connections[id].outbox.write(BINARY, payload) is None

    def broadcast(self, payload, ids=None):
        """Send to all of `ids`; return how many of them were spared a write of their own."""
        ids = self.ids if ids is None else ids
        open_ = [id for id in ids if id in self.connections and not self.connections[id].closing]
        assert sorted(self.groups.broadcast(ids, BINARY, payload)) == sorted(id for id in ids if id not in open_)
        return sum(map(self.shares, ids))

    def gather_a_group(self, ids=None):
        """Broadcast until the ids are one; forget what was sent."""
        for _ in range(WORTH_IT):
            spared = self.broadcast(b"warm-up", ids)
        self.batch.flush()
        for sock in self.sockets.values():
            sock.sends.clear()
        return spared

    def close(self):
        for connection in self.connections.values():
            connection.abort("the test is over")


@pytest.fixture
def rooms():
    made = []

    def make(*args, **kwargs):
        made.append(Room(*args, **kwargs))
        return made[-1]

    yield make
    for room in made:
        room.close()


@pytest.fixture
def room(rooms):
    return rooms()


def encoded(*payloads):
    return b"".join(frame(0x82, payload, key=None) for payload in payloads)


# -- becoming one ------------------------------------------------------------------------------------------------


def test_ids_that_are_broadcast_to_again_and_again_become_a_group(room):
    assert [room.broadcast(b"%d" % number) for number in range(10)] == [0] * 7 + [6] * 3
    room.batch.flush()
    for id in room.ids:
        assert b"".join(room.sends(id)) == encoded(*(b"%d" % number for number in range(10)))


def test_what_gathers_leaves_in_one_send_for_each_member(room):
    room.gather_a_group()
    for _ in range(3):
        for payload in (b"one", b"two", b"three"):
            assert room.broadcast(payload) == 6
        assert [room.outbox(id).size for id in room.ids] == [15 + 2] * 6, "counted for each"
        assert not any(map(room.sends, room.ids))
        room.batch.flush()
        for id in room.ids:
            assert room.sends(id) == [encoded(b"one", b"two", b"three")]
            room.sends(id).clear()
    room.batch.flush()
    assert not any(map(room.sends, room.ids)), "each once"


def test_counters_go_on_whoever_comes_or_leaves(room):
    frame_size = len(encoded(b"warm-up"))
    for count in range(1, 4):
        room.gather_a_group()
        assert room.broadcast(b"warm-up") == 6
        room.batch.flush()
        number = count * (WORTH_IT + 2) - 1
        for outbox in map(room.outbox, room.ids):
            assert (outbox.frames, outbox.bytes_sent) == (number, number * frame_size)
        room.write(1, b"warm-up")
        for id in room.ids[1:]:
            room.outbox(id).leave()
            room.write(id, b"warm-up")
        room.batch.flush()
        room.forget_what_was_seen()
        for outbox in map(room.outbox, room.ids):
            assert (outbox.frames, outbox.bytes_sent) == (number + 1, (number + 1) * frame_size)


def test_counters_go_on_for_one_who_comes_back(room):
    room.gather_a_group()
    room.write(2, b"warm-up")
    room.batch.flush()
    for number in range(3):
        assert room.broadcast(b"warm-up") == 6
        assert room.outbox(2).frames == WORTH_IT + 2 + number
        room.batch.flush()
        assert room.outbox(2).bytes_sent == (WORTH_IT + 2 + number) * len(encoded(b"warm-up"))


def test_a_few_ids_are_no_group(room):
    for _ in range(2 * WORTH_IT):
        assert room.broadcast(b"x", room.ids[:3]) == 0
    assert [room.broadcast(b"x", room.ids[:4]) for _ in range(WORTH_IT)] == [0] * 7 + [4]


def test_several_at_a_time(rooms):
    room = rooms(8)
    blue, red = room.ids[:4], room.ids[4:]
    for ids in (blue, red):
        room.gather_a_group(ids)
    assert [room.broadcast(b"blue", blue), room.broadcast(b"red", red), room.broadcast(b"blue", blue)] == [4, 4, 4]
    room.batch.flush()
    assert all(room.sends(id) == [encoded(b"blue", b"blue")] for id in blue)
    assert all(room.sends(id) == [encoded(b"red")] for id in red)


def test_whoever_belongs_to_one_that_may_be_over_comes_along_to_the_next(room):
    room.gather_a_group()
    room.broadcast(b"old")
    assert [room.broadcast(b"new", room.ids[:5]) for _ in range(WORTH_IT)] == [0] * 7 + [5]
    assert room.broadcast(b"old") == 0, "most have left it"
    room.batch.flush()
    for id in room.ids[:5]:
        assert b"".join(room.sends(id)) == encoded(b"old", *[b"new"] * WORTH_IT, b"old")
    assert b"".join(room.sends(6)) == encoded(b"old", b"old")


def test_only_so_many_are_remembered_that_may_become_one(room, monkeypatch):
    monkeypatch.setattr(groups_module, "_MOST_SEEN", 2)
    five, four, last = room.ids[:5], room.ids[:4], room.ids[1:]
    for ids in (five, four, last) * 2 * WORTH_IT:
        assert room.broadcast(b"x", ids) == 0, "three are too many"
    room.forget_what_was_seen()
    for ids in (five, four) * (WORTH_IT - 1):
        room.broadcast(b"x", ids)
    assert room.broadcast(b"x", five) == 5, "two are not"


def test_who_is_gone_closing_or_encoded_otherwise_cannot_belong_to_one(room):
    ids = (*room.ids, 99)
    room.connections[2].outbox.stop_writes()
    room.reconnect(3, Encoder(Deflate()))
    assert room.gather_a_group(ids) == 4
    assert room.broadcast(b"one", ids) == 4
    room.batch.flush()
    assert [room.sends(id) for id in room.ids] == [[encoded(b"one")], [], *[[encoded(b"one")]] * 4]


def test_those_that_are_encoded_alike_are_the_group_whichever_are_more(room):
    deflate = Encoder(Deflate())
    for id in (2, 3, 5, 6):
        room.reconnect(id, deflate)
    assert room.gather_a_group() == 4
    document = b"one and one and one and one and one and one and one"
    assert room.broadcast(document) == 4
    room.batch.flush()
    assert room.sends(1) == room.sends(4) == [encoded(document)]
    for id in (2, 3, 5, 6):
        [sent] = room.sends(id)
        assert sent[0] == 0xC2
        assert zlib.decompressobj(-15).decompress(sent[2:] + b"\0\0\xff\xff") == document


@pytest.mark.parametrize("ids", [(1, 2, 90, 91, 92), (90, 91, 92, 93)], ids=["too many", "all"])
def test_there_is_none_where_too_many_are_gone(room, ids):
    assert [room.broadcast(b"x", ids) for _ in range(2 * WORTH_IT)] == [0] * 2 * WORTH_IT
    assert not room.known
    room.batch.flush()
    if 1 in ids:
        assert b"".join(room.sends(1)) == encoded(b"x") * 2 * WORTH_IT


def test_where_all_are_gone_it_is_tried_again_but_not_soon(room):
    ids = (90, 91, 92, 93)
    for _ in range(WORTH_IT):
        room.broadcast(b"x", ids)
    for id in ids:
        room.connect(id, room.encoder)
    spared = [room.broadcast(b"x", ids) for _ in range(PAUSE + WORTH_IT)]
    assert spared == [0] * (PAUSE + WORTH_IT - 1) + [4]


@pytest.mark.parametrize(("limit", "spared"), [(MOST_JOINED - 1, 0), (MOST_JOINED, 6)])
def test_it_never_gathers_more_than_may_wait_for_a_member(rooms, limit, spared):
    room = rooms(limit=limit)
    assert room.gather_a_group() == spared


@pytest.mark.parametrize("size", [1, 1000, LARGE - 1])
def test_it_is_flushed_when_much_has_gathered(room, size):
    room.gather_a_group()
    payloads = [random.randbytes(size) for _ in range(2 * MOST_GATHERED + 1)]
    for payload in payloads:
        assert room.broadcast(payload) == 6
        assert room.outbox(1).size <= MOST_JOINED
    assert room.sends(1)
    room.batch.flush()
    assert [len(sent) <= MOST_JOINED for sent in room.sends(1)] == [True] * len(room.sends(1))
    assert len(room.sends(1)) == {1: 3, 1000: 3, LARGE - 1: 43}[size]
    for id in room.ids:
        assert b"".join(room.sends(id)) == encoded(*payloads)


def test_so_many_bytes_gather_but_no_more(room):
    room.gather_a_group()
    payload = bytes(2048 - 4)  # the header
    count = MOST_JOINED // 2048
    for _ in range(3):
        for _ in range(count):
            room.broadcast(payload)
        assert not any(map(room.sends, room.ids))
        room.broadcast(b"more")
        room.batch.flush()
        for id in room.ids:
            assert room.sends(id) == [encoded(payload) * count, encoded(b"more")]
            room.sends(id).clear()


def test_an_id_that_is_named_twice_is_sent_to_twice(room):
    ids = (1, 2, 3, 4, 5, 6, 6)
    for _ in range(3 * WORTH_IT):
        room.broadcast(b"x", ids)
    room.batch.flush()
    assert b"".join(room.sends(6)) == encoded(b"x") * 2 * 3 * WORTH_IT
    assert b"".join(room.sends(1)) == encoded(b"x") * 3 * WORTH_IT


def test_the_hub_flushes_it_too(room):
    room.gather_a_group()
    gevent.sleep(0)
    room.broadcast(b"x")
    assert not any(map(room.sends, room.ids))
    gevent.sleep(0)
    assert [room.sends(id) for id in room.ids] == [[encoded(b"x")]] * 6


# -- leaving and coming back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"own", random.randbytes(LARGE)], ids=["short", "long"])
def test_who_is_sent_anything_of_its_own_leaves_with_what_has_gathered(room, payload):
    room.gather_a_group()
    room.broadcast(b"one")
    room.write(2, payload)
    assert room.broadcast(b"two") == 5
    room.batch.flush()
    assert b"".join(room.sends(2)) == encoded(b"one", payload, b"two")
    assert [room.sends(id) for id in (1, 3)] == [[encoded(b"one", b"two")]] * 2
    assert room.broadcast(b"three") == 6, "it is back"
    room.batch.flush()
    assert [room.sends(id)[-1] for id in room.ids] == [encoded(b"three")] * 6


def test_who_gathers_something_comes_back_when_that_has_left(room):
    room.gather_a_group()
    room.write(2, b"own")
    assert room.broadcast(b"one") == 5, "its own is still here"
    assert room.broadcast(b"two") == 5
    room.batch.flush()
    assert room.sends(2) == [encoded(b"own", b"one", b"two")]
    assert room.broadcast(b"three") == 6


def test_nobody_comes_back_while_something_gathers_that_it_has_been_sent(room):
    room.gather_a_group()
    room.broadcast(b"one")
    room.write(2, b"own")
    room.outbox(2).flush()
    assert room.broadcast(b"two") == 5
    room.batch.flush()
    assert b"".join(room.sends(2)) == encoded(b"one", b"own", b"two")
    assert room.broadcast(b"three") == 6


def test_a_flush_of_one_alone_takes_along_what_has_gathered(room):
    room.gather_a_group()
    room.broadcast(b"one")
    room.outbox(2).flush()
    assert room.sends(2) == [encoded(b"one")]
    assert room.sends(1) == []
    room.batch.flush()
    assert [room.sends(id) for id in room.ids] == [[encoded(b"one")]] * 6


def test_what_is_written_outside_of_callbacks_follows_what_has_gathered(room):
    room.gather_a_group()
    room.broadcast(b"one")
    room.batch.held = False
    room.write(2, b"own")
    assert b"".join(room.sends(2)) == encoded(b"one", b"own")
    room.batch.flush()
    assert b"".join(room.sends(2)) == encoded(b"one", b"own")
    assert room.sends(1) == [encoded(b"one")]


@pytest.mark.parametrize("interrupted", [1, 3, 6])
def test_an_interrupted_flush_forgets_nobody(room, interrupted):
    room.gather_a_group()
    room.broadcast(b"news")
    room.sockets[interrupted].error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        room.batch.flush()
    assert room.lost == ["OSError: interrupted by KeyboardInterrupt while sending"]
    others = set(room.ids) - {interrupted}
    wait_until(lambda: all(room.sends(id) for id in others))
    assert all(b"".join(room.sends(id)) == frame(0x82, b"news", key=None) for id in others)
    assert room.sends(interrupted) == []


def test_who_leaves_takes_nothing_where_nothing_has_gathered(room):
    room.gather_a_group()
    room.outbox(2).leave()
    room.outbox(2).leave()
    assert room.outbox(2).size == 0
    assert room.broadcast(b"one") == 6


def test_it_dissolves_when_more_than_half_have_left(room):
    room.gather_a_group()
    room.broadcast(b"one")
    for id in (1, 2, 3):
        room.write(id, b"own")
    assert room.known == [room.ids], "half are there"
    room.write(4, b"own")
    assert not room.known
    room.batch.flush()
    for id in room.ids:
        own = [b"own"] if id <= 4 else []
        assert b"".join(room.sends(id)) == encoded(b"one", *own)
    spared = [room.broadcast(b"two") for _ in range(PAUSE + WORTH_IT)]
    assert spared == [0] * (PAUSE + WORTH_IT - 1) + [6], "it is tried again, but not soon"


@pytest.mark.parametrize(("leaving", "worth_it"), [(2, True), (3, False)])
def test_it_dissolves_when_those_who_leave_cost_more_than_it_saves(rooms, leaving, worth_it):
    room = rooms(8)  # one in four may leave for each flush
    room.gather_a_group()
    for _ in range(100):
        room.broadcast(b"all")
        room.batch.flush()
        for id in range(1, leaving + 1):
            room.write(id, b"own")
        room.batch.flush()
    assert bool(room.known) == worth_it
    assert b"".join(room.sends(1)) == encoded(b"all", b"own") * 100
    assert b"".join(room.sends(8)) == encoded(b"all") * 100


def test_it_may_cost_something_at_times_if_it_has_saved_enough_before(rooms):
    room = rooms(8)
    room.gather_a_group()
    for _ in range(3):
        for _ in range(40):
            room.broadcast(b"all")
            room.batch.flush()
        for _ in range(2):
            for id in range(1, 5):
                room.write(id, b"own")
            room.batch.flush()
            assert room.broadcast(b"all") == 8, "more than four in all would be too many, had it not saved before"
    for _ in range(3):
        for id in range(1, 5):
            room.write(id, b"own")
        room.batch.flush()
        room.broadcast(b"all")
    assert not room.known, "but not any number of times"


def test_groups_hold_no_connection_that_has_ended(room):
    room.gather_a_group()
    room.broadcast(b"x")
    for id in room.ids:
        room.connections[id].abort("it has ended")
        assert room.sends(id) == [encoded(b"x")]
    assert not room.known
    room.batch.flush()
    assert all(len(room.sends(id)) == 1 for id in room.ids)


# -- members that cannot keep up ---------------------------------------------------------------------------------


@pytest.mark.parametrize("room_left", [0, 1, 7, 12])
def test_who_falls_behind_leaves_and_is_sent_the_rest_by_its_writer(room, room_left):
    room.gather_a_group()
    room.broadcast(b"one")
    room.broadcast(b"two and three")
    room.sockets[2].room = room_left
    sent = room.outbox(2).bytes_sent
    room.batch.flush()
    assert [room.sends(id) for id in (1, 3)] == [[encoded(b"one", b"two and three")]] * 2
    assert room.outbox(2).congested
    assert (room.outbox(2).size, room.outbox(2).bytes_sent - sent) == (5 + 15 - room_left, room_left)
    assert room.broadcast(b"four") == 5
    room.sockets[2].room = 1 << 30
    wait_until(lambda: not room.outbox(2).congested)
    assert b"".join(room.sends(2)) == encoded(b"one", b"two and three", b"four")
    assert room.outbox(2).bytes_sent - sent == len(encoded(b"one", b"two and three", b"four"))
    room.batch.flush()
    assert room.broadcast(b"five") == 6, "it is back"


def test_a_broken_socket_is_found_and_the_others_get_theirs(room):
    room.gather_a_group()
    sent = room.outbox(2).bytes_sent
    room.sockets[2].error = ConnectionResetError("gone")
    room.broadcast(b"one")
    room.batch.flush()
    assert room.lost == ["ConnectionResetError: gone"]
    assert (room.outbox(2).bytes_sent, room.outbox(2).size, room.shares(2)) == (sent, 0, False)
    assert [room.sends(id) for id in (1, 3, 4, 5, 6)] == [[encoded(b"one")]] * 5


def test_when_too_many_fall_behind_in_the_middle_nothing_is_lost(room):
    room.gather_a_group()
    for id in (1, 2, 3, 4):
        room.sockets[id].room = 0
    payloads = [random.randbytes(1000) for _ in range(MOST_GATHERED + 2)]
    for payload in payloads:
        room.broadcast(payload)  # which flushes in between, and then is none any more
    assert not room.known
    room.batch.flush()
    for id in (1, 2, 3, 4):
        assert room.outbox(id).congested
        room.sockets[id].room = 1 << 30
    wait_until(lambda: not any(room.outbox(id).congested for id in room.ids))
    for id in room.ids:
        assert b"".join(room.sends(id)) == encoded(*payloads)


# -- the same as without -----------------------------------------------------------------------------------------

IDS = st.sampled_from([(1, 2, 3, 4, 5, 6), (1, 2, 3, 4), (3, 4, 5, 6), (2, 3, 4, 5, 6), (1, 2, 3, 4, 4, 77)])
PAYLOADS = st.integers(1, 40) | st.sampled_from([LARGE - 1, LARGE, MOST_JOINED])
STEPS = st.one_of(
    st.tuples(st.just("broadcast"), IDS, PAYLOADS),
    st.tuples(st.just("broadcast"), st.just((1, 2, 3, 4, 5, 6)), PAYLOADS),
    st.tuples(st.just("write"), st.integers(1, 6), PAYLOADS),
    st.tuples(st.just("flush"), st.none(), st.none()),
    st.tuples(st.just("room"), st.integers(1, 6), st.integers(0, 60)),
    st.tuples(st.just("relief"), st.integers(1, 6), st.none()),
    st.tuples(st.just("end"), st.integers(1, 6), st.none()),
)


@mock.patch.multiple(groups_module, _WORTH_IT=2, _PAUSE=3)  # so that they come and go
@given(st.lists(STEPS, max_size=80))
def test_each_is_sent_the_same_as_without_groups(steps):
    room = Room()
    expected = {id: [] for id in room.ids}
    number = 0
    for step, subject, value in steps:
        if step in ("broadcast", "write"):
            number += 1
            payload = number.to_bytes(2) * value
            to = subject if step == "broadcast" else (subject,)
            if step == "broadcast":
                room.broadcast(payload, to)
            elif not room.connections[subject].closing:
                room.write(subject, payload)
            for id in to:
                if id in expected and not room.connections[id].closing:
                    expected[id].append(payload)
        elif step == "flush":
            room.batch.flush()
        elif step == "room":
            room.sockets[subject].room = value
        elif step == "relief":
            room.sockets[subject].room = 1 << 30
        elif not room.connections[subject].closing:
            room.sockets[subject].room = 1 << 30
            room.outbox(subject).flush()
            room.connections[subject].wait_sent()
            room.connections[subject].abort("it has ended")
    room.batch.flush()
    for id in room.ids:
        room.sockets[id].room = 1 << 30
    wait_until(lambda: not any(room.outbox(id).congested for id in room.ids))
    room.batch.flush()
    for id, payloads in expected.items():
        sent = encoded(*payloads)
        assert b"".join(room.sends(id)) == sent
        assert (room.outbox(id).bytes_sent, room.outbox(id).size) == (len(sent), 0)
        assert room.outbox(id).frames == len(payloads)
    members = sum(map(room.shares, room.ids))
    assert sum(map(len, room.known)) <= 2 * members
    room.close()

"""Bounds: what may wait, and what is kept."""

from __future__ import annotations

import gc
import re
import tracemalloc
from pathlib import Path

import gevent
import pytest
from conftest import Recorder, in_thread, wait_until
from redis_server import needs_redis

import gowsev
from gowsev.channels import Channels, ChannelsAway, Limits, Remote, TooMuchInFlight
from gowsev.channels.backend import Joining, Publishing
from gowsev.channels.in_flight import InFlight
from gowsev.channels.memory import Memory
from gowsev.channels.publication import Position
from gowsev.channels.redis import Redis
from gowsev.channels.scripts import PUBLISH


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("channels", 0, ValueError),
        ("channels", 1.5, TypeError),
        ("in_flight", True, TypeError),
        ("history_messages", None, TypeError),
        ("history_seconds", float("inf"), ValueError),
        ("history_seconds", float("nan"), ValueError),
        ("history_seconds", "1", TypeError),
        ("history_bytes", -1, ValueError),
    ],
)
def test_limits_that_are_none(name, value, error):
    with pytest.raises(error, match=f"{name} must be .*{value!r}"):
        Limits(**{name: value})


def test_in_flight_of_one_account():
    in_flight = InFlight(Limits(in_flight=2))
    assert in_flight.enter(1, 10) is None
    assert in_flight.enter(1, 10) is None
    error = in_flight.enter(1, 10)
    assert isinstance(error, TooMuchInFlight)
    assert error.waiting == 2
    assert error.certain
    assert in_flight.enter(2, 10) is None
    in_flight.leave(1, 10)
    assert in_flight.enter(1, 10) is None


def test_in_flight_in_bytes():
    in_flight = InFlight(Limits(in_flight_bytes=1000, total_in_flight_bytes=2000))
    assert in_flight.enter(1, 5000) is None  # one message may be longer
    assert in_flight.enter(1, 1) is not None
    assert in_flight.enter(2, 1) is not None
    in_flight.leave(1, 5000)
    assert in_flight.enter(1, 700) is None
    assert in_flight.enter(1, 700) is not None
    assert in_flight.enter(2, 700) is None
    assert in_flight.enter(3, 700) is not None
    in_flight.clear()
    assert (in_flight.number, in_flight.bytes) == (0, 0)


def test_in_flight_of_all():
    in_flight = InFlight(Limits(total_in_flight=2))
    assert [in_flight.enter(account, 0) for account in (1, 2)] == [None, None]
    assert isinstance(in_flight.enter(3, 0), TooMuchInFlight)


class Receiver:
    def settled(self, publishing, position, error):
        pass


class Joined(Receiver):
    def joined(self, joining, position, continuation):
        pass

    def arrived(self, channel, message):
        pass


def resident():
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


def test_histories_of_channels_that_nobody_hears_are_bounded():
    memory = Memory(Receiver(), Limits(), most_bytes=1_000_000)
    before = resident()
    for number in range(100_000):
        memory.publish(Publishing(f"channel {number}", False, bytes(100), None, None))
        assert memory.kept_bytes <= 1_001_500
    assert resident() - before < 10_000_000  # of some 70 MB


def test_a_channel_that_is_followed_loses_its_history_only():
    memory = Memory(Joined(), Limits(), most_bytes=10_000)
    memory.follow(Joining(1, "followed", None, False, None, None))
    memory.publish(Publishing("followed", False, b"x", None, None))
    for number in range(200):
        memory.publish(Publishing(f"channel {number}", False, bytes(100), None, None))
    memory.leave("followed")
    assert memory.kept_bytes <= 11_500


def test_histories_of_two_channels_are_bounded_too():
    memory = Memory(Receiver(), Limits(history_bytes=1 << 30), most_bytes=100_000)
    for _ in range(200):
        for channel in ("news", "other"):
            memory.publish(Publishing(channel, False, bytes(1000), None, None))
            assert memory.kept_bytes <= 200_000


@needs_redis
def test_in_flight_over_redis(redis_nodes, redis_server):
    node = redis_nodes(limits=Limits(in_flight=10, total_in_flight=15))
    id = node.join()
    redis_server.freeze()
    done = []

    def publish(account):
        return node.channels.Publish("news", "x", lambda context, *answer: done.append(answer), id=account)

    refused = [publish(id) for _ in range(20)]
    assert refused[:10] == [None] * 10
    assert all(isinstance(error, TooMuchInFlight) for error in refused[10:])
    assert [publish(None) for _ in range(6)].count(None) == 5
    assert node.channels.Status().in_flight == 15
    redis_server.thaw()
    wait_until(lambda: len(done) == 15)
    assert publish(id) is None
    wait_until(lambda: node.channels.Status().in_flight == node.channels.Status().in_flight_bytes == 0)


@needs_redis
def test_names_that_nobody_hears_leave_nothing_in_the_process_and_expire_in_redis(redis_nodes, redis_server):
    redis_server.cli("config", "set", "appendonly", "no")  # else each is written to the disk
    node = redis_nodes(limits=Limits(history_seconds=1))
    node.publish("x" * 3000, "heard first")
    waiting = []
    tracemalloc.start()
    try:
        for number in range(2000):
            node.channels.Publish(f"name {number}", "x" * 3000, lambda context, *_: waiting.pop())
            waiting.append(number)
            if len(waiting) == 500:
                wait_until(lambda: not waiting)
        wait_until(lambda: not waiting)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1_000_000  # of 6 MB
    finally:
        tracemalloc.stop()
    with redis_server.client() as client:
        wait_until(lambda: not list(client.scan_iter("*name*:stream", 1000)))
        space = client.info("keyspace")["db0"]
        assert space["expires"] == space["keys"] <= 2010  # each channel's numbers, for a week
        assert client.info("memory")["used_memory_dataset"] < 5_000_000


#: Publishes to many channels, one message each, by the very script, with less ado than one command for each.
TO_MANY = f"""
local function publish(KEYS, ARGV) {PUBLISH.removeprefix("#!lua")} end
for i = ARGV[1], ARGV[2] do
  local number = string.format('%.0f', i)
  local tag = '{{gowsev:name ' .. number .. '}}'
  local arguments = {{'0123456789ab', number, 't', 'a message', '0123456789', '1000', '1048576', '1', '604800', '', ''}}
  publish({{tag .. ':meta', tag .. ':stream', tag}}, arguments)
end
"""


@pytest.mark.long
@needs_redis
def test_a_hundred_thousand_names_that_nobody_hears_cost_redis_what_is_stated(redis_server):
    """About 300 bytes each, for a week: the page on bounds."""
    redis_server.cli("config", "set", "appendonly", "no")
    with redis_server.client() as client:
        before = client.info("memory")["used_memory"]
        for first in range(0, 100_000, 5000):
            client.eval(TO_MANY, 0, first + 1, first + 5000)
        assert client.info("keyspace")["db0"]["expires"] >= 100_000
        wait_until(lambda: not list(client.scan_iter("*:stream", 10_000)))  # the histories have expired
        space, memory = client.info("keyspace")["db0"], client.info("memory")
        assert space["keys"] == space["expires"]
        assert memory["used_memory"] - before < 100_000 * 350


@needs_redis
def test_a_thousand_who_come_back_at_once_cost_a_few_reads(redis_server):
    """Of one channel's history, while its position is not known here, and when it is."""

    class Joined:
        def __init__(self):
            self.lengths = []

        def has_room(self):
            return True

        def joined(self, joining, position, continuation):
            assert continuation.complete
            self.lengths.append(len(continuation.messages))

    with Remote(redis_server.url) as remote:
        positions = [in_thread(remote.Publish, "news", str(number)) for number in range(100)]
    receiver = Joined()
    backend = Redis(redis_server.url, "gowsev", receiver, Limits())

    def reads():
        return int(re.search(r"cmdstat_xrange:calls=(\d+)", redis_server.cli("info", "commandstats"))[1])

    for wave in range(2):
        before = reads() if wave else 0
        for number in range(1000):
            after = Position.parse(positions[number % 50])
            backend.follow(Joining(1000 * wave + number, "news", after, True, None, None))
        wait_until(lambda wave=wave: len(receiver.lengths) == 1000 * (wave + 1))
        assert reads() - before <= 3 + 2 * (not wave)  # the trials of the connection are among the first
    assert sorted(receiver.lengths)[::40] == list(range(50, 100))
    backend.close()


@needs_redis
def test_redis_is_not_read_while_the_loop_does_not_deliver(redis_nodes):
    one, two = redis_nodes(), redis_nodes(limits=Limits(undelivered_bytes=100_000))
    id = two.join()
    inside, go_on = [], []

    def block(context):
        inside.append(True)
        wait_until(lambda: go_on)

    two.context.Post(block)
    wait_until(lambda: inside)
    for i in range(300):
        one.publish(f"{i} " + "x" * 2000)
    wait_until(lambda: two.channels.Status().lag > 40)
    gevent.sleep(0.2)
    assert two.channels.Status().lag < 60
    go_on.append(True)
    wait_until(lambda: len(two.messages(id)) == 300)
    assert [message.split()[0] for message in two.messages(id)] == [str(i) for i in range(300)]
    assert not two.gaps(id)
    assert two.channels.Status().lag == 0


@needs_redis
def test_a_subscriber_that_never_reads_costs_the_others_nothing(redis_nodes):
    from gowsev.channels import deliver

    node = redis_nodes(deliver=deliver)
    node.join()
    slow = node.client
    node.join()
    other = node.client
    for _ in range(200):  # more than all buffers on the way hold
        node.publish(b"x" * 200_000)
        assert len(other.receive()) == 200_000
    assert slow.wait_closed().code in (1013, 1006)


def test_a_context_that_has_ended_takes_nothing():
    context = gowsev.MakeContext(Recorder())
    channels = Channels(context)
    context.Shutdown(0)
    context.EventLoop()
    assert isinstance(channels.Publish("news", "x"), ChannelsAway)

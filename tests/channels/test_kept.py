"""What Redis keeps of a channel, and for how long: also what is not seen to at each publish is done in time."""

from __future__ import annotations

import re
from itertools import count

import pytest
from redis_server import needs_redis

from gowsev.channels.limits import Limits
from gowsev.channels.script_commands import look_words, publish_words, with_source
from gowsev.channels.scripts import META_SECONDS, channel_keys

pytestmark = needs_redis

META, STREAM, _ = KEYS = channel_keys(b"gowsev", b"news")
#: Seconds, of which an eighth is more than a test takes.
LONG = 800


@pytest.fixture
def client(redis_server):
    with redis_server.client() as client:
        yield client


@pytest.fixture
def publish(client):
    numbers = count(1)

    def publish(payload, **limits):
        client.execute_command(*with_source(publish_words(KEYS, "s", next(numbers), True, payload, Limits(**limits))))

    return publish


def kept(client):
    """Return the messages that are kept; hold that they are counted rightly."""
    messages = [fields[b"m"] for _, fields in client.xrange(STREAM)]
    counted, size = map(int, client.hmget(META, "count", "bytes"))
    assert (counted, size) == (len(messages), sum(map(len, messages)))
    return messages


@pytest.mark.parametrize(("most", "more"), [(1, 0), (15, 0), (32, 2), (48, 3)])
def test_a_history_has_its_messages_and_a_few_more(publish, client, most, more):
    lengths = set()
    for number in range(1, 2 * most + 20):
        publish(b"%d" % number, history_messages=most)
        messages = kept(client)
        assert messages == [b"%d" % i for i in range(number - len(messages) + 1, number + 1)]
        lengths.add(len(messages))
    assert lengths == set(range(1, most + more + 1))


def test_a_history_has_no_more_bytes_than_it_may(publish, client):
    for number in range(100):
        publish(b"x" * (number % 7) * 10, history_bytes=320)
        assert sum(map(len, kept(client))) <= 320
    assert sum(map(len, kept(client))) >= 240  # a sixteenth less, and the message that was too much
    publish(b"x" * 1000, history_bytes=320)
    publish(b"y", history_bytes=320)
    assert kept(client) == [b"y"]
    publish(b"x" * 1000, history_bytes=320)
    assert kept(client) == [b"x" * 1000]


@pytest.mark.parametrize("limits", [{"history_messages": 10}, {"history_bytes": 10}])
def test_a_stream_that_others_have_emptied_is_counted_anew(publish, client, limits):
    for _ in range(10):
        publish(b"x", **limits)
    client.xtrim(STREAM, 0, approximate=False)
    for number in range(30):
        publish(b"%d" % (number % 10), **limits)
        assert client.xrevrange(STREAM, count=1)[0][1][b"m"] == b"%d" % (number % 10)
    assert len(kept(client)) in (9, 10)


def test_keys_live_on_while_messages_are_published(publish, client, redis_server):
    def calls():
        found = re.search(r"cmdstat_expire:calls=(\d+)", redis_server.cli("info", "commandstats"))
        return int(found[1]) if found else 0

    publish(b"x", history_seconds=LONG)
    for seconds in (LONG - 1, 2 * LONG, None):  # nearly over, of a process with other limits, and without an end
        client.config_resetstat()
        if seconds is None:
            client.persist(STREAM)
        else:
            client.expire(STREAM, seconds)
        publish(b"x", history_seconds=LONG)
        assert LONG < client.ttl(STREAM) <= LONG + LONG / 8
        assert META_SECONDS < client.ttl(META) <= META_SECONDS + LONG / 8
        before = calls()
        for _ in range(5):
            publish(b"x", history_seconds=LONG)
        assert calls() == before
    publish(b"x", history_seconds=1)
    assert client.ttl(STREAM) <= 1
    publish(b"x", history_seconds=100 * META_SECONDS)
    assert client.ttl(META) > META_SECONDS + 86400 - 100
    assert client.ttl(STREAM) <= 100 * META_SECONDS + 86400
    client.execute_command(*with_source(look_words(KEYS, False, {})))
    assert client.ttl(META) > META_SECONDS

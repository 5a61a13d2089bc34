"""More that befalls a Redis: it forgets, evicts, expires, has its clock set, and forbids one command after another."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import gevent
import pytest
from channel_tools import Node, Traffic
from conftest import in_thread, wait_until
from redis_server import RedisServer, needs_redis
from set_clock import COMPILER, Clock

from gowsev.channels import ChannelsAway, Limits, Refused, Remote
from gowsev.channels.backend import Joining
from gowsev.channels.limits import DEFAULTS
from gowsev.channels.redis import Redis
from gowsev.channels.script_commands import publish_words
from gowsev.channels.scripts import channel_keys

pytestmark = needs_redis

META, STREAM, NAME = channel_keys(b"gowsev", b"news")

#: Seconds; longer than a command waits for its answer. FREEZE_SECONDS=60 tries a minute.
FREEZE = float(os.environ.get("FREEZE_SECONDS", "16"))


def publish_unheard(client, *messages, first=1, limits=DEFAULTS, then=()):
    """Publish while nobody can be notified: in one step the connections for that are cut, and more is done."""
    pipeline = client.pipeline(transaction=True)
    pipeline.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    for number, message in enumerate(messages, first):
        pipeline.execute_command(*publish_words((META, STREAM, NAME), "test", number, True, message.encode(), limits))
    for words in then:
        pipeline.execute_command(*words)
    pipeline.execute()


def test_redis_frozen_for_longer_than_a_command_waits(redis_nodes, redis_server):
    traffic = Traffic(redis_nodes)
    traffic.wait_for_more()
    redis_server.freeze()
    gevent.sleep(FREEZE)
    redis_server.thaw()
    traffic.wait_for_more()
    assert any(publisher.perhaps or publisher.certainly_not for publisher in traffic.publishers)
    traffic.check()


def test_redis_that_loads_its_data(tmp_path):
    server = RedisServer(tmp_path / "full")
    try:
        with contextlib.ExitStack() as stack:
            node = Node(stack, server.url)
            id = node.join()
            with server.client() as client:
                pipeline = client.pipeline(transaction=False)
                for number in range(8_000):
                    pipeline.set(f"key{number}", "x")
                pipeline.execute()
            server.kill()
            server.options = ["--key-load-delay", "200"]  # microseconds, after each command
            server.launch()
            wait_until(lambda: "loading" in node.channels.Status().reason)
            wait_until(lambda: node.channels.Status().up)
            node.publish("x")
            node.wait_for(id, "x")
    finally:
        server.kill()


# -- what is lost ------------------------------------------------------------------------------------------------------


def test_a_stream_that_expired_is_a_gap_counted_exactly(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    start = node.publish("0")
    node.wait_for(id, "0")
    with redis_server.client() as client:
        publish_unheard(client, "1", "2", "3", then=[("PEXPIRE", STREAM, 1)])
    (gap,) = wait_until(lambda: node.gaps(id))
    assert gap.missed == 3
    node.publish("4")
    node.wait_for(id, "0", "4")
    assert node.channels.Status().missed == 3
    back = node.connect()
    assert not node.subscribe(back, after=start).recovered
    assert node.messages(back) == ["4"]


@pytest.mark.parametrize("victim", [META, STREAM])
def test_one_of_its_keys_evicted_between_two_messages(redis_nodes, redis_server, victim):
    """The stream alone costs those who are here nothing; without the numbers, the channel begins anew."""
    node = redis_nodes()
    id = node.join()
    old = node.publish("1")
    node.wait_for(id, "1")
    with redis_server.client() as client:
        client.delete(victim)
    node.publish("2")
    node.wait_for(id, "1", "2")
    assert len(node.gaps(id)) == (victim == META)
    back = node.connect()
    assert node.subscribe(back, after=old).recovered == (victim == STREAM)
    node.publish("3")
    node.wait_for(id, "1", "2", "3")
    node.wait_for(back, *(["2"] if victim == STREAM else []), "3")
    assert node.channels.Status().gaps == (victim == META)


def test_eviction_is_noticed_wherever_it_cost_something(redis_nodes, redis_server):
    """Redis has room for a fraction of the channels, and evicts as it likes; whoever lacks something is told."""
    one, two = redis_nodes(), redis_nodes()
    names = [f"c{i}" for i in range(60)]
    ids = {name: two.join(name) for name in names[:10]}
    positions = {}
    redis_server.cli("config", "set", "maxmemory-policy", "allkeys-random")
    used = int(re.search(r"used_memory:(\d+)", redis_server.cli("info", "memory"))[1])
    redis_server.cli("config", "set", "maxmemory", str(used + 2_000_000))
    for number in range(10):
        for name in names:
            positions[name] = one.publish(f"{number} ".ljust(10_000, "x"), name)
    assert int(re.search(r"evicted_keys:(\d+)", redis_server.cli("info", "stats"))[1]) > 20
    for name, id in ids.items():
        wait_until(lambda name=name: two.subscribe(two.connect(), name).position == positions[name])
        heard = [message.split()[0] for message in two.messages(id)]
        assert heard == [str(number) for number in range(10)] or two.gaps(id), name
        assert heard == sorted(set(heard))
    assert two.channels.Status().up


def test_a_silent_channel_is_not_forgotten_while_it_is_followed(redis_server):
    class Nobody:
        def has_room(self):
            return True

        def joined(self, joining, position, continuation):
            positions.append(position)

    positions = []
    backend = Redis(redis_server.url, "gowsev", Nobody(), DEFAULTS, silence=0.1)
    backend.follow(Joining(1, "news", None, False, None, None))
    wait_until(lambda: positions)
    redis_server.cli("expire", META.decode(), "100")
    wait_until(lambda: int(redis_server.cli("ttl", META.decode())) > 6 * 86400)
    assert redis_server.cli("hget", META.decode(), "epoch") == positions[0].epoch
    backend.close()


def test_a_key_that_becomes_another_type_while_it_is_followed(redis_nodes, redis_server):
    node = redis_nodes()
    id, other = node.join(), node.join("other")
    for message, key in (("1", STREAM), ("2", META)):
        node.publish(message)
        wait_until(lambda message=message: node.messages(id)[-1:] == [message])
        redis_server.cli("set", key.decode(), "x")
        answers = []
        node.channels.Publish("news", "x", lambda context, *answer, to=answers: to.append(answer))
        error = wait_until(lambda answers=answers: answers)[0][1]
        assert isinstance(error, Refused)
        assert error.certain
        node.publish(message, "other")
        wait_until(lambda message=message: node.messages(other)[-1:] == [message])
        assert node.channels.Status().up
        redis_server.cli("del", key.decode())
    node.publish("3")
    node.wait_for(id, "1", "2", "3")
    assert len(node.gaps(id)) == 1  # where the numbers were lost
    assert not node.gaps(other)


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_a_clock_that_is_set(tmp_path):
    clock = Clock(tmp_path / "clock")
    server = RedisServer(tmp_path / "redis", **clock.environment)
    try:
        with contextlib.ExitStack() as stack:
            traffic = Traffic(lambda **arguments: Node(stack, server.url, **arguments))
            node = traffic.nodes[0]
            node.join(member="ann")
            before = server.cli("time").split()[0]
            traffic.wait_for_more()
            for seconds in (-3600, 0, 1800, -86400):
                clock.set(seconds)
                wait_until(lambda ahead=seconds: abs(int(server.cli("time").split()[0]) - int(before) - ahead) < 600)
                traffic.wait_for_more()
            last = traffic.check()
            assert not [p for p in traffic.publishers if p.certainly_not or p.perhaps]
            # Ahead by more than a history lasts: that is gone. Who comes back is told; to who is here it is nothing.
            clock.set(7200)
            end = node.publish("end")
            wait_until(lambda: node.messages(traffic.ids[0])[-1:] == ["end"])
            assert not node.gaps(traffic.ids[0])
            assert node.subscribe(node.connect(), after=last).recovered
            clock.set(20000)
            node.publish("after the end")
            assert not node.subscribe(node.connect(), after=last).recovered
            assert node.subscribe(node.connect(), after=end).recovered
            wait_until(lambda: node.members() == {"ann": 1})
    finally:
        server.kill()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_shutdown_takes_along_what_was_published_and_says_who_has_left(redis_nodes, redis_server):
    node, other = redis_nodes(), redis_nodes()
    node.join(member="ann")
    other.join(member="bob")
    wait_until(lambda: other.members() == {"ann": 1, "bob": 1})
    numbers = [str(i) for i in range(500)]
    done = []
    for number in numbers:
        assert node.channels.Publish("news", number, lambda context, *answer: done.append(answer)) is None
    node.context.Shutdown()
    wait_until(lambda: node.server.loop.ready())
    assert [error for _, error in done] == [None] * 500
    with Remote(redis_server.url) as remote:
        assert [item.message for item in in_thread(remote.History, "news")] == numbers
    assert other.members() == {"bob": 1}


def test_a_shutdown_waits_for_redis_no_longer_than_it_may(redis_nodes, redis_server, caplog):
    node = redis_nodes()
    node.publish("stored")
    redis_server.freeze()
    node.channels.Publish("news", "not stored")
    node.context.Shutdown(0.5)
    wait_until(lambda: node.server.loop.ready())
    assert "channels end with 1 publishes that may not be stored" in caplog.text
    redis_server.thaw()


# -- permissions -------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent.parent / "docs" / "channels.md").read_text("utf-8")
COMMANDS = re.findall(r"`([a-z|]+)`", re.search(r"The commands are ((?:.|\n)*?)\. What is missing", PAGE)[1])


def everything(node, remote, id):
    """Do all that needs Redis; return what went wrong."""
    errors = []

    def note(error):
        answers.append(error)

    for act in (
        lambda: node.channels.Publish("news", "x", lambda context, position, error: note(error)),
        lambda: node.channels.Publish("news", "y", lambda context, position, error: note(error)),
        lambda: node.channels.Subscribe(id, "news", "a.0.a", "ann", lambda context, answer: note(answer.error)),
        lambda: node.channels.Members("news", lambda context, members, error: note(error)),
    ):
        answers = []
        refused = act()
        if refused is None:
            wait_until(lambda answers=answers: answers or node.channels.Status().reason)
        errors += [refused, *answers]
    for call in (
        lambda: remote.Publish("news", "x"),
        lambda: remote.Publish("news", "x", key="k"),
        lambda: remote.Members("news"),
        lambda: remote.History("news"),
    ):
        try:
            in_thread(call)
        except (Refused, ChannelsAway) as error:
            errors.append(error)
    return [str(error) for error in errors if error is not None] + [node.channels.Status().reason]


def test_the_page_names_the_commands_that_are_needed(redis_server):
    assert len(COMMANDS) > 20
    allowed = [f"+{command}" for command in COMMANDS]
    redis_server.cli("acl", "setuser", "app", "on", ">sesame", "~{gowsev:*", "&{gowsev:*", "-@all", *allowed)
    url = redis_server.url.replace("//", "//app:sesame@")
    few = Limits(history_messages=1)
    with contextlib.ExitStack() as stack, Remote(url, limits=few) as remote:
        node = Node(stack, url, limits=few)
        node.publish("x")
        wait_until(lambda: node.channels.Status().up)
        assert everything(node, remote, node.connect()) == [""]
        wait_until(lambda: node.members() == {"ann": 1})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_forbidden_is_told(redis_server, command, caplog):
    redis_server.cli("acl", "setuser", "app", "on", ">sesame", "~{gowsev:*", "&{gowsev:*", "+@all", f"-{command}")
    url = redis_server.url.replace("//", "//app:sesame@")
    with contextlib.ExitStack() as stack, Remote(url) as remote:
        node = Node(stack, url, limits=Limits(history_messages=1))
        id = node.connect()
        node.channels.Publish("news", "x")
        wait_until(
            lambda: node.channels.Status().up or re.search("permission|ACL|can't", node.channels.Status().reason)
        )
        told = [text for text in everything(node, remote, id) if text]
        assert all(re.search(r"permission|executing the script can't|ACL failure", text) for text in told)
        assert len([r for r in caplog.records if " is away: " in r.getMessage()]) <= 1
        if command != "eval":  # which is for a Redis that has forgotten the scripts
            assert told

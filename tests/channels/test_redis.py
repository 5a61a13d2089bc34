"""Channels over a real Redis that is killed, frozen, emptied, rolled back and cut off."""

from __future__ import annotations

import contextlib
import re

import gevent
import pytest
import redis
from channel_tools import Node, Traffic
from conftest import in_real_thread, in_thread, wait_until
from redis.crc import key_slot
from redis_server import RedisServer, free_port, needs_redis

import gowsev
from gowsev.channels import Channels, ChannelsAway, Limits, Refused, Remote
from gowsev.channels.limits import DEFAULTS
from gowsev.channels.script_commands import publish_words, with_source
from gowsev.channels.scripts import channel_keys

pytestmark = needs_redis

KEYS = channel_keys(b"gowsev", b"news")


def test_redis_killed_and_restarted_under_publishers(redis_nodes, redis_server):
    traffic = Traffic(redis_nodes)
    for _ in range(3):
        traffic.wait_for_more()
        redis_server.kill()
        wait_until(lambda: not traffic.nodes[0].channels.Status().up)
        redis_server.start()
        wait_until(lambda: all(node.channels.Status().up for node in traffic.nodes))
    traffic.wait_for_more()
    traffic.check()


def test_redis_frozen_for_two_seconds(redis_nodes, redis_server):
    traffic = Traffic(redis_nodes)
    traffic.wait_for_more()
    redis_server.freeze()
    gevent.sleep(2)
    redis_server.thaw()
    traffic.wait_for_more()
    assert not [p for p in traffic.publishers if p.certainly_not or p.perhaps]
    traffic.check()


def test_redis_frozen_for_longer_than_it_may_take_to_answer(redis_nodes, redis_server):
    traffic = Traffic(redis_nodes)
    traffic.wait_for_more()
    redis_server.freeze()
    wait_until(lambda: not any(node.channels.Status().up for node in traffic.nodes))
    gevent.sleep(2)
    redis_server.thaw()
    traffic.wait_for_more()
    traffic.check()


@pytest.mark.long
def test_connections_cut_again_and_again(redis_nodes, redis_server):
    traffic = Traffic(redis_nodes)
    for _ in range(20):
        traffic.wait_for_more(10)
        for kind in ("normal", "pubsub"):
            redis_server.cli("client", "kill", "type", kind)
    traffic.wait_for_more()
    assert not [p for p in traffic.publishers if p.certainly_not or p.perhaps]
    traffic.check()


# -- gaps --------------------------------------------------------------------------------------------------------------


def test_redis_emptied(redis_nodes, redis_server):
    one, two = redis_nodes(), redis_nodes()
    id, other = two.join(), two.join("other")
    old = one.publish("old")
    two.wait_for(id, "old")
    redis_server.cli("flushall")
    new = one.publish("new")
    two.wait_for(id, "old", "new")
    (gap,) = two.gaps(id)
    assert (gap.channel, gap.missed) == ("news", None)
    assert two.delivered[id].index(gap) == 1
    assert two.channels.Status().gaps == 1
    assert two.channels.Status().missed == 0
    back = two.connect()
    assert not two.subscribe(back, after=old).recovered
    assert two.subscribe(two.connect(), after=new).recovered
    assert not two.gaps(other)


def test_redis_restarted_without_persistence(tmp_path):
    server = RedisServer(tmp_path / "volatile", "--appendonly", "no")
    try:
        with contextlib.ExitStack() as stack:
            node = Node(stack, server.url)
            id = node.join()
            node.publish("old")
            server.kill()
            server.start()
            wait_until(lambda: node.channels.Status().up)
            # It is noticed by the new connection, before anything is published.
            wait_until(lambda: node.gaps(id))
            assert node.channels.Status().gaps == 1
            node.publish("new")
            node.wait_for(id, "old", "new")
            assert node.channels.Status().gaps == 1
    finally:
        server.kill()


def cut_off_and_publish(redis_server, messages, limits=DEFAULTS):
    """Publish while nobody can be notified: all connections for that are cut in the same step."""
    with redis_server.client() as client:
        pipeline = client.pipeline(transaction=True)
        pipeline.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for number, message in enumerate(messages, 1):
            words = publish_words(KEYS, "test", number, True, message.encode(), limits)
            pipeline.execute_command(*words)
        pipeline.execute()


def test_what_was_published_while_cut_off_is_read(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    node.publish("0")
    cut_off_and_publish(redis_server, "123")
    node.wait_for(id, "0", "1", "2", "3")
    assert not node.gaps(id)


def test_what_was_trimmed_meanwhile_is_a_gap_counted_exactly(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    node.publish("0")
    node.wait_for(id, "0")
    cut_off_and_publish(redis_server, "12345", Limits(history_messages=2))
    node.wait_for(id, "0", "4", "5")
    (gap,) = node.gaps(id)
    assert gap.missed == 3
    assert node.delivered[id].index(gap) == 1
    assert node.channels.Status().missed == 3
    back = node.connect()
    assert node.subscribe(back, after=gap.position).recovered
    assert node.messages(back) == ["4", "5"]


def test_a_stream_that_is_gone_is_a_gap(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    node.publish("0")
    node.wait_for(id, "0")
    with redis_server.client() as client:
        pipeline = client.pipeline(transaction=True)
        pipeline.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for number in (1, 2):
            words = publish_words(KEYS, "test", number, True, b"lost", DEFAULTS)
            pipeline.execute_command(*words)
        pipeline.delete("{gowsev:news}:stream")  # as an eviction does it
        pipeline.execute()
    wait_until(lambda: node.gaps(id))
    assert node.gaps(id)[0].missed == 2
    node.publish("3")
    node.wait_for(id, "0", "3")
    assert node.channels.Status().gaps == 1


def test_a_channel_that_was_rolled_back_is_a_gap(redis_nodes, redis_server):
    """As by a failover to a replica that lacked the last messages: the offsets come again, with others."""
    node, other = redis_nodes(), redis_nodes()
    id = node.join()
    with redis_server.client() as client:
        for message in "123":
            position = node.publish(message)
        keys = ["{gowsev:news}:stream", "{gowsev:news}:meta"]
        kept = {key: client.dump(key) for key in keys}
        lost = [node.publish("lost 1"), node.publish("lost 2")]
        node.wait_for(id, "1", "2", "3", "lost 1", "lost 2")
        for key in keys:
            client.restore(key, 0, kept[key], replace=True)
    other.publish("new 1")
    node.wait_for(id, "1", "2", "3", "lost 1", "lost 2", "new 1")
    assert len(node.gaps(id)) == 1
    other.publish("new 2")
    node.wait_for(id, "1", "2", "3", "lost 1", "lost 2", "new 1", "new 2")
    assert node.channels.Status().gaps == 1
    for after in lost:
        assert not other.subscribe(other.connect(), after=after).recovered
    id = other.connect()
    assert other.subscribe(id, after=position).recovered
    assert other.messages(id) == ["new 1", "new 2"]


def test_who_has_no_deliver_is_closed_at_a_gap(redis_nodes, redis_server):
    from gowsev.channels import deliver

    node = redis_nodes(deliver=deliver)
    node.join()
    node.publish("old")
    assert node.client.receive() == "old"
    redis_server.cli("flushall")
    node.publish("new")
    closed = node.client.wait_closed()
    assert (closed.code, closed.reason) == (1013, "messages were lost")


def test_notifications_that_nobody_understands(redis_nodes, redis_server, caplog):
    node = redis_nodes()
    id = node.join()
    for data in ("nonsense", "2 e 1 i b t\nx", "1 e 1 i b x\nx", "1 e x i b t\nx"):
        redis_server.cli("spublish", "{gowsev:news}", data)
    node.publish("sense")
    node.wait_for(id, "sense")
    assert len([r for r in caplog.records if "is not understood" in r.getMessage()]) == 4
    assert not node.gaps(id)


# -- Redis does not do what it should ----------------------------------------------------------------------------------


def test_while_redis_is_away(redis_nodes, redis_server, caplog):
    node = redis_nodes()
    id = node.join()
    redis_server.kill()
    wait_until(lambda: isinstance(node.channels.Publish("news", "x"), ChannelsAway))
    error = node.channels.Publish("news", "x")
    assert error.certain
    assert not node.channels.Status().up
    wait_until(lambda: "refused" in node.channels.Status().reason.lower())
    answers = []
    node.channels.Members("news", lambda context, *answer: answers.append(answer))
    assert isinstance(wait_until(lambda: answers)[0][1], ChannelsAway)
    gevent.sleep(1)
    lines = [record.getMessage() for record in caplog.records if record.name == "gowsev" and "away" in record.message]
    assert len(lines) == 1
    redis_server.start()
    wait_until(lambda: node.channels.Status().up)
    assert wait_until(lambda: [r for r in caplog.records if re.search("is there again, after", r.getMessage())])
    node.publish("back")
    wait_until(lambda: node.messages(id)[-1:] == ["back"])


def test_from_the_moment_at_which_redis_is_said_to_be_away_publishes_are_refused(redis_nodes, redis_server):
    node = redis_nodes()
    node.join()
    node.publish("before")
    redis_server.kill()
    wait_until(lambda: "refused" in node.channels.Status().reason.lower())
    assert isinstance(node.channels.Publish("news", "x"), ChannelsAway)


def test_a_key_of_another_type_concerns_its_channel_only(redis_nodes, redis_server, caplog):
    node = redis_nodes()
    id = node.join()
    redis_server.cli("set", "{gowsev:bad}:stream", "x")
    redis_server.cli("set", "{gowsev:worse}:meta", "x")
    redis_server.cli("xadd", "{gowsev:foreign}:stream", "*", "a", "b")
    for channel in ("bad", "worse"):
        answers = []
        node.channels.Publish(channel, "x", lambda context, *answer, to=answers: to.append(answer))
        position, error = wait_until(lambda answers=answers: answers)[0]
        assert position is None
        assert isinstance(error, Refused)
        assert error.certain
        assert "WRONGTYPE" in str(error)
    for _ in range(2):
        error = node.subscribe(id, "worse").error
        assert isinstance(error, Refused)
    other, gone = node.connect(), node.connect()
    answers = []
    node.channels.Subscribe(gone, "worse", done=lambda context, answer: pytest.fail("nobody waits for it"))
    node.channels.Subscribe(other, "worse", done=lambda context, answer: answers.append(answer))
    node.channels.Subscribe(other, "worse", done=lambda context, answer: answers.append(answer))
    node.channels.Unsubscribe(gone, "worse")
    wait_until(lambda: len(answers) == 2)
    assert all(isinstance(answer.error, Refused) for answer in answers)
    node.channels.Publish("bad", "x")
    wait_until(lambda: "a publish to channel 'bad' has failed: WRONGTYPE" in caplog.text)
    node.publish("good")
    node.wait_for(id, "good")
    assert node.channels.Status().up


def test_a_replica_is_away_until_it_is_a_master(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    redis_server.cli("replicaof", "127.0.0.1", "1")
    node.channels.Publish("news", "waits")
    wait_until(
        lambda: "read only replica" in node.channels.Status().reason or "READONLY" in node.channels.Status().reason
    )
    assert isinstance(node.channels.Publish("news", "x"), ChannelsAway)
    redis_server.cli("replicaof", "no", "one")
    wait_until(lambda: node.channels.Status().up)
    node.wait_for(id, "waits")


@pytest.mark.parametrize("command", ["evalsha", "script|load", "xadd", "hset", "hmget", "spublish", "ssubscribe"])
def test_a_permission_that_is_missing_is_one_clear_state(redis_server, command, caplog):
    redis_server.cli("acl", "setuser", "app", "on", ">sesame", "~{gowsev:*", "&{gowsev:*", "+@all", f"-{command}")
    with contextlib.ExitStack() as stack:
        node = Node(stack, redis_server.url.replace("//", "//app:sesame@"))
        id = node.connect()
        node.channels.Subscribe(id, "news")
        wait_until(
            lambda: re.search("permission|executing the script can't|ACL failure", node.channels.Status().reason)
        )
        assert not node.channels.Status().up
        gevent.sleep(0.5)
        lines = [r.getMessage() for r in caplog.records if " is away: " in r.getMessage()]
        assert len(lines) == 1
        assert "sesame" not in lines[0]
        redis_server.cli("acl", "setuser", "app", f"+{command}")
        wait_until(lambda: node.channels.Status().up)
        wait_until(lambda: node.subscribe(id).error is None)


def test_a_wrong_password_is_not_in_the_log(tmp_path, caplog):
    server = RedisServer(tmp_path / "locked", "--rename-command", "AUTH", "")
    try:
        with contextlib.ExitStack() as stack:
            node = Node(stack, server.url.replace("//", "//:sesame@"))
            node.channels.Publish("news", "x")
            wait_until(lambda: [r for r in caplog.records if " is away: " in r.getMessage()])
            assert "sesame" not in caplog.text
            assert "sesame" not in node.channels.Status().reason
    finally:
        server.kill()


def test_no_memory_left(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    redis_server.cli("config", "set", "maxmemory", "1")
    answers = []
    node.channels.Publish("news", "x", lambda context, *answer: answers.append(answer))
    _, error = wait_until(lambda: answers)[0]
    assert isinstance(error, Refused)
    assert error.certain
    redis_server.cli("config", "set", "maxmemory", "0")
    node.publish("y")
    node.wait_for(id, "y")


def test_scripts_that_were_forgotten(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    node.publish("1")
    redis_server.cli("script", "flush")
    for message in "2345":
        assert node.channels.Publish("news", message) is None
    node.wait_for(id, *"12345")


def test_a_publish_that_waited_for_too_long_fails(redis_nodes, redis_server):
    node = redis_nodes()
    node.join()
    id = node.connect()
    redis_server.freeze()
    answers, subscriptions, lists = [], [], []
    node.channels.Subscribe(id, "news", "e.0.e", done=lambda context, answer: subscriptions.append(answer))
    node.channels.Members("news", lambda context, members, error: lists.append(error))
    node.channels.Publish("news", "sent", lambda context, *answer: answers.append(answer))
    _, error = wait_until(lambda: answers, 60)[0]
    assert isinstance(error, ChannelsAway)
    assert not error.certain
    assert str(error).endswith("perhaps it was stored")
    for other in (wait_until(lambda: subscriptions)[0].error, wait_until(lambda: lists)[0]):
        assert isinstance(other, ChannelsAway)
        assert other.certain, "it stores nothing"
    assert node.channels.Status().in_flight == 0


def test_a_subscription_that_waited_for_too_long_fails(redis_nodes, redis_server):
    node = redis_nodes()
    id, gone = node.join("other"), node.connect()
    redis_server.kill()
    node.channels.Subscribe(gone, "news")
    node.channels.Unsubscribe(gone, "news")
    answers = []
    for channel in ("news", "more"):
        node.channels.Subscribe(id, channel, done=lambda context, answer: answers.append(answer))
    node.channels.Subscribe(gone, "news", done=lambda context, answer: pytest.fail("nobody waits for it"))
    node.channels.Unsubscribe(gone, "news")
    wait_until(lambda: len(answers) == 2, 60)
    assert all(isinstance(answer.error, ChannelsAway) for answer in answers)
    assert node.channels.Status().channels == 1
    redis_server.start()
    assert wait_until(lambda: node.subscribe(id, "news").error is None)
    node.publish("back", "other")
    node.wait_for(id, "back")


def test_a_channel_that_may_not_be_heard_concerns_itself_only(redis_server):
    redis_server.cli("acl", "setuser", "app", "on", ">sesame", "~{gowsev:*", "&{gowsev:}*", "&{gowsev:open*", "+@all")
    with contextlib.ExitStack() as stack:
        node = Node(stack, redis_server.url.replace("//", "//app:sesame@"))
        id = node.join("open")
        assert isinstance(node.subscribe(id, "shut").error, Refused)
        answers = []
        node.channels.Publish("shut", "x", lambda context, *answer: answers.append(answer))
        _, error = wait_until(lambda: answers)[0]
        assert isinstance(error, Refused)
        assert not error.certain
        node.publish("x", "open")
        node.wait_for(id, "x")
        assert node.channels.Status().up


def test_foreign_entries_in_a_stream(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.connect()
    start = node.publish("1")
    redis_server.cli("xadd", "{gowsev:news}:stream", "2-0", "a", "b")
    redis_server.cli("hset", "{gowsev:news}:meta", "offset", "2")
    assert isinstance(node.subscribe(id, after=start).error, Refused)
    assert node.subscribe(id, after="nothing").error is None


def test_a_publish_that_was_stored_and_is_sent_again_has_its_position(redis_server):
    with redis_server.client() as client:
        for number in range(1, 40):
            client.execute_command(*with_source(publish_words(KEYS, "s", number, True, b"x", DEFAULTS)))
        for number in (39, 2):
            again = client.execute_command(*publish_words(KEYS, "s", number, True, b"x", DEFAULTS, again=True))
            assert again[1:] == [str(number).encode(), f"s-{number}".encode()]
        few = Limits(history_messages=1)
        client.execute_command(*publish_words(KEYS, "t", 1, True, b"x", few))
        with pytest.raises(redis.ResponseError, match="UNKNOWN whether s-39 was stored"):
            client.execute_command(*publish_words(KEYS, "s", 39, True, b"x", DEFAULTS, again=True))


def test_sessions_are_bounded_and_what_they_send_again_is_found(redis_server):
    with redis_server.client() as client:
        first = client.execute_command(*with_source(publish_words(KEYS, "first", 1, True, b"x", DEFAULTS)))
        for number in range(600):
            client.execute_command(*publish_words(KEYS, f"session{number}", 1, True, b"x", DEFAULTS))
            assert client.hlen(KEYS[0]) <= 7 + 257
        assert not client.hexists(KEYS[0], "s:first")
        assert client.execute_command(*publish_words(KEYS, "first", 1, True, b"x", DEFAULTS, again=True)) == first
        new = client.execute_command(*publish_words(KEYS, "new", 1, True, b"x", DEFAULTS, again=True))
        assert new[1] == b"602"
        assert client.xlen(KEYS[1]) == 602


def test_keys_expire_and_are_in_one_slot(redis_nodes, redis_server):
    node = redis_nodes()
    node.join("a}b", member="ann")
    node.publish("x", "a}b")
    wait_until(lambda: node.members("a}b") == {"ann": 1})
    with redis_server.client() as client:
        keys = [key for key in client.scan_iter() if b":}" not in key]
        assert {key.rpartition(b":")[2] for key in keys} == {b"meta", b"stream", b"members", b"alive"}
        assert len({key_slot(key) for key in keys}) == 1
        assert all(client.ttl(key) > 0 for key in client.scan_iter())


def test_a_unix_socket_and_tls(tmp_path, certificate, authority):
    cert, key = certificate
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    server = RedisServer(tmp_path / "sockets", "--unixsocket", str(tmp_path / "redis.sock"))
    try:
        with contextlib.ExitStack() as stack:
            node = Node(stack, f"unix://{tmp_path}/redis.sock?db=1")
            id = node.join()
            node.publish("x")
            node.wait_for(id, "x")
        server.kill()
        with contextlib.ExitStack() as stack:
            node = Node(stack, f"unix://{tmp_path}/redis.sock")
            node.channels.Publish("news", "x")
            wait_until(lambda: "Connection refused" in node.channels.Status().reason)
        port = free_port()
        files = ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", str(ca)]
        server.options = ["--tls-port", str(port), *files, "--tls-auth-clients", "optional"]
        server.start()
        for query in (
            f"ssl_ca_certs={ca}",
            "ssl_cert_reqs=none",
            f"ssl_ca_certs={ca}&ssl_certfile={cert}&ssl_keyfile={key}",
        ):
            with contextlib.ExitStack() as stack:
                node = Node(stack, f"rediss://localhost:{port}/?{query}")
                id = node.join(str(len(query)))
                node.publish("x", str(len(query)))
                node.wait_for(id, "x")
            with Remote(f"rediss://localhost:{port}/?{query}") as remote:
                assert [item.message for item in in_thread(remote.History, str(len(query)))] == ["x"]
        with contextlib.ExitStack() as stack:
            node = Node(stack, f"rediss://localhost:{port}")
            node.channels.Publish("news", "x")
            wait_until(lambda: "certificate" in node.channels.Status().reason.lower())
    finally:
        server.kill()


def test_a_context_that_nobody_drives_yet_begins_anew_in_a_child(redis_server):
    context = gowsev.MakeContext(gowsev.Handler())
    channels = Channels(context, redis_server.url)
    for message in ("parent", "child"):
        assert channels.Publish("news", message) is None
        wait_until(lambda: not channels.Status().in_flight)
        context.disown()  # as it is called in a child
    with Remote(redis_server.url) as remote:
        assert [item.message for item in in_thread(remote.History, "news")] == ["parent", "child"]
    here = Channels(gowsev.MakeContext(gowsev.Handler()))
    here.Publish("news", "x")
    here.disown()
    assert here.Status().channels == 0


def test_from_a_thread_while_redis_is_away(redis_nodes, redis_server):
    node = redis_nodes()
    node.publish("x")
    redis_server.kill()
    wait_until(lambda: isinstance(node.channels.Publish("news", "x"), ChannelsAway))
    done = []
    assert in_real_thread(node.channels.Publish, "news", "y", lambda context, *answer: done.append(answer)) is None
    position, error = wait_until(lambda: done)[0]
    assert position is None
    assert isinstance(error, ChannelsAway)
    assert error.certain


def test_follow_and_leave_in_a_hurry(redis_nodes):
    node = redis_nodes()
    id = node.connect()
    for _ in range(20):
        node.channels.Subscribe(id, "news")
        node.channels.Unsubscribe(id, "news")
    assert node.subscribe(id).error is None
    for _ in range(20):
        node.channels.Unsubscribe(id, "news")
        node.channels.Subscribe(id, "news")
    assert node.subscribe(id).error is None
    node.publish("x")
    node.wait_for(id, "x")


def test_whoever_leaves_gets_nothing_of_what_is_on_its_way(redis_nodes):
    node = redis_nodes()
    id, other = node.join(), node.connect()
    start = node.publish("0")
    for _ in range(30):
        node.channels.Publish("news", "x")
        node.channels.Subscribe(other, "news", after=start)
        gevent.sleep(0)
        node.channels.Unsubscribe(other, "news")
        node.channels.Unsubscribe(id, "news")
        assert node.subscribe(id).error is None


def test_members_that_may_not_be_looked_up(redis_nodes, redis_server, caplog):
    node = redis_nodes()
    redis_server.cli("set", "{gowsev:news}:alive", "x")
    answers = []
    node.channels.Members("news", lambda context, *answer: answers.append(answer))
    members, error = wait_until(lambda: answers)[0]
    assert members == {}
    assert isinstance(error, Refused)
    for name in ("ann", "bob"):
        node.join(member=name)
    wait_until(lambda: "members of channel 'news' are not told to others: WRONGTYPE" in caplog.text)
    node.join("other", member="eve")
    wait_until(lambda: node.members("other") == {"eve": 1})
    assert caplog.text.count("are not told to others") == 1

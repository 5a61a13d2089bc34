"""A Redis that is not where it was: masters that sentinels name, members of a cluster, and slots that move."""

from __future__ import annotations

import contextlib

import gevent
import gevent.socket
import pytest
from channel_tools import Node
from conftest import in_thread, wait_until
from gevent.server import StreamServer
from redis_groups import Cluster, Watched
from redis_server import RedisServer, free_port, needs_redis

import gowsev
from gowsev.channels import Channels, ChannelsAway, Limits, Refused, Remote

pytestmark = needs_redis

BIG = Limits(history_messages=100_000, history_bytes=1 << 30)


class Stream:
    """Publishes numbers to a channel, one after another, and notes what was reported of each."""

    def __init__(self, node, channel):
        self.node = node
        self.channel = channel
        self.stored, self.failed, self.refused = [], [], 0
        self.ended = False
        self.greenlet = gevent.spawn(self.run)

    def run(self):
        number = 0
        while not self.ended:
            answers = []
            if self.node.channels.Publish(self.channel, str(number), lambda context, *a, to=answers: to.append(a)):
                self.refused += 1
                gevent.sleep(0.01)
                continue
            while not answers:
                gevent.sleep(0.001)
            (self.stored if answers[0][1] is None else self.failed).append(str(number))
            number += 1

    def wait_for_more(self, number=50):
        goal = len(self.stored) + number
        wait_until(lambda: len(self.stored) >= goal)

    def end(self):
        self.ended = True
        self.greenlet.join()


@pytest.fixture
def watched(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    watched.end()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.end()


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


def lines(caplog, text):
    return [r.getMessage() for r in caplog.records if r.name == "gowsev" and text in r.getMessage()]


# -- sentinels ---------------------------------------------------------------------------------------------------------


def test_a_master_that_dies_is_followed_to_its_replica(watched, stack, caplog):
    one, two = (Node(stack, watched.url, limits=BIG) for _ in range(2))
    ids = [one.join(), two.join()]
    stream = Stream(one, "news")
    stream.wait_for_more()
    stream.end()
    watched.wait_until_replicated()
    watched.master.kill()
    stream = Stream(two, "news")
    stream.wait_for_more()
    wait_until(lambda: one.channels.Status().up)
    stream.end()
    assert watched.replica.cli("role").startswith("master")
    last = one.publish("last")
    for node, id in zip((one, two), ids, strict=True):
        wait_until(lambda node=node, who=id: node.messages(who)[-1:] == ["last"])
        assert not node.gaps(id)
    assert one.messages(ids[0]) == two.messages(ids[1])
    with Remote(watched.url) as remote:
        assert in_thread(remote.History, "news")[-1].position == last
        in_thread(remote.Publish, "news", "from a task")
        wait_until(lambda: one.messages(ids[0])[-1] == "from a task")
    assert len(lines(caplog, " is away: ")) <= 2  # one for each node
    # The old master comes back, as a master until the sentinel sees it; nobody returns to it.
    watched.master.start()
    one.publish("after")
    wait_until(lambda: two.messages(ids[1])[-1] == "after")


def test_a_failover_under_publishers_loses_nothing_without_a_word(watched, stack):
    one, two = (Node(stack, watched.url, limits=BIG) for _ in range(2))
    ids = [one.join(), two.join()]
    streams = [Stream(node, "news") for node in (one, two)]
    for stream in streams:
        stream.wait_for_more()
    watched.master.kill()
    for stream in streams:
        stream.wait_for_more()
        stream.end()
    for node, id in zip((one, two), ids, strict=True):
        node.publish("last")
        wait_until(lambda node=node, who=id: "last" in node.messages(who))
        if not node.gaps(id):  # what the replica lacked
            assert {message for stream in streams for message in stream.stored} <= set(node.messages(id))


def test_remote_finds_the_new_master(watched, caplog):
    with Remote(watched.url) as remote:
        in_thread(remote.Publish, "news", "1")
        watched.wait_until_replicated()
        watched.master.kill()
        wait_until(lambda: watched.replica.cli("role").startswith("master"))
        in_thread(remote.Publish, "news", "2")
        assert [item.message for item in in_thread(remote.History, "news")] == ["1", "2"]


def test_sentinels_that_do_not_know_it(watched, stack, caplog):
    host = f"127.0.0.1:{watched.port}"
    node = Node(stack, f"redis+sentinel://127.0.0.1:{free_port()},{host}/main")  # the second one knows
    node.publish("x")
    unknown = f"redis+sentinel://{host}/other"
    other = Node(stack, unknown)
    other.channels.Publish("news", "x")
    reason = "no sentinel says where 'other' is: they do not know it"
    wait_until(lambda: other.channels.Status().reason == reason)
    with Remote(unknown) as remote, pytest.raises(ChannelsAway, match=reason):
        in_thread(remote.Publish, "news", "x")
    nobody = Node(stack, f"redis+sentinel://127.0.0.1:{free_port()}/main")
    nobody.channels.Publish("news", "x")
    wait_until(lambda: "refused" in nobody.channels.Status().reason)
    assert len(lines(caplog, " is away: ")) == 2


# -- a master that becomes a replica -----------------------------------------------------------------------------------


@pytest.fixture
def moved(tmp_path):
    """An address that leads to a master, from which a replica has taken over, and can be moved there."""
    master = RedisServer(tmp_path / "master", "--repl-diskless-sync-delay", "0")
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port))
    wait_until(lambda: "master_link_status:up" in replica.cli("info", "replication"))
    target = [master]
    greenlets = []

    def forward(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(gevent.socket.SHUT_RDWR)

    def accept(sock, _):
        with gevent.socket.create_connection(("127.0.0.1", target[0].port)) as other:
            pair = [gevent.spawn(forward, sock, other), gevent.spawn(forward, other, sock)]
            greenlets.extend(pair)
            gevent.joinall(pair)

    door = StreamServer(("127.0.0.1", 0), accept)
    door.start()

    def move():
        with master.client() as old, replica.client() as new:
            assert old.wait(1, 5000) == 1
            new.execute_command("REPLICAOF", "NO", "ONE")
            target[0] = replica
            old.execute_command("REPLICAOF", "127.0.0.1", "1")  # which is nobody: it gets nothing any more

    yield f"redis://127.0.0.1:{door.server_port}", move, replica
    door.stop()
    gevent.killall(greenlets)
    for server in (master, replica):
        server.kill()


@pytest.mark.long
def test_a_process_that_only_listens_leaves_a_master_that_became_a_replica(moved, stack, caplog):
    """Its connections stay as they were; it is told nothing, and finds out."""
    url, move, replica = moved
    node = Node(stack, url)
    id = node.join()
    with Remote(url) as remote:
        in_thread(remote.Publish, "news", "before")
        node.wait_for(id, "before")
        move()
        in_thread(remote.Publish, "news", "after")
    wait_until(lambda: replica.cli("pubsub", "shardnumsub", "{gowsev:news}").endswith("1"))
    node.wait_for(id, "before", "after")
    assert not node.gaps(id)
    assert node.channels.Status().up
    assert not lines(caplog, " is away: ")


def test_publishers_leave_a_master_that_became_a_replica(moved, stack, caplog):
    url, move, _ = moved
    one, two = Node(stack, url, limits=BIG), Node(stack, url, limits=BIG)
    ids = [one.join(), two.join()]
    streams = [Stream(node, "news") for node in (one, two)]
    for stream in streams:
        stream.wait_for_more()
        stream.end()
    move()
    streams += [Stream(node, "news") for node in (one, two)]
    for stream in streams[2:]:
        stream.wait_for_more()
        stream.end()
        assert not stream.failed
    for node, id in zip((one, two), ids, strict=True):
        wait_until(lambda node=node, who=id: len(node.messages(who)) == sum(len(stream.stored) for stream in streams))
        assert not node.gaps(id)
    assert len(lines(caplog, " is away: ")) <= 2


# -- a cluster ---------------------------------------------------------------------------------------------------------


def test_channels_of_all_members(cluster, stack):
    one, two = Node(stack, cluster.url), Node(stack, cluster.url)
    names = [cluster.channel_of(number) for number in range(3)]
    for name in names:
        id = two.join(name, member="ann")
        start = one.publish("1", name)
        one.publish("2", name)
        two.wait_for(id, "1", "2")
        back = one.connect()
        assert one.subscribe(back, name, after=start).recovered
        assert one.messages(back) == ["2"]
        wait_until(lambda name=name: one.members(name) == {"ann": 1})
        two.channels.Unsubscribe(id, name)
    assert one.channels.Status().up
    with Remote(cluster.url) as remote:
        for name in names:
            in_thread(remote.Publish, name, "3", "key")
            assert [item.message for item in in_thread(remote.History, name)] == ["1", "2", "3"]


@pytest.mark.long
def test_a_member_that_dies_is_followed_to_its_replica_and_the_others_are_untouched(cluster, stack, caplog):
    one, two = (Node(stack, cluster.url, limits=BIG) for _ in range(2))
    names = [cluster.channel_of(number) for number in range(3)]
    ids = [two.join(name) for name in names]
    for name in names:
        one.publish("first", name)
    with cluster.masters[0].client() as client:
        wait_until(lambda: client.wait(1, 100) == 1)
    others = [Stream(one, name) for name in names[1:]]
    cluster.masters[0].kill()
    moved = Stream(one, names[0])
    moved.wait_for_more()
    for stream in others:
        stream.wait_for_more()
    for stream in (moved, *others):
        stream.end()
    assert not any(stream.refused or stream.failed for stream in others)
    assert not moved.failed
    for stream, id in zip((moved, *others), ids, strict=True):
        wait_until(lambda stream=stream, who=id: len(two.messages(who)) > len(stream.stored))
        assert two.messages(id) == ["first", *stream.stored]
        assert not two.gaps(id)
    wait_until(lambda: one.channels.Status().up and two.channels.Status().up)
    with Remote(cluster.url) as remote:
        assert in_thread(remote.Publish, names[0], "task")
    assert len(lines(caplog, " is away: ")) <= 2


@pytest.mark.long
def test_a_member_without_replica_takes_its_channels_away_and_no_others(cluster, stack, caplog):
    node = Node(stack, cluster.url, limits=BIG)
    away, here = cluster.channel_of(1), cluster.channel_of(2)
    id, other = node.join(away), node.join(here)
    node.publish("1", away)
    stream = Stream(node, here)
    cluster.masters[1].kill()
    wait_until(lambda: isinstance(node.channels.Publish(away, "x"), ChannelsAway))
    answers = []
    node.channels.Members(away, lambda context, *answer: answers.append(answer))
    assert isinstance(wait_until(lambda: answers)[0][1], ChannelsAway)
    status = node.channels.Status()
    assert not status.up
    assert f"127.0.0.1:{cluster.masters[1].port}: " in status.reason
    stream.wait_for_more(200)
    assert len(lines(caplog, " is away: ")) == 1
    with Remote(cluster.url) as remote, pytest.raises(ChannelsAway):
        in_thread(remote.Publish, away, "x")
    cluster.masters[1].start()
    wait_until(lambda: node.channels.Status().up)
    node.publish("2", away)
    wait_until(lambda: node.messages(id)[-1:] == ["2"])
    assert node.messages(id)[0] == "1"
    assert not node.gaps(id)
    stream.end()
    assert not stream.refused
    assert not stream.failed
    wait_until(lambda: node.messages(other) == stream.stored)
    assert len(lines(caplog, " is there again")) == 1


def test_a_slot_that_moves(cluster, stack):
    node = Node(stack, cluster.url, limits=BIG)
    name = cluster.channel_of(1)
    id, other = node.join(name), node.join(cluster.channel_of(2))
    streams = [Stream(node, name), Stream(node, cluster.channel_of(2))]
    for source, target in ((1, 2), (2, 1)):
        streams[0].wait_for_more()
        in_thread(cluster.move, name, cluster.masters[source], cluster.masters[target])
        streams[0].wait_for_more()
    for stream in streams:
        stream.end()
    assert not streams[0].failed
    node.publish("last", name)
    node.wait_for(id, *streams[0].stored, "last")
    wait_until(lambda: len(node.messages(other)) == len(streams[1].stored))
    assert not node.gaps(id)


def test_a_cluster_is_not_read_while_the_loop_does_not_deliver(cluster, stack):
    one, two = Node(stack, cluster.url), Node(stack, cluster.url, limits=Limits(undelivered_bytes=10_000))
    names = [cluster.channel_of(number) for number in range(3)]
    ids = [two.join(name) for name in names]
    inside, go_on = [], []

    def block(context):
        inside.append(True)
        wait_until(lambda: go_on)

    two.context.Post(block)
    wait_until(lambda: inside)
    for i in range(20):
        for name in names:
            one.publish(f"{i} ".ljust(1000, "x"), name)
    wait_until(lambda: two.channels.Status().lag > 8)
    go_on.append(True)
    for id in ids:
        wait_until(lambda who=id: [message.split()[0] for message in two.messages(who)] == [str(i) for i in range(20)])
        assert not two.gaps(id)


def test_a_context_over_a_cluster_begins_anew_in_a_child(cluster):
    context = gowsev.MakeContext(gowsev.Handler())
    channels = Channels(context, cluster.url)
    context.disown()  # before anything was asked
    for message in ("parent", "child"):
        assert channels.Publish("news", message) is None
        wait_until(lambda: not channels.Status().in_flight)
        context.disown()  # as it is called in a child
    with Remote(cluster.url) as remote:
        assert [item.message for item in in_thread(remote.History, "news")] == ["parent", "child"]


def test_a_slot_that_nobody_has(cluster, stack):
    name = cluster.channel_of(1)
    node = Node(stack, cluster.url)
    node.publish("1", name)
    id = node.join(name)
    others = node.join(cluster.channel_of(2))

    def nobody_has_it():
        """A member that has forgotten it may hear of it again from one that has not yet."""
        having = [server for server in cluster.servers if "5461" in server.cli("cluster", "slots").split()]
        for server in having:
            server.cli("cluster", "delslotsrange", "5461", "10921")
        return not having

    wait_until(nobody_has_it)
    wait_until(lambda: "no member of the cluster has its slot" in str(node.channels.Publish(name, "x")), 60)
    assert isinstance(node.channels.Publish(name, "x"), ChannelsAway)
    with Remote(cluster.url) as remote, pytest.raises(ChannelsAway, match="has its slot"):
        in_thread(remote.Publish, name, "x")
    node.publish("x", cluster.channel_of(2))
    node.wait_for(others, "x")
    cluster.masters[1].cli("cluster", "addslotsrange", "5461", "10921")
    wait_until(lambda: node.channels.Publish(name, "2") is None)
    wait_until(lambda: "2" in node.messages(id))


@pytest.mark.long
def test_a_cluster_of_which_nobody_is_there(cluster, stack, caplog):
    for server in cluster.servers:
        server.kill()
    node = Node(stack, cluster.url)
    id = node.connect()
    answers = []
    assert node.channels.Publish("news", "x", lambda context, *answer: answers.append(answer)) is None
    node.channels.Subscribe(id, "news", done=lambda context, answer: answers.append((answer.position, answer.error)))
    wait_until(lambda: isinstance(node.channels.Publish("news", "x"), ChannelsAway))
    assert "no member of the cluster says" in node.channels.Status().reason
    wait_until(lambda: len(answers) == 2, 60)
    assert all(isinstance(error, ChannelsAway) and error.certain for _, error in answers)
    assert len(lines(caplog, " is away: ")) == 1
    for server in cluster.servers:
        server.start()
    wait_until(lambda: node.channels.Status().up)
    assert wait_until(lambda: node.subscribe(id).error is None)


@pytest.mark.long
def test_the_address_of_one_member_is_no_cluster(cluster, stack, caplog):
    text = "a member of a Redis Cluster, whose address begins with redis"
    for number in range(3):
        node = Node(stack, cluster.masters[number].url)
        answers = []
        for i in range(3):  # one of these channels is elsewhere
            node.channels.Publish(cluster.channel_of(i), "x", lambda context, *a, to=answers: to.append(a))
        wait_until(
            lambda node=node, answers=answers: (
                text in node.channels.Status().reason
                or any(isinstance(error, Refused) and text in str(error) for _, error in answers)
            )
        )
    gevent.sleep(1)
    assert len(lines(caplog, " is away: ")) <= 3

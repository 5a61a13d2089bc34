"""`Remote` and the command line: channels for processes without a loop."""

from __future__ import annotations

import io
import multiprocessing
import re
import signal
import subprocess
import sys
import threading

import gevent
import pytest
from conftest import PATIENCE, in_real_thread, in_thread, wait_until
from redis_server import needs_redis
from shell_output import reader_that_leaves, without_reader

from gowsev import channels
from gowsev.channels import ChannelsAway, Publication, Refused, Remote
from gowsev.channels.__main__ import main
from gowsev.channels.bell import Bell
from gowsev.channels.script_commands import script_words, with_source
from gowsev.channels.scripts import ALIVE, member_keys
from gowsev.shell import NOBODY_READS

pytestmark = needs_redis


@pytest.fixture
def remote(redis_server):
    with Remote(redis_server.url) as remote:
        yield remote


def test_what_is_published_reaches_subscribers(redis_nodes, remote):
    node = redis_nodes()
    id = node.join()
    positions = [in_thread(remote.Publish, "news", message) for message in ("text", b"binary")]
    node.wait_for(id, "text", b"binary")
    assert [publication.position for publication in node.delivered[id]] == positions


def test_history(redis_nodes, remote):
    node = redis_nodes()
    assert remote.History("news") == []
    first = node.publish("1")
    second = remote.Publish("news", b"2")
    everything = [Publication("news", "1", first), Publication("news", b"2", second)]
    assert remote.History("news") == everything
    assert remote.History("news", first) == everything[1:]
    assert remote.History("news", second) == []
    assert remote.History("news", "nonsense") == everything


def test_members(redis_nodes, remote):
    node = redis_nodes()
    assert remote.Members("news") == {}
    node.join(member="ann")
    wait_until(lambda: remote.Members("news") == {"ann": 1})


def test_a_key_makes_a_repeated_publish_happen_once(redis_nodes, redis_server, remote):
    position = remote.Publish("news", "1", key="order 7")
    with Remote(redis_server.url) as other:
        assert other.Publish("news", "1", key="order 7") == position
        assert other.Publish("other", "1", key="order 7") != position
    assert remote.Publish("news", "2", key="order 8") != position
    assert [publication.message for publication in remote.History("news")] == ["1", "2"]


def test_many_threads_share_one(remote):
    threads = [threading.Thread(target=lambda i=i: remote.Publish("news", str(i))) for i in range(20)]

    def run():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

    in_thread(run)
    assert sorted(int(publication.message) for publication in remote.History("news")) == list(range(20))


def test_connections_that_are_cut_are_opened_again(redis_server, remote):
    for i in range(5):
        remote.Publish("news", str(i))
        redis_server.cli("client", "kill", "type", "normal")
    assert [publication.message for publication in remote.History("news")] == list("01234")


def test_scripts_that_were_forgotten(redis_server, remote):
    remote.Publish("news", "1")
    redis_server.cli("script", "flush")
    remote.Publish("news", "2")
    assert [publication.message for publication in remote.History("news")] == ["1", "2"]


def test_redis_is_away(redis_server, remote):
    redis_server.kill()
    with pytest.raises(ChannelsAway) as raised:
        in_thread(remote.Publish, "news", "x")
    assert raised.value.certain
    redis_server.start()
    assert in_thread(remote.Publish, "news", "y")


@pytest.mark.parametrize(
    ("call", "certain"),
    [
        (lambda remote: remote.Publish("news", "x"), False),
        (lambda remote: remote.Members("news"), True),
        (lambda remote: remote.History("news"), True),
    ],
)
def test_what_only_reads_has_certainly_stored_nothing(redis_server, remote, call, certain):
    remote.Publish("news", "1")
    redis_server.freeze()
    asking = gevent.spawn(in_thread, call, remote)
    gevent.sleep(0.2)
    redis_server.kill()  # else it would take half a minute
    with pytest.raises(ChannelsAway) as raised:
        asking.get(timeout=PATIENCE)
    assert raised.value.certain == certain
    assert ("perhaps it was stored" in str(raised.value)) != certain


def test_redis_comes_back_while_a_publish_is_tried_again(redis_server, remote):
    remote.Publish("news", "1")
    redis_server.kill()
    done = []
    waiting = gevent.spawn(lambda: done.append(in_thread(remote.Publish, "news", "2")))
    gevent.sleep(0.2)
    redis_server.start()
    waiting.get(timeout=PATIENCE)
    assert [publication.message for publication in remote.History("news")] == ["1", "2"]


def test_a_replica_does_not_take_it(redis_server, remote):
    redis_server.cli("replicaof", "127.0.0.1", "1")
    with pytest.raises(ChannelsAway, match="read only replica"):
        in_thread(remote.Publish, "news", "x")


def test_a_key_of_another_type(redis_server, remote):
    redis_server.cli("set", "{gowsev:bad}:stream", "x")
    with pytest.raises(Refused, match="WRONGTYPE"):
        remote.Publish("bad", "x")
    redis_server.cli("del", "{gowsev:bad}:stream")
    remote.Publish("bad", "x")
    redis_server.cli("xadd", "{gowsev:bad}:stream", "9-0", "a", "b")
    redis_server.cli("hset", "{gowsev:bad}:meta", "offset", "9")
    with pytest.raises(Refused, match="an entry has the fields"):
        remote.History("bad")


def test_nobody_may_be_told(redis_server):
    redis_server.cli("acl", "setuser", "app", "on", ">sesame", "~{gowsev:*", "&{gowsev:*", "+@all", "-spublish")
    with (
        Remote(redis_server.url.replace("//", "//app:sesame@")) as remote,
        pytest.raises(Refused, match="perhaps it was stored") as raised,
    ):
        remote.Publish("news", "x")
    assert not raised.value.certain


def publish_in_child(remote, message):
    remote.Publish("news", message)


def test_a_forked_child_has_a_connection_of_its_own(remote):
    remote.Publish("news", "parent 1")
    children = [
        multiprocessing.get_context("fork").Process(target=publish_in_child, args=(remote, f"child {i}"))
        for i in range(3)
    ]
    for child in children:
        child.start()
    remote.Publish("news", "parent 2")
    for child in children:
        in_thread(child.join, PATIENCE)
        assert child.exitcode == 0
    remote.Publish("news", "parent 3")
    messages = [publication.message for publication in remote.History("news")]
    assert sorted(messages) == ["child 0", "child 1", "child 2", "parent 1", "parent 2", "parent 3"]


def test_from_another_thread(remote, redis_server):
    def publish():
        with Remote(redis_server.url) as mine:  # in a patched process, sockets belong to their thread
            mine.Publish("news", "x")

    in_real_thread(publish)
    assert [publication.message for publication in remote.History("news")] == ["x"]


def test_wrong_arguments(remote, redis_server):
    for call in (remote.Publish, remote.History):
        with pytest.raises(ValueError, match="channel must have"):
            call("", "x")
    with pytest.raises(TypeError, match="message must be"):
        remote.Publish("news", None)
    with pytest.raises(ValueError, match="key must have"):
        remote.Publish("news", "x", key="")
    with pytest.raises(TypeError, match="after must be"):
        remote.History("news", 7)
    with pytest.raises(TypeError, match="limits must be"):
        Remote(redis_server.url, limits=None)


def test_without_the_package_redis_there_is_no_other_name():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = channels.Nothing


def test_the_bell_rings(redis_server, remote):
    with Bell(redis_server.url, "gowsev", "news", longest=0.2) as bell:
        in_thread(bell.wait)  # it has connected
        assert redis_server.cli("pubsub", "shardnumsub", "{gowsev:news}").endswith("1")
        in_thread(bell.wait)  # nothing has happened
        remote.Publish("news", "x")
        in_thread(bell.wait)
        redis_server.cli("client", "kill", "type", "pubsub")
        in_thread(bell.wait)
        in_thread(bell.wait)
        assert redis_server.cli("pubsub", "shardnumsub", "{gowsev:news}").endswith("1")


# -- the command line --------------------------------------------------------------------------------------------------


def run(url, command, *words, stdin=b""):
    line = [sys.executable, "-m", "gowsev.channels", command, "--url", url, *words]
    return in_thread(lambda: subprocess.run(line, input=stdin, capture_output=True, timeout=PATIENCE))


def test_publish_from_the_shell(redis_nodes, redis_server):
    node = redis_nodes()
    id = node.join()
    done = run(redis_server.url, "publish", "news", "hällo")
    assert (done.returncode, done.stderr) == (0, b"")
    assert run(redis_server.url, "publish", "news", "-", stdin=b"\xff\x00").returncode == 0
    node.wait_for(id, "hällo", b"\xff\x00")
    assert node.delivered[id][0].position == done.stdout.decode().strip()


def test_members_from_the_shell(redis_nodes, redis_server):
    node = redis_nodes()
    node.join(member="bob")
    node.join(member="ann")
    wait_until(lambda: len(node.members()) == 2)
    assert run(redis_server.url, "members", "news").stdout == b"1 ann\n1 bob\n"


def test_tail(redis_server, remote, tmp_path):
    first = remote.Publish("news", "1")
    remote.Publish("news", "2")
    command = [sys.executable, "-m", "gowsev.channels", "tail", "--url", redis_server.url, "news"]
    outputs = [tmp_path / "all", tmp_path / "new"]
    programs = []
    for output, options in zip(outputs, (["--after", first], []), strict=True):
        with output.open("wb") as file:
            programs.append(subprocess.Popen([*command, *options], stdout=file))
    wait_until(lambda: outputs[0].read_bytes() == b"2\n")

    def published():
        remote.Publish("news", b"\xff")
        return outputs[1].read_bytes()

    wait_until(published)  # the other may not have begun when the first were published
    for program in programs:
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE) == -signal.SIGINT
    assert set(outputs[1].read_bytes().split()) == {b"\xff"}


def test_tail_waits_for_what_is_published(redis_server, remote, tmp_path):
    """It looks when there is something, and again after its connection was cut."""
    remote.Publish("news", "0")
    command = [sys.executable, "-m", "gowsev.channels", "tail", "--url", redis_server.url, "news"]
    output = tmp_path / "output"
    with output.open("wb") as file:
        program = subprocess.Popen(command, stdout=file)
    wait_until(lambda: redis_server.cli("pubsub", "shardnumsub", "{gowsev:news}").endswith("1"))

    def looks():
        calls = re.search(r"cmdstat_evalsha:calls=(\d+)", redis_server.cli("info", "commandstats"))
        return int(calls[1])

    remote.Publish("news", "1")
    wait_until(lambda: output.read_bytes() == b"1\n")
    before = looks()
    gevent.sleep(2)
    assert looks() - before <= 1
    redis_server.cli("client", "kill", "type", "pubsub")
    remote.Publish("news", "2")
    wait_until(lambda: output.read_bytes() == b"1\n2\n")
    program.send_signal(signal.SIGINT)
    assert program.wait(PATIENCE) == -signal.SIGINT


def test_what_goes_wrong_in_the_shell(redis_server):
    done = run("http://localhost", "members", "news")
    assert done.returncode == 1
    assert (
        done.stderr
        == b"ValueError: url must begin with redis://, rediss:// or unix://, or with redis+sentinel:// or redis+cluster://\n"
    )
    redis_server.kill()
    done = run(redis_server.url, "publish", "news", "x")
    assert done.returncode == 1
    assert done.stderr.startswith(b"ChannelsAway: ")


class Stream:
    """In the place of the standard input."""

    def __init__(self, buffer):
        self.buffer = buffer


def test_the_same_in_this_process(redis_server, remote, monkeypatch, capsys):
    url = ["--url", redis_server.url]
    assert main(["publish", *url, "news", "1"]) == 0
    monkeypatch.setattr(sys, "stdin", Stream(io.BytesIO(b"2")))
    assert main(["publish", *url, "--key", "k", "news", "-"]) == 0
    assert [publication.message for publication in remote.History("news")] == ["1", b"2"]
    capsys.readouterr()
    remote_members = channels.Remote(redis_server.url)
    words = script_words(ALIVE, member_keys(b"gowsev", b"news"), "p", 30, "1", b"ann", 2)
    with redis_server.client() as client:
        client.execute_command(*with_source(words))
    assert remote_members.Members("news") == {"ann": 2}
    remote_members.Close()
    assert main(["members", *url, "news"]) == 0
    assert capsys.readouterr().out == "2 ann\n"
    assert main(["members", "--url", "nowhere", "news"]) == 1


def test_tail_ends_with_what_reads_it(redis_server, remote, monkeypatch):
    first = remote.Publish("news", "1")
    remote.Publish("news", "2")

    def tail(*options):
        with pytest.raises(SystemExit) as left:
            main(["tail", "--url", redis_server.url, "news", *options])
        return left.value.code

    with reader_that_leaves() as (output, leave), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        following = gevent.spawn(in_thread, tail, "--after", first)
        assert leave() == b"2\n"
        remote.Publish("news", "3")
        assert following.get(timeout=PATIENCE) == NOBODY_READS
    with reader_that_leaves() as (output, leave), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        following = gevent.spawn(in_thread, tail)
        wait_until(lambda: redis_server.cli("pubsub", "shardnumsub", "{gowsev:news}").endswith("1"))
        remote.Publish("news", "4")
        assert leave() == b"4\n"
        remote.Publish("news", "5")
        assert following.get(timeout=PATIENCE) == NOBODY_READS


def test_what_is_published_from_the_shell_stays_published_though_nobody_reads_its_position(redis_server, remote):
    command = [sys.executable, "-m", "gowsev.channels", "publish", "--url", redis_server.url, "news", "once"]
    assert without_reader(command) == (NOBODY_READS, "")
    assert [publication.message for publication in remote.History("news")] == ["once"]

"""Several relay processes joined by a real Redis, which is cut off, killed and restarted while they publish."""

from __future__ import annotations

import collections
import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest
from conftest import PATIENCE, RELAY, wait_until
from metrics import AWAY, REFUSED
from node import Node
from programs import websockets_client
from redis_server import RedisServer, needs_redis
from websockets.exceptions import ConnectionClosed

pytestmark = needs_redis

OK = b"OK"


@pytest.fixture
def relays(run, redis_server):
    """A factory of relay processes that share one backplane, up and connected."""

    def start(number=2, *options, url=None):
        options = ["--host", "127.0.0.1", "--port", 0, "--tls-port", "none", *options]
        url = url or redis_server.url
        programs = [run(RELAY / "relay.py", *options, "--backplane", url) for _ in range(number)]
        for program in programs:
            program.wait_for("The backplane is there")
        return programs

    return start


def ask(client, message):
    client.send(message)
    return client.recv(timeout=PATIENCE)


def health(program):
    """Status and content of a relay's health page."""
    try:
        with urllib.request.urlopen(program.url().replace("ws:", "http:") + "healthz", timeout=PATIENCE) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


# -- what a client sees ----------------------------------------------------------------------------------------------


def test_what_is_published_to_one_reaches_the_subscribers_of_all(relays):
    one, two = relays()
    with websockets_client(one.url()) as ann, websockets_client(two.url()) as bob, websockets_client(two.url()) as eve:
        assert ask(ann, "subscribe:zürich") == OK
        assert ask(bob, "subscribe:zürich") == OK
        assert ask(eve, "subscribe:other") == OK
        for publisher in (ann, bob, eve):
            for body in (b"", b"a:b", b"\x00\xff", b"x" * 200_000):
                assert ask(publisher, "publish:zürich:".encode() + body) == OK
                assert [client.recv(timeout=PATIENCE) for client in (ann, bob)] == [body] * 2
        assert ask(bob, "unsubscribe:zürich") == OK
        assert ask(ann, "publish:zürich:for Ann") == OK
        assert ann.recv(timeout=PATIENCE) == b"for Ann"
        for client in (ann, bob, eve):  # nothing else came
            assert ask(client, "?") == b"Invalid message"
    for program in (one, two):
        assert program.end() == 0
        assert "Traceback" not in program.output


def test_answers_come_in_the_order_of_the_commands_and_before_what_they_cause(relays):
    (program,) = relays(1)
    with websockets_client(program.url()) as client:
        expected = []
        for i in range(200):
            for command in ("subscribe:a", f"publish:a:{i}", "?", "unsubscribe-all", "publish:a:nobody", "publish::b"):
                client.send(command)
            expected += [OK, OK, b"Invalid message", OK, OK, OK]
        received = [client.recv(timeout=PATIENCE) for _ in range(200 * 6)]
        answers = [message for message in received if message in (OK, b"Invalid message")]
        # A body that reaches the relay after the unsubscription is not sent. One that was published while nobody was
        # subscribed is sent if it reaches the relay after the next subscription: 1 of 200 in 1 of some 20 runs.
        bodies = [int(body) for body in received if body not in (OK, b"Invalid message", b"nobody")]
        assert bodies == sorted(set(bodies))
        assert answers == expected[: len(answers)]


def test_one_order_for_everybody(relays):
    one, two = relays()
    with websockets_client(one.url()) as ann, websockets_client(two.url()) as bob:
        for client in (ann, bob):
            assert ask(client, "subscribe:a") == OK
        for i in range(500):  # at the same time, and without waiting
            ann.send(f"publish:a:ann {i}")
            bob.send(f"publish:a:bob {i}")
        seen = []
        for client in (ann, bob):
            messages = [client.recv(timeout=PATIENCE) for _ in range(1500)]
            assert messages.count(OK) == 500
            seen.append([message for message in messages if message != OK])
        assert seen[0] == seen[1]
        for name in (b"ann", b"bob"):
            assert [m for m in seen[0] if m.startswith(name)] == [name + b" %d" % i for i in range(500)]


def test_names_and_bodies_that_are_no_text_pass_unharmed(relays):
    one, two = relays()
    with websockets_client(one.url()) as ann, websockets_client(two.url()) as bob:
        for name in (b"\xff\xfe", b"a\xe2\x80", b"\xed\xa0\x80a", b"\0a", b"x" * 1000):
            assert ask(ann, b"subscribe:" + name) == OK
            assert ask(bob, b"publish:" + name + b":\xff\x00" + name) == OK
            assert ann.recv(timeout=PATIENCE) == b"\xff\x00" + name


def test_relays_with_another_prefix_are_another_relay_and_histories_are_bounded(relays, redis_server):
    (one,), (two,) = relays(1), relays(1, "--backplane-prefix", "other", "--history-messages", 5)
    with websockets_client(one.url()) as ann, websockets_client(two.url()) as bob, redis_server.client() as looking:
        assert ask(ann, "subscribe:a") == OK
        for i in range(20):
            assert ask(bob, f"publish:a:{i}") == OK
        assert ask(ann, "publish:a:mine") == OK
        assert ann.recv(timeout=PATIENCE) == b"mine"
        assert looking.xlen("{other:a}:stream") == 5
        assert {key.partition(b":")[0] for key in looking.keys("*")} == {b"{relay", b"{other"}
        assert all(looking.ttl(key) > 0 for key in looking.keys("*"))


# -- Redis goes away -------------------------------------------------------------------------------------------------


def test_while_redis_is_away_publishes_are_refused_and_subscribers_stay(relays, redis_server):
    one, two = relays()
    with websockets_client(one.url()) as ann, websockets_client(two.url()) as bob:
        for client in (ann, bob):
            assert ask(client, "subscribe:a") == OK
        status, page = health(one)
        assert (status, page["status"], page["channels"]) == (200, "ok", "up")
        redis_server.kill()
        for program in (one, two):
            program.wait_for("channels: the Redis at .* is away: ")
        for _ in range(3):
            assert ask(ann, "publish:a:lost") == f"Error: not published: {AWAY}".encode()
        assert ask(ann, "subscribe:a") == OK
        status, page = health(one)
        assert (status, page["status"], page["connections"]) == (503, "degraded", 1)
        # Anyone may read it: why, and where Redis is, is for the log.
        assert page["channels"] == "away"
        assert not re.search(rf"127\.0\.0\.1|{redis_server.port}|connect(?!ions\b)", json.dumps(page))
        redis_server.start()
        for program in (one, two):
            program.wait_for("channels: the Redis at .* is there again, after ")
        assert ask(ann, "publish:a:back") == OK
        assert [client.recv(timeout=PATIENCE) for client in (ann, bob)] == [b"back"] * 2
        assert ask(ann, "subscribe:b") == OK
        assert health(one)[0] == 200
    for program in (one, two):
        assert program.output.count(" is away: ") == 1
        assert program.end() == 0


def test_what_redis_repeats_of_a_password_is_not_in_the_log(run, tmp_path):
    redis_server = RedisServer(tmp_path / "redis", "--rename-command", "AUTH", "")
    try:
        options = ["--host", "127.0.0.1", "--port", 0, "--tls-port", "none"]
        url = redis_server.url.replace("//", f"//:sesame{'x' * 200}@")
        program = run(RELAY / "relay.py", *options, "--backplane", url)
        program.wait_for("channels: the Redis at .* is away: unknown command 'AUTH'")
        assert program.end() == 0
        assert "sesame" not in program.output
    finally:
        redis_server.kill()


class Publisher(threading.Thread):
    """Publishes numbers one by one, until it is told to stop; notes what it was told of each."""

    def __init__(self, url, name):
        super().__init__()
        self.url, self.name_ = url, name
        self.told = {}
        self.stop = threading.Event()
        self.failed = None

    def run(self):
        try:
            with websockets_client(self.url) as client:
                number = 0
                while not self.stop.is_set():
                    body = f"{self.name_}-{number}"
                    self.told[body] = ask(client, f"publish:a:{body}")
                    number += 1
                    if self.told[body] != OK:
                        time.sleep(0.01)  # a pace, not a wait
        except Exception as error:
            self.failed = error


class Subscriber(threading.Thread):
    def __init__(self, url):
        super().__init__()
        self.client = websockets_client(url).__enter__()
        assert ask(self.client, "subscribe:a") == OK
        self.received = []

    def run(self):
        try:
            while True:
                self.received.append(self.client.recv().decode())
        except ConnectionClosed:
            pass  # the test has ended it


@pytest.fixture
def traffic(relays):
    """Two relays, two publishers and two subscribers on each, at work; `finish` checks what came of it."""
    programs = relays()
    subscribers = [Subscriber(program.url()) for program in programs for _ in range(2)]
    publishers = [Publisher(p.url(), f"p{i}{j}") for i, p in enumerate(programs) for j in range(2)]
    for thread in subscribers + publishers:
        thread.start()

    def acknowledged():
        return sum(told == OK for publisher in publishers for told in list(publisher.told.values()))

    def more(number=200):
        """Wait until so many more publishes were acknowledged."""
        goal = acknowledged() + number
        wait_until(lambda: acknowledged() >= goal)

    def finish():
        for publisher in publishers:
            publisher.stop.set()
        for publisher in publishers:
            publisher.join(PATIENCE)
            assert publisher.failed is None, publisher.failed
        with websockets_client(programs[0].url()) as last:
            assert ask(last, "publish:a:last") == OK
        for subscriber in subscribers:
            wait_until(lambda subscriber=subscriber: "last" in subscriber.received)
            subscriber.client.close()
            subscriber.join(PATIENCE)
        told = {body: answer for publisher in publishers for body, answer in publisher.told.items()}
        orders = [subscriber.received for subscriber in subscribers]
        assert orders == [orders[0]] * len(orders)
        received = collections.Counter(orders[0])
        assert set(received.values()) == {1}, "something was doubled"
        assert {body for body, answer in told.items() if answer == OK} <= set(received), "something was lost"
        refused = {body for body, answer in told.items() if answer.startswith(b"Error: not published")}
        assert not refused & set(received)
        assert set(told.values()) <= {OK, f"Error: not published: {AWAY}".encode()}
        return told

    yield more, finish
    for publisher in publishers:
        publisher.stop.set()
    for subscriber in subscribers:
        subscriber.client.close()
    for thread in subscribers + publishers:
        thread.join(PATIENCE)


@pytest.mark.long
def test_nothing_acknowledged_is_lost_or_doubled_when_redis_is_killed_and_restarted(traffic, redis_server):
    more, finish = traffic
    for _ in range(3):
        more()
        redis_server.kill()
        redis_server.start()
    more()
    told = finish()
    assert len(told) > 800


@pytest.mark.long
def test_nothing_is_lost_or_doubled_when_connections_to_redis_are_cut(traffic, redis_server):
    more, finish = traffic
    for _ in range(10):
        more(50)
        redis_server.cli("client", "kill", "type", "normal")
    more()
    finish()
    assert int(redis_server.client().info("clients")["connected_clients"]) <= 6


# -- bounds, and what is left behind ---------------------------------------------------------------------------------


@pytest.fixture
def joined(serve, redis_server):
    """A factory of relays in this process that share one backplane."""

    def start():
        node = Node()
        server = serve(node)
        node.open(server.context, redis_server.url)
        wait_until(lambda: node.channels.Status().up)
        return server, node

    return start


def answer(client, message):
    client.send_binary(message)
    return client.read_frame()[1]


def test_a_subscription_waits_for_redis_to_come_back(joined, redis_server):
    server, node = joined()
    client = server.client()
    redis_server.kill()
    wait_until(lambda: not node.channels.Status().up)
    for message in (b"subscribe:a", b"?", b"publish:a:x"):
        client.send_binary(message)
    wait_until(lambda: len(node.turns.get(1, ())) == 3)
    redis_server.start()
    assert [client.read_frame()[1] for _ in range(4)] == [OK, b"Invalid message", OK, b"x"]


def test_that_redis_is_there_is_found_out_though_it_came_late(joined, redis_server):
    server, node = joined()
    redis_server.kill()
    wait_until(lambda: node.channels.Publish("a", b"") is not None)  # it is refused at once
    told = []
    node.when_there(server.context, lambda: told.append("there"))
    assert not told
    redis_server.start()
    wait_until(lambda: told == ["there"])


def test_a_client_with_too_many_commands_under_way_is_closed(joined, redis_server, monkeypatch):
    monkeypatch.setattr("node.MAX_TURNS", 50)
    server, node = joined()
    client, other = server.client(), server.client()
    redis_server.freeze()
    other.send_binary(b"publish:a:is not concerned")
    for i in range(60):
        client.send_binary(b"publish:a:%d" % i)
    assert client.read_close() == (1013, "too many commands at once")
    client.close()
    redis_server.thaw()
    assert other.read_frame()[1] == OK
    wait_until(lambda: 1 not in node.turns and not node.channels.Status().in_flight)


def test_what_redis_refuses_is_an_error_for_the_publisher(joined, redis_server, caplog):
    server, _ = joined()
    client = server.client()
    redis_server.cli("set", "{relay:string}:meta", "taken")
    for _ in range(2):
        assert answer(client, b"publish:string:x") == f"Error: not published: {REFUSED}".encode()
        assert answer(client, b"subscribe:string") == f"Error: not subscribed: {REFUSED}".encode()
    assert "WRONGTYPE" in caplog.text
    assert answer(client, b"publish:a:x") == OK
    redis_server.cli("config", "set", "maxmemory", "1")
    assert answer(client, b"publish:a:x") == f"Error: not published: {REFUSED}".encode()
    redis_server.cli("config", "set", "maxmemory", "0")
    assert answer(client, b"publish:a:x") == OK


def test_subscribers_of_what_redis_has_forgotten_are_closed_and_others_are_not(joined, redis_server):
    server, _ = joined()
    subscriber, publisher = server.client(), server.client()
    assert answer(subscriber, b"subscribe:a") == OK
    assert answer(publisher, b"subscribe:b") == OK
    assert answer(publisher, b"publish:a:0") == OK
    assert subscriber.read_frame()[1] == b"0"
    redis_server.cli("flushall")
    redis_server.cli("script", "flush")
    assert answer(publisher, b"publish:a:1") == OK
    assert subscriber.read_close() == (4001, "messages were lost: subscribe again")
    again = server.client()
    assert answer(again, b"subscribe:a") == OK
    assert answer(publisher, b"publish:a:2") == OK
    assert again.read_frame()[1] == b"2"


def test_subscriptions_leave_nothing_behind(joined):
    server, node = joined()
    clients = [server.client() for _ in range(5)]
    for client in clients:
        for i in range(20):
            assert answer(client, b"subscribe:%d" % i) == OK
    assert node.channels.Status().channels == 20
    for client in clients[:3]:
        assert answer(client, b"unsubscribe-all") == OK
    for client in clients[3:]:
        client.send_binary(b"subscribe:late")  # and gone before that is answered
        client.close()
    wait_until(lambda: server.context.Stats().connections == 3 and not node.channels.Status().channels)
    assert [node.ids_of, node.channels_of, node.turns] == [{}, {}, {}]


def test_a_stopping_relay_answers_what_is_under_way(relays):
    (program,) = relays(1)
    with websockets_client(program.url()) as client:
        for i in range(500):
            client.send(f"publish:a:{i}")
        assert client.recv(timeout=PATIENCE) == OK
        program.process.send_signal(signal.SIGTERM)
        answers = list(client)
        assert client.close_code == 1001
        stopping = b"Error: not published: the relay is stopping"
        assert answers == [OK] * answers.count(OK) + [stopping] * answers.count(stopping)
    assert program.process.wait(PATIENCE) == 0


def test_a_stopping_relay_does_not_wait_for_ever_for_the_answer_to_a_publish(relays, redis_server):
    (program,) = relays(1, "-v")
    with websockets_client(program.url(), subprotocols=["relay.v2"]) as client:
        redis_server.freeze()
        client.send(json.dumps({"do": "publish", "id": 1, "channel": "a"}) + "\nlate")
        program.wait_for("sent message .*late")
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        assert list(client) == []
        assert client.close_code == 1001
        assert time.monotonic() - began >= 2
    redis_server.thaw()
    assert program.process.wait(PATIENCE) == 0

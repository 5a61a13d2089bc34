"""Several relay processes joined by a real Redis, which is cut off, killed and restarted while they publish."""

from __future__ import annotations

import collections
import contextlib
import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request

import gevent
import gevent.socket
import pytest
import redis_backplane
from backplane import AWAY, REFUSED, TOO_MANY, UNKNOWN
from conftest import PATIENCE, RELAY, wait_until
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
            program.wait_for("The backplane .* is there")
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


def test_only_channels_with_subscribers_are_read(relays, redis_server):
    (program,) = relays(1)
    with websockets_client(program.url()) as client, redis_server.client() as watching:
        assert ask(client, "subscribe:read") == OK
        assert ask(client, "subscribe:left") == OK
        assert ask(client, "unsubscribe:left") == OK
        assert ask(client, "publish:unread:x") == OK

        def commands():
            with watching.monitor() as monitor:
                for command in monitor.listen():
                    if command["command"].startswith("XREAD"):
                        yield command["command"]

        reads = commands()
        next(reads)
        after = next(reads)
        assert "channel:read" in after
        assert "channel:left" not in after
        assert "channel:unread" not in after


def test_streams_are_bounded_in_length_and_time(relays, redis_server):
    (program,) = relays(1, "--backplane-length", 100)
    with websockets_client(program.url()) as client, redis_server.client() as looking:
        for i in range(1000):
            client.send(f"publish:a:{i}")
        assert [client.recv(timeout=PATIENCE) for _ in range(1000)] == [OK] * 1000
        assert ask(client, "subscribe:a") == OK
        # Redis trims whole nodes of 100 entries.
        assert 100 <= looking.xlen("gowsev:relay:channel:a") <= 300
        keys = looking.keys("*")
        assert {key.split(b":")[2] for key in keys} == {b"channel", b"session", b"wake"}
        assert all(0 < looking.ttl(key) <= redis_backplane.EXPIRY for key in keys)


# -- Redis goes away -------------------------------------------------------------------------------------------------


def test_while_redis_is_away_publishes_are_refused_and_subscribers_stay(relays, redis_server):
    one, two = relays()
    with websockets_client(one.url()) as ann, websockets_client(two.url()) as bob:
        for client in (ann, bob):
            assert ask(client, "subscribe:a") == OK
        status, page = health(one)
        assert (status, page["status"], page["backplane"]) == (200, "ok", "up")
        redis_server.kill()
        for program in (one, two):
            program.wait_for("The backplane .* is away: ")
        for _ in range(3):
            assert ask(ann, "publish:a:lost") == f"Error: not published: {AWAY}".encode()
            assert ask(ann, "subscribe:b") == f"Error: not subscribed: {AWAY}".encode()
        assert ask(ann, "subscribe:a") == OK
        status, page = health(one)
        assert (status, page["status"], page["connections"]) == (503, "degraded", 1)
        # Anyone may read it: why, and where Redis is, is for the log.
        assert page["backplane"] == "away"
        assert not re.search(rf"127\.0\.0\.1|{redis_server.port}|connect(?!ions\b)", json.dumps(page))
        redis_server.start()
        for program in (one, two):
            wait_until(lambda program=program: program.output.count(" is there, after ") == 2)
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
        program.wait_for("The backplane .* is away: unknown command 'AUTH'$")
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


def test_nothing_acknowledged_is_lost_or_doubled_when_redis_is_killed_and_restarted(traffic, redis_server):
    more, finish = traffic
    for _ in range(3):
        more()
        redis_server.kill()
        redis_server.start()
    more()
    told = finish()
    assert len(told) > 800


def test_nothing_is_lost_or_doubled_when_connections_to_redis_are_cut(traffic, redis_server):
    more, finish = traffic
    for _ in range(10):
        more(50)
        redis_server.cli("client", "kill", "type", "normal")
    more()
    finish()
    assert int(redis_server.client().info("clients")["connected_clients"]) <= 6


# -- a connection that is cut in the worst moment --------------------------------------------------------------------


class Wire:
    """A connection to Redis that a test can cut: before the next request arrives, or before its answer does."""

    def __init__(self, port):
        self._port = port
        self._listener = gevent.socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._pairs = []
        self.down = False
        self.swallow_answer = False
        self.swallowed = 0
        self._greenlets = [gevent.spawn(self._accept)]

    def _accept(self):
        while True:
            near, _ = self._listener.accept()
            if self.down:
                near.close()
                continue
            far = gevent.socket.create_connection(("127.0.0.1", self._port))
            pair = {"near": near, "far": far, "script": False}
            self._pairs.append(pair)
            self._greenlets += [gevent.spawn(self._requests, pair), gevent.spawn(self._answers, pair)]

    def _requests(self, pair):
        self._copy(pair, "near", "far")

    def _answers(self, pair):
        self._copy(pair, "far", "near")

    def _copy(self, pair, source, target):
        try:
            while data := pair[source].recv(1 << 16):
                if source == "near" and b"EVALSHA" in data:
                    pair["script"] = True
                elif source == "far" and pair["script"]:
                    pair["script"] = False
                    if self.swallow_answer and not data.startswith(b"-NOSCRIPT"):
                        self.swallow_answer = False
                        self.swallowed += 1
                        return
                pair[target].sendall(data)
        except OSError:  # the other direction has ended
            pass
        finally:
            pair["near"].close()
            pair["far"].close()

    def cut(self):
        """End all connections, and let no new ones through."""
        self.down = True
        for pair in self._pairs:
            for side in ("near", "far"):
                with contextlib.suppress(OSError):  # it has ended already
                    pair[side].shutdown(gevent.socket.SHUT_RDWR)

    def close(self):
        self.cut()
        gevent.killall(self._greenlets)
        for pair in self._pairs:
            pair["near"].close()
            pair["far"].close()
        self._listener.close()


@pytest.fixture
def joined(serve, redis_server):
    """A factory of relays in this process, with a backplane of their own each, through a wire."""
    opened = []

    def start(**settings):
        wire = Wire(redis_server.port)
        node = Node()
        server = serve(node)
        node.backplane = redis_backplane.RedisBackplane(wire.url, node.publish, **settings)
        node.backplane.start(server.context)
        opened.append((wire, node.backplane, server))
        wait_until(lambda: not node.backplane.away)
        return server, node, wire

    yield start
    for wire, backplane, server in opened:
        wire.close()
        for client in server.clients:
            client.close()
        server.context.Shutdown(5)
        server.loop.join(PATIENCE)
        gevent.get_hub().threadpool.apply(backplane.close)


def answer(client, message):
    client.send_binary(message)
    return client.read_frame()[1]


@pytest.mark.parametrize("messages", [[b"publish:a:once"] * 3, [b"subscribe:b", b"subscribe:c", b"subscribe:a"]])
def test_an_answer_of_redis_that_is_lost_is_asked_for_again_and_nothing_is_done_twice(joined, redis_server, messages):
    server, node, wire = joined()
    other, _, _ = joined()
    client, witness = server.client(), other.client()
    assert answer(witness, b"subscribe:a") == OK
    for message in messages:
        wire.swallow_answer = True
        assert answer(client, message) == OK
        wait_until(lambda: not node.backplane.pending)
    assert wire.swallowed == 3
    assert answer(client, b"publish:a:last") == OK
    expected = [b"once"] * messages.count(b"publish:a:once") + [b"last"]
    assert [witness.read_frame()[1] for _ in expected] == expected
    if b"subscribe:a" in messages:
        assert client.read_frame()[1] == b"last"


def test_a_subscription_holds_from_its_ok_on_even_if_redis_goes_away_right_then(joined, redis_server):
    server, node, wire = joined()
    other, _, _ = joined()
    subscriber, publisher = server.client(), other.client()
    assert answer(subscriber, b"subscribe:a") == OK
    wire.cut()
    wait_until(lambda: node.backplane.away)
    for i in range(50):
        assert answer(publisher, b"publish:a:%d" % i) == OK
    wire.down = False
    assert [subscriber.read_frame()[1] for _ in range(50)] == [b"%d" % i for i in range(50)]


def test_when_redis_stays_away_too_long_the_publisher_is_told_that_nobody_knows(joined, redis_server, monkeypatch):
    monkeypatch.setattr(redis_backplane, "PATIENCE", 0.2)
    server, node, _ = joined()
    client = server.client()
    assert answer(client, b"publish:a:before") == OK
    redis_server.freeze()
    for message in (b"publish:a:under way", b"?", b"publish:a:waits"):
        client.send_binary(message)
    assert client.read_frame()[1] == f"Error: perhaps not published: {UNKNOWN}".encode()
    assert client.read_frame()[1] == b"Invalid message"
    # It was refused, or was on its way too, depending on when the first was given up.
    assert re.match(b"Error: (perhaps )?not published: ", client.read_frame()[1])
    redis_server.thaw()
    wait_until(lambda: not node.backplane.away)
    assert answer(client, b"publish:a:after") == OK


# -- falling behind, and bounds --------------------------------------------------------------------------------------


def test_falling_behind_further_than_the_stream_reaches_is_said_and_counted(joined, redis_server, caplog):
    server, node, wire = joined(max_length=100)
    client = server.client()
    assert answer(client, b"subscribe:a") == OK
    assert answer(client, b"publish:a:0") == OK
    assert client.read_frame()[1] == b"0"
    wire.cut()
    wait_until(lambda: node.backplane.away)
    with redis_server.client() as looking:
        for i in range(1, 1001):
            looking.xadd("gowsev:relay:channel:a", {"b": str(i)}, maxlen=100, approximate=False)
    wire.down = False
    assert [client.read_frame()[1] for _ in range(100)] == [b"%d" % i for i in range(901, 1001)]
    wait_until(lambda: node.backplane.lost)
    assert node.backplane.lost == 900
    assert "Lost 900 messages of channel b'a'" in caplog.text


def test_a_reader_ahead_of_the_loop_pauses_and_loses_nothing(joined, monkeypatch):
    monkeypatch.setattr(redis_backplane, "AHEAD_BYTES", 10_000)
    server, node, _ = joined()
    client = server.client()
    assert answer(client, b"subscribe:a") == OK
    most = 0
    deliver = node.backplane._arrived

    def slowly(context, channel, body):
        nonlocal most
        most = max(most, node.backplane._ahead)
        gevent.sleep(0.001)
        deliver(context, channel, body)

    node.backplane._arrived = slowly
    publisher = server.client()
    for i in range(300):
        publisher.send_binary(b"publish:a:%06d" % i + b"x" * 1000)
    bodies = [client.read_frame()[1][:6] for _ in range(300)]
    assert bodies == [b"%06d" % i for i in range(300)]
    assert [publisher.read_frame()[1] for _ in range(300)] == [OK] * 300
    # The limit, and what one answer of Redis holds.
    assert most <= 10_000 + 256 * 1206


def test_too_many_publishes_at_once_are_refused(joined, redis_server, monkeypatch):
    monkeypatch.setattr(redis_backplane, "MAX_WAITING", 10)
    server, node, _ = joined()
    client = server.client()
    redis_server.freeze()
    for i in range(30):
        client.send_binary(b"publish:a:%d" % i)
    wait_until(lambda: node.counters.errors == 0 and len(node._turns.get(1, ())) == 30)
    assert node.backplane.pending == 10
    redis_server.thaw()
    answers = [client.read_frame()[1] for _ in range(30)]
    assert answers == [OK] * 10 + [f"Error: not published: {TOO_MANY}".encode()] * 20
    assert node.backplane.pending == 0


def test_a_client_with_too_many_commands_under_way_is_closed(joined, redis_server, monkeypatch):
    monkeypatch.setattr("node.MAX_TURNS", 50)
    server, node, _ = joined()
    client = server.client()
    redis_server.freeze()
    for i in range(60):
        client.send_binary(b"publish:a:%d" % i)
    assert client.read_close() == (1013, "too many commands at once")
    client.close()
    redis_server.thaw()
    wait_until(lambda: not node._turns and not node.backplane.pending)


def test_what_redis_refuses_is_an_error_for_the_publisher_and_said_once(joined, redis_server, caplog):
    server, _, _ = joined()
    client = server.client()
    redis_server.cli("set", "gowsev:relay:channel:string", "taken")
    for _ in range(2):
        assert answer(client, b"publish:string:x") == f"Error: not published: {REFUSED}".encode()
        assert answer(client, b"subscribe:string") == f"Error: not subscribed: {REFUSED}".encode()
    assert caplog.text.count("WRONGTYPE") == 1
    assert answer(client, b"publish:a:x") == OK
    redis_server.cli("config", "set", "maxmemory", "1")
    assert answer(client, b"publish:a:x") == f"Error: not published: {REFUSED}".encode()
    redis_server.cli("config", "set", "maxmemory", "0")
    assert answer(client, b"publish:a:x") == OK


def test_redis_that_has_forgotten_everything_is_used_as_it_is(joined, redis_server):
    server, _, _ = joined()
    client = server.client()
    assert answer(client, b"subscribe:a") == OK
    for i in range(3):
        assert answer(client, b"publish:a:%d" % i) == OK
        assert client.read_frame()[1] == b"%d" % i
        redis_server.cli("flushall")
        redis_server.cli("script", "flush")


def test_subscriptions_leave_nothing_behind(joined):
    server, node, _ = joined()
    clients = [server.client() for _ in range(5)]
    for client in clients:
        for i in range(20):
            assert answer(client, b"subscribe:%d" % i) == OK
    assert len(node.backplane._followed) == 20
    for client in clients[:3]:
        assert answer(client, b"unsubscribe-all") == OK
    for client in clients[3:]:
        client.send_binary(b"subscribe:late")  # and gone before that is answered
        client.close()
    wait_until(lambda: not node._turns and server.context.Stats().connections == 3)
    wait_until(lambda: not node.backplane.pending)
    backplane = node.backplane
    assert [backplane._followed, backplane._locating, backplane._held, node.ids_of] == [{}, {}, {}, {}]
    assert backplane._ahead == 0


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

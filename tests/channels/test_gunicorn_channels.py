"""Channels under gunicorn: four workers that are replaced while messages are published."""

from __future__ import annotations

import json
import re
import signal

import gevent
import pytest
from conftest import PATIENCE, in_thread, wait_until
from redis_server import needs_redis
from test_gunicorn import NO_CONTROL_SOCKET, RUN

from gowsev import ConnectionClosed, DialError
from gowsev.channels import Limits, Remote
from gowsev.testing import Client

pytestmark = needs_redis

APP = """
import json, os
import gevent, gowsev
from gowsev.channels import Channels, Gap, Limits


class News(gowsev.Handler):
    def TextReceived(self, context, id, text):
        def joined(context, subscription):
            context.WriteText(id, json.dumps(["joined", subscription.position, subscription.recovered, os.getpid()]))

        def stored(context, position, error):
            context.WriteText(id, json.dumps(["stored", position, str(error)]))

        command, argument = json.loads(text)
        if command == "join":
            channels.Subscribe(id, "news", argument, done=joined)
        else:
            channels.Publish("news", argument, stored, id=id)


def deliver(context, ids, publication):
    kind = "gap" if isinstance(publication, Gap) else "news"
    text = None if isinstance(publication, Gap) else publication.message
    context.Broadcast(ids, json.dumps([kind, publication.position, text]))


context = gowsev.MakeContext(News())
limits = Limits(history_messages=50_000, history_bytes=8 << 20)
channels = Channels(context, os.environ["REDIS_URL"], deliver=deliver, limits=limits)
gevent.spawn(context.EventLoop)
app = context.ServeHTTP
"""

#: Of the whole test, so that the history tells what there was.
LIMITS = Limits(history_messages=50_000, history_bytes=8 << 20)
#: Failed attempts to connect, after which a client says so: a worker that is replaced may cut some off.
ATTEMPTS = 200


class Subscriber:
    """A client that comes back with its position, for as long as it runs."""

    def __init__(self, port):
        self._url = f"ws://127.0.0.1:{port}/"
        self.messages = []
        self.gaps = []
        self.workers = []
        self.returns = 0
        self._position = None
        self.greenlet = gevent.spawn(self._run)

    def _run(self):
        for _ in range(ATTEMPTS):
            try:
                with Client(self._url) as client:
                    client.send(json.dumps(["join", self._position]))
                    self._follow(client)
            except (ConnectionClosed, DialError, OSError, AssertionError):
                self.returns += 1
        raise AssertionError("it came back too often")

    def _follow(self, client):
        while True:
            kind, position, *rest = json.loads(client.receive())
            if kind == "news":
                self.messages.append(rest[0])
            elif kind == "joined":
                assert rest[0] or self._position is None, "something was lost"
                self.workers.append(rest[1])
            else:
                self.gaps.append(position)
            self._position = position


class Publisher:
    """A client that publishes over its worker, one message after the other, and notes which were stored."""

    def __init__(self, port, name):
        self._url = f"ws://127.0.0.1:{port}/"
        self._name = name
        self.stored = []
        self.unknown = []
        self.greenlet = gevent.spawn(self._run)

    def _run(self):
        number = 0
        while True:
            text = None
            try:
                with Client(self._url) as client:
                    while True:
                        text = f"{self._name} {number}"
                        number += 1
                        client.send(json.dumps(["publish", text]))
                        _, position, _ = json.loads(client.receive())
                        (self.stored if position else self.unknown).append(text)
                        text = None
                        gevent.sleep(0.01)
            except (ConnectionClosed, DialError, OSError):
                if text is not None:  # it was on its way
                    self.unknown.append(text)


@pytest.fixture
def gunicorn(run, tmp_path, redis_server):
    """A factory of gunicorn servers with four workers; returns the program and its port."""
    programs = []

    def start(worker, *options):
        (tmp_path / "app.py").write_text(APP)
        (tmp_path / "run.py").write_text(RUN)
        program = run(
            "run.py", "-k", worker, "-w", 4, "-b", "127.0.0.1:0", "--graceful-timeout", 5, *NO_CONTROL_SOCKET, *options,
            "app:app", PYTHONWARNINGS="ignore", PYTHONPATH=str(tmp_path), REDIS_URL=redis_server.url,
        )  # fmt: skip
        programs.append(program)
        port = int(program.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
        wait_until(lambda: booted(program) >= 4)
        return program, port

    yield start
    for program in programs:
        program.process.terminate()
        program.process.wait(PATIENCE)


def visit(port, times):
    """Connect, so that the workers reach what they may answer."""
    for _ in range(times):
        Client(f"ws://127.0.0.1:{port}/").close()


def booted(program):
    return len(re.findall("Booting worker", program.output))


@pytest.mark.long
@pytest.mark.parametrize(
    ("worker", "options"),
    [
        ("gowsev.gunicorn.Worker", ["--max-requests", "12"]),
        ("gowsev.gunicorn.Worker", ["--preload"]),
        ("gevent", ["--preload", "--max-requests", "12"]),
    ],
)
def test_who_comes_back_with_its_position_misses_nothing(gunicorn, redis_server, worker, options):
    program, port = gunicorn(worker, *options)
    subscribers = [Subscriber(port) for _ in range(8)]
    publishers = [Publisher(port, f"publisher {number}") for number in range(2)]
    wait_until(lambda: all(subscriber.workers for subscriber in subscribers), PATIENCE * 2)
    expected = []
    with Remote(redis_server.url, limits=LIMITS) as remote:

        def publish(number):
            for _ in range(number):
                expected.append(f"remote {len(expected)}")
                in_thread(remote.Publish, "news", expected[-1])

        publish(20)
        begun = booted(program)
        visits = gevent.spawn(visit, port, 60)
        if "--max-requests" in options:
            wait_until(lambda: publish(5) or booted(program) > begun)
            begun = booted(program)
        program.process.send_signal(signal.SIGHUP)
        wait_until(lambda: publish(5) or booted(program) >= begun + 4)
        wait_until(lambda: any(subscriber.returns for subscriber in subscribers), PATIENCE * 2)  # the old ones end
        publish(20)
        visits.get(timeout=PATIENCE)
        for publisher in publishers:
            publisher.greenlet.kill()
        publish(1)
        wait_until(lambda: all(expected[-1] in subscriber.messages for subscriber in subscribers), PATIENCE * 2)
        history = [publication.message for publication in remote.History("news")]
    for subscriber in subscribers:
        assert not subscriber.greenlet.ready(), subscriber.greenlet.exception
        subscriber.greenlet.kill()
        assert subscriber.gaps == []
        assert len(set(subscriber.messages)) == len(subscriber.messages)
        # What came before it had first joined is not its own; from there on it has all, in the one order.
        assert subscriber.messages == history[history.index(subscriber.messages[0]) :]
        assert [text for text in subscriber.messages if text.startswith("remote")] == expected
    known = {text for publisher in publishers for text in publisher.stored}
    assert known <= set(history)
    assert sum(subscriber.returns for subscriber in subscribers) > 0, "some worker had none of them, but not all had"
    assert not re.search(r"Traceback|CRITICAL|ERROR", program.output), program.output

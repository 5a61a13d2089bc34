"""What a process says of itself: whether it is ready for new clients, and whether it is alive."""

from __future__ import annotations

import json
from datetime import timedelta

import gevent
import pytest
from conftest import PATIENCE, Recorder, echo, wait_until
from gevent.event import Event
from redis_server import free_port, needs_redis

import gowsev
from gowsev.channels import Channels, Limits

#: Seconds in which a loop that has nothing to do surely handles a call.
PROMPT = PATIENCE


def answer(health, path="/healthz", method="GET"):
    """Status and content of a page."""
    answers = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method}
    body = b"".join(health(environ, lambda status, headers: answers.append((status, dict(headers)))))
    ((status, headers),) = answers
    assert (headers["Content-Type"], headers["Cache-Control"]) == ("application/json", "no-store")
    assert int(headers["Content-Length"]) == len(body) or method == "HEAD"
    return int(status.split()[0]), json.loads(body) if body else None


class Stuck(gowsev.Handler):
    """Its loop stands still from `stop` until `go` is set."""

    def __init__(self):
        self.go = Event()

    def stop(self, _context):
        self.go.wait()


def test_a_process_that_serves_is_ready_and_alive(serve):
    server = serve(Recorder(echo))
    health = gowsev.Health(server.context, ready_within=PROMPT)
    client, refused = server.client(), server.client(handshake=False)
    refused.send(b"nonsense\r\n")
    assert refused.read_to_end().startswith(b"HTTP/1.1 400 ")
    client.send_binary(b"hello")
    assert client.read_frame()[1] == b"hello"
    status, found = answer(health)
    assert found.pop("uptime_seconds") >= 0
    assert (status, found) == (
        200,
        {
            "status": "ok",
            "alive": True,
            "ready": True,
            "loop": "turns",
            "connections": 1,
            "refused": 1,
            "version": gowsev.__version__,
        },
    )
    assert answer(health, "/healthz/alive")[0] == 200
    assert answer(health, method="HEAD") == (200, None)


def test_a_loop_that_stands_still_is_not_ready_and_after_a_while_not_alive(serve):
    handler = Stuck()
    server = serve(handler)
    health = gowsev.Health(server.context, ready_within=0.05, alive_within=timedelta(seconds=PATIENCE))
    hopeless = gowsev.Health(server.context, ready_within=0.05, alive_within=0.1)
    server.context.Post(handler.stop)
    status, found = answer(health)
    assert (status, found["status"], found["loop"]) == (503, "degraded", "busy")
    assert answer(health, "/healthz/alive")[0] == 200
    wait_until(lambda: answer(hopeless, "/healthz/alive")[0] == 503)
    handler.go.set()
    for one in (health, hopeless):
        wait_until(lambda one=one: answer(one)[0] == 200)
        assert answer(one, "/healthz/alive")[1]["alive"]


def test_requests_that_find_the_loop_busy_give_it_one_call(serve):
    handler = Stuck()
    server = serve(handler)
    health = gowsev.Health(server.context, ready_within=0)
    server.context.Post(handler.stop)
    gevent.sleep(0)
    before = server.context.Stats().queued_events
    for _ in range(10):
        health.look()
    assert server.context.Stats().queued_events <= before + 1
    handler.go.set()


def test_a_context_that_has_been_shut_down_is_not_ready(serve):
    server = serve()
    health = gowsev.Health(server.context, ready_within=PROMPT)

    def ended():
        try:
            server.context.Post(lambda _context: None)
        except RuntimeError:
            return True
        return False

    server.context.Shutdown()
    wait_until(ended)
    assert answer(health)[0] == 503


def test_a_program_adds_what_it_knows(serve):
    own = {"color": "blue", "refused": 7}
    health = gowsev.Health(serve().context, own=lambda: own, ready_within=PROMPT)
    status, found = answer(health)
    assert (status, found["color"], found["refused"], found["ready"]) == (200, "blue", 7, True)
    own["ready"] = False
    status, found = answer(health)
    assert (status, found["status"], found["alive"]) == (503, "degraded", True)


def test_a_program_cannot_say_that_a_busy_process_is_ready(serve):
    handler = Stuck()
    server = serve(handler)
    health = gowsev.Health(server.context, own=lambda: {"ready": True}, ready_within=0.05)
    server.context.Post(handler.stop)
    assert answer(health)[0] == 503
    handler.go.set()


def test_channels_that_lag_ask_for_no_clients(serve):
    server = serve()
    channels = Channels(server.context, limits=Limits(name_bytes=1))
    status, found = answer(gowsev.Health(server.context, channels, ready_within=PROMPT))
    assert (status, found["channels"], found["lag"], found["gaps"]) == (200, "up", 0, 0)
    status, found = answer(gowsev.Health(server.context, channels, ready_within=PROMPT, most_lag=0))
    assert (status, found["channels"], found["ready"]) == (503, "up", False)


@needs_redis
def test_channels_connect_before_the_first_client_and_while_they_are_away_nobody_shall_come(serve, redis_server):
    server = serve()
    health = gowsev.Health(server.context, Channels(server.context, redis_server.url), ready_within=PROMPT)
    wait_until(lambda: answer(health)[0] == 200)
    redis_server.kill()
    wait_until(lambda: answer(health)[0] == 503)
    status, found = answer(health, "/healthz/alive")
    assert (status, found["channels"], found["ready"]) == (200, "away", False)
    assert str(redis_server.port) not in json.dumps(found)
    redis_server.start()
    wait_until(lambda: answer(health)[0] == 200)


def test_channels_that_were_never_there_are_away(serve):
    server = serve()
    channels = Channels(server.context, f"redis://127.0.0.1:{free_port()}/0")
    assert answer(gowsev.Health(server.context, channels, ready_within=PROMPT))[0] == 503


@pytest.mark.parametrize(
    "wrong", [{"own": 1}, {"ready_within": None}, {"ready_within": -1}, {"alive_within": "soon"}, {"most_lag": 0.5}]
)
def test_arguments_are_checked(serve, wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        gowsev.Health(serve().context, **wrong)

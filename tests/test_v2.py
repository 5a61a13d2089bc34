"""The subprotocol relay.v2: one WebSocket for many channels, and nothing missed over a reconnect."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st
from node import LIMITS, Node
from raw import RawClient
from redis_server import needs_redis
from v2 import MOST_HEAD, SUBPROTOCOL, Invalid, frame_of, read

from gowsev.channels import Publication


class Client(RawClient):
    """A client that speaks it."""

    def ask(self, do, channel=None, body=None, **more):
        head = json.dumps({"do": do, "channel": channel, **more})
        if isinstance(body, bytes):
            self.send_binary(head.encode() + b"\n" + body)
        else:
            self.send_text(head if body is None else f"{head}\n{body}")

    def receive(self):
        """The next message: its head, with the body in it where there is one."""
        opcode, payload = self.read_frame()
        head, line_feed, body = payload.partition(b"\n")
        fields = json.loads(head)
        return fields | {"body": body.decode() if opcode == 1 else body} if line_feed else fields

    def told(self, do, channel=None, body=None, **more):
        self.ask(do, channel, body, **more)
        return self.receive()


@pytest.fixture
def relay(serve):
    """A factory of relays in this process; `relay.client()` speaks the subprotocol."""

    def start(url=None, limits=LIMITS, **options):
        server = serve(Node(limits), subprotocols=(SUBPROTOCOL, "relay"), **options)
        server.handler.open(server.context, url)

        def client():
            made = Client(server.host, server.port, headers=[("Sec-WebSocket-Protocol", SUBPROTOCOL)])
            server.clients.append(made)
            return made

        server.speaking = client
        return server

    return start


def test_one_socket_carries_any_number_of_channels(relay):
    server = relay()
    client, old = server.speaking(), server.client()
    for number, channel in enumerate(["news", "zürich tram", "a:b", "\udcff"]):
        answer = client.told("subscribe", channel, id=number)
        position = answer.pop("position")
        assert answer == {"re": number, "do": "subscribe", "channel": channel, "recovered": False}
        for body in ("text", b"\x00\xff\n", "", b""):
            client.ask("publish", channel, body, id=f"p{number}")
            received = sorted([client.receive(), client.receive()], key=lambda item: "re" in item)
            positions = {item.pop("position") for item in received}
            assert len(positions) == 1
            assert positions != {position}
            arrival, answer = received
            assert arrival == {"channel": channel, "body": body}
            assert answer == {"re": f"p{number}", "do": "publish", "channel": channel}
    # It meets those who speak the four commands.
    old.send_binary(b"publish:\xff:\xfe")
    assert old.read_frame()[1] == b"OK"
    assert client.receive()["body"] == b"\xfe"
    old.send_binary(b"subscribe:news")
    assert old.read_frame()[1] == b"OK"
    client.ask("publish", "news", "for both", id=1)
    assert old.read_frame() == (2, b"for both")


def test_what_was_missed_comes_before_the_answer(relay):
    server = relay()
    client, other = server.speaking(), server.speaking()
    after = client.told("subscribe", "news", id=1)["position"]
    client.send_close()
    for body in ("one", "two"):
        other.told("publish", "news", body, id=body)
    again = server.speaking()
    again.ask("subscribe", "news", id=2, after=after)
    assert [again.receive()["body"], again.receive()["body"]] == ["one", "two"]
    answer = again.receive()
    assert (answer["re"], answer["recovered"]) == (2, True)
    assert again.told("subscribe", "other", id=3, after="nonsense")["recovered"] is False


def test_unsubscribing(relay):
    server = relay()
    client, other = server.speaking(), server.speaking()
    for do in ("subscribe", "unsubscribe", "unsubscribe"):
        assert client.told(do, "news", id=do)["re"] == do
    other.told("publish", "news", "x", id=1)
    assert client.told("unsubscribe", "other", id="end")["re"] == "end"
    assert server.handler.channels_of == server.handler.ids_of == {}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("", "no JSON"),
        ("hello", "no JSON"),
        (b"\xff{}", "no JSON"),
        ("[" * 10_000, "no JSON"),
        ('{"id": ' + "9" * 10_000 + "}", "no JSON"),
        ('"x" ' + " " * MOST_HEAD, "at most"),
        ("[]", "no object"),
        ('{"do": "shout", "channel": "a"}', "one of"),
        ('{"do": ["publish"], "channel": "a"}', "one of"),
        ('{"do": "publish", "channel": ""}', "not empty"),
        ('{"do": "publish"}', "a string"),
        ('{"do": "publish", "channel": 1}', "a string"),
        ('{"do": "publish", "channel": "\\ud800"}', "half"),
        ('{"do": "publish", "channel": "a", "id": []}', "id is"),
        ('{"do": "subscribe", "channel": "a", "after": 1}', "after is"),
    ],
)
def test_what_is_no_command_is_said_and_changes_nothing(relay, message, said):
    server = relay()
    client = server.speaking()
    if isinstance(message, str):
        client.send_text(message)
    else:
        client.send_binary(message)
    answer = client.receive()
    assert answer["re"] is None
    assert said in answer["error"]
    assert client.told("publish", "a", "x", id=1)["re"] == 1


@given(st.binary() | st.text())
def test_anything_is_a_command_or_invalid(message):
    try:
        read(message)
    except Invalid:
        pass


@given(st.text(min_size=1), st.text() | st.binary())
def test_bodies_and_names_pass_unharmed(channel, body):
    frame = frame_of(Publication(channel, body, "p"))
    line_feed = "\n" if isinstance(frame, str) else b"\n"
    head, _, rest = frame.partition(line_feed)
    assert json.loads(head) == {"channel": channel, "position": "p"}
    assert rest == body


def test_limits_are_told_in_the_answer(relay):
    server = relay(limits=dataclasses.replace(LIMITS, channels=1, name_bytes=5))
    client = server.speaking()
    assert "error" not in client.told("subscribe", "a", id=1)
    assert client.told("subscribe", "b", id=2) == {
        "re": 2, "do": "subscribe", "channel": "b", "certain": True,
        "error": "not subscribed: at most 1 channels for each client",
    }  # fmt: skip
    assert client.told("publish", "ü" * 3, "x", id=3)["error"].endswith("a channel's name has at most 5 bytes")
    server.handler.stopping = True
    assert client.told("publish", "a", "x", id=4)["error"] == "not published: the relay is stopping"


@needs_redis
def test_a_gap_is_told_in_band(relay, redis_server):
    server = relay(redis_server.url)
    client, other = server.speaking(), server.speaking()
    assert client.told("subscribe", "news", id=1)["re"] == 1
    other.told("publish", "news", "before", id=1)
    assert client.receive()["body"] == "before"
    redis_server.cli("flushall")
    position = other.told("publish", "news", "behind", id=2)["position"]
    gap = client.receive()
    assert (gap["channel"], gap["gap"], gap["missed"]) == ("news", True, None)
    assert client.receive() == {"channel": "news", "position": position, "body": "behind"}


@needs_redis
def test_a_subscription_does_not_wait_for_a_redis_that_has_been_away_for_a_while(relay, redis_server, monkeypatch):
    monkeypatch.setattr("node.AWAY_AFTER", 0.2)
    server = relay(redis_server.url)
    client, status = server.speaking(), server.handler.channels.Status
    assert client.told("subscribe", "a", id=1)["re"] == 1
    redis_server.kill()
    wait_until(lambda: not status().up and time.time() - status().since > 0.2)
    asked = time.monotonic()
    answer = client.told("subscribe", "b", id=2)
    assert (answer["error"], answer["certain"]) == ("not subscribed: the backplane is away", True)
    assert time.monotonic() - asked < 10  # and not the 15 s for which channels would wait
    assert "error" not in client.told("subscribe", "a", id=3)  # which it has
    redis_server.start()
    wait_until(lambda: status().up)
    assert "error" not in client.told("subscribe", "b", id=4)


@needs_redis
def test_a_subscription_that_is_given_up_while_it_waits_is_answered(relay, redis_server):
    server = relay(redis_server.url)
    client = server.speaking()
    assert client.told("subscribe", "a", id=1)["re"] == 1
    redis_server.freeze()
    client.ask("subscribe", "b", id=2)
    client.ask("publish", "b", "x", id=3)
    client.ask("unsubscribe", "b", id=4)
    assert client.receive()["error"] == "not subscribed: unsubscribed meanwhile"
    assert client.receive() == {"re": 4, "do": "unsubscribe", "channel": "b"}
    client.ask("subscribe", "c", id=5)
    client.close()
    wait_until(lambda: server.context.Stats().connections == 0)
    assert not server.handler.v2.waiting
    redis_server.thaw()
    wait_until(lambda: not server.handler.channels.Status().in_flight)
    assert server.handler.channels_of == {}

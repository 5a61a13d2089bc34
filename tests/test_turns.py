"""The relay in service answers in the order of its commands, and sends in memory what relay.py by itself would send."""

from __future__ import annotations

import itertools

import pytest
import relay
from conftest import Server
from hypothesis import given, settings
from hypothesis import strategies as st
from node import Node
from turns import Turn, Turns

COMMANDS = [b"subscribe:a", b"subscribe:b", b"unsubscribe:a", b"unsubscribe:b", b"unsubscribe-all", b"?", b"publish::x"]
PUBLISHES = [b"publish:a:", b"publish:b:", b"publish:a b:", b"publish:\xff:"]
SESSIONS = st.lists(st.sampled_from([*COMMANDS, *PUBLISHES]), max_size=30)


def session(server, messages):
    """What a client receives that sends these all at once."""
    client = server.client()
    for number, message in enumerate([*messages, b"unsubscribe-all", b"the end"]):
        client.send_binary(message + b"%d" % number if message in PUBLISHES else message)
    received = []
    while sum(received.count((2, answer)) for answer in (b"OK", b"Invalid message")) <= len(messages):
        received.append(client.read_frame())
    assert client.read_frame() == (2, b"Invalid message")
    client.close()
    return received


@settings(max_examples=30, deadline=None)
@given(messages=SESSIONS)
def test_in_service_a_client_gets_what_it_gets_of_the_go_example(messages):
    with Server(relay.Service()) as plain, Server(Node()) as server:
        server.handler.open(server.context)
        assert session(server, messages) == session(plain, messages)


# -- by hand: answers and messages in any order ------------------------------------------------------------------------


class Client:
    """One client's turns, with what it would be sent."""

    def __init__(self):
        self.turns = Turns()
        self.sent = []
        self.begun = []

    def ask(self, command, body=b""):
        self.turns.add(Turn(command, b"a", "a", body))
        self.go_on()

    def go_on(self):
        while True:
            while (turn := self.turns.begin()) is not None:
                self.begun.append(turn)
                self.turns.hold("a")
            if (turn := self.turns.take()) is None:
                return
            self.sent.append(turn.answer)
            held = self.turns.held["a"]
            self.sent += held.answered(turn.position)
            if not held.turns:
                del self.turns.held["a"]

    def stored(self, index, position):
        turn = self.begun[index]
        turn.answer = b"OK " + turn.body
        turn.position = position
        self.go_on()

    def arrived(self, position, body):
        held = self.turns.held.get("a")
        self.sent += [body] if held is None else held.arrived(position, body)


@pytest.mark.parametrize("order", list(itertools.permutations(["s0", "s1", "s2", "arrivals"])))
def test_its_ok_comes_before_its_own_message_and_all_are_sent_in_order(order):
    client = Client()
    for body in (b"0", b"1", b"2"):
        client.ask("publish", body)
    places = {b"0": "p1", b"1": "p3", b"2": "p4"}
    for step in order:
        if step == "arrivals":  # another's message stands between, and one behind
            for number, body in enumerate([b"0", b"other", b"1", b"2", b"last"], 1):
                client.arrived(f"p{number}", body)
        else:
            client.stored(int(step[1]), places[b"%d" % int(step[1])])
    answers = [item for item in client.sent if item.startswith(b"OK")]
    bodies = [item for item in client.sent if not item.startswith(b"OK")]
    assert answers == [b"OK 0", b"OK 1", b"OK 2"]
    assert bodies == [b"0", b"other", b"1", b"2", b"last"]
    for body in (b"0", b"1", b"2"):
        assert client.sent.index(b"OK " + body) < client.sent.index(body)
    assert not client.turns
    assert len(client.turns) == client.turns.bytes == 0


def test_a_client_that_never_pauses_gets_the_messages_of_others():
    client = Client()
    for number in range(50):
        client.ask("publish", b"%d" % number)
        client.arrived(f"o{number}", b"other %d" % number)
        client.arrived(f"m{number}", b"%d" % number)
        if number:  # one is always under way
            client.stored(number - 1, f"m{number - 1}")
    assert client.sent.count(b"other 48") == 1
    assert len(client.turns) <= 3


def test_publishes_run_beside_each_other_and_not_beside_subscriptions():
    client = Client()
    for command in ("subscribe", "subscribe", "publish", "publish", "unsubscribe", "publish"):
        client.ask(command)
    assert [turn.command for turn in client.begun] == ["subscribe"] * 2
    client.stored(1, None)
    assert client.sent == []
    client.stored(0, None)
    assert [turn.command for turn in client.begun] == ["subscribe"] * 2 + ["publish"] * 2
    for number in (2, 3):
        client.stored(number, f"p{number}")
    client.stored(4, None)
    assert [turn.command for turn in client.begun[4:]] == ["unsubscribe", "publish"]

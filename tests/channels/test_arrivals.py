"""What was on its way to a program when its subscriber left, and other meetings in the loop; driven step by step."""

from __future__ import annotations

import gevent
import pytest
from conftest import wait_until

from gowsev.channels import Channels, Limits
from gowsev.channels.arrivals import Arrivals
from gowsev.channels.backend import Joining
from gowsev.channels.errors import Refused
from gowsev.channels.in_flight import InFlight
from gowsev.channels.memory import Memory
from gowsev.channels.publication import Message, Position
from gowsev.channels.subscribers import Subscribers

START, PLACE = Position("e", 0, "e"), Position("e", 1, "i")
MESSAGE = Message(PLACE, "e", True, b"x")


@pytest.fixture
def server(idle):
    server = idle()
    server.context.SetTimeout(0)
    return server


@pytest.fixture
def drive(server):
    """Let the loop do all that there is."""

    def drive():
        server.context.Post(done.append)
        while not done:
            server.context.EventLoopIteration()
        done.clear()

    done = []
    return drive


@pytest.fixture
def delivered():
    return []


@pytest.fixture
def arrivals(server, delivered):
    subscribers = Subscribers()
    arrivals = Arrivals(
        server.context, lambda context, *words: delivered.append(words), Limits(), subscribers, InFlight(Limits())
    )
    arrivals.backend = Memory(arrivals, Limits())
    arrivals.subscribers = subscribers
    return arrivals


def joining(done=None):
    return Joining(1, "news", None, False, None, done)


def test_nobody_is_left(arrivals, drive, delivered):
    arrivals.arrived("news", MESSAGE)
    arrivals.lost("news", PLACE, 1)
    assert arrivals.undelivered == 1
    drive()
    assert arrivals.undelivered == 0
    assert not delivered


def test_one_that_waits_to_join_is_not_told_of_what_came_before(arrivals, drive, delivered):
    arrivals.subscribers.add(joining())
    arrivals.arrived("news", MESSAGE)
    arrivals.lost("news", PLACE, 1)
    drive()
    assert not delivered


def test_one_that_has_left_before_it_failed_is_not_told(arrivals, drive):
    answers = []
    one = joining(lambda context, answer: answers.append(answer))
    arrivals.subscribers.add(one)
    arrivals.backend.follow(one)
    arrivals.failed(one, Refused("no"))
    arrivals.remove(one)
    drive()
    assert not answers
    assert arrivals.refused == 1


def test_what_one_lacked_is_not_delivered_when_it_has_left(server, drive, delivered):
    client = server.client()
    while not server.handler.of("accepted"):
        server.context.SetTimeout(1)
        server.context.EventLoopIteration()
    server.context.SetTimeout(0)
    id = server.handler.of("accepted")[0][1]
    channels = Channels(server.context, deliver=lambda context, *words: delivered.append(words))
    positions = []
    channels.Publish("news", "0", lambda context, position, error: positions.append(position))
    channels.Publish("news", "1")
    drive()
    channels.Subscribe(id, "news", positions[0])
    channels.Unsubscribe(id, "news")
    drive()
    assert not delivered
    channels.Subscribe(id, "news", positions[0])
    channels.Subscribe(id, "news")
    drive()
    assert [publication.message for _, publication in delivered] == ["1"]
    client.close()


def test_what_arrives_is_delivered_though_greenlets_keep_each_other_busy(serve):
    """As the two of a connection to Redis can, for as long as Redis is quick: the hub then looks at no socket."""
    channels = Channels(serve().context)
    stored = []

    def publish():
        channels.Publish("news", "x", lambda context, *answer: stored.append(answer))

    publish()
    wait_until(lambda: stored)  # now the loop waits for more
    publish()
    for _ in range(5):
        gevent.sleep(0)  # lets the others have their turn, and is another that keeps the hub busy
    assert len(stored) == 2


def test_what_was_posted_before_comes_before(server, drive):
    channels = Channels(server.context)
    order = []
    server.context.Post(lambda context: order.append("posted"))
    channels.Publish("news", "x", lambda context, *answer: order.append("stored"))
    drive()
    assert order == ["posted", "stored"]

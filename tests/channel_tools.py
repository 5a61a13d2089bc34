"""Processes that share channels: here each is a context of its own, with a Redis connection of its own."""

from __future__ import annotations

from functools import partial

import gevent
from conftest import PATIENCE, Recorder, Server, wait_until

from gowsev.channels import Channels, Gap, Limits


class Node:
    """A context with channels; all that is delivered is noted, by connection."""

    def __init__(self, stack, url, **arguments):
        self.server = stack.enter_context(Server(Recorder()))
        self.context = self.server.context
        self.delivered = {}
        arguments.setdefault("deliver", self.note)
        self.channels = Channels(self.context, url, **arguments)
        stack.callback(self._give_up)

    def _give_up(self):
        """At the end of a test without its Redis, don't wait for what can't be stored any more."""
        if not self.channels.Status().up:
            self.context.Shutdown(0)
            self.server.loop.join(PATIENCE)

    def note(self, context, ids, publication):
        for id in ids:
            self.delivered.setdefault(id, []).append(publication)

    def connect(self):
        """Open a connection; return its id."""
        known = len(self.server.handler.of("accepted"))
        self.client = self.server.dial()
        wait_until(lambda: len(self.server.handler.of("accepted")) > known)
        return self.server.handler.of("accepted")[-1][1]

    def subscribe(self, id, channel="news", after=None, member=None):
        """Subscribe, and wait for the answer."""
        answers = []
        self.channels.Subscribe(id, channel, after, member, lambda context, answer: answers.append(answer))
        return wait_until(lambda: answers)[0]

    def join(self, channel="news", after=None, member=None):
        """Open a connection that has subscribed; return its id."""
        id = self.connect()
        subscription = self.subscribe(id, channel, after, member)
        assert subscription.error is None, subscription
        return id

    def publish(self, message, channel="news"):
        """Publish, and wait until it is stored; return its position."""
        answers = []
        assert self.channels.Publish(channel, message, lambda context, *answer: answers.append(answer)) is None
        position, error = wait_until(lambda: answers)[0]
        assert error is None, error
        return position

    def members(self, channel="news"):
        answers = []
        self.channels.Members(channel, lambda context, *answer: answers.append(answer))
        members, error = wait_until(lambda: answers)[0]
        assert error is None, error
        return members

    def messages(self, id):
        """What has been delivered to a connection, without gaps."""
        return [item.message for item in self.delivered.get(id, ()) if not isinstance(item, Gap)]

    def gaps(self, id):
        return [item for item in self.delivered.get(id, ()) if isinstance(item, Gap)]

    def wait_for(self, id, *messages):
        """Wait until exactly these messages have been delivered to a connection."""
        wait_until(lambda: len(self.messages(id)) >= len(messages))
        assert self.messages(id) == list(messages)


class Publisher:
    """Publishes numbers as fast as answers come, and notes what was reported of each."""

    def __init__(self, node, name, in_flight=8):
        self.node = node
        self.name = name
        self.stored, self.certainly_not, self.perhaps = [], [], []
        self.number = 0
        self.waiting = 0
        self.in_flight = in_flight
        self.ended = False
        self.greenlet = gevent.spawn(self.run)

    def run(self):
        while not self.ended:
            if self.waiting >= self.in_flight:
                gevent.sleep(0.001)
                continue
            message = f"{self.name} {self.number}"
            self.number += 1

            def done(context, position, error, message=message):
                self.waiting -= 1
                if error is None:
                    self.stored.append(message)
                else:
                    (self.certainly_not if error.certain else self.perhaps).append(message)

            error = self.node.channels.Publish("news", message, done)
            if error is None:
                self.waiting += 1
            else:
                self.certainly_not.append(message)
                gevent.sleep(0.01)

    def end(self):
        self.ended = True
        self.greenlet.get(timeout=PATIENCE)
        wait_until(lambda: not self.waiting)


class Traffic:
    """Two nodes, two publishers on each, and a subscriber on each, which must get everything."""

    def __init__(self, nodes):
        self.nodes = [nodes(limits=Limits(history_messages=100_000, history_bytes=1 << 30)) for _ in range(2)]
        self.ids = [node.join() for node in self.nodes]
        self.publishers = [Publisher(node, f"{i}{j}") for i, node in enumerate(self.nodes) for j in range(2)]

    @property
    def stored(self):
        return [message for publisher in self.publishers for message in publisher.stored]

    def wait_for_more(self, number=100):
        before = [len(publisher.stored) for publisher in self.publishers]
        wait_until(lambda: all(len(p.stored) > n + number for p, n in zip(self.publishers, before, strict=True)))

    def check(self, gaps=0):
        """Hold that all that was reported stored came once, in one order."""
        for publisher in self.publishers:
            publisher.end()
        one, two = (partial(node.messages, id) for node, id in zip(self.nodes, self.ids, strict=True))
        stored = set(self.stored)
        wait_until(lambda: stored <= set(one()) and stored <= set(two()))
        last = self.nodes[0].publish("the last")
        wait_until(lambda: one()[-1] == two()[-1] == "the last")
        assert one() == two()
        assert len(set(one())) == len(one()), "something came twice"
        certainly_not = {message for publisher in self.publishers for message in publisher.certainly_not}
        assert not certainly_not & set(one())
        for publisher in self.publishers:
            mine = [int(m.split()[1]) for m in one() if m.startswith(publisher.name + " ")]
            assert mine == sorted(mine)
        assert [node.channels.Status().gaps for node in self.nodes] == [gaps, gaps]
        return last

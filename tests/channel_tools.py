"""Processes that share channels: here each is a context of its own, with a Redis connection of its own."""

from __future__ import annotations

from conftest import Recorder, Server, wait_until

from gowsev.channels import Channels, Gap


class Node:
    """A context with channels; all that is delivered is noted, by connection."""

    def __init__(self, stack, url, **arguments):
        self.server = stack.enter_context(Server(Recorder()))
        self.context = self.server.context
        self.delivered = {}
        arguments.setdefault("deliver", self.note)
        self.channels = Channels(self.context, url, **arguments)

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

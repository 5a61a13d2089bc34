"""Clients of the servers that have channels, each in the protocol of its server: JSON over WebSocket, or Socket.IO.

They tell what comes as events, pairs of a kind and a value. A client that is opened again with what an earlier one
left comes back as the server's documentation has it.
"""

import functools
import json
import socket

import wire
from raw_client import PATIENCE, Stream, abort, read_head

TEXT = 0x81
#: Kinds of events, whose values are the channel; the text; the number of the publish, twice; what the server says.
SUBSCRIBED, DELIVERED, PUBLISHED, REFUSED, CLOSED = "subscribed", "delivered", "published", "refused", "closed"


@functools.lru_cache(1000)
def parse(text):
    """Return what a JSON document says, for reading only: subscribers of one channel get the same."""
    return json.loads(text)


class ChannelClient(Stream):
    """One connection, with its handshake done.

    Args:
        port: of the server.
        earlier: the client that was connected before, for one that comes back.
    """

    path = "/"
    ready = True  # to subscribe and to publish

    def __init__(self, port, earlier=None):
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(wire.request(port, path=self.path))
            head, behind = read_head(sock)
            wire.check_response(head)
        except BaseException:
            sock.close()
            raise
        super().__init__(sock)
        self.reader, self.receive = self, self.receive_or_end
        self.held = b""
        self.seen = {}  # for whoever drives it
        self.recovered = False  # without subscribing again
        self.position = earlier and earlier.position
        self.events = self.take(behind)

    def abort(self):
        abort(self.sock)

    def receive_or_end(self, buffer):
        """Receive into a buffer; a connection that is cut has come to its end."""
        try:
            return self.sock.recv_into(buffer)
        except ConnectionError:  # whoever drives it is told by the 0
            return 0

    def send(self, data):
        try:
            return super().send(data)
        except ConnectionError:  # which the next receive notices as well
            return True

    def say(self, text):
        return wire.frame(text.encode(), TEXT)

    def take(self, data):
        """Return the events in what was received.

        Raises:
            WireError: it is no whole message.
        """
        events = []
        frames, self.held = wire.whole_frames(self.held + bytes(data))
        for first, payload in frames:
            if first == wire.CLOSE:
                events.append((CLOSED, payload))
            elif first & 0x08:
                wire.answer_control(first, payload, lambda payload: self.send(wire.frame(payload, wire.PONG)))
            elif first != TEXT:
                raise wire.WireError(f"no whole text message: {first:#x} {payload[:40]!r}")
            elif (event := self.hear(payload)) is not None:
                events.append(event)
        return events


class JsonClient(ChannelClient):
    """The protocol of docs/channels.md, with positions as far as the server has any."""

    def subscribe(self, channel, number):
        words = {"subscribe": channel}
        if self.position is not None:
            words["after"] = self.position
        return self.say(json.dumps(words))

    def publish(self, channel, text, number):
        return self.say(json.dumps({"publish": channel, "text": text, "number": number}))

    def hear(self, payload):
        words = parse(payload)
        self.position = words.get("position", self.position)
        if "text" in words:
            return DELIVERED, words["text"]
        if "subscribed" in words:
            return SUBSCRIBED, words["subscribed"]
        for kind in (PUBLISHED, REFUSED):
            if kind in words:
                return kind, words[kind]
        return None  # a gap


class SocketIoClient(ChannelClient):
    """Engine.IO 4 and Socket.IO 5, over WebSocket from the beginning; positions are its session and its offset."""

    path = "/socket.io/?EIO=4&transport=websocket"

    ready = False

    def __init__(self, port, earlier=None):
        self.asked = {}  # the channels of subscriptions that are not acknowledged yet
        super().__init__(port, earlier)

    def subscribe(self, channel, number):
        self.asked[number] = channel
        return self.say(f"42{number}" + json.dumps(["subscribe", channel]))

    def publish(self, channel, text, number):
        return self.say(f"42{number}" + json.dumps(["publish", channel, text]))

    def hear(self, payload):
        text = payload.decode()
        if text.startswith("42"):
            _, value, *offset = parse(text[2:])
            if offset:
                self.position["offset"] = offset[0]
            return DELIVERED, value
        if text.startswith("43"):
            start = text.index("[")
            number, acknowledged = int(text[2:start]), json.loads(text[start:]) == [True]
            if number in self.asked:
                return SUBSCRIBED, self.asked.pop(number)
            return PUBLISHED if acknowledged else REFUSED, number
        if text.startswith("40"):
            pid, earlier = json.loads(text[2:]).get("pid"), self.position or {}
            self.recovered = pid is not None and pid == earlier.get("pid")
            self.position = {**earlier, "pid": pid} if self.recovered else {"pid": pid}
            self.ready = True
        elif text.startswith("0"):
            self.send(self.say("40" + (json.dumps(self.position) if self.position else "")))
        elif text == "2":
            self.send(self.say("3"))
        return None

#!/usr/bin/env python3
"""A relay between WebSocket clients: what one publishes to a channel goes to all who subscribed to it.

This is the Go library's example of the same name, function by function. A client sends one of

    subscribe:(channel)
    unsubscribe:(channel)
    unsubscribe-all
    publish:(channel):(body)

in a binary or a text message, and is answered `OK` or `Invalid message`. A publish sends the body, and nothing else, to
every subscriber of the channel, the publisher included if it is one. Everything is bytes and passes unharmed. Answers
and bodies go out in binary messages.

Where the Go example reads with `fmt.Sscanf` and `strings.SplitN`, the same messages are valid here:

- In "subscribe" and "unsubscribe" the channel begins after any white space and ends before the next (Unicode's
  White_Space, in UTF-8); what follows is ignored. A line feed before it is invalid, and so is an empty channel. A colon
  in it is kept, though no publish can reach such a channel.
- "publish" is split at its first two colons, and white space is nothing special. An empty channel is valid, though
  nobody can subscribe to it; the body may be empty, and may hold colons.

One thing differs: Go's scan replaces a byte that is no UTF-8 by U+FFFD when it subscribes, but not when it publishes.
Here such a byte is part of the channel's name in both.

This module is the whole of the relay. What a service needs besides (the command line, a page to try it with, limits,
more than one process) stands beside it, and begins in service.py. Without all that, it would run with

    context = gowsev.MakeContext(Service())
    context.ListenAndServe("9000")
    context.EventLoop()
"""

from __future__ import annotations

import logging
import re

import gowsev

logger = logging.getLogger("relay")

#: White_Space in UTF-8. None of these sequences occurs inside or across other characters, so they can be found among
#: bytes that are no UTF-8. (`bytes.isspace` knows ASCII only, `str.isspace` four characters too many.)
SPACES = re.compile(
    rb"(?:[\t-\r ]+|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)++"
)


class Service:
    """The handler: who is subscribed to what, in two maps that say the same.

    No entry of either is ever empty: the last subscriber takes the channel along.
    """

    def __init__(self) -> None:
        self.channels_of: dict[int, set[bytes]] = {}
        self.ids_of: dict[bytes, set[int]] = {}

    # -- the callbacks -------------------------------------------------------------------------------------------

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        logger.info("Connection accepted %d", id)

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        logger.info("Connection closed %d", id)
        self.unsubscribe_all(id)

    def EventLoopTimeout(self, context: gowsev.Context) -> None:
        logger.debug("Timeout")

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        self.handle_message(context, id, message)
        logger.debug("Connection %d sent message %r", id, message)

    # -- what they do --------------------------------------------------------------------------------------------

    def handle_message(self, context: gowsev.Context, id: int, message: bytes) -> None:
        command, channel, body = parse(message)
        context.Write(id, b"OK" if command else b"Invalid message")
        if command == "subscribe":
            self.subscribe(id, channel)
        elif command == "unsubscribe":
            self.unsubscribe(id, channel)
        elif command == "unsubscribe-all":
            self.unsubscribe_all(id)
        elif command == "publish":
            self.publish(context, channel, body)

    def subscribe(self, id: int, channel: bytes) -> None:
        self.channels_of.setdefault(id, set()).add(channel)
        self.ids_of.setdefault(channel, set()).add(id)

    def unsubscribe(self, id: int, channel: bytes) -> None:
        if id not in self.ids_of.get(channel, ()):
            return
        self.ids_of[channel].remove(id)
        if not self.ids_of[channel]:
            del self.ids_of[channel]
        self.channels_of[id].remove(channel)
        if not self.channels_of[id]:
            del self.channels_of[id]

    def unsubscribe_all(self, id: int) -> None:
        for channel in tuple(self.channels_of.get(id, ())):
            self.unsubscribe(id, channel)

    def publish(self, context: gowsev.Context, channel: bytes, body: bytes) -> None:
        # Write neither blocks nor raises, and a subscriber that is gone or too slow is gowsev's business.
        for id in self.ids_of.get(channel, ()):
            context.Write(id, body)


def parse(message: bytes) -> tuple[str, bytes, bytes]:
    """Return the command of a message, its channel and its body; the command is empty if the message is invalid."""
    for command in ("subscribe", "unsubscribe"):
        channel = scan_channel(command.encode() + b":", message)
        if channel:
            return command, channel, b""
    if message == b"unsubscribe-all":
        return "unsubscribe-all", b"", b""
    components = message.split(b":", 2)
    if len(components) == 3 and components[0] == b"publish":
        return "publish", components[1], components[2]
    return "", b"", b""


def scan_channel(command: bytes, message: bytes) -> bytes:
    """Return the channel behind `command`, as `Sscanf(message, command + "%s")` would read it; empty if invalid."""
    if not message.startswith(command):
        return b""
    rest = message[len(command) :]
    blanks = SPACES.match(rest)
    if blanks:
        if b"\n" in blanks[0]:
            return b""
        rest = rest[blanks.end() :]
    return SPACES.split(rest, 1)[0]


if __name__ == "__main__":
    import service

    service.main()

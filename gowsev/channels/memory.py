"""Channels of one process, in its memory.

Invariant: a channel that is followed has its stream, which is never forgotten while it is.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from gowsev.channels.publication import Message, Position
from gowsev.channels.subscribers import count_member
from gowsev.channels.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.channels.backend import Joining, Publishing, Receiver
    from gowsev.channels.limits import Limits

__all__ = ["MOST_BYTES", "Memory"]

#: Bytes that the histories of all channels may have together; beyond, those that were silent for longest are forgotten.
MOST_BYTES = 256 << 20
#: What a message, and a channel, costs besides its content.
_OVERHEAD = 500
#: Channels that a publish looks at, to forget them.
_LOOKED_AT = 8


class _Always:
    """Memory is always there."""

    up = True
    reason = ""

    def __init__(self) -> None:
        self.since = time.time()


class _Stream:
    """The messages of one channel that are kept."""

    __slots__ = ("bytes", "expires", "followed", "messages", "tip")

    def __init__(self) -> None:
        epoch = secrets.token_hex(5)
        self.tip = Position(epoch, 0, epoch)
        self.messages: deque[Message] = deque()
        self.bytes = _OVERHEAD
        self.expires = 0.0
        self.followed = False

    def append(self, text: bool, payload: bytes) -> Message:
        """Add a message."""
        offset = self.tip.offset + 1
        message = Message(Position(self.tip.epoch, offset, str(offset)), self.tip.id, text, payload)
        self.messages.append(message)
        self.tip = message.position
        self.bytes += len(payload) + _OVERHEAD
        return message

    def trim(self, messages: int, size: int) -> None:
        """Forget the oldest beyond these bounds, but for the newest."""
        kept = self.messages
        while len(kept) > messages or (len(kept) > 1 and self.bytes - _OVERHEAD * (len(kept) + 1) > size):
            self.bytes -= len(kept.popleft().payload) + _OVERHEAD

    def clear(self) -> int:
        """Forget all messages, but not where they ended; return how many bytes that freed."""
        freed, self.bytes = self.bytes - _OVERHEAD, _OVERHEAD
        self.messages.clear()
        return freed


class Memory:
    """The backend of a context by itself.

    Args:
        receiver: is told what happens.
        limits: how much is kept.
        most_bytes: of all histories together.
    """

    def __init__(self, receiver: Receiver, limits: Limits, most_bytes: int = MOST_BYTES) -> None:
        self._receiver = receiver
        self._limits = limits
        self._most_bytes = most_bytes
        self.health = _Always()
        self._streams: OrderedDict[str, _Stream] = OrderedDict()  # the one that was silent for longest comes first
        self._bytes = 0
        self._members: dict[str, dict[str, int]] = {}

    @property
    def busy(self) -> bool:
        """Whether something is under way, which is never so."""
        return False

    @property
    def kept_bytes(self) -> int:
        """What the histories of all channels cost."""
        return self._bytes

    def publish(self, publishing: Publishing) -> Exception | None:
        stream = self._stream(publishing.channel)
        before = stream.bytes
        message = stream.append(publishing.text, publishing.payload)
        stream.trim(self._limits.history_messages, self._limits.history_bytes)
        self._bytes += stream.bytes - before
        self._touch(publishing.channel, stream)
        if stream.followed:
            self._receiver.arrived(publishing.channel, message)
        self._receiver.settled(publishing, message.position, None)
        return None

    def follow(self, joining: Joining) -> None:
        stream = self._stream(joining.channel)
        stream.followed = True
        continuation = Timeline(stream.tip, list(stream.messages) if joining.recovers else []).after(joining.after)
        self._receiver.joined(joining, stream.tip, continuation)

    def leave(self, channel: str) -> None:
        self._streams[channel].followed = False

    def present(self, channel: str, member: str, connections: int) -> None:
        count_member(self._members, channel, member, connections)

    def members(self, channel: str, done: Callable[..., object]) -> None:
        self._receiver.answer(done, dict(self._members.get(channel, {})), None)

    def go_on(self) -> None:
        """Do nothing: what was published must arrive, and `in_flight` bounds it."""

    def close(self) -> None:
        """Do nothing: memory needs no end."""

    def disown(self) -> None:
        self._streams.clear()
        self._members.clear()
        self._bytes = 0

    def _stream(self, channel: str) -> _Stream:
        """Return the stream of a channel."""
        stream = self._streams.get(channel)
        if stream is None:
            stream = self._streams[channel] = _Stream()
            self._bytes += stream.bytes
            self._touch(channel, stream)
        elif stream.expires <= time.monotonic():
            self._bytes -= stream.clear()
        return stream

    def _touch(self, channel: str, stream: _Stream) -> None:
        """Note that a channel was used, and forget what is too old or too much."""
        now = time.monotonic()
        stream.expires = now + self._limits.history_seconds
        self._streams.move_to_end(channel)
        for name in [name for name, _ in zip(self._streams, range(_LOOKED_AT), strict=False)]:
            old = self._streams[name]
            if old is not stream and (old.expires <= now or self._bytes > self._most_bytes):
                self._bytes -= old.clear()
                self._streams.move_to_end(name)
                if not old.followed:  # one that is followed only loses its history
                    self._bytes -= old.bytes
                    del self._streams[name]

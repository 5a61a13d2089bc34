"""What is gathered for a peer, or for several, and leaves with the next flush: frames, and counters of what has left.

`Batch` is the list of those who have gathered something since the last flush. `Shared` is what several outboxes gather
together: the same frames for each of them. `Held` is what waits to be encoded. None of them knows its users, which look
like a `Gatherer` and an `Owner`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import gevent

from gowsev.wire.encoder import FRAGMENT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.errors import GowsevError

__all__ = ["MOST_GATHERED", "MOST_JOINED", "Batch", "Gatherer", "Held", "Owner", "Shared"]

#: Flush after this many short frames.
MOST_GATHERED: Final = 64
#: Join up to this many bytes into one buffer; beyond, `sendmsg` saves the copy. TLS is offered no more at once.
MOST_JOINED: Final = 1 << 16


class Gatherer(Protocol):
    """What gathers frames: an outbox, or a group of them."""

    def flush(self) -> None:
        """Offer to the kernel what has been gathered."""
        ...


class Owner(Protocol):
    """Whom an outbox belongs to: its connection."""

    def lost(self, error: OSError) -> None:
        """The socket has turned out to be broken."""
        ...

    def refuse(self) -> GowsevError:
        """A message was refused; return why, for the program."""
        ...


class Batch:
    """The gatherers that hold something since the last flush."""

    __slots__ = ("_gatherers", "_scheduled", "held")

    def __init__(self) -> None:
        self.held = False
        """Whether what is gathered waits for the next flush: while the loop works."""
        self._gatherers: list[Gatherer] = []
        self._scheduled = False

    def add(self, gatherer: Gatherer) -> None:
        """Note that a gatherer holds something; flush at once unless `held`."""
        if not self.held:
            gatherer.flush()
            return
        self._gatherers.append(gatherer)
        # Whatever the loop's greenlet does next, the hub runs this before it waits for anything: a callback that
        # blocks, or a loop that has nothing left to do, holds no message back.
        if not self._scheduled:
            self._schedule()

    def flush(self) -> None:
        """Offer to the kernel all that has been gathered: one send for each peer."""
        while self._gatherers:
            gatherers, self._gatherers = self._gatherers, []
            flushed = 0
            try:
                for gatherer in gatherers:
                    gatherer.flush()
                    flushed += 1
            except BaseException:
                # What interrupts this (Ctrl-C, no memory) leaves the rest to the next flush, and what this one still
                # holds, behind the others.
                self._gatherers += [*gatherers[flushed + 1 :], gatherers[flushed]]
                raise

    def _flush_from_hub(self) -> None:
        self._scheduled = False
        try:
            self.flush()
        except BaseException:
            self._schedule()
            raise

    def _schedule(self) -> None:
        self._scheduled = True
        gevent.get_hub().loop.run_callback(self._flush_from_hub)


class Shared:
    """What several outboxes gather together.

    Args:
        left: called with an outbox that has ceased to share this.
    """

    __slots__ = ("bytes_sent", "frames", "frames_sent", "left")

    def __init__(self, left: Callable[[Any], object]) -> None:
        self.left = left
        self.frames: list[bytes] = []
        """What leaves with the next flush, to each of them."""
        self.frames_sent = self.bytes_sent = 0
        """What has left, to each of them."""


class Held:
    """What waits behind a message in pieces: other messages, not encoded yet, and further ones in pieces."""

    __slots__ = ("_entries", "count", "size")

    def __init__(self) -> None:
        self._entries: deque[tuple[int, Any]] = deque()
        self.size = 0
        """The bytes of the messages; one in pieces counts as long as a fragment."""
        self.count = 0
        """How many messages, but for those in pieces."""

    def add(self, opcode: int, payload: bytes) -> None:
        """Add a message."""
        self._entries.append((opcode, payload))
        self.size += len(payload)
        self.count += 1

    def add_stream(self, stream: object) -> None:
        """Add a message in pieces."""
        self._entries.append((0, stream))
        self.size += FRAGMENT_BYTES

    def take(self) -> tuple[int, Any] | None:
        """Take the next one out, as (opcode, payload), or (0, what `add_stream` was given); `None` if there is none."""
        if not self._entries:
            return None
        opcode, entry = self._entries.popleft()
        self.size -= len(entry) if opcode else FRAGMENT_BYTES
        self.count -= 1 if opcode else 0
        return opcode, entry

"""Groups: connections that are broadcast to again and again, and gather the same frames together.

Most broadcasts go to the very ids that the last one went to. Once that has been seen a few times, their connections
become a *group*: a further broadcast adds its frame once instead of once for each, and a flush joins the frames once
and offers the result to each socket in turn.

A connection that is sent anything of its own, that falls behind or ends, leaves: it takes along what has been gathered
for all, and goes on by itself. It may come back when nothing is gathered.

Invariants: what a connection is sent, and in which order, is the same as without groups. It is in one at most. A group
that has lost more than half of its ids dissolves, so that all groups together hold no more than two ids for each
connection.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from gowsev.connection.gathering import MOST_GATHERED, MOST_JOINED, Batch, Shared
from gowsev.connection.offering import WOULD_BLOCK, interrupted
from gowsev.connection.outbox import Outbox
from gowsev.wire.encoder import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gowsev.connection.connection import Connection
    from gowsev.wire.encoder import Encoder

__all__ = ["Group", "Groups"]

#: The broadcast to the same ids at which they become a group. To make one costs as much as it saves in two more.
_WORTH_IT = 8
#: Try again after this many more broadcasts, where a group was not worth it.
_PAUSE = 64
#: What it costs when a member leaves and comes back, as a multiple of what a flush saves for one.
_COST_OF_LEAVING: Final = 4
#: The size of the smallest group.
_FEWEST: Final = 4
#: How many tuples of ids that may become a group are remembered, each as a number.
_MOST_SEEN = 4096


class Groups:
    """The broadcasts of one context.

    Args:
        connections: those of the context, by id.
        batch: where what they are sent gathers.
    """

    def __init__(self, connections: Mapping[int, Connection], batch: Batch) -> None:
        self._connections = connections
        self._batch = batch
        self._known: dict[tuple[int, ...], Group] = {}
        self._seen: dict[int, int] = {}  # how often, by the hash of the ids

    def broadcast(self, ids: tuple[int, ...], opcode: int, payload: bytes) -> list[int]:
        """Send a message to connections; return the ids that could not take it. Never blocks."""
        alone = ids
        if self._batch.held and len(payload) < LARGE:
            group = self._find(ids)
            if group is not None:
                group.write(opcode, payload)
                alone = tuple(group.others)
        refused = []
        connections = self._connections
        for id in alone:
            connection = connections.get(id)
            if connection is None or connection.outbox.write(opcode, payload) is not None:
                refused.append(id)
        return refused

    def _find(self, ids: tuple[int, ...]) -> Group | None:
        """Return the group of a broadcast, if its ids are one by now."""
        group = self._known.get(ids)
        if group is None:
            return self._make(ids) if len(ids) >= _FEWEST and self._are_worth_it(ids) else None
        if group.others and not group.gathers:
            group.admit(self._connections)
        return group

    def _are_worth_it(self, ids: tuple[int, ...]) -> bool:
        times = self._seen.get(hash(ids), 0) + 1
        self._note(ids, times)
        return times >= _WORTH_IT

    def _note(self, ids: tuple[int, ...], times: int) -> None:
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[hash(ids)] = times

    def _dissolved(self, ids: tuple[int, ...]) -> None:
        del self._known[ids]
        self._note(ids, -_PAUSE)

    def _make(self, ids: tuple[int, ...]) -> Group | None:
        """Make a group, if at least half of the ids can be in it."""
        self._batch.flush()  # an outbox that gathers something cannot join
        connections = [connection for id in ids if (connection := self._connections.get(id))]
        if not connections:
            self._note(ids, -_PAUSE)
            return None
        for connection in connections:
            connection.outbox.leave()  # with ids that may never be broadcast to again
        [(encoder, _count)] = Counter(connection.outbox.encoder for connection in connections).most_common(1)
        self._known[ids] = group = Group(ids, encoder, self._batch, partial(self._dissolved, ids))
        group.admit(self._connections)
        if group.worth_it:
            return group
        group.dissolve()
        return None


class Group:
    """Some connections that gather the same frames.

    Args:
        ids: theirs, and of others that broadcasts go to as well.
        encoder: a connection with another one is not in it.
        batch: where they gather.
        dissolved: called when it has dissolved.
    """

    __slots__ = (
        "_batch",
        "_bytes",
        "_dissolved",
        "_encoder",
        "_ids",
        "_most_saved",
        "_saved",
        "_sends",
        "_shared",
        "others",
    )

    def __init__(self, ids: tuple[int, ...], encoder: Encoder, batch: Batch, dissolved: Callable[[], object]) -> None:
        self._batch = batch
        self._dissolved = dissolved
        self._encoder = encoder
        self._shared = Shared(self._left)
        self._sends: dict[Outbox, Callable[[bytes], int]] = {}
        self._ids: dict[Outbox, int] = {}
        self._bytes = 0  # that gather
        self._saved = self._most_saved = _COST_OF_LEAVING * len(ids)
        self.others: list[int] = list(ids)
        """The ids that have no part in this, for now or for ever."""

    @property
    def gathers(self) -> bool:
        """Whether frames wait for the next flush."""
        return bool(self._shared.frames)

    def admit(self, connections: Mapping[int, Connection]) -> None:
        """Let all who can be in it come; nothing may gather meanwhile."""
        others = []
        for id in self.others:
            connection = connections.get(id)
            send = None if connection is None else connection.outbox.share(self._shared, self._encoder)
            if connection is None or send is None:
                others.append(id)
            else:
                self._sends[connection.outbox] = send
                self._ids[connection.outbox] = id
        self.others = others

    def write(self, opcode: int, payload: bytes) -> None:
        """Send a short message to every member; in a callback only."""
        frame = self._encoder.encode(opcode, payload)
        assert frame is not None
        frames = self._shared.frames
        if len(frames) == MOST_GATHERED or self._bytes + len(frame) > MOST_JOINED:
            self.flush()
        if not frames:
            self._batch.add(self)
        frames.append(frame)
        self._bytes += len(frame)

    def flush(self) -> None:
        """Offer what has been gathered to the kernel, for each member."""
        shared = self._shared
        frames = shared.frames
        if not frames:
            return
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        size = len(data)
        shared.frames_sent += len(frames)
        shared.bytes_sent += size
        self._bytes = 0
        self._saved = min(self._saved + len(self._sends), self._most_saved)
        frames.clear()
        behind: list[tuple[Outbox, int | OSError]] = []
        members = iter(self._sends.items())
        outbox: Outbox | None = None
        try:
            for outbox, send in members:
                sent: int | OSError
                try:
                    sent = send(data)
                except WOULD_BLOCK:
                    sent = 0
                except OSError as error:
                    sent = error
                if sent != size:
                    behind.append((outbox, sent))
        except BaseException as error:
            # One member's connection has ended by it; the others still get their bytes.
            if outbox is not None:  # pragma: no branch - it may come before the first
                behind.append((outbox, interrupted(error)))
            behind += [(other, 0) for other, _ in members]
            raise
        finally:
            for outbox, sent in behind:
                outbox.fall_behind(data, sent)

    @property
    def worth_it(self) -> bool:
        """Whether at least half of the ids are in it, and what it saves makes up for those who leave."""
        return len(self._sends) >= len(self.others) and self._saved >= 0

    def _left(self, outbox: Outbox) -> None:
        """Take note that a member has left."""
        self._sends.pop(outbox, None)
        self.others.append(self._ids.pop(outbox))
        self._saved -= _COST_OF_LEAVING
        if self._sends and not self.worth_it:
            self.dissolve()

    def dissolve(self) -> None:
        """Let every member leave."""
        self._dissolved()
        members, self._sends = self._sends, {}
        for outbox in members:
            outbox.leave()

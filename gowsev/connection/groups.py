"""Audiences: connections that are broadcast to again and again, and share one list of what gathers for them.

Most broadcasts go to the very ids that the last one went to. Once that has been seen a few times, their connections
become an *audience*: a further broadcast puts its frame into one list instead of one for each, and a flush joins the
frames once and offers the result to each socket in turn.

A connection that is sent anything of its own, that falls behind or ends, leaves: it takes along what has gathered for
all, and goes on by itself. It may come back when nothing gathers.

Invariants: what a connection is sent, and in which order, is the same as without audiences. It is in one at most, and
gathers nothing of its own there. An audience that has lost more than half of its ids dissolves, so that all audiences
together hold no more than two ids for each connection.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from gowsev.connection.outbox import MOST_GATHERED, MOST_JOINED, WOULD_BLOCK, Batch, Outbox, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gowsev.connection.connection import Connection
    from gowsev.wire.encoder import Encoder

__all__ = ["Audience", "Audiences"]

#: At which broadcast to the same ids they become an audience. That costs as much as it saves in two more.
_WORTH_IT = 8
#: After so many more it is tried again, where it was not worth it.
_PAUSE = 64
#: What it costs when a member leaves and comes back, as a multiple of what a flush saves for one.
_COST_OF_LEAVING = 4
#: Fewer ids never do.
_FEWEST = 4
#: So many tuples of ids that may become one are remembered, each as a number.
_MOST_SEEN = 4096


class Audiences:
    """The audiences of one context.

    Args:
        connections: those of the context, by id.
        batch: where what they are sent gathers.
    """

    def __init__(self, connections: Mapping[int, Connection], batch: Batch) -> None:
        self._connections = connections
        self._batch = batch
        self._known: dict[tuple[int, ...], Audience] = {}
        self._seen: dict[int, int] = {}  # how often, by the hash of the ids

    def find(self, ids: tuple[int, ...]) -> Audience | None:
        """Return the audience of a broadcast, if its ids are one by now."""
        audience = self._known.get(ids)
        if audience is None:
            return self._make(ids) if len(ids) >= _FEWEST and self._are_worth_it(ids) else None
        if audience.others and not audience.gathered:
            audience.admit(self._connections)
        return audience

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

    def _make(self, ids: tuple[int, ...]) -> Audience | None:
        """Make an audience, if at least half of the ids can be in it."""
        self._batch.flush()  # who gathers anything cannot come
        connections = [connection for id in ids if (connection := self._connections.get(id))]
        if not connections:
            self._note(ids, -_PAUSE)
            return None
        for connection in connections:
            connection.outbox.leave()  # an audience of ids that may never be broadcast to again
        [(encoder, _count)] = Counter(connection.encoder for connection in connections).most_common(1)
        self._known[ids] = audience = Audience(ids, encoder, self._batch, partial(self._dissolved, ids))
        audience.admit(self._connections)
        if audience.worth_it:
            return audience
        audience.dissolve()
        return None


class Audience:
    """Some connections that gather the same frames.

    Args:
        ids: theirs, and of others that broadcasts go to as well.
        encoder: whoever has another is not in it.
        batch: where they gather.
        dissolved: called when it has dissolved.
    """

    __slots__ = (
        "_batch",
        "_bytes",
        "_dissolved",
        "_most_saved",
        "_saved",
        "_sends",
        "bytes_sent",
        "encoder",
        "frames_sent",
        "gathered",
        "others",
    )

    def __init__(self, ids: tuple[int, ...], encoder: Encoder, batch: Batch, dissolved: Callable[[], object]) -> None:
        self._batch = batch
        self._dissolved = dissolved
        self._sends: dict[Outbox, Callable[[bytes], int]] = {}
        self._bytes = 0  # that gather
        self._saved = self._most_saved = _COST_OF_LEAVING * len(ids)
        self.encoder = encoder
        self.gathered: list[bytes] = []
        """What leaves with the next flush, to each of the members, whose own `gathered` it is."""
        self.others: list[int] = list(ids)
        """The ids that have no part in this, for now or for ever."""
        self.bytes_sent = self.frames_sent = 0
        """Counters that each member adds to its own."""

    def admit(self, connections: Mapping[int, Connection]) -> None:
        """Let all who can be in it come; nothing may gather meanwhile."""
        others = []
        for id in self.others:
            connection = connections.get(id)
            if connection is None or connection.closing or connection.encoder is not self.encoder:
                others.append(id)
                continue
            send = connection.outbox.join(self, id)
            if send is None:
                others.append(id)
            else:
                self._sends[connection.outbox] = send
        self.others = others

    def append(self, frame: bytes) -> None:
        """Add a short frame for every member; in a callback only."""
        gathered = self.gathered
        if len(gathered) == MOST_GATHERED or self._bytes + len(frame) > MOST_JOINED:
            self.flush()
        if not gathered:
            self._batch.add(self)
        gathered.append(frame)
        self._bytes += len(frame)

    def flush(self) -> None:
        """Offer what has been gathered to the kernel, for each member."""
        gathered = self.gathered
        if not gathered:
            return
        data = gathered[0] if len(gathered) == 1 else b"".join(gathered)
        size = len(data)
        self.frames_sent += len(gathered)
        self.bytes_sent += size
        self._bytes = 0
        self._saved = min(self._saved + len(self._sends), self._most_saved)
        gathered.clear()
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

    def forget(self, outbox: Outbox, id: int) -> None:
        """Take note that a member has left."""
        self._sends.pop(outbox, None)
        self.others.append(id)
        self._saved -= _COST_OF_LEAVING
        if self._sends and not self.worth_it:
            self.dissolve()

    def dissolve(self) -> None:
        """Let every member leave."""
        self._dissolved()
        members, self._sends = self._sends, {}
        for outbox in members:
            outbox.leave()

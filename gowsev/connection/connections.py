"""The connections of one context, by id: what each is made with, and the counters of all."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from gowsev.connection.connection import Connection
from gowsev.connection.gathering import Batch
from gowsev.connection.groups import Groups
from gowsev.connection.keepalive import Keepalive
from gowsev.stats import Stats
from gowsev.wire.encoder import Encoder, MaskingEncoder
from gowsev.wire.protocol import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.connection.events import Event
    from gowsev.options import Options
    from gowsev.request import Request
    from gowsev.wire.deflate import Deflate

__all__ = ["Connections"]


class Connections:
    """The connections of one context.

    An id is here from before its first event until its last one has been handled.

    Args:
        options: what they are made with.
        put: takes their events; never blocks.
        emptied: called when the last socket is closed.
    """

    def __init__(self, options: Options, put: Callable[[Event], object], emptied: Callable[[], None]) -> None:
        self._options = options
        self._put = put
        self._ids = count(1)
        self.keepalive = Keepalive(options, emptied)
        self._encoders: dict[int | None, Encoder] = {}
        self.by_id: dict[int, Connection] = {}
        self.batch = Batch()
        self.groups = Groups(self.by_id, self.batch)
        self.fragments = False
        """Whether messages that come in several frames are wanted as they come."""
        self.stats = Stats()
        """Counters of the connections that are gone, and of the context itself."""

    def __len__(self) -> int:
        """How many there are. One whose end was not handled yet holds memory; one whose was may still have a socket."""
        return max(len(self.by_id), len(self.keepalive.connections))

    def make(
        self,
        sock: Any,
        *,
        request: Request,
        subprotocol: str | None,
        client: bool = False,
        deflate: Deflate | None = None,
    ) -> Connection:
        """Make a connection with an id of its own; it does not read before its `start`."""
        options = self._options
        connection = Connection(
            sock,
            request=request,
            subprotocol=subprotocol,
            protocol=Protocol(client=client, max_message_bytes=options.max_message_bytes, deflate=deflate),
            encoder=MaskingEncoder(deflate) if client else self._encoder(deflate),
            options=options,
            put=self._put,
            batch=self.batch,
            keepalive=self.keepalive,
        )
        self._number(connection)
        return connection

    def adopt(self, connection: Connection) -> None:
        """Give an id to a connection that belonged to nobody, and have its events from now on."""
        self._number(connection)
        connection.move(self._put, self.batch, self.keepalive)

    def _number(self, connection: Connection) -> None:
        connection.id = id = next(self._ids)
        self.by_id[id] = connection
        if self.fragments:
            connection.receive_fragments()

    def forget(self, connection: Connection) -> None:
        """Forget a connection that has ended, but for its counters."""
        del self.by_id[connection.id]
        self.stats.closed += 1
        _count(connection, self.stats)

    def open(self) -> tuple[Connection, ...]:
        """Return those whose sockets are open."""
        return tuple(self.keepalive.connections)

    def clear(self) -> None:
        """In a forked child: forget all of them, which are the parent's."""
        self.by_id.clear()

    def snapshot(self, queued_events: int) -> Stats:
        """Return the counters of all, of those that are gone too."""
        trips = self.keepalive.round_trips
        stats = replace(
            self.stats,
            queued_events=queued_events,
            round_trips=trips.count,
            round_trip_seconds=trips.seconds,
            round_trips_within=trips.within,
        )
        for connection in self.by_id.values():
            stats.connections += not connection.gone
            stats.outbox_bytes += connection.outbox_bytes
            _count(connection, stats)
        return stats

    def _encoder(self, deflate: Deflate | None) -> Encoder:
        """Return the encoder of a server's connection, shared by all with these parameters if it keeps no context."""
        if deflate is not None and deflate.takeover:
            return Encoder(deflate)
        key = deflate.window_bits if deflate is not None else None
        if key not in self._encoders:
            self._encoders[key] = Encoder(deflate)
        return self._encoders[key]


def _count(connection: Connection, stats: Stats) -> None:
    stats.messages_received += connection.messages_received
    stats.messages_sent += connection.messages_sent
    stats.bytes_received += connection.bytes_received
    stats.bytes_sent += connection.bytes_sent
    stats.refused_writes += connection.refused_writes

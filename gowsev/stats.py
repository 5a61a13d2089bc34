"""`Stats`: a snapshot of what a context has counted. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Stats"]


@dataclass(slots=True)
class Stats:
    """Counters of a context, since it was made where nothing else is said; bytes are those on the socket.

    What each counts stands below its field in `gowsev/stats.py`.
    """

    connections: int = 0
    """Open now."""
    accepted: int = 0
    """Connections that clients opened."""
    added: int = 0
    """Connections that `AddConn` brought."""
    closed: int = 0
    """Connections whose `ConnClosed` was called."""
    rejected: int = 0
    """Upgrade requests that were refused."""
    messages_received: int = 0
    """Messages read from connections, those that still wait for the loop included."""
    messages_sent: int = 0
    """Messages that writes have accepted; one to many counts once for each."""
    bytes_received: int = 0
    """Bytes read from sockets since their handshakes."""
    bytes_sent: int = 0
    """Bytes that the kernel has taken since the handshakes."""
    refused_writes: int = 0
    """Writes refused because too much already waited for a slow peer."""
    callback_errors: int = 0
    """Callbacks that raised."""
    queued_events: int = 0
    """Events that wait for the loop now."""
    outbox_bytes: int = 0
    """Bytes that wait for peers now."""
    round_trips: int = 0
    """Pings that were answered: those of `Ping`, and those after a silence."""
    round_trip_seconds: float = 0.0
    """The sum of the times from these pings to their pongs."""
    round_trips_within: dict[float, int] = field(default_factory=dict)
    """How many of them took at most so many seconds, for some bounds from 0.001 to 10.0."""
    refusals: dict[str, int] = field(default_factory=dict)
    """Clients that were not let in, by reason: one of the options `allowed_origins`, `handshake_timeout`,
    `max_connections` and `proxy_protocol`; or `client_certificate` (none that is accepted), `handshake` (not as
    RFC 6455 has it), `http` (no HTTP), `program` (a `Reject`), `stopping` (a `Shutdown`, or the loop has ended), `tls`
    (no TLS handshake)."""
    closed_by_code: dict[int, int] = field(default_factory=dict)
    """The connections of `closed`, by `Conn.close_code`; those that were closed for a faulty message have 1006, too."""

    def __post_init__(self) -> None:
        # A snapshot does not go on counting.
        self.refusals = dict(self.refusals)
        self.closed_by_code = dict(self.closed_by_code)
        self.round_trips_within = dict(self.round_trips_within)

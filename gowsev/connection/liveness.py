"""Whether a peer is still there: it sends, takes what waits for it, or answers a ping; and the clock for that.

RFC 6455 section 5.5.3 lets a peer answer only the newest of several pings, and send pongs that nobody asked for. So
each ping has a payload of its own, which nobody can guess; a pong with that payload answers it, and stands for those
sent before it.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gowsev.connection.outbox import Outbox
    from gowsev.connection.round_trips import RoundTrips
    from gowsev.options import Options

__all__ = ["NOTHING", "PING", "SILENT", "Clock", "Liveness"]

NOTHING: Final = 0
#: A ping should be sent (RFC 6455 section 5.5.2).
PING: Final = 1
#: The peer has been silent for so long that its connection should end.
SILENT: Final = 2

#: A ping that waits for its pong: its payload, and when it was sent. As bytes, since thousands may wait at once.
_PING: Final = struct.Struct("=4sd")
#: Pings that may wait.
_MOST_PINGS: Final = 16


class Clock:
    """The time as of the last tick of a `Keepalive`: cheap to read, and precise enough.

    Args:
        now: seconds of `time.monotonic`.
    """

    __slots__ = ("now",)

    def __init__(self, now: float) -> None:
        self.now = now


class Liveness:
    """What was heard of one peer, since when it owes an answer, and how long an answer takes.

    Args:
        now: the time, in seconds of the clock that `due` is called with.
    """

    __slots__ = ("_pinged_at", "_pings", "_progress", "_round_trip", "heard")

    def __init__(self, now: float) -> None:
        self.heard = now
        """When bytes came last."""
        self._round_trip = -1.0
        self._pings = b""  # those that wait, oldest first
        self._pinged_at: float | None = None
        self._progress = 0

    @property
    def round_trip(self) -> float | None:
        """Seconds from a ping to its pong, the last time that one came; `None` before the first."""
        return self._round_trip if self._round_trip >= 0.0 else None

    @property
    def owes_answer(self) -> bool:
        """Whether a ping is due or sent, and nothing has come since."""
        return self._pinged_at is not None and self.heard < self._pinged_at

    def due(self, now: float, options: Options, outbox: Outbox) -> int:
        """Return what is to be done now: `NOTHING`, `PING` or `SILENT`."""
        if options.ping_interval is None:
            return NOTHING
        if outbox.congested and (progress := outbox.progress()) != self._progress:
            # Far behind, but reading: that is life too, and a ping would not get through.
            self._progress = progress
            self.heard = now
            self._pinged_at = None
        elif self._pinged_at is None:
            if now - self.heard >= options.ping_interval:
                self._pinged_at = now
                return NOTHING if outbox.congested else PING
        elif not self.owes_answer:
            self._pinged_at = None
        elif options.ping_timeout is not None and now - self._pinged_at >= options.ping_timeout:
            return SILENT
        return NOTHING

    def ping(self, now: float) -> bytes:
        """Take note that a ping is sent, and return its payload."""
        payload = os.urandom(4)
        if len(self._pings) >= _MOST_PINGS * _PING.size:
            # Every second one is forgotten. So there are some of every age, and however fast pings are sent, and
            # however late a peer answers, sooner or later a pong finds its ping.
            self._pings = b"".join([_PING.pack(*ping) for ping in [*_PING.iter_unpack(self._pings)][::2]])
        self._pings += _PING.pack(payload, now)
        return payload

    def take_pongs(self, pongs: list[bytes], now: float, round_trips: RoundTrips) -> None:
        """Measure the round trips that end with these pongs."""
        for pong in pongs:
            for index, (payload, sent) in enumerate(_PING.iter_unpack(self._pings), 1):
                if pong == payload:
                    self._pings = self._pings[index * _PING.size :]
                    self._round_trip = now - sent
                    round_trips.add(self._round_trip)
                    break

    def forget_pings(self) -> None:
        """Measure none of the round trips that have begun: it is not the peer that will let their pongs wait."""
        self._pings = b""

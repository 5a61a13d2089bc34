"""Whether a peer is still there: it sends, takes what waits for it, or answers a ping; and the clock for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gowsev.connection.outbox import Outbox
    from gowsev.options import Options

__all__ = ["NOTHING", "PING", "SILENT", "Clock", "Liveness"]

NOTHING: Final = 0
#: A ping should be sent (RFC 6455 section 5.5.2).
PING: Final = 1
#: The peer has been silent for so long that its connection should end.
SILENT: Final = 2


class Clock:
    """The time as of the last tick of a `Keepalive`: cheap to read, and precise enough.

    Args:
        now: seconds of `time.monotonic`.
    """

    __slots__ = ("now",)

    def __init__(self, now: float) -> None:
        self.now = now


class Liveness:
    """What was heard of one peer, and since when it owes an answer.

    Args:
        now: the time, in seconds of the clock that `due` is called with.
    """

    __slots__ = ("_pinged_at", "_progress", "heard")

    def __init__(self, now: float) -> None:
        self.heard = now
        """When bytes came last."""
        self._pinged_at: float | None = None
        self._progress = 0

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

"""A connection to Redis that lasts: it is opened when it is first wanted, and again whenever it is lost, until the end.

What is sent and read over it is for those derived from it: `notifications` and `pipeline`. All of that runs in their
greenlets; nothing here waits for them.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.channels.line import FAILED, Line

if TYPE_CHECKING:
    from gowsev.channels.health import Health
    from gowsev.channels.url import Address

__all__ = ["Lasting", "pause"]

#: Seconds between attempts to connect, at first and at most.
_FIRST_RETRY, _LAST_RETRY = 0.05, 1.0


def pause(attempt: int) -> float:
    """Return the seconds to wait before an attempt to connect; many processes should not come at once."""
    delay: float = min(_FIRST_RETRY * 2 ** min(attempt, 10), _LAST_RETRY)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311


class Lasting(ABC):
    """A connection that is kept.

    Args:
        address: of the Redis.
        health: is told how it fares, under the name `NAME`.
        timeout: seconds that an answer may take.
    """

    NAME: str

    def __init__(self, address: Address, health: Health, timeout: float) -> None:
        self._address = address
        self._health = health
        self._timeout = timeout
        self._line: Line | None = None
        self._greenlets: list[Any] = []
        self._closed = False

    def start(self) -> None:
        """Connect, unless that was begun. Does not block."""
        if not self._greenlets and not self._closed:
            self._greenlets.append(gevent.spawn(self._run))

    def close(self) -> None:
        """End, with nobody to be told. Does not block."""
        self._closed = True
        if self._line is not None:
            self._line.shut()
        gevent.killall(self._greenlets, block=False)

    def disown(self) -> None:
        """In a forked child: leave the connection to the parent."""
        self._closed = True
        if self._line is not None:  # pragma: no branch - in a child, whose coverage is not measured
            self._line.disown()
        gevent.killall(self._greenlets, block=False)

    def _run(self) -> None:
        attempt = 0
        while True:
            self._line = line = Line(self._address, self._timeout)
            try:
                line.open()
                self._prepare(line)
            except FAILED as error:
                # It is tried again, until the end; `Status` says why, and those who wait too long are told.
                line.close()
                self._away(self._health.down(self.NAME, error))
                gevent.sleep(pause(attempt))
                attempt += 1
                continue
            except BaseException:  # pragma: no cover - killed just then, by the end of the context
                line.close()
                raise
            attempt = 0
            self._health.is_up(self.NAME)
            self._use(line)
            self._health.lost(self.NAME)
            gevent.sleep(pause(0))

    @abstractmethod
    def _prepare(self, line: Line) -> None:
        """Make a new connection ready; raise `FAILED` where it will not do."""

    @abstractmethod
    def _away(self, reason: str) -> None:
        """Take note that it could not be opened."""

    @abstractmethod
    def _use(self, line: Line) -> None:
        """Send and read until it is lost."""

"""A connection to Redis that is opened when it is first wanted, and again whenever it is lost, until the end.

What is sent and read over it is for those derived from it: `notifications` and `pipeline`. All of that runs in their
greenlets; nothing here waits for them.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from gowsev.channels.line import FAILED, Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.channels.health import Health
    from gowsev.channels.url import Address

__all__ = ["Lasting", "pause"]

#: Seconds that a connection must have lasted for the next one to be opened almost at once.
_LASTED = 0.2

#: Seconds between attempts to connect, at first and at most.
_FIRST_RETRY, _LAST_RETRY = 0.05, 1.0


def pause(attempt: int) -> float:
    """Return the seconds to wait before an attempt to connect: a random part, so that processes don't come at once."""
    delay: float = min(_FIRST_RETRY * 2 ** min(attempt, 10), _LAST_RETRY)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311


class Lasting(ABC):
    """A connection that is kept.

    Args:
        find: returns the address of the Redis; asked for each attempt. May block, and raise `FAILED`.
        health: is told of its state.
        name: its name there.
        where: what stands before the reasons that are given there.
        timeout: seconds that an answer may take.
    """

    def __init__(self, find: Callable[[], Address], health: Health, name: str, where: str, timeout: float) -> None:
        self.name = name
        self._find = find
        self._where = where
        self._health = health
        self._timeout = timeout
        self._line: Line | None = None
        self._greenlets: list[Any] = []
        self._closed = False
        self._tried = Event()  # set while it is open, and once it could not be opened

    def start(self) -> None:
        """Connect, unless that was begun. Does not block."""
        if not self._greenlets and not self._closed:
            self._health.expect(self.name)
            self._greenlets.append(gevent.spawn(self._run))

    def close(self) -> None:
        """End; nothing is reported any more. Does not block."""
        self._closed = True
        self.renew()
        gevent.killall(self._greenlets, block=False)

    def renew(self) -> None:
        """End the connection, so that it is opened anew. Does not block."""
        if self._line is not None:
            self._line.shut()

    def wait_tried(self) -> None:
        """Wait until it is open, or could not be opened. Blocks the greenlet, until an attempt has ended."""
        self._tried.wait()

    @property
    def peer(self) -> object:
        """The Redis that it is connected to; `None` if it is not."""
        return self._line and self._line.peer

    def disown(self) -> None:
        """In a forked child: leave the connection to the parent."""
        self._closed = True
        if self._line is not None:  # pragma: no branch - in a child, whose coverage is not measured
            self._line.disown()
        gevent.killall(self._greenlets, block=False)

    def _run(self) -> None:
        attempt = 0
        while True:
            try:
                line = self._connect()
            except FAILED as error:
                # It is tried again, until the end; `Status` says why, and those who wait too long are told.
                self._away(self._health.down(self.name, error, self._where))
                self._tried.set()
            else:
                self._health.is_up(self.name)
                self._tried.set()
                opened = time.monotonic()
                self._use(line)
                self._tried.clear()
                self._health.lost(self.name)
                if time.monotonic() - opened > _LASTED:
                    attempt = 0
            gevent.sleep(pause(attempt))
            attempt += 1

    def _connect(self) -> Line:
        self._line = None
        self._line = line = Line(self._find(), self._timeout)
        try:
            line.open()
            self._prepare(line)
        except BaseException:
            line.close()
            raise
        return line

    @abstractmethod
    def _prepare(self, line: Line) -> None:
        """Make a new connection ready; raise `FAILED` if it cannot be used."""

    @abstractmethod
    def _away(self, reason: str) -> None:
        """Take note that it could not be opened."""

    @abstractmethod
    def _use(self, line: Line) -> None:
        """Send and read until it is lost."""

"""Whether Redis is there, for the program and for the log, which has each change once."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from redis.exceptions import AskError

if TYPE_CHECKING:
    from gowsev.channels.url import Address

__all__ = ["Health", "describe"]

logger = logging.getLogger("gowsev")

_NOT_YET = "not connected yet"


def describe(error: BaseException) -> str:
    """One line that says what is wrong, without what Redis repeats of a command: a password, or messages."""
    text = " ".join(str(error).partition(", with args")[0].split()) or type(error).__name__
    if isinstance(error, AskError):  # of which redis-py leaves a slot and an address
        return f"this is a member of a Redis Cluster, whose address begins with redis+cluster://: MOVED {text}"
    return text


class Health:
    """How the connections to a Redis fare."""

    def __init__(self, address: Address, names: tuple[str, ...]) -> None:
        self._address = address
        self._down = dict.fromkeys(names, _NOT_YET)
        self._told = ""
        self.since = time.time()

    @property
    def up(self) -> bool:
        """Whether all of them are there."""
        return not self._down

    def reason_of(self, name: str) -> str:
        """Why one is not there."""
        return self._down.get(name, "")

    @property
    def reason(self) -> str:
        """Why one is not; empty if all are."""
        return next(
            (reason for reason in self._down.values() if reason != _NOT_YET), next(iter(self._down.values()), "")
        )

    def expect(self, name: str) -> None:
        """Add a connection that is to be opened."""
        if name not in self._down:
            self._down[name] = _NOT_YET

    def forget(self, name: str) -> None:
        """Remove one that is wanted no more."""
        self.is_up(name)

    def is_away(self, name: str) -> bool:
        """Whether a connection could not be opened when that was last tried."""
        return self._down.get(name, _NOT_YET) != _NOT_YET

    def lost(self, name: str) -> None:
        """Note that one was lost, and is being opened again; nothing is logged unless that fails."""
        if not self._down:
            self.since = time.time()
        self._down[name] = _NOT_YET

    def down(self, name: str, error: BaseException, where: str = "") -> str:
        """Note that one could not be opened, and where that is if it is not the only one; return why, in words."""
        reason = where + self._address.hide(describe(error))
        self._down[name] = reason
        if not self._told:
            self._told = reason
            logger.error("channels: the Redis at %s is away: %s", self._address.shown, reason)
        return reason

    def is_up(self, name: str) -> None:
        """Note that one is there."""
        if self._down.pop(name, None) is None or self._down:
            return
        if self._told:
            seconds = time.time() - self.since
            logger.warning("channels: the Redis at %s is there again, after %.1f s", self._address.shown, seconds)
            self._told = ""
        self.since = time.time()

"""How much may wait to be stored: for each account, and for all of them. No I/O, no clock; for any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent import monkey

from gowsev.channels.errors import TooMuchInFlight

if TYPE_CHECKING:
    from gowsev.channels.limits import Limits

__all__ = ["InFlight"]

#: What a publish costs besides its message.
_OVERHEAD = 200


class InFlight:
    """What waits, by account; `None` is the account of the program itself."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # A real lock, even in a patched process: it is held for a few additions, and other threads come here.
        self._lock = monkey.get_original("threading", "Lock")()
        self._accounts: dict[int | None, list[int]] = {}
        self.number = 0
        self.bytes = 0

    def enter(self, account: int | None, size: int) -> TooMuchInFlight | None:
        """Let a publish wait; return why not."""
        limits = self._limits
        size += _OVERHEAD
        with self._lock:
            number, total = self._accounts.get(account, (0, 0))
            if number and (number >= limits.in_flight or total + size > limits.in_flight_bytes):
                return TooMuchInFlight(number, total)
            if self.number and (
                self.number >= limits.total_in_flight or self.bytes + size > limits.total_in_flight_bytes
            ):
                return TooMuchInFlight(self.number, self.bytes)
            self._accounts[account] = [number + 1, total + size]
            self.number += 1
            self.bytes += size
        return None

    def leave(self, account: int | None, size: int) -> None:
        """Note that one waits no longer."""
        size += _OVERHEAD
        with self._lock:
            number, total = self._accounts.pop(account)
            if number > 1:
                self._accounts[account] = [number - 1, total - size]
            self.number -= 1
            self.bytes -= size

    def clear(self) -> None:
        """In a forked child: forget all of them, which are the parent's."""
        self._lock = monkey.get_original("threading", "Lock")()
        self._accounts.clear()
        self.number = self.bytes = 0

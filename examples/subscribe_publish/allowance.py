"""How much a client may do in a second. No I/O, no clock."""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """What is used of a rate: as much as for one second may be used at once, and it comes back with time.

    Args:
        rate: a second.
        now: seconds of some clock that only goes forward.
    """

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._left = float(rate)
        self._at = now

    def take(self, amount: int, now: float) -> bool:
        """Use some; return whether that may be. It may be more than a second's: the next must then come later."""
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < min(amount, self._rate):
            return False
        self._left -= amount
        return True

"""How much a client may publish in a second. No I/O, no clock: times are seconds of one that only goes forward."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Allowance", "Allowances", "Rates"]


@dataclass(frozen=True)
class Rates:
    """What one client may publish in a second; `None` for no limit."""

    publishes: int | None = None
    bytes: int | None = None


class Allowance:
    """What is used of a rate: as much as for one second may be used at once, and it comes back with time."""

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


class Allowances:
    """Those of all clients."""

    def __init__(self, rates: Rates) -> None:
        self._rates = [(name, rate) for name, rate in vars(rates).items() if rate is not None]
        self._of: dict[int, list[Allowance]] = {}

    def objection(self, id: int, body: str | bytes, now: float) -> str:
        """Use some of a client's; return why a publish would be too much, or nothing."""
        if not self._rates:
            return ""
        mine = self._of.setdefault(id, [Allowance(rate, now) for _, rate in self._rates])
        size = len(body.encode() if isinstance(body, str) else body)
        for (name, rate), allowance in zip(self._rates, mine, strict=True):
            if not allowance.take(size if name == "bytes" else 1, now):
                return f"at most {rate} {name} a second for each client"
        return ""

    def ended(self, id: int) -> None:
        """Forget a client."""
        self._of.pop(id, None)

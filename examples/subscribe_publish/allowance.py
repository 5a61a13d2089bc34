"""How much a client may publish in a second. No I/O, no clock: times are seconds of one that only goes forward."""

from __future__ import annotations


class Rates:
    """What each client may publish in a second, and what it has used of that.

    As much as for one second may be used at once, and comes back with time.

    Args:
        publishes: how many; `None` for no limit.
        bytes: how many these may have; `None` for no limit.
    """

    def __init__(self, publishes: int | None = None, bytes: int | None = None) -> None:
        limits = {"publishes": publishes, "bytes": bytes}
        self._rates = {name: rate for name, rate in limits.items() if rate is not None}
        self._left: dict[int, dict[str, tuple[float, float]]] = {}
        """By client: how much of each was left, and when."""

    def objection(self, id: int, body: str | bytes, now: float) -> str:
        """Use some of a client's; return why a publish would be too much, or nothing.

        It may have more bytes than a second's: the next must then come later.
        """
        left_of = self._left.setdefault(id, {}) if self._rates else {}
        for name, rate in self._rates.items():
            amount = 1 if name == "publishes" else len(body.encode() if isinstance(body, str) else body)
            left, then = left_of.get(name, (rate, now))
            left = min(rate, left + (now - then) * rate)
            left_of[name] = left, now
            if left < min(amount, rate):
                return f"at most {rate} {name} a second for each client"
            left_of[name] = left - amount, now
        return ""

    def ended(self, id: int) -> None:
        """Forget a client."""
        self._left.pop(id, None)

"""How long peers took to answer pings: counts of all round trips of a set of connections. No clock."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Final

__all__ = ["BOUNDS", "RoundTrips"]

#: Seconds: what a machine, a building, a continent, the world and a congested mobile network take.
#: Its type says "of any length", since mypyc takes an unboxed tuple of floats for one that is not set.
BOUNDS: Final[tuple[float, ...]] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RoundTrips:
    """A histogram: how many there were, how long they took in all, and how many of them took at most so long."""

    __slots__ = ("_counts", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        """The sum of all."""
        self._counts = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.seconds += seconds
        self._counts[bisect_left(BOUNDS, seconds)] += 1

    @property
    def within(self) -> dict[float, int]:
        """How many took at most so many seconds, for each of `BOUNDS`."""
        return dict(zip(BOUNDS, accumulate(self._counts), strict=False))

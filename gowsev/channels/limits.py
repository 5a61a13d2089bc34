"""`Limits`: what channels may hold, and what one connection may ask of them.

Seconds are floats or whole numbers, sizes are bytes. This module knows nothing of the rest of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["DEFAULTS", "Limits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of `Channels`; the defaults are safe.

    Processes that share a Redis should have the same: each publish trims its channel's history to the limits of the
    process that publishes.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of its range; the text names the field, the value and what was expected.
    """

    history_messages: int = 1000
    """Messages that a channel keeps for those who come back; in Redis up to a sixteenth more."""
    history_bytes: int = 1 << 20
    """Bytes that these may have together. The newest message is kept even if it alone is longer."""
    history_seconds: float = 3600.0
    """Seconds after its last message at which a channel's history is forgotten; in Redis up to an eighth later."""
    in_flight: int = 1000
    """Publishes of one connection (and, together, of all that name none) that may wait to be stored."""
    in_flight_bytes: int = 4 << 20
    """The same, in bytes. One message may be longer, if nothing else waits."""
    total_in_flight: int = 10_000
    """Publishes of all connections that may wait to be stored."""
    total_in_flight_bytes: int = 32 << 20
    """The same, in bytes."""
    channels: int = 1000
    """Channels that one connection may subscribe to."""
    name_bytes: int = 200
    """How long a channel's name may be in UTF-8, and a member's."""
    undelivered_bytes: int = 16 << 20
    """What was received and not yet delivered by the loop; beyond, nothing is read from Redis."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            expected = (int, float) if field.name == "history_seconds" else int
            if isinstance(value, bool) or not isinstance(value, expected):
                raise TypeError(f"{field.name} must be a number, not {value!r}")
            if not (math.isfinite(value) and 1 <= value <= 1 << 40):
                raise ValueError(f"{field.name} must be at least 1, and finite, not {value!r}")


DEFAULTS = Limits()

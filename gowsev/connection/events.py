"""Events: what connections, listeners and other threads put into the loop's queue, as (kind, subject, payload)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from gowsev.wire.frames import CLOSE

if TYPE_CHECKING:
    Event = tuple[int, Any, Any]

__all__ = ["ACCEPTED", "CALL", "CLOSED", "REQUESTED", "TIMEOUT", "Event", "Sink"]

#: The kind of a message is its opcode, `TEXT` or `BINARY`; these follow. Subject: a connection; payload of a message:
#: its bytes. So it is with `FRAGMENT` and `FINAL` added to it, for a part of a message.
CLOSED: Final = CLOSE
ACCEPTED: Final = 0x10
#: Subject: a `Question`.
REQUESTED: Final = 0x11
#: Subject: a function; payload: its arguments behind the context.
CALL: Final = 0x12
TIMEOUT: Final = 0x13


class Sink(Protocol):
    """Where a connection's events go: the loop's queue, or a dialled connection's own."""

    def put(self, event: Event, /) -> None:
        """Add an event; never blocks."""
        ...

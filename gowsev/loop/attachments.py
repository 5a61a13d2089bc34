"""What another room may attach to a context: it is told when a connection or the loop ends, and of forks.

`Context.attach` returns how it lets the loop call a function: as by `Post`, but from the thread of the loop alone.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Part"]


class Part(Protocol):
    """A part of this package that is attached to a context. None of this may raise."""

    def connection_ended(self, id: int) -> None:
        """The `ConnClosed` of a connection has returned."""
        ...

    def loop_stopping(self) -> None:
        """The loop is to end once all connections are gone; nothing new is let in any more."""
        ...

    @property
    def busy(self) -> bool:
        """Whether something is to be done before the loop ends; asked once all connections are gone."""
        ...

    def loop_ended(self) -> None:
        """The loop has ended; nothing that is posted is called any more."""
        ...

    def disown(self) -> None:
        """Leave to the parent what is its own; called in a forked child (see `connection.fork`)."""
        ...

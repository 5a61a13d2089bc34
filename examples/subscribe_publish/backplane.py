"""What a node expects of a backplane, by which several relay processes are one. redis_backplane.py is one.

All of it is called in the loop's greenlet, and never blocks; answers come as calls in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

# Why something was not done, as clients are told it.
AWAY = "the backplane is away"
TOO_MANY = "too many commands wait for the backplane"
REFUSED = "the backplane refused it"
#: A publish of which nobody knows whether it was done.
UNKNOWN = "the backplane went away"


class Position(NamedTuple):
    """A place in a channel: the id of the last message before it, and how many there were up to it."""

    id: bytes
    added: int


class Backplane(Protocol):
    """What joins the relay processes."""

    connects: int
    """How often a connection has been made."""
    lost: int
    """Messages that were gone before this process had read them."""
    pending: int
    """What waits for an answer."""

    @property
    def away(self) -> str:
        """Why there is no connection; empty if there is one."""

    def publish(self, channel: bytes, body: bytes, done: Callable[[str | None], object]) -> str | None:
        """Append a message to a channel.

        Returns:
            Why that is refused at once; else `None`, and `done(error)` follows.
        """

    def locate(self, channel: bytes, done: Callable[[Position | None, str | None], object]) -> str | None:
        """Find the end of a channel: what is asked to be published after this call comes behind it.

        Messages of the channel are held back until `done(position, error)` has returned.

        Returns:
            Why that is refused at once; else `None`, and `done` follows.
        """

    def follow(self, channel: bytes, position: Position) -> None:
        """Read a channel from a position on, unless it is followed already."""

    def follows(self, channel: bytes) -> bool:
        """Tell whether a channel is being read."""

    def unfollow(self, channel: bytes) -> None:
        """Read a channel no longer."""

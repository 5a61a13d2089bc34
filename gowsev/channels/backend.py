"""The interface between `Channels` and a backend, which stores messages and carries them.

A backend works in the thread of its context, never waits in these calls, and knows no connection and no subscriber: it
knows channels that are followed, and subscriptions that want to join them. All that it reports goes through its
`Receiver`, in the order in which the program is to see it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.channels.publication import Message, Position
    from gowsev.channels.timeline import Continuation

__all__ = ["Backend", "Health", "Joining", "Publishing", "Receiver"]


class Publishing:
    """One publish, until it is settled.

    Args:
        account: accounts are served in turn: a connection's id; `None` for the program itself.
        done: the program's.
    """

    __slots__ = ("account", "channel", "done", "payload", "text")

    def __init__(self, channel: str, text: bool, payload: bytes, account: int | None, done: Any) -> None:
        self.channel = channel
        self.text = text
        self.payload = payload
        self.account = account
        self.done = done


class Joining:
    """One subscription, until its channel is left.

    Args:
        after: the position behind which it wants what it missed; `None` for nothing.
        member: the name under which it is present, if any.
        done: the program's.
    """

    __slots__ = ("after", "cancelled", "channel", "done", "id", "member", "recovers", "since")

    def __init__(self, id: int, channel: str, after: Position | None, recovers: bool, member: Any, done: Any) -> None:
        self.id = id
        self.channel = channel
        self.after = after
        self.recovers = recovers  # whether there was an `after`, intelligible or not
        self.member: str | None = member
        self.done = [done]
        self.cancelled = False
        self.since = time.monotonic()


class Receiver(Protocol):
    """What a backend reports to."""

    def arrived(self, channel: str, message: Message) -> None:
        """A message of a channel that is followed, directly behind the one before."""
        ...

    def lost(self, channel: str, position: Position, missed: int | None) -> None:
        """What stands before `position` and has not arrived is lost."""
        ...

    def joined(self, joining: Joining, position: Position, continuation: Continuation) -> None:
        """A subscription has joined its channel at `position`, behind all that has arrived so far."""
        ...

    def failed(self, joining: Joining, error: Exception) -> None:
        """A subscription could not join; its channel is not followed for its sake."""
        ...

    def settled(self, publishing: Publishing, position: Position | None, error: Exception | None) -> None:
        """A publish is stored, or has failed."""
        ...

    def answer(self, callback: Callable[..., object], *args: object) -> None:
        """Let the loop call `callback(context, *args)`."""
        ...

    def has_room(self) -> bool:
        """Whether more may arrive; where not, `Backend.go_on` is called when it may."""
        ...


class Health(Protocol):
    """The state of a backend."""

    @property
    def up(self) -> bool:
        """Whether it stores and carries messages."""
        ...

    @property
    def since(self) -> float:
        """Since when, as `time.time()` tells it."""
        ...

    @property
    def reason(self) -> str:
        """Why it does not; empty if it does."""
        ...


class Backend(Protocol):
    """What stores messages and carries them."""

    @property
    def health(self) -> Health:
        """Its state."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a report about members is under way."""
        ...

    def publish(self, publishing: Publishing) -> Exception | None:
        """Store a message; `Receiver.settled` follows, unless an error is returned."""
        ...

    def follow(self, joining: Joining) -> None:
        """Let a subscription join its channel; everything published there arrives from then on."""
        ...

    def leave(self, channel: str) -> None:
        """Stop following a channel, whose last subscriber has left."""
        ...

    def present(self, channel: str, member: str, connections: int) -> None:
        """Report how many connections a member has here."""
        ...

    def members(self, channel: str, done: Callable[..., object]) -> None:
        """Find out who is there; `done(context, {member: connections}, error)` follows."""
        ...

    def go_on(self) -> None:
        """Go on reading: there is room again."""
        ...

    def close(self) -> None:
        """End at once; nothing is reported any more."""
        ...

    def disown(self) -> None:
        """In a forked child: leave everything to the parent, and begin anew when asked for something."""
        ...

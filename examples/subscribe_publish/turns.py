"""The order of what one client of the four commands is sent. No I/O, no clock.

Its answers come in the order of its commands, and each before what it causes: a publisher's `OK` before its own
message, and a subscriber's before the first. But answers of channels, and messages, come when they come. So a command
is a *turn*:

    waiting     not begun yet: what is under way is of another kind
    under way   begun; subscriptions run beside each other, and so do publishes
    answered    its answer is known, and sent as soon as all earlier ones are

and while a turn concerns a channel that the client receives, what arrives there is *held*, until it is certain that it
is not what a turn under way has published. Every message has a position, by which a publish that was stored knows its
own; and what one client publishes to a channel is stored in its order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Turn:
    """One command of a client, and its answer once that is known."""

    command: str
    channel: bytes
    name: str
    body: bytes
    answer: bytes | None = None
    position: str | None = None


@dataclass(eq=False, slots=True)
class Held:
    """What has arrived on one channel for one client, while it has turns under way that concern the channel."""

    turns: int = 0
    bodies: dict[str, bytes] = field(default_factory=dict)
    """By position, in the order of the channel."""
    known: set[str] = field(default_factory=set)
    """Positions of its own messages that were answered, and have not arrived."""

    def arrived(self, position: str, body: bytes) -> list[bytes]:
        """Take what has arrived; return what may be sent."""
        self.bodies[position] = body
        if position not in self.known:
            return []
        self.known.discard(position)
        return self._up_to(position)

    def answered(self, position: str | None) -> list[bytes]:
        """Note that a turn's answer has been sent, and where its message stands; return what may be sent."""
        self.turns -= 1
        if not self.turns:
            return list(self.bodies.values())
        if position in self.bodies:
            return self._up_to(position)
        if position is not None:
            self.known.add(position)
        return []

    def _up_to(self, position: str) -> list[bytes]:
        # What stands before one of its own that was answered was published before, and so by nobody who waits here.
        ready = []
        while position in self.bodies:
            ready.append(self.bodies.pop(next(iter(self.bodies))))
        return ready


class Turns:
    """The turns of one client."""

    def __init__(self) -> None:
        self._waiting: deque[Turn] = deque()
        self._under_way: deque[Turn] = deque()
        self.held: dict[str, Held] = {}
        self.bytes = 0
        """Of the bodies that wait here, in either direction."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._under_way) + sum(len(held.bodies) for held in self.held.values())

    def __bool__(self) -> bool:
        return bool(self._waiting or self._under_way)

    def add(self, turn: Turn) -> None:
        """Add a command, as the last."""
        self._waiting.append(turn)
        self.bytes += len(turn.body)

    def begin(self) -> Turn | None:
        """Return the next command that is to be begun now, if there is one."""
        if not self._waiting:
            return None
        turn = self._waiting[0]
        if self._under_way and (
            turn.command not in ("subscribe", "publish") or turn.command != self._under_way[-1].command
        ):
            return None
        self._under_way.append(self._waiting.popleft())
        return turn

    def take(self) -> Turn | None:
        """Remove the first command under way if its answer is known; return it."""
        if not self._under_way or self._under_way[0].answer is None:
            return None
        turn = self._under_way.popleft()
        self.bytes -= len(turn.body)
        return turn

    def hold(self, name: str) -> None:
        """Hold what arrives on a channel until one more turn has been answered."""
        self.held.setdefault(name, Held()).turns += 1

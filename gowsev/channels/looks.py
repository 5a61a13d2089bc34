"""Which channels are looked up, and when: in turns, a few at a time, and while there is room for what they bring.

The channels of one connection wait behind each other, so that one with thousands of them does not keep others waiting.
While a channel waits, all who want to join it share the look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gowsev.channels.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from gowsev.channels.followed import Followed

__all__ = ["LIGHT", "MOST", "Looks"]

#: Looks that are under way and may bring a history, which is in memory before it can be counted as undelivered.
MOST = 8
#: Looks that bring no messages and weigh as much as one that does.
LIGHT = 8
#: Channels that were left and may stand in the queue all the same, if those that wait are no more.
_LEFT = 100


class Looks:
    """The queue of channels that want a look.

    Args:
        ask: begins a look of a channel; what it gets besides is to be called once, when that has ended.
        has_room: whether more may come; where not, nothing is begun until `go_on`.
    """

    def __init__(self, ask: Callable[[Followed, Callable[[], None]], None], has_room: Callable[[], bool]) -> None:
        self._ask = ask
        self._has_room = has_room
        self._turns: Turns[Followed] = Turns()
        self._waiting: set[Followed] = set()
        self._queued = 0  # with those that were left
        self._under_way = 0  # weight

    def want(self, followed: Followed) -> None:
        """Look a channel up, if it wants that, when it is its turn."""
        if followed.wants_look and followed not in self._waiting:
            account: Hashable = followed.joining[0].id if followed.joining else None
            self._waiting.add(followed)
            self._queued += 1
            self._turns.put(account, followed)
            self.go_on()

    def go_on(self) -> None:
        """Begin what there is room for."""
        while self._turns and self._under_way < MOST * LIGHT and self._has_room():
            followed = self._turns.take()
            self._queued -= 1
            if followed in self._waiting:
                self._waiting.discard(followed)
                if followed.wants_look:
                    self._begin(followed, LIGHT if followed.wants_messages else 1)

    def _begin(self, followed: Followed, weight: int) -> None:
        def done() -> None:
            self._under_way -= weight
            self.go_on()

        self._under_way += weight
        self._ask(followed, done)

    def leave(self, followed: Followed) -> None:
        """Drop a channel, which is not followed any more."""
        self._waiting.discard(followed)
        # Not each time: a connection with thousands of them leaves them one by one.
        if self._queued > 2 * len(self._waiting) + _LEFT:
            self._queued -= len(self._turns.remove(lambda other: other not in self._waiting))

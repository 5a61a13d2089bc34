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

__all__ = ["MOST", "Looks"]

#: Looks that are under way. Each may bring a history, which is in memory before it can be counted as undelivered.
MOST = 8


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
        self._under_way = 0

    def want(self, followed: Followed) -> None:
        """Look a channel up, if it wants that, when it is its turn."""
        if followed.wants_look and followed not in self._waiting:
            account: Hashable = followed.joining[0].id if followed.joining else None
            self._waiting.add(followed)
            self._turns.put(account, followed)
            self.go_on()

    def go_on(self) -> None:
        """Begin what there is room for."""
        while self._turns and self._under_way < MOST and self._has_room():
            followed = self._turns.take()
            self._waiting.discard(followed)
            if followed.wants_look:
                self._under_way += 1
                self._ask(followed, self._done)

    def leave(self, followed: Followed) -> None:
        """Drop a channel, which is not followed any more."""
        if followed in self._waiting:
            self._waiting.discard(followed)
            self._turns.remove(lambda other: other is followed)

    def _done(self) -> None:
        self._under_way -= 1
        self.go_on()

"""Queues that are served in turn, so that an account with many items delays no other. No I/O, no clock.

Turns alone are not enough for a *modest* account, which wants few items at a time and waits for each: whatever others
have out when it comes stands before it each time. So while a modest account has lately been served, no other may have
more than `few` items out. Else each may have its whole `share`, since many at once cost less.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Item = TypeVar("Item")

__all__ = ["Turns"]

#: Rounds of turns for which an account has been served lately.
_LATELY = 4
_NEVER = (0, 0, False)


class Turns(Generic[Item]):
    """One queue for each account; what is of one account keeps its order.

    Args:
        share: how many items of one account may be out: taken, and not noted as `done`. `None` for any number, and
            then none are noted.
    """

    def __init__(self, share: int | None = None) -> None:
        self.few = 1
        """How many of one account may be out beside a modest one, which has no more than so many, out and waiting."""
        self._share = share
        self._queues: OrderedDict[Hashable, deque[Item]] = OrderedDict()
        self._held: dict[Hashable, deque[Item]] = {}  # the queues of accounts that have their share out
        self._out: dict[Hashable, int] = {}
        self._taken = 0
        self._lately: OrderedDict[Hashable, tuple[int, int, bool]] = OrderedDict()
        """Of those that were served: how many were taken by then, how many items each had, and whether it is modest."""
        self._modest = 0  # how many of these are

    def __bool__(self) -> bool:
        """Whether there is an item to take."""
        while self._queues:
            account = next(iter(self._queues))
            if not self._is_full(account):
                return True
            self._held[account] = self._queues.pop(account)
        return False

    def put(self, account: Hashable, item: Item) -> None:
        """Add an item behind those of its account."""
        self._release(account)  # it may have more out by now
        queues = self._held if account in self._held else self._queues
        queues.setdefault(account, deque()).append(item)

    def take(self) -> Item:
        """Remove and return the first item of the account whose turn it is, if there is one; it is out then."""
        assert self, "there is one"
        account, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        if queue:
            self._queues.move_to_end(account)
        else:
            del self._queues[account]
        if self._share is not None:
            self.out(account)
            self._note(account, len(queue))
        return item

    def out(self, account: Hashable) -> None:
        """Count an item as out that was not taken here, or not now."""
        self._out[account] = self._out.get(account, 0) + 1

    def done(self, account: Hashable) -> None:
        """Note that an item is out no longer."""
        number = self._out.pop(account) - 1
        if number:
            self._out[account] = number
        self._release(account)

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Remove and return the items that are not wanted any more."""
        removed = []
        for queues in (self._queues, self._held):
            for account, queue in list(queues.items()):
                bad = [item for item in queue if unwanted(item)]
                if not bad:
                    continue
                removed += bad
                kept = deque(item for item in queue if not unwanted(item))
                if kept:
                    queues[account] = kept
                else:
                    del queues[account]
        return removed

    def _note(self, account: Hashable, waiting: int) -> None:
        """Note that an account was served, and how many items it still has waiting."""
        self._taken += 1
        # One that has many at a time may have one now, and the others in a moment.
        most = max(self._out[account] + waiting, self._forget(account) // 2)
        self._lately[account] = self._taken, most, most <= self.few
        self._modest += most <= self.few
        before = self._taken - _LATELY * (len(self._queues) + len(self._held) + 1)
        while (oldest := next(iter(self._lately.items())))[1][0] <= before:
            self._forget(oldest[0])

    def _forget(self, account: Hashable) -> int:
        """Forget what was noted of an account; return how many items it had."""
        _, most, is_modest = self._lately.pop(account, _NEVER)
        self._modest -= is_modest
        return most

    def _is_full(self, account: Hashable) -> bool:
        if self._share is None:
            return False
        is_modest = self._lately.get(account, _NEVER)[2]
        share = self.few if self._modest > is_modest else self._share
        return self._out.get(account, 0) >= share

    def _release(self, account: Hashable) -> None:
        if account in self._held and not self._is_full(account):
            self._queues[account] = self._held.pop(account)

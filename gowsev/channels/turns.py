"""Queues that are served in turn, so that an account with many items delays no other. No I/O, no clock."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Item = TypeVar("Item")

__all__ = ["Turns"]


class Turns(Generic[Item]):
    """One queue for each account; what is of one account keeps its order.

    Args:
        share: how many items of one account may be out: taken, and not noted as `done`. `None` for any number, and
            then none are noted.
    """

    def __init__(self, share: int | None = None) -> None:
        self._share = share
        self._queues: OrderedDict[Hashable, deque[Item]] = OrderedDict()
        self._held: dict[Hashable, deque[Item]] = {}  # the queues of accounts that have their share out
        self._out: dict[Hashable, int] = {}

    def __bool__(self) -> bool:
        """Whether there is an item to take."""
        return bool(self._queues)

    def put(self, account: Hashable, item: Item) -> None:
        """Add an item behind those of its account."""
        queues = self._held if self._is_full(account) else self._queues
        queues.setdefault(account, deque()).append(item)

    def take(self) -> Item:
        """Remove and return the first item of the account whose turn it is; it is out then."""
        account, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        if queue:
            self._queues.move_to_end(account)
        else:
            del self._queues[account]
        if self._share is not None:
            self.out(account)
        return item

    def out(self, account: Hashable) -> None:
        """Count an item as out that was not taken here, or not now."""
        self._out[account] = self._out.get(account, 0) + 1
        if self._is_full(account) and account in self._queues:
            self._held[account] = self._queues.pop(account)

    def done(self, account: Hashable) -> None:
        """Note that an item is out no longer."""
        number = self._out.pop(account) - 1
        if number:
            self._out[account] = number
        if account in self._held and not self._is_full(account):
            self._queues[account] = self._held.pop(account)

    def _is_full(self, account: Hashable) -> bool:
        return self._share is not None and self._out.get(account, 0) >= self._share

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

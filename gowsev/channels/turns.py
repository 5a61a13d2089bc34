"""Queues that are served in turn, so that an account with many items delays no other. No I/O, no clock."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Item = TypeVar("Item")

__all__ = ["Turns"]


class Turns(Generic[Item]):
    """One queue for each account; what is of one account keeps its order."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[Item]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, account: Hashable, item: Item) -> None:
        """Add an item behind those of its account."""
        self._queues.setdefault(account, deque()).append(item)

    def take(self) -> Item:
        """Remove and return the first item of the account whose turn it is."""
        account, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        if queue:
            self._queues.move_to_end(account)
        else:
            del self._queues[account]
        return item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Remove and return the items that are not wanted any more."""
        removed = [item for queue in self._queues.values() for item in queue if unwanted(item)]
        if removed:
            for account, queue in list(self._queues.items()):
                kept = deque(item for item in queue if not unwanted(item))
                if kept:
                    self._queues[account] = kept
                else:
                    del self._queues[account]
        return removed

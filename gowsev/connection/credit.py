"""The credit that keeps a connection's share of the loop's queue bounded: its reader stops when it is spent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Credit"]


class Credit:
    """How much of one connection lies undelivered in the queue, and whether its reader must stop for that.

    Args:
        max_messages, max_bytes: the reader stops at either; `None` turns one off.
        resume: called once when, after a stop, half of the credit is free again.
    """

    __slots__ = ("_max_bytes", "_max_messages", "_resume", "bytes", "exhausted", "messages")

    def __init__(self, max_messages: int | None, max_bytes: int | None, resume: Callable[[], None]) -> None:
        self._max_messages = sys.maxsize if max_messages is None else max_messages
        self._max_bytes = sys.maxsize if max_bytes is None else max_bytes
        self._resume = resume
        self.messages = 0
        self.bytes = 0
        self.exhausted = False

    def spend(self, messages: int, size: int) -> None:
        """Account for messages that were put: afterwards `exhausted` says whether the reader must stop."""
        self.messages += messages
        self.bytes += size
        if self.messages >= self._max_messages or self.bytes >= self._max_bytes:
            self.exhausted = True

    def refund(self, size: int) -> None:
        """Account for one message that was delivered."""
        self.messages -= 1
        self.bytes -= size
        if self.exhausted:
            self.replenish()

    def replenish(self) -> None:
        """Let the reader go on if half of the credit is free again."""
        if self.messages * 2 <= self._max_messages and self.bytes * 2 <= self._max_bytes:
            self.exhausted = False
            self._resume()

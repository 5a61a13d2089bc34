"""Who has subscribed to what, in this process, and who is there. For the thread of the context."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gowsev.channels.backend import Joining

__all__ = ["Channel", "Subscribers", "count_member"]


def count_member(members: dict[str, dict[str, int]], channel: str, member: str, connections: int) -> None:
    """Note in `members`, by channel, how many connections a member has; what is empty is not kept."""
    of_channel = members.setdefault(channel, {})
    of_channel[member] = connections
    if not connections:
        del of_channel[member]
        if not of_channel:
            del members[channel]


class Channel:
    """A channel with its subscribers: those who wait to join it, and those to whom its publications go."""

    __slots__ = ("live", "members", "position", "waiting")

    def __init__(self) -> None:
        self.live: dict[int, Joining] = {}
        self.waiting: dict[int, Joining] = {}
        self.members: Counter[str] = Counter()
        self.position = ""


class Subscribers:
    """All subscriptions, by channel and by connection."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self._of: dict[int, dict[str, Joining]] = {}

    def of(self, id: int) -> list[str]:
        """List the channels of a connection, those included that it waits to join."""
        return list(self._of.get(id, ()))

    def count(self, id: int) -> int:
        """Return how many channels these are."""
        return len(self._of.get(id, ()))

    def find(self, id: int, channel: str) -> Joining | None:
        """Return the subscription of a connection to a channel; `None` if there is none."""
        return self._of.get(id, {}).get(channel)

    def add(self, joining: Joining) -> None:
        """Add one that waits to join."""
        self._of.setdefault(joining.id, {})[joining.channel] = joining
        self.channels.setdefault(joining.channel, Channel()).waiting[joining.id] = joining

    def join(self, joining: Joining, position: str) -> Channel:
        """Let one that has waited receive; return its channel."""
        channel = self.channels[joining.channel]
        del channel.waiting[joining.id]
        channel.live[joining.id] = joining
        channel.position = position
        return channel

    def remove(self, joining: Joining) -> bool:
        """Remove one; return whether its channel has no other."""
        joining.cancelled = True
        mine = self._of[joining.id]
        del mine[joining.channel]
        if not mine:
            del self._of[joining.id]
        channel = self.channels[joining.channel]
        channel.live.pop(joining.id, None)
        channel.waiting.pop(joining.id, None)
        if channel.live or channel.waiting:
            return False
        del self.channels[joining.channel]
        return True

    def clear(self) -> None:
        """In a forked child: forget all of them, which are the parent's."""
        self.channels.clear()
        self._of.clear()

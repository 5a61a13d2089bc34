"""Where the Redis is that has a key: what sentinels, and the members of a cluster, say of it. No I/O of its own.

Either is asked with one command, which `Channels` sends over gevent's sockets and `Remote` over ordinary ones.
redis-py's own `Sentinel` and `RedisCluster` would block the loop meanwhile.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import redis
from redis.crc import key_slot

from gowsev.channels.health import describe
from gowsev.channels.line import FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gowsev.channels.url import Address

    Ask = Callable[..., Any]
    Place = tuple[str, int]

__all__ = ["Slots", "find_master", "find_slots"]


class Slots:
    """Which member of a cluster has which slots.

    Args:
        answer: to `CLUSTER SLOTS`: first and last slot, the master, and its replicas, for each range.
        asked: the host that has answered, which is meant where a member does not know its own name.
    """

    def __init__(self, answer: Any, asked: str) -> None:
        self.members: list[Place] = []
        """All that are known, replicas included."""
        self.masters: set[Place] = set()
        ranges = []
        for first, last, *members in answer:
            places = [((host or b"").decode() or asked, int(port)) for host, port, *_ in members]
            self.members += [place for place in places if place not in self.members]
            self.masters.add(places[0])
            ranges.append((int(first), int(last), places[0]))
        self._ranges = sorted(ranges)
        self._firsts = [first for first, _, _ in self._ranges]

    def place(self, key: bytes) -> Place | None:
        """Return the member that has a key; `None` if none has."""
        slot = key_slot(key)
        index = bisect_right(self._firsts, slot) - 1
        if index < 0 or self._ranges[index][1] < slot:
            return None
        return self._ranges[index][2]


def find_master(address: Address, ask: Ask) -> Address:
    """Ask the sentinels, one after another, where the master is; without sentinels it is the address itself.

    Args:
        address: as `url.parse` returns it.
        ask: connects to an address, sends a command, and returns the answer; raises `FAILED`.

    Raises:
        FAILED: none of them knows.
    """
    if not address.sentinels:
        return address
    reason = "they do not know it"
    for sentinel in address.sentinels:
        try:
            answer = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        except FAILED as error:  # the next one may know; if none does, that is said
            reason = describe(error)
        else:
            if answer:
                return address.at(answer[0].decode(), int(answer[1]))
    raise redis.ConnectionError(f"no sentinel says where {address.service!r} is: {reason}")


def find_slots(members: Iterable[Address], ask: Ask) -> Slots:
    """Ask the members of a cluster, one after another, who has which slots.

    Raises:
        FAILED: none of them says so.
    """
    reason = ""
    for member in members:
        try:
            return Slots(ask(member, "CLUSTER", "SLOTS"), member.host)
        except FAILED as error:  # the next one may know; if none does, that is said
            reason = describe(error)
    raise redis.ConnectionError(f"no member of the cluster says who has which slots: {reason}")

"""The connections of a `Remote`: to the one Redis, to the master that sentinels name, or to a cluster's members.

redis-py's own, with its ordinary sockets. They block, and are used only while the `Remote`'s lock is held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis

from gowsev.channels.line import ASKED
from gowsev.channels.places import find_master, find_slots
from gowsev.channels.url import ordinary_connection

if TYPE_CHECKING:
    from gowsev.channels.places import Place, Slots
    from gowsev.channels.url import Address

__all__ = ["Routes"]


class Routes:
    """Connections, opened when they are wanted.

    Args:
        address: of the Redis, or of how to find it.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connections: dict[Place, redis.Connection] = {}
        self._slots: Slots | None = None

    @property
    def cluster(self) -> bool:
        """Whether there are several."""
        return bool(self._address.members)

    def connect(self, key: bytes) -> redis.Connection:
        """Return an open connection to the Redis that has a key. Blocks.

        Raises:
            FAILED: there is none.
        """
        place = self._place(key)
        if place not in self._connections:
            address = self._address.at(*place) if self.cluster else find_master(self._address, _ask)
            self._connections[place] = ordinary_connection(address)
        connection = self._connections[place]
        connection.connect()
        return connection

    def close(self) -> None:
        """Close all of them, and forget where they led."""
        connections, self._connections, self._slots = self._connections, {}, None
        for connection in connections.values():
            connection.disconnect()

    def _place(self, key: bytes) -> Place:
        if not self.cluster:
            return "", 0
        if self._slots is None:
            self._slots = find_slots(self._address.members, _ask)
        place = self._slots.place(key)
        if place is None:
            raise redis.ConnectionError("no member of the cluster has its slot")
        return place


def _ask(address: Address, *words: Any) -> Any:
    connection = ordinary_connection(address, ASKED)
    try:
        connection.connect()
        connection.send_command(*words)
        return connection.read_response()
    finally:
        connection.disconnect()

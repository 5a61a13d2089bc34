"""The members of a Redis Cluster, each with the channels of its slots.

Who has which slots is asked when something is wanted, whenever a member is lost or says that a slot is another's, and
every `_LOOK` seconds. Where that has changed, what is not answered yet goes to the new one in its order, and so do
names that are followed.

Invariants: all commands of one key are with one member, or wait for one here. Those that the old member has been sent
are given back before the new one is sent any.
"""

from __future__ import annotations

import logging
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from gowsev.channels.line import FAILED, ask_once
from gowsev.channels.places import find_slots
from gowsev.channels.reconnecting import pause
from gowsev.channels.server import Server

if TYPE_CHECKING:
    from gowsev.channels.health import Health
    from gowsev.channels.pipeline import Command
    from gowsev.channels.places import Place, Slots
    from gowsev.channels.server import User
    from gowsev.channels.url import Address

__all__ = ["Cluster"]

logger = logging.getLogger("gowsev")

_NAME = "cluster"
_NOBODY = "no member of the cluster has its slot"
#: Seconds between two questions who has which slots, if nothing is wrong; and at least, if something is.
_LOOK, _SOON = 30.0, 0.2


class Cluster:
    """The connections to a cluster.

    Args:
        address: of the cluster.
        health: is told of their state.
        prefix: of all keys.
        user: is told what happens.
    """

    def __init__(self, address: Address, health: Health, prefix: bytes, user: User) -> None:
        self._address = address
        self._health = health
        self._prefix = prefix
        self._user = user
        self._numbers = count(1)
        self._slots: Slots | None = None
        self._servers: dict[Place, Server] = {}
        self._names: dict[bytes, Place | None] = {}
        self._waiting: list[Command] = []  # what no member has
        self._known = [(member.host, member.port) for member in address.members]
        self._look = Event()
        self._looker: Any = None

    def why_away(self, key: bytes) -> str:
        place = self._place(key)
        if place is not None:
            return self._servers[place].why_away(key) if place in self._servers else ""
        if self._slots is not None:
            return _NOBODY
        return self._health.reason_of(_NAME) if self._health.is_away(_NAME) else ""

    def ask(self, command: Command) -> None:
        place = self._place(command.key)
        if place is None:
            self._waiting.append(command)
            self._look_soon()
        else:
            self._server(place).ask(command)

    def follow(self, name: bytes) -> None:
        place = self._names[name] = self._place(name)
        if place is None:
            self._look_soon()
        else:
            self._server(place).follow(name)

    def leave(self, name: bytes) -> None:
        place = self._names.pop(name)
        if place is not None:
            self._servers[place].leave(name)

    def go_on(self) -> None:
        for server in self._servers.values():
            server.go_on()

    def close(self) -> None:
        if self._looker is not None:  # pragma: no branch - it is asked before anything else
            self._looker.kill(block=False)
        for server in self._servers.values():
            server.close()

    def disown(self) -> None:
        if self._looker is not None:
            self._looker.kill(block=False)
        for server in self._servers.values():
            server.disown()

    # -- who has which slots -------------------------------------------------------------------------------------

    def _place(self, key: bytes) -> Place | None:
        return None if self._slots is None else self._slots.place(key)

    def _server(self, place: Place) -> Server:
        if place not in self._servers:
            address = self._address.at(*place)
            self._servers[place] = Server(
                address, self._health, self._prefix, self._user, self._numbers, self._look_soon
            )
        return self._servers[place]

    def _look_soon(self) -> None:
        self._look.set()
        if self._looker is None:
            self._health.expect(_NAME)
            self._looker = gevent.spawn(self._run)

    def _run(self) -> None:
        attempt = 0
        while True:
            self._look.clear()
            try:
                slots = find_slots([self._address.at(*place) for place in self._known], ask_once)
            except FAILED as error:
                # It is asked again, until the end; `Status` says why, and those who wait too long are told.
                self._expire(self._health.down(_NAME, error))
                self._look.set()
            else:
                self._health.is_up(_NAME)
                self._use(slots)
                self._expire(_NOBODY)
            gevent.sleep(pause(attempt) + _SOON)
            is_at_once = self._look.wait(1.0 if self._waiting or None in self._names.values() else _LOOK)
            attempt = attempt + 1 if is_at_once else 0

    def _use(self, slots: Slots) -> None:
        """Give everything to the member that has it now."""
        self._slots = slots
        self._known = [*slots.members, *(place for place in self._known if place not in slots.members)][:100]
        commands, self._waiting = self._waiting, []
        for place, server in self._servers.items():
            commands += server.give_back(lambda command, place=place: self._is_others(command, place))  # type: ignore[misc]
        for command in commands:
            self.ask(command)
        moved = [(name, old) for name, old in self._names.items() if old != slots.place(name)]
        if commands or moved:
            logger.debug("the cluster's slots: %d channels and %d commands have moved", len(moved), len(commands))
        for name, old in moved:
            if old is not None:
                self._servers[old].leave(name)
                self._user.cut_off([name])
            self.follow(name)
        for place in self._servers.keys() - slots.masters:
            self._servers.pop(place).forget()

    def _is_others(self, command: Command, place: Place) -> bool:
        return bool(command.key) and self._place(command.key) != place

    def _expire(self, reason: str) -> None:
        """Fail what no member has, and has waited for too long."""
        now = time.monotonic()
        late = [command for command in self._waiting if command.deadline <= now]
        self._waiting = [command for command in self._waiting if command not in late]
        for command in late:
            command.give_up(reason)
        self._user.away([name for name, place in self._names.items() if place is None], reason)

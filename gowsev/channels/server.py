"""One Redis as a process uses it: a connection to ask, and one to be notified over, both to the same Redis.

Each finds the Redis by itself: by its address, or by asking sentinels. Where one has found the new master and the other
is still with the old one, the other is opened anew.
"""

from __future__ import annotations

import secrets
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import AskError, NoPermissionError, RedisError

from gowsev.channels import scripts
from gowsev.channels.limits import Limits
from gowsev.channels.line import ask_once
from gowsev.channels.notifications import Listener, Notifications
from gowsev.channels.pipeline import Pipeline
from gowsev.channels.places import find_master
from gowsev.channels.replies import comes_later
from gowsev.channels.script_commands import PUBLISH_SHA, look_words, publish_words, script_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gowsev.channels.health import Health
    from gowsev.channels.line import Line
    from gowsev.channels.pipeline import Command
    from gowsev.channels.url import Address

__all__ = ["Server", "Servers", "User"]

#: What Redis and Valkey say of a command in a script that lacks a permission; there it has no code of its own.
_FORBIDDEN = ("The user executing the script can't", "ACL failure in script")


class User(Listener, Protocol):
    """What uses a Redis, and is told of it."""

    def connected(self) -> None:
        """There is a new connection to ask over."""
        ...


class Servers(Protocol):
    """The Redis, or those of a cluster. None of this blocks."""

    def why_away(self, key: bytes) -> str:
        """Return why the Redis that has a key cannot be asked; empty if it can, as far as is known."""
        ...

    def ask(self, command: Command) -> None:
        """Ask the Redis that has the command's key."""
        ...

    def follow(self, name: bytes) -> None:
        """Be notified of what is published under a name."""
        ...

    def leave(self, name: bytes) -> None:
        """Be notified of it no longer."""
        ...

    def go_on(self) -> None:
        """There is room again for notifications."""
        ...

    def close(self) -> None:
        """End; nothing is reported any more."""
        ...

    def disown(self) -> None:
        """In a forked child: leave the connections to the parent."""
        ...


class Server:
    """The connections to one Redis.

    Args:
        address: its own, or how to find it.
        health: is told of their state.
        prefix: of all keys.
        user: is told what happens.
        numbers: of commands; as those of other members of the same cluster.
        lost: called when it cannot be asked; for a member of a cluster.
    """

    def __init__(
        self,
        address: Address,
        health: Health,
        prefix: bytes,
        user: User,
        numbers: Iterator[int] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        def find() -> Address:
            return find_master(address, ask_once)

        def find_later() -> Address:
            # Whether publishes are refused is known first, so whoever reads that Redis is away will not be let wait.
            self._pipeline.wait_tried()
            return find()

        self._cluster = lost is not None
        where = f"{address.host}:{address.port}: " if self._cluster else ""
        self._prefix = prefix
        self._health = health
        self._user = user
        self._pipeline = Pipeline(
            find,
            health,
            where,
            numbers or count(1),
            self._cluster,
            self._prepare,
            self._idle,
            self._connected,
            lost or (lambda: None),
        )
        self._notifications = Notifications(find_later, health, where, self._cluster, self._probe, user)

    def why_away(self, key: bytes) -> str:  # noqa: ARG002 - there is one for all keys
        # Without notifications others hear of a message later, but they hear of it.
        name = self._pipeline.name
        return self._health.reason_of(name) if self._health.is_away(name) else ""

    def ask(self, command: Command) -> None:
        self._pipeline.ask(command)
        self._notifications.start()

    def follow(self, name: bytes) -> None:
        self._notifications.follow(name)
        self._pipeline.start()

    def leave(self, name: bytes) -> None:
        self._notifications.leave(name)

    def give_back(self, unwanted: Callable[[Command], bool]) -> list[Command]:
        """Remove and return commands that are to be sent elsewhere, those of one key in their order."""
        return self._pipeline.give_back(unwanted)

    def go_on(self) -> None:
        self._notifications.go_on()

    def close(self) -> None:
        self._pipeline.close()
        self._notifications.close()

    def disown(self) -> None:
        self._pipeline.disown()
        self._notifications.disown()

    def forget(self) -> None:
        """End, as a Redis that nothing is asked of any more."""
        self.close()
        self._health.forget(self._pipeline.name)
        self._health.forget(self._notifications.name)

    def _connected(self, refused: bool) -> None:
        other = self._notifications.peer
        if other is not None and ((refused and not self._cluster) or other != self._pipeline.peer):
            self._notifications.renew()
        self._user.connected()

    def _idle(self, _number: int, _again: bool) -> tuple[Any, ...]:
        """Return a command that a replica refuses; in a cluster, any: who has which slots is asked there."""
        return ("PING",) if self._cluster else look_words(scripts.channel_keys(self._prefix, b""), False, {})

    def _prepare(self, line: Line) -> None:
        """Make a connection to ask over ready, and see whether publishing works over it."""
        for script in scripts.ALL:
            line.ask("SCRIPT", "LOAD", script)
        for words in self._trial():
            line.send([words])
            answer = line.read()
            if words[1] == PUBLISH_SHA and isinstance(answer, list) and len(answer) > 3:
                answer = NoPermissionError(answer[3].decode("utf-8", "replace"))
            if isinstance(answer, AskError) and self._cluster:
                return  # another member has that channel; what is wrong with this one, each command will tell
            # What is wrong with that channel alone, such as a lack of memory, passes.
            if isinstance(answer, RedisError) and (
                comes_later(answer, True) or isinstance(answer, NoPermissionError) or str(answer).startswith(_FORBIDDEN)
            ):
                raise answer

    def _trial(self) -> Iterator[tuple[Any, ...]]:
        """Return commands that do all that may be forbidden, in the channel without a name, which is unused."""
        keys = scripts.channel_keys(self._prefix, b"")
        those, session = scripts.member_keys(self._prefix, b""), secrets.token_hex(6)
        for number in (1, 2):  # there is room for one message, so the second is trimmed
            yield publish_words(keys, session, number, False, b"", Limits(history_messages=1), again=True)
        yield look_words(keys, True, {})
        yield script_words(scripts.ALIVE, those, session, 1, "1", b"", 1)
        yield script_words(scripts.ALIVE, those, session, 1, "0", b"", 0)
        yield script_words(scripts.MEMBERS, those)

    def _probe(self, line: Line) -> None:
        """See whether notifications may be had over a connection, under a name where nothing is ever published."""
        line.ask("PING")
        name = scripts.channel_keys(self._prefix, b"")[2] + b":probe"
        for word in (b"SSUBSCRIBE", b"SUNSUBSCRIBE"):
            line.send([(word, name)])
            answer: Any = line.read()
            if isinstance(answer, AskError) and self._cluster:
                return
            if isinstance(answer, Exception):
                raise answer

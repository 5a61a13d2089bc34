"""`Remote`: the same channels for a process without a loop. It blocks its thread or greenlet, and raises.

redis-py's own connection does the work, with its ordinary sockets, which are gevent's in a patched process.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

import redis
from redis.exceptions import NoScriptError

from gowsev.channels.errors import ChannelsAway, Refused
from gowsev.channels.health import describe
from gowsev.channels.limits import DEFAULTS, Limits
from gowsev.channels.line import FAILED
from gowsev.channels.publication import Position, check_message, check_name, check_prefix, publication_of
from gowsev.channels.reconnecting import pause
from gowsev.channels.replies import comes_later, members_of, position_of, timeline_of
from gowsev.channels.routes import Routes
from gowsev.channels.script_commands import look_words, publish_words, script_words, with_source
from gowsev.channels.scripts import MEMBERS, channel_keys, member_keys
from gowsev.channels.url import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from gowsev.channels.publication import Publication

__all__ = ["Remote"]

#: Attempts, the first included; where Redis refuses connections they take some two seconds, where it is silent, half a
#: minute.
_ATTEMPTS = 6


class Remote:
    """Channels over Redis for a task, a script, or a view that may wait. A context manager, which closes it.

    Greenlets (such as views under gevent) may share one, and wait for each other; so may the threads of a process that
    is not patched. In a patched one, each real thread, such as those of gevent's pool, needs its own. The first call
    connects. While Redis is away a call takes up to half a minute where Redis is silent, some two seconds where it
    refuses connections, and raises `ChannelsAway`; this comes on top of the wait for others' calls. A child that was
    forked has a connection of its own.

    Args:
        url: as for `Channels`.
        prefix: as for `Channels`.
        limits: the bounds of histories, and how long a name may be.

    Raises:
        TypeError, ValueError: `url` or `prefix` is not what it should be; the text names what is wrong.
    """

    def __init__(self, url: str, *, prefix: str = "gowsev", limits: Limits = DEFAULTS) -> None:
        if not isinstance(limits, Limits):
            raise TypeError(f"limits must be gowsev.channels.Limits, not {limits!r}")
        self._prefix = check_prefix(prefix)
        self._address = parse(url)
        self._limits = limits
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._session = secrets.token_hex(6)
        self._number = 0
        self._routes = Routes(self._address)

    def Publish(self, channel: str, message: str | bytes, key: str | None = None) -> str:
        """Publish a message, and return its position once it is stored. Blocks, while Redis is away for half a minute.

        Args:
            channel: 1 to `Limits.name_bytes` bytes in UTF-8.
            message: a str is sent as text, bytes as binary.
            key: names this publish, so that one that is repeated happens once: for a day, nothing more is published to
                this channel with it, and the position of the first is returned. As long as a channel's name.

        Raises:
            TypeError, ValueError: an argument is not what it should be.
            ChannelsAway: Redis cannot be reached; `certain` tells whether the message is certainly not stored.
            Refused: Redis has refused it.
        """
        name = check_name("channel", channel, self._limits.name_bytes)
        text, payload = check_message(message)
        if key is not None:
            check_name("key", key, self._limits.name_bytes)
        keys = channel_keys(self._prefix, name)

        def words(number: int, again: bool) -> tuple[Any, ...]:
            return publish_words(keys, self._session, number, text, payload, self._limits, again, key or "")

        answer = self._ask(words, publishes=True)
        if len(answer) > 3:  # stored, but not notified
            raise Refused(self._address.hide(answer[3].decode("utf-8", "replace")), certain=False)
        return str(position_of(answer))

    def Members(self, channel: str) -> dict[str, int]:
        """Return who is there, over all processes, and with how many connections. Blocks, as `Publish` does.

        Raises:
            TypeError, ValueError: `channel` is not what it should be.
            ChannelsAway, Refused: Redis cannot be reached, or has refused it.
        """
        words = script_words(
            MEMBERS, member_keys(self._prefix, check_name("channel", channel, self._limits.name_bytes))
        )
        return members_of(self._ask(lambda _number, _again: words))

    def History(self, channel: str, after: str | None = None) -> list[Publication]:
        """Return what is kept of a channel, the oldest first. Blocks, as `Publish` does.

        Args:
            channel: its name.
            after: a position; only what came later is returned. One that means nothing any more is passed over.

        Raises:
            TypeError, ValueError: an argument is not what it should be.
            ChannelsAway, Refused: Redis cannot be reached, or has refused it.
        """
        keys = channel_keys(self._prefix, check_name("channel", channel, self._limits.name_bytes))
        if after is not None and not isinstance(after, str):
            raise TypeError(f"after must be a position, which is a str, or None, not {after!r}")
        position = Position.parse(after or "")
        words = look_words(keys, True, {position.epoch: position.offset} if position else {})
        try:
            timeline = timeline_of(self._ask(lambda _number, _again: words))
        except (ValueError, LookupError, TypeError) as error:  # another program has written there
            raise Refused(describe(error)) from error
        return [publication_of(channel, message) for message in timeline.messages]

    def Close(self) -> None:
        """Close the connection. The next call opens another."""
        if self._pid == os.getpid():  # pragma: no branch - in a child, whose coverage is not measured
            with self._lock:
                self._routes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.Close()

    def _ask(self, words: Callable[[int, bool], tuple[Any, ...]], publishes: bool = False) -> Any:
        """Ask Redis, several times if necessary."""
        if self._pid != os.getpid():
            # Nothing is done to the parent's connection, and its lock may be held by a thread that is not here.
            self._begin()  # pragma: no cover - in a child, whose coverage is not measured
        with self._lock:
            self._number += 1
            perhaps_stored = False
            attempt = 0
            while True:
                try:
                    asked = words(self._number, perhaps_stored)
                    connection = self._routes.connect(asked[3])
                    perhaps_stored = publishes
                    return self._try(connection, asked)
                except redis.ResponseError as error:
                    if not comes_later(error, self._routes.cluster):
                        raise self._refusal(error) from error
                    self._give_up(error, attempt, perhaps_stored)
                except FAILED as error:  # the next attempt has a new connection
                    self._give_up(error, attempt, perhaps_stored)
                attempt += 1
                time.sleep(pause(attempt + 1))

    def _refusal(self, error: Exception) -> Exception:
        reason = self._address.hide(describe(error))
        return ChannelsAway(reason, certain=False) if reason.startswith("UNKNOWN") else Refused(reason)

    def _give_up(self, error: Exception, attempt: int, perhaps_stored: bool) -> None:
        """Close the connection; raise if there is no other attempt."""
        self._routes.close()
        if attempt + 1 == _ATTEMPTS:
            raise ChannelsAway(self._address.hide(describe(error)), certain=not perhaps_stored) from error

    def _try(self, connection: redis.Connection, words: tuple[Any, ...]) -> Any:
        try:
            connection.send_command(*words)
            return connection.read_response()
        except NoScriptError:
            connection.send_command(*with_source(words))
            return connection.read_response()

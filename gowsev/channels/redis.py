"""Channels over Redis: the backend that joins processes.

A publish is one script, which stores the message and notifies of it (`scripts`). What arrives is notified of; a
channel's stream is only read to recover (`followed`). Two connections serve that, one to ask and one to be notified,
in greenlets of the context's thread; nothing here waits for them.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, RedisError

from gowsev.channels import scripts
from gowsev.channels.errors import ChannelsAway, Refused
from gowsev.channels.followed import Followed
from gowsev.channels.health import Health, describe
from gowsev.channels.limits import Limits
from gowsev.channels.notifications import Notifications
from gowsev.channels.pipeline import PATIENCE, Command, Pipeline, comes_later
from gowsev.channels.presence import Presence
from gowsev.channels.publication import check_prefix, encoded
from gowsev.channels.replies import notification, position_of, timeline_of
from gowsev.channels.url import parse
from gowsev.channels.words import look_words, publish_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.channels.backend import Joining, Publishing, Receiver
    from gowsev.channels.line import Line
    from gowsev.channels.publication import Position

__all__ = ["Redis"]

logger = logging.getLogger("gowsev")

#: What Redis says of a command in a script that lacks a permission; there it has no code of its own.
_FORBIDDEN = "The user executing the script can't"


def prepare(line: Line, prefix: bytes) -> None:
    """Make a connection ready, and see whether publishing works over it.

    Raises:
        FAILED: it does not.
    """
    for script in scripts.ALL:
        line.ask("SCRIPT", "LOAD", script)
    # The channel without a name is nobody's; with room for one message, each is trimmed. What is wrong with it alone,
    # such as a lack of memory, passes.
    keys = scripts.channel_keys(prefix, b"")
    line.send([publish_words(keys, secrets.token_hex(6), 1, False, b"", Limits(history_messages=1))])
    answer = line.read()
    if isinstance(answer, list) and len(answer) > 3:
        answer = NoPermissionError(answer[3].decode("utf-8", "replace"))
    if isinstance(answer, RedisError) and (
        comes_later(answer) or isinstance(answer, NoPermissionError) or _FORBIDDEN in str(answer)
    ):
        raise answer


class Redis:
    """The backend over Redis.

    Args:
        url: its address.
        prefix: of all keys.
        receiver: is told what happens.
        limits: how much is kept.
    """

    def __init__(self, url: str, prefix: str, receiver: Receiver, limits: Limits) -> None:
        self._prefix = check_prefix(prefix)
        self._address = parse(url)
        self._receiver = receiver
        self._limits = limits
        self._begin()

    def _begin(self) -> None:
        """Begin as a process that has asked for nothing yet."""
        self._session = secrets.token_hex(6)
        self._followed: dict[str, Followed] = {}
        self._by_name: dict[bytes, Followed] = {}
        self._failed: set[str] = set()
        self.health = Health(self._address, (Pipeline.NAME, Notifications.NAME))
        self._pipeline = Pipeline(self._address, self.health, lambda line: prepare(line, self._prefix), self._connected)
        self._notifications = Notifications(
            self._address,
            self.health,
            scripts.channel_keys(self._prefix, b"")[2] + b":probe",  # where nothing is ever published
            self._confirmed,
            self._notified,
            self._refused,
            self._cut_off,
            self._away,
            self._receiver.has_room,
        )
        self._presence = Presence(self._prefix, self._session, self._ask, self._receiver)

    # -- publishing ----------------------------------------------------------------------------------------------

    def publish(self, publishing: Publishing) -> Exception | None:
        # The connection for commands, where it is idle, hears of its end only when something is sent over it.
        if self.health.is_away(Pipeline.NAME) or self.health.is_away(Notifications.NAME):
            return ChannelsAway(self.health.reason)
        keys = self._keys(publishing.channel)
        session, limits = self._session, self._limits

        def words(number: int, again: bool) -> tuple[Any, ...]:
            return publish_words(keys, session, number, publishing.text, publishing.payload, limits, again)

        def answered(answer: Any) -> None:
            self._receiver.settled(publishing, *self._outcome(answer))

        self._pipeline.ask(publishing.account, Command(words, len(publishing.payload), answered))
        self._notifications.start()
        return None

    def _outcome(self, answer: Any) -> tuple[Position | None, Exception | None]:
        """Return what became of a publish: where it stands, or why not."""
        if isinstance(answer, ChannelsAway):
            return None, answer
        if isinstance(answer, Exception):
            reason = self._address.hide(describe(answer))
            return None, ChannelsAway(reason, False) if reason.startswith("UNKNOWN") else Refused(reason)
        if len(answer) > 3:  # stored, and nobody was told
            return None, Refused(self._address.hide(answer[3].decode("utf-8", "replace")), certain=False)
        return position_of(answer), None

    def _keys(self, channel: str) -> tuple[bytes, bytes, bytes]:
        return scripts.channel_keys(self._prefix, encoded(channel))

    def _ask(self, words: tuple[Any, ...], answered: Callable[[Any], object]) -> None:
        """Ask for something that may be done twice."""
        self._pipeline.ask(words[1], Command(lambda _number, _again: words, 0, answered))

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, joining: Joining) -> None:
        followed = self._followed.get(joining.channel)
        if followed is None:
            followed = Followed(joining.channel, self._receiver, self._limits.history_bytes)
            name = self._keys(joining.channel)[2]
            self._followed[joining.channel] = self._by_name[name] = followed
            self._notifications.follow(name)
            self._pipeline.start()
        followed.join(joining)
        self._look(followed)

    def leave(self, channel: str) -> None:
        del self._followed[channel]
        self._failed.discard(channel)
        name = self._keys(channel)[2]
        del self._by_name[name]
        self._notifications.leave(name)

    def _look(self, followed: Followed) -> None:
        """Look a channel up, if that is wanted."""
        if not followed.wants_look:
            return
        resumes, lowest = followed.begin_look()
        number = followed.look_number

        def answered(answer: Any) -> None:
            if self._followed.get(followed.channel) is followed and followed.look_number == number:
                self._looked(followed, answer)

        self._ask(look_words(self._keys(followed.channel), resumes, lowest), answered)

    def _looked(self, followed: Followed, answer: Any) -> None:
        try:
            if isinstance(answer, Exception):
                raise answer
            timeline = timeline_of(answer)
        except (ChannelsAway, Refused) as error:  # pragma: no cover - where a look has waited for longer than PATIENCE
            self._look_failed(followed, error)
        except Exception as error:
            # This channel's keys are not what they should be, or may not be read. The others go on.
            self._look_failed(followed, Refused(self._address.hide(describe(error))))
        else:
            self._failed.discard(followed.channel)
            followed.looked(timeline)
            self._look(followed)

    def _look_failed(self, followed: Followed, error: Exception) -> None:
        if followed.channel not in self._failed:  # pragma: no branch - it is said once
            self._failed.add(followed.channel)
            logger.error("channel %r cannot be read: %s", followed.channel[:100], error)
        for joining in followed.look_failed():
            if not joining.cancelled:  # pragma: no branch - it may have ended meanwhile
                self._receiver.failed(joining, error)
        followed.joining.clear()

    # -- what the connections tell -------------------------------------------------------------------------------

    def _connected(self) -> None:
        self._presence.connected()
        for followed in self._followed.values():
            self._look(followed)

    def _away(self, reason: str) -> None:
        """Tell those who have waited to join for too long."""
        before = time.monotonic() - PATIENCE
        for followed in self._followed.values():
            for joining in followed.give_up(before):
                if not joining.cancelled:  # pragma: no branch - it may have ended meanwhile
                    self._receiver.failed(joining, ChannelsAway(reason))

    def _refused(self, name: bytes, error: Exception) -> None:
        """Redis does not notify of a channel; it may when it is followed anew."""
        self._look_failed(self._by_name[name], Refused(self._address.hide(describe(error))))

    def _confirmed(self, name: bytes) -> None:
        followed = self._by_name[name]
        followed.confirmed()
        self._look(followed)

    def _notified(self, name: bytes, data: bytes) -> None:
        followed = self._by_name.get(name)
        if followed is None:  # pragma: no cover - it was left meanwhile
            return
        try:
            message = notification(data)
        except ValueError as error:
            # Whoever publishes so must be mended; what is in the stream is looked at.
            logger.warning("a notification of channel %r is not understood: %s", followed.channel[:100], error)
            followed.doubt()
        else:
            followed.notified(message)
        self._look(followed)

    def _cut_off(self) -> None:
        for followed in self._followed.values():
            followed.cut_off()

    # -- presence, and the end -----------------------------------------------------------------------------------

    def present(self, channel: str, member: str, connections: int) -> None:
        self._presence.present(channel, member, connections)

    def members(self, channel: str, done: Callable[..., object]) -> None:
        if self.health.is_away(Pipeline.NAME):
            self._receiver.answer(done, {}, ChannelsAway(self.health.reason))
        else:
            self._presence.members(channel, done)

    def go_on(self) -> None:
        self._notifications.go_on()

    def close(self) -> None:
        self._presence.close()
        self._pipeline.close()
        self._notifications.close()

    def disown(self) -> None:
        self._presence.close()
        self._pipeline.disown()
        self._notifications.disown()
        self._begin()

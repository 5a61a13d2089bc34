"""Channels over Redis: the backend that joins processes.

A publish is one script, which stores the message and notifies of it (`scripts`). What arrives is notified of; a
channel's stream is only read to recover (`followed`). Two connections to each Redis serve that, one to ask and one to
be notified (`server`, `cluster`), in greenlets of the context's thread; nothing here waits for them.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.channels import scripts
from gowsev.channels.cluster import Cluster
from gowsev.channels.errors import ChannelsAway, Refused
from gowsev.channels.followed import Followed
from gowsev.channels.health import Health, describe
from gowsev.channels.looks import Looks
from gowsev.channels.pipeline import PATIENCE, Command
from gowsev.channels.presence import Presence
from gowsev.channels.publication import check_prefix, encoded
from gowsev.channels.replies import notification, position_of, timeline_of
from gowsev.channels.script_commands import look_words, publish_words
from gowsev.channels.scripts import META_SECONDS
from gowsev.channels.server import Server
from gowsev.channels.url import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from gowsev.channels.backend import Joining, Publishing, Receiver
    from gowsev.channels.limits import Limits
    from gowsev.channels.publication import Position
    from gowsev.channels.server import Servers

__all__ = ["Redis"]

logger = logging.getLogger("gowsev")


class Redis:
    """The backend over Redis.

    Args:
        url: its address.
        prefix: of all keys.
        receiver: is told what happens.
        limits: how much is kept.
        silence: seconds after which a channel that is followed is used, so that Redis does not forget its numbers.
    """

    def __init__(
        self, url: str, prefix: str, receiver: Receiver, limits: Limits, silence: float = META_SECONDS / 7
    ) -> None:
        self._prefix = check_prefix(prefix)
        self._address = parse(url)
        self._receiver = receiver
        self._limits = limits
        self._silence = silence
        self._begin()

    def _begin(self) -> None:
        """Begin as a process that has asked for nothing yet."""
        self._session = secrets.token_hex(6)
        self._followed: dict[str, Followed] = {}
        self._by_name: dict[bytes, Followed] = {}
        self._failed: set[str] = set()
        self._silent: set[str] = set()
        self._keeper: Any = None
        self._looks = Looks(self._begin_look, self._receiver.has_room)
        if self._address.members:
            self.health = Health(self._address, ("cluster",))
            self._servers: Servers = Cluster(self._address, self.health, self._prefix, self)
        else:
            self.health = Health(self._address, ("commands", "notifications"))
            self._servers = Server(self._address, self.health, self._prefix, self)
        self._presence = Presence(self._prefix, self._session, self._ask, self._receiver, self._unsaid)

    @property
    def busy(self) -> bool:
        return self.health.up and self._presence.busy

    # -- publishing ----------------------------------------------------------------------------------------------

    def publish(self, publishing: Publishing) -> Exception | None:
        keys = self._keys(publishing.channel)
        if reason := self._servers.why_away(keys[0]):
            return ChannelsAway(reason)
        session, limits = self._session, self._limits

        def words(number: int, again: bool) -> tuple[Any, ...]:
            return publish_words(keys, session, number, publishing.text, publishing.payload, limits, again)

        def answered(answer: Any) -> None:
            self._receiver.settled(publishing, *self._outcome(answer))

        size = len(publishing.payload)
        self._servers.ask(Command(publishing.account, keys[0], words, size, answered, publishes=True))
        return None

    def _outcome(self, answer: Any) -> tuple[Position | None, Exception | None]:
        """Return the outcome of a publish: its position, or an error."""
        if isinstance(answer, ChannelsAway):
            return None, answer
        if isinstance(answer, Exception):
            reason = self._address.hide(describe(answer))
            return None, ChannelsAway(reason, False) if reason.startswith("UNKNOWN") else Refused(reason)
        if len(answer) > 3:  # stored, but not notified
            return None, Refused(self._address.hide(answer[3].decode("utf-8", "replace")), certain=False)
        return position_of(answer), None

    def _keys(self, channel: str) -> tuple[bytes, bytes, bytes]:
        return scripts.channel_keys(self._prefix, encoded(channel))

    def _ask(self, words: tuple[Any, ...], answered: Callable[[Any], object], account: Hashable = "presence") -> None:
        """Ask for something that may be done twice."""
        self._servers.ask(Command(account, words[3], lambda _number, _again: words, 0, answered))

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, joining: Joining) -> None:
        followed = self._followed.get(joining.channel)
        if followed is None:
            followed = Followed(joining.channel, self._receiver, self._limits.history_bytes)
            name = self._keys(joining.channel)[2]
            self._followed[joining.channel] = self._by_name[name] = followed
            self._servers.follow(name)
            if self._keeper is None:
                self._keeper = gevent.spawn(self._keep)
        followed.join(joining)
        self._looks.want(followed)

    def leave(self, channel: str) -> None:
        self._looks.leave(self._followed.pop(channel))
        self._failed.discard(channel)
        self._silent.discard(channel)
        name = self._keys(channel)[2]
        del self._by_name[name]
        self._servers.leave(name)

    def _keep(self) -> None:
        """Use the channels in which nothing has happened: a silent one is no new one when it is published to again."""
        seen: dict[str, Position | None] = {}
        while True:
            gevent.sleep(self._silence)
            for channel, followed in self._followed.items():
                if seen.get(channel) == followed.position:
                    self._ask(look_words(self._keys(channel), False, {}), lambda _answer: None, "silent")
            seen = {channel: followed.position for channel, followed in self._followed.items()}

    def _begin_look(self, followed: Followed, done: Callable[[], None]) -> None:
        account = followed.joining[0].id if followed.joining else None
        resumes, lowest = followed.begin_look()
        number = followed.look_number

        def answered(answer: Any) -> None:
            if self._followed.get(followed.channel) is followed and followed.look_number == number:
                self._looked(followed, answer)
            done()

        self._ask(look_words(self._keys(followed.channel), resumes, lowest), answered, ("look", account))

    def _looked(self, followed: Followed, answer: Any) -> None:
        try:
            if isinstance(answer, Exception):
                raise answer
            timeline = timeline_of(answer)
        except Exception as error:
            # Redis is away; or this channel's keys are not what they should be, or may not be read. The others go on.
            is_away = isinstance(error, ChannelsAway)
            self._look_failed(followed, error if is_away else Refused(self._address.hide(describe(error))))
        else:
            self._failed.discard(followed.channel)
            followed.looked(timeline)
            self._looks.want(followed)

    def _look_failed(self, followed: Followed, error: Exception) -> None:
        if followed.channel not in self._failed:  # pragma: no branch - said once; when again is chance
            self._failed.add(followed.channel)
            logger.error("channel %r cannot be read: %s", followed.channel[:100], error)
        for joining in followed.look_failed():
            if not joining.cancelled:  # pragma: no branch - it may have ended in this very moment
                self._receiver.failed(joining, error)
        followed.joining.clear()

    # -- what the connections tell -------------------------------------------------------------------------------

    def connected(self) -> None:
        self._presence.connected()
        for followed in self._followed.values():
            self._looks.want(followed)

    def away(self, names: Iterable[bytes], reason: str) -> None:
        """Tell those who have waited to join for too long."""
        before = time.monotonic() - PATIENCE
        for name in names:
            for joining in self._by_name[name].give_up(before):
                if not joining.cancelled:  # it may have ended meanwhile
                    self._receiver.failed(joining, ChannelsAway(reason))

    def refused(self, name: bytes, error: Exception) -> None:
        """Redis does not notify of a channel; it may when it is followed anew."""
        self._look_failed(self._by_name[name], Refused(self._address.hide(describe(error))))

    def confirmed(self, name: bytes) -> None:
        followed = self._by_name[name]
        followed.confirmed()
        self._looks.want(followed)

    def notified(self, name: bytes, data: bytes) -> None:
        followed = self._by_name.get(name)
        if followed is None:  # it was left meanwhile
            return
        try:
            message = notification(data)
        except ValueError as error:
            # The publishing program must be mended; the stream is looked up meanwhile.
            logger.warning("a notification of channel %r is not understood: %s", followed.channel[:100], error)
            followed.doubt()
        else:
            followed.notified(message)
        self._looks.want(followed)

    def cut_off(self, names: Iterable[bytes]) -> None:
        for name in names:
            self._by_name[name].cut_off()

    def has_room(self) -> bool:
        return self._receiver.has_room()

    def _unsaid(self, channel: str, error: Exception) -> None:
        """Note that this process could not report its members; log it once for each channel."""
        if not isinstance(error, ChannelsAway) and channel not in self._silent:
            self._silent.add(channel)
            reason = self._address.hide(describe(error))
            logger.error("members of channel %r are not told to others: %s", channel[:100], reason)

    # -- presence, and the end -----------------------------------------------------------------------------------

    def present(self, channel: str, member: str, connections: int) -> None:
        self._presence.present(channel, member, connections)

    def members(self, channel: str, done: Callable[..., object]) -> None:
        if reason := self._servers.why_away(self._keys(channel)[0]):
            self._receiver.answer(done, {}, ChannelsAway(reason))
        else:
            self._presence.members(channel, done)

    def go_on(self) -> None:
        self._servers.go_on()
        self._looks.go_on()

    def close(self) -> None:
        self._end()
        self._servers.close()

    def disown(self) -> None:
        self._end()
        self._servers.disown()
        self._begin()

    def _end(self) -> None:
        self._presence.close()
        if self._keeper is not None:
            self._keeper.kill(block=False)

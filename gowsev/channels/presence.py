"""Who is there, over all processes: each reports its own members, again and again.

For each channel with members here, this process counts as alive for `LIFETIME` seconds after its last report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

from gowsev.channels.errors import ChannelsError, Refused
from gowsev.channels.health import describe
from gowsev.channels.publication import encoded
from gowsev.channels.replies import members_of
from gowsev.channels.script_commands import script_words
from gowsev.channels.scripts import ALIVE, MEMBERS, member_keys
from gowsev.channels.subscribers import count_member

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.channels.backend import Receiver

__all__ = ["HEARTBEAT", "LIFETIME", "Presence"]

#: Seconds between two reports of a process, and after which one that is silent counts as dead.
HEARTBEAT, LIFETIME = 8.0, 24


class Presence:
    """The members of this process.

    Args:
        prefix: of all keys.
        process: its name.
        ask: called with the words of a command, and with what gets the answer.
        receiver: is told who is there.
        failed: called with a channel, and with what is wrong, where a report fails.
    """

    def __init__(
        self,
        prefix: bytes,
        process: str,
        ask: Callable[..., None],
        receiver: Receiver,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._prefix = prefix
        self._process = process
        self._ask = ask
        self._receiver = receiver
        self._failed = failed
        self._members: dict[str, dict[str, int]] = {}
        self._heart: Any = None
        self._unanswered = 0

    def present(self, channel: str, member: str, connections: int) -> None:
        """Report how many connections a member has here."""
        first = channel not in self._members
        count_member(self._members, channel, member, connections)
        self._say(channel, first, {member: connections})
        if self._heart is None:
            self._heart = gevent.spawn(self._beat)

    @property
    def busy(self) -> bool:
        """Whether a report is not answered yet."""
        return self._unanswered > 0

    def members(self, channel: str, done: Callable[..., object]) -> None:
        """Find out who is there."""

        def answered(answer: Any) -> None:
            if isinstance(answer, Exception):
                error = answer if isinstance(answer, ChannelsError) else Refused(describe(answer))
                self._receiver.answer(done, {}, error)
            else:
                self._receiver.answer(done, members_of(answer), None)

        self._ask(script_words(MEMBERS, self._keys(channel)), answered)

    def connected(self) -> None:
        """Report everything: Redis may have lost it."""
        for channel, members in self._members.items():
            self._say(channel, True, members)  # pragma: no cover - run, but not traced behind a switch

    def close(self) -> None:
        """Report nothing any more."""
        if self._heart is not None:
            self._heart.kill(block=False)

    def _beat(self) -> None:
        while True:
            gevent.sleep(HEARTBEAT)
            for channel in list(self._members):
                self._say(channel, False, {})

    def _say(self, channel: str, everything: bool, members: dict[str, int]) -> None:
        words: list[Any] = [self._process, LIFETIME, "1" if everything else "0"]
        for member, connections in members.items():
            words += [encoded(member), connections]

        def answered(answer: Any) -> None:
            self._unanswered -= 1
            if isinstance(answer, Exception):
                self._failed(channel, answer)
            elif answer == 0 and channel in self._members:  # it was forgotten: Redis was emptied, or this process slept
                self._say(channel, True, self._members[channel])

        self._unanswered += 1
        self._ask(script_words(ALIVE, self._keys(channel), *words), answered)

    def _keys(self, channel: str) -> tuple[bytes, bytes]:
        return member_keys(self._prefix, encoded(channel))

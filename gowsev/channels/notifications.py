"""The connection over which Redis notifies of messages: sharded pub/sub, one subscription for each channel followed.

Invariant: a channel is confirmed when every subscription to it that was sent on this connection has been answered; so
an answer to one that was taken back in between confirms nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import gevent
import redis
from gevent.event import Event

from gowsev.channels.health import describe
from gowsev.channels.line import ANSWER, FAILED
from gowsev.channels.reconnecting import Lasting
from gowsev.channels.replies import comes_later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gowsev.channels.health import Health
    from gowsev.channels.line import Line
    from gowsev.channels.url import Address

__all__ = ["Listener", "Notifications"]

#: Seconds between questions whether Redis is still there.
_PING = 3.0
#: Commands that are sent at once.
_BATCH = 256


class Listener(Protocol):
    """What gets the notifications."""

    def confirmed(self, name: bytes) -> None:
        """Notifications under a name have begun."""
        ...

    def notified(self, name: bytes, data: bytes) -> None:
        """Take what has come under a name."""
        ...

    def refused(self, name: bytes, error: Exception) -> None:
        """Redis does not notify under a name."""
        ...

    def cut_off(self, names: Iterable[bytes]) -> None:
        """The connection that notifies under these names is lost."""
        ...

    def away(self, names: Iterable[bytes], reason: str) -> None:
        """It could not be opened; told each time."""
        ...

    def has_room(self) -> bool:
        """Whether more may come; where not, nothing is read until `go_on`."""
        ...


class Notifications(Lasting):
    """The connection that notifies.

    Args:
        find: returns the address of the Redis; may block, and raise `FAILED`.
        health: is told of its state, under the name "notifications" behind `where`.
        where: what stands before the reasons that are given there.
        cluster: whether another Redis may have what this one has not.
        probe: tries whether notifications may be had over a new line; raises `FAILED`.
        listener: is told of them.
    """

    def __init__(
        self,
        find: Callable[[], Address],
        health: Health,
        where: str,
        cluster: bool,
        probe: Callable[[Line], None],
        listener: Listener,
    ) -> None:
        super().__init__(find, health, where + "notifications", where, _PING + ANSWER)
        self._cluster = cluster
        self._probe = probe
        self._listener = listener
        self._names: dict[bytes, None] = {}
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._unanswered: Counter[bytes] = Counter()
        self._sent: deque[bytes] = deque()  # the names of commands that are not answered yet
        self._open = False
        self._to_write = Event()
        self._room = Event()

    def follow(self, name: bytes) -> None:
        """Be notified of what is published under a name. Does not block."""
        self._names[name] = None
        if self._open:
            self._ask(b"SSUBSCRIBE", name)
        self.start()

    def leave(self, name: bytes) -> None:
        """Be notified of it no longer. Does not block."""
        del self._names[name]
        if self._open:
            self._ask(b"SUNSUBSCRIBE", name)

    def go_on(self) -> None:
        """There is room again."""
        self._room.set()

    def _ask(self, word: bytes, name: bytes) -> None:
        self._waiting.append((word, name))
        self._unanswered[name] += word == b"SSUBSCRIBE"
        self._to_write.set()

    def _prepare(self, line: Line) -> None:
        self._probe(line)

    def _away(self, reason: str) -> None:
        self._listener.away(tuple(self._names), reason)

    def _use(self, line: Line) -> None:
        """Read until the connection is lost."""
        self._waiting.clear()
        self._unanswered.clear()
        self._sent.clear()
        self._open = True
        for name in self._names:
            self._ask(b"SSUBSCRIBE", name)
        writer = gevent.spawn(self._write, line)
        self._greenlets.append(writer)
        try:
            while True:
                self._handle(line.read())
                while not self._listener.has_room():
                    self._room.clear()
                    self._room.wait()
        except FAILED:  # it is opened again, and what was missed is looked up
            pass
        finally:
            self._open = False
            line.shut()
            with closing(line):  # also where this greenlet is ended in its wait
                writer.kill()
            self._greenlets.remove(writer)  # pragma: no cover - run, but not traced behind a switch
            # At the end of the context there is nothing to look up.
            if not self._closed:  # pragma: no branch - run, but not traced behind a switch
                self._listener.cut_off(tuple(self._names))

    def _write(self, line: Line) -> None:
        try:
            while True:
                self._to_write.clear()
                if not self._waiting and not self._to_write.wait(_PING):
                    line.send([(b"PING",)])
                while self._waiting:
                    number = min(len(self._waiting), _BATCH)
                    batch = [self._waiting.popleft() for _ in range(number)]
                    self._sent.extend(name for _, name in batch)
                    line.send(batch)
        except FAILED:  # the reader ends by this, too, and notes it
            line.shut()

    def _handle(self, answer: Any) -> None:
        if isinstance(answer, Exception):  # to a subscription: Redis refuses nothing else here
            if not self._sent:  # what it had said unasked, of a slot that moves, was taken for the answer
                raise redis.ConnectionError(describe(answer))
            name = self._sent.popleft()
            if comes_later(answer, self._cluster):
                raise redis.ConnectionError(describe(answer))
            if self._is_last(name):  # it may be followed anew by now
                self._listener.refused(name, answer)
        elif answer[0] == b"smessage":
            self._listener.notified(answer[1], answer[2])
        elif answer[0] == b"sunsubscribe":
            if not self._sent or self._sent[0] != answer[1]:
                raise redis.ConnectionError("a channel is notified of by another Redis now")
            self._sent.popleft()
        elif answer[0] == b"ssubscribe":
            name = self._sent.popleft()
            if self._is_last(name):
                self._listener.confirmed(name)

    def _is_last(self, name: bytes) -> bool:
        """Count the answer to a subscription; tell whether no other is to come, and it is wanted."""
        self._unanswered[name] -= 1
        if self._unanswered[name]:
            return False
        del self._unanswered[name]
        return name in self._names

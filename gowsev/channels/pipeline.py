"""The connection over which Redis is asked, many commands at a time, and again where an answer was lost.

    queued     waits for its turn; one account's commands keep their order, and the accounts take turns
    sent       may have been carried out, or may yet be; if the connection is lost it is sent again, as it was
    answered   by Redis; or failed, after `PATIENCE`

Invariants: at most `WINDOW` commands and about `WINDOW_BYTES` are sent and not answered, and of one account `SHARE`, or
fewer (`turns`), but for those that are sent again. Each command has a number when it is first sent, and those of one
key are sent in the order of their numbers, so that the script recognizes one that comes again. One that Redis has
certainly not carried out, and may yet, gets a new number. What is given back keeps its number, for the pipeline to
another Redis that has the key now.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from redis.exceptions import NoScriptError

from gowsev.channels.errors import ChannelsAway
from gowsev.channels.health import describe
from gowsev.channels.line import ANSWER, FAILED
from gowsev.channels.reconnecting import Lasting
from gowsev.channels.replies import comes_later
from gowsev.channels.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from gowsev.channels.health import Health
    from gowsev.channels.line import Line
    from gowsev.channels.url import Address

__all__ = ["PATIENCE", "Command", "Pipeline"]

#: Commands, and their bytes, that may be sent and not answered.
WINDOW, WINDOW_BYTES = 128, 1 << 20
#: Commands of one account among them. What one account sends stands before what another asks a moment later.
SHARE = 16
#: Beside an account that waits for each of its own: one, and one more for each so many seconds that Redis takes to
#: answer. That is somewhat more than what one costs, here and there; so that account waits less than twice as long.
_COST = 0.0003
#: How often that way is tried; the shortest time counts.
_TRIES = 5
#: Seconds after which a command fails, if there has been no answer.
PATIENCE = 15.0
#: Seconds without a command after which `idle` is asked.
_SILENCE = 5.0


class Command:
    """Something to ask of Redis.

    Args:
        account: whose it is.
        key: one of those that it concerns.
        words: makes the words to send, of the number that the command gets, and whether it was sent before.
        size: in bytes, about.
        answered: called with the answer, which may be an error of Redis's, or `ChannelsAway`.
        publishes: whether it stores a message.
    """

    __slots__ = ("account", "answered", "deadline", "key", "number", "publishes", "size", "words")

    def __init__(
        self,
        account: Hashable,
        key: bytes,
        words: Callable[[int, bool], tuple[Any, ...]],
        size: int,
        answered: Callable[[Any], object],
        publishes: bool = False,
    ) -> None:
        self.account = account
        self.key = key
        self.words = words
        self.size = size
        self.answered = answered
        self.publishes = publishes
        self.number = 0  # not sent yet
        self.deadline = time.monotonic() + PATIENCE

    def give_up(self, reason: str) -> None:
        """Answer that Redis is away."""
        self.answered(ChannelsAway(reason, certain=not (self.publishes and self.number)))


class Pipeline(Lasting):
    """The connection to ask over; it is opened when there is something to ask.

    Args:
        find: returns the address of the Redis; may block, and raise `FAILED`.
        health: is told of its state, under the name "commands" behind `where`.
        where: what stands before the reasons that are given there.
        numbers: of the commands.
        cluster: whether another Redis may have what this one has not.
        prepare: called with each new line, to make it ready; raises `FAILED`.
        idle: makes the words of a command that only a master carries out, to see whether it is one still.
        connected: called after each new connection, with whether the last one was given up since Redis refused all
            commands.
        lost: called when a connection is lost, or could not be opened.
        silence: seconds without a command after which `idle` is asked.
    """

    def __init__(
        self,
        find: Callable[[], Address],
        health: Health,
        where: str,
        numbers: Iterator[int],
        cluster: bool,
        prepare: Callable[[Line], None],
        idle: Callable[[int, bool], tuple[Any, ...]],
        connected: Callable[[bool], None],
        lost: Callable[[], None],
        silence: float = _SILENCE,
    ) -> None:
        super().__init__(find, health, where + "commands", where, ANSWER)
        self._silence = silence
        self._cluster = cluster
        self._make_ready = prepare
        self._idle = idle
        self._connected = connected
        self._lost = lost
        self._refused = False
        self._numbers = numbers
        self._turns: Turns[Command] = Turns(SHARE)
        self._again: deque[Command] = deque()
        self._sent: deque[Command] = deque()
        self._later: list[Command] = []
        self._sent_bytes = 0
        self._broken: BaseException | None = None
        self._to_write = Event()
        self._to_read = Event()

    def ask(self, command: Command) -> None:
        """Add a command; one that has a number already goes before those that have none. Does not block."""
        if command.number:
            self._again.append(command)
        else:
            self._turns.put(command.account, command)
        self._to_write.set()
        self.start()

    def give_back(self, unwanted: Callable[[Command], bool]) -> list[Command]:
        """Remove and return commands that are to be sent elsewhere, those of one key in their order.

        If some of them are sent already, the connection is given up, and its remaining answers are lost.
        """
        if any(map(unwanted, (*self._sent, *self._later))):
            self._broken = RuntimeError("what was asked of this Redis is another's now")
            self._return_sent()
            self.renew()
        back = [command for command in self._again if unwanted(command)]
        self._again = deque(command for command in self._again if not unwanted(command))
        return back + self._turns.remove(unwanted)

    def wait_tried(self) -> None:
        if not self._sent and self._line is not None and self._line.is_spent():
            self._tried.clear()
            self._to_write.set()
        super().wait_tried()

    # -- the connection ------------------------------------------------------------------------------------------

    def _prepare(self, line: Line) -> None:
        try:
            self._make_ready(line)
            self._turns.few = min(1 + int(_way(line) / _COST), SHARE)
        except FAILED as error:
            self._refused = self._refused or comes_later(error, self._cluster)
            raise

    def _use(self, line: Line) -> None:
        """Send and read until the connection is lost, or must be."""
        refused, self._refused = self._refused, False
        self._connected(refused)
        self._broken = None
        reader = gevent.spawn(self._read, line)
        self._greenlets.append(reader)
        try:
            self._write(line)
        finally:
            line.shut()
            self._to_read.set()
            with closing(line):  # also where this greenlet is ended in its wait
                reader.join()
            self._greenlets.remove(reader)
            self._return_sent()
            self._expire("" if self._broken is None else describe(self._broken))
            self._lost()

    def _return_sent(self) -> None:
        """Let what was not carried out, as far as is known, be sent again."""
        for command in self._later:
            command.number = 0
        # In the order of their numbers; those that get new ones come last.
        self._again.extendleft(reversed(self._sent))
        self._again.extend(self._later)
        for command in (*self._sent, *self._later):
            self._turns.done(command.account)
        self._sent.clear()
        self._later.clear()
        self._sent_bytes = 0

    def _write(self, line: Line) -> None:
        while self._broken is None:
            if not self._sent and line.is_spent():
                # Nothing is sent into a line that has ended: what waits is certainly not carried out.
                self._broken = ConnectionError("Redis has closed the connection")
                break
            batch = self._take()
            if batch:
                self._to_read.set()
                try:
                    line.send(batch)
                except FAILED as error:  # it is sent again
                    self._broken = error
            elif not self._wait_for_more() and not self._sent:
                self._turns.put("idle", Command("idle", b"", self._idle, 0, lambda _answer: None))

    def _wait_for_more(self) -> bool:
        """Wait until there may be more to write, for `silence` at most; return whether there may."""
        self._to_write.clear()
        return bool(self._to_write.wait(self._silence))

    def _take(self) -> list[tuple[Any, ...]]:
        """Move what may be sent now to what is sent; return its words."""
        batch = []
        while not self._later and (self._again or self._turns):
            if self._sent and (len(self._sent) >= WINDOW or self._sent_bytes >= WINDOW_BYTES):
                break
            if self._again:
                command = self._again.popleft()
                self._turns.out(command.account)
            else:
                command = self._turns.take()
            again = command.number > 0
            if not again:
                command.number = next(self._numbers)
            self._sent.append(command)
            self._sent_bytes += command.size
            batch.append(command.words(command.number, again))
        return batch

    def _read(self, line: Line) -> None:
        while self._broken is None:
            if not self._sent:
                self._to_read.clear()
                self._to_read.wait()
                continue
            try:
                answer = line.read()
            except FAILED as error:  # what was not answered is sent again
                self._broken = error
                break
            if self._broken is not None:  # pragma: no cover - an answer in the moment in which all was given back
                break
            command = self._sent.popleft()
            self._sent_bytes -= command.size
            if comes_later(answer, self._cluster):
                # Nothing more is sent; what was is answered first, so that all of it keeps its order.
                self._later.append(command)
            else:
                self._turns.done(command.account)
                command.answered(answer)
            if self._later and not self._sent:
                self._broken = RuntimeError(describe(answer))
                self._refused = self._refused or not isinstance(answer, NoScriptError)
            self._to_write.set()
        self._to_write.set()

    def _away(self, reason: str) -> None:
        self._expire(reason)
        self._lost()

    def _expire(self, reason: str) -> None:
        """Fail the commands that have waited for too long."""
        now = time.monotonic()

        def is_late(command: Command) -> bool:
            return command.deadline <= now

        late = [command for command in self._again if is_late(command)]
        self._again = deque(command for command in self._again if not is_late(command))
        for command in [*late, *self._turns.remove(is_late)]:
            command.give_up(reason)


def _way(line: Line) -> float:
    """Return the seconds that Redis takes at least to answer. Blocks the greenlet.

    Raises:
        FAILED: it does not.
    """
    least = PATIENCE
    for _ in range(_TRIES):
        begin = time.perf_counter()
        line.ask("PING")
        least = min(least, time.perf_counter() - begin)
    return least

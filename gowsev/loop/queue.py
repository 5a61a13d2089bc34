"""The loop's queue: gevent's, with a bounded wait and with events that other threads post.

Readers put events, and the greenlet in `Context.EventLoopIteration` waits for the next one with a timeout. What an
event means is the business of those who put and get it.

A timeout is an event too: when the time is over and nothing else is there, a timer puts a token of its own, and the
wait that finds it ends. One timer is started again for each wait. (`get` with a timeout makes a `gevent.Timeout` and
raises `Empty`: 1.2 us more for a lone message.)

Invariants: events that were put come out in the order of putting, and events that one thread posted in the order of
its posting. `put` may be called from any greenlet, the hub included, of the loop's thread; `post` from any thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import gevent
from gevent.queue import Empty, SimpleQueue

from gowsev.connection.sockets import poll_sockets

if TYPE_CHECKING:
    from gowsev.connection.events import Event

__all__ = ["MOST_IN_A_ROW", "Empty", "EventQueue"]

#: Seconds, and more than any program runs for.
_FOREVER = 1e9

#: Look at the sockets after this many events that were there at once: else callbacks that keep posting would keep every
#: reader from running.
MOST_IN_A_ROW = 1024


class EventQueue(SimpleQueue):  # type: ignore[misc]  # pyright: ignore[reportMissingTypeArgument]  # gevent has no types
    """A queue of events. As a rule one greenlet waits for them; of several, each event goes to one."""

    __slots__ = ("_async", "_in_a_row", "_posted", "_seconds", "_timer")

    def __init__(self) -> None:
        super().__init__()
        self._posted: deque[Event] = deque()
        self._async: Any = None
        self._timer: Any = None
        self._seconds = -1.0  # of the timer
        self._in_a_row = 0

    def __len__(self) -> int:
        return len(self._posted) + int(self.qsize())

    def post(self, event: Event) -> None:
        """Add an event from any thread; never blocks."""
        self._posted.append(event)
        # The order of these two lines and of those in `_watch_posts` makes sure that one of the two threads sees
        # what the other did: no posted event is left behind.
        watcher = self._async
        if watcher is not None:
            watcher.send()

    def collect(self) -> None:
        """Put what was posted; in the loop's thread."""
        posted = self._posted
        while posted:
            self.put(posted.popleft())

    def wait(self, timeout: float | None) -> Event | None:
        """Return the next event; `None` when none came for `timeout` seconds (`None`: wait for ever).

        Blocks the calling greenlet only. With a timeout of 0 the sockets are still looked at once.
        """
        if self._posted:
            self.collect()  # a loop that is always busy may not let the hub run for long
        if self._in_a_row < MOST_IN_A_ROW and self.qsize():
            self._in_a_row += 1
            return self._next()
        self._in_a_row = 0
        if self._async is None:
            self._watch_posts()
        if timeout == 0 or self.qsize():
            poll_sockets()
            if timeout == 0 or self.qsize():
                return self._next() if self.qsize() else None
        return self._wait(_FOREVER if timeout is None else min(timeout, _FOREVER))

    def _next(self) -> Event:
        event: Event = self.get_nowait()
        return event

    def _wait(self, seconds: float) -> Event | None:
        """Let the hub have its turn, until there is an event or the time is over."""
        # There is a timer even where there is no timeout: the hub raises `LoopExit` in a greenlet that waits with
        # nothing that could ever wake it, but another thread may still post.
        timer = self._timer
        if seconds != self._seconds or timer.active:  # another timeout than before, or another greenlet's wait
            timer = self._timer = gevent.get_hub().loop.timer(seconds, seconds)
            self._seconds = seconds
        token = _Token(self)
        # Not `start`, which would go on with what was left of the wait before. `update`: from now on, not since the hub
        # looked at the clock last.
        timer.again(token.time_is_over, update=True)
        try:
            while isinstance(event := self.get(), _Token):
                if event is token:
                    token.queued = False
                    return self._next() if self.qsize() else None
                self.put(event)  # the token of another wait, which shall have it before we look again
                gevent.sleep(0)
            return event  # type: ignore[no-any-return]
        finally:
            timer.stop()
            token.withdraw()

    def take_all(self) -> list[Event]:
        """Return every event that is there, and never switch; no greenlet may be waiting for one."""
        self.collect()
        return [self.get_nowait() for _ in range(self.qsize())]

    def close(self) -> None:
        """Stop listening for posts; call it in the loop's thread."""
        if self._async is not None:
            self._async.stop()
            self._async.close()
            self._async = None

    def disown(self) -> None:
        """In a forked child: forget every event. A copy of a greenlet that waits for one waits for ever."""
        if self._timer is not None:
            self._timer.stop()
        self.close()
        self.take_all()

    def _watch_posts(self) -> None:
        # Not `ref`: the queue must not keep the hub of a program alive that waits for other things.
        self._async = gevent.get_hub().loop.async_(ref=False)
        self._async.start(self.collect)
        self.collect()


class _Token:
    """The end of one wait, as an event."""

    __slots__ = ("_over", "_queue", "queued")

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._over = False  # the wait
        self.queued = False

    def time_is_over(self) -> None:
        """Put it behind what comes in this round of the hub: an event there comes before the timeout."""
        gevent.get_hub().loop.run_callback(self._put)

    def _put(self) -> None:
        if not self._over:
            self.queued = True
            self._queue.put(self)

    def withdraw(self) -> None:
        """Take it out of the queue, where the wait has ended by something else in the same moment."""
        self._over = True
        if self.queued:
            events: list[Any] = self._queue.take_all()
            for event in events:
                if event is not self:
                    self._queue.put(event)

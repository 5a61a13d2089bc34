"""The loop's queue.

Readers put events, the greenlet in `Context.EventLoopIteration` gets them, with a blocking get that has a timeout. What
an event means is the business of whoever puts and gets it.

It is what gevent's queue is, a deque and a `Waiter` for each consumer that finds nothing there, with less between them:
while nobody waits, `put` is the deque's own function (measured: 25 ns for a put and a take, where gevent's queue takes
85), and to wait raises no exception inside (a lone message costs a tenth less).

Invariants: events that were put come out in the order of putting, and events that one thread posted in the order of
its posting. `put` may be called from any greenlet, the hub included, of the loop's thread; `post` from any thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import Waiter

from gowsev.connection.sockets import poll_sockets

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_IN_A_ROW", "Empty", "Mailbox"]

#: What `Mailbox.take` raises.
Empty = IndexError

#: Seconds, and more than any program runs for.
_FOREVER = 1e9

#: After so many events that were there at once, the sockets are looked at: without that, callbacks that keep posting
#: would keep every reader from running.
MOST_IN_A_ROW = 1024


class Mailbox:
    """A queue of events. It has one consumer as a rule; several get each event once."""

    __slots__ = ("__weakref__", "_async", "_events", "_in_a_row", "_posted", "_timer", "_waiters", "put", "take")

    def __init__(self) -> None:
        self._events: deque[Any] = deque()
        self._waiters: deque[Any] = deque()
        self._posted: deque[Any] = deque()
        self._async: Any = None
        self._timer: Any = None  # of the wait that has begun last
        self._in_a_row = 0
        self.put: Callable[[Any], None] = self._events.append
        """Add an event; never blocks. From the loop's thread only. Read this attribute anew wherever somebody may have
        begun to wait since: then it is another function."""
        self.take: Callable[[], Any] = self._events.popleft
        """Return the next event, if there is one; never blocks, and raises `Empty` if there is none."""

    def __len__(self) -> int:
        return len(self._posted) + len(self._events)

    def post(self, event: Any) -> None:
        """Add an event from any thread; never blocks."""
        self._posted.append(event)
        # The order of these two lines and of those in `_watch_posts` makes sure that one of the two threads sees
        # what the other did: no posted event is left behind.
        watcher = self._async
        if watcher is not None:
            watcher.send()

    def get(self, timeout: float | None) -> Any:
        """Return the next event; `None` when none came for `timeout` seconds (`None`: wait for ever).

        Blocks the calling greenlet only. With a timeout of 0 the sockets are still looked at once.
        """
        if self._posted:
            self.collect()  # a loop that is always busy may not let the hub run for long
        if self._in_a_row < MOST_IN_A_ROW and self._events:
            self._in_a_row += 1
            return self.take()
        self._in_a_row = 0
        if self._async is None:
            self._watch_posts()
        if timeout == 0 or self._events:
            poll_sockets()
        if timeout != 0 and not self._events:
            self._wait(timeout)
        return self.take() if self._events else None

    def _wait(self, timeout: float | None) -> None:
        """Let the hub have its turn, until there is an event or the time is over."""
        loop = gevent.get_hub().loop
        waiter = Waiter()
        # A timer of our own: a `gevent.Timeout` would cost 1.2 us more. It is there even where there is no timeout: the
        # hub raises `LoopExit` in a greenlet that waits with nothing that could ever wake it, but another thread may
        # still post. What it does waits for the end of the hub's round, since an event in that round comes first.
        self._timer = timer = loop.timer(_FOREVER if timeout is None else min(timeout, _FOREVER))
        timer.start(loop.run_callback, waiter.switch, True, update=True)  # not since the hub looked at the clock last
        self._begin(waiter)
        try:
            while not waiter.get() and not self._events:
                self._begin(waiter)  # somebody else took it  # pragma: no cover - run, but not traced behind a switch
        finally:
            timer.stop()
            timer.close()
            self._end(waiter)

    def _begin(self, waiter: Any) -> None:
        """Let one who waits be woken by an event."""
        self._waiters.append(waiter)
        self.put = self._put_and_ring

    def _end(self, waiter: Any) -> None:
        """Let it be, whatever has ended its wait."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            if not self._waiters:
                self.put = self._events.append
        elif self._waiters and self._events:
            self._ring(False)  # it was woken for an event, but may have been killed before it came to take it

    def _put_and_ring(self, event: Any) -> None:
        """What `put` is while somebody waits, and for a while longer to who has read it then."""
        self._events.append(event)
        if self._waiters:
            self._ring(False)

    def _ring(self, over: bool) -> None:
        """Wake the one that has waited longest; `over` ends its wait though there be no event."""
        gevent.get_hub().loop.run_callback(self._waiters.popleft().switch, over)
        if not self._waiters:
            self.put = self._events.append

    def take_all(self) -> list[Any]:
        """Return every event that is there, and never switch; nobody may be waiting for one."""
        self.collect()
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        """Stop listening for posts; call it in the loop's thread."""
        if self._async is not None:
            self._async.stop()
            self._async.close()
            self._async = None

    def disown(self) -> None:
        """In a forked child: forget every event. Whoever waits for one, the copy of a greenlet, waits for ever."""
        self.close()
        if self._timer is not None:
            self._timer.stop()
        self._waiters.clear()
        self._posted.clear()
        self._events.clear()
        self.put = self._events.append

    def _watch_posts(self) -> None:
        # Not `ref`: a mailbox must not keep the hub of a program alive that waits for other things.
        self._async = gevent.get_hub().loop.async_(ref=False)
        self._async.start(self.collect)
        self.collect()

    def collect(self) -> None:
        """Put what was posted; in the loop's thread."""
        posted = self._posted
        while posted:
            self.put(posted.popleft())

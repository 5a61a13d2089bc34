"""The loop: who may drive it, when it waits, when it flushes, and how it ends.

The greenlet that drives it, the *driver*, gets events from the queue one by one and gives each to the dispatch, so
that no two callbacks ever run at once. What callbacks write is gathered and leaves together.

    undriven    no greenlet has driven it yet
    driven      by one greenlet at most; between two drives it is not `finished` either
    forsaken    an exception has left `run`: new connections are refused until it is driven again
    stopping    after `stop`: nothing new is let in, and it ends when all connections are gone
    finished    it has ended
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

import gevent

from gowsev.connection.connections import Connections
from gowsev.connection.events import CALL, TIMEOUT
from gowsev.loop.queue import EventQueue
from gowsev.loop.row import Row
from gowsev.wire.frames import GOING_AWAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.connection.events import Event
    from gowsev.loop.attachments import Part
    from gowsev.opening.listener import Listener
    from gowsev.options import Options

__all__ = ["Loop", "loops"]

logger = logging.getLogger("gowsev")

#: Those of this process whose contexts are still held.
loops: WeakSet[Loop] = WeakSet()

_TIMED_OUT: Event = (TIMEOUT, None, None)

#: Seconds between looks at whether the attached parts are done, and the most they get if a shutdown has no timeout.
_LOOK, _FOR_PARTS = 0.02, 10.0

#: Seconds for which a client may wait for a loop that was never driven, before a warning is logged.
_UNDRIVEN = 5.0


class Loop:
    """A loop over the events of a queue.

    Args:
        options: the context's.
    """

    def __init__(self, options: Options) -> None:
        self.listeners: list[Listener] = []
        self.parts: list[Part] = []
        self.queue = EventQueue()
        self.connections = Connections(options, self.queue.put, self.finish_if_drained)
        self._row = Row(self.queue, self.connections.batch)
        self._hub = gevent.get_hub()
        self._driver: Any = None
        self._forsaken = False
        self._forked = False
        self._watched = False
        self._finishing = False
        self._close_timeout = options.close_timeout
        self._end_by = 0.0
        self.undriven = True
        self.stopping = False
        self.timeout: float | None = 60.0
        """Seconds without an event after which there is a `TIMEOUT`; `None` for never."""
        loops.add(self)

    # -- driving -------------------------------------------------------------------------------------------------

    def check_thread(self) -> None:
        """Check that this is the loop's thread.

        Raises:
            RuntimeError: it is another.
        """
        if not self.is_here:
            raise RuntimeError("a context belongs to the thread that made it; only Post may be called from another")

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's thread."""
        return gevent.get_hub() is self._hub

    def iterate(self, handle: Callable[[Event], None]) -> bool:
        """Wait for one event, and handle it; return whether the loop goes on."""
        batch = self.connections.batch
        nested = self._enter()
        held = batch.held
        try:
            if not self.finished:
                batch.held = False
                event = self.queue.wait(self.timeout)
                batch.held = True
                handle(event or _TIMED_OUT)
        finally:
            batch.held = held
            self._leave(nested)
        return not self.finished

    def run(self, handle: Callable[[Event], None]) -> None:
        """Handle events until the loop has finished."""
        batch, queue, row = self.connections.batch, self.queue, self._row
        nested = self._enter()
        held = batch.held
        try:
            while not row.ended:
                # Nothing more can be gathered; then the hub has its turn, and reads what has arrived.
                batch.flush()
                batch.held = False
                event = queue.wait(self.timeout) or _TIMED_OUT
                batch.held = True
                row.handle(event, handle)
        except BaseException as error:
            if not nested:
                self._forsake(error)
            raise
        finally:
            batch.held = held
            self._leave(nested)

    def _enter(self) -> bool:
        """Make the calling greenlet the driver; return whether it is one already, in a callback."""
        self.check_thread()
        greenlet = gevent.getcurrent()
        if self._driver is greenlet:
            return True
        if self._driver is not None:
            raise RuntimeError(f"this context's loop is being driven by {self._driver!r} already")
        self._driver = greenlet
        self._forsaken = self.undriven = False
        return False

    def _leave(self, nested: bool) -> None:
        if not nested:
            self._driver = None
        self.connections.batch.flush()

    def _forsake(self, error: BaseException) -> None:
        """Note that no greenlet drives the loop any more, and log it where the program would not notice.

        A script sees the exception of its own call. A greenlet beside an app just ends, and its connections would stay
        open without a callback ever being called for them.
        """
        self._forsaken = True
        if isinstance(gevent.getcurrent(), gevent.Greenlet):
            killed = isinstance(error, gevent.GreenletExit)  # which was meant
            logger.log(
                logging.INFO if killed else logging.ERROR,
                "the greenlet of this loop has ended with %r; its %d connections wait, and new ones are refused, until "
                "the loop is driven again",
                error, len(self.connections.by_id), exc_info=not killed,
            )  # fmt: skip

    def serve(self, listener: Listener) -> tuple[str, int]:
        """Accept what comes to a listener, until the end; return where it listens."""
        listener.start()
        self.listeners.append(listener)
        return listener.bound

    # -- who may come in -----------------------------------------------------------------------------------------

    @property
    def refuses(self) -> str:
        """Why new connections are refused; empty where they are not."""
        if self._forked:
            return "The server forked after its event loop had begun."
        if self.stopping:
            return "The server is shutting down."
        return "The server's event loop has ended." if self._forsaken else ""

    def expect_driver(self) -> None:
        """Log, once, if no greenlet drives the loop within some seconds, or none can: a client is waiting."""
        if self._forked and not self._watched:
            self._watched = True
            logger.warning(
                "clients of this context are refused: its loop was driven before this process was forked, and so is "
                "the parent's; start it after the fork (under gunicorn --preload: in the hook post_worker_init)"
            )
        elif self.undriven and not self._watched:
            self._watched = True
            # Not spawn_later: neither `gevent.wait()` nor the end of a program should wait for this.
            self._hub.loop.timer(_UNDRIVEN, ref=False).start(gevent.spawn, _warn_if_undriven, ref(self))

    # -- ending --------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether it has ended, and handles nothing any more."""
        return self._row.ended

    @property
    def ended(self) -> bool:
        """Whether it has ended; a loop that is not driven has ended when its sockets are closed."""
        return self.finished or (self._driver is None and not self.connections.open())

    def stop(self, timeout: float | None) -> None:
        """Stop listening, close every connection with 1001 within `timeout` seconds, and finish when all are gone."""
        seconds = self._close_timeout if timeout is None else timeout
        self._end_by = time.monotonic() + (_FOR_PARTS if seconds is None else seconds)
        if not self.stopping:
            self.stopping = True
            for listener in self.listeners:
                listener.close()
            for part in self.parts:
                part.loop_stopping()
        for connection in self.connections.open():
            connection.close(GOING_AWAY, "shutting down", timeout)
        self.finish_if_drained()

    def check_may_begin(self) -> None:
        """Check that something may begin here.

        Raises:
            RuntimeError: the loop has been stopped, or this is not its thread.
        """
        self.check_thread()
        self.check_not_stopped()

    def check_not_stopped(self) -> None:
        """Check that the loop still accepts something new.

        Raises:
            RuntimeError: it does not.
        """
        if self.stopping:
            raise RuntimeError("this context has been shut down, or left to the process that this one was forked from")

    def finish_if_drained(self) -> None:
        """Let the loop end, if it is stopping and has nothing more to wait for."""
        if self._drained() and not self._finishing:
            self._finishing = True
            if any(part.busy for part in self.parts):
                gevent.spawn(self._finish_later)
            else:
                self.queue.post((CALL, self._finish, ()))

    def _finish_later(self) -> None:
        """Let the attached parts finish what they have begun, within the time that the shutdown has."""
        while any(part.busy for part in self.parts) and time.monotonic() < self._end_by:
            gevent.sleep(_LOOK)
        self.queue.post((CALL, self._finish, ()))

    def _drained(self) -> bool:
        return self.stopping and not len(self.connections)

    def _finish(self, _context: object) -> None:
        """End the loop; the callback of an event, so that what was posted before it is done first."""
        self._finishing = False
        if self._drained():
            self._row.ended = True
            self.queue.close()
            for listener in self.listeners:
                listener.abandon()
            for part in self.parts:
                part.loop_ended()

    def attach(self, part: Part) -> Callable[..., None]:
        """Tell a part what happens; return how it lets the loop call something."""
        self.parts.append(part)
        return self._call

    def _call(self, callback: Callable[..., object], *args: object) -> None:
        """Let the loop call `callback(context, *args)`, behind what is there and what was posted. Of its thread alone.

        The hub need not look at its sockets before that happens, as it must for what other threads post: greenlets that
        keep each other busy could put that off for long.

        Raises:
            RuntimeError: the loop has finished.
        """
        if self.finished:
            self.check_not_stopped()
        self.queue.collect()
        self.queue.put((CALL, callback, args))

    def disown(self) -> list[Event]:
        """In a forked child: leave to the parent what is its own.

        A loop that was driven has ended here. One that was not may be driven here, with its listeners and the calls
        that were posted; its other events are the parent's, and are returned.
        """
        for listener in self.listeners:
            listener.disown_clients()
        for part in self.parts:
            part.disown()
        if self.undriven:
            self.connections.clear()
            events = self.queue.take_all()
            for event in events:
                if event[0] == CALL:
                    self.queue.put(event)
            return [event for event in events if event[0] != CALL]
        self.stopping = self._row.ended = self._forked = True
        self._watched = False
        self.queue.disown()
        for listener in self.listeners:
            listener.disown()
        for part in self.parts:
            part.loop_ended()
        return []


def _warn_if_undriven(held: ref[Loop]) -> None:
    loop = held()
    if loop is not None and loop.undriven and not loop.stopping:
        logger.warning(
            "clients of this context wait for its loop, which was never driven: call its EventLoop, in a greenlet of "
            "its own (gevent.spawn) where a server has the main one"
        )

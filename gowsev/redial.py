"""`Redial`: a client connection of a context that comes back by itself.

Each has a greenlet that dials, hands the connection to the loop, waits for its end, pauses, and dials again. What it
tells the program are events of the loop: a connection is added, and the program told of it, before its first message.

    pausing     until the next attempt
    dialling    in `Dial`
    arriving    the loop has been asked to take the connection
    open        the context has it
    ended       by `Stop`, the context's shutdown, or the fork that made this process

A connection that ends soon is no success: only one that has lasted lets the pauses begin anew. Else a server that lets
clients in and drops them, being overloaded, would have all of them back at once.
"""

from __future__ import annotations

import logging
import random
import ssl
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import gevent
from gevent.event import Event

from gowsev.arguments import as_seconds, check_callable
from gowsev.errors import DialError
from gowsev.loop.attachments import Part
from gowsev.opening.attempt import check_names, check_wanted
from gowsev.opening.dial import connection_of
from gowsev.wire.frames import GOING_AWAY, INTERNAL_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from gowsev.context import Context
    from gowsev.opening.attempt import Wanted
    from gowsev.opening.dial import DialledConn

__all__ = ["Redial"]

logger = logging.getLogger("gowsev")

#: Those of 400 to 499 that say "later" (RFC 9110 section 15.5.9, RFC 8470, RFC 6585).
_LATER = frozenset({408, 425, 429})

#: Doublings of the first pause, after which it is the longest one with any setting.
_MOST_DOUBLINGS = 64


class Redial:
    """A client connection of a context that comes back by itself.

    It dials in a greenlet of its own as soon as the loop is driven, adds the connection to the context, and dials again
    when that has ended. Pauses between attempts are random, from 0 to a bound that doubles each time; so clients that
    were cut off together do not come back together. Messages and `ConnClosed` come as those of any connection do.

    Refusals that nothing but a change at the other end can mend (a status from 300 to 499, but for 408, 425 and 429; a
    certificate that is not accepted) are tried again after the longest pause, or half of that; `failed` may stop it.

    Args:
        context: to which the connections are added. Its `Shutdown` ends this.
        url: as for `Dial`.
        opened: `opened(context, id)` is called, as an event of the loop, before any message of a new connection comes.
        failed: `failed(context, error, pause)` is called likewise after an attempt that failed, with the `DialError`
            and the seconds until the next one.
        first_pause: seconds; the bound after a connection that has lasted.
        longest_pause: seconds; the bound at last.
        lasting: seconds for which a connection must have been open for the next pause to be a first one.
        dial: further arguments, as for `Dial`. `options` are those of its connections, for which those of the context
            do not hold. `headers` may be a function that returns them, which is called for each attempt, in the
            greenlet that dials.

    Raises:
        TypeError, ValueError, ImportError: as `Dial` does; or a number of seconds is none, or 0.
        RuntimeError: the context has been shut down, or this is not the thread that made it.
    """

    def __init__(
        self,
        context: Context,
        url: str,
        *,
        opened: Callable[[Context, int], object] | None = None,
        failed: Callable[[Context, DialError, float], object] | None = None,
        first_pause: float | timedelta = 1.0,
        longest_pause: float | timedelta = 60.0,
        lasting: float | timedelta = 5.0,
        **dial: Any,  # `check_wanted` looks at them
    ) -> None:
        check_names("Redial", dial)
        check_callable("opened", opened, optional=True)
        check_callable("failed", failed, optional=True)
        self._first = _positive("first_pause", first_pause)
        self._longest = _positive("longest_pause", longest_pause)
        self._lasting = _positive("lasting", lasting)
        headers: Any = dial.pop("headers", None)
        self._make_headers: Callable[[], Any] = headers if callable(headers) else lambda: headers
        self._url = url
        self._dial = dial
        self._wanted = check_wanted(url, headers=None if callable(headers) else headers, **dial)
        context.Close(0)  # which no connection has as its id: this checks the thread
        self._context = context
        self._opened = opened
        self._failed = failed
        self._greenlet: Any = None
        self._over = Event()
        self._arriving: DialledConn | None = None
        self._since = 0.0
        self._in_a_row = 0  # attempts that led to no connection that lasted
        self._ended = False
        self._id = 0
        self._links = _links_of(context)
        context.Post(self._begin)
        self._links.live.add(self)

    def __repr__(self) -> str:
        return f"<Redial {self._wanted.target.safe_url!r} id={self.id}>"

    @property
    def id(self) -> int:
        """The id of its connection, until its `ConnClosed` has returned; 0, which no connection has, while it is away.

        `context.Write(redial.id, message)` then returns `IdNotFound`.
        """
        return self._id

    def Stop(self, code: int = 1000, reason: str = "") -> None:
        """Dial no more, and close the connection if there is one. Returns at once; a second call does nothing.

        Args:
            code: as for `Context.Close`.
            reason: likewise.

        Raises:
            TypeError, ValueError: as for `Context.Close`.
            RuntimeError: this is not the thread that made the context.
        """
        self._context.Close(self._id, code, reason)
        self.end()

    def end(self) -> None:
        """Dial no more. What the context has of it is the context's to close."""
        if self._ended:
            return
        self._ended = True
        self._links.live.discard(self)
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        conn, self._arriving = self._arriving, None
        if conn is not None:
            self._links.close(conn)

    def lost(self) -> None:
        """Take note that the `ConnClosed` of its connection has returned."""
        self._id = 0
        self._over.set()

    def disown(self) -> None:
        """In a forked child: leave the connection to the parent, unless the child itself will be the first to dial."""
        if self._greenlet is not None:
            self._arriving = None
            self._id = 0
            self.end()

    # -- in the loop -----------------------------------------------------------------------------------------------

    def _begin(self, _context: Context) -> None:
        if not self._ended:
            self._greenlet = gevent.spawn(self._run)

    def _arrive(self, context: Context) -> None:
        conn, self._arriving = self._arriving, None
        if conn is None:  # `end` was faster, and has closed it
            return
        try:
            self._id = context.AddConn(conn)
        except RuntimeError:  # the context was being shut down before this was made
            logger.info("%r ends: its context is being shut down", self)
            self._links.close(conn)
            self.end()
            return
        self._since = time.monotonic()
        self._links.by_id[self._id] = self
        logger.debug("connection %d: dialled %s", self._id, self._wanted.target.safe_url)
        if self._opened is not None:
            try:
                self._opened(context, self._id)
            except BaseException:
                context.Close(self._id, INTERNAL_ERROR, "internal error")  # as after any callback that raises
                raise

    def _tell(self, context: Context, error: DialError, pause: float) -> None:
        if self._failed is not None and not self._ended:
            self._failed(context, error, pause)

    # -- in a greenlet of its own ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:  # until `end` kills it
            try:
                conn = connection_of(self._next())
            except DialError as error:  # it goes on, and so it is logged
                pause = self._pause_after(error)
                if not self._ended:
                    level = logging.WARNING if _hopeless(error) else logging.INFO
                    logger.log(level, "%s; it is dialled again in %.1f s", error, pause)
                    self._context.Post(self._tell, error, pause)
            else:
                self._hand_over(conn)
                pause = self._pause()
            gevent.sleep(pause)

    def _next(self) -> Wanted:
        """Return what to dial.

        Raises:
            DialError: the program's function for the headers failed, or they cannot be sent.
        """
        try:
            return check_wanted(self._url, headers=self._make_headers(), **self._dial)
        except Exception as error:
            logger.exception("the headers for %s cannot be made", self._wanted.target.safe_url)
            raise DialError(f"dial {self._wanted.target.safe_url}: its headers cannot be made: {error!r}") from error

    def _hand_over(self, conn: DialledConn) -> None:
        """Let the loop take a connection, and wait for its end."""
        self._over.clear()
        self._arriving = conn
        self._context.Post(self._arrive)
        self._over.wait()
        if time.monotonic() - self._since >= self._lasting:
            self._in_a_row = 0

    def _pause(self) -> float:
        bound = min(self._longest, self._first * 2.0 ** min(self._in_a_row, _MOST_DOUBLINGS))
        self._in_a_row += 1
        return random.uniform(0.0, bound)  # noqa: S311

    def _pause_after(self, error: DialError) -> float:
        pause = self._pause()
        if _hopeless(error):
            return random.uniform(self._longest / 2, self._longest)  # noqa: S311
        return pause + min(_retry_after(error), self._longest)


def _positive(name: str, value: float | timedelta) -> float:
    seconds = as_seconds(name, value)
    if not seconds:
        raise ValueError(f"{name} must be a number of seconds above 0, not {value!r}")
    return seconds


def _hopeless(error: DialError) -> bool:
    """Whether only a change at the other end, or here, can help."""
    if error.status is None:
        return isinstance(error.__cause__, ssl.SSLCertVerificationError)
    return 300 <= error.status < 500 and error.status not in _LATER


def _retry_after(error: DialError) -> int:
    """Return the seconds for which a server that refused wants to be left alone (RFC 9110 section 10.2.3)."""
    values = [] if error.headers is None else error.headers.get_all("Retry-After")
    # It may also be a date, which would take both clocks to be right.
    return max([0, *(int(value) for value in values if value.isascii() and value.isdigit() and len(value) < 10)])


class _Links(Part):
    """The `Redial`s of one context, as its loop knows them. It does not hold the context, which holds it."""

    def __init__(self) -> None:
        self.live: set[Redial] = set()
        self.by_id: dict[int, Redial] = {}
        self._closing: set[Any] = set()

    def connection_ended(self, id: int) -> None:
        """The `ConnClosed` of a connection has returned."""
        redial = self.by_id.pop(id, None)
        if redial is not None:
            redial.lost()

    def close(self, conn: DialledConn) -> None:
        """Close a connection that the context does not take any more, without waiting for it."""
        closing = gevent.spawn(conn.Close, GOING_AWAY)
        self._closing.add(closing)
        closing.rawlink(self._closing.discard)

    @property
    def busy(self) -> bool:
        """Whether connections are still closing."""
        return bool(self._closing)

    def loop_stopping(self) -> None:
        """Nothing new is let in any more."""
        for redial in tuple(self.live):
            redial.end()

    def loop_ended(self) -> None:
        """The loop has ended; in a forked child, what it has inherited has."""
        self.loop_stopping()

    def disown(self) -> None:
        """Leave to the parent what is its own; called in a forked child."""
        self._closing.clear()
        self.by_id.clear()
        for redial in tuple(self.live):
            redial.disown()


_links: WeakKeyDictionary[Context, ref[_Links]] = WeakKeyDictionary()


def _links_of(context: Context) -> _Links:
    held = _links.get(context)
    links = None if held is None else held()
    if links is None:
        links = _Links()
        context.attach(links)
        _links[context] = ref(links)
    return links

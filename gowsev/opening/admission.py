"""Which upgrades a context accepts, by its limits and its program's `ConnRequested`; and what becomes of a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gevent.event import AsyncResult

from gowsev.connection.events import ACCEPTED, REQUESTED
from gowsev.opening.adoption import adopt
from gowsev.opening.dial import DialledConn, release
from gowsev.opening.handshake import Handshake, Negotiator, Response, refusal
from gowsev.request import Accept, Reject, Request
from gowsev.wire.frames import GOING_AWAY

if TYPE_CHECKING:
    from gowsev.connection.connection import Connection
    from gowsev.connection.connections import Connections
    from gowsev.connection.events import Event, Sink
    from gowsev.options import Options

__all__ = ["Admission", "Question"]


class Driver(Protocol):
    """What letting connections in needs to know of the loop."""

    def check_thread(self) -> None: ...
    def expect_driver(self) -> None: ...

    @property
    def refuses(self) -> str: ...

    @property
    def stopping(self) -> bool: ...


class Admission:
    """The context as the listeners and `ServeHTTP` see it: an `upgrade.Receiver`.

    Args:
        options: the context's.
        connections: where those that are let in go.
        sink: where their first events go, and the questions to the program.
        driver: the loop that handles these events.
        asks: whether the program wants to be asked, having a `ConnRequested`.
    """

    def __init__(self, options: Options, connections: Connections, sink: Sink, driver: Driver, asks: bool) -> None:
        self.options = options
        self.negotiator = Negotiator(options)
        self._connections = connections
        self._sink = sink
        self._driver = driver
        self._asks = asks
        self._abandoned = 0  # questions that wait for the loop, though no greenlet waits for the answer any more
        self._answering: set[Request] = set()

    def check_thread(self) -> None:
        """Check that this is the context's thread.

        Raises:
            RuntimeError: it is another.
        """
        self._driver.check_thread()

    @property
    def may_refuse(self) -> bool:
        """Whether `admit` has to be asked: it may return something, or block."""
        return self._asks or self._full() is not None

    def admit(self, request: Request, decided: Accept | None = None) -> Response | Accept | None:
        """Return the response that refuses a valid request for an upgrade, or the program's `Accept`, or neither.

        May block the calling greenlet, for `ConnRequested`; that is not asked where the program has `decided` already.

        Raises:
            ValueError: `decided` names a subprotocol that the client does not offer.
        """
        refused = self._full()
        if refused is not None:
            if self._driver.refuses:
                self._driver.expect_driver()
            return refused
        if decided is not None:
            _check_offered(decided, request)
        if decided is not None or not self._asks:
            return decided
        self._driver.expect_driver()
        question = Question(request)
        self._sink.put((REQUESTED, question, None))
        try:
            answer = question.answer.get()
        finally:
            if not question.taken:
                self._abandoned += 1
                question.abandoned = self._let_go
        return answer if isinstance(answer, Response) else self._full() or answer

    def _let_go(self) -> None:
        self._abandoned -= 1

    def _full(self) -> Response | None:
        if self._driver.refuses:
            return refusal(503, f"{self._driver.refuses}\n", reason="stopping")
        limit = self.options.max_connections
        if limit is not None and len(self._connections) + self._abandoned + len(self._answering) >= limit:
            text = "The server has as many connections as it takes: see max_connections of gowsev.Options.\n"
            return refusal(503, text, option="max_connections")
        return None

    def hold(self, request: Request) -> None:
        """Count a request among the connections, since its answer may have to wait until the client reads."""
        self._answering.add(request)

    def release(self, request: Request) -> None:
        """Count it no more: it becomes a connection, or has failed."""
        self._answering.discard(request)

    def refused(self, reason: str, asked: bool = True) -> None:
        """Count a client that is not let in; `reason` is a word, `asked` whether it has asked for an upgrade."""
        stats = self._connections.stats
        stats.rejected += asked
        stats.refusals[reason] = stats.refusals.get(reason, 0) + 1

    def accept(self, sock: Any, request: Request, handshake: Handshake, leftover: bytes) -> None:
        """Make a connection of a socket whose upgrade has been answered, and of what was read beyond the request."""
        connection = self._connections.make(
            sock, request=request, subprotocol=handshake.subprotocol, deflate=handshake.deflate
        )
        if handshake.accept is not None:
            connection.data = handshake.accept.data
        self._connections.stats.accepted += 1
        self._driver.expect_driver()
        self._sink.put((ACCEPTED, connection, None))
        connection.start(leftover)
        if self._driver.stopping:
            connection.close(GOING_AWAY, "shutting down")

    def add(self, conn: object) -> Connection:
        """Take over an outside connection: one that `Dial` or another library opened.

        Raises:
            TypeError: `conn` is none of these.
            ValueError: it was added before.
        """
        if isinstance(conn, DialledConn):
            connection, unread = release(conn)
            self._connections.adopt(connection)
            for event in unread:
                self._sink.put(event)
        else:
            adopted = adopt(conn)
            connection = self._connections.make(
                adopted.sock, request=adopted.request, subprotocol=adopted.subprotocol, client=adopted.client
            )
            connection.start(adopted.leftover)
        self._connections.stats.added += 1
        return connection

    def disown(self, events: list[Event]) -> None:
        """In a forked child: the questions among these events are answered by the parent."""
        self._abandoned = 0
        self._answering.clear()
        for kind, subject, _ in events:
            if kind == REQUESTED:
                subject.taken = True  # the copy of the greenlet that waits for it does not count it as abandoned


class Question:
    """A request that waits for the program's decision; the subject of a `REQUESTED` event."""

    __slots__ = ("_request", "abandoned", "answer", "taken")

    def __init__(self, request: Request) -> None:
        self._request = request
        self.answer: AsyncResult[Response | Accept | None] = AsyncResult()
        self.taken = False
        """Whether the loop has come to it."""
        self.abandoned: Any = None
        """Called in place of a decision, once no greenlet waits for the answer any more."""

    def decide(self, ask: Any) -> None:
        """Let `ask(request)` decide, unless no greenlet waits for the answer any more; called by the loop.

        Raises:
            TypeError: it returns neither `None` nor an `Accept` nor a `Reject`.
            ValueError: it accepts with a subprotocol that the client does not offer.
        """
        self.taken = True
        if self.abandoned is not None:
            self.abandoned()
            return
        answer: Response | Accept | None = refusal(500, "The server failed to decide.\n", reason="program")
        try:
            verdict = ask(self._request)
            if isinstance(verdict, Reject):
                answer = refusal(verdict.status, verdict.reason, verdict.headers, reason="program")
            elif verdict is None or isinstance(verdict, Accept):
                if verdict is not None:
                    _check_offered(verdict, self._request)
                answer = verdict
            else:
                raise TypeError(f"ConnRequested must return None, an Accept or a Reject, not {verdict!r}")
        finally:
            self.answer.set(answer)


def _check_offered(accept: Accept, request: Request) -> None:
    # RFC 6455 section 4.1: a client fails the connection if "the response indicates the use of a subprotocol that was
    # not present in the client's handshake".
    if accept.subprotocol is not None and accept.subprotocol not in request.subprotocols:
        raise ValueError(
            f"subprotocol must be one of those that the client offers, {request.subprotocols!r}, "
            f"not {accept.subprotocol!r}"
        )

"""`Context`: the event loop that a program drives, and all that it may ask of it.

Events come through one mailbox: a new connection, a message, an end, a request to judge, a posted call. The greenlet
that drives the loop takes them one by one and calls the handler for each, so that no two callbacks ever run at once
and a program needs no locks. What callbacks write is gathered and leaves together (see `outbox.Batch`). This file is
longer than others because the whole public surface is in one place; most of it is docstrings.

Invariants: an id is in `_connections` from before its `ConnAccepted` until its `ConnClosed` has returned. Callbacks
run in the driving greenlet only, of which there is one at most. Only this module logs what happens to connections.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple, Unpack, cast
from weakref import WeakSet, finalize, ref

import gevent
from gevent.event import AsyncResult

from gowsev.conn import Conn
from gowsev.connection.connection import CLOSED, Connection
from gowsev.connection.fork import tell_in_child
from gowsev.connection.groups import Audiences
from gowsev.connection.keepalive import Keepalive
from gowsev.connection.outbox import Batch
from gowsev.connection.sockets import poll_sockets
from gowsev.errors import IdNotFound
from gowsev.handler import check_handler, misspelt
from gowsev.loop.patching import warn_if_half_patched
from gowsev.loop.queue import MOST_IN_A_ROW, Empty, Mailbox
from gowsev.loop.signals import let_signals_wake
from gowsev.opening.address import listen, parse_port
from gowsev.opening.adoption import adopt
from gowsev.opening.certificate import Certificate
from gowsev.opening.dial import DialledConn, release
from gowsev.opening.handshake import Handshake, Response, refusal
from gowsev.opening.listener import Listener
from gowsev.opening.serve_http import serve
from gowsev.opening.upgrade import asks_for_websocket, note_lost_upgrade, shown, upgrade_required
from gowsev.options import Options, as_seconds
from gowsev.request import Reject, Request
from gowsev.stats import Stats
from gowsev.timer import Timer
from gowsev.wire.encoder import LARGE, Encoder, MaskingEncoder
from gowsev.wire.frames import BINARY, GOING_AWAY, INTERNAL_ERROR, TEXT, encode_close_payload
from gowsev.wire.protocol import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta
    from wsgiref.types import StartResponse, WSGIEnvironment

    from gevent.pywsgi import WSGIServer

    from gowsev.connection.connection import Sink
    from gowsev.handler import Callbacks
    from gowsev.loop.parts import Part
    from gowsev.wire.deflate import Deflate

    Args = TypeVarTuple("Args")

__all__ = ["Context", "MakeContext", "shut_down_all"]

logger = logging.getLogger("gowsev")

#: The kinds of events besides those of a connection (`TEXT` and `BINARY`, the lowest, and `CLOSED`): each event is
#: (kind, subject, payload).
ACCEPTED: Final = 0x10
REQUESTED: Final = 0x11
CALL: Final = 0x12
TIMEOUT: Final = 0x13

_TIMED_OUT: tuple[int, Any, Any] = (TIMEOUT, None, None)

#: Seconds for which the loop gathers what is written while there is no end of events. What is gathered for longer
#: leaves in fewer and larger sends: to flush after each 64 events cost an eighth more CPU a message where 50 clients
#: had 16 in flight. The clock is looked at after each event (0.04 to 0.09 us), since any callback may be a slow one.
_LONGEST_GATHERING = 0.001

#: Seconds for which a client may wait for a loop that was never driven, before that is said.
_UNDRIVEN = 5.0

#: Seconds between looks at whether the loop has ended, where another server waits for that.
_LOOK = 0.05

#: These always leave the loop.
_LEAVING = (KeyboardInterrupt, SystemExit, gevent.GreenletExit)

#: Every context that is still held by somebody, for a server that ends and must tell them.
_contexts: WeakSet[Context] = WeakSet()


def MakeContext(handler: Callbacks, options: Options | None = None) -> Context:
    """Make a context: an event loop with its own connections, independent of any other.

    Args:
        handler: any object with the methods of `Handler`.
        options: limits and intervals; the defaults are safe.

    Raises:
        TypeError: `handler` lacks a method or has an async one, or `options` is no `Options`.
    """
    return Context(handler, options)


def shut_down_all(timeout: float) -> Callable[[], bool]:
    """Shut down every context of this process; return a function that tells whether all have ended.

    One that nobody drives has ended when its sockets are closed.

    Args:
        timeout: as for `Context.Shutdown`.
    """
    contexts = tuple(_contexts)
    for context in contexts:
        if gevent.get_hub() is context._hub:
            context.Shutdown(timeout)
        elif not context._finished:
            context.Post(Context.Shutdown, timeout)  # it belongs to another thread

    return lambda: all(context._ended for context in contexts)


class Context:
    """An event loop for WebSocket connections. Made by `MakeContext`.

    It belongs to the thread that makes it: its methods may be called from any greenlet of that thread, callbacks
    included, and `Post` from any thread. None of them blocks, but for the two that drive the loop, and for
    `ListenAndServe` while it looks up the name of a host. What would go wrong in another thread raises `RuntimeError`
    there; only a write in the very middle of a callback goes unnoticed.
    """

    def __init__(self, handler: Callbacks, options: Options | None = None) -> None:
        check_handler(handler)
        if options is not None and not isinstance(options, Options):
            raise TypeError(f"options must be gowsev.Options or None, not {options!r}")
        self.options: Options = options or Options()
        self._handler = handler
        self._text_received = getattr(handler, "TextReceived", None)
        self._conn_requested: Any = getattr(handler, "ConnRequested", None)
        self._timeout: float | None = 60.0
        self._ids = count(1)
        self._connections: dict[int, Connection] = {}
        self._mailbox = Mailbox()
        self._sink = cast("Sink", self._mailbox)  # whose `put` is an attribute, which pyright takes for a method
        self._batch = Batch()
        self._audiences = Audiences(self._connections, self._batch)
        self._keepalive = Keepalive(self.options, self._finish_if_drained)
        self._plain = Encoder()
        self._encoders: dict[int | None, Encoder] = {None: self._plain}
        self._listeners: list[Listener] = []
        self._parts: list[Part] = []
        self._driver: Any = None
        self._hub = gevent.get_hub()
        self._stats = Stats()
        self._abandoned = 0  # requests in the mailbox for which nobody waits any more
        self._shutting_down = False
        self._finishing = False
        self._finished = False
        finalize(self, self._mailbox.close)
        self._forsaken = False
        self._undriven = True
        self._watched = False
        _contexts.add(self)
        tell_in_child(self)
        for name, callback in misspelt(handler):
            logger.warning("the loop never calls %s of handler %r: the callback's name is %s", name, handler, callback)
        warn_if_half_patched()

    # -- listening and connections -------------------------------------------------------------------------------

    def ListenAndServe(self, port: str | int) -> tuple[str, int]:
        """Listen on a port, and serve connections from then on. May be called many times.

        Args:
            port: `"9000"`, `":9000"` or `9000` for all interfaces, IPv6 and IPv4; `"127.0.0.1:9000"`,
                `"[::1]:9000"`; `"unix:/path"`. Port 0 lets the system choose.

        Returns:
            The host and port that are listened on; for a unix socket, its path and 0.

        Raises:
            TypeError, ValueError: `port` names no address.
            OSError: the address cannot be listened on; the text names it.
            RuntimeError: the context has been shut down, or this is not the thread that made it.
        """
        return self._listen(port, None)

    def ListenAndServeTLS(self, port: str | int, certFile: str, keyFile: str) -> tuple[str, int]:
        """Listen as `ListenAndServe` does, with TLS 1.2 or newer.

        Args:
            port: as for `ListenAndServe`.
            certFile: a PEM file with the certificate and those that lead to its authority.
            keyFile: a PEM file with its key. Both are read again when they change.

        Raises:
            OSError: also when the files are no certificate and key (`ssl.SSLError`).
        """
        parse_port(port)
        return self._listen(port, Certificate(certFile, keyFile))

    def _listen(self, port: str | int, certificate: Certificate | None) -> tuple[str, int]:
        address = parse_port(port)
        self.check_thread()
        self._check_not_shut_down()
        sock = listen(address, self.options)
        listener = Listener(sock, address, self, certificate)
        listener.start()
        self._listeners.append(listener)
        bound = sock.getsockname()
        return (str(bound[0]), int(bound[1])) if isinstance(bound, tuple) else (address.host, 0)

    def AddConn(self, conn: object) -> int:
        """Take an outside connection into the loop: its messages and its end come like those of any other.

        `ConnAccepted` is not called for it, as in Go.

        Args:
            conn: what `Dial` returned, or an open `WebSocket` of gevent-websocket or websocket-client; it must not be
                used by itself any more.

        Returns:
            Its id.

        Raises:
            TypeError: `conn` is nothing that can be taken over.
            ValueError: it was added before.
            RuntimeError: the context has been shut down, or this is not the thread that made it.
        """
        self.check_thread()
        self._check_not_shut_down()
        if isinstance(conn, DialledConn):
            connection, unread = release(conn)
            self._register(connection)
            connection.move(self._sink, self._batch, self._keepalive)
            for event in unread:
                self._mailbox.put(event)
        else:
            foreign = adopt(conn)
            connection = self._connect(
                foreign.sock,
                request=foreign.request,
                subprotocol=foreign.subprotocol,
                tls=foreign.tls,
                protocol=Protocol(client=foreign.client, max_message_bytes=self.options.max_message_bytes),
                encoder=MaskingEncoder() if foreign.client else self._encoder(None),
            )
            connection.start(foreign.leftover)
        self._stats.added += 1
        return connection.id

    def _connect(self, sock: Any, **known: Any) -> Connection:
        """Make a connection of this context, with an id, that has not begun to read."""
        connection = Connection(
            sock, options=self.options, mailbox=self._sink, batch=self._batch, keepalive=self._keepalive, **known
        )
        self._register(connection)
        return connection

    def _register(self, connection: Connection) -> None:
        connection.id = id = next(self._ids)
        self._connections[id] = connection

    def ServeHTTP(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Upgrade a request that another server has read: the context as a WSGI application, after Go's `http.Handler`.

        Mount it in a web app at the path of its WebSockets; a Flask view returns it: `return context.ServeHTTP`. It
        works under gevent's `WSGIServer`, best with `handler_class=gowsev.WebSocketHandler`, under gevent-websocket's
        `WebSocketHandler`, and under gunicorn with `-k gevent` or, best, `-k gowsev.gunicorn.Worker`. The handshake
        follows the context's options and `ConnRequested`, as with `ListenAndServe`. Only under gevent-websocket's
        handler, which shakes hands by itself, a refusal is a close frame, and neither subprotocol nor compression is
        negotiated. A request that is no upgrade is answered with 426.

        May block the calling greenlet, for `ConnRequested`, for at most `Options.handshake_timeout`. When it returns,
        the connection belongs to the loop, and the server's greenlet is free.

        Args:
            environ: the request, as PEP 3333 has it.
            start_response: begins the response, likewise.

        Returns:
            The response's body.

        Raises:
            RuntimeError: the server is none of these, or this is not the thread that made the context.
        """
        if not asks_for_websocket(environ):
            note_lost_upgrade(environ)
            return upgrade_required(environ, start_response)
        return serve(self, environ, start_response)

    def MustConn(self, id: int) -> Conn:
        """Return what is known of a connection that there is, such as the one that a callback is called for.

        Raises:
            IdNotFound: there is none with this id.
        """
        connection = self._connections.get(id)
        if connection is None:
            raise IdNotFound(id)
        return Conn(connection)

    def Conn(self, id: int) -> Conn | None:
        """Return what is known of a connection; `None` if there is none with this id."""
        connection = self._connections.get(id)
        return None if connection is None else Conn(connection)

    def Stats(self) -> Stats:
        """Return a snapshot of the context's counters."""
        stats = replace(self._stats, queued_events=len(self._mailbox))
        for connection in self._connections.values():
            stats.connections += not connection.gone
            _count(stats, connection)
            stats.outbox_bytes += connection.outbox.size
        return stats

    # -- writing -------------------------------------------------------------------------------------------------

    def Write(self, id: int, message: bytes | bytearray | memoryview) -> Exception | None:
        """Send a binary message.

        Never blocks and never raises for a connection's sake: like Go, it returns an error value, `None` for none.
        Messages to one connection arrive in the order of their writes.

        Returns:
            `IdNotFound` (its text is `id not found`), `ConnClosing`, or `OutboxFull` when the peer is too slow.

        Raises:
            TypeError: `message` is not bytes, a bytearray or a memoryview.
            RuntimeError: this is not the thread that made the context.
        """
        connection = self._connections.get(id)
        plain = self._plain
        batch = self._batch
        if batch.held and connection is not None and connection.encoder is plain:
            # The way of almost every message. `connection.write` would do the same; not to call it makes a message cost
            # 10 % less where 50 clients have 16 in flight, and a publish in a loop a quarter, with eight in a row.
            if message is plain.binary:
                frame = plain.frame
            elif type(message) is bytes and len(message) < LARGE:
                frame = plain.encode(BINARY, message)
            else:
                frame = b""
            outbox = connection.outbox
            gathered = outbox.gathered
            if frame and len(gathered) < outbox.most:
                if gathered:
                    gathered.append(frame)
                    return None
                if not connection.closing:
                    gathered.append(frame)
                    batch.add(outbox)
                    return None
        if type(message) is not bytes:
            message = _as_bytes(message)
        if not batch.held:
            self.check_thread()
        if connection is None:
            return IdNotFound(id)
        return connection.write(BINARY, message)

    def WriteText(self, id: int, text: str) -> Exception | None:
        """Send a text message; otherwise like `Write`.

        Raises:
            TypeError: `text` is not str.
            ValueError: it cannot be encoded, holding half of a surrogate pair.
            RuntimeError: this is not the thread that made the context.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}; Write sends bytes")
        payload = text.encode()
        if not self._batch.held:
            self.check_thread()
        connection = self._connections.get(id)
        if connection is None:
            return IdNotFound(id)
        return connection.write(TEXT, payload)

    def Broadcast(self, ids: Iterable[int], message: bytes | bytearray | memoryview | str) -> list[int]:
        """Send a message to many connections: a str as text, bytes as binary. Encoded once; never blocks.

        Returns:
            The ids that could not take it.

        Raises:
            TypeError: `message` is neither.
            RuntimeError: this is not the thread that made the context.
        """
        if isinstance(message, str):
            opcode, payload = TEXT, message.encode()
        else:
            opcode, payload = BINARY, _as_bytes(message)
        ids = tuple(ids)
        batch = self._batch
        plain = self._plain
        frame = None
        if not batch.held:
            self.check_thread()
        elif len(payload) < LARGE:
            audience = self._audiences.find(ids)
            encoder = plain if audience is None else audience.encoder
            encoded = encoder.encode(opcode, payload)
            if audience is not None:
                audience.append(encoded)
                ids = tuple(audience.others)
            frame = encoded if encoder is plain else None
        refused: list[int] = []
        connections = self._connections
        # As in `Write`, nothing is called to put a frame into an outbox: eight in a row to 200 connections that are no
        # audience are a fifth cheaper.
        for id in ids:
            connection = connections.get(id)
            if frame is not None and connection is not None and connection.encoder is plain:
                outbox = connection.outbox
                gathered = outbox.gathered
                if len(gathered) < outbox.most:
                    if gathered:
                        gathered.append(frame)
                        continue
                    if not connection.closing:
                        gathered.append(frame)
                        batch.add(outbox)
                        continue
            if connection is None or connection.write(opcode, payload) is not None:
                refused.append(id)
        return refused

    def Close(self, id: int, code: int = 1000, reason: str = "") -> None:
        """Close a connection: send a close frame behind what was written before. Returns at once.

        `ConnClosed` follows, when the peer has answered or `close_timeout` is over. An unknown id does nothing, as
        in Go; neither does a second call.

        Args:
            id: the connection's.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
            reason: for the peer; what exceeds 123 bytes of UTF-8 is cut off.

        Raises:
            ValueError: `code` may not be sent.
            TypeError: an argument has the wrong type.
            RuntimeError: this is not the thread that made the context.
        """
        if isinstance(code, bool) or not isinstance(code, int):
            raise TypeError(f"code must be an int, not {code!r}")
        if not isinstance(reason, str):
            raise TypeError(f"reason must be str, not {reason!r}")
        encode_close_payload(code, reason)
        self.check_thread()
        connection = self._connections.get(id)
        if connection is not None:
            connection.close(code, reason)

    # -- calls and timers ----------------------------------------------------------------------------------------

    def Post(self, callback: Callable[[Context, Unpack[Args]], object], *args: *Args) -> None:
        """Let the loop run `callback(context, *args)` as one of its events. Safe from any thread; never blocks.

        Calls posted by one thread run in the order of posting.

        Raises:
            TypeError: `callback` is not callable.
            RuntimeError: the context has been shut down.
        """
        _check_callable(callback)
        if self._finished:
            self._check_not_shut_down()
        self._mailbox.post((CALL, callback, args))

    def AfterFunc(
        self, delay: float | timedelta, callback: Callable[[Context, Unpack[Args]], object], *args: *Args
    ) -> Timer:
        """Let the loop run `callback(context, *args)` once, `delay` seconds from now.

        Returns:
            A timer, whose `Stop()` prevents it.

        Raises:
            TypeError, ValueError: `delay` is no number of seconds of at least 0, or `callback` not callable.
            RuntimeError: this is not the thread that made the context.
        """
        _check_callable(callback)
        seconds = as_seconds("delay", delay)
        if seconds is None:
            raise TypeError("delay must be a number of seconds, not None")
        self.check_thread()
        return Timer(seconds, lambda timer: self._mailbox.put((CALL, timer.run, (callback, args))))

    # -- the loop ------------------------------------------------------------------------------------------------

    def GetTimeout(self) -> float | None:
        """Return how many seconds without an event lead to `EventLoopTimeout`; `None` for never."""
        return self._timeout

    def SetTimeout(self, timeout: float | timedelta | None) -> None:
        """Set how long the loop waits for an event before it calls `EventLoopTimeout`.

        Args:
            timeout: seconds, or a `timedelta`. 0 does not wait, but still lets what has arrived be read; `None`
                waits for ever. It holds from the next wait on.

        Raises:
            TypeError: it is none of these.
            ValueError: it is negative, infinite or no number.
        """
        self._timeout = as_seconds("timeout", timeout)

    def EventLoopIteration(self) -> bool:
        """Wait for one event, and handle it with at most one callback.

        Blocks the calling greenlet until an event comes, for as long as `SetTimeout` says. When it returns, what the
        callback wrote has been given to the kernel, as far as that takes it.

        Returns:
            Whether the loop goes on; `False` after a `Shutdown` has ended.

        Raises:
            RuntimeError: another greenlet is driving this loop, or this is not the thread that made the context.
        """
        outer = self._enter()
        held = self._batch.held
        try:
            if not self._finished:
                self._batch.held = False
                event = self._mailbox.get(self._timeout)
                self._batch.held = True
                self._handle(event or _TIMED_OUT)
        finally:
            self._batch.held = held
            self._leave(outer)
        return not self._finished

    def EventLoop(self) -> None:
        """Handle events until a `Shutdown` has ended.

        What leaves it (`KeyboardInterrupt`, `SystemExit`; under `raise_errors`, what a callback raises) is logged as an
        error where it ends a greenlet of its own, and a kill (`GreenletExit`) as information. From then on new
        connections are refused with 503, until the loop is driven again.

        Raises:
            RuntimeError: another greenlet is driving this loop, or this is not the thread that made the context.
        """
        outer = self._enter()
        held = self._batch.held
        try:
            batch, mailbox, handle, now = self._batch, self._mailbox, self._handle, time.monotonic
            take, get = mailbox.take, mailbox.get
            events, due = 0, now() + _LONGEST_GATHERING
            batch.held = True
            while not self._finished:
                try:
                    event = take()
                except Empty:
                    # Nothing more can be gathered; then the hub has its turn, and reads what has arrived.
                    batch.flush()
                    batch.held = False
                    event = get(self._timeout) or _TIMED_OUT
                    batch.held = True
                    events, due = 0, now() + _LONGEST_GATHERING
                handle(event)
                events += 1
                if now() >= due:
                    batch.flush()
                    mailbox.collect()
                    due = now() + _LONGEST_GATHERING
                if not events % MOST_IN_A_ROW:
                    poll_sockets()
        except BaseException as error:
            if not outer:
                self._forsake(error)
            raise
        finally:
            self._batch.held = held
            self._leave(outer)

    def _forsake(self, error: BaseException) -> None:
        """Note that nobody drives the loop any more, and say so where the program would not notice.

        A script sees what comes out of its own call. A greenlet beside an app just ends, and its connections would
        stay open with nobody to listen to them.
        """
        self._forsaken = True
        if isinstance(gevent.getcurrent(), gevent.Greenlet):
            killed = isinstance(error, gevent.GreenletExit)  # which somebody meant
            logger.log(
                logging.INFO if killed else logging.ERROR,
                "the greenlet of this loop has ended with %r; its %d connections wait, and new ones are refused, until "
                "the loop is driven again",
                error, len(self._connections), exc_info=not killed,
            )  # fmt: skip

    def Shutdown(self, timeout: float | timedelta | None = 10.0) -> None:
        """Stop listening, close every connection with 1001, and let the loop end when all are gone.

        Returns at once; `EventLoop` returns, and `EventLoopIteration` returns `False`, when the last `ConnClosed`
        has been called. What was written before is sent first.

        Args:
            timeout: seconds after which the connections that are left are cut off; `None` leaves it to
                `Options.close_timeout`.

        Raises:
            TypeError, ValueError: `timeout` is no number of seconds of at least 0.
            RuntimeError: this is not the thread that made the context.
        """
        seconds = as_seconds("timeout", timeout)
        self.check_thread()
        if not self._shutting_down:
            self._shutting_down = True
            for listener in self._listeners:
                listener.close()
        for connection in tuple(self._keepalive.connections):
            connection.close(GOING_AWAY, "shutting down", seconds)
        self._finish_if_drained()

    def ShutdownOnSignal(self, *servers: WSGIServer, timeout: float | timedelta | None = 10.0) -> None:
        """Let SIGTERM, and SIGINT (Ctrl-C), end the program in order, from now on: by a `Shutdown`. Returns at once.

        The loop gets its `KeyboardInterrupt` only from a second Ctrl-C, which ends a callback that hangs, too. Handlers
        that the program had for these signals are called as well.

        Args:
            servers: gevent servers that have been started, which `ServeHTTP` is mounted in. Their listeners are closed
                before the connections are; their `serve_forever` returns when the loop has ended.
            timeout: as for `Shutdown`.

        Raises:
            TypeError, ValueError: `timeout` is no number of seconds of at least 0; a server has not been started; or
                this is not the main thread, the only one that Python lets handle signals.
            RuntimeError: this is not the thread that made the context.
        """
        seconds = as_seconds("timeout", timeout)
        for server in servers:
            if not server.started:
                raise ValueError(f"servers must have been started, which {server!r} is not: call its start() first")
        self.check_thread()
        before: dict[int, Any] = {}
        process = os.getpid()
        asked = False

        def handle(number: int, frame: Any) -> None:
            # Not gevent's `signal_handler`: that one waits for the hub, which a callback that hangs never lets run.
            nonlocal asked
            forked = os.getpid() != process  # which has no loop, and may be one that is to be terminated
            if forked or self._finished or (asked and number == signal.SIGINT):
                signal.signal(number, before[number])
                signal.raise_signal(number)
                return
            if not asked:
                asked = True
                self._hub.loop.run_callback_threadsafe(gevent.spawn, self._end, servers, seconds)
            if callable(before[number]) and before[number] is not signal.default_int_handler:
                before[number](number, frame)  # such as that of another context

        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handle)
        let_signals_wake(self._hub)

    def _end(self, servers: tuple[WSGIServer, ...], timeout: float | None) -> None:
        """Shut down together with other servers, from the first listener to the last connection."""
        for server in servers:
            if not server.closed:
                # Not `close`: `serve_forever` would return, and the program end, before the connections are closed.
                server.stop_accepting()
                server.socket.close()
        self.Shutdown(timeout)
        while not self._ended:
            gevent.sleep(_LOOK)
        for server in servers:
            server.stop()

    @property
    def _ended(self) -> bool:
        return self._finished or (self._driver is None and not self._keepalive.connections)

    def _enter(self) -> bool:
        """Make the calling greenlet the driver; return whether it is one already, in a callback."""
        self.check_thread()
        greenlet = gevent.getcurrent()
        if self._driver is greenlet:
            return True
        if self._driver is not None:
            raise RuntimeError(f"this context's loop is being driven by {self._driver!r} already")
        self._driver = greenlet
        self._forsaken = self._undriven = False
        return False

    def _leave(self, nested: bool) -> None:
        if not nested:
            self._driver = None
        self._batch.flush()

    # -- dispatch ------------------------------------------------------------------------------------------------

    def _handle(self, event: tuple[int, Any, Any]) -> None:
        """Call what one event asks for."""
        kind, subject, payload = event
        try:
            if kind <= BINARY:
                # As `credit.refund` does; not to call it saves 3 % where 50 clients have 16 in flight.
                credit = subject.credit
                credit.messages -= 1
                credit.bytes -= len(payload)
                if credit.exhausted:
                    credit.replenish()
                if kind == BINARY or self._text_received is None:
                    self._handler.MessageReceived(self, subject.id, payload)
                else:
                    self._text_received(self, subject.id, payload.decode())
            elif kind == ACCEPTED:
                logger.debug("connection %d: %s asked for %r", subject.id, subject.request.peer, subject.request.path)
                self._handler.ConnAccepted(self, subject.id)
            elif kind == CLOSED:
                self._closed(subject)
            elif kind == CALL:
                subject(self, *payload)
            elif kind == REQUESTED:
                self._judge(subject)
            elif not self._shutting_down:  # TIMEOUT
                self._handler.EventLoopTimeout(self)
        except _LEAVING:
            raise
        except BaseException:
            self._stats.callback_errors += 1
            if self.options.raise_errors:
                raise
            connection: Connection | None = subject if kind <= BINARY or kind == ACCEPTED else None
            logger.exception("a callback raised%s", f"; closing connection {connection.id}" if connection else "")
            if connection is not None:
                connection.close(INTERNAL_ERROR, "internal error")

    def _closed(self, connection: Connection) -> None:
        id = connection.id
        if connection.end:
            logger.info("connection %d from %s: %s", id, shown(connection.request.peer), connection.end)
        try:
            self._handler.ConnClosed(self, id)
        finally:
            del self._connections[id]
            self._stats.closed += 1
            _count(self._stats, connection)
            for part in self._parts:
                part.connection_ended(id)
            self._finish_if_drained()

    def _judge(self, question: _Question) -> None:
        """Ask the handler about an upgrade, unless whoever wants to know is gone."""
        request, question.request = question.request, None
        if request is None:
            self._abandoned -= 1
            return
        response: Response | None = refusal(500, "The server failed to decide.\n")
        try:
            verdict = self._conn_requested(self, request)
            if verdict is not None and not isinstance(verdict, Reject):
                raise TypeError(f"ConnRequested must return None or a Reject, not {verdict!r}")
            response = refusal(verdict.status, verdict.reason, verdict.headers) if verdict else None
        finally:
            question.answer.set(response)

    def attach(self, part: Part) -> None:
        """Tell a part of this package what becomes of the context and of its connections; see `Part`."""
        self._parts.append(part)

    def _drained(self) -> bool:
        return self._shutting_down and not self._connections and not self._keepalive.connections

    def _finish(self, _context: Context) -> None:
        """End the loop; the callback of an event, so that what was posted before it is done first."""
        self._finishing = False
        if self._drained():
            self._finished = True
            self._mailbox.close()
            for listener in self._listeners:
                listener.abandon()
            for part in self._parts:
                part.loop_ended()

    def _finish_if_drained(self) -> None:
        """Let the loop end, if a shutdown has nothing more to wait for."""
        if self._drained() and not self._finishing:
            self._finishing = True
            self._mailbox.post((CALL, self._finish, ()))

    def _check_not_shut_down(self) -> None:
        if self._shutting_down:
            raise RuntimeError("this context has been shut down, or left to the process that this one was forked from")

    def disown(self) -> None:
        """Leave to the parent what is its own; called in a forked child.

        If the loop was driven in the parent, everything stays there; here it has ended, as after a `Shutdown`. If not,
        whoever drives it shall have it with its listeners, timers and posted calls, but without the clients that have
        come already: they stay with the parent too.
        """
        for listener in self._listeners:
            listener.disown_clients()
        for part in self._parts:
            part.disown()
        if self._undriven:
            self._connections.clear()
            self._abandoned = 0
            for event in self._mailbox.take_all():
                if event[0] == CALL:
                    self._mailbox.put(event)
                elif event[0] == REQUESTED:
                    event[1].request = None  # the copy of whoever waits for it is not to count it as abandoned
            return
        self._shutting_down = self._finished = True
        self._mailbox.disown()
        for listener in self._listeners:
            listener.disown()
        for part in self._parts:
            part.loop_ended()

    # -- what `upgrade.Host` asks for -----------------------------------------------------------------------------

    def check_thread(self) -> None:
        if gevent.get_hub() is not self._hub:
            raise RuntimeError("a context belongs to the thread that made it; only Post may be called from another")

    @property
    def may_refuse(self) -> bool:
        return self._conn_requested is not None or self._full() is not None

    def admit(self, request: Request) -> Response | None:
        response = self._full()
        if response is None and self._conn_requested is not None:
            self._watch_for_a_driver()
            question = _Question(request)
            self._mailbox.put((REQUESTED, question, None))
            try:
                response = question.answer.get() or self._full()
            finally:
                if question.request is not None:  # nobody waits any more, and the loop has not come to it
                    question.request = None
                    self._abandoned += 1
        return response

    def _full(self) -> Response | None:
        if self._shutting_down:
            return refusal(503, "The server is shutting down.\n")
        if self._forsaken:
            return refusal(503, "The server's event loop has ended.\n")
        limit = self.options.max_connections
        # An end that was not delivered yet holds memory; one that was delivered may still have its socket.
        most = max(len(self._connections), len(self._keepalive.connections))
        if limit is not None and most + self._abandoned >= limit:
            text = "The server has as many connections as it takes: see max_connections of gowsev.Options.\n"
            return refusal(503, text, option="max_connections")
        return None

    def refused(self) -> None:
        self._stats.rejected += 1

    def welcome(self, sock: Any, tls: bool, request: Request, handshake: Handshake, leftover: bytes) -> None:
        connection = self._connect(
            sock,
            request=request,
            subprotocol=handshake.subprotocol,
            tls=tls,
            protocol=Protocol(max_message_bytes=self.options.max_message_bytes, deflate=handshake.deflate),
            encoder=self._encoder(handshake.deflate),
        )
        self._stats.accepted += 1
        self._watch_for_a_driver()
        self._mailbox.put((ACCEPTED, connection, None))
        connection.start(leftover)
        if self._shutting_down:
            connection.close(GOING_AWAY, "shutting down")

    def _watch_for_a_driver(self) -> None:
        """See to it that it is said, once, if nobody has driven the loop in a while: a client waits for that."""
        if self._undriven and not self._watched:
            self._watched = True
            # Not spawn_later: nobody should have to wait for this, neither `gevent.wait()` nor the end of a program.
            gevent.get_hub().loop.timer(_UNDRIVEN, ref=False).start(gevent.spawn, _warn_if_undriven, ref(self))

    def _encoder(self, deflate: Deflate | None) -> Encoder:
        """Return the encoder of a connection: one that all with these parameters share, unless it keeps a context."""
        if deflate is not None and deflate.takeover:
            return Encoder(deflate)
        key = deflate.window_bits if deflate is not None else None
        if key not in self._encoders:
            self._encoders[key] = Encoder(deflate)
        return self._encoders[key]


class _Question:
    """A request that waits for `ConnRequested`. `request` is `None` once the loop took it, or nobody waits any more."""

    __slots__ = ("answer", "request")

    def __init__(self, request: Request) -> None:
        self.request: Request | None = request
        self.answer: AsyncResult[Response | None] = AsyncResult()


def _warn_if_undriven(held: ref[Context]) -> None:
    context = held()
    if context is not None and context._undriven and not context._shutting_down:
        logger.warning(
            "clients of this context wait for its loop, which was never driven: call its EventLoop, in a greenlet of "
            "its own (gevent.spawn) where a server has the main one"
        )


def _count(stats: Stats, connection: Connection) -> None:
    """Add a connection's counters."""
    stats.messages_received += connection.messages_received
    stats.messages_sent += connection.messages_sent
    stats.bytes_received += connection.bytes_received
    stats.bytes_sent += connection.outbox.bytes_sent
    stats.refused_writes += connection.refused_writes


def _as_bytes(message: object) -> bytes:
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    if isinstance(message, str):
        raise TypeError("message must be bytes, bytearray or memoryview, not str; WriteText sends text")
    raise TypeError(f"message must be bytes, bytearray or memoryview, not {type(message).__name__}")


def _check_callable(callback: object) -> None:
    if not callable(callback):
        raise TypeError(f"callback must be callable, not {callback!r}")

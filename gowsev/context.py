"""`Context`: what a program may ask of its event loop.

The work is done in the rooms below: `loop` drives and dispatches, `connections` makes and counts, `admission` lets in,
the listeners accept. Here stand the words of a program, their checks and their documentation; those that bring
connections in, in `serving`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVarTuple, Unpack
from weakref import finalize

from gowsev.arguments import as_bytes, as_seconds, check_callable, seconds_or_none
from gowsev.conn import Conn
from gowsev.connection.events import CALL
from gowsev.connection.fork import tell_in_child
from gowsev.connection.stream import Stream
from gowsev.errors import IdNotFound
from gowsev.loop.callbacks import check_handler, misspelt
from gowsev.loop.dispatch import Dispatch
from gowsev.loop.loop import Loop
from gowsev.loop.patching import warn_if_half_patched
from gowsev.loop.shutdown import shut_down_on_signal
from gowsev.opening.admission import Admission
from gowsev.options import Options
from gowsev.serving import Serving
from gowsev.timer import Timer
from gowsev.wire.frames import BINARY, TEXT, encode_close_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from _typeshed import SupportsRead
    from gevent.pywsgi import WSGIServer

    from gowsev.loop.attachments import Part
    from gowsev.loop.callbacks import Callbacks
    from gowsev.stats import Stats

    Args = TypeVarTuple("Args")

__all__ = ["Context", "MakeContext"]

logger = logging.getLogger("gowsev")


def MakeContext(handler: Callbacks[Context], options: Options | None = None) -> Context:
    """Make a context: an event loop with its own connections, independent of any other.

    Args:
        handler: any object with the methods of `Handler`.
        options: limits and intervals of the clients that come to it; the defaults are safe. A `Dial` has its own.

    Raises:
        TypeError: `handler` lacks a method or has an async one, or `options` is no `Options`.
    """
    return Context(handler, options)


class Context(Serving):
    """An event loop for WebSocket connections. Made by `MakeContext`.

    It belongs to the thread that makes it: its methods may be called from any greenlet of that thread, callbacks
    included, and `Post` from any thread. None of them blocks, but for the two that drive the loop, and for
    `ListenAndServe` while it looks up the name of a host. In another thread, what would go wrong raises `RuntimeError`;
    only a write in the very middle of a callback goes unnoticed.
    """

    def __init__(self, handler: Callbacks[Context], options: Options | None = None) -> None:
        check_handler(handler)
        if options is not None and not isinstance(options, Options):
            raise TypeError(f"options must be gowsev.Options or None, not {options!r}")
        self.options: Options = options or Options()
        self._loop = loop = Loop(self.options)
        self._connections = loop.connections
        self._by_id = loop.connections.by_id
        self._batch = loop.connections.batch
        self._dispatch = Dispatch(self, handler, loop, self.options.raise_errors)
        self._admission = Admission(self.options, loop.connections, loop.queue, loop, self._dispatch.asks)
        finalize(self, loop.queue.close)
        tell_in_child(self)
        for name, callback in misspelt(handler):
            logger.warning("the loop never calls %s of handler %r: the callback's name is %s", name, handler, callback)
        warn_if_half_patched()

    def MustConn(self, id: int) -> Conn:
        """Return what is known of a connection that there is, such as the one that a callback is called for.

        Raises:
            IdNotFound: there is none with this id.
        """
        conn = self.Conn(id)
        if conn is None:
            raise IdNotFound(id)
        return conn

    def Conns(self) -> list[Conn]:
        """Return what is known of each connection there is, the oldest first."""
        return [Conn(connection) for connection in self._by_id.values()]

    def Conn(self, id: int) -> Conn | None:
        """Return what is known of a connection; `None` if there is none with this id."""
        connection = self._by_id.get(id)
        return None if connection is None else Conn(connection)

    def Stats(self) -> Stats:
        """Return a snapshot of the context's counters."""
        return self._connections.snapshot(len(self._loop.queue))

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
        if type(message) is not bytes:
            message = as_bytes(message)
        if not self._batch.held:
            self._loop.check_thread()
        try:  # not `get`, which is a call: 2 % of a message in a loop of writes (measured)
            connection = self._by_id[id]
        except KeyError:
            return IdNotFound(id)
        return connection.outbox.write(BINARY, message)

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
            self._loop.check_thread()
        connection = self._by_id.get(id)
        return IdNotFound(id) if connection is None else connection.outbox.write(TEXT, payload)

    def WriteStream(
        self,
        id: int,
        source: Iterable[bytes | bytearray | memoryview] | SupportsRead[bytes],
        done: Callable[[Context, int, BaseException | None], object] | None = None,
    ) -> Exception | None:
        """Send a binary message in pieces, which are asked for only as the peer takes what came before.

        It is one message to the peer: a fragmented one (RFC 6455 section 5.4), of any length. Never blocks: the loop
        asks `source` for pieces in events of its own, each time until 256 KiB wait. What `source` does meanwhile, such
        as to read from a disk, is like the work of a callback: the loop waits for it. Messages that are written before
        the end are sent behind it, and count towards `Options.outbox_bytes`; a further one in pieces counts 64 KiB.

        `source` is closed in the end, if it has a `close`, and at once where an error is returned. What it raises is
        logged, as by a callback, and closes the connection with 1011: its message has no end. When the connection ends
        before the message does, the rest is not asked for.

        Args:
            id: the connection's.
            source: an iterable, such as a generator, or a file opened in binary mode. However long its pieces are, they
                are sent as fragments of 64 KiB, the last one shorter.
            done: called by the loop as `done(context, id, error)` when it is over, before `ConnClosed`. `error` is
                `None` when all of it has been written, as by a `Write` that returned `None`; `ConnClosing` when the
                connection ended before; or what `source` raised. It is not called where an error is returned here.

        Returns:
            As for `Write`.

        Raises:
            TypeError: `source` is no iterable and no binary file, or is a single message; or `done` is not callable.
                A piece of the wrong type is found when its turn comes, and is then like an error of `source`.
            RuntimeError: this is not the thread that made the context.
        """
        return self._stream(Stream(BINARY, id, source, done))

    def WriteTextStream(
        self,
        id: int,
        source: Iterable[str] | SupportsRead[str],
        done: Callable[[Context, int, BaseException | None], object] | None = None,
    ) -> Exception | None:
        """Send a text message in pieces of str; otherwise like `WriteStream`. A file is one opened in text mode."""
        return self._stream(Stream(TEXT, id, source, done))

    def _stream(self, stream: Stream) -> Exception | None:
        self._loop.check_thread()
        connection = self._by_id.get(stream.id)
        error = IdNotFound(stream.id) if connection is None else connection.stream(stream)
        if error is not None:
            stream.close()
        return error

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
            opcode, payload = BINARY, as_bytes(message, "str, ")
        if not self._batch.held:
            self._loop.check_thread()
        return self._connections.groups.broadcast(tuple(ids), opcode, payload)

    def Ping(self, id: int) -> Exception | None:
        """Ask a peer whether it is there: send a ping (RFC 6455 section 5.5.2), at once, behind what waits for it.

        Its pong makes `Conn.round_trip`. Like `Write`, this never blocks, and never raises for a connection's sake.

        Returns:
            `IdNotFound`, `ConnClosing`, or `OutboxFull`, which here does not close the connection; `None` for no error.

        Raises:
            RuntimeError: this is not the thread that made the context.
        """
        self._loop.check_thread()
        connection = self._by_id.get(id)
        return IdNotFound(id) if connection is None else connection.ping()

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
        encode_close_payload(code, reason)
        self._loop.check_thread()
        connection = self._by_id.get(id)
        if connection is not None:
            connection.close(code, reason)

    def Post(self, callback: Callable[[Context, Unpack[Args]], object], *args: *Args) -> None:
        """Let the loop run `callback(context, *args)` as one of its events. Safe from any thread; never blocks.

        Calls posted by one thread run in the order of posting.

        Raises:
            TypeError: `callback` is not callable.
            RuntimeError: the context has been shut down.
        """
        check_callable("callback", callback)
        if self._loop.finished:
            self._loop.check_not_stopped()
        self._loop.queue.post((CALL, callback, args))

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
        check_callable("callback", callback)
        seconds = as_seconds("delay", delay)
        self._loop.check_thread()
        return Timer(seconds, lambda timer: self._loop.queue.put((CALL, timer.run, (callback, args))))

    def GetTimeout(self) -> float | None:
        """Return how many seconds without an event lead to `EventLoopTimeout`; `None` for never."""
        return self._loop.timeout

    def SetTimeout(self, timeout: float | timedelta | None) -> None:
        """Set how long the loop waits for an event before it calls `EventLoopTimeout`.

        Args:
            timeout: seconds, or a `timedelta`. 0 does not wait, but still lets what has arrived be read; `None`
                waits for ever. It holds from the next wait on.

        Raises:
            TypeError: it is none of these.
            ValueError: it is negative, infinite or no number.
        """
        self._loop.timeout = seconds_or_none("timeout", timeout)

    def EventLoopIteration(self) -> bool:
        """Wait for one event, and handle it with at most one callback.

        Blocks the calling greenlet until an event comes, for as long as `SetTimeout` says. When it returns, what the
        callback wrote has been given to the kernel, as far as that takes it.

        Returns:
            Whether the loop goes on; `False` after a `Shutdown` has ended.

        Raises:
            RuntimeError: another greenlet is driving this loop, or this is not the thread that made the context.
        """
        return self._loop.iterate(self._dispatch.handle)

    def EventLoop(self) -> None:
        """Handle events until a `Shutdown` has ended.

        What leaves it (`KeyboardInterrupt`, `SystemExit`; under `raise_errors`, what a callback raises) is logged as an
        error where it ends a greenlet of its own, and a kill (`GreenletExit`) as information. From then on new
        connections are refused with 503, until the loop is driven again.

        Raises:
            RuntimeError: another greenlet is driving this loop, or this is not the thread that made the context.
        """
        self._loop.run(self._dispatch.handle)

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
        seconds = seconds_or_none("timeout", timeout)
        self._loop.check_thread()
        self._loop.stop(seconds)

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
        shut_down_on_signal(servers, self._loop, seconds_or_none("timeout", timeout))

    def attach(self, part: Part) -> Callable[..., None]:
        """Tell a part of this package what becomes of the context; return its `Post`, for this thread; see `Part`."""
        return self._loop.attach(part)

    def disown(self) -> None:
        """Leave to the parent what is its own; called in a forked child.

        A loop that was driven there has ended here. Another one may be driven here, without the clients that have come.
        """
        self._admission.disown(self._loop.disown())

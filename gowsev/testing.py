"""For tests of programs that use gowsev: a server on a free port, a client, and waits that end.

A test is one greenlet and drives no loop: `Server` does that in another one, and `Client`, `wait_until` and
`Recorder.wait_for` let it run while they wait. Every wait has a limit, after which it raises an `AssertionError` that
says what was waited for. Nothing here needs a test framework; the fixtures for pytest are in `pytest_plugin`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import gevent

from gowsev.context import Context, MakeContext
from gowsev.errors import ConnectionClosed
from gowsev.loop.callbacks import CALLBACKS
from gowsev.opening.attempt import check_names, check_wanted
from gowsev.opening.dial import BinaryMessage, DialledConn, TextMessage, connection_of
from gowsev.options import Options

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Literal, Self, TypeVarTuple, Unpack

    from gowsev.loop.callbacks import Callbacks
    from gowsev.request import Request

    Args = TypeVarTuple("Args")
    Result = TypeVar("Result")

__all__ = ["TIMEOUT", "Callback", "Client", "Recorder", "Server", "drive", "in_thread", "wait_until"]

Wrapped = TypeVar("Wrapped", bound="Callbacks[Context]")

#: Seconds that a wait may take, unless it is told otherwise. Machines that run tests are slow at times, and a test that
#: waits so long has failed anyway.
TIMEOUT = 30.0

#: Seconds from one look at a condition to the next.
_PAUSE = 0.002

#: Seconds that connections are given to close when a test is over.
_LAST_WORDS = 5.0


def wait_until(condition: Callable[[], Result], timeout: float = TIMEOUT) -> Result:
    """Let other greenlets run until `condition()` is true, and return what it returned.

    Args:
        condition: called again and again; it must not wait.
        timeout: in seconds.

    Raises:
        AssertionError: it is still not true after `timeout`.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still not true after {timeout} s: {condition}")
        gevent.sleep(_PAUSE)
    return result


def in_thread(function: Callable[[Unpack[Args]], Result], *args: *Args, timeout: float = 2 * TIMEOUT) -> Result:
    """Run blocking code, such as a client that knows nothing of gevent, in a real thread; return its result.

    Blocks the calling greenlet only.

    Args:
        function: what it raises is raised here.
        args: its arguments.
        timeout: in seconds.

    Raises:
        AssertionError: it has not returned after `timeout`; the thread goes on.
    """
    result = gevent.get_hub().threadpool.spawn(function, *args)
    with _limit(timeout, f"{function} has not returned"):
        returned: Result = result.get()  # pyright: ignore[reportAssignmentType]  # a result may be None
    return returned


@contextmanager
def drive(context: Context, timeout: float = TIMEOUT) -> Generator[gevent.Greenlet[[], None], None, None]:
    """Drive a context's loop in a greenlet of its own for as long as the block lasts; then shut the context down.

    Args:
        context: its loop must not be driven elsewhere.
        timeout: seconds within which the loop must end after the `Shutdown`.

    Raises:
        AssertionError: the loop did not end. What left the loop as an exception is raised as it is.
    """
    loop = gevent.spawn(context.EventLoop)
    try:
        yield loop
    finally:
        context.Shutdown(min(timeout, _LAST_WORDS))
        try:
            with _limit(timeout, "after its Shutdown the loop has not ended"):
                loop.get()
        finally:
            loop.kill()


class Callback(NamedTuple):
    """One call of a handler's method: `args` are its arguments behind `context`, `error` is what it raised."""

    name: str
    args: tuple[Any, ...]  # of which types they are, the name says
    error: BaseException | None = None


class Recorder(Generic[Wrapped]):
    """A handler that passes every callback on to another one, and notes it when that has returned.

    It has the optional callbacks where the other has them.
    """

    def __init__(self, handler: Wrapped) -> None:
        #: The handler that it passes callbacks on to.
        self.handler = handler
        #: The calls that no `wait_for` has returned yet, in their order.
        self.callbacks: list[Callback] = []

    def __repr__(self) -> str:
        return f"<Recorder of {self.handler!r}>"

    def __getattr__(self, name: str) -> Any:  # a method of one of several types
        if name not in CALLBACKS:
            raise AttributeError(f"{self!r} has no attribute {name!r}")
        method = getattr(self.handler, name)

        def note(context: Context, *args: Any) -> Any:
            error = None
            try:
                return method(context, *args)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self.callbacks.append(Callback(name, args, error))

        return note

    if TYPE_CHECKING:  # which `__getattr__` finds

        def ConnAccepted(self, context: Context, id: int) -> object: ...
        def ConnClosed(self, context: Context, id: int) -> object: ...
        def EventLoopTimeout(self, context: Context) -> object: ...
        def MessageReceived(self, context: Context, id: int, message: bytes) -> object: ...

    @overload
    def wait_for(
        self, name: Literal["ConnAccepted", "ConnClosed"], *args: object, timeout: float = ...
    ) -> tuple[int]: ...
    @overload
    def wait_for(self, name: Literal["MessageReceived"], *args: object, timeout: float = ...) -> tuple[int, bytes]: ...
    @overload
    def wait_for(self, name: Literal["TextReceived"], *args: object, timeout: float = ...) -> tuple[int, str]: ...
    @overload
    def wait_for(
        self, name: Literal["FragmentReceived"], *args: object, timeout: float = ...
    ) -> tuple[int, bytes | str, bool]: ...
    @overload
    def wait_for(self, name: Literal["ConnRequested"], *args: object, timeout: float = ...) -> tuple[Request]: ...
    @overload
    def wait_for(self, name: Literal["EventLoopTimeout"], *args: object, timeout: float = ...) -> tuple[()]: ...
    def wait_for(self, name: str, *args: object, timeout: float = TIMEOUT) -> tuple[Any, ...]:  # as the overloads say
        """Wait until a callback has returned that was not waited for before, and return its arguments.

        Args:
            name: of the callback, such as `"ConnClosed"`.
            args: with which arguments it began, behind `context`; the id, for most. None means any.
            timeout: in seconds.

        Returns:
            All of its arguments but `context`.

        Raises:
            ValueError: there is no callback of this name.
            AssertionError: there was no such callback within `timeout`; the text tells which there were. What the
                callback raised is raised here too.
        """
        if name not in CALLBACKS:
            raise ValueError(f"name must be one of {', '.join(CALLBACKS)}, not {name!r}")

        def found() -> Callback | None:
            fitting = (call for call in self.callbacks if call.name == name and call.args[: len(args)] == args)
            return next(fitting, None)

        try:
            callback = wait_until(found, timeout)
        except AssertionError:
            wanted = f"{name}{args}" if args else name
            raise AssertionError(f"no {wanted} within {timeout} s, but {self.callbacks}") from None
        assert callback is not None
        self.callbacks.remove(callback)
        if callback.error is not None:
            raise callback.error
        return callback.args

    def check(self) -> None:
        """Raise what a callback raised, if no `wait_for` has returned that call."""
        for callback in self.callbacks:
            if callback.error is not None:
                raise callback.error


class Client:
    """A WebSocket client, none of whose calls waits for ever. A context manager, which closes it.

    Args:
        url: `ws://` or `wss://`.
        timeout: seconds for each call, opening included.
        answer_pings: whether it answers pings, as RFC 6455 section 5.5.2 demands of every peer.
        arguments: for `Dial`. Unless they name a proxy there is none, whatever the environment says.

    Raises:
        DialError: the connection could not be opened; `status` is the HTTP status if the server refused.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT,
        answer_pings: bool = True,
        **arguments: Any,  # `check_wanted` looks at them
    ) -> None:
        check_names("Client", arguments)
        self.timeout = timeout
        arguments.setdefault("proxy", None)
        #: The connection that `Dial` opened.
        self.conn: DialledConn = connection_of(
            check_wanted(url, timeout=timeout, **arguments), answer_pings=answer_pings
        )

    def send(self, message: str | bytes) -> None:
        """Send a message: a str as text, bytes as binary.

        Raises:
            ConnectionClosed: the connection has ended, or is about to.
            AssertionError: the server did not read it in time.
        """
        with _limit(self.timeout, "the message has not been sent"):
            self.conn.WriteMessage(TextMessage if isinstance(message, str) else BinaryMessage, message)

    def receive(self) -> str | bytes:
        """Wait for the next message, and return it: a text message as str, a binary one as bytes.

        Raises:
            ConnectionClosed: the connection has ended, and everything before was received.
            AssertionError: no message came.
        """
        with _limit(self.timeout, "no message has come"):
            return self.conn.ReadMessage()[1]

    def wait_closed(self) -> ConnectionClosed:
        """Wait for the end of the connection, and return its `code` and `reason`; messages before it are thrown away.

        Raises:
            AssertionError: the connection has not ended.
        """
        with _limit(self.timeout, "the connection has not ended"):
            while True:
                try:
                    self.conn.ReadMessage()
                except ConnectionClosed as closed:
                    return closed

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, as `Dial`'s `Close` does. Closing a closed one does nothing."""
        with _limit(self.timeout, "the connection has not been closed"):
            self.conn.Close(code, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Server:
    """A context that listens on a free port of this machine, its loop in a greenlet of its own. A context manager.

    At its end the clients that it dialled are closed, the context is shut down, and what left the loop is raised; of
    a `Recorder` also what a callback raised, if the test has not waited for that callback.

    Args:
        handler: as for `MakeContext`.
        port: as for `ListenAndServe`.
        certificate: the files of a certificate and its key, for TLS.
        ssl_context: in their place, as for `ListenAndServeTLS`.
        options: the fields of `Options`.
    """

    host: str
    """Where it listens."""
    port: int
    """On which port."""
    loop: gevent.Greenlet[[], None]
    """The greenlet that drives the loop."""

    def __init__(
        self,
        handler: Callbacks[Context],
        *,
        port: str | int = "127.0.0.1:0",
        certificate: tuple[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        **options: Any,  # Options looks at them
    ) -> None:
        #: What it was made with.
        self.handler: Any = handler  # of a class of the test's, which may look into it
        #: The context, for what a test asks of it.
        self.context: Context = MakeContext(handler, Options(**options))
        self._wanted = port
        self._tls: dict[str, Any] | None = None if ssl_context is None else {"ssl_context": ssl_context}
        if certificate is not None:
            self._tls = {"certFile": certificate[0], "keyFile": certificate[1]} | (self._tls or {})
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """Where it listens, with the path `/`."""
        scheme = "ws" if self._tls is None else "wss"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/"

    def dial(self, path: str = "/", **arguments: Any) -> Client:  # Dial looks at them
        """Open a client connection to it, which is closed when the server ends.

        Args:
            path: with its query, if it has one.
            arguments: as for `Client`.

        Raises:
            ValueError: `path` does not begin with `/`.
            DialError: the server refused.
        """
        if not path.startswith("/"):
            raise ValueError(f"path must begin with '/', not {path!r}")
        return self._stack.enter_context(Client(self.url[:-1] + path, **arguments))

    def __enter__(self) -> Self:
        if self._tls is None:
            self.host, self.port = self.context.ListenAndServe(self._wanted)
        else:
            self.host, self.port = self.context.ListenAndServeTLS(self._wanted, **self._tls)
        self.loop = self._stack.enter_context(drive(self.context))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        if kind is None and isinstance(self.handler, Recorder):
            self.handler.check()


@contextmanager
def _limit(seconds: float, complaint: str) -> Generator[None, None, None]:
    """Bound the time of what waits in gevent's way."""
    limit = gevent.Timeout(seconds)
    try:
        with limit:
            yield
    except gevent.Timeout as expired:
        if expired is not limit:
            raise
        raise AssertionError(f"{complaint} within {seconds} s") from None

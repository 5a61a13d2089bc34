"""`Handler`: the four callbacks of a program, each doing nothing; and what an object needs to be a handler."""

from __future__ import annotations

from difflib import SequenceMatcher
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gowsev.context import Context
    from gowsev.request import Reject, Request

__all__ = ["Callbacks", "Handler", "check_handler", "misspelt"]

_METHODS = ("ConnAccepted", "ConnClosed", "EventLoopTimeout", "MessageReceived")
_OPTIONAL = ("TextReceived", "ConnRequested")

#: How like a callback's name another must be to be a slip of the pen: `MessageRecieved` is one with 0.93, and
#: `ConnClose` with 0.95; `conn_rejected` is none, with 0.8 of `ConnRequested`.
_ALIKE = 0.9


class Callbacks(Protocol):
    """What `MakeContext` takes, for type checkers: any object with these methods, whatever it calls its arguments."""

    def ConnAccepted(self, context: Context, id: int, /) -> object: ...
    def ConnClosed(self, context: Context, id: int, /) -> object: ...
    def EventLoopTimeout(self, context: Context, /) -> object: ...
    def MessageReceived(self, context: Context, id: int, message: bytes, /) -> object: ...


class Handler:
    """A base class for handlers, as a convenience: any object with these four methods will do.

    Every callback runs in the greenlet that drives the loop, one at a time. It may block cooperatively (a database
    call under gevent); other callbacks then wait, readers and writers go on.

    Two more are called where a handler has them:

    - `TextReceived(context, id, text)`: a text message, as `str`. Without it, text messages come to
      `MessageReceived` as their UTF-8 bytes, as in Go.
    - `ConnRequested(context, request)`: before an upgrade. Return `None` to accept or a `Reject` to refuse;
      `request` is a `Request`.

    Editors and pyright know the types of a derived class's arguments without annotations, where the arguments keep
    these names. mypy looks into annotated methods only.
    """

    def ConnAccepted(self, context: Context, id: int) -> None:
        """A client has connected; the first callback with this id."""

    def ConnClosed(self, context: Context, id: int) -> None:
        """A connection has ended; the last callback with this id. `context.Conn(id)` still tells of it."""

    def EventLoopTimeout(self, context: Context) -> None:
        """No event came for as long as `Context.SetTimeout` says."""

    def MessageReceived(self, context: Context, id: int, message: bytes) -> None:
        """A message has come."""

    if TYPE_CHECKING:
        # Declared, so that a checker finds a wrong signature in a derived class, but not there: a handler has them
        # only if it defines them, and there is nothing for `super()` to call.
        def TextReceived(self, context: Context, id: int, text: str) -> None: ...
        def ConnRequested(self, context: Context, request: Request) -> Reject | None: ...


def check_handler(handler: object) -> None:
    """Check that an object has the callbacks of `Handler`, and that the loop can call them.

    Raises:
        TypeError: it does not; the text says what is wrong.
    """
    missing = [name for name in _METHODS if not callable(getattr(handler, name, None))]
    if isinstance(handler, type) and not missing:
        raise TypeError(f"handler must be an object, not the class {handler.__name__}: call it")
    if missing:
        raise TypeError(f"handler {handler!r} must have the methods {', '.join(_METHODS)}; missing: {missing}")
    for name in _METHODS + _OPTIONAL:
        if iscoroutinefunction(getattr(handler, name, None)):
            raise TypeError(f"{name} must be an ordinary function, not async: the loop awaits nothing")


def misspelt(handler: object) -> list[tuple[str, str]]:
    """List what is probably meant as a callback, but has another name: each with the callback's own.

    In a class derived from `Handler` nothing is missing then, and nothing happens either: the loop goes on calling what
    does nothing. A method whose callback the handler has is its own affair.
    """
    found = []
    for callback in _METHODS + _OPTIONAL:
        given = getattr(handler, callback, None)
        if getattr(given, "__func__", given) is not vars(Handler).get(callback):
            continue
        for name in dir(type(handler)):
            plain = name.replace("_", "").lower()
            likeness = SequenceMatcher(None, plain, callback.lower()).ratio()
            if name not in _METHODS + _OPTIONAL and likeness >= _ALIKE and callable(getattr(type(handler), name)):
                found.append((name, callback))
    return found

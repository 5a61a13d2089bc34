"""What an object needs to be a handler, and what it probably means where it has something else."""

from __future__ import annotations

from difflib import SequenceMatcher
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    Method = TypeVar("Method", bound=Callable[..., Any])

Context = TypeVar("Context", contravariant=True)

__all__ = ["CALLBACKS", "Callbacks", "check_handler", "does_nothing", "misspelt"]

_METHODS = ("ConnAccepted", "ConnClosed", "EventLoopTimeout", "MessageReceived")
#: The names of all callbacks.
CALLBACKS = (*_METHODS, "TextReceived", "FragmentReceived", "ConnRequested")

#: How like a callback's name another must be to be a slip of the pen: `MessageRecieved` is one with 0.93, and
#: `ConnClose` with 0.95; `conn_rejected` is none, with 0.8 of `ConnRequested`.
_ALIKE = 0.9


class Callbacks(Protocol[Context]):
    """The handler of `MakeContext`, for type checkers: any object with these methods, its arguments named freely."""

    def ConnAccepted(self, context: Context, id: int, /) -> object: ...
    def ConnClosed(self, context: Context, id: int, /) -> object: ...
    def EventLoopTimeout(self, context: Context, /) -> object: ...
    def MessageReceived(self, context: Context, id: int, message: bytes, /) -> object: ...


def does_nothing(method: Method) -> Method:
    """Mark a method of a base class that is there to be overridden."""
    setattr(method, "does_nothing", True)  # noqa: B010  # an attribute that the type of functions has not
    return method


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
    for name in CALLBACKS:
        if iscoroutinefunction(getattr(handler, name, None)):
            raise TypeError(f"{name} must be an ordinary function, not async: the loop awaits nothing")


def misspelt(handler: object) -> list[tuple[str, str]]:
    """List what is probably meant as a callback, but has another name: each with the callback's own.

    In a class derived from `Handler` nothing is missing then, and nothing happens either: the loop goes on calling what
    does nothing. A method whose callback the handler has is its own affair.
    """
    found = []
    for callback in CALLBACKS:
        given = getattr(handler, callback, None)
        if given is not None and not getattr(given, "does_nothing", False):
            continue
        for name in dir(type(handler)):
            plain = name.replace("_", "").lower()
            likeness = SequenceMatcher(None, plain, callback.lower()).ratio()
            if name not in CALLBACKS and likeness >= _ALIKE and callable(getattr(type(handler), name)):
                found.append((name, callback))
    return found

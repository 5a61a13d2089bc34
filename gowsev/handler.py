"""`Handler`: the four callbacks of a program, each doing nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gowsev.loop.callbacks import does_nothing

if TYPE_CHECKING:
    from gowsev.context import Context
    from gowsev.request import Accept, Reject, Request

__all__ = ["Handler"]


class Handler:
    """A base class for handlers, as a convenience: any object with these four methods will do.

    Every callback runs in the greenlet that drives the loop, one at a time. It may block cooperatively (a database
    call under gevent); other callbacks then wait, readers and writers go on.

    Three more are called where a handler has them:

    - `TextReceived(context, id, text)`: a text message, as `str`. Without it, text messages come to
      `MessageReceived` as their UTF-8 bytes, as in Go.
    - `FragmentReceived(context, id, fragment, final)`: what has come of a message in several frames, `final` being True
      for its last part: str of a text message, in whole characters, else bytes. The message may be of any length.
      Without this callback it comes as a whole, bounded by `Options.max_message_bytes`, as one in one frame does.
    - `ConnRequested(context, request)`: before an upgrade. Return `None` to accept, an `Accept` to hand over what is
      known of the client, or a `Reject` to refuse; `request` is a `Request`.

    Editors and pyright know the types of a derived class's arguments without annotations, where the arguments keep
    these names. mypy looks into annotated methods only.
    """

    @does_nothing
    def ConnAccepted(self, context: Context, id: int) -> None:
        """A client has connected; the first callback with this id."""

    @does_nothing
    def ConnClosed(self, context: Context, id: int) -> None:
        """A connection has ended; the last callback with this id. `context.Conn(id)` still tells of it."""

    @does_nothing
    def EventLoopTimeout(self, context: Context) -> None:
        """No event came for as long as `Context.SetTimeout` says."""

    @does_nothing
    def MessageReceived(self, context: Context, id: int, message: bytes) -> None:
        """A message has come."""

    if TYPE_CHECKING:
        # Declared, so that a checker finds a wrong signature in a derived class, but not there: a handler has them
        # only if it defines them, and there is nothing for `super()` to call.
        def TextReceived(self, context: Context, id: int, text: str) -> None: ...
        def FragmentReceived(self, context: Context, id: int, fragment: bytes | str, final: bool) -> None: ...
        def ConnRequested(self, context: Context, request: Request) -> Accept | Reject | None: ...

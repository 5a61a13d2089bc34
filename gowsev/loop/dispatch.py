"""From an event to a callback: what is called for each kind, and what follows where it raises."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import gevent

from gowsev.connection.events import ACCEPTED, CALL, CLOSED, REQUESTED
from gowsev.opening.upgrade import format_address
from gowsev.wire.frames import BINARY, FINAL, FRAGMENT, INTERNAL_ERROR, OPCODE_BITS, TEXT

if TYPE_CHECKING:
    from gowsev.connection.connection import Connection
    from gowsev.connection.events import Event
    from gowsev.loop.callbacks import Callbacks
    from gowsev.loop.loop import Loop
    from gowsev.request import Request

__all__ = ["Dispatch"]

logger = logging.getLogger("gowsev")

Context = TypeVar("Context")

#: These always leave the loop.
_LEAVING: Final = (KeyboardInterrupt, SystemExit, gevent.GreenletExit)


class Dispatch(Generic[Context]):
    """Calls a handler.

    Args:
        context: what each callback gets first.
        handler: the program's.
        loop: the loop whose events these are; a connection whose `ConnClosed` has returned is forgotten there.
        raise_errors: raise what a callback raises, instead of logging it and closing its connection with 1011.
    """

    def __init__(self, context: Context, handler: Callbacks[Context], loop: Loop, raise_errors: bool) -> None:
        self._context = context
        self._handler = handler
        self._text_received: Any = getattr(handler, "TextReceived", None)
        self._conn_requested: Any = getattr(handler, "ConnRequested", None)
        self._fragment_received: Any = getattr(handler, "FragmentReceived", None)
        self._connections = loop.connections
        self._connections.fragments = self._fragment_received is not None
        self._loop = loop
        self._raise_errors = raise_errors

    @property
    def asks(self) -> bool:
        """Whether the program decides about upgrades."""
        return self._conn_requested is not None

    def handle(self, event: Event) -> None:
        """Call what one event asks for."""
        kind, subject, payload = event
        try:
            if kind <= BINARY:
                # With types, compiled code calls a connection without asking the interpreter.
                receiver: Connection = subject
                message: bytes = payload
                receiver.credit.refund(len(message))
                if kind == BINARY or self._text_received is None:
                    self._handler.MessageReceived(self._context, receiver.id, message)
                else:
                    self._text_received(self._context, receiver.id, message.decode())
            elif kind == ACCEPTED:
                logger.debug("connection %d: %s asked for %r", subject.id, subject.request.peer, subject.request.path)
                self._handler.ConnAccepted(self._context, subject.id)
            elif kind == CLOSED:
                self._closed(subject)
            elif kind == CALL:
                subject(self._context, *payload)
            elif kind == REQUESTED:
                subject.decide(self._ask)
            elif kind >= FRAGMENT:
                subject.credit.refund(len(payload))
                fragment = payload.decode() if kind & OPCODE_BITS == TEXT else payload
                self._fragment_received(self._context, subject.id, fragment, kind & FINAL != 0)
            elif not self._loop.stopping:  # TIMEOUT
                self._handler.EventLoopTimeout(self._context)
        except _LEAVING:
            raise
        except BaseException:
            self._connections.stats.callback_errors += 1
            if self._raise_errors:
                raise
            connection: Connection | None = None
            if kind <= BINARY or kind == ACCEPTED or kind >= FRAGMENT:
                connection = subject
            logger.exception("a callback raised%s", f"; closing connection {connection.id}" if connection else "")
            if connection is not None:
                connection.close(INTERNAL_ERROR, "internal error")

    def _ask(self, request: Request) -> Any:
        return self._conn_requested(self._context, request)

    def _closed(self, connection: Connection) -> None:
        if connection.end:
            logger.info(
                "connection %d with %s: %s", connection.id, format_address(connection.request.peer), connection.end
            )
        try:
            self._handler.ConnClosed(self._context, connection.id)
        finally:
            self._connections.forget(connection)
            closes, code = self._connections.stats.closed_by_code, connection.close_code or 1006
            closes[code] = closes.get(code, 0) + 1
            for part in self._loop.parts:
                part.connection_ended(connection.id)
            self._loop.finish_if_drained()

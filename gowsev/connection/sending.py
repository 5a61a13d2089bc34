"""The sending half of a connection: what a program writes, and what of it has left.

It knows the outbox and the line of messages in pieces, not how bytes are read. Why and when a connection ends is the
business of the other half (`connection`), which derives from this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gowsev.connection.outbox import Outbox
from gowsev.connection.stream import Line
from gowsev.errors import ConnClosing, GowsevError, OutboxFull
from gowsev.wire.frames import INTERNAL_ERROR, TRY_AGAIN_LATER

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.connection.events import Event
    from gowsev.connection.gathering import Batch
    from gowsev.connection.stream import Stream
    from gowsev.options import Options
    from gowsev.wire.encoder import Encoder

__all__ = ["Sending"]


class Sending:
    """What a connection is asked to send.

    Args:
        sock: its socket, non-blocking.
        tls: whether that is a `TLSSocket`.
        encoder: makes its frames.
        put: takes its events; never blocks.
    """

    __slots__ = (
        "_control_chunks", "_farewell", "_line", "_options", "_put", "end", "id", "outbox", "refused_writes",
    )  # fmt: skip

    def __init__(
        self, sock: Any, tls: bool, encoder: Encoder, options: Options, put: Callable[[Event], object], batch: Batch
    ) -> None:
        self.id = 0
        self._options = options
        self._put = put
        self.outbox = Outbox(self, encoder, sock, tls, batch, options.outbox_bytes)
        """The way out: `write` sends a message."""
        self._line: Line | None = None
        self._farewell: tuple[int, str] | None = None  # of the close frame that goes behind the line
        self.refused_writes = 0
        self._control_chunks = 0  # of the outbox's frames: those that are no message
        self.end = ""
        """What ended the connection, where that was not an ordinary close; for the log."""

    # -- of the other half ---------------------------------------------------------------------------------------

    def close(self, code: int, reason: str, timeout: float | None = None) -> None:
        """Send a close frame behind what waits, unless one was sent."""
        raise NotImplementedError  # pragma: no cover - the other half has it

    def abort(self, why: str) -> None:
        """Close the socket at once."""
        raise NotImplementedError  # pragma: no cover - the other half has it

    # -- what is known of it -------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether writes are refused: a close frame was sent or received, or the socket is gone."""
        return self.outbox.stopped

    @property
    def messages_sent(self) -> int:
        """The messages that writes have taken; of those in pieces, the ones whose end has been reached."""
        return self.outbox.frames - self._control_chunks

    @property
    def bytes_sent(self) -> int:
        """The bytes that the kernel has taken."""
        return self.outbox.bytes_sent

    @property
    def outbox_bytes(self) -> int:
        """The bytes that wait here, not yet taken by the kernel."""
        return self.outbox.size

    # -- whole messages ------------------------------------------------------------------------------------------

    def wait_sent(self) -> bool:
        """Block the calling greenlet until nothing waits any more; return whether all of it was sent."""
        self.outbox.wait()
        return not self.outbox.discarded

    def refuse(self) -> GowsevError:
        """Do what is to be done where the outbox has refused a message; return why it has."""
        error = self.why_refused()
        if self.closing:
            return error
        self.refused_writes += 1
        if self._options.slow_consumer == "close":
            self.end = str(error)
            self.close(TRY_AGAIN_LATER, "reading too slowly")
        return error

    def why_refused(self) -> GowsevError:
        """Return why nothing is taken now."""
        if self.closing:
            return ConnClosing(self.id)
        return OutboxFull(self.id, self.outbox.size, self._options.outbox_bytes or 0)

    def lost(self, error: OSError) -> None:
        """Close the socket at once, which turned out to be broken."""
        self.abort(f"{type(error).__name__}: {error}")

    # -- messages in pieces --------------------------------------------------------------------------------------

    def stream(self, stream: Stream) -> GowsevError | None:
        """Send a message in pieces as the peer takes it; never blocks. Returns why it was refused, or `None`."""
        if not self.outbox.has_room():
            return self.refuse()
        if self._line is None:
            self._line = Line(self.outbox, self._put, self._stream_failed, self._line_over)
        self._line.add(stream)
        return None

    def _stream_failed(self, error: BaseException) -> None:
        """Close, since a message has begun that will have no end."""
        self.end = self.end or f"the source of a message in pieces raised {type(error).__name__}"
        self._drop_line()
        self.close(INTERNAL_ERROR, "internal error")

    def _line_over(self) -> None:
        """Go on as without a line; the close frame that was to go behind it goes now."""
        self._line = None
        if self._farewell is not None:
            self.close(*self._farewell)

    def _drop_line(self) -> None:
        """End the messages in pieces, whose rest can't be sent any more."""
        line = self._line
        if line is not None:
            self._line = None
            self.end = "; ".join(filter(None, (self.end, line.abandon(ConnClosing(self.id)))))

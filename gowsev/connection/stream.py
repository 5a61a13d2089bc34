"""Messages in pieces: where the pieces come from, and the line of what waits to be sent behind one.

A `Stream` is one long message whose pieces are pulled from the program's iterable or file only as the peer takes what
was sent before. The `Line` of a connection exists from the first of them until nothing waits behind it any more. It
asks the queue of the loop for its turns. The program's code is called in these alone, so that it runs where callbacks
do, one at a time.

    pulling     in a turn: pieces are gathered to fragments, up to `_TURN_BYTES`, or until the peer is behind
    waiting     for a turn, which the outbox's `drained` asks for
    over        the last frame is sent: what is behind follows, up to the next stream, or the line ends
    abandoned   the connection ends: no further piece is pulled, and what waits behind is thrown away

Invariants: frames of other messages never come between the fragments (RFC 6455 section 5.4), and messages leave in the
order of their writes. A source is closed once and its `done` is called once, in an event of the loop, whatever happens;
but for a forked child, which leaves both to the parent.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import gevent

from gowsev.arguments import check_callable
from gowsev.connection.events import CALL
from gowsev.connection.gathering import Held
from gowsev.errors import ConnClosing
from gowsev.wire.encoder import FRAGMENT_BYTES
from gowsev.wire.frames import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.connection.events import Event
    from gowsev.connection.outbox import Outbox
    from gowsev.wire.encoder import Fragments

__all__ = ["Line", "Stream"]

#: One turn ends after this many bytes, or this many pieces: the events of others come in between.
_TURN_BYTES: Final = 1 << 18
_TURN_PIECES: Final = 256

#: The longest header of a frame, with its mask.
_HEADER: Final = 14

_END: Final = object()

#: In a forked child: the streams of the parent. To free a generator would run its `finally` blocks here too.
_left_to_parent: list[object] = []


class Stream:
    """A message in pieces that a program wants to be sent.

    Args:
        opcode: `TEXT`, with pieces of str, or `BINARY`, with pieces of bytes, bytearray or memoryview.
        id: the connection's.
        source: an iterable of pieces, or a file to read.
        done: called with the context, `id` and what has gone wrong, or `None`, when it is over.

    Raises:
        TypeError: `source` is neither, or a single message; or `done` is not callable.
    """

    __slots__ = ("_done", "_iterator", "_piece", "_position", "_read", "_source", "id", "opcode")

    def __init__(self, opcode: int, id: int, source: Any, done: Callable[..., object] | None) -> None:
        check_callable("done", done, optional=True)
        text = opcode == TEXT
        if isinstance(source, str | bytes | bytearray | memoryview):
            raise TypeError(
                f"source must be an iterable of pieces or a file, not {type(source).__name__}; "
                f"{'WriteText' if text else 'Write'} sends a message that is there as a whole"
            )
        self._read: Callable[[int], Any] | None = None
        self._iterator: Any = None
        if callable(getattr(source, "read", None)):
            if isinstance(source, (io.RawIOBase, io.BufferedIOBase) if text else io.TextIOBase):
                raise TypeError(f"source must be a file opened in {'text' if text else 'binary'} mode, not {source!r}")
            self._read = source.read
        elif hasattr(source, "__aiter__"):
            raise TypeError(f"source must be an ordinary iterable, not the async {source!r}: the loop awaits nothing")
        else:
            try:
                self._iterator = iter(source)
            except TypeError:
                raise TypeError(f"source must be an iterable of pieces or a file, not {source!r}") from None
        self.opcode = opcode
        self.id = id
        self._source = source
        self._done = done
        self._piece = b""  # the one that is being cut into fragments
        self._position = 0

    def pull(self, most: int) -> bytes | None:
        """Return at most `most` further bytes, none for an empty piece; `None` at the end. The program's code runs.

        Raises:
            TypeError: a piece has the wrong type.
            BaseException: what the program's code raises.
        """
        start = self._position
        if start == len(self._piece):
            start = self._position = 0
            self._piece = b""  # before the program makes the next one
            piece = next(self._iterator, _END) if self._read is None else self._read(most) or _END
            if piece is _END:
                return None
            self._piece = self._encode(piece)
        self._position = min(start + most, len(self._piece))
        return self._piece[start : self._position]

    def _encode(self, piece: Any) -> bytes:
        if self.opcode == TEXT and isinstance(piece, str):
            return piece.encode()
        if self.opcode != TEXT and isinstance(piece, bytes | bytearray | memoryview):
            return bytes(piece)
        wanted = "str" if self.opcode == TEXT else "bytes, bytearray or memoryview"
        raise TypeError(f"a piece of {self._source!r} must be {wanted}, not {type(piece).__name__}")

    def close(self) -> None:
        """Close the iterator and the iterable, or the file, as far as each can be closed."""
        try:
            self._close(self._iterator)
        finally:
            if self._source is not self._iterator:
                self._close(self._source)

    @staticmethod
    def _close(closable: Any) -> None:
        close = getattr(closable, "close", None)
        if callable(close):
            close()

    def finish(self, context: Any, error: BaseException | None) -> None:
        """Close the source and call `done`; in an event of the loop."""
        try:
            self.close()
        finally:
            if self._done is not None:
                self._done(context, self.id, error)


class Line:
    """The messages in pieces of one connection, and what waits behind them.

    Args:
        outbox: where their frames go.
        put: takes the events in which it has its turns.
        failed: called when a source has raised, which leaves its message without an end.
        over: called when nothing is in the line any more.
    """

    __slots__ = (
        "_error", "_failed", "_fragments", "_gathered", "_held", "_outbox", "_over", "_pulling", "_put",
        "_scheduled", "_stream",
    )  # fmt: skip

    def __init__(
        self,
        outbox: Outbox,
        put: Callable[[Event], object],
        failed: Callable[[BaseException], None],
        over: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._put = put
        self._failed = failed
        self._over = over
        self._held = Held()
        self._stream: Stream | None = None
        self._fragments: Fragments
        self._gathered = bytearray()  # of pieces, until it is a fragment
        self._error: BaseException | None = None
        self._pulling = self._scheduled = False

    def add(self, stream: Stream) -> None:
        """Add a message in pieces behind what is in the line."""
        if self._stream is None:
            self._outbox.hold(self._held)
            self._begin(stream)
        else:
            self._held.add_stream(stream)

    def _begin(self, stream: Stream) -> None:
        self._stream = stream
        self._fragments = self._outbox.encoder.fragments(stream.opcode)
        self._outbox.drained = self._ask
        self._ask()

    def _ask(self) -> None:
        """Ask for a turn, behind what the hub has to do: a source that never waits must keep nobody waiting."""
        if not self._scheduled:
            self._scheduled = True
            gevent.get_hub().loop.run_callback(self._queue_turn)

    def _queue_turn(self) -> None:
        if self._stream is not None:
            self._put((CALL, self._turn, ()))

    def _turn(self, context: Any) -> None:
        """Pull some pieces; an event of the loop."""
        self._scheduled = False
        stream = self._stream
        # A program's source may itself run the loop, and with it another turn.
        if stream is None or self._pulling or self._outbox.congested:
            return
        self._pulling = True
        try:
            ended = self._pull(stream)
        except BaseException as error:
            # Whatever it was, Ctrl-C included: the message cannot be completed.
            if self._error is None:
                self._failed(error)
            stream.finish(context, error)
            raise
        finally:
            self._pulling = False
        if self._error is not None:
            stream.finish(context, self._error)
        elif ended:
            self._go_on()
            stream.finish(context, None)
        else:
            self._outbox.flush()
            if self._stream is not None and not self._outbox.congested:
                self._ask()

    def _pull(self, stream: Stream) -> bool:
        """Make fragments of what the source has, as far as this turn goes; return whether it has ended."""
        outbox, gathered = self._outbox, self._gathered
        full = max(1, min(FRAGMENT_BYTES, outbox.limit - _HEADER))
        # What is held back must not keep the stream from ending: it may always send one fragment.
        room = max(min(_TURN_BYTES, outbox.room), full + _HEADER)
        for _ in range(_TURN_PIECES):
            piece = stream.pull(full - len(gathered))
            if self._error is not None:  # the connection has ended meanwhile
                return False
            if piece is None:
                outbox.append(self._fragments.end(bytes(gathered)))
                gathered.clear()
                return True
            if len(piece) < full:
                gathered += piece
                if len(gathered) < full:
                    continue
                piece = bytes(gathered)
                gathered.clear()
            chunks = self._fragments.add(piece)
            if chunks:
                outbox.append_fragment(chunks)
            room -= sum(map(len, chunks))
            if self._error is not None or room < full + _HEADER:
                break
        return False

    def _go_on(self) -> None:
        """Send what waits behind the message that has ended, up to the next one in pieces."""
        outbox = self._outbox
        outbox.drained = None
        while entry := self._held.take():
            opcode, message = entry
            if not opcode:
                self._begin(message)
                return
            outbox.append_message(opcode, message)
        self._stream = None
        outbox.hold(None)
        self._over()

    def abandon(self, error: BaseException) -> str:
        """End it, since the connection ends: no further piece is pulled, and what waits is thrown away.

        Args:
            error: why, for the program.

        Returns:
            What is lost, for the log.
        """
        self._error = error
        self._outbox.drained = None
        self._outbox.hold(None)
        lost = "a message in pieces was not completed"
        if self._held.count:
            lost += f", and {self._held.count} messages behind it were not sent"
        for stream in self._take_streams():
            self._put((CALL, stream.finish, (error,)))
        return lost

    def disown(self) -> None:
        """In a forked child: leave the sources to the parent, neither closed nor asked for more."""
        self._error = ConnClosing(0)
        self._outbox.hold(None)
        _left_to_parent.extend(self._take_streams())

    def _take_streams(self) -> list[Stream]:
        streams = [] if self._pulling or self._stream is None else [self._stream]
        self._stream = None
        while entry := self._held.take():
            if not entry[0]:
                streams.append(entry[1])
        return streams

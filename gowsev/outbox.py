"""What waits to be sent to one peer: counted in bytes, gathered, offered to the kernel without ever blocking.

Frames are appended and leave together: while `Batch.held`, which the loop sets around a callback, an append only
notes the outbox, and one flush for everything follows; else it is flushed at once. What the kernel does not take is
sent by a *writer*, a greenlet that exists only for as long as its peer is that far behind.

Invariants: bytes leave in the order in which they were appended, each once. `size` is the number of bytes appended
and not yet taken by the kernel. Nothing here blocks but the writer.
"""

from __future__ import annotations

import fcntl
import ssl
import struct
import termios
from typing import TYPE_CHECKING, Any

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WOULD_BLOCK", "Batch", "Outbox"]

#: So many gathered bytes are offered to the kernel before more is gathered.
_EAGER = 1 << 18
#: Up to so many bytes are joined into one buffer; beyond, `sendmsg` saves the copy. TLS is offered no more at once.
_JOIN = 1 << 16
#: POSIX guarantees 16; Linux, the BSDs and macOS take 1,024 buffers in one `sendmsg`.
_MAX_BUFFERS = 1024

_INT = struct.Struct("i")
#: What a non-blocking socket raises, plain or TLS, when it would have to wait.
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Batch:
    """The outboxes that have gathered something since the last flush."""

    __slots__ = ("_gathered", "_scheduled", "held")

    def __init__(self) -> None:
        self.held = False
        """While true, appending does not flush."""
        self._gathered: list[Outbox] = []
        self._scheduled = False

    def add(self, outbox: Outbox) -> None:
        """Note that `outbox` has begun to gather."""
        self._gathered.append(outbox)
        if not self._scheduled:
            # Whatever the loop's greenlet does next, the hub runs this before it waits for anything: a callback
            # that blocks, or a loop that has nothing left to do, holds no message back.
            self._scheduled = True
            gevent.get_hub().loop.run_callback(self._flush_from_hub)

    def flush(self) -> None:
        """Offer to the kernel all that has been gathered: one send for each outbox."""
        gathered = self._gathered
        if gathered:
            self._gathered = []
            for outbox in gathered:
                outbox.flush()

    def _flush_from_hub(self) -> None:
        self._scheduled = False
        self.flush()


class Outbox:
    """The outgoing bytes of one connection.

    Args:
        sock: a non-blocking socket.
        tls: it is a TLS socket, ours or gevent's, which has no `sendmsg`, and is to be offered refused bytes again;
            gevent's `send` returns 0 where others raise `BlockingIOError`.
        lost: called with the error when the socket turns out to be broken.
    """

    __slots__ = (
        "_chunks",
        "_lost",
        "_sock",
        "_tls",
        "_writer",
        "batch",
        "bytes_sent",
        "discarded",
        "drained",
        "late",
        "size",
    )

    def __init__(self, sock: Any, tls: bool, batch: Batch, lost: Callable[[OSError], None]) -> None:
        self._sock = sock
        self._tls = tls
        self._lost = lost
        self.batch = batch
        self.drained: Callable[[], None] | None = None
        """Called each time a flush leaves nothing behind."""
        self._chunks: list[bytes | memoryview] = []
        self._writer: Any = None
        self.size = 0
        self.bytes_sent = 0
        self.discarded = False
        """Whether `close` threw away bytes that had been appended."""
        self.late = b""
        """Sent once nothing else waits; a later value replaces an earlier one."""

    @property
    def congested(self) -> bool:
        """Whether the kernel has refused bytes that still wait."""
        return self._writer is not None

    def append(self, chunk: bytes, payload: bytes = b"") -> None:
        """Add bytes; they leave at the end of the callback that is running, or at once where none is.

        Args:
            chunk: a frame, or the header of a long one.
            payload: what follows it, which is not copied.
        """
        chunks = self._chunks
        first = not chunks
        chunks.append(chunk)
        self.size += len(chunk)
        if payload:
            chunks.append(payload)
            self.size += len(payload)
        if self._writer is None:
            if not self.batch.held or self.size > _EAGER:
                self.flush()
            elif first:
                self.batch.add(self)

    def flush(self) -> None:
        """Offer everything to the kernel, unless a writer is at it."""
        if self._chunks and self._writer is None and self._offer():
            self._writer = gevent.spawn(self._write_rest)

    def progress(self) -> int:
        """Return a number that changes when the peer has taken bytes.

        That is seen sooner than in `bytes_sent`: the kernel calls a socket writable again only when much of its
        buffer, which may be megabytes, is free.
        """
        try:
            (unacknowledged,) = _INT.unpack(fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
        except OSError:  # a kernel, or a kind of socket, that does not tell
            unacknowledged = 0
        return self.bytes_sent - int(unacknowledged)

    def wait(self) -> None:
        """Block the calling greenlet until nothing waits any more: it is sent, or thrown away."""
        while self._writer is not None:
            self._writer.join()

    def close(self) -> None:
        """Forget what waits, and end the writer."""
        self.discarded = self.size > 0
        self._chunks = []
        self.size = 0
        self.late = b""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.kill(block=False)

    def _offer(self) -> bool:
        """Send until nothing is left or the kernel takes no more; return whether something is left."""
        while self._chunks:
            try:
                # Joining a single chunk gives back that chunk.
                sent = self._sock.send(b"".join(self._chunks)) if self.size <= _JOIN else self._send_part()
            except WOULD_BLOCK:
                return True
            except OSError as error:
                self.close()
                self._lost(error)
                return False
            if not sent:
                return True
            self.bytes_sent += sent
            if sent < self.size:
                self.size -= sent
                self._drop(sent)
                continue
            self.size = 0
            self._chunks.clear()
            if self.late:
                self._chunks.append(self.late)
                self.size = len(self.late)
                self.late = b""
        if self.drained is not None:
            self.drained()
        return False

    def _send_part(self) -> int:
        """Send some of what is more than one buffer's worth."""
        chunks = self._chunks
        if not self._tls:
            return int(self._sock.send(chunks[0]) if len(chunks) == 1 else self._sock.sendmsg(chunks[:_MAX_BUFFERS]))
        # TLS reports nothing of a long buffer until all of it has left. After a refusal it must be offered the same
        # bytes again, and no fewer: what has been appended since comes behind them, up to the same length.
        if len(chunks[0]) >= _JOIN:
            return int(self._sock.send(memoryview(chunks[0])[:_JOIN]))
        size = count = 0
        while size < _JOIN:
            size += len(chunks[count])
            count += 1
        return int(self._sock.send(b"".join(chunks[:count])[:_JOIN]))

    def _drop(self, sent: int) -> None:
        """Take the first `sent` bytes off the chunks."""
        chunks = self._chunks
        done = 0
        while sent and len(chunks[done]) <= sent:
            sent -= len(chunks[done])
            done += 1
        del chunks[:done]
        if sent:
            # A view, so that what is left of a long message is not copied for each short send.
            chunks[0] = memoryview(chunks[0])[sent:]

    def _write_rest(self) -> None:
        """The writer: wait until the socket takes more, until nothing is left."""
        watcher = gevent.get_hub().loop.io(self._sock.fileno(), 2)
        try:
            while True:
                gevent.get_hub().wait(watcher)
                if self._writer is not gevent.getcurrent() or not self._offer():
                    break
        finally:
            watcher.close()
            if self._writer is gevent.getcurrent():
                self._writer = None

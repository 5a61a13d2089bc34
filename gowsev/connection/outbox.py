"""What waits to be sent to one peer: counted in bytes, gathered, offered to the kernel without ever blocking.

Frames are gathered and leave together: while `Batch.held`, which the loop sets while it works, an append only notes the
outbox, and one flush for everything follows; else it is flushed at once. What the kernel does not take waits, and is
sent by a *writer*, a greenlet that exists only for as long as its peer is that far behind.

An outbox may share what it gathers with others (see `groups`), until it is given anything of its own.

Invariants: bytes leave in the order in which they were appended, each once. What is in `gathered` leaves with the next
flush of the batch, and nothing is in it while a writer is at work. Nothing here blocks but the writer.
"""

from __future__ import annotations

import fcntl
import ssl
import struct
import sys
import termios
from collections import deque
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.wire.encoder import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.connection.groups import Audience

__all__ = ["MOST_GATHERED", "MOST_JOINED", "WOULD_BLOCK", "Batch", "Outbox", "interrupted"]

#: So many short frames, or bytes where there are long ones, are offered to the kernel before more is gathered.
MOST_GATHERED = 64
_EAGER = 1 << 18
#: Up to so many bytes are joined into one buffer; beyond, `sendmsg` saves the copy. TLS is offered no more at once.
MOST_JOINED = 1 << 16
#: POSIX guarantees 16; Linux, the BSDs and macOS take 1,024 buffers in one `sendmsg`.
_MAX_BUFFERS = 1024

_INT = struct.Struct("i")
#: What a non-blocking socket raises, plain or TLS, when it would have to wait.
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def interrupted(error: BaseException) -> OSError:
    """Return the error of a connection whose `send` was interrupted, by Ctrl-C as a rule.

    Whether the bytes have left is not known, and nothing may come behind half a frame.
    """
    return OSError(f"interrupted by {type(error).__name__} while sending")


class Batch:
    """The outboxes, and audiences, that have gathered something since the last flush."""

    __slots__ = ("_gathered", "_scheduled", "held")

    def __init__(self) -> None:
        self.held = False
        """While true, appending does not flush."""
        self._gathered: deque[Outbox | Audience] = deque()
        self._scheduled = False

    def add(self, outbox: Outbox | Audience) -> None:
        """Note that `outbox`, or an audience, has begun to gather."""
        self._gathered.append(outbox)
        # Whatever the loop's greenlet does next, the hub runs this before it waits for anything: a callback that
        # blocks, or a loop that has nothing left to do, holds no message back.
        if not self._scheduled:
            self._schedule()

    def flush(self) -> None:
        """Offer to the kernel all that has been gathered: one send for each outbox."""
        gathered = self._gathered
        while gathered:
            # One by one, and taken out afterwards: what interrupts this (Ctrl-C, no memory) leaves the rest to the next
            # flush, and whatever this outbox still holds, behind the others.
            try:
                gathered[0].flush()
            except BaseException:
                gathered.rotate(-1)
                raise
            gathered.popleft()

    def _flush_from_hub(self) -> None:
        self._scheduled = False
        try:
            self.flush()
        except BaseException:
            self._schedule()
            raise

    def _schedule(self) -> None:
        self._scheduled = True
        gevent.get_hub().loop.run_callback(self._flush_from_hub)


class Outbox:
    """The outgoing bytes of one connection.

    Args:
        sock: a non-blocking socket.
        tls: it is a TLS socket, ours or gevent's, which has no `sendmsg`, and is to be offered refused bytes again;
            gevent's `send` returns 0 where others raise `BlockingIOError`.
        lost: called with the error when the socket turns out to be broken.
        limit: the bytes up to which it is not `full`; `None` for any number.
    """

    __slots__ = (
        "_bytes_sent",
        "_frames",
        "_known_as",
        "_long",
        "_lost",
        "_sock",
        "_tls",
        "_waiting",
        "_waiting_bytes",
        "audience",
        "batch",
        "discarded",
        "drained",
        "gathered",
        "late",
        "limit",
        "most",
        "writer",
    )

    def __init__(
        self, sock: Any, tls: bool, batch: Batch, lost: Callable[[OSError], None], limit: int | None = None
    ) -> None:
        self._sock = sock
        self._tls = tls
        self._lost = lost
        self.limit = sys.maxsize if limit is None else limit
        self.batch = batch
        self.audience: Audience | None = None
        """Where it gathers together with others: `gathered` is theirs too then, and `most` 0."""
        self._known_as = 0  # to the audience: the connection's id
        self.drained: Callable[[], None] | None = None
        """Called each time a flush leaves nothing behind."""
        self.gathered: list[bytes] = []
        """What leaves with the next flush. While it holds something, and less than `most`, a further short frame may
        simply be put there; while it holds nothing, if the batch is held, which is to be told of it."""
        self._long = 0  # the bytes of long frames in `gathered`
        self._waiting: list[bytes | memoryview] = []  # what the kernel did not take, and what came after it
        self._waiting_bytes = 0
        self._frames = 0  # that have left `gathered`, or never were there
        self.writer: Any
        """The greenlet at work while the peer is behind."""
        self.most: int
        self._give_to(None)
        self._bytes_sent = 0
        self.discarded = False
        """Whether `close` threw away bytes that had been appended."""
        self.late = b""
        """Sent once nothing else waits; a later value replaces an earlier one."""

    @property
    def size(self) -> int:
        """The bytes appended and not yet taken by the kernel."""
        return self._waiting_bytes + sum(map(len, self.gathered))

    @property
    def frames(self) -> int:
        """The frames appended since the beginning."""
        shared = self.audience.frames_sent if self.audience is not None else 0
        return self._frames + shared + len(self.gathered)

    @property
    def bytes_sent(self) -> int:
        """The bytes that the kernel has taken since the beginning."""
        return self._bytes_sent + (self.audience.bytes_sent if self.audience is not None else 0)

    @property
    def congested(self) -> bool:
        """Whether the kernel has refused bytes that still wait."""
        return self.writer is not None

    @property
    def full(self) -> bool:
        """Whether more than `limit` waits for the peer, though all was offered to the kernel that it may take."""
        if self.size > self.limit:
            self.flush()
        return self.size > self.limit

    def append(self, frame: bytes) -> None:
        """Add a short frame; it leaves at the end of the callback that is running, or at once where none is."""
        if self.audience is not None:
            self.leave()
        if self.writer is not None:
            self._waiting.append(frame)
            self._waiting_bytes += len(frame)
            self._frames += 1
            return
        gathered = self.gathered
        gathered.append(frame)
        count = len(gathered)
        if not self.batch.held or count >= MOST_GATHERED:
            self.flush()
        elif count == 1:
            self.batch.add(self)

    def append_long(self, chunks: tuple[bytes, ...]) -> None:
        """Add a frame of any length, in chunks that are not copied."""
        size = len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))
        if self.audience is not None:
            self.leave()
        if self.writer is not None:
            self._waiting += chunks
            self._waiting_bytes += size
            self._frames += 1
            return
        first = not self.gathered
        self.gathered += chunks
        self._long += size
        self._frames -= len(chunks) - 1
        if not self.batch.held or self._long > _EAGER:
            self.flush()
        elif first:
            self.batch.add(self)

    def flush(self) -> None:
        """Offer what has been gathered to the kernel."""
        if self.audience is not None:
            self.leave()
        gathered = self.gathered
        if not gathered:
            return
        self._frames += len(gathered)
        if self._long:
            self._long = 0
            self._waiting_bytes = self.size
            self._waiting = [*gathered]
            gathered.clear()
            self._offer_or_wait()
            return
        data = gathered[0] if len(gathered) == 1 else b"".join(gathered)
        gathered.clear()
        sent = 0
        if len(data) <= MOST_JOINED:  # the way of almost every message
            try:
                sent = self._sock.send(data)
            except WOULD_BLOCK:
                pass  # `_offer` will find that too, which costs nothing where it is rare
            except OSError as error:
                self._break(error)
                return
            except BaseException as error:
                self._break(interrupted(error))
                raise
            self._bytes_sent += sent
            if sent == len(data):
                if self.drained is not None:
                    self.drained()
                return
        self._keep(data, sent)

    def _keep(self, data: bytes, sent: int) -> None:
        """Let wait what the kernel has not taken of `data`, of which so many bytes were sent."""
        self._waiting_bytes = len(data) - sent
        self._waiting = [memoryview(data)[sent:]]
        self._offer_or_wait()

    def _offer_or_wait(self) -> None:
        if self._offer():
            self._give_to(gevent.spawn(self._write_rest))

    def _give_to(self, writer: Any) -> None:
        self.writer = writer
        self.most = 0 if writer else min(MOST_GATHERED, self.limit // LARGE)

    # -- in an audience ------------------------------------------------------------------------------------------

    def join(self, audience: Audience, id: int) -> Callable[[bytes], int] | None:
        """Gather with others from now on.

        Args:
            audience: theirs, which gathers nothing yet.
            id: what it is told when this outbox leaves.

        Returns:
            The function that sends; `None` if something of its own gathers or waits here, if it is in an audience, or
            if its limit is less than what an audience may gather.
        """
        if not self.most or self.gathered or self.limit < MOST_JOINED:
            return None
        self.audience = audience
        self._known_as = id
        self.gathered = audience.gathered
        self.most = 0
        self._frames -= audience.frames_sent
        self._bytes_sent -= audience.bytes_sent
        send: Callable[[bytes], int] = self._sock.send
        return send

    def leave(self) -> None:
        """Gather alone again, beginning with what gathers for the audience."""
        audience = self.audience
        if audience is None:
            return
        self.audience = None
        self.gathered = [*audience.gathered]
        self._give_to(None)
        self._frames += audience.frames_sent
        self._bytes_sent += audience.bytes_sent
        if self.gathered:
            self.batch.add(self)
        audience.forget(self, self._known_as)

    def fall_behind(self, data: bytes, sent: int | OSError) -> None:
        """Leave the audience, which could not send its `data` here.

        Args:
            data: what it has counted as sent.
            sent: so many bytes of that were, or why they were not.
        """
        self.leave()
        self._bytes_sent -= len(data)
        if isinstance(sent, OSError):
            self._break(sent)
            return
        self._bytes_sent += sent
        self._keep(data, sent)

    # -- what the kernel did not take ----------------------------------------------------------------------------

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
        while self.writer is not None:
            self.writer.join()

    def close(self) -> None:
        """Forget what waits, and end the writer."""
        self.leave()
        self.discarded = self.size > 0
        self._frames += len(self.gathered)
        self.gathered.clear()
        self._waiting = []
        self._waiting_bytes = 0
        self.late = b""
        writer = self.writer
        self._give_to(None)
        if writer is not None:
            writer.kill(block=False)

    def _break(self, error: OSError) -> None:
        self.close()
        self._lost(error)

    def _offer(self) -> bool:
        """Send until nothing waits or the kernel takes no more; return whether something still waits."""
        while self._waiting:
            try:
                short = self._waiting_bytes <= MOST_JOINED
                sent = self._sock.send(b"".join(self._waiting)) if short else self._send_part()
            except WOULD_BLOCK:
                return True
            except OSError as error:
                self._break(error)
                return False
            except BaseException as error:
                self._break(interrupted(error))
                raise
            if not sent:
                return True
            self._bytes_sent += sent
            self._waiting_bytes -= sent
            if self._waiting_bytes:
                self._drop(sent)
                continue
            self._waiting.clear()
            if self.late:
                self._waiting.append(self.late)
                self._waiting_bytes = len(self.late)
                self.late = b""
        if self.drained is not None:
            self.drained()
        return False

    def _send_part(self) -> int:
        """Send some of what is more than one buffer's worth."""
        chunks = self._waiting
        if not self._tls:
            return int(self._sock.send(chunks[0]) if len(chunks) == 1 else self._sock.sendmsg(chunks[:_MAX_BUFFERS]))
        # TLS reports nothing of a long buffer until all of it has left. After a refusal it must be offered the same
        # bytes again, and no fewer: what has been appended since comes behind them, up to the same length.
        if len(chunks[0]) >= MOST_JOINED:
            return int(self._sock.send(memoryview(chunks[0])[:MOST_JOINED]))
        size = count = 0
        while size < MOST_JOINED:
            size += len(chunks[count])
            count += 1
        return int(self._sock.send(b"".join(chunks[:count])[:MOST_JOINED]))

    def _drop(self, sent: int) -> None:
        """Take the first `sent` bytes off the chunks."""
        chunks = self._waiting
        done = 0
        while len(chunks[done]) <= sent:
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
                if self.writer is not gevent.getcurrent() or not self._offer():
                    break
        finally:
            watcher.close()
            if self.writer is gevent.getcurrent():
                self._give_to(None)

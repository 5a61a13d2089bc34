"""What waits to be sent to one peer: counted in bytes, gathered, offered to the kernel without ever blocking.

Frames are gathered and leave together: while `Batch.held`, which the loop sets while it works, an append only notes the
outbox, and one flush for everything follows; else it is flushed at once. What the kernel does not take waits, and is
sent by a *writer*, a greenlet that exists only for as long as its peer is that far behind.

Messages are given to `write`, which refuses them where too much waits, or once `stop_writes` was called; control frames
to `append`. An outbox may share what it gathers with others (`Shared`), until it is given anything of its own.

    gathering   `_gathered` holds what leaves with the next flush, and nothing waits
    sharing     `_gathered` is that of the others; the first frame of its own ends this
    behind      `writer` is at work; what is appended waits behind the rest, and `_gathered` is empty

Beside each but *sharing*, messages may be `held`: one in pieces is on its way, and others must not come between.

Invariants: bytes leave in the order in which they were appended, each once. Nothing here blocks but the writer.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.connection.gathering import MOST_GATHERED, MOST_JOINED, Batch, Held, Owner, Shared
from gowsev.connection.offering import WOULD_BLOCK, drop, interrupted, send_part
from gowsev.connection.sockets import unacknowledged
from gowsev.wire.encoder import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.errors import GowsevError
    from gowsev.wire.encoder import Encoder

__all__ = ["Outbox"]

#: Flush after this many bytes of long frames.
_EAGER = 1 << 18


class Outbox:
    """The outgoing messages and bytes of one connection.

    Args:
        owner: told of a broken socket, and of messages that are refused.
        encoder: what makes frames of messages.
        sock: a non-blocking socket.
        tls: it is a TLS socket, ours or gevent's, which has no `sendmsg`, and is to be offered refused bytes again;
            gevent's `send` returns 0 where others raise `BlockingIOError`.
        limit: a message is refused while more bytes than this wait; `None` for any number.
    """

    __slots__ = (
        "_batch", "_bytes_sent", "_frames", "_gathered", "_long", "_owner", "_room", "_shared", "_sock", "_tls",
        "_waiting", "_waiting_bytes", "_writer", "discarded", "drained", "encoder", "held", "late", "limit", "stopped",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, encoder: Encoder, sock: Any, tls: bool, batch: Batch, limit: int | None = None
    ) -> None:
        self._owner = owner
        self.encoder = encoder
        self._sock = sock
        self._tls = tls
        self.limit = sys.maxsize if limit is None else limit
        self._batch = batch
        self._shared: Shared | None = None
        self._gathered: list[bytes] = []
        self._long = 0  # the bytes of long frames in `_gathered`
        self._waiting: list[bytes | memoryview] = []  # what the kernel did not take, and what came after it
        self._waiting_bytes = 0
        self._frames = 0  # that have left `_gathered`, or never were there
        self.stopped = False
        """Whether every message is refused."""
        self.held: Held | None = None
        """Where messages wait that must not come between the fragments of another."""
        self._writer: Any
        self._room: int  # short messages that `_gathered` may hold without a further look at anything
        self._give_to(None)
        self._bytes_sent = 0
        self.drained: Callable[[], None] | None = None
        """Called each time a flush leaves nothing behind."""
        self.discarded = False
        """Whether `close` threw away bytes that had been appended."""
        self.late = b""
        """Sent once nothing else waits; a later value replaces an earlier one."""

    @property
    def size(self) -> int:
        """The bytes appended and not yet taken by the kernel."""
        return self._waiting_bytes + sum(map(len, self._gathered)) + (self.held.size if self.held is not None else 0)

    @property
    def room(self) -> int:
        """The bytes that may be added before it is full."""
        return self.limit - self.size

    @property
    def frames(self) -> int:
        """The frames appended since the beginning; of a message in pieces, the last one."""
        shared = self._shared.frames_sent if self._shared is not None else 0
        return self._frames + shared + len(self._gathered) + (self.held.count if self.held is not None else 0)

    @property
    def bytes_sent(self) -> int:
        """The bytes that the kernel has taken since the beginning."""
        return self._bytes_sent + (self._shared.bytes_sent if self._shared is not None else 0)

    @property
    def congested(self) -> bool:
        """Whether the kernel has refused bytes that still wait."""
        return self._writer is not None

    def write(self, opcode: int, payload: bytes) -> GowsevError | None:
        """Send one message, if at most `limit` waits for the peer; never blocks. Returns why it was refused, or `None`.

        The encoder is asked only where it is not: one that compresses remembers what it was given.
        """
        gathered = self._gathered
        if len(gathered) < self._room:  # the way of almost every message
            frame = self.encoder.encode(opcode, payload)
            if frame is not None:
                if gathered:  # asked before, where it takes no `len`: 3 % of a message in a loop of writes (measured)
                    gathered.append(frame)
                else:
                    gathered.append(frame)
                    self._batch.add(self)
                return None
        if not self.has_room():
            return self._owner.refuse()
        if self.held is not None:
            self.held.add(opcode, payload)
        else:
            self.append_message(opcode, payload)
        return None

    def append_message(self, opcode: int, payload: bytes) -> None:
        """Add a message, encoded, however much waits."""
        frame = self.encoder.encode(opcode, payload)
        if frame is not None:
            self.append(frame)
        else:
            self.append_long(self.encoder.encode_large(opcode, payload))

    def append_fragment(self, chunks: tuple[bytes, ...]) -> None:
        """Add a frame that is not the last one of its message, and does not count as one."""
        self._frames -= 1
        self.append_long(chunks)

    def has_room(self) -> bool:
        """Return whether a message would be taken, after a flush if need be."""
        if self.size > self.limit:
            self.flush()
        return self.size <= self.limit and not self.stopped

    def stop_writes(self) -> None:
        """Refuse every message from now on; what was added before is sent."""
        self.stopped = True
        self._room = 0

    def append(self, frame: bytes) -> None:
        """Add a short frame, however much waits; it leaves when the running callback ends, or at once where none is."""
        if self._writer is not None:
            self._wait((frame,), len(frame))
            return
        self.leave()
        gathered = self._gathered
        gathered.append(frame)
        if len(gathered) > self._room:
            self.flush()
        elif len(gathered) == 1:
            self._batch.add(self)

    def append_long(self, chunks: tuple[bytes, ...]) -> None:
        """Add a frame of any length, in chunks that are not copied."""
        size = sum(map(len, chunks))
        if self._writer is not None:
            self._wait(chunks, size)
            return
        self.leave()
        self._gathered += chunks
        self._long += size
        self._frames -= len(chunks) - 1
        if self._long > _EAGER:
            self.flush()
        elif len(self._gathered) == len(chunks):
            self._batch.add(self)

    def _wait(self, chunks: tuple[bytes, ...], size: int) -> None:
        self._waiting += chunks
        self._waiting_bytes += size
        self._frames += 1

    def move(self, batch: Batch) -> None:
        """Gather with another batch from now on."""
        self._batch = batch

    def flush(self) -> None:
        """Offer what has been gathered to the kernel."""
        if self._shared is not None:
            self.leave()
        gathered = self._gathered
        if not gathered:
            return
        self._frames += len(gathered)
        if self._long:
            self._long = 0
            self._waiting_bytes = sum(map(len, gathered))
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
        """Let wait what the kernel has not taken of `data`, of which `sent` bytes have left."""
        self._waiting_bytes = len(data) - sent
        self._waiting = [memoryview(data)[sent:]]
        self._offer_or_wait()

    def _offer_or_wait(self) -> None:
        if self._offer():
            self._give_to(gevent.spawn(self._write_rest))

    def _give_to(self, writer: Any) -> None:
        self._writer = writer
        closed = writer is not None or self.stopped or self.held is not None
        self._room = 0 if closed else min(MOST_GATHERED, self.limit // LARGE)

    def hold(self, held: Held | None) -> None:
        """Hold messages back from now on; with `None`, no longer."""
        self.leave()
        self.held = held
        self._give_to(self._writer)

    # -- sharing -------------------------------------------------------------------------------------------------

    def share(self, shared: Shared, encoder: Encoder) -> Callable[[bytes], int] | None:
        """Gather with others from now on; `shared` holds nothing yet.

        Returns:
            The function that sends; `None` if its frames come from another encoder than theirs, if something of its own
            gathers or waits here, if messages are refused, if it shares already, or if its limit is less than what
            others may gather.
        """
        if self.encoder is not encoder or not self._room or self._gathered or self.limit < MOST_JOINED:
            return None
        self._shared = shared
        self._gathered = shared.frames
        self._room = 0
        self._frames -= shared.frames_sent
        self._bytes_sent -= shared.bytes_sent
        send: Callable[[bytes], int] = self._sock.send
        return send

    def leave(self) -> None:
        """Gather alone again, beginning with what the others gather too."""
        shared = self._shared
        if shared is None:
            return
        self._shared = None
        self._gathered = [*shared.frames]
        self._give_to(None)
        self._frames += shared.frames_sent
        self._bytes_sent += shared.bytes_sent
        if self._gathered:
            self._batch.add(self)
        shared.left(self)

    def fall_behind(self, data: bytes, sent: int | OSError) -> None:
        """Leave the others: not all of their `data` could be sent here.

        Args:
            data: what `Shared` has counted as sent.
            sent: the number of bytes of it that were, or why they were not.
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
        return self.bytes_sent - unacknowledged(self._sock)

    def wait(self) -> None:
        """Block the calling greenlet until nothing waits any more: it is sent, or thrown away."""
        while self._writer is not None:
            self._writer.join()

    def close(self) -> None:
        """Forget what waits, and end the writer."""
        self.leave()
        self.discarded = self.size > 0
        self._frames += len(self._gathered)
        self._gathered.clear()
        self._waiting = []
        self._waiting_bytes = 0
        self.late = b""
        writer = self._writer
        self._give_to(None)
        if writer is not None:
            writer.kill(block=False)

    def _break(self, error: OSError) -> None:
        self.close()
        self._owner.lost(error)

    def _offer(self) -> bool:
        """Send until nothing waits or the kernel takes no more; return whether something still waits."""
        while self._waiting:
            try:
                short = self._waiting_bytes <= MOST_JOINED
                sent = (
                    self._sock.send(b"".join(self._waiting))
                    if short
                    else send_part(self._sock, self._tls, self._waiting)
                )
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
                drop(self._waiting, sent)
                continue
            self._waiting.clear()
            if self.late:
                self._waiting.append(self.late)
                self._waiting_bytes = len(self.late)
                self.late = b""
        if self.drained is not None:
            self.drained()
        return False

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
                self._give_to(None)

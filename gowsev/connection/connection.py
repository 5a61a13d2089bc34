"""One socket after its opening handshake: its reader, its protocol, its outbox, and a close that is bounded in time.

The *reader* is a callback of gevent's hub: a watcher that stays started calls it whenever the socket has something.
It receives once, lets the protocol turn bytes into messages, and puts those into a queue; it never blocks and
calls nothing of the program's. It needs no greenlet of its own, which saves two switches a message and 7 KB a
connection (measured: echo with one message in flight costs 8.2 us so, 10.2 us with a greenlet for each reader).

    open       messages in and out; `close`, a close frame or a violation lead to
    closing    writes are refused; the reader goes on, until the protocol is done (both close frames are there, or
               the peer broke the rules) and the outbox is drained; then our side of the socket is shut down, and
    lingering  what still comes is read and thrown away until the peer closes, since closing a socket with unread
               input would take back the close frame we just sent
    gone       the socket is closed

The connection's `CLOSED` event is put once, after every message read before. Each state but the first
ends at a deadline, `close_timeout` after it began. A socket that ends or breaks leads straight to *gone*.

Invariant: nothing is logged here. Hub callbacks must not block, and a logging handler may; `end` says what happened,
for the loop to log.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

import gevent

from gowsev.connection.credit import Credit
from gowsev.connection.events import CLOSED
from gowsev.connection.liveness import PING, SILENT, Liveness
from gowsev.connection.offering import WOULD_BLOCK
from gowsev.connection.sending import Sending
from gowsev.connection.sockets import close_socket, half_close, send_at_once
from gowsev.wire.frames import TOO_BIG
from gowsev.wire.protocol import DONE, OPEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.connection.events import Event
    from gowsev.connection.gathering import Batch
    from gowsev.connection.keepalive import Keepalive
    from gowsev.errors import GowsevError
    from gowsev.options import Options
    from gowsev.request import Request
    from gowsev.wire.encoder import Encoder
    from gowsev.wire.protocol import Protocol

__all__ = ["MOST_RECEIVED", "Connection"]

#: Receive at most this many bytes at once. For buffers of 128 KB and more, malloc would ask the system each time.
MOST_RECEIVED: Final = 96 << 10


class Connection(Sending):
    """One connection of a context, or a dialled one by itself.

    Args:
        sock: a connected, non-blocking socket, which now belongs to this object: a plain one, or a `TLSSocket`.
        request: the handshake that led to it.
        subprotocol: the one negotiated, if any.
        put: takes its events; never blocks.
    """

    __slots__ = (
        "_clock", "_closing_deadline", "_keepalive", "_protocol", "_received_count", "_reported", "_shut", "_sock",
        "_watcher", "bytes_received", "credit", "data", "liveness", "request", "subprotocol", "tls",
    )  # fmt: skip

    def __init__(
        self,
        sock: Any,
        *,
        request: Request,
        subprotocol: str | None,
        protocol: Protocol,
        encoder: Encoder,
        options: Options,
        put: Callable[[Event], object],
        batch: Batch,
        keepalive: Keepalive,
    ) -> None:
        tls = request.tls
        super().__init__(sock, tls, encoder, options, put, batch)
        self.data: Any = None
        """The program's own."""
        self.request = request
        self.subprotocol = subprotocol
        self.tls = tls
        self._protocol = protocol
        self._keepalive = keepalive
        self._clock = keepalive.clock
        self.credit = Credit(options.inbox_messages, options.inbox_bytes, self._resume)
        """Who gives a message to the program refunds it here."""
        self._received_count = self.bytes_received = 0
        self.liveness = Liveness(keepalive.clock.now)
        self._sock = sock
        self._reported = self._shut = False
        self._closing_deadline = math.inf
        self._watcher: Any = gevent.get_hub().loop.io(sock.fileno(), 1)  # to read
        send_at_once(sock)

    def start(self, leftover: bytes = b"") -> None:
        """Begin to read. `leftover` is what came behind the handshake and was read with it."""
        self._keepalive.add(self)
        self._watcher.start(self._readable)
        if leftover:
            self._received(leftover)
        self._read_pending()

    def move(self, put: Callable[[Event], object], batch: Batch, keepalive: Keepalive) -> None:
        """Put what will be read into another queue, and let another clock watch over it."""
        self._put = put
        self.outbox.move(batch)
        if self in self._keepalive.connections:
            keepalive.add(self)
            self._keepalive.remove(self)
        self._keepalive = keepalive
        self._clock = keepalive.clock

    def receive_fragments(self) -> None:
        """Put messages that come in several frames into the queue as they come, and not as wholes."""
        self._protocol.fragments = True

    # -- what is known of it -------------------------------------------------------------------------------------

    @property
    def messages_received(self) -> int:
        """The messages that have come; of those in fragments, the ones whose end has."""
        return self._received_count - self._protocol.unfinished

    @property
    def gone(self) -> bool:
        """Whether the socket is closed; what was read before may still wait for the loop."""
        return self._watcher is None

    @property
    def close_code(self) -> int | None:
        """`None` while open; then the code of the peer's close frame: 1005 if it had none, 1006 if none came."""
        return self._protocol.close_code if self.closing else None

    @property
    def close_reason(self) -> str:
        """The reason in the peer's close frame."""
        return self._protocol.close_reason

    # -- sending -------------------------------------------------------------------------------------------------

    def ping(self) -> GowsevError | None:
        """Send a ping at once, behind what waits; never blocks. Returns why it was refused, or `None`."""
        if not self.outbox.has_room():
            return self.why_refused()
        # While we do not read, its pong will wait for us, and the round trip would not be the peer's.
        payload = b"" if self.credit.exhausted else self.liveness.ping(time.monotonic())
        self._control_chunks += 1
        self.outbox.append(self._protocol.ping(payload))
        self.outbox.flush()
        return None

    def close(self, code: int, reason: str, timeout: float | None = None) -> None:
        """Send a close frame behind what waits, unless one was sent; the rest follows within `close_timeout`.

        Args:
            code: one that may be sent.
            reason: for the peer.
            timeout: seconds that bound it in place of `close_timeout`, where shorter.
        """
        if self._watcher is None:
            return
        if self._line is None:
            self._protocol.close(code, reason)
            self._answer()
        elif self._farewell is None:
            self._farewell = code, reason
        self._begin_closing()
        if timeout is not None:
            self._closing_deadline = min(self._closing_deadline, time.monotonic() + timeout)

    def _answer(self) -> None:
        """Send what the protocol has to say by itself."""
        protocol = self._protocol
        output = protocol.output
        if output:
            chunk = bytes(output)
            output.clear()
            if self._watcher is None:
                return
            if protocol.state == OPEN and self.outbox.congested:
                # 5.5.3: only the newest ping must be answered, so that a peer that pings and never reads cannot
                # make us hold more.
                self.outbox.late = protocol.pong
            else:
                self._control_chunks += 1
                self.outbox.append(chunk)

    # -- reading -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """The reader."""
        try:
            data: bytes = self._sock.recv(MOST_RECEIVED)
        except WOULD_BLOCK:
            return
        except OSError as error:
            self.lost(error)
            return
        if not data:
            self.abort("" if self.closing else "ended without a close frame")
            return
        try:
            self._received(data)
        except BaseException as error:
            # No fault of the peer's: no memory, a signal, a mistake here. It goes to the hub, which shows it; but
            # what the socket still holds must not bring it about again and again.
            self.abort(f"{type(error).__name__} in the reader: {error}")
            raise
        if self.tls:
            self._read_pending()

    def _read_pending(self) -> None:
        """Let the reader run again soon if TLS holds bytes that it has decrypted: they don't make a socket readable."""
        if self.tls and self._watcher is not None and self._watcher.active and self._sock.pending():
            gevent.get_hub().loop.run_callback(self._readable_again)

    def _readable_again(self) -> None:
        if self._watcher is not None and self._watcher.active:
            self._readable()

    def _received(self, data: bytes) -> None:
        self.liveness.heard = self._clock.now
        self.bytes_received += len(data)
        protocol = self._protocol
        messages = protocol.receive(data)
        if messages:
            put = self._put
            total = 0
            for opcode, payload in messages:
                put((opcode, self, payload))
                total += len(payload)
            self._received_count += len(messages)
            self.credit.spend(len(messages), total)
        if protocol.settled and not self.credit.exhausted:
            return
        if protocol.output:
            self._answer()
        if protocol.pongs:
            self.liveness.take_pongs(protocol.take_pongs(), time.monotonic(), self._keepalive.round_trips)
        if protocol.state == DONE and not self._reported:
            if protocol.failure is not None:
                self.end = str(protocol.failure)
                if protocol.failure.code == TOO_BIG:
                    self.end += "; see max_message_bytes of gowsev.Options"
            self._drop_line()
            self._begin_closing()
            self._report()
        if self.credit.exhausted or protocol.more:
            if self._watcher is not None:
                self._watcher.stop()
            if self.credit.exhausted:
                self.liveness.forget_pings()
            else:
                # The rest of what has been received, once others have had their turn.
                gevent.get_hub().loop.run_callback(self._resume)

    def _resume(self) -> None:
        """Go on after a pause: with the rest of what has been received, then with what has come since, or the end."""
        if self.credit.exhausted:
            return
        self.liveness.heard = self._clock.now
        if self._protocol.more:
            self._received(b"")
            if self.credit.exhausted or self._protocol.more:
                return
        if self._watcher is None:
            self._report()
            return
        if not self._watcher.active:
            self._watcher.start(self._readable)
        self._read_pending()

    # -- ending --------------------------------------------------------------------------------------------------

    def _begin_closing(self) -> None:
        if not self.closing:
            self.outbox.stop_writes()
            if self._options.close_timeout is not None:
                self._closing_deadline = time.monotonic() + self._options.close_timeout
            self.outbox.late = b""
            self.outbox.flush()  # nothing that is worth waiting for comes behind it
        if self._line is None:
            self.outbox.drained = self._half_close
        if not self.outbox.size:
            self._half_close()

    def _half_close(self) -> None:
        """Say that nothing more will come, once nothing more will."""
        if self._protocol.state != DONE or self._shut or self._watcher is None:
            return
        self._shut = True
        if not half_close(self._sock, self.tls):
            self.abort("")  # the peer was faster: both close frames are there, and it has closed the socket

    def _report(self) -> None:
        """Put the last event of this connection, once all its messages are in the queue."""
        if not self._reported and not self._protocol.more:
            self._reported = True
            self._put((CLOSED, self, None))
            if self.credit.exhausted:
                # From now on what comes is thrown away, so it may come.
                self.credit.exhausted = False
                self._resume()

    def abort(self, why: str) -> None:
        """Close the socket at once; `why` goes into the log where the connection had not ended already."""
        if self._watcher is None:
            return
        self._watcher.stop()
        self._watcher.close()
        self._watcher = None
        self.outbox.stop_writes()
        if not self._reported:
            self.end = self.end or why
        self._drop_line()
        if self._protocol.more and not self.credit.exhausted:
            gevent.get_hub().loop.run_callback(self._resume)  # which reports, when the rest has been taken
        self._report()
        self.outbox.flush()
        self.outbox.close()
        close_socket(self._sock)
        self._keepalive.remove(self)

    def disown(self) -> None:
        """In a forked child: let go of the socket, which is the parent's; no event follows."""
        self._watcher.stop()
        self._watcher.close()
        self._watcher = None
        self.outbox.stop_writes()
        self._reported = True
        self.end = "it belongs to the process that this one was forked from"
        self.credit.exhausted = True  # stops what the hub may still have to call, such as `_resume`
        if self._line is not None:
            self._line.disown()
        self.outbox.close()
        self._sock.close()  # a plain close, which the peer does not see while the parent has the socket

    def check(self, now: float) -> None:
        """Look at the clock: send a ping after too much silence, and end what takes too long."""
        if self.closing:
            if now >= self._closing_deadline:
                self.abort("no close frame came in time")
            return
        if self.credit.exhausted:
            return
        due = self.liveness.due(now, self._options, self.outbox)
        if due == PING:
            self.ping()
        elif due == SILENT:
            # The hub itself may have been busy for so long: what has come meanwhile counts.
            self._readable_again()
            if self.liveness.owes_answer:
                self.abort(f"silent for {now - self.liveness.heard:.1f} s, a ping included")

"""RFC 6455 as a state machine of one connection: bytes in, messages out; bytes to send. No I/O, no clock.

`Protocol.receive` takes bytes however they were cut and returns the messages that they complete. What must be sent
in answer (pongs, the close frame) gathers in `output`; `pongs` has those of the peer. Nothing it is given raises: a
peer that breaks the rules is found in `failure`, with the close frame that says so already in `output`, and from then
on input is discarded.

    state          receive: a close frame       receive: a violation        close()
    OPEN           reply, then DONE             send close, then DONE       send close, then CLOSING
    CLOSING        DONE                         DONE                        nothing
    DONE           input is discarded           input is discarded          nothing

Messages that arrive in CLOSING, after our close frame and before the peer's, are still returned: the peer sent them
in good faith, and RFC 6455 section 1.4 promises that nothing sent before a close frame is lost.

One call of `receive` does a bounded amount of work: a peer can pack 40,000 frames, or many a message that inflates
to a thousand times its size, into one receive buffer. Where it stops early, `more` says so, and a further call goes
on with the bytes that were left.

Where `fragments` is set, a message that comes in several frames is not gathered: what has come of it is returned, with
`FRAGMENT` in its opcode and at last `FINAL`. It may be of any length, and where its frames begin and end means nothing
(RFC 6455 section 5.4: an intermediary may change that).

Invariants: memory held is at most `max_message_bytes` (of a message in fragments, `_FRAGMENT_BYTES` and what one call
brings), one control frame, and the bytes of the last call where `more` is set; the same bytes give the same messages,
output and failure, whether they come whole or one at a time. (Only which failure it is may differ, where one piece of a
compressed text has several, and where fragments are cut.)
"""

from __future__ import annotations

import codecs
import sys
from typing import Final

from gowsev.errors import ProtocolError
from gowsev.wire import frames
from gowsev.wire.deflate import Deflate
from gowsev.wire.frames import CLOSE, CONTINUATION, FIN, MASKED, OPCODE_BITS, PING, PONG, RSV1, TEXT, apply_mask

__all__ = ["CLOSING", "DONE", "OPEN", "Protocol"]

OPEN: Final = 0
CLOSING: Final = 1
DONE: Final = 2

#: Return what has come of a frame once it is as long as this, though its end has not come.
_FRAGMENT_BYTES: Final = 1 << 16
#: Inflate so much of a fragment at a time: it becomes 1 MiB at most, and then one looks whether it is enough.
_INFLATED_AT_ONCE: Final = 1024

#: Pieces of a message shorter than this are gathered in one bytearray, so that a message that arrives byte by byte
#: takes no more memory than one that arrives whole.
_SMALL_PIECE: Final = 4096

#: One call of `receive` stops after this many frames, or once it has returned this many bytes.
_TURN_FRAMES: Final = 256
_TURN_BYTES: Final = 1 << 20

_NONE: Final[list[bytes]] = []
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Protocol:
    """One connection's state.

    Args:
        client: we are the client: our frames are masked and the peer's are not.
        max_message_bytes: a longer message fails the connection with 1009; `None` for any length.
        deflate: the codec, where permessage-deflate was negotiated.
    """

    __slots__ = (
        "_client", "_decoder", "_deflate", "_frame_fin", "_frame_missing", "_in_fragments", "_inflating", "_longest",
        "_longest_short", "_mask", "_max_message_bytes", "_message_opcode", "_message_size", "_pieces", "_rest",
        "_turn_bytes", "answer_pings", "close_code", "close_reason", "failure", "fragments", "more", "output", "pong",
        "pongs", "settled", "state", "unfinished",
    )  # fmt: skip

    def __init__(
        self, *, client: bool = False, max_message_bytes: int | None = 1 << 20, deflate: Deflate | None = None
    ) -> None:
        self._client = client
        self._max_message_bytes = max_message_bytes
        self._deflate = deflate
        # The longest payloads that are taken without a look at each detail: none of a server's, none that is too long.
        self._longest = -1 if client else sys.maxsize if max_message_bytes is None else max_message_bytes
        self._longest_short = min(125, self._longest)
        self.state = OPEN
        self.close_code = frames.ABNORMAL
        """The code of the peer's close frame: 1005 if it had none, 1006 while none has come (section 7.1.5)."""
        self.close_reason = ""
        self.failure: ProtocolError | None = None
        """How the peer broke the rules, if it did."""
        self.output = bytearray()
        """Bytes to send. The sender clears it."""
        self.more = False
        """Whether the last `receive` left bytes behind that may hold further messages: call it again."""
        self.settled = True
        """Whether the last `receive` left nothing to do, and nothing begun: no output, no pongs, no `more`, no end."""
        self.pong = b""
        """The newest pong in `output`: the only one that must be sent (section 5.5.3)."""
        self.answer_pings = True
        """Whether to do as section 5.5.2 says; a peer in a test may not."""
        self.pongs = _NONE
        """The payloads of the pongs that the last `receive` has found, in their order, whoever asked for them."""
        self.fragments = False
        """Whether messages that begin from now on in several frames are returned as they come."""
        self.unfinished = 0
        """How many fragments were returned that were not the last of their messages."""

        self._rest = b""  # bytes that wait: the beginning of a header or control frame, or what `more` is about
        self._turn_bytes = 0
        self._frame_missing = 0  # payload bytes still to come of the data frame that has begun
        self._frame_fin = False
        self._mask = b""  # that frame's mask, turned to the next byte to come
        self._message_opcode = 0  # of the message that has begun, 0 if none has
        self._message_size = 0
        self._pieces: list[bytes | bytearray] = []
        self._inflating = self._in_fragments = False
        self._decoder: codecs.IncrementalDecoder | None = None

    # -- sending -------------------------------------------------------------------------------------------------

    def close(self, code: int = frames.NORMAL, reason: str = "") -> None:
        """Put a close frame into `output`, unless one was sent already (section 5.5.1).

        Raises:
            ValueError: `code` may not be sent.
        """
        payload = frames.encode_close_payload(code, reason)
        if self.state == OPEN:
            self.output += self._control(CLOSE, payload)
            self.state = CLOSING

    def ping(self, payload: bytes = b"") -> bytes:
        """Return a ping (section 5.5.2), to be sent at once; nothing where no frame may be sent any more."""
        return self._control(PING, payload) if self.state == OPEN else b""

    def take_pongs(self) -> list[bytes]:
        """Return `pongs`, and hold them no longer."""
        pongs, self.pongs = self.pongs, _NONE
        return pongs

    def _control(self, opcode: int, payload: bytes) -> bytes:
        return frames.encode_frame(FIN | opcode, payload, masked=self._client)

    # -- receiving -----------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take some bytes, and return the messages that they complete.

        Returns:
            (opcode, payload) for each, `opcode` being `TEXT` or `BINARY`; the payload of a text is valid UTF-8. Of a
            message that is returned in fragments, each of these.
        """
        size = len(data) - 6
        if self.settled and 0 <= size <= self._longest_short:
            # The way of almost every receive: one whole, short, unfragmented message to a server, and nothing else. The
            # loop in `_receive` would take it too, for twice the work (measured: 0.27 us for 0.49 us).
            first = data[0]
            if data[1] == MASKED | size and (first == 0x82 or first == 0x81):
                payload = apply_mask(data[6:], data[2:6])
                if first == 0x82 or payload.isascii():
                    return [(first & OPCODE_BITS, payload)]
        messages = self._receive(data)
        self.settled = not (
            self._rest or self._frame_missing or self._message_opcode or self.output or self.pongs or self.state == DONE
        )
        return messages

    def _receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Do the work of `receive`, whatever has come."""
        messages: list[tuple[int, bytes]] = []
        self.more = False
        self.pongs = _NONE
        if self.state == DONE:
            return messages
        if self._rest:
            data = self._rest + data
            self._rest = b""
        end = len(data)
        position = self._turn_bytes = 0
        longest = self._longest_short
        try:
            if self._frame_missing:
                position = self._take_payload(data, 0, end, messages)
                if self._frame_missing and position < end:  # enough of a compressed fragment
                    self._rest = data[position:]
                    self.more = True
                    return messages
            for _ in range(_TURN_FRAMES):
                start = position + 6
                if start <= end and not self._message_opcode:
                    # The way of almost every frame: a whole, short, unfragmented message to a server.
                    first, size = data[position], data[position + 1] - MASKED
                    if (first == 0x82 or first == 0x81) and 0 <= size <= longest and start + size <= end:
                        payload: bytes = apply_mask(data[start : start + size], data[position + 2 : start])
                        position = start + size
                        if first == 0x81 and not payload.isascii():
                            frames.check_text(payload)
                        messages.append((first & OPCODE_BITS, payload))
                        continue
                if position >= end:
                    return messages
                position = self._take_message(data, position, end, messages) or self._take_frame(
                    data, position, end, messages
                )
                if self.state == DONE:
                    return messages
                if self._turn_bytes > _TURN_BYTES:
                    break
        except ProtocolError as error:
            self._fail(error)
            return messages
        if position < end:
            self._rest = data[position:]
            self.more = True
        return messages

    def _take_message(self, data: bytes, position: int, end: int, messages: list[tuple[int, bytes]]) -> int:
        """Take a whole, unfragmented message of more than 125 bytes from a client; return where to go on, 0 for none.

        `_take_frame` could do it too, for three times the work (measured: 0.8 us for 2.4 us).
        """
        first, length = data[position], data[position + 1] if end - position >= 14 else 0
        start = position + (8 if length == 0xFE else 14)
        size = int.from_bytes(data[position + 2 : start - 4], "big")
        if (
            (first != 0x82 and first != 0x81)
            or length < 0xFE
            or self._message_opcode
            or not (126 if length == 0xFE else 65536) <= size <= self._longest
            or start + size > end
        ):
            return 0
        payload = apply_mask(memoryview(data)[start : start + size], data[start - 4 : start])
        if first == 0x81 and not payload.isascii():
            frames.check_text(payload)
        messages.append((first & OPCODE_BITS, payload))
        self._turn_bytes += size
        return start + size

    def _take_frame(self, data: bytes, position: int, end: int, messages: list[tuple[int, bytes]]) -> int:
        """Take the frame that begins at `position`, or what there is of it; return where to go on."""
        header = frames.parse_header(data, position, end)
        if header is None:
            self._rest = data[position:]
            return end
        frames.check_header(
            header,
            from_client=not self._client,
            in_message=bool(self._message_opcode),
            compression=self._deflate is not None,
        )
        start = position + header.size
        opcode = header.first & OPCODE_BITS
        if opcode >= CLOSE:
            stop = start + header.length
            if stop > end:
                self._rest = data[position:]
                return end
            payload = data[start:stop]
            self._take_control(opcode, apply_mask(payload, header.mask) if header.mask else payload)
            return stop
        if opcode != CONTINUATION:
            self._message_opcode = opcode
            self._inflating = bool(header.first & RSV1)
            self._in_fragments = self.fragments and not header.first & FIN
            if opcode == TEXT:
                self._decoder = _utf8_decoder()
        if not self._inflating and not self._in_fragments:  # what is inflated is watched meanwhile
            self._check_size(self._message_size + header.length)
        self._frame_missing = header.length
        self._frame_fin = bool(header.first & FIN)
        self._mask = header.mask
        return self._take_payload(data, start, end, messages)

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            # 5.5.2: "Upon receipt of a Ping frame, an endpoint MUST send a Pong frame in response, unless it
            # already received a Close frame." Once we have sent ours, the peer has its answer: we send no more.
            if self.state == OPEN and self.answer_pings:
                self.pong = self._control(PONG, payload)
                self.output += self.pong
        elif opcode == PONG:
            if self.pongs:
                self.pongs.append(payload)
            else:
                self.pongs = [payload]
        else:
            self.close_code, self.close_reason = frames.parse_close_payload(payload)
            if self.state == OPEN:
                # 5.5.1: "When sending a Close frame in response, the endpoint typically echos the status code"
                self.output += self._control(CLOSE, payload[:2])
            self.state = DONE

    def _take_payload(self, data: bytes, start: int, end: int, messages: list[tuple[int, bytes]]) -> int:
        """Take what `data[start:end]` holds of the data frame that has begun; return where to go on."""
        if self._in_fragments:
            return self._take_fragment(data, start, end, messages)
        stop = min(start + self._frame_missing, end)
        if stop > start:
            self._take_piece(data, start, stop, messages)
        if not self._frame_missing and self._frame_fin:
            messages.append(self._finish_message())
        return stop

    def _take_fragment(self, data: bytes, start: int, end: int, messages: list[tuple[int, bytes]]) -> int:
        """Do the same for a message that is returned as it comes; stop earlier where enough has been inflated."""
        stop = min(start + self._frame_missing, end)
        step = _INFLATED_AT_ONCE if self._inflating else stop - start
        while start < stop and self._turn_bytes <= _TURN_BYTES:
            self._take_piece(data, start, min(start + step, stop), messages)
            start = min(start + step, stop)
        if not self._frame_missing:
            if self._frame_fin:
                opcode, payload = self._finish_message()
                messages.append((opcode | frames.FRAGMENT | frames.FINAL, payload))
            else:
                self._return_fragment(messages)
        return start

    def _take_piece(self, data: bytes, start: int, stop: int, messages: list[tuple[int, bytes]]) -> None:
        """Take `data[start:stop]`, which belongs to the data frame that has begun."""
        size = stop - start
        self._frame_missing -= size
        piece = apply_mask(memoryview(data)[start:stop], self._mask) if self._mask else data[start:stop]
        turn = size & 3
        self._mask = self._mask[turn:] + self._mask[:turn]
        for part in self._deflate.inflate(piece, self._room()) if self._deflate and self._inflating else (piece,):
            self._keep(part)
            if self._in_fragments and self._message_size >= _FRAGMENT_BYTES:
                self._return_fragment(messages)

    def _return_fragment(self, messages: list[tuple[int, bytes]]) -> None:
        """Return what has come of a message, a text in whole characters."""
        payload = b"".join(self._pieces)
        # The beginning of a character whose end is still to come.
        begun = b"" if self._decoder is None else self._decoder.getstate()[0]
        self._pieces = [begun] if begun else []
        self._message_size = len(begun)
        if len(payload) > len(begun):
            messages.append((self._message_opcode | frames.FRAGMENT, payload[: len(payload) - len(begun)]))
            self.unfinished += 1
            self._turn_bytes += len(payload)

    def _keep(self, piece: bytes) -> None:
        """Add a piece to the message that has begun, its text checked as early as its bytes allow."""
        self._message_size += len(piece)
        if self._decoder is not None:
            try:
                self._decoder.decode(piece)
            except UnicodeDecodeError:
                raise frames.invalid_text() from None
        pieces = self._pieces
        if not pieces or len(piece) >= _SMALL_PIECE:
            pieces.append(piece)
        elif isinstance(pieces[-1], bytearray):
            pieces[-1] += piece
        else:
            pieces.append(bytearray(piece))

    def _finish_message(self) -> tuple[int, bytes]:
        if self._deflate and self._inflating:
            self._keep(self._deflate.finish(self._room()))
        if self._decoder is not None:
            try:
                self._decoder.decode(b"", True)
            except UnicodeDecodeError:
                raise frames.invalid_text() from None
            self._decoder = None
        pieces = self._pieces
        payload = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        message = self._message_opcode, payload
        self._turn_bytes += len(payload)
        self._pieces = []
        self._message_opcode = self._message_size = 0
        return message

    def _check_size(self, size: int) -> None:
        if self._max_message_bytes is not None and size > self._max_message_bytes:
            raise ProtocolError(frames.TOO_BIG, f"message longer than {self._max_message_bytes} bytes")

    def _room(self) -> int | None:
        """How many bytes the message that has begun may still grow by."""
        if self._max_message_bytes is None or self._in_fragments:
            return None
        return self._max_message_bytes - self._message_size

    def _fail(self, error: ProtocolError) -> None:
        """Section 7.1.7, _Fail the WebSocket Connection_: say why, take nothing more, hold nothing more."""
        self.failure = error
        if self.state == OPEN:
            self.output += self._control(CLOSE, frames.encode_close_payload(error.code, error.reason))
        self.state = DONE
        self._pieces = []
        self._decoder = None
        self._deflate = None

"""From messages to frames: an encoder serves all connections whose frames are alike. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gowsev.wire import frames
from gowsev.wire.frames import BINARY, CONTINUATION, FIN, RSV1, TEXT

if TYPE_CHECKING:
    from typing import Any

    from gowsev.wire.deflate import Deflate

__all__ = ["FRAGMENT_BYTES", "LARGE", "Encoder", "Fragments", "MaskingEncoder"]

#: The headers of whole messages of up to 125 bytes, by opcode and length.
_SHORT_HEADERS: Final = {
    opcode: [frames.encode_header(FIN | opcode, size) for size in range(126)] for opcode in (TEXT, BINARY)
}

#: Payloads from this length on are sent as they are, behind a frame header of their own, rather than copied into one
#: frame with it.
LARGE: Final = 16384

#: The fragments of a message in pieces are as long as this, in bytes before compression, but for the last. Peers count
#: them: `websockets` refuses a message of more than 4,096.
FRAGMENT_BYTES: Final = 1 << 16


class Encoder:
    """Encodes messages into frames for the peers of a server.

    It keeps the last frame and what it was made of: for the same `bytes` object it returns the same frame, so that a
    message published to many is encoded once. One encoder therefore serves all the connections whose frames are alike.
    Where it compresses, equal bytes will do: to compare them costs next to nothing beside compressing them again.
    """

    __slots__ = ("_compressed", "_deflate", "_frame", "_opcode", "_payload")

    def __init__(self, deflate: Deflate | None = None) -> None:
        self._deflate = deflate
        # What `encode` has made without compressing, and of what: short ones only, so that to find it there is enough.
        self._opcode = 0
        self._payload = b""
        self._frame = b""
        self._compressed = (0, b"", b"")  # the opcode, payload and frame that were compressed last

    def encode(self, opcode: int, payload: bytes) -> bytes | None:
        """Return the frame of a message of less than `LARGE` bytes; `None` for a longer one, which is not looked at."""
        if payload is self._payload and opcode == self._opcode:
            return self._frame
        size = len(payload)
        if size >= LARGE:
            return None
        if self._deflate is not None:
            return self._compress(self._deflate, opcode, payload)
        frame = (_SHORT_HEADERS[opcode][size] if size < 126 else frames.encode_header(FIN | opcode, size)) + payload
        self._opcode, self._payload, self._frame = opcode, payload, frame
        return frame

    def encode_large(self, opcode: int, payload: bytes) -> tuple[bytes, ...]:
        """Return the frame of a long message as the chunks to send in turn; `payload` is not copied."""
        if self._deflate is not None:
            return (self._compress(self._deflate, opcode, payload),)
        return frames.encode_header(FIN | opcode, len(payload)), payload

    def _compress(self, deflate: Deflate, opcode: int, payload: bytes) -> bytes:
        if deflate.takeover:
            return _compressed(deflate, opcode, payload, masked=False)
        known_opcode, known, frame = self._compressed
        if payload != known or opcode != known_opcode:
            frame = _compressed(deflate, opcode, payload, masked=False)
            self._compressed = (opcode, payload, frame)
        return frame

    def fragments(self, opcode: int) -> Fragments:
        """Begin a message in pieces; no other may be encoded for this connection before its end."""
        return Fragments(opcode, self._deflate, masked=False)


class MaskingEncoder(Encoder):
    """Encodes messages for the peer of a client: every frame under a fresh mask (RFC 6455 section 5.3)."""

    __slots__ = ()

    def encode(self, opcode: int, payload: bytes) -> bytes | None:
        return None if len(payload) >= LARGE else self._mask(opcode, payload)

    def encode_large(self, opcode: int, payload: bytes) -> tuple[bytes, ...]:
        return (self._mask(opcode, payload),)

    def _mask(self, opcode: int, payload: bytes) -> bytes:
        if self._deflate is None:
            return frames.encode_frame(FIN | opcode, payload, masked=True)
        return _compressed(self._deflate, opcode, payload, masked=True)

    def fragments(self, opcode: int) -> Fragments:
        return Fragments(opcode, self._deflate, masked=True)


class Fragments:
    """One message in fragments, the last of which says that it was all.

    RFC 6455 section 5.4: "The primary purpose of fragmentation is to allow sending a message that is of unknown size
    when the message is started without having to buffer that message."

    Args:
        opcode: `TEXT` or `BINARY`.
        deflate: the codec, where permessage-deflate was negotiated. How long the message becomes is not known, so it
            is compressed as a long one, unless the codec leaves those as they are too.
        masked: mask each frame.
    """

    __slots__ = ("_compressor", "_deflate", "_first", "_masked")

    def __init__(self, opcode: int, deflate: Deflate | None, masked: bool) -> None:
        self._deflate = deflate if deflate is not None and deflate.min_bytes <= FRAGMENT_BYTES else None
        # RFC 7692 section 6: "An endpoint MUST NOT set the "Per-Message Compressed" bit of control frames and non-first
        # fragments of a data message."
        self._first = opcode if self._deflate is None else RSV1 | opcode
        self._compressor: Any = None if self._deflate is None else self._deflate.begin()
        self._masked = masked

    def add(self, piece: bytes) -> tuple[bytes, ...]:
        """Return the frame of a further piece as chunks to send in turn; none where there is nothing to send yet."""
        if self._deflate is not None:
            piece = self._compressor.compress(piece)
        if not piece:
            return ()
        first = self._first
        self._first = CONTINUATION
        if self._masked:
            return (frames.encode_frame(first, piece, masked=True),)
        return frames.encode_header(first, len(piece)), piece

    def end(self, piece: bytes) -> bytes:
        """Return the frame of the last piece."""
        if self._deflate is not None:
            piece = self._compressor.compress(piece) + self._deflate.end(self._compressor)
        return frames.encode_frame(FIN | self._first, piece, self._masked)


def _compressed(deflate: Deflate, opcode: int, payload: bytes, masked: bool) -> bytes:
    """Return the frame of a message, compressed where that makes it shorter."""
    compressed = deflate.shrink(payload)
    if compressed is None:
        return frames.encode_frame(FIN | opcode, payload, masked)
    return frames.encode_frame(FIN | RSV1 | opcode, compressed, masked)

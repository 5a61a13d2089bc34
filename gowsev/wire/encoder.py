"""From messages to frames: an encoder serves all connections whose frames are alike. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gowsev.wire import frames
from gowsev.wire.frames import BINARY, FIN, RSV1, TEXT

if TYPE_CHECKING:
    from gowsev.wire.deflate import Deflate

__all__ = ["LARGE", "Encoder", "MaskingEncoder"]

#: The headers of whole messages of up to 125 bytes, by opcode and length.
_SHORT_HEADERS: Final = {
    opcode: [frames.encode_header(FIN | opcode, size) for size in range(126)] for opcode in (TEXT, BINARY)
}

#: Payloads from this length on are sent as they are, behind a frame header of their own, rather than copied into one
#: frame with it.
LARGE: Final = 16384


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


def _compressed(deflate: Deflate, opcode: int, payload: bytes, masked: bool) -> bytes:
    """Return the frame of a message, compressed where that makes it shorter."""
    compressed = deflate.shrink(payload)
    if compressed is None:
        return frames.encode_frame(FIN | opcode, payload, masked)
    return frames.encode_frame(FIN | RSV1 | opcode, compressed, masked)

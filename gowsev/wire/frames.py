"""RFC 6455 section 5: frames as bytes. Header encode and parse, the checks of one header, masking, close codes.

Everything here is a pure function of its arguments: no I/O, no clock, no state from one frame to the next. What
follows from *several* frames (fragmentation, the closing handshake) is in `protocol`.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from gowsev.errors import ProtocolError

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - a `websockets` built without its C extension: 20 times slower, else alike
    from websockets.utils import apply_mask

__all__ = [
    "ABNORMAL",
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "FIN",
    "FINAL",
    "FRAGMENT",
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "INVALID_DATA",
    "MASKED",
    "MAX_CONTROL_PAYLOAD",
    "NORMAL",
    "NO_STATUS",
    "OPCODE_BITS",
    "PING",
    "POLICY",
    "PONG",
    "PROTOCOL_ERROR",
    "RSV1",
    "TEXT",
    "TOO_BIG",
    "TRY_AGAIN_LATER",
    "Buffer",
    "Header",
    "apply_mask",
    "check_header",
    "check_text",
    "encode_close_payload",
    "encode_frame",
    "encode_header",
    "invalid_text",
    "is_sendable_close_code",
    "parse_close_payload",
    "parse_header",
]

Buffer = bytes | bytearray | memoryview

# RFC 6455 section 5.2: opcodes.
CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

FIN: Final = 0x80
RSV1: Final = 0x40
RSV_ANY: Final = 0x70
OPCODE_BITS: Final = 0x0F
#: Beside an opcode, where a protocol returns a part of a message, and its last part.
FRAGMENT: Final = 0x20
FINAL: Final = 0x40
MASKED: Final = 0x80
LENGTH_BITS: Final = 0x7F

#: RFC 6455 section 5.5: "All control frames MUST have a payload length of 125 bytes or less".
MAX_CONTROL_PAYLOAD: Final = 125

# RFC 6455 section 7.4.1, and the registry it founds.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
INVALID_DATA: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
TRY_AGAIN_LATER: Final = 1013
_REGISTERED_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})

_LENGTH_16: Final = struct.Struct("!BBH").pack
_LENGTH_64: Final = struct.Struct("!BBQ").pack
_CODE: Final = struct.Struct("!H")


class Header(NamedTuple):
    """One frame's header, as it stands on the wire."""

    first: int
    """The first byte: FIN, the reserved bits and the opcode."""
    masked: bool
    length: int
    """The payload's length in bytes."""
    minimal: bool
    """Whether `length` is encoded in the fewest bytes."""
    mask: bytes
    """The masking key; empty where the frame is not masked."""
    size: int
    """The header's own length in bytes."""


def encode_header(first: int, length: int, masked: bool = False) -> bytes:
    """Encode the header of a frame, without the masking key that follows it where `masked`."""
    mask_bit = MASKED if masked else 0
    if length < 126:
        return bytes((first, mask_bit | length))
    if length < 65536:
        return _LENGTH_16(first, mask_bit | 126, length)
    return _LENGTH_64(first, mask_bit | 127, length)


def encode_frame(first: int, payload: bytes, masked: bool = False) -> bytes:
    """Encode one whole frame.

    Args:
        first: the first byte: FIN, reserved bits and opcode.
        payload: what is to be sent, before masking.
        masked: mask with a fresh key from the system's random source, as a client must (RFC 6455 section 5.3).
    """
    header = encode_header(first, len(payload), masked)
    if not masked:
        return header + payload
    mask = os.urandom(4)
    return header + mask + apply_mask(payload, mask)


def parse_header(data: Buffer, position: int, end: int) -> Header | None:
    """Parse the header that starts at `position`; `None` when it does not end before `end`."""
    size = 2
    if end - position < size:
        return None
    second = data[position + 1]
    masked = second >= MASKED
    length = second & LENGTH_BITS
    if length > 125:
        size = 4 if length == 126 else 10
        least = 126 if length == 126 else 65536
        if end - position < size:
            return None
        length = int.from_bytes(data[position + 2 : position + size], "big")
    else:
        least = 0
    mask = b""
    if masked:
        if end - position < size + 4:
            return None
        mask = bytes(data[position + size : position + size + 4])
        size += 4
    return Header(data[position], masked, length, length >= least, mask, size)


def check_header(header: Header, *, from_client: bool, in_message: bool, compression: bool) -> None:
    """Check one header against the state of its connection.

    Args:
        header: what `parse_header` returned.
        from_client: the peer is the client of the connection.
        in_message: a fragmented message has begun and not ended.
        compression: permessage-deflate was negotiated.

    Raises:
        ProtocolError: the frame must fail the connection; with close code 1002.
    """
    first = header.first
    opcode = first & OPCODE_BITS
    reserved = first & RSV_ANY
    # 5.2: "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values."
    # RFC 7692 section 6: RSV1 is set on the first frame of a compressed message, and only there.
    if reserved and not (compression and reserved == RSV1 and opcode in (TEXT, BINARY)):
        raise ProtocolError(PROTOCOL_ERROR, "reserved bit set")
    # 5.2: "If an unknown opcode is received, the receiving endpoint MUST _Fail the WebSocket Connection_."
    if opcode > PONG or BINARY < opcode < CLOSE:
        raise ProtocolError(PROTOCOL_ERROR, f"reserved opcode {opcode}")
    # 5.1: "The server MUST close the connection upon receiving a frame that is not masked." and
    # "A client MUST close a connection if it detects a masked frame."
    if header.masked is not from_client:
        raise ProtocolError(PROTOCOL_ERROR, "unmasked client frame" if from_client else "masked server frame")
    # 5.2: "the minimal number of bytes MUST be used to encode the length" and, of the 64-bit form,
    # "the most significant bit MUST be 0".
    if not header.minimal:
        raise ProtocolError(PROTOCOL_ERROR, "length not minimally encoded")
    if header.length >= 1 << 63:
        raise ProtocolError(PROTOCOL_ERROR, "length of 2^63 or more")
    if opcode >= CLOSE:
        # 5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be fragmented."
        if not first & FIN:
            raise ProtocolError(PROTOCOL_ERROR, "fragmented control frame")
        if header.length > MAX_CONTROL_PAYLOAD:
            raise ProtocolError(PROTOCOL_ERROR, "control frame longer than 125 bytes")
    # 5.4: "a fragmented message consists of a single frame with the FIN bit clear and an opcode other than 0,
    # followed by zero or more frames with the FIN bit clear and the opcode set to 0"
    elif opcode == CONTINUATION and not in_message:
        raise ProtocolError(PROTOCOL_ERROR, "continuation frame without a message to continue")
    elif opcode != CONTINUATION and in_message:
        raise ProtocolError(PROTOCOL_ERROR, "new message inside a fragmented one")


def is_sendable_close_code(code: int) -> bool:
    """Tell whether a close code may stand in a close frame (RFC 6455 sections 7.4.1 and 7.4.2)."""
    return code in _REGISTERED_CODES or 3000 <= code <= 4999


def encode_close_payload(code: object, reason: object = "") -> bytes:
    """Encode a close frame's payload; a reason of more than 123 bytes is cut at a character's edge.

    Both are checked here, as a program gave them: a compiled function with narrower types would turn `True` into 1.

    Raises:
        TypeError: `code` is no int, or `reason` no str.
        ValueError: `code` may not be sent.
    """
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"code must be an int, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be str, not {reason!r}")
    if not is_sendable_close_code(code):
        raise ValueError(f"close code must be 1000-1003, 1007-1014 or 3000-4999, not {code!r}")
    encoded = reason.encode("utf-8", "replace")
    if len(encoded) > MAX_CONTROL_PAYLOAD - 2:
        encoded = encoded[: MAX_CONTROL_PAYLOAD - 2].decode("utf-8", "ignore").encode()
    return _CODE.pack(code) + encoded


def parse_close_payload(payload: bytes) -> tuple[int, str]:
    """Parse a close frame's payload into its code and reason; 1005 for an empty one (RFC 6455 section 7.1.5).

    Raises:
        ProtocolError: with 1002 for a payload of one byte or a code that may not be sent, with 1007 for a reason
            that is no UTF-8.
    """
    if not payload:
        return NO_STATUS, ""
    # 5.5.1: "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer"
    if len(payload) == 1:
        raise ProtocolError(PROTOCOL_ERROR, "close frame with a payload of one byte")
    (code,) = _CODE.unpack_from(payload)
    if not is_sendable_close_code(code):
        raise ProtocolError(PROTOCOL_ERROR, f"invalid close code {code}")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_DATA, "close reason is not valid UTF-8") from None


def check_text(payload: bytes) -> None:
    """Check that the payload of a whole text message is UTF-8.

    Raises:
        ProtocolError: it is not; with close code 1007.
    """
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise invalid_text() from None


def invalid_text() -> ProtocolError:
    """Return the error of a text that is no UTF-8."""
    # 8.1: "When an endpoint is to interpret a byte stream as UTF-8 but finds that the byte stream is not, in fact,
    # a valid UTF-8 stream, that endpoint MUST _Fail the WebSocket Connection_."
    return ProtocolError(INVALID_DATA, "text is not valid UTF-8")

"""Frames as bytes, from tables that cite RFC 6455."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import MASK, PROPERTY, frame, unframe

from gowsev.errors import ProtocolError
from gowsev.wire import frames
from gowsev.wire.frames import Header

# name, section of RFC 6455, first byte, length, masked, the header on the wire without its key
HEADERS = [
    ("empty", "5.2", 0x82, 0, False, "82 00"),
    ("one byte", "5.2", 0x82, 1, False, "82 01"),
    ("the longest in 7 bits", "5.2", 0x82, 125, False, "82 7d"),
    ("the shortest in 16 bits", "5.2", 0x82, 126, False, "82 7e 00 7e"),
    ("one more", "5.2", 0x82, 127, False, "82 7e 00 7f"),
    ("the longest in 16 bits", "5.2", 0x82, 65535, False, "82 7e ff ff"),
    ("the shortest in 64 bits", "5.2", 0x82, 65536, False, "82 7f 00 00 00 00 00 01 00 00"),
    ("one more", "5.2", 0x82, 65537, False, "82 7f 00 00 00 00 00 01 00 01"),
    ("the longest there may be", "5.2", 0x82, (1 << 63) - 1, False, "82 7f 7f ff ff ff ff ff ff ff"),
    ("the most significant bit set", "5.2", 0x82, 1 << 63, False, "82 7f 80 00 00 00 00 00 00 00"),
    ("the longest in 64 bits", "5.2", 0x82, (1 << 64) - 1, False, "82 7f ff ff ff ff ff ff ff ff"),
    ("masked, empty", "5.3", 0x81, 0, True, "81 80"),
    ("masked, 7 bits", "5.3", 0x81, 125, True, "81 fd"),
    ("masked, 16 bits", "5.3", 0x81, 126, True, "81 fe 00 7e"),
    ("masked, 16 bits, longest", "5.3", 0x81, 65535, True, "81 fe ff ff"),
    ("masked, 64 bits", "5.3", 0x81, 65536, True, "81 ff 00 00 00 00 00 01 00 00"),
    ("a single text", "5.7", 0x81, 5, False, "81 05"),
    ("the first fragment", "5.7", 0x01, 3, False, "01 03"),
    ("the last fragment", "5.7", 0x80, 2, False, "80 02"),
    ("a ping", "5.7", 0x89, 5, False, "89 05"),
    ("a masked pong", "5.7", 0x8A, 5, True, "8a 85"),
    ("256 bytes", "5.7", 0x82, 256, False, "82 7e 01 00"),
    ("every bit of the first byte", "5.2", 0xFF, 0, False, "ff 00"),
]
with_headers = pytest.mark.parametrize(
    ("first", "length", "masked", "wire"),
    [(first, length, masked, bytes.fromhex(wire)) for _, _, first, length, masked, wire in HEADERS],
    ids=[f"{section} {name}" for name, section, *_ in HEADERS],
)


@with_headers
def test_encode_header(first, length, masked, wire):
    assert frames.encode_header(first, length, masked) == wire


def test_header_is_not_masked_unless_one_asks_for_it():
    assert frames.encode_header(0x82, 5) == b"\x82\x05"


@with_headers
def test_parse_header(first, length, masked, wire):
    wire += MASK if masked else b""
    expected = Header(first, masked, length, True, MASK if masked else b"", len(wire))
    assert frames.parse_header(wire, 0, len(wire)) == expected
    # In the middle of a buffer, of each type that a reader may have.
    surrounded = b"\x82\x05xx" + wire + b"\xff\xff"
    for data in (surrounded, bytearray(surrounded), memoryview(surrounded)):
        parsed = frames.parse_header(data, 4, len(data))
        assert parsed == expected
        assert type(parsed.mask) is bytes


@with_headers
def test_header_cut_anywhere_is_not_there_yet(first, length, masked, wire):
    wire += MASK if masked else b""
    for end in range(len(wire)):
        assert frames.parse_header(wire[:end], 0, end) is None
        assert frames.parse_header(wire, 0, end) is None, "bytes beyond the end were read"
        assert frames.parse_header(b"abc" + wire, 3, 3 + end) is None


# name, the header on the wire; each wastes bytes: 5.2, "the minimal number of bytes MUST be used to encode the length"
WASTEFUL = [
    ("0 in 16 bits", "82 7e 00 00", 0),
    ("125 in 16 bits", "82 7e 00 7d", 125),
    ("0 in 64 bits", "82 7f 00 00 00 00 00 00 00 00", 0),
    ("125 in 64 bits", "82 7f 00 00 00 00 00 00 00 7d", 125),
    ("126 in 64 bits", "82 7f 00 00 00 00 00 00 00 7e", 126),
    ("65535 in 64 bits", "82 7f 00 00 00 00 00 00 ff ff", 65535),
    ("a ping's 5 in 16 bits", "89 7e 00 05", 5),
]


@pytest.mark.parametrize(("wire", "length"), [row[1:] for row in WASTEFUL], ids=[row[0] for row in WASTEFUL])
def test_length_not_minimally_encoded(wire, length):
    wire = bytes.fromhex(wire)
    parsed = frames.parse_header(wire, 0, len(wire))
    assert parsed.length == length
    assert not parsed.minimal
    with pytest.raises(ProtocolError) as caught:
        frames.check_header(parsed, from_client=False, in_message=False, compression=False)
    assert (caught.value.code, caught.value.reason) == (1002, "length not minimally encoded")


CONTROLS = {0x88, 0x89, 0x8A}
# name, section, whether inside a fragmented message, whether with permessage-deflate, the first bytes that may come
FIRST_BYTES = [
    ("between messages", "RFC 6455 5.4", False, False, {0x01, 0x02, 0x81, 0x82} | CONTROLS),
    ("inside a message", "RFC 6455 5.4", True, False, {0x00, 0x80} | CONTROLS),
    (
        "between messages, deflate",
        "RFC 7692 6",
        False,
        True,
        {0x01, 0x02, 0x81, 0x82, 0x41, 0x42, 0xC1, 0xC2} | CONTROLS,
    ),
    ("inside a message, deflate", "RFC 7692 6.1", True, True, {0x00, 0x80} | CONTROLS),
]


@pytest.mark.parametrize(
    ("in_message", "compression", "allowed"),
    [row[2:] for row in FIRST_BYTES],
    ids=[f"{row[1]} {row[0]}" for row in FIRST_BYTES],
)
@pytest.mark.parametrize("from_client", [False, True])
def test_each_of_the_256_first_bytes(in_message, compression, allowed, from_client):
    def verdict(first):
        header = Header(first, from_client, 5, True, MASK if from_client else b"", 2)
        try:
            frames.check_header(header, from_client=from_client, in_message=in_message, compression=compression)
        except ProtocolError as error:
            return error.code
        return None

    assert {first: verdict(first) for first in range(256)} == {
        first: None if first in allowed else 1002 for first in range(256)
    }


# name, section of RFC 6455, first byte, length, masked, whether inside a message, what the failure says
VIOLATIONS = [
    *(
        (f"bit {bit:#x} of opcode {opcode}", "5.2", bit | 0x80 | opcode, 0, True, opcode == 0, "reserved bit set")
        for bit in (0x40, 0x20, 0x10)
        for opcode in (0, 1, 2, 8, 9, 10)
    ),
    *(
        (f"reserved opcode {opcode}", "5.2", 0x80 | opcode, 0, True, False, f"reserved opcode {opcode}")
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    ),
    ("client frame without a mask", "5.1", 0x82, 0, False, False, "unmasked client frame"),
    ("length of 2^63", "5.2", 0x82, 1 << 63, True, False, "length of 2^63 or more"),
    ("ping of 126 bytes", "5.5", 0x89, 126, True, False, "control frame longer than 125 bytes"),
    ("pong of 65536 bytes", "5.5", 0x8A, 65536, True, False, "control frame longer than 125 bytes"),
    ("close of 126 bytes", "5.5", 0x88, 126, True, False, "control frame longer than 125 bytes"),
    ("fragmented ping", "5.5", 0x09, 0, True, False, "fragmented control frame"),
    ("fragmented pong", "5.5", 0x0A, 0, True, True, "fragmented control frame"),
    ("fragmented close", "5.5", 0x08, 0, True, False, "fragmented control frame"),
    ("continuation of nothing", "5.4", 0x80, 0, True, False, "continuation frame without a message to continue"),
    ("first continuation of nothing", "5.4", 0x00, 0, True, False, "continuation frame without a message to continue"),
    ("text inside a message", "5.4", 0x81, 0, True, True, "new message inside a fragmented one"),
    ("binary inside a message", "5.4", 0x02, 0, True, True, "new message inside a fragmented one"),
]


@pytest.mark.parametrize(
    ("first", "length", "masked", "in_message", "text"),
    [row[2:] for row in VIOLATIONS],
    ids=[f"{row[1]} {row[0]}" for row in VIOLATIONS],
)
def test_header_that_fails_the_connection(first, length, masked, in_message, text):
    header = Header(first, masked, length, True, MASK if masked else b"", 2)
    with pytest.raises(ProtocolError) as caught:
        frames.check_header(header, from_client=True, in_message=in_message, compression=False)
    assert (caught.value.code, caught.value.reason) == (1002, text)


def test_masked_server_frame():
    # 5.1: "A client MUST close a connection if it detects a masked frame."
    with pytest.raises(ProtocolError) as caught:
        frames.check_header(
            Header(0x82, True, 0, True, MASK, 6), from_client=False, in_message=False, compression=False
        )
    assert (caught.value.code, caught.value.reason) == (1002, "masked server frame")


def test_longest_frames_that_pass():
    for first, length in ((0x82, (1 << 63) - 1), (0x88, 125), (0x89, 125), (0x8A, 125)):
        frames.check_header(
            Header(first, True, length, True, MASK, 14), from_client=True, in_message=False, compression=False
        )


# -- whole frames ------------------------------------------------------------------------------------------------

LENGTHS = (0, 1, 125, 126, 127, 65535, 65536, 65537)


@pytest.mark.parametrize("length", LENGTHS)
def test_frame_of_a_server(length):
    payload = bytes(i & 0xFF for i in range(length))
    assert frames.encode_frame(0x82, payload) == frame(0x82, payload, None)


@pytest.mark.parametrize("length", LENGTHS)
def test_frame_of_a_client(length):
    payload = bytes(i & 0xFF for i in range(length))
    assert unframe(frames.encode_frame(0x82, payload, masked=True)) == [(0x82, True, payload)]


def test_each_client_frame_has_a_key_of_its_own():
    # 5.3: "The masking key needs to be unpredictable"
    assert len({frames.encode_frame(0x82, b"", masked=True) for _ in range(64)}) > 60


def test_examples_of_section_5_7():
    assert frames.encode_frame(0x81, b"Hello") == bytes.fromhex("81 05 48 65 6c 6c 6f")
    assert frames.encode_frame(0x01, b"Hel") + frames.encode_frame(0x80, b"lo") == bytes.fromhex(
        "01 03 48 65 6c 80 02 6c 6f"
    )
    assert frames.encode_frame(0x89, b"Hello") == bytes.fromhex("89 05 48 65 6c 6c 6f")
    masked = bytes.fromhex("81 85 37 fa 21 3d 7f 9f 4d 51 58")
    header = frames.parse_header(masked, 0, len(masked))
    assert frames.apply_mask(masked[header.size :], header.mask) == b"Hello"


@PROPERTY
@given(st.integers(0, 255), st.integers(0, (1 << 64) - 1) | st.integers(0, 70000), st.booleans())
def test_header_survives_the_wire(first, length, masked):
    wire = frames.encode_header(first, length, masked) + (MASK if masked else b"")
    assert frames.parse_header(wire, 0, len(wire)) == (first, masked, length, True, MASK if masked else b"", len(wire))


# -- close frames ------------------------------------------------------------------------------------------------

# name, section of RFC 6455 or the registry it founds, codes, whether a close frame may carry them
CODES = [
    ("never used", "7.4.2", range(1000), False),
    ("defined by the RFC", "7.4.1", range(1000, 1004), True),
    ("reserved for the future", "7.4.1", [1004], False),
    ("no code came; not for the wire", "7.4.1", [1005], False),
    ("no close frame came; not for the wire", "7.4.1", [1006], False),
    ("defined by the RFC", "7.4.1", range(1007, 1012), True),
    ("registered since: restart, try again later, bad gateway", "11.7", range(1012, 1015), True),
    ("TLS failed; not for the wire", "7.4.1", [1015], False),
    ("for the RFC and its extensions, not defined", "7.4.2", range(1016, 3000), False),
    ("for libraries and frameworks", "7.4.2", range(3000, 4000), True),
    ("for private use", "7.4.2", range(4000, 5000), True),
    ("beyond every range", "7.4.2", range(5000, 65536), False),
]


@pytest.mark.parametrize(("codes", "valid"), [row[2:] for row in CODES], ids=[f"{row[1]} {row[0]}" for row in CODES])
def test_close_codes(codes, valid):
    # By hand rather than with `pytest.raises`, which takes a minute for so many.
    for code in codes:
        payload = code.to_bytes(2, "big") + b"bye"
        try:
            received = frames.parse_close_payload(payload)
        except ProtocolError as error:
            received = error.code, error.reason
        try:
            sent = frames.encode_close_payload(code, "bye")
        except ValueError as error:
            sent = str(error)
        assert frames.is_sendable_close_code(code) is valid
        if valid:
            assert received == (code, "bye")
            assert sent == payload
        else:
            assert received == (1002, f"invalid close code {code}")
            assert sent == f"close code must be 1000-1003, 1007-1014 or 3000-4999, not {code}"


def test_close_codes_have_a_row_each():
    assert sorted(code for row in CODES for code in row[2]) == list(range(65536))


@pytest.mark.parametrize("code", [-1, 65536, 1 << 40])
def test_close_code_that_is_no_unsigned_16_bits(code):
    with pytest.raises(ValueError, match=f"not {code}"):
        frames.encode_close_payload(code)


@pytest.mark.parametrize(
    ("code", "reason", "fault"),
    [
        (True, "", "code must be an int, not True"),
        ("1000", "", "code must be an int, not '1000'"),
        (1000.0, "", "code must be an int, not 1000.0"),
        (None, "", "code must be an int, not None"),
        (1000, b"bye", "reason must be str, not b'bye'"),
        (1000, None, "reason must be str, not None"),
    ],
)
def test_what_is_no_close_code_or_no_reason_is_named(code, reason, fault):
    with pytest.raises(TypeError) as raised:
        frames.encode_close_payload(code, reason)
    assert str(raised.value) == fault


ONE_BYTE = ProtocolError(1002, "close frame with a payload of one byte")
NOT_UTF8 = ProtocolError(1007, "close reason is not valid UTF-8")
# name, section of RFC 6455, payload, what it means: a code and a reason, or the failure that it is
CLOSES = [
    ("no body", "7.1.5", b"", (1005, "")),
    ("a code", "5.5.1", b"\x03\xe8", (1000, "")),
    ("a code and a reason", "5.5.1", b"\x03\xe9going", (1001, "going")),
    ("a reason in UTF-8", "5.5.1", b"\x03\xe8" + "h\u00e9 \U0001f600".encode(), (1000, "h\u00e9 \U0001f600")),
    ("the longest reason", "5.5", b"\x03\xe8" + b"x" * 123, (1000, "x" * 123)),
    ("one byte", "5.5.1", b"\x03", ONE_BYTE),
    ("one byte that is zero", "5.5.1", b"\x00", ONE_BYTE),
    ("an invalid code before an invalid reason", "7.4", b"\x03\xe7\xff", ProtocolError(1002, "invalid close code 999")),
    ("a reason that is not UTF-8", "5.5.1", b"\x03\xe8\xff", NOT_UTF8),
    ("a reason cut inside a character", "5.5.1", b"\x03\xe8" + "\u20ac".encode()[:2], NOT_UTF8),
    ("a reason cut inside a character of 4 bytes", "5.5.1", b"\x03\xe8x" + "\U0001f600".encode()[:3], NOT_UTF8),
    ("a reason with a surrogate", "5.5.1", b"\x03\xe8\xed\xa0\x80", NOT_UTF8),
]


@pytest.mark.parametrize(
    ("payload", "expected"), [row[2:] for row in CLOSES], ids=[f"{row[1]} {row[0]}" for row in CLOSES]
)
def test_close_payload(payload, expected):
    if isinstance(expected, tuple):
        assert frames.parse_close_payload(payload) == expected
    else:
        with pytest.raises(ProtocolError) as caught:
            frames.parse_close_payload(payload)
        assert (caught.value.code, caught.value.reason) == (expected.code, expected.reason)


# name, reason, what leaves of it: at most 123 bytes, with the code 125 (section 5.5), and whole characters
REASONS = [
    ("empty", "", b""),
    ("just fits", "x" * 123, b"x" * 123),
    ("one too long", "x" * 124, b"x" * 123),
    ("2-byte characters, 61 fit", "\u00e9" * 62, "\u00e9".encode() * 61),
    ("2-byte characters on an odd start, 61 fit", "x" + "\u00e9" * 62, b"x" + "\u00e9".encode() * 61),
    ("3-byte characters, 41 fit exactly", "\u20ac" * 42, "\u20ac".encode() * 41),
    ("3-byte characters, cut after 1", "xx" + "\u20ac" * 41, b"xx" + "\u20ac".encode() * 40),
    ("3-byte characters, cut after 2", "x" + "\u20ac" * 41, b"x" + "\u20ac".encode() * 40),
    ("4-byte characters, cut after 3", "\U0001f600" * 31, "\U0001f600".encode() * 30),
    ("a lone surrogate, which UTF-8 cannot carry", "a\ud800b", b"a?b"),
    ("very long", "\u20ac" * 100000, "\u20ac".encode() * 41),
]


@pytest.mark.parametrize(("reason", "expected"), [row[1:] for row in REASONS], ids=[row[0] for row in REASONS])
def test_outgoing_reason_is_cut_at_a_characters_edge(reason, expected):
    assert frames.encode_close_payload(1000, reason) == b"\x03\xe8" + expected


def test_a_code_goes_without_a_reason():
    # 5.5.1: "Following the 2-byte integer, the body MAY contain UTF-8-encoded data with value /reason/"
    assert frames.encode_close_payload(1000) == b"\x03\xe8"


@PROPERTY
@given(st.text(max_size=150))
def test_any_reason_can_be_sent_and_read(reason):
    payload = frames.encode_close_payload(3000, reason)
    assert len(payload) <= 125
    code, read = frames.parse_close_payload(payload)
    assert code == 3000
    assert reason.startswith(read)
    # Nothing more would have fitted.
    assert read == reason or len(reason[: len(read) + 1].encode()) > 123


def test_the_error_of_a_text_that_is_none():
    """RFC 6455 sections 7.4.1 and 8.1."""
    error = frames.invalid_text()
    assert (error.code, str(error)) == (1007, "text is not valid UTF-8 (close code 1007)")

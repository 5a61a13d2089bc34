"""Messages in several frames that are returned as they come: what is returned when, and that it is bounded.

Bytes are written by hand (see `tables`), never by the code under test.
"""

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import PROPERTY, cut, feed, frame, one_at_a_time

from gowsev.wire.deflate import Deflate
from gowsev.wire.frames import FINAL, FRAGMENT
from gowsev.wire.protocol import DONE, Protocol

CONTINUATION, TEXT, BINARY, CLOSE, PING = 0, 1, 2, 8, 9
FIN, RSV1 = 0x80, 0x40
PART, LAST = FRAGMENT, FRAGMENT | FINAL


def protocol(**kwargs):
    made = Protocol(**kwargs)
    made.fragments = True
    return made


def compressed(payload):
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize(
    ("sent", "returned"),
    [
        # RFC 6455 section 5.7: "A fragmented unmasked text message", here masked.
        ([(TEXT, b"Hel"), (FIN, b"lo")], [(TEXT | PART, b"Hel"), (TEXT | LAST, b"lo")]),
        # 5.4: "An unfragmented message consists of a single frame with the FIN bit set": it is whole, as ever.
        ([(FIN | BINARY, b"whole"), (FIN | TEXT, bytes(200))], [(BINARY, b"whole"), (TEXT, bytes(200))]),
        # 5.4: "Control frames MAY be injected in the middle of a fragmented message."
        (
            [(BINARY, b"a"), (FIN | PING, b""), (CONTINUATION, b"b"), (FIN, b"")],
            [(BINARY | PART, b"a"), (BINARY | PART, b"b"), (BINARY | LAST, b"")],
        ),
        ([(BINARY, b""), (CONTINUATION, b""), (FIN, b"")], [(BINARY | LAST, b"")]),
        # 5.6: "a particular text frame might include a partial UTF-8 sequence": what is returned has whole characters.
        (
            [(TEXT, b"\xe2"), (CONTINUATION, b"\x82"), (CONTINUATION, b"\xac\xe2\x82"), (FIN, b"\xac")],
            [(TEXT | PART, b"\xe2\x82\xac"), (TEXT | LAST, b"\xe2\x82\xac")],
        ),
        # Two messages, the second of which is short.
        (
            [(BINARY, b"a"), (FIN, b"b"), (FIN | BINARY, b"c")],
            [(BINARY | PART, b"a"), (BINARY | LAST, b"b"), (BINARY, b"c")],
        ),
    ],
)
def test_what_is_returned(sent, returned):
    received = protocol()
    assert feed(received, [b"".join(frame(*one) for one in sent)]) == returned
    assert received.unfinished == sum(not opcode & FINAL for opcode, _ in returned if opcode & FRAGMENT)
    assert feed(Protocol(), [b"".join(frame(*one) for one in sent)]) == wholes(returned), "and without being asked"


def wholes(returned):
    """Put fragments together."""
    messages, begun = [], b""
    for opcode, payload in returned:
        if opcode & FRAGMENT:
            begun += payload
            if not opcode & FINAL:
                continue
            payload, begun = begun, b""
        messages.append((opcode & 3, payload))
    return messages


def test_the_message_may_be_longer_than_the_limit_and_one_frame_may_not():
    received = protocol(max_message_bytes=10)
    assert feed(received, [frame(BINARY, bytes(8)), frame(FIN, bytes(8))]) == [
        (BINARY | PART, bytes(8)),
        (BINARY | LAST, bytes(8)),
    ]
    assert feed(received, [frame(FIN | BINARY, bytes(11))]) == []
    assert received.failure.code == 1009


def test_a_long_frame_comes_in_parts():
    received = protocol(max_message_bytes=10)
    wire = frame(BINARY, bytes(1 << 20)) + frame(FIN, b"")
    parts = feed(received, [wire[start : start + 5000] for start in range(0, len(wire), 5000)])
    assert wholes(parts) == [(BINARY, bytes(1 << 20))]
    assert all(65536 <= len(payload) < 65536 + 5000 for _, payload in parts[:-2])
    assert parts[-1] == (BINARY | LAST, b"")


@pytest.mark.parametrize("pieces", [one_at_a_time, lambda data: [data]], ids=["bytes", "whole"])
@pytest.mark.parametrize(
    ("sent", "before", "code"),
    [
        ([(TEXT, b"ok\xff")], [], 1007),
        ([(TEXT, b"ok"), (CONTINUATION, b"\xed\xa0\x80")], [(TEXT | PART, b"ok")], 1007),
        ([(TEXT, b"ok\xe2\x82"), (FIN, b"")], [(TEXT | PART, b"ok")], 1007),
        ([(BINARY, b"a"), (FIN | BINARY, b"b")], [(BINARY | PART, b"a")], 1002),
        ([(BINARY, b"a"), (FIN | RSV1, b"b")], [(BINARY | PART, b"a")], 1002),
        ([(FIN, b"b")], [], 1002),
    ],
)
def test_violations(sent, before, code, pieces):
    received = protocol()
    assert feed(received, pieces(b"".join(frame(*one) for one in sent))) == before
    assert received.failure.code == code
    assert received.state == DONE


@pytest.mark.parametrize("takeover", [False, True])
def test_compressed(takeover):
    received = protocol(deflate=Deflate(inflate_takeover=takeover))
    text = "Grüße, " * 100_000
    data = compressed(text.encode())
    third = len(data) // 3
    wire = frame(TEXT | RSV1, data[:third]) + frame(CONTINUATION, data[third:-1]) + frame(FIN, data[-1:])
    parts = feed(received, [wire + frame(FIN | BINARY, b"next")])
    assert wholes(parts) == [(TEXT, text.encode()), (BINARY, b"next")]
    assert all(payload.decode() for _, payload in parts[:-2])
    assert len(parts) > 4


def test_a_bomb_is_returned_a_bounded_part_at_a_time():
    bomb = compressed(bytes(64 << 20))
    assert len(bomb) < 96 << 10, "it comes in one call"
    received = protocol(max_message_bytes=1 << 20, deflate=Deflate())
    data, total, most = frame(BINARY | RSV1, bomb) + frame(FIN, b""), 0, 0
    while data or received.more:
        size = sum(len(payload) for _, payload in received.receive(data))
        data = b""
        total += size
        most = max(most, size)
    assert total == 64 << 20
    assert most <= 3 << 20


def test_an_invalid_stream_of_compressed_data_fails():
    received = protocol(deflate=Deflate())
    feed(received, [frame(BINARY | RSV1, b"\xff\xff\xff")])
    assert received.failure.code == 1007


@settings(PROPERTY, max_examples=60)
@given(
    st.text(max_size=50),
    st.lists(st.integers(0, 200), max_size=6),
    st.lists(st.integers(0, 300), max_size=8),
    st.booleans(),
)
def test_however_it_is_cut_it_is_the_same_message(text, fragments, places, deflated):
    payload = text.encode()
    first, data = (TEXT | RSV1, compressed(payload)) if deflated else (TEXT, payload)
    pieces = cut(data, fragments)
    wire = b"".join(frame(first if number == 0 else CONTINUATION, piece) for number, piece in enumerate(pieces))
    received = protocol(deflate=Deflate())
    parts = feed(received, cut(wire + frame(FIN, b""), places))
    assert received.failure is None
    assert wholes(parts) == [(TEXT, payload)]
    for _, part in parts:
        part.decode()


def test_what_is_asked_for_holds_from_the_next_message_on():
    received = Protocol()
    assert feed(received, [frame(BINARY, b"a")]) == []
    received.fragments = True
    assert feed(received, [frame(FIN, b"b"), frame(BINARY, b"c")]) == [(BINARY, b"ab"), (BINARY | PART, b"c")]


def test_a_close_frame_in_the_middle():
    received = protocol()
    assert feed(received, [frame(BINARY, b"a") + frame(FIN | CLOSE, b"\x03\xe8")]) == [(BINARY | PART, b"a")]
    assert (received.state, received.close_code) == (DONE, 1000)

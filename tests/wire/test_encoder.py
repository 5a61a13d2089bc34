"""From messages to frames: what is encoded once, what is copied, what is compressed and masked.

Bytes are written and read by hand (see `tables`), never by the code under test.
"""

import random

import pytest
from tables import feed, frame, unframe

from gowsev.wire.deflate import Deflate
from gowsev.wire.encoder import FRAGMENT_BYTES, LARGE, Encoder, MaskingEncoder
from gowsev.wire.protocol import Protocol

TEXT, BINARY = 1, 2
FIN, RSV1 = 0x80, 0x40


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, LARGE - 1, LARGE, 65535, 65536, 65537])
def test_encoder(size):
    payload = bytes(i & 0xFF for i in range(size))
    for opcode in (BINARY, TEXT):
        assert b"".join(Encoder().encode_large(opcode, payload)) == frame(FIN | opcode, payload, None)
        assert unframe(MaskingEncoder().encode_large(opcode, payload)[0]) == [(FIN | opcode, True, payload)]
        if size < LARGE:
            assert Encoder().encode(opcode, payload) == frame(FIN | opcode, payload, None)
            assert unframe(MaskingEncoder().encode(opcode, payload)) == [(FIN | opcode, True, payload)]


@pytest.mark.parametrize("kind", [Encoder, MaskingEncoder])
@pytest.mark.parametrize("deflate", [None, Deflate(), Deflate(takeover=True)], ids=["plain", "deflate", "takeover"])
def test_encode_leaves_a_large_message_to_encode_large(kind, deflate):
    encoder, payload = kind(deflate), bytes(LARGE)
    encoder.encode_large(BINARY, payload)
    assert encoder.encode(BINARY, payload) is None


def test_encoder_keeps_the_last_frame_and_what_it_was_made_of():
    encoder = Encoder()
    payload = bytes([1, 2, 3])
    frame = encoder.encode(BINARY, payload)
    assert encoder.encode(BINARY, payload) is frame
    assert encoder.encode(TEXT, payload) != frame, "under another opcode it is another frame"
    frame = encoder.encode(TEXT, payload)
    assert encoder.encode(TEXT, payload) is frame
    assert encoder.encode(TEXT, bytes([1, 2, 4])) != frame


def test_encoder_compresses_equal_bytes_once():
    encoder = Encoder(Deflate())
    payload = b"abc" * 100
    published = encoder.encode(BINARY, payload)
    assert published[0] == FIN | RSV1 | BINARY
    assert encoder.encode(BINARY, payload) is published
    # As they are when one text is written to each of many: each time it is encoded anew.
    assert encoder.encode(BINARY, b"abc" * 50 + b"abc" * 50) is published
    assert encoder.encode(BINARY, b"abd" * 100) != published
    assert encoder.encode(BINARY, payload) == published
    as_text = encoder.encode(TEXT, payload)
    assert as_text == bytes([FIN | RSV1 | TEXT]) + published[1:]
    assert encoder.encode(TEXT, payload) is as_text
    assert encoder.encode(BINARY, payload) == published


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_the_first_message_may_be_empty(opcode):
    assert Encoder(Deflate()).encode(opcode, b"") == frame(FIN | opcode, b"", None)


INCOMPRESSIBLE = random.Random(2).randbytes(20000)


@pytest.mark.parametrize(
    ("payload", "compressed"),
    [(bytes(99), False), (bytes(100), True), (b"", False), (INCOMPRESSIBLE[:1000], False), (INCOMPRESSIBLE, False)],
)
@pytest.mark.parametrize("kind", [Encoder, MaskingEncoder])
def test_encoders_compress_what_that_makes_shorter(kind, payload, compressed):
    encoder = kind(Deflate(min_bytes=100))
    for wire in (encoder.encode(BINARY, payload), b"".join(encoder.encode_large(BINARY, payload))):
        if wire is None:
            assert payload is INCOMPRESSIBLE
            continue
        assert (wire[0] == FIN | RSV1 | BINARY) is compressed
        assert feed(Protocol(client=kind is Encoder, deflate=Deflate()), [wire]) == [(BINARY, payload)]


def test_what_does_not_shrink_is_compressed_once_too(monkeypatch):
    tried = []
    monkeypatch.setattr(Deflate, "compress", lambda self, payload: tried.append(payload) or payload)
    encoder = Encoder(Deflate())
    assert encoder.encode_large(BINARY, INCOMPRESSIBLE)[0] is encoder.encode_large(BINARY, INCOMPRESSIBLE)[0]
    assert tried == [INCOMPRESSIBLE]


def test_what_a_kept_context_has_seen_is_sent():
    # It refers to messages that were, so each must have been; those below the threshold never were in it.
    encoder = Encoder(Deflate(takeover=True, min_bytes=10))
    peer = Protocol(client=True, deflate=Deflate(inflate_takeover=True))
    for payload in (INCOMPRESSIBLE[:1000], b"short", INCOMPRESSIBLE[:1000], b"", b"long enough"):
        wire = encoder.encode(BINARY, payload)
        assert (wire[0] == FIN | RSV1 | BINARY) is (len(payload) >= 10)
        assert feed(peer, [wire]) == [(BINARY, payload)]
    assert len(encoder.encode(BINARY, INCOMPRESSIBLE[:1000])) < 100


def test_encoder_knows_no_message_to_begin_with():
    # The empty `bytes` is one object everywhere.
    assert Encoder().encode(BINARY, b"") == b"\x82\x00"
    assert Encoder().encode(TEXT, b"") == b"\x81\x00"


def test_encoder_with_takeover_never_repeats_a_frame():
    # RFC 7692 section 7.1.1: a second message refers to the first, so a frame serves once.
    encoder = Encoder(Deflate(takeover=True))
    payload = b"Hello"
    wire = [encoder.encode(TEXT, payload) for _ in range(3)]
    assert wire[0] == frame(FIN | RSV1 | TEXT, bytes.fromhex("f2 48 cd c9 c9 07 00"), None)
    assert wire[1] == frame(FIN | RSV1 | TEXT, bytes.fromhex("f2 00 11 00 00"), None)
    peer = Protocol(client=True, deflate=Deflate(inflate_takeover=True))
    assert feed(peer, wire) == [(TEXT, payload)] * 3


def test_encode_large_copies_nothing():
    payload = bytes(LARGE)
    first, second = Encoder().encode_large(BINARY, payload)
    assert second is payload
    assert first + second == frame(FIN | BINARY, payload, None)


@pytest.mark.parametrize("takeover", [False, True])
def test_encode_large_compressed(takeover):
    payload = bytes(LARGE)
    encoder = Encoder(Deflate(takeover=takeover))
    [wire] = encoder.encode_large(BINARY, payload)
    assert (encoder.encode_large(BINARY, payload)[0] is wire) is not takeover
    assert feed(Protocol(client=True, deflate=Deflate()), [wire]) == [(BINARY, payload)]


def test_masking_encoder_takes_a_fresh_mask_each_time():
    # 5.3: "The masking key [...] MUST be chosen from the set of allowed 32-bit values" afresh "for each frame"
    for encoder in (MaskingEncoder(), MaskingEncoder(Deflate())):
        wires = {encoder.encode(TEXT, b"") for _ in range(64)}
        assert len(wires) > 60


@pytest.mark.parametrize("deflate", [None, Deflate()], ids=["plain", "deflate"])
def test_masking_encoder_never_sends_a_large_payload_as_it_is(deflate):
    payload = b"attack at dawn!!" * 2000
    [wire] = MaskingEncoder(deflate).encode_large(BINARY, payload)
    assert b"attack" not in wire
    assert feed(Protocol(deflate=deflate), [wire]) == [(BINARY, payload)]


def test_masking_encoder_compresses():
    [(first, masked, payload)] = unframe(MaskingEncoder(Deflate(takeover=True)).encode(TEXT, b"Hello"))
    assert (first, masked, payload) == (FIN | RSV1 | TEXT, True, bytes.fromhex("f2 48 cd c9 c9 07 00"))


KINDS = pytest.mark.parametrize(("kind", "masked"), [(Encoder, False), (MaskingEncoder, True)])


@KINDS
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_fragments(kind, masked, opcode):
    """RFC 6455 section 5.4: the first has the opcode, the last has FIN."""
    fragments = kind().fragments(opcode)
    chunks = [*fragments.add(b"one"), *fragments.add(b""), *fragments.add(b"two" * 50), fragments.end(b"")]
    assert unframe(b"".join(chunks)) == [(opcode, masked, b"one"), (0, masked, b"two" * 50), (FIN, masked, b"")]
    assert unframe(kind().fragments(opcode).end(b"all")) == [(FIN | opcode, masked, b"all")]


@KINDS
@pytest.mark.parametrize(("min_bytes", "compressed"), [(FRAGMENT_BYTES, True), (FRAGMENT_BYTES + 1, False)])
def test_fragments_are_compressed_as_one_message(kind, masked, min_bytes, compressed):
    """RFC 7692 section 6.1: only the first says so."""
    fragments = kind(Deflate(min_bytes=min_bytes)).fragments(BINARY)
    piece = INCOMPRESSIBLE * 4  # more than the compressor keeps to itself
    data = b"".join([*fragments.add(piece), *fragments.add(piece), fragments.end(b"end")])
    found = unframe(data)
    assert [first for first, _, _ in found] == [BINARY | (RSV1 if compressed else 0), *[0] * (len(found) - 2), FIN]
    assert all(is_masked is masked for _, is_masked, _ in found)
    protocol = Protocol(client=kind is Encoder, deflate=Deflate())
    assert feed(protocol, [data]) == [(BINARY, piece + piece + b"end")]

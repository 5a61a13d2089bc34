"""permessage-deflate: the codec, and what was negotiated, from tables that cite RFC 7692."""

import base64
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import PROPERTY, cut, one_at_a_time
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from gowsev.errors import ProtocolError
from gowsev.options import Options
from gowsev.wire import deflate
from gowsev.wire.deflate import Deflate

DEFLATE = Options(compression="deflate")


@pytest.fixture(params=["zlib", "isal"])
def library(request, monkeypatch):
    """Both libraries that compress long messages, in turn."""
    monkeypatch.setattr(deflate, "fast", zlib if request.param == "zlib" else pytest.importorskip("isal.isal_zlib"))


def inflate(codec, pieces, limit=None):
    """Read one message that comes in pieces."""
    inflated = b""
    for piece in pieces:
        inflated += b"".join(codec.inflate(piece, None if limit is None else limit - len(inflated)))
    return inflated + codec.finish(None if limit is None else limit - len(inflated))


# -- the codec ---------------------------------------------------------------------------------------------------

# name, section, the messages of one connection as they are sent, what they say
EXAMPLES = [
    ("one compressed block", "7.2.3.1", ["f2 48 cd c9 c9 07 00"], [b"Hello"]),
    ("sharing the window", "7.2.3.2", ["f2 48 cd c9 c9 07 00", "f2 00 11 00 00"], [b"Hello", b"Hello"]),
    ("not sharing it", "7.2.3.2", ["f2 48 cd c9 c9 07 00", "f2 48 cd c9 c9 07 00"], [b"Hello", b"Hello"]),
    ("a block without compression", "7.2.3.3", ["00 05 00 fa ff 48 65 6c 6c 6f 00"], [b"Hello"]),
    ("a final block", "7.2.3.4", ["f3 48 cd c9 c9 07 00 00"], [b"Hello"]),
    ("two blocks", "7.2.3.5", ["f2 48 05 00 00 00 ff ff ca c9 c9 07 00"], [b"Hello"]),
    ("an empty message", "7.2.3.6", ["00"], [b""]),
    ("an empty message of an empty compressed block", "7.2.3.6", ["02 00"], [b""]),
    ("two final blocks", "7.2.1", ["f3 48 cd c9 c9 07 00 f3 48 cd c9 c9 07 00 00"], [b"HelloHello"]),
    ("a final block without padding", "7.2.1", ["f3 48 cd c9 c9 07 00"], [b"Hello"]),
    (
        "a final block, then another message",
        "7.2.3.4",
        ["f3 48 cd c9 c9 07 00 00", "f2 48 cd c9 c9 07 00"],
        [b"Hello"] * 2,
    ),
    ("an empty final block", "7.2.3.4", ["03 00"], [b""]),
    ("no payload at all, then another message", "6", ["", "f2 48 cd c9 c9 07 00"], [b"", b"Hello"]),
]


@pytest.mark.parametrize("pieces_of", [lambda data: [data], one_at_a_time], ids=["whole", "one byte at a time"])
@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize(
    ("payloads", "messages"), [row[2:] for row in EXAMPLES], ids=[f"{row[1]} {row[0]}" for row in EXAMPLES]
)
def test_examples(payloads, messages, limit, pieces_of):
    codec = Deflate(inflate_takeover=True)
    assert [inflate(codec, pieces_of(bytes.fromhex(payload)), limit) for payload in payloads] == messages


def test_example_as_it_is_sent():
    # 7.2.3.1 and 7.2.3.2
    codec = Deflate(takeover=True)
    assert codec.compress(b"Hello") == bytes.fromhex("f2 48 cd c9 c9 07 00")
    assert codec.compress(b"Hello") == bytes.fromhex("f2 00 11 00 00")
    # 7.1.1.1: without context takeover every message is the first one
    codec = Deflate()
    assert codec.compress(b"Hello") == codec.compress(b"Hello") == bytes.fromhex("f2 48 cd c9 c9 07 00")


def test_empty_message_as_it_is_sent():
    for codec in (Deflate(), Deflate(takeover=True)):
        for _ in range(3):
            payload = codec.compress(b"")
            # 7.2.3.6: an empty payload must not leave as nothing at all.
            assert payload
            assert inflate(Deflate(), [payload]) == b""


def test_message_that_refers_to_an_earlier_one_needs_takeover():
    sender = Deflate(takeover=True)
    first, second = sender.compress(b"Hello"), sender.compress(b"Hello")
    keeps = Deflate(inflate_takeover=True)
    assert [inflate(keeps, [payload]) for payload in (first, second)] == [b"Hello", b"Hello"]
    forgets = Deflate()
    assert inflate(forgets, [first]) == b"Hello"
    with pytest.raises(ProtocolError, match=r"^invalid compressed data: .*too far back") as caught:
        inflate(forgets, [second])
    assert caught.value.code == 1007


# name, payload, the code of the failure
BROKEN = [
    ("a block type that does not exist", "07", 1007),
    ("lengths of a stored block that contradict each other", "00 05 00 00 00 48", 1007),
    ("a reference before the beginning", "f2 00 11 00 00", 1007),
    ("broken behind a final block", "f3 48 cd c9 c9 07 00 ff ff", 1007),
]


@pytest.mark.parametrize("pieces_of", [lambda data: [data], one_at_a_time], ids=["whole", "one byte at a time"])
@pytest.mark.parametrize(("payload", "code"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_no_deflate_stream(payload, code, pieces_of):
    with pytest.raises(ProtocolError, match=r"^invalid compressed data: ") as caught:
        inflate(Deflate(), pieces_of(bytes.fromhex(payload)))
    assert caught.value.code == code


def test_final_blocks_of_a_message_are_bounded():
    # Two bytes each: a message of nothing else would make inflaters without end.
    for number in (256, 200, 256):  # counted for each message
        codec = Deflate(inflate_takeover=True)
        for pieces in ([b"\x03\x00" * number], [b"\x03\x00"] * number):
            assert inflate(codec, pieces) == b""
    for pieces in ([b"\x03\x00" * 257], [b"\x03\x00"] * 257):
        with pytest.raises(ProtocolError, match="more than 256 final blocks") as caught:
            inflate(Deflate(), pieces)
        assert caught.value.code == 1007


# -- the limit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces_of", [lambda data: [data], one_at_a_time], ids=["whole", "one byte at a time"])
@pytest.mark.parametrize("payload", [b"x", b"hello" * 300, random.Random(1).randbytes(5000)])
def test_limit_is_exact(payload, pieces_of):
    compressed = Deflate().compress(payload)
    assert inflate(Deflate(), pieces_of(compressed), len(payload)) == payload
    with pytest.raises(ProtocolError, match="too long") as caught:
        inflate(Deflate(), pieces_of(compressed), len(payload) - 1)
    assert caught.value.code == 1009


def test_no_room_is_room_for_nothing():
    assert list(Deflate().inflate(Deflate().compress(b""), 0)) == []
    with pytest.raises(ProtocolError, match="too long") as caught:
        list(Deflate().inflate(Deflate().compress(b"x"), 0))
    assert caught.value.code == 1009


def test_limit_counts_what_final_blocks_hold_together():
    body = bytes.fromhex("f3 48 cd c9 c9 07 00") * 3
    assert inflate(Deflate(), [body], 15) == b"Hello" * 3
    with pytest.raises(ProtocolError, match="too long") as caught:
        inflate(Deflate(), [body], 14)
    assert caught.value.code == 1009


def test_limit_holds_where_the_end_of_a_message_brings_more():
    # The last bytes may come out only with the tail that `finish` appends.
    compressor = zlib.compressobj(wbits=-15)
    payload = compressor.compress(bytes(5000)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    codec = Deflate()
    room = 5000 - sum(map(len, codec.inflate(payload[:-4], 5000)))
    assert len(codec.finish(room)) == room


def most_held(function):
    """Return the most bytes that were held at once while `function` ran."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [0, 1000, 1 << 20, 8 << 20])
def test_bomb_is_stopped_at_the_limit(limit):
    bomb = Deflate(takeover=True).compress(bytes(64 << 20))
    assert len(bomb) < 1 << 17
    kept = []

    def explode():
        with pytest.raises(ProtocolError, match="too long") as caught:
            kept.extend(Deflate().inflate(bomb, limit))
        assert caught.value.code == 1009

    # What came out, and beyond it what zlib needs and what it is working on, but nothing twice.
    assert most_held(explode) < limit + 600_000, "the bomb went off"
    assert sum(map(len, kept)) <= limit


def test_without_a_limit_everything_comes():
    payload = bytes(8 << 20)
    assert inflate(Deflate(), [Deflate().compress(payload)], None) == payload


# -- what is worth it, and what it costs -------------------------------------------------------------------------


def test_what_does_not_shrink_is_left_as_it_is():
    codec = Deflate(min_bytes=10)
    assert codec.shrink(b"a" * 9) is None
    assert inflate(Deflate(), [codec.shrink(b"a" * 10)]) == b"a" * 10
    assert codec.shrink(random.Random(3).randbytes(1000)) is None
    assert Deflate().shrink(b"") is None


def test_what_a_kept_context_holds_is_sent_even_if_longer():
    payload = random.Random(3).randbytes(1000)
    codec = Deflate(takeover=True, min_bytes=10)
    assert codec.shrink(b"a" * 9) is None
    first, second = codec.shrink(payload), codec.shrink(payload)
    assert len(first) > 1000
    assert len(second) < 100
    receiver = Deflate(inflate_takeover=True)
    assert [inflate(receiver, [sent]) for sent in (first, second)] == [payload] * 2


@pytest.mark.parametrize("bits", [9, 12, 15])
@pytest.mark.parametrize("size", [1, 249, 250, 251, 500, 5000, 32505, 32506, 32507, 100_000])
def test_a_window_that_fits_the_message_finds_what_the_largest_finds(size, bits, monkeypatch):
    monkeypatch.setattr(deflate, "fast", zlib)
    # Its end repeats its beginning, with nothing between that repeats.
    letters = base64.b64encode(random.Random(size).randbytes(size))
    payload = letters[: size - size // 5] + letters[: size // 5]
    compressor = zlib.compressobj(1, wbits=-bits)
    longest = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    compressed = Deflate(window_bits=bits).compress(payload)
    assert inflate(Deflate(inflate_bits=bits), cut(compressed, range(0, len(compressed), 100))) == payload
    assert len(compressed) + 4 < len(longest) * 1.02 + 10  # shorter blocks have more headers


def test_a_short_message_needs_a_small_compressor(monkeypatch):
    monkeypatch.setattr(deflate, "fast", zlib)
    payload = b"hello" * 20
    assert most_held(lambda: Deflate().compress(payload)) < 60_000
    assert most_held(lambda: Deflate().compress(bytes(100_000))) > 200_000


def test_a_codec_holds_nothing_before_its_first_message_and_without_takeover_nothing_after():
    message = Deflate().compress(b"hello" * 1000)
    for takeover, least, most in ((False, 0, 100), (True, 30_000, 60_000)):
        tracemalloc.start()
        try:
            codecs = [Deflate(takeover=takeover, inflate_takeover=takeover, inflate_bits=12) for _ in range(10)]
            assert tracemalloc.get_traced_memory()[0] < 10 * 500
            before = tracemalloc.get_traced_memory()[0]
            for codec in codecs:
                codec.compress(b"hello" * 1000)
                inflate(codec, [message[:10], message[10:]])
            held = (tracemalloc.get_traced_memory()[0] - before) / len(codecs)
        finally:
            tracemalloc.stop()
        assert least <= held < most


#: Repeats at every distance up to 40,000, and what does not repeat.
_LETTERS = base64.b64encode(random.Random(5).randbytes(30000))
JUMBLE = b"".join(
    _LETTERS[start : start + size]
    for start, size in zip(range(0, 39000, 13), random.Random(6).choices(range(3, 60), k=3000), strict=True)
)


# -- round trips -------------------------------------------------------------------------------------------------


@PROPERTY
@given(
    st.lists(st.binary(max_size=300) | st.sampled_from([b"", b"hello" * 500, bytes(40000), JUMBLE]), max_size=5),
    st.booleans(),
    st.integers(9, 15),
    st.lists(st.integers(0, 400), max_size=5),
    st.integers(0, 300),
    st.sampled_from([zlib, deflate.fast]),
)
def test_messages_survive_however_they_are_cut(payloads, takeover, bits, places, min_bytes, library):
    before, deflate.fast = deflate.fast, library
    try:
        messages_survive(payloads, takeover, bits, places, min_bytes)
    finally:
        deflate.fast = before


def messages_survive(payloads, takeover, bits, places, min_bytes):
    sender = Deflate(takeover=takeover, window_bits=bits, min_bytes=min_bytes)
    receiver = Deflate(inflate_takeover=takeover, inflate_bits=bits)
    for payload in payloads:
        compressed = sender.shrink(payload)
        if compressed is not None:
            assert inflate(receiver, cut(compressed, places), len(payload)) == payload
            assert takeover or len(compressed) < len(payload)
            assert len(payload) >= min_bytes


# -- negotiation -------------------------------------------------------------------------------------------------

NO_TAKEOVER = "; server_no_context_takeover; client_no_context_takeover"
PMD = "permessage-deflate"

# name, section, what the client offers, what our server answers, the window bits of (our, the client's) messages
OFFERS = [
    ("no parameters", "7.1", PMD, PMD + NO_TAKEOVER, (15, 15)),
    ("the server's takeover", "7.1.1.1", PMD + "; server_no_context_takeover", PMD + NO_TAKEOVER, (15, 15)),
    ("the client's takeover", "7.1.1.2", PMD + "; client_no_context_takeover", PMD + NO_TAKEOVER, (15, 15)),
    ("both takeovers", "7.1.1", PMD + NO_TAKEOVER, PMD + NO_TAKEOVER, (15, 15)),
    *(
        (
            f"the server's window of {bits} bits",
            "7.1.2.1",
            PMD + f"; server_max_window_bits={bits}",
            PMD + NO_TAKEOVER + f"; server_max_window_bits={bits}",
            (bits, 15),
        )
        for bits in (9, 12, 15)
    ),
    ("a server's window that zlib cannot make", "7.1.2.1", PMD + "; server_max_window_bits=8", None, None),
    ("the client can limit its window", "7.1.2.2", PMD + "; client_max_window_bits", PMD + NO_TAKEOVER, (15, 15)),
    *(
        (
            f"the client's window of {bits} bits",
            "7.1.2.2",
            PMD + f"; client_max_window_bits={bits}",
            PMD + NO_TAKEOVER + f"; client_max_window_bits={bits}",
            (15, bits),
        )
        for bits in (8, 9, 12, 15)
    ),
    (
        "everything",
        "7.1",
        PMD + NO_TAKEOVER + "; server_max_window_bits=10; client_max_window_bits=11",
        PMD + NO_TAKEOVER + "; server_max_window_bits=10; client_max_window_bits=11",
        (10, 11),
    ),
    (
        "a quoted value",
        "RFC 6455 9.1",
        PMD + '; server_max_window_bits="10"',
        PMD + NO_TAKEOVER + "; server_max_window_bits=10",
        (10, 15),
    ),
    ("the second offer can be taken", "5", f"{PMD}; server_max_window_bits=8, {PMD}", PMD + NO_TAKEOVER, (15, 15)),
    ("twice", "5", f"{PMD}, {PMD}", PMD + NO_TAKEOVER, (15, 15)),
    ("among others", "5", f"x-webkit-deflate-frame, {PMD}", PMD + NO_TAKEOVER, (15, 15)),
    ("others only", "5", "x-webkit-deflate-frame", None, None),
    ("an unknown parameter", "7.1", PMD + "; level=9", None, None),
    ("a parameter twice", "7.1", PMD + "; client_max_window_bits; client_max_window_bits", None, None),
    ("a value where none belongs", "7.1.1.1", PMD + "; server_no_context_takeover=1", None, None),
    ("a window too small", "7.1.2.1", PMD + "; server_max_window_bits=7", None, None),
    ("a window too large", "7.1.2.2", PMD + "; client_max_window_bits=16", None, None),
    ("a window without bits", "7.1.2.1", PMD + "; server_max_window_bits", None, None),
    ("a leading zero", "7.1.2.1", PMD + "; server_max_window_bits=09", None, None),
]


def answer(offer, options=DEFLATE):
    """Negotiate as a server, through `websockets`; return the response header and the codec's maker."""
    protocol = ServerProtocol(extensions=deflate.server_factories(options))
    response, extensions = protocol.process_extensions(Headers({"Sec-WebSocket-Extensions": offer}))
    return response, extensions


def far_apart(bits):
    """A payload in which a repetition needs a window of so many bits."""
    letters = base64.b64encode(random.Random(bits).randbytes(3 << bits >> 2))  # random bytes would not be compressed
    return letters[: 3 << bits >> 2] + letters[:40]


def inflate_bits(extensions):
    """Find out how far back a codec's inflater looks."""
    for bits in range(15, 7, -1):
        compressor = zlib.compressobj(wbits=-15)
        payload = compressor.compress(far_apart(bits)) + compressor.flush(zlib.Z_SYNC_FLUSH)
        try:
            # In pieces: what one call puts out, it can refer to without a window.
            inflate(deflate.negotiated(extensions, DEFLATE), cut(payload[:-4], range(0, len(payload), 100)))
        except ProtocolError:
            continue
        return bits
    raise AssertionError("not even 8 bits")


@pytest.mark.parametrize(
    ("offer", "response", "bits"), [row[2:] for row in OFFERS], ids=[f"{row[1]} {row[0]}" for row in OFFERS]
)
@pytest.mark.usefixtures("library")
def test_server_answers_an_offer(offer, response, bits):
    answered, extensions = answer(offer)
    assert answered == response
    codec = deflate.negotiated(extensions, DEFLATE)
    if response is None:
        assert codec is None
        return
    assert not codec.takeover
    assert not codec.inflate_takeover
    assert (codec.window_bits, inflate_bits(extensions)) == bits
    if bits[1] == 8:
        return  # a client made with zlib, such as the one that follows, cannot compress so
    # The other side of the same negotiation, by `websockets`.
    [(_, parameters)] = parse_extension(response)
    peer = ClientPerMessageDeflateFactory().process_response_params(parameters, [])
    exchange(codec, peer)


def exchange(codec, peer):
    """Send messages between a codec and an extension of `websockets`, both ways."""
    for payload in (b"", b"Hello", b"Hello", *(far_apart(bits) for bits in (9, 10, 12, 15)), b"Hello"):
        sent = peer.encode(Frame(Opcode.BINARY, payload))
        assert sent.rsv1
        assert inflate(codec, cut(bytes(sent.data), range(0, len(sent.data), 100))) == payload
        received = peer.decode(Frame(Opcode.BINARY, codec.compress(payload), rsv1=True))
        assert bytes(received.data) == payload


def test_what_a_client_offers():
    [factory] = deflate.client_factories(DEFLATE)
    offer = build_extension([(factory.name, factory.get_request_params())])
    # 7.1.2.2: without `client_max_window_bits` a server may not ask us for a smaller window.
    assert offer == PMD + NO_TAKEOVER + "; client_max_window_bits"


# name, section, what the server answers to that, the window bits of (our, the server's) messages
ANSWERS = [
    ("as offered", "7.1.1", PMD + NO_TAKEOVER, (15, 15)),
    ("the client's takeover is ours to give up", "7.1.1.2", PMD + "; server_no_context_takeover", (15, 15)),
    ("our window", "7.1.2.2", PMD + NO_TAKEOVER + "; client_max_window_bits=10", (10, 15)),
    ("its window", "7.1.2.1", PMD + NO_TAKEOVER + "; server_max_window_bits=9", (15, 9)),
    ("both windows", "7.1.2", PMD + NO_TAKEOVER + "; client_max_window_bits=9; server_max_window_bits=8", (9, 8)),
    ("none", "5", None, None),
    ("it keeps its context, which we said we would not", "7.1.1.1", PMD, NegotiationError),
    ("8 bits for us, too few for zlib", "7.1.2.2", PMD + NO_TAKEOVER + "; client_max_window_bits=8", (8, 15)),
    ("an extension that was not offered", "5", "x-webkit-deflate-frame", NegotiationError),
    ("twice", "5", f"{PMD + NO_TAKEOVER}, {PMD + NO_TAKEOVER}", NegotiationError),
]


@pytest.mark.parametrize(
    ("response", "bits"), [row[2:] for row in ANSWERS], ids=[f"{row[1]} {row[0]}" for row in ANSWERS]
)
def test_client_reads_an_answer(response, bits):
    protocol = ClientProtocol(parse_uri("ws://localhost/"), extensions=deflate.client_factories(DEFLATE))
    headers = Headers({"Sec-WebSocket-Extensions": response} if response else {})
    if bits is NegotiationError:
        with pytest.raises(NegotiationError):
            protocol.process_extensions(headers)
        return
    extensions = protocol.process_extensions(headers)
    codec = deflate.negotiated(extensions, DEFLATE)
    if bits is None:
        assert codec is None
        return
    assert not codec.takeover
    assert not codec.inflate_takeover
    assert (codec.window_bits, inflate_bits(extensions)) == bits
    if bits[0] == 8:  # taken, and nothing is compressed
        assert codec.shrink(bytes(5000)) is None
        return
    if bits[1] > 8:  # zlib cannot compress for a window of 8 bits
        exchange(codec, PerMessageDeflate(True, True, bits[0], bits[1]))


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_each_direction_keeps_its_context_by_itself(ours, theirs):
    extension = PerMessageDeflate(not theirs, not ours, 12, 11)
    codec = deflate.negotiated([object(), extension], DEFLATE)
    assert (codec.takeover, codec.inflate_takeover, codec.window_bits) == (ours, theirs, 11)
    exchange(codec, PerMessageDeflate(not ours, not theirs, 11, 12))


# -- negotiation, where contexts may be kept ---------------------------------------------------------------------

TAKEOVER = Options(compression="deflate", compression_takeover=True)

# name, section, what the client offers, what our server answers, (our takeover, theirs, our window bits, theirs)
TAKEOVER_OFFERS = [
    ("no parameters", "7.1", PMD, PMD + "; server_max_window_bits=12", (True, True, 12, 15)),
    (
        "as browsers offer it",
        "7.1.2.2",
        PMD + "; client_max_window_bits",
        PMD + "; server_max_window_bits=12; client_max_window_bits=12",
        (True, True, 12, 12),
    ),
    (
        "not ours",
        "7.1.1.1",
        PMD + "; server_no_context_takeover",
        PMD + "; server_no_context_takeover; server_max_window_bits=12",
        (False, True, 12, 15),
    ),
    (
        "not theirs",
        "7.1.1.2",
        PMD + "; client_no_context_takeover",
        PMD + "; client_no_context_takeover; server_max_window_bits=12",
        (True, False, 12, 15),
    ),
    ("neither", "7.1.1", PMD + NO_TAKEOVER, PMD + NO_TAKEOVER + "; server_max_window_bits=12", (False, False, 12, 15)),
    (
        "smaller windows",
        "7.1.2",
        PMD + "; server_max_window_bits=9; client_max_window_bits=8",
        PMD + "; server_max_window_bits=9; client_max_window_bits=8",
        (True, True, 9, 8),
    ),
    (
        "larger windows",
        "7.1.2",
        PMD + "; server_max_window_bits=15; client_max_window_bits=15",
        PMD + "; server_max_window_bits=12; client_max_window_bits=12",
        (True, True, 12, 12),
    ),
    ("a server's window that zlib cannot make", "7.1.2.1", PMD + "; server_max_window_bits=8", None, None),
    ("an unknown parameter", "7.1", PMD + "; level=9", None, None),
    (
        "the second offer can be taken",
        "5",
        f"{PMD}; level=9, {PMD}",
        PMD + "; server_max_window_bits=12",
        (True, True, 12, 15),
    ),
]


@pytest.mark.parametrize(
    ("offer", "response", "outcome"), [row[2:] for row in TAKEOVER_OFFERS], ids=[row[0] for row in TAKEOVER_OFFERS]
)
def test_server_answers_an_offer_where_contexts_may_be_kept(offer, response, outcome):
    answered, extensions = answer(offer, TAKEOVER)
    assert answered == response
    codec = deflate.negotiated(extensions, TAKEOVER)
    if outcome is None:
        assert codec is None
        return
    assert (codec.takeover, codec.inflate_takeover, codec.window_bits, inflate_bits(extensions)) == outcome
    if outcome[3] > 8:
        [(_, parameters)] = parse_extension(response)
        exchange(codec, ClientPerMessageDeflateFactory().process_response_params(parameters, []))


# what the server answers, (our takeover, theirs, our window bits, theirs)
TAKEOVER_ANSWERS = [
    (PMD, (True, True, 15, 15)),
    (PMD + NO_TAKEOVER, (False, False, 15, 15)),
    (PMD + "; server_no_context_takeover", (True, False, 15, 15)),
    (PMD + "; client_no_context_takeover", (False, True, 15, 15)),
    (PMD + "; server_max_window_bits=12; client_max_window_bits=11", (True, True, 11, 12)),
    (PMD + "; server_max_window_bits=15; client_max_window_bits=15", (True, True, 15, 15)),
    (PMD + "; client_max_window_bits=7", NegotiationError),
    (PMD + "; level=9", NegotiationError),
]


@pytest.mark.parametrize(("response", "outcome"), TAKEOVER_ANSWERS)
def test_client_reads_an_answer_where_contexts_may_be_kept(response, outcome):
    [factory] = deflate.client_factories(TAKEOVER)
    assert build_extension([(factory.name, factory.get_request_params())]) == PMD + "; client_max_window_bits"
    protocol = ClientProtocol(parse_uri("ws://localhost/"), extensions=[factory])
    headers = Headers({"Sec-WebSocket-Extensions": response})
    if outcome is NegotiationError:
        with pytest.raises(NegotiationError):
            protocol.process_extensions(headers)
        return
    extensions = protocol.process_extensions(headers)
    codec = deflate.negotiated(extensions, TAKEOVER)
    assert (codec.takeover, codec.inflate_takeover, codec.window_bits, inflate_bits(extensions)) == outcome
    exchange(codec, PerMessageDeflate(not outcome[0], not outcome[1], outcome[2], outcome[3]))


def test_nothing_is_offered_or_taken_without_the_option():
    assert deflate.server_factories(Options()) is None
    assert deflate.client_factories(Options()) is None


def test_the_threshold_goes_into_the_codec():
    _, extensions = answer(PMD)
    assert deflate.negotiated(extensions, DEFLATE).min_bytes == DEFLATE.compression_min_bytes
    assert deflate.negotiated(extensions, Options(compression_min_bytes=7)).min_bytes == 7


def test_no_extension_no_codec():
    assert deflate.negotiated([], DEFLATE) is None
    assert deflate.negotiated([object()], DEFLATE) is None

"""Frames written and parsed by hand, and ways to feed them to a protocol: what the tests without sockets share.

Nothing here uses the code under test, so that a mistake in it cannot hide on both sides of a comparison.
"""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: The masking key of the examples in RFC 6455 section 5.7.
MASK = b"\x37\xfa\x21\x3d"

#: For properties: the machines are slow at times, and how long an example takes says nothing about it.
PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def mask(payload, key):
    """RFC 6455 section 5.3: octet i is XORed with octet i modulo 4 of the key."""
    keys = key * (len(payload) // 4) + key[: len(payload) % 4]
    return (int.from_bytes(payload) ^ int.from_bytes(keys)).to_bytes(len(payload))


def header(first, length, masked=False):
    """RFC 6455 section 5.2, without the key."""
    bit = 0x80 if masked else 0
    if length <= 125:
        return bytes([first, bit | length])
    if length <= 0xFFFF:
        return bytes([first, bit | 126]) + length.to_bytes(2, "big")
    return bytes([first, bit | 127]) + length.to_bytes(8, "big")


def frame(first, payload=b"", key=MASK):
    """A frame as a client sends it, or as a server does where `key` is `None`."""
    if key is None:
        return header(first, len(payload)) + payload
    return header(first, len(payload), masked=True) + key + mask(payload, key)


def unframe(data):
    """Take a string of whole frames apart into (first byte, whether masked, payload) of each."""
    data = bytes(data)
    found = []
    while data:
        first, second = data[:2]
        length, data = second & 0x7F, data[2:]
        if length > 125:
            size = 2 if length == 126 else 8
            length, data = int.from_bytes(data[:size], "big"), data[size:]
        key = b""
        if second & 0x80:
            key, data = data[:4], data[4:]
            assert len(key) == 4, "a frame is cut"
        payload, data = data[:length], data[length:]
        assert len(payload) == length, "a frame is cut"
        found.append((first, bool(key), mask(payload, key) if key else payload))
    return found


def one_at_a_time(data):
    """Cut bytes into pieces of one."""
    return [data[i : i + 1] for i in range(len(data))]


def cut(data, places):
    """Cut bytes at the given places."""
    edges = [0, *sorted(place for place in places if place <= len(data)), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def feed(protocol, pieces):
    """Give a `Protocol` one piece after another, all that it has left over included; return the messages."""
    messages = []
    for piece in pieces:
        messages += protocol.receive(piece)
        while protocol.more:
            messages += protocol.receive(b"")
    return messages


def outcome(protocol, pieces):
    """Feed a `Protocol`, and return all its visible results, masks taken off."""
    messages, pongs = [], []
    for piece in pieces:
        messages += protocol.receive(piece)
        pongs += protocol.pongs
        while protocol.more:
            messages += protocol.receive(b"")
            pongs += protocol.pongs
    failure = protocol.failure and (protocol.failure.code, protocol.failure.reason)
    return {
        "messages": messages,
        "pongs": pongs,
        "output": unframe(protocol.output),
        "pong": unframe(protocol.pong),
        "failure": failure,
        "state": protocol.state,
        "close": (protocol.close_code, protocol.close_reason),
    }


keys = st.binary(min_size=4, max_size=4)
#: Short ones mostly, and some on both sides of the lengths at which a header grows.
payloads = st.binary(max_size=40) | st.sampled_from([bytes(size) for size in (125, 126, 127, 65535, 65536)])
texts = st.text(max_size=40) | st.sampled_from(["\u00e9" * 63, "\U0001f600" * 32, "x" * 126])


@st.composite
def conversations(draw, *, masked):
    """A string of valid frames: (bytes, the messages in it, the answers to it).

    Messages come in fragments cut anywhere, even inside a character, with control frames between them; a close frame
    may come, and then anything behind it, to be discarded.
    """
    wire, messages, answers = b"", [], []

    def send(first, payload=b""):
        nonlocal wire
        wire += frame(first, payload, draw(keys) if masked else None)

    def send_control():
        opcode = draw(st.sampled_from([0x89, 0x8A]))
        payload = draw(st.binary(max_size=125))
        send(opcode, payload)
        if opcode == 0x89:
            answers.append((0x8A, payload))

    for kind in draw(st.lists(st.sampled_from(["text", "binary", "control"]), max_size=6)):
        if kind == "control":
            send_control()
            continue
        opcode = 1 if kind == "text" else 2
        payload = draw(texts).encode() if kind == "text" else draw(payloads)
        fragments = cut(payload, draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        for number, fragment in enumerate(fragments):
            last = number == len(fragments) - 1
            send((0x80 if last else 0) | (0 if number else opcode), fragment)
            if not last and draw(st.booleans()):
                send_control()
        messages.append((opcode, payload))
    if draw(st.booleans()):
        code = draw(st.sampled_from([b"", b"\x03\xe8", b"\x03\xe9", b"\x0b\xb8"]))
        send(0x88, code + draw(st.text(max_size=20)).encode() if code else b"")
        answers.append((0x88, code))
        wire += draw(st.binary(max_size=20))
    return wire, messages, answers

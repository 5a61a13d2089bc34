"""Coverage-guided fuzzing of the frame parser and the protocol, with atheris.

usage: fuzz_protocol.py [libFuzzer options] [CORPUS]      e.g.  -runs=1000000 -max_len=512

The first bytes of an input choose the role, the limits, the extension and how the rest is cut; the rest is what the
peer sends. What must hold for every input:

1. Nothing is raised. (`ProtocolError` never leaves `receive`.)
2. Whole, in two parts, or one byte at a time, the same messages, output and failure come out. (Which failure it is may
   differ in one case that the protocol's docstring names.)
3. A message is never longer than the limit, and a text is valid UTF-8.
4. What is held is bounded: the pieces of the message that has begun are no more than the limit, and `_rest` is no more
   than one control frame, or the bytes of the last call where `more` says so.
5. After the end (a close frame, a failure) nothing comes out any more.
6. A close frame is sent at most once, and is the last thing sent.
7. What came out, and the input itself, survives the way back: encoded for the peer, compressed in any way that can be
   negotiated or not at all, and read by it.
"""

import sys

import atheris

with atheris.instrument_imports(include=["gowsev"]):
    from gowsev.wire import frames
    from gowsev.wire.deflate import Deflate
    from gowsev.wire.encoder import Encoder, MaskingEncoder
    from gowsev.wire.protocol import DONE, Protocol

LIMITS = (0, 1, 125, 1000)
#: The bytes that are fed one at a time; the rest of a longer input follows at once, for speed.
_MOST_SINGLE = 100
_MOST_CONTROL_FRAME = 14 + 125


def feed(protocol, parts, limit):
    """Give the parts to a protocol; return the messages, with the invariants of each step checked."""
    messages = []
    for part in parts:
        was_done = protocol.state == DONE
        got = list(protocol.receive(part))
        while protocol.more:
            got += protocol.receive(b"")
        assert not (was_done and got), "a message after the end"
        messages += got
        assert sum(map(len, protocol._pieces)) <= limit, "held more than the limit"
        assert len(protocol._rest) <= _MOST_CONTROL_FRAME, f"held {len(protocol._rest)} of {len(part)} bytes"
    for opcode, payload in messages:
        assert len(payload) <= limit, "a message longer than the limit"
        if opcode == frames.TEXT:
            payload.decode()
        else:
            assert opcode == frames.BINARY
    return messages


def sent(protocol):
    """Return what the protocol sent, as (opcode, payload) pairs: masking keys are random."""
    output, found, position = bytes(protocol.output), [], 0
    while position < len(output):
        header = frames.parse_header(output, position, len(output))
        start = position + header.size
        position = start + header.length
        payload = output[start:position]
        found.append((header.first & 0x0F, frames.apply_mask(payload, header.mask) if header.mask else payload))
    closes = [index for index, (opcode, _) in enumerate(found) if opcode == frames.CLOSE]
    assert closes in ([], [len(found) - 1]), "a close frame that is not the last"
    return found


def send_back(messages, client, takeover, bits, min_bytes):
    """Encode messages for the peer, and check what it reads."""
    deflate = Deflate(takeover=takeover, window_bits=bits, min_bytes=min_bytes)
    encoder = MaskingEncoder(deflate) if client else Encoder(deflate)
    wires = [
        encoder.encode(opcode, payload) or b"".join(encoder.encode_large(opcode, payload))
        for opcode, payload in messages
    ]
    longest = max(len(payload) for _, payload in messages)
    deflate = Deflate(inflate_takeover=takeover, inflate_bits=bits)
    peer = Protocol(client=not client, max_message_bytes=longest, deflate=deflate)
    assert feed(peer, wires, longest) == messages, "what was sent is not what was read"


def run(data):
    if len(data) < 3:
        return
    choice, cut, data = data[0], data[1] | data[2] << 8, data[3:]
    limit = LIMITS[choice & 3]
    client = bool(choice & 4)
    compressed = bool(choice & 8)
    closing = bool(choice & 16)
    takeover = bool(choice & 32)
    bits = 9 if choice & 64 else 15
    cut = cut % (len(data) + 1)
    outcomes = []
    single = [data[i : i + 1] for i in range(min(len(data), _MOST_SINGLE))] + [data[_MOST_SINGLE:]]
    for parts in ([data], [data[:cut], data[cut:]], single):
        deflate = Deflate(inflate_takeover=takeover, inflate_bits=bits) if compressed else None
        protocol = Protocol(client=client, max_message_bytes=limit, deflate=deflate)
        if closing:
            protocol.close(1001, "")
        messages = feed(protocol, parts, limit)
        assert not feed(protocol, [b"\x82\x00", b"\x82\x80abcd"] if protocol.state == DONE else [], limit)
        found = sent(protocol)
        failed = protocol.failure is not None
        if failed and compressed:
            found = [frame for frame in found if frame[0] != frames.CLOSE]
        else:
            failed = str(protocol.failure)
        outcomes.append((messages, found, failed, protocol.state, protocol.close_code, protocol.close_reason))
    assert outcomes[0] == outcomes[1] == outcomes[2], outcomes
    if compressed:
        send_back([*outcomes[0][0], (frames.BINARY, data)] * 2, client, takeover, bits, min_bytes=cut & 0x3F)


def main():
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

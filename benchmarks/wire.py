"""The driver's side of the wire: requests, frames, and the check of what comes back.

Nothing here knows gowsev, as the judge should share no code with the judged. Every byte of every reply is looked at, at
the price of one comparison for what one receive brought, as long as the peer sends plain messages only. Messages differ
from each other, so one that is lost, doubled, changed, or comes too early is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import zlib

BINARY, CLOSE, PING, PONG = 0x82, 0x88, 0x89, 0x8A
COMPRESSED = 0x40
#: The key of RFC 6455's example. What the server makes of it is checked.
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
#: The bytes that are received at once, at most.
RECEIVE = 256 << 10
#: The window that the driver compresses with, as a power of 2. It holds the driver's messages; websockets asks for it.
WINDOW_BITS = 12


class WireError(Exception):
    """A server did not do what it should: its figure is worth nothing."""


def request(port, deflate=False, path="/"):
    """Return the opening handshake of a client, with the offer that browsers make if it is to be compressed."""
    extensions = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" if deflate else b""
    return (
        b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n" % (path.encode(), port, KEY, extensions)
    )


def check_response(head, deflate=False):
    """Check a server's answer; return whether its messages are compressed each by itself.

    Raises:
        WireError: it is not the upgrade that was asked for.
    """
    if not head.startswith(b"HTTP/1.1 101 ") or not re.search(
        rb"(?i:\nSec-WebSocket-Accept:) *%b\r" % re.escape(ACCEPT), head
    ):
        raise WireError(f"no upgrade: {head[:200]!r}")
    extensions = b" ".join(re.findall(rb"\nSec-WebSocket-Extensions:([^\r]*)", head, re.I))
    if deflate != (b"permessage-deflate" in extensions):
        raise WireError(f"compression should be {'on' if deflate else 'off'}, but was answered with {extensions!r}")
    bits = re.search(rb"client_max_window_bits=(\d+)", extensions)
    if bits and int(bits[1]) < WINDOW_BITS:
        raise WireError(f"a window of 2^{WINDOW_BITS} bytes is too large: {extensions!r}")
    return b"server_no_context_takeover" in extensions


def frame(payload, first=BINARY, masked=True):
    """Return one final frame; the mask of a client is made up."""
    length, mark = len(payload), 0x80 if masked else 0
    if length < 126:
        header = bytes((first, mark | length))
    elif length < 1 << 16:
        header = bytes((first, mark | 126)) + length.to_bytes(2)
    else:
        header = bytes((first, mark | 127)) + length.to_bytes(8)
    if not masked:
        return header + payload
    mask = random.randbytes(4)
    repeated = (mask * (length // 4 + 1))[:length]
    unmasked, key = int.from_bytes(payload), int.from_bytes(repeated)
    return header + mask + (unmasked ^ key).to_bytes(length)


def compress(payload):
    """Return a message as permessage-deflate sends it, looking at no message before it."""
    compressor = zlib.compressobj(wbits=-WINDOW_BITS)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def messages(number, size):
    """Return different messages of this size."""
    return [(b"%06d " % i + b"abcdefghijklmnopqrstuvwxyz" * (size // 26 + 1))[:size] for i in range(number)]


def documents(number, size):
    """Return different JSON documents of about this size, as compressible as those of real programs tend to be."""
    made_up, made = random.Random(1), []
    for i in range(number):
        rows = []
        while len(text := json.dumps({"sequence": i, "prices": rows})) < size:
            symbol = "".join(made_up.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=4))
            price = round(made_up.uniform(1, 1000), 2)
            rows.append(
                {"symbol": symbol, "bid": price, "ask": round(price * 1.01, 2), "time": made_up.getrandbits(32)}
            )
        made.append(text.encode())
    return made


class Replies:
    """The messages that a connection must get, in this order, again and again, each as one plain frame of one size."""

    def __init__(self, expected):
        frames = [frame(message, masked=False) for message in expected]
        self.size = len(frames[0])
        self.period = self.size * len(frames)
        # What one receive brings is one piece of this, wherever in the period it begins.
        self.stream = b"".join(frames) * (RECEIVE // self.period + 2)

    def reader(self, start, pong, alone):
        return Reader(self, start, pong)


class Reader:
    """How far one connection is in its replies."""

    def __init__(self, replies, start, pong):
        self.stream, self.period, self.size = replies.stream, replies.period, replies.size
        self.position = start * self.size % self.period
        self.held = b""  # of a control frame that is not whole yet
        self.pong = pong

    def then(self, replies):
        """Return the reader of the same connection for other replies, from their beginning."""
        return replies.reader(0, self.pong, alone=True)

    def take(self, data):
        """Check what was received; return how many replies it completes.

        Raises:
            WireError: it is not what must come.
        """
        position = self.position
        if self.held or not self.stream.startswith(data, position):
            return self._with_control_frames(self.held + data)
        end = position + len(data)
        self.position = end % self.period
        return end // self.size - position // self.size

    def _with_control_frames(self, data):
        """The same, where control frames stand between the replies."""
        completed, at, self.held = 0, 0, b""
        while at < len(data):
            inside = self.position % self.size
            if not inside and data[at] & 0x08:
                end = at + 2 + data[at + 1] if len(data) > at + 1 else len(data) + 1
                if end > len(data):
                    self.held = data[at:]
                    break
                answer_control(data[at], data[at + 2 : end], self.pong)
            else:
                end = min(at + self.size - inside, len(data))
                if not self.stream.startswith(data[at:end], self.position):
                    raise WireError(f"wrong at byte {inside} of a reply: {data[at : at + 40]!r}")
                completed += inside + end - at == self.size
                self.position = (self.position + end - at) % self.period
            at = end
        return completed


def whole_frames(data):
    """Return the first byte and the payload of each whole frame of a server, and what is left behind them."""
    frames, at = [], 0
    while len(data) - at >= 2:
        length, start = data[at + 1], at + 2
        if length >= 126:
            start += 2 if length == 126 else 8
            length = int.from_bytes(data[at + 2 : start])
        if len(data) < start + length:
            break
        frames.append((data[at], data[start : start + length]))
        at = start + length
    return frames, data[at:]


def answer_control(first, payload, pong):
    """Answer a ping by calling `pong` with its payload; a close is an error, as nothing should end."""
    if first == PING:
        pong(payload)
    elif first != PONG:
        raise WireError(f"the server closed: {first:#x} {payload!r}")


class CompressedReplies:
    """The same, compressed."""

    def __init__(self, expected):
        self.expected = expected
        self.seen = {}  # what a compressed payload was found to be; only of those that stand by themselves

    def reader(self, start, pong, alone):
        return CompressedReader(self, start, pong, alone)


class CompressedReader:
    """How far one connection is in its compressed replies."""

    def __init__(self, replies, start, pong, alone):
        self.expected, self.seen, self.pong = replies.expected, replies.seen, pong
        self.position = start % len(self.expected)
        self.held = b""
        # The server may refer to earlier messages of the connection, unless it has said that it will not.
        self.inflater = None if alone else zlib.decompressobj(wbits=-15)

    def then(self, replies):
        """As that of `Reader`; what may be referred to stays."""
        self.expected, self.position = replies.expected, 0
        return self

    def take(self, data):
        """As that of `Reader`."""
        completed = 0
        frames, self.held = whole_frames(self.held + data)
        for first, payload in frames:
            if first & 0x08:
                answer_control(first, payload, self.pong)
                continue
            message = self._inflate(payload) if first == BINARY | COMPRESSED else payload if first == BINARY else None
            if message != self.expected[self.position]:
                raise WireError(f"a wrong reply: {first:#x} {message[:40] if message else message!r}")
            self.position = (self.position + 1) % len(self.expected)
            completed += 1
        return completed

    def _inflate(self, payload):
        if self.inflater is not None:
            return self.inflater.decompress(payload + b"\x00\x00\xff\xff")
        if payload not in self.seen:
            self.seen[payload] = zlib.decompressobj(wbits=-15).decompress(payload + b"\x00\x00\xff\xff")
        return self.seen[payload]

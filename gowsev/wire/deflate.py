"""RFC 7692, permessage-deflate: from negotiated parameters to a codec of message payloads.

The negotiation itself is the `websockets` library's; this module turns its outcome into `Deflate`, which inflates
the peer's messages piece by piece without ever holding more than a limit, and compresses ours where that makes them
shorter. It knows frames only through the payloads it is given.

By default no side keeps its context from one message to the next, so that a compressed message serves every receiver
with the same parameters, and a connection holds nothing between messages. docs/compression.md has the figures behind
the numbers below.
"""

from __future__ import annotations

import sys
import zlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)

from gowsev.errors import ProtocolError
from gowsev.wire.frames import INVALID_DATA, TOO_BIG, Buffer

fast: ModuleType = zlib
try:
    from isal import isal_zlib
except ImportError:  # pragma: no cover - an extra: two to three times as fast for long messages, else alike
    pass
else:
    fast = isal_zlib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from websockets.extensions import Extension

    from gowsev.options import Options

__all__ = ["Deflate", "client_factories", "negotiated", "server_factories"]

#: RFC 7692 section 7.2.1: what a sender strips from the end of a message, and a receiver appends.
_TAIL = b"\x00\x00\xff\xff"

#: Section 7.2.3.6: an empty message, compressed.
_EMPTY = b"\x00"

#: Section 7.2.3.4 lets a message hold final blocks, each of which ends zlib's stream and needs a new inflater. Two
#: bytes make one, so that a message of nothing else would be more work than its bytes are worth.
_MOST_FINAL_BLOCKS = 256

#: Inflate this many bytes at a time: what zlib returns it has gathered in buffers as long, so that a message would
#: else be held twice over.
_PART = 1 << 17

#: zlib's level for messages that stand by themselves: more than twice as fast as its default, 6, for long ones, which
#: become a quarter longer, and much the same for short ones. Where a context is kept, it is for the sake of the ratio.
_LEVEL, _TAKEOVER_LEVEL = 1, 6

#: From this length on `isal` is the faster one, where it is installed.
_FAST_BYTES = 512

#: The window of a context that is kept: 4 KB, for which zlib takes 38 KB to compress and 13 KB to inflate. Its largest
#: window would take 260 KB and 44 KB, and save a tenth to a seventh of what is sent.
_TAKEOVER_BITS = 12

#: What zlib needs of a window beyond the message, to refer to the message's first byte from its last.
_LOOKAHEAD = 262

#: The library makes a compressor of its own for a context that is kept, which nobody uses: a small one.
_UNUSED = {"memLevel": 1}


class Deflate:
    """The codec of one connection.

    Neither side keeps its compression context from one message to the next unless the parameters say so. The
    compressor is made on first use, and the inflater exists only while a message is being read, or from the first one
    on where the peer keeps its context.

    Args:
        takeover: our messages refer to earlier ones.
        window_bits: how far back ours may refer, 9 to 15.
        inflate_takeover: the peer's messages refer to earlier ones.
        inflate_bits: how far back the peer's may refer, 8 to 15.
        min_bytes: `shrink` leaves a shorter message as it is.
    """

    __slots__ = (
        "_compressor",
        "_final_blocks",
        "_inflate_bits",
        "_inflater",
        "inflate_takeover",
        "min_bytes",
        "takeover",
        "window_bits",
    )

    def __init__(
        self,
        *,
        takeover: bool = False,
        window_bits: int = 15,
        inflate_takeover: bool = False,
        inflate_bits: int = 15,
        min_bytes: int = 0,
    ) -> None:
        self.takeover = takeover
        self.window_bits = window_bits
        self.inflate_takeover = inflate_takeover
        self.min_bytes = min_bytes
        self._inflate_bits = inflate_bits
        self._inflater: zlib._Decompress | None = None
        self._final_blocks = 0
        self._compressor: Any = None

    def shrink(self, payload: bytes) -> bytes | None:
        """Compress one message's payload; `None` if it had better be sent as it is (RFC 7692 section 6)."""
        if len(payload) < self.min_bytes:
            return None
        compressed = self.compress(payload)
        # Once it is in the context that the peer keeps too, it must be sent.
        return compressed if self.takeover or len(compressed) < len(payload) else None

    def compress(self, payload: bytes) -> bytes:
        """Compress one message's payload (RFC 7692 section 7.2.1)."""
        compressor = self._compressor or self._new_compressor(len(payload))
        compressed: bytes = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return compressed[: -len(_TAIL)]

    def begin(self) -> Any:
        """Return the compressor of a message in pieces, which `end` is called with at last; no other may come between.

        Its `compress` returns what is ready of what it was given, perhaps nothing.
        """
        return self._compressor or self._new_compressor(1 << 15)

    def end(self, compressor: Any) -> bytes:
        """Return the last compressed bytes of a message in pieces."""
        rest: bytes = compressor.flush(zlib.Z_SYNC_FLUSH)
        # Of an empty message in a context that is kept, zlib has nothing to flush.
        return rest[: -len(_TAIL)] or _EMPTY

    def _new_compressor(self, size: int) -> Any:
        if self.takeover:
            bits = min(self.window_bits, _TAKEOVER_BITS)
            self._compressor = zlib.compressobj(_TAKEOVER_LEVEL, wbits=-bits, memLevel=bits - 7)
            return self._compressor
        # A window that just holds the message compresses it as well as a larger one. zlib clears its memory first:
        # 15 us for its largest window, more than compressing a short message takes.
        bits = min(15, max(9, (size + _LOOKAHEAD).bit_length()))
        library = zlib if size < _FAST_BYTES else fast
        return library.compressobj(_LEVEL, wbits=-min(bits, self.window_bits), memLevel=bits - 7)

    def inflate(self, piece: Buffer, limit: int | None) -> Iterator[bytes]:
        """Inflate a piece of a message, part by part.

        Args:
            piece: the next bytes of the message's payload, as they were sent.
            limit: the most bytes that may come out; `None` for any number.

        Raises:
            ProtocolError: 1009 when more than `limit` would come out, 1007 when the data is no DEFLATE stream.
        """
        while piece:
            if self._inflater is None:
                self._inflater = zlib.decompressobj(wbits=-self._inflate_bits)
            inflater = self._inflater
            try:
                part = inflater.decompress(piece, _PART if limit is None else min(_PART, limit + 1))
            except zlib.error as error:
                raise ProtocolError(INVALID_DATA, f"invalid compressed data: {error}") from None
            if limit is not None:
                limit -= len(part)
                if limit < 0:
                    raise ProtocolError(TOO_BIG, "compressed message too long")
            if part:
                yield part
            piece = inflater.unconsumed_tail
            if inflater.eof:
                piece = inflater.unused_data
                self._inflater = None
                self._final_blocks += 1
                if self._final_blocks > _MOST_FINAL_BLOCKS:
                    raise ProtocolError(INVALID_DATA, f"more than {_MOST_FINAL_BLOCKS} final blocks in a message")

    def finish(self, limit: int | None) -> bytes:
        """Return what is left of the message whose last piece has been inflated."""
        # Behind a final block nothing is left, and a new inflater would take the tail for the beginning of a block.
        inflated = b"".join(self.inflate(_TAIL, limit)) if self._inflater is not None else b""
        self._final_blocks = 0
        if not self.inflate_takeover:
            self._inflater = None
        return inflated


def server_factories(options: Options) -> list[ServerPerMessageDeflateFactory] | None:
    """Make the extension list for `ServerProtocol`: whether contexts are taken over, and then how large they are."""
    if options.compression is None:
        return None
    if options.compression_takeover:
        return [
            ServerPerMessageDeflateFactory(
                server_max_window_bits=_TAKEOVER_BITS,
                client_max_window_bits=_TAKEOVER_BITS,
                compress_settings=_UNUSED,
            )
        ]
    return [ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)]


class _ClientFactory(ClientPerMessageDeflateFactory):
    """Takes a server's `client_max_window_bits=8` too, which zlib cannot keep to: it gets nothing compressed."""

    def process_response_params(self, params: Any, accepted_extensions: Any) -> PerMessageDeflate:
        smallest = ("client_max_window_bits", "8")
        if smallest not in params:
            return super().process_response_params(params, accepted_extensions)
        others = [("client_max_window_bits", "9") if pair == smallest else pair for pair in params]
        extension = super().process_response_params(others, accepted_extensions)
        extension.local_max_window_bits = 8
        return extension


def client_factories(options: Options) -> list[ClientPerMessageDeflateFactory] | None:
    """Make the extension list for `ClientProtocol`: the same wishes; `client_max_window_bits` tells that we obey it."""
    if options.compression is None:
        return None
    if options.compression_takeover:
        return [_ClientFactory(client_max_window_bits=True, compress_settings=_UNUSED)]
    return [
        _ClientFactory(server_no_context_takeover=True, client_no_context_takeover=True, client_max_window_bits=True)
    ]


def negotiated(extensions: Sequence[Extension], options: Options) -> Deflate | None:
    """Make the codec of the negotiated extensions; `None` where permessage-deflate is not among them."""
    for extension in extensions:
        if isinstance(extension, PerMessageDeflate):
            return Deflate(
                takeover=not extension.local_no_context_takeover,
                window_bits=extension.local_max_window_bits,
                inflate_takeover=not extension.remote_no_context_takeover,
                inflate_bits=extension.remote_max_window_bits,
                min_bytes=options.compression_min_bytes if extension.local_max_window_bits > 8 else sys.maxsize,
            )
    return None

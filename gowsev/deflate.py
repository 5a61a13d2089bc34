"""RFC 7692, permessage-deflate: from negotiated parameters to a codec of message payloads.

The negotiation itself is the `websockets` library's; this module turns its outcome into `Deflate`, which inflates
the peer's messages piece by piece without ever holding more than a limit, and compresses ours. It knows frames only
through the payloads it is given.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)

from gowsev.errors import ProtocolError
from gowsev.frames import INVALID_DATA, TOO_BIG, Buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.extensions import Extension

__all__ = ["Deflate", "client_factories", "negotiated", "server_factories"]

#: RFC 7692 section 7.2.1: what a sender strips from the end of a message, and a receiver appends.
_TAIL = b"\x00\x00\xff\xff"

#: Section 7.2.3.4 lets a message hold final blocks, each of which ends zlib's stream and needs a new inflater. Two
#: bytes make one, so that a message of nothing else would be more work than its bytes are worth.
_MOST_FINAL_BLOCKS = 256


class Deflate:
    """The codec of one connection.

    Neither side keeps its compression context from one message to the next unless the parameters say so, and the
    inflater exists only while a message is being read.
    """

    __slots__ = (
        "_compressor",
        "_final_blocks",
        "_inflate_bits",
        "_inflater",
        "inflate_takeover",
        "takeover",
        "window_bits",
    )

    def __init__(
        self, *, takeover: bool = False, window_bits: int = 15, inflate_takeover: bool = False, inflate_bits: int = 15
    ) -> None:
        self.takeover = takeover
        self.window_bits = window_bits
        self.inflate_takeover = inflate_takeover
        self._inflate_bits = inflate_bits
        self._inflater: zlib._Decompress | None = None
        self._final_blocks = 0
        self._compressor: zlib._Compress | None = None

    def compress(self, payload: bytes) -> bytes:
        """Compress one message's payload (RFC 7692 section 7.2.1)."""
        compressor = self._compressor or zlib.compressobj(wbits=-self.window_bits)
        if self.takeover:
            self._compressor = compressor
        return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]

    def inflate(self, piece: Buffer, limit: int | None) -> bytes:
        """Inflate a piece of a message.

        Args:
            piece: the next bytes of the message's payload, as they were sent.
            limit: the most bytes that may come out; `None` for any number.

        Raises:
            ProtocolError: 1009 when more than `limit` would come out, 1007 when the data is no DEFLATE stream.
        """
        inflated = b""
        while piece:
            if self._inflater is None:
                self._inflater = zlib.decompressobj(wbits=-self._inflate_bits)
            inflater = self._inflater
            try:
                inflated += inflater.decompress(piece, 0 if limit is None else limit + 1 - len(inflated))
            except zlib.error as error:
                raise ProtocolError(INVALID_DATA, f"invalid compressed data: {error}") from None
            if limit is not None and len(inflated) > limit:
                raise ProtocolError(TOO_BIG, "compressed message too long")
            piece = inflater.unused_data
            if inflater.eof:
                self._inflater = None
                self._final_blocks += 1
                if self._final_blocks > _MOST_FINAL_BLOCKS:
                    raise ProtocolError(INVALID_DATA, f"more than {_MOST_FINAL_BLOCKS} final blocks in a message")
        return inflated

    def finish(self, limit: int | None) -> bytes:
        """Return what is left of the message whose last piece has been inflated."""
        # Behind a final block nothing is left, and a new inflater would take the tail for the beginning of a block.
        inflated = self.inflate(_TAIL, limit) if self._inflater is not None else b""
        self._final_blocks = 0
        if not self.inflate_takeover:
            self._inflater = None
        return inflated


def server_factories() -> list[ServerPerMessageDeflateFactory]:
    """Make the extension list for `ServerProtocol`: no context taken over in either direction."""
    return [ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)]


def client_factories() -> list[ClientPerMessageDeflateFactory]:
    """Make the extension list for `ClientProtocol`: the same wishes; `client_max_window_bits` tells that we obey it."""
    return [
        ClientPerMessageDeflateFactory(
            server_no_context_takeover=True, client_no_context_takeover=True, client_max_window_bits=True
        )
    ]


def negotiated(extensions: Sequence[Extension]) -> Deflate | None:
    """Make the codec of the negotiated extensions; `None` where permessage-deflate is not among them."""
    for extension in extensions:
        if isinstance(extension, PerMessageDeflate):
            return Deflate(
                takeover=not extension.local_no_context_takeover,
                window_bits=extension.local_max_window_bits,
                inflate_takeover=not extension.remote_no_context_takeover,
                inflate_bits=extension.remote_max_window_bits,
            )
    return None

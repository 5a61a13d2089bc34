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


class Deflate:
    """The codec of one connection.

    Neither side keeps its compression context from one message to the next unless the parameters say so, and the
    inflater exists only while a message is being read.
    """

    __slots__ = ("_compressor", "_inflate_bits", "_inflater", "inflate_takeover", "takeover", "window_bits")

    def __init__(
        self, *, takeover: bool = False, window_bits: int = 15, inflate_takeover: bool = False, inflate_bits: int = 15
    ) -> None:
        self.takeover = takeover
        self.window_bits = window_bits
        self.inflate_takeover = inflate_takeover
        self._inflate_bits = inflate_bits
        self._inflater: zlib._Decompress | None = None
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
        inflater = self._inflater
        if inflater is None or inflater.eof:
            inflater = self._inflater = zlib.decompressobj(wbits=-self._inflate_bits)
        try:
            inflated = inflater.decompress(piece, 0 if limit is None else limit + 1)
        except zlib.error as error:
            raise ProtocolError(INVALID_DATA, f"invalid compressed data: {error}") from None
        if limit is not None and len(inflated) > limit:
            raise ProtocolError(TOO_BIG, "compressed message too long")
        return inflated

    def finish(self, limit: int | None) -> bytes:
        """Return what is left of the message whose last piece has been inflated."""
        inflated = self.inflate(_TAIL, limit)
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

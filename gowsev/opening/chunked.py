"""The chunked body of a request (RFC 9112 section 7.1), read more strictly than pywsgi does.

pywsgi lets a single LF, and any other byte, stand in a chunk's extension. Where a chunk has no size, or a trailer is no
header line, it may read the next request from the middle of the body. A server in front that reads the same bytes in
another way finds another end of the request. So `ChunkedFile` stands between pywsgi's reader of bodies and the
connection. It checks each line before pywsgi sees it, and passes the data of chunks through.

States: a line is being returned (`_line`), then the data behind it (`_data` bytes). Then the next line is read: the
CRLF behind data, a chunk's size, or a line of the trailer. After a fault (`malformed`) the file is at its end.
"""

from __future__ import annotations

import re
from typing import Any

from gowsev.opening.handshake import MAX_HEAD_LINES

__all__ = ["ChunkedFile", "MalformedBody"]

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
#: RFC 9112 section 7.1: "chunk-size [ chunk-ext ] CRLF"; 7.1.1: "chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "="
#: BWS chunk-ext-val ] )". The "bad white space" is refused: pywsgi does not know it.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*\r\n" % (_TOKEN, _TOKEN, _QUOTED))
#: Section 7.1.2: "trailer-section = *( field-line CRLF )". The empty line ends it.
_TRAILER_LINE = re.compile(rb"(?:%b:[\t\x20-\x7e\x80-\xff]*)?\r\n" % _TOKEN)
#: Section 7.1.1: "A server ought to limit the total length of chunk extensions received".
_MOST_LINE = 1 << 12


class MalformedBody(OSError):
    """The body of a request breaks RFC 9112 section 7.1: nothing that follows can be understood."""


class ChunkedFile:
    """The file from which pywsgi's reader of chunked bodies reads one body."""

    def __init__(self, rfile: Any) -> None:
        self._rfile = rfile
        self._line = b""
        self._data = 0
        self._in_chunk = False
        self._trailers: int | None = None
        self.malformed = False

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes, of one line or of the data of one chunk.

        Raises:
            MalformedBody: the next line has no place in a chunked body.
        """
        if not self._line and not self._data:
            self._line = self._next_line()
        if self._line:
            data, self._line = self._line[:size], self._line[size:]
        else:
            data = self._rfile.read(min(size, self._data))
            self._data -= len(data)
        return data

    def readline(self, size: int) -> bytes:
        """Read a line of a chunk's data, of up to `size` bytes. pywsgi asks for no more than the chunk has."""
        data: bytes = self._rfile.readline(min(size, self._data))
        self._data -= len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rfile, name)

    def _next_line(self) -> bytes:
        if self.malformed:
            return b""
        if self._in_chunk:
            line: bytes = self._rfile.read(2)
            good, what = line == b"\r\n", "end of a chunk"
            self._in_chunk = False
        elif self._trailers is None:
            line = self._rfile.readline(_MOST_LINE)
            match = _SIZE_LINE.fullmatch(line)
            good, what = match is not None, "size of a chunk"
            self._data = int(match[1], 16) if match else 0
            self._in_chunk = self._data > 0
            self._trailers = None if self._in_chunk else 0
        else:
            line = self._rfile.readline(_MOST_LINE)
            self._trailers += 1
            good = _TRAILER_LINE.fullmatch(line) is not None and self._trailers <= MAX_HEAD_LINES
            what = f"trailer, or the last of more than {MAX_HEAD_LINES}"
        self.malformed = not good
        if line and not good:
            raise MalformedBody(f"no {what} in a chunked body: {line[:100]!r}")
        return line

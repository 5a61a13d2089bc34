"""The opening handshake of a client, on a connected socket: RFC 6455 section 4.1.

The rules of the handshake itself are the `websockets` library's `ClientProtocol`. The response is read here, so that an
error can say what is wrong with it, and so that interim responses and folded lines are understood.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from websockets.exceptions import InvalidHandshake
from websockets.http11 import Response

from gowsev.opening.handshake import MAX_HEAD_BYTES, MAX_HEAD_LINES
from gowsev.request import Headers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from websockets.client import ClientProtocol

__all__ = ["Refused", "read_body", "read_response", "shake_hands"]

_MOST_INTERIM = 16
#: How much is told of a refusal's body; how many bytes are read for it, as chunks may be small; and for how long.
_MOST_BODY, _MOST_READ, _PATIENCE = 1 << 10, 1 << 14, 0.5
#: RFC 9112 section 4: the reason phrase may be missing; some servers then leave out the blank before it as well.
#: "reason-phrase = 1*( HTAB / SP / VCHAR / obs-text )", and a field's value has the same bytes (RFC 9110, 5.5).
_STATUS_LINE = re.compile(
    rb"HTTP/1\.(?P<minor>[01]) (?P<code>[1-5][0-9][0-9])(?: (?P<reason>[\t\x20-\x7e\x80-\xff]*))?"
)
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"(?P<size>[0-9A-Fa-f]{1,8})[^\n]{0,200}\n")
# The blanks around a value are for `strip`: with a pattern that can match a blank in two ways, the time would grow with
# the square of their number.
_FIELD = re.compile(rb"(?P<name>[-!#$%&'*+.^_`|~0-9A-Za-z]+):(?P<value>[\t\x20-\x7e\x80-\xff]*)")


class Refused(Exception):
    """The server, or a proxy, did not open a connection.

    Args:
        text: why.
        response: the response that says so, if that is what it is.
        begun: what came of its body behind its head.
    """

    def __init__(self, text: str, response: Response | None = None, begun: bytes = b"") -> None:
        # It may quote the server, whose bytes must not reach a terminal by way of a log.
        super().__init__(text if text.isprintable() else text.encode("unicode_escape").decode())
        self.response = response
        self.begun = begun


def shake_hands(sock: Any, client: ClientProtocol, pairs: Iterable[tuple[str, str]]) -> tuple[Headers, bytes]:
    """Send the handshake and check the answer; return the answer's headers, and what came behind it.

    Raises:
        Refused: the server refused, or its answer is no handshake.
        OSError: the connection broke.
    """
    upgrade = client.connect()
    for name in {name.lower() for name, _ in pairs if name in upgrade.headers}:
        del upgrade.headers[name]  # the program's own replaces ours, such as `Host`
    for name, value in pairs:
        upgrade.headers[name] = value
    client.send_request(upgrade)
    sock.sendall(b"".join(client.data_to_send()))
    response, leftover = read_response(sock)
    if response.status_code != 101:
        reason = f"{response.status_code} {response.reason_phrase}".strip()
        raise Refused(f"the server answered HTTP {reason}", response, leftover)
    try:
        client.process_response(response)
    except InvalidHandshake as error:
        raise Refused(str(error)) from error
    return response.headers, leftover


def read_response(sock: Any, who: str = "the server") -> tuple[Response, bytes]:
    """Read the head of a response, without its body, and what came behind it.

    Raises:
        Refused: there is none.
        OSError: the connection broke.
    """
    data = b""
    for _ in range(_MOST_INTERIM):
        searched = 0
        while (end := _END_OF_HEAD.search(data, searched)) is None and len(data) <= MAX_HEAD_BYTES:
            searched = max(0, len(data) - 3)  # the end may begin in the last three bytes
            received = sock.recv(1 << 16)
            if not received:
                cut = f"in the middle of its response, after {len(data)} bytes" if data else "without a response"
                raise Refused(f"{who} closed the connection {cut}")
            data += received
        if end is None or end.start() > MAX_HEAD_BYTES:
            raise Refused(f"{who}'s response has no end within {MAX_HEAD_BYTES} bytes")
        response = _parse_response(data[: end.start()], who)
        data = data[end.end() :]
        # RFC 9110 section 15.2: "A client MUST be able to parse one or more 1xx responses received prior to a final
        # response". 101 is the final one of HTTP/1.1.
        if response.status_code >= 200 or response.status_code == 101:
            return response, data
    raise Refused(f"{who} sent {_MOST_INTERIM} interim responses and no final one")


def _parse_response(head: bytes, who: str) -> Response:
    first, *lines = re.split(rb"\r?\n", head)
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise Refused(f"{who}'s response is no HTTP: {first[:100]!r}")
    code = int(status["code"])
    if code == 101 and status["minor"] == b"0":
        raise Refused(f"{who} answered HTTP 101 over HTTP/1.0, where the handshake takes HTTP/1.1")
    if len(lines) > MAX_HEAD_LINES:
        raise Refused(f"{who}'s response has more than {MAX_HEAD_LINES} headers")
    headers = Headers()
    for line in _unfolded(lines):
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Refused(f"{who}'s response has a line that is no header: {line[:100]!r}")
        headers[field["name"].decode()] = field["value"].strip(b" \t").decode("latin-1")
    return Response(code, (status["reason"] or b"").decode("latin-1"), headers)


def _unfolded(lines: list[bytes]) -> list[bytes]:
    # RFC 9112 section 5.2: "A user agent that receives an obs-fold in a response message [...] MUST replace each
    # received obs-fold with one or more SP octets prior to interpreting the field value."
    fields: list[bytes] = []
    for line in lines:
        if fields and line.startswith((b" ", b"\t")):
            fields[-1] = fields[-1].rstrip(b" \t") + b" " + line.strip(b" \t")
        else:
            fields.append(line)
    return fields


def read_body(sock: Any, refused: Refused, seconds: float) -> bytes:
    """Return the first bytes of the body of a response that refuses. Blocks the calling greenlet.

    It is there for whoever wonders why, so that what does not come soon, in part or at all, is no error.

    Args:
        sock: from which the response was read.
        refused: has the response.
        seconds: for which to wait at most, if they are fewer than half a second.
    """
    data, response = refused.begun, refused.response
    if response is None:
        return b""
    chunked = any("chunked" in value.lower() for value in response.headers.get_all("Transfer-Encoding"))
    lengths = [value for value in response.headers.get_all("Content-Length") if re.fullmatch("[0-9]{1,15}", value)]
    wanted = min([_MOST_BODY, *map(int, lengths)])
    deadline = time.monotonic() + min(seconds, _PATIENCE)
    with suppress(OSError):  # reset, or slow: then that is all there is to tell
        while len(data) < _MOST_READ and not (_dechunked(data)[1] if chunked else len(data) >= wanted):
            sock.settimeout(max(0.0, deadline - time.monotonic()))
            received = sock.recv(_MOST_BODY)
            if not received:
                break
            data += received
    return _dechunked(data)[0] if chunked else data[:wanted]


def _dechunked(data: bytes) -> tuple[bytes, bool]:
    """Return what the first chunks hold (RFC 9112 section 7.1), at most 1 KiB of it, and whether that is all of it."""
    body, at = b"", 0
    while len(body) < _MOST_BODY and (size := _CHUNK.match(data, at)):
        length, start = int(size["size"], 16), size.end()
        body += data[start : start + length]
        at = start + length + 2
        if not length:
            return body, True
    return body[:_MOST_BODY], len(body) >= _MOST_BODY

"""The opening handshake of a server, without I/O: a request in, a response out (RFC 6455 section 4.2).

The rules of the handshake itself (key, version, tokens, extensions, subprotocols) are the `websockets` library's
`ServerProtocol.accept`. What is added here is policy: which origins may connect, and how to refuse.
"""

from __future__ import annotations

import http
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import InvalidOrigin
from websockets.headers import parse_extension
from websockets.http11 import Request as HTTPRequest
from websockets.http11 import Response
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from gowsev.opening.framing import judge_framing, tokens
from gowsev.wire import deflate
from gowsev.wire.deflate import Deflate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.typing import Origin, Subprotocol

    from gowsev.options import Options
    from gowsev.request import Accept

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_HEAD_LINES",
    "SILENT",
    "HTTPRequest",
    "Handshake",
    "Negotiator",
    "Refusal",
    "Response",
    "parse_request",
    "refusal",
]

#: RFC 9112 section 3.2.1: "origin-form = absolute-path [ "?" query ]", without white space and control characters.
_PATH = re.compile(r"/[\x21-\x7e]*")

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

#: The library logs what it negotiates. That may be in gevent's hub, where nothing may log: a logging handler may wait.
SILENT = logging.Logger("gowsev.handshake", logging.CRITICAL + 1)

#: RFC 9112 lets each recipient limit the size of a head. Ours hold for requests, and for responses to `Dial`.
MAX_HEAD_BYTES = 1 << 16
MAX_HEAD_LINES = 100


class Handshake(NamedTuple):
    """The outcome of a negotiation."""

    response: Response
    """To be sent; the connection is open if its status is 101."""
    subprotocol: str | None = None
    deflate: Deflate | None = None
    accept: Accept | None = None
    """What the program has said to it, if anything."""

    def answered(self, accept: Accept) -> Handshake:
        """Return it with what the program adds; a subprotocol of its own must be one that the client offers."""
        headers = self.response.headers
        headers.update(accept.headers)
        if accept.subprotocol is None:
            return self._replace(accept=accept)
        if self.subprotocol is not None:
            del headers["Sec-WebSocket-Protocol"]
        headers["Sec-WebSocket-Protocol"] = accept.subprotocol
        return self._replace(subprotocol=accept.subprotocol, accept=accept)


class Refusal(Response):
    """A response that refuses a request."""

    option: str | None = None
    """The name in `gowsev.Options` of what refused it, if one did."""
    reason: str = "handshake"
    """By what such refusals are counted: that option, or a word."""
    fault: str = ""
    """What is wrong with the request, for the log only."""


def parse_request(head: bytes) -> HTTPRequest | None:
    """Parse the head of a request for an upgrade, if there is nothing out of the ordinary about it.

    Any other, faulty or peculiar, is left to an HTTP server to understand and to answer.

    Args:
        head: up to the empty line that ends it.
    """
    if head.count(b"\n") > MAX_HEAD_LINES:
        return None
    reader = StreamReader()
    reader.feed_data(head)
    reader.feed_eof()
    request: HTTPRequest | None = None
    try:
        next(HTTPRequest.parse(reader.read_line))
    except StopIteration as parsed:
        request = parsed.value
    except Exception:  # noqa: S110
        # websockets raises many kinds of errors here. The HTTP server reads the request again, and reports the fault.
        pass
    return request if request is not None and _PATH.fullmatch(request.path) else None


class Negotiator:
    """Answers upgrade requests, one after the other; in one thread only.

    All have the same `ServerProtocol`. One for each would take two fifths of the time of an answer (measured: 59 us for
    36 us): it refers to itself, and so is garbage for the collector.

    Args:
        options: which origins, extensions and subprotocols are accepted.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._protocol = ServerProtocol(
            extensions=deflate.server_factories(options),
            subprotocols=cast("Sequence[Subprotocol]", options.subprotocols),
            select_subprotocol=_select_subprotocol,
            logger=SILENT,
        )

    def negotiate(self, request: HTTPRequest) -> Handshake:
        """Answer an upgrade request.

        Raises:
            websockets.exceptions.InvalidHandshake: a header cannot be understood.
        """
        options = self._options
        try:
            request = _checked(request, options)
        except ValueError as error:
            return Handshake(refusal(400, f"{error}\n"))
        headers = request.headers
        protocol = self._protocol
        protocol.origins = _acceptable_origins(headers, options)
        # What the request before has left there.
        protocol.handshake_exc, protocol.extensions, protocol.subprotocol = None, [], None
        response = protocol.accept(request)
        if response.status_code == 426:
            # RFC 9110 section 7.8: "A sender of Upgrade MUST also send an "Upgrade" connection option in the Connection
            # header field".
            del response.headers["Connection"]
            response.headers.update([("Connection", "Upgrade"), ("Connection", "close")])
        if response.status_code == 400 and "Sec-WebSocket-Version" in headers:
            # RFC 6455 section 4.4: the answer to a version we don't speak names the one we do.
            response.headers["Sec-WebSocket-Version"] = "13"
        if isinstance(protocol.handshake_exc, InvalidOrigin):
            # A browser tells its developer no more than 403; this is what the server's log shows of it.
            origin = protocol.handshake_exc.value
            text = f"Pages of {origin!r} may not connect here: see allowed_origins of gowsev.Options.\n"
            response = refusal(403, text, option="allowed_origins")
        return Handshake(response, protocol.subprotocol, deflate.negotiated(protocol.extensions, options))


def _checked(request: HTTPRequest, options: Options) -> HTTPRequest:
    """Check what the library does not; return the request as the library is to see it.

    Raises:
        ValueError: where the request ends is unclear, or it has a body; the text says so.
        websockets.exceptions.InvalidHandshake: a header cannot be understood.
    """
    headers = request.headers
    if judge_framing(request.protocol, headers.raw_items()).has_body:
        raise ValueError("An upgrade request must not have a body.")
    # RFC 9110 section 7.8: Upgrade lists protocols, of which a server picks one. The library accepts a list of one.
    if len(upgrade := tokens(headers.get_all("Upgrade"))) > 1 and "websocket" in upgrade:
        headers = Headers((name, value) for name, value in headers.raw_items() if name.lower() != "upgrade")
        headers["Upgrade"] = "websocket"
        request = replace(request, headers=headers)  # the program sees what was sent
    if options.compression is None:
        # The library then ignores extensions. RFC 6455 section 9.1: a header that does not conform to the grammar fails
        # the handshake.
        for value in headers.get_all("Sec-WebSocket-Extensions"):
            parse_extension(value)
    return request


def refusal(
    status: int,
    text: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    option: str | None = None,
    reason: str = "handshake",
) -> Refusal:
    """Make a response that refuses a request, with a body of plain text, after which the connection is closed.

    Args:
        status: the status code.
        text: the body.
        headers: more of them, or others than the usual ones.
        option: the name in `gowsev.Options` of what refuses the request, if one does.
        reason: else, by what it is counted.
    """
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Refused"  # a status that only its sender knows, like 499, has no standard phrase
    body = text.encode()
    fields = Headers([("Connection", "close"), ("Content-Length", str(len(body)))])
    for name, value in headers:
        fields[name] = value
    if "Content-Type" not in fields:
        fields["Content-Type"] = "text/plain; charset=utf-8"
    response = Refusal(status, phrase, fields, body)
    response.option = option
    response.reason = option or reason
    return response


def _select_subprotocol(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Pick the server's favourite among those offered; none in common is no reason to refuse (as with gorilla)."""
    return next((ours for ours in protocol.available_subprotocols or () if ours in offered), None)


def _acceptable_origins(headers: Headers, options: Options) -> list[Origin | None] | None:
    """List the acceptable values of `Origin`, for `ServerProtocol`: `None` in the list stands for its absence."""
    allowed = options.allowed_origins
    if allowed is not None:
        return None if "*" in allowed else [None, *cast("Iterable[Origin]", allowed)]
    acceptable: list[Origin | None] = [None]
    origins, hosts = headers.get_all("Origin"), headers.get_all("Host")
    if len(origins) == len(hosts) == 1 and _same_host(origins[0], hosts[0]):
        acceptable.append(cast("Origin", origins[0]))
    return acceptable


def _same_host(origin: str, host: str) -> bool:
    """Tell whether an origin (RFC 6454) is on the host that was asked for.

    The scheme is not compared: behind a proxy that ends TLS, it is `https` there and plain here.
    """
    try:
        parts = urlsplit(origin)
        default = _DEFAULT_PORTS.get(parts.scheme)
        asked = urlsplit(f"//{host}")
        return (
            parts.hostname is not None
            and parts.hostname == asked.hostname
            and (parts.port or default) == (asked.port or default)
        )
    except ValueError:  # no URL, or a port that is no number: such an origin is on no host
        return False

"""A request for an upgrade, from any kind of server: whether it is one, its answer, and the program's view of it.

Requests are read by our own listeners (`listener`, `http`) and by other servers (`serve_http`, `adoption`).
All of them ask here, so that the same request has the same answer everywhere: `judge` decides, with `handshake` and the
`Receiver`; `switch_protocols` sends the response 101 and hands the connection over; `respond` gives any other response
to a WSGI server. Every `Request` is made by `describe`, also those of connections that are dialled or adopted.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes
from weakref import WeakKeyDictionary

from websockets.exceptions import WebSocketException

from gowsev.opening.framing import tokens
from gowsev.opening.handshake import Handshake, HTTPRequest, Negotiator, Refusal, Response, refusal
from gowsev.request import Accept, PeerCertificate, Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from gowsev.options import Options

__all__ = [
    "HEADERS",
    "PEER_CERTIFICATE",
    "Ends",
    "Receiver",
    "asks_for_websocket",
    "certificate_of",
    "describe",
    "format_address",
    "judge",
    "note_loss",
    "note_lost_upgrade",
    "note_refusal",
    "note_uncertified",
    "note_unproxied",
    "note_unsent",
    "read_buffered",
    "refusal_by_time",
    "respond",
    "switch_protocols",
    "upgrade_required",
]

logger = logging.getLogger("gowsev")

#: Where `WebSocketHandler` puts a request's headers as they were sent; WSGI's own form joins those that are repeated.
HEADERS = "gowsev.headers"
#: Where it puts the client's certificate.
PEER_CERTIFICATE = "gowsev.peer_certificate"

#: For each receiver, the options (or what else the program has set) whose first refusal has been logged as a warning.
_warned: WeakKeyDictionary[Receiver, set[str]] = WeakKeyDictionary()


class Receiver(Protocol):
    """What receives connections: a context."""

    @property
    def options(self) -> Options: ...

    @property
    def negotiator(self) -> Negotiator:
        """What answers valid and faulty requests for an upgrade."""
        ...

    def check_thread(self) -> None:
        """Check that this is the receiver's thread.

        Raises:
            RuntimeError: it is another.
        """

    @property
    def may_refuse(self) -> bool:
        """Whether `admit` has to be asked: it may return something, or block."""
        ...

    def admit(self, request: Request, decided: Accept | None = None) -> Response | Accept | None:
        """Return the response that refuses a valid request for an upgrade, or the program's `Accept`, or neither.

        May block the calling greenlet.
        """

    def hold(self, request: Request) -> None:
        """Keep a place for a request that is accepted, while its answer is on its way."""

    def release(self, request: Request) -> None:
        """Give that place back."""

    def accept(self, sock: Any, request: Request, handshake: Handshake, leftover: bytes) -> None:
        """Take a socket whose upgrade has been answered, and what was read of it beyond the request."""

    def refused(self, reason: str, asked: bool = True) -> None:
        """Count a client that is not let in.

        Args:
            reason: why, in a word; the name of the option that refuses it, if one does.
            asked: whether it has asked for an upgrade.
        """


class Ends(NamedTuple):
    """The two ends of a connection: the addresses of its socket, whether TLS ends here, and with whom."""

    peer: Any
    local: Any
    tls: bool
    certificate: PeerCertificate | None = None


def asks_for_websocket(environ: WSGIEnvironment) -> bool:
    """Whether a request, as WSGI describes it, is for a WebSocket."""
    # RFC 9110 section 7.8: "A server MUST ignore an Upgrade header field that is received in an HTTP/1.0 request."
    asked = tokens([environ.get("HTTP_UPGRADE", "")])
    return "websocket" in asked and environ.get("SERVER_PROTOCOL") != "HTTP/1.0"


def judge(
    receiver: Receiver, ends: Ends, read: Callable[[], HTTPRequest], decided: Accept | None = None
) -> tuple[Request | None, Handshake]:
    """Decide about a request for an upgrade, by the rules of the RFCs and those of the receiver.

    Logs nothing, and blocks the calling greenlet only where `receiver.may_refuse`.

    Args:
        receiver: gets the connection.
        ends: the ends of that connection.
        read: returns the request; raises a `WebSocketException` if a header is invalid.
        decided: the program's answer, where it has decided already.

    Returns:
        What the program is told of the request, or `None` if it is refused; and the answer.
    """
    try:
        asked = read()
        request = describe(asked, ends)
        handshake = receiver.negotiator.negotiate(asked)
        if handshake.response.status_code != 101:
            return None, handshake
        answer = receiver.admit(request, decided)
        if isinstance(answer, Response):
            return None, Handshake(answer)
        return request, handshake if answer is None else handshake.answered(answer)
    except WebSocketException as error:
        faulty = refusal(400, "Invalid header.\n")
        faulty.fault = repr(error)
        return None, Handshake(faulty)


def switch_protocols(
    receiver: Receiver, sock: Any, request: Request, handshake: Handshake, take: Callable[[], tuple[bytes, Any]]
) -> None:
    """Send the response 101, and hand the connection over to the receiver.

    `take` returns what the server has read beyond the request, and the socket out of its hands.

    Raises:
        OSError: the response could not be sent.
    """
    # A client that does not read what was sent before lets this wait: meanwhile others ask for the last place.
    receiver.hold(request)
    try:
        sock.sendall(handshake.response.serialize())
    finally:
        receiver.release(request)
    leftover, taken = take()
    receiver.accept(taken, request, handshake, leftover)


def respond(response: Response, start_response: StartResponse) -> list[bytes]:
    """Give a response to a WSGI server; return its body."""
    start_response(f"{response.status_code} {response.reason_phrase}", list(response.headers.raw_items()))
    return [bytes(response.body)]


def refusal_by_time(options: Options) -> Refusal:
    """Return the response to a request for an upgrade that has had no answer within `handshake_timeout`."""
    text = f"No answer within {options.handshake_timeout} s: see handshake_timeout of gowsev.Options.\n"
    return refusal(503, text, option="handshake_timeout")


def note_refusal(receiver: Receiver, response: Response, peer: Any, target: str) -> None:
    """Count a refused upgrade, and log who asked for what."""
    receiver.refused(response.reason if isinstance(response, Refusal) else "handshake")
    who, status = format_address(peer), response.status_code
    option, fault = (response.option, response.fault) if isinstance(response, Refusal) else (None, "")
    if fault:
        logger.debug("invalid headers from %s: %s", who, fault)
    text = bytes(response.body[:200]).decode("utf-8", "replace").rstrip()
    logger.log(_level(receiver, option), "refused %s, which asked for %r: %d %r", who, target, status, text)


def _level(receiver: Receiver, option: str | None) -> int:
    """Return the level for a refusal: the first by each option is a warning, so that a wrong setup is seen."""
    warned = _warned.setdefault(receiver, set())
    if option is None or option in warned:
        return logging.INFO
    warned.add(option)
    return logging.WARNING


def note_unproxied(receiver: Receiver, peer: Any, why: str) -> None:
    """Count and log a peer that does not say whose connection it is, or is not trusted to."""
    receiver.refused("proxy_protocol", asked=False)
    text = "refused %s, by proxy_protocol of gowsev.Options: %s"
    logger.log(_level(receiver, "proxy_protocol"), text, format_address(peer), why)


def note_uncertified(receiver: Receiver, peer: Any, error: OSError) -> None:
    """Count and log a client whose certificate is not accepted, or that has none where one is wanted."""
    receiver.refused("client_certificate", asked=False)
    logger.log(
        _level(receiver, "client_certificate"), "refused %s, by its certificate: %s", format_address(peer), error
    )


def note_unsent(accept: Accept, spoken: str | None) -> None:
    """Log it if what a program adds to the answer of a handshake comes too late, another library having answered."""
    if accept.headers or accept.subprotocol not in (None, spoken):
        logger.warning(
            "gevent-websocket has answered a handshake before the program: neither the subprotocol %r nor the headers "
            "%s were sent; give the server handler_class=gowsev.WebSocketHandler",
            accept.subprotocol, [name for name, _ in accept.headers],
        )  # fmt: skip


def note_loss(peer: Any, error: OSError) -> None:
    """Log that a client has gone, or its network, which is no error of ours or of the program."""
    logger.info("lost %s during its request: %s", format_address(peer), error)


def note_lost_upgrade(environ: WSGIEnvironment) -> None:
    """Log it if a request of a WebSocket client has lost its `Upgrade` on the way."""
    if _has_lost_upgrade(environ):
        host, _ = _host_and_port((environ.get("REMOTE_ADDR", ""), 0))
        why = "but no Upgrade: a proxy in front does not pass Upgrade and Connection on"
        if environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
            why = "but came as HTTP/1.0, which has no Upgrade: a proxy in front must use HTTP/1.1"
        logger.info("a request from %r for %r has a Sec-WebSocket-Key, %s", host, environ.get("PATH_INFO", ""), why)


def _has_lost_upgrade(environ: WSGIEnvironment) -> bool:
    # RFC 9110 section 7.6.1: a proxy removes Connection and the headers that it names. The key stays.
    return "HTTP_SEC_WEBSOCKET_KEY" in environ and not asks_for_websocket(environ)


def upgrade_required(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """The WSGI application of a server without one: RFC 9110 section 15.5.22."""
    body = b"This is a WebSocket server; open it with a WebSocket client.\n"
    if _has_lost_upgrade(environ):
        body = b"The request has no Upgrade: a proxy in front of this WebSocket server does not pass it on.\n"
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
    ]
    start_response("426 Upgrade Required", headers)
    return [body]


def describe(asked: HTTPRequest, ends: Ends) -> Request:
    """Return what the program is told of a request; its headers are the response's if the request was ours."""
    path, _, query = asked.path.encode("latin-1").partition(b"?")
    return Request(
        path=unquote_to_bytes(path).decode("utf-8", "replace"),
        query=query.decode("utf-8", "replace"),
        headers=asked.headers,
        # A unix socket's peer may have any name, and is given none here.
        peer=_host_and_port(ends.peer) if isinstance(ends.peer, tuple) else ("", 0),
        local=_host_and_port(ends.local),
        tls=ends.tls,
        peer_certificate=ends.certificate,
    )


def certificate_of(sock: Any, peer: Any) -> PeerCertificate | None:
    """Return the peer's certificate that TLS has verified on a socket; `None` where there is none.

    Args:
        sock: any socket, with TLS or without.
        peer: its address, for the log.
    """
    look = getattr(sock, "getpeercert", None)
    try:
        certificate: PeerCertificate | None = look and look()
    except (OSError, ValueError) as error:
        # Its authority has signed what Python cannot read. Who shows it is nobody in particular, but may be let in.
        logger.info("cannot read the certificate of %s, taking it for none: %r", format_address(peer), error)
        return None
    return certificate or None


def read_buffered(rfile: Any, sock: Any) -> bytes:
    """Take what a buffered file on a gevent socket has read beyond a request for an upgrade; never blocks.

    A frame may have come in the same segment as the request, and was then read with it.
    """
    sock.settimeout(0.0)
    try:
        return rfile.read1(1 << 16) or b""
    except OSError:  # broken already, or nothing there: the connection's first read finds out
        return b""


def _host_and_port(address: Any) -> tuple[str, int]:
    """A socket's address as `Request` has it; IPv4 through an IPv6 socket looks like IPv4."""
    if isinstance(address, tuple):
        host = str(address[0])
        mapped = host.removeprefix("::ffff:")  # RFC 4291 section 2.5.5.2; others that begin so are no IPv4
        return mapped if "." in mapped and ":" not in mapped else host, int(address[1])
    return os.fsdecode(address or ""), 0


def format_address(address: Any) -> str:
    """Return a socket's address as it stands in a log."""
    host, port = _host_and_port(address)
    return f"{host}:{port}" if port else "a unix socket"

"""HTTP requests, until one of them asks for an upgrade: pywsgi's handler, by way of gevent-websocket's.

Two handlers: `WebSocketHandler` for the `WSGIServer` of a program, which reads requests more carefully than pywsgi
does and leaves upgrades to the application, which calls `ServeHTTP` for them; and `Upgrader` for our own listeners. It
judges a request for an upgrade, and hands its socket to the `Receiver`. Any other goes to the WSGI application.
`listener` bounds how long all this may take.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import gevent
from gevent.pywsgi import WSGIHandler
from geventwebsocket.handler import WebSocketHandler as GeventWebSocketHandler

from gowsev.connection.sockets import ServedSocket, poll_sockets, take_over
from gowsev.opening.chunked import ChunkedFile, MalformedBody
from gowsev.opening.framing import absolute_form, check_target, judge_framing, tokens
from gowsev.opening.handshake import MAX_HEAD_BYTES, MAX_HEAD_LINES, Handshake, HTTPRequest, Response, refusal
from gowsev.opening.upgrade import (
    HEADERS,
    PEER_CERTIFICATE,
    Ends,
    asks_for_websocket,
    certificate_of,
    format_address,
    judge,
    note_loss,
    note_lost_upgrade,
    note_refusal,
    read_buffered,
    refusal_by_time,
    respond,
    switch_protocols,
)
from gowsev.request import Headers, Request

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FairFile", "Upgrader", "WebSocketHandler"]

logger = logging.getLogger("gowsev")

#: After this many reads from one connection, others have their turn. A browser's handshake takes fewer.
_READS_A_TURN = 32

# RFC 9112 section 5: "field-line = field-name ":" OWS field-value OWS"; 5.1: no white space before the colon; 5.2: a
# server "MUST either reject the message [...] or replace each received obs-fold". Empty, it ends the head; without its
# end, the stream ended inside the head (section 8).
_HEADER_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+:[^\r\n\0]*)?\r?\n")
#: RFC 9112 section 3: "request-line = method SP request-target SP HTTP-version". pywsgi would split it at any white
#: space, and accept versions such as 1.00, which is not the HTTP/1.0 that it knows, and 0.9, which has no headers.
_REQUEST_LINE = re.compile(r"([-!#$%&'*+.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.[0-9]\r?\n")
#: RFC 8446 section 5.1: how a TLS client begins: with a handshake record (22), whose version is 3.
_TLS = "\x16\x03"
#: How version 1 of the PROXY protocol begins.
_PROXY = "PROXY "


class WebSocketHandler(WSGIHandler):  # type: ignore[misc]  # gevent has no types
    """A handler of requests, for a `gevent.pywsgi.WSGIServer` whose application has `Context.ServeHTTP` in it.

        WSGIServer(("", 8000), app, handler_class=gowsev.WebSocketHandler)

    `ServeHTTP` works with pywsgi's own handler too. This one is derived from it, and reads requests as our own
    listeners do: the length of their head is bounded, lines that are no header are refused (RFC 9112 section 5), and
    `Conn.headers` has repeated headers one by one.
    """

    path: Any
    request_version: Any
    wsgi_input: Any

    def MessageClass(self, rfile: Any, seekable: int) -> Any:
        """Read a request's header lines; called by pywsgi.

        Raises:
            ValueError: they cannot be understood, or it is unclear where the request ends or which host it is for.
        """
        # Judged here, since pywsgi removes some headers before it looks at the rest.
        message = super().MessageClass(_BoundedHead(rfile), seekable)
        absolute = absolute_form(self.path)
        if absolute is not None:
            # A wrong `Host` beside it is ignored, but it must be there as in any request.
            judge_framing(self.request_version, message.items())
            host, self.path = absolute
            del message["Host"]
            message["Host"] = host
        judge_framing(self.request_version, message.items())
        if self.request_version == "HTTP/1.0":
            # RFC 9110 section 7.8: "A server MUST ignore an Upgrade header field that is received in an HTTP/1.0
            # request." Section 10.1.1: one "that receives a 100-continue expectation in an HTTP/1.0 request MUST ignore
            # that expectation."
            del message["Upgrade"], message["Expect"]
        return message

    def read_request(self, raw_requestline: str) -> bool:
        """Parse a request; called by pywsgi.

        Raises:
            ValueError: it cannot be understood.
        """
        if raw_requestline.startswith(_PROXY):
            raise ValueError("a proxy began with the PROXY protocol: see proxy_protocol of gowsev.Options")
        if raw_requestline.startswith(_TLS):
            raise ValueError("the client began with TLS, and this port has none")
        line = _REQUEST_LINE.fullmatch(raw_requestline)
        if line is None:
            raise ValueError(f"no request line: {raw_requestline[:100]!r}")
        check_target(line[1], line[2])
        try:
            understood = bool(super().read_request(raw_requestline))
        except ValueError:
            raise
        except Exception as error:
            # pywsgi prints a traceback for everything but ValueError, even for a connection that was reset.
            raise ValueError(f"{type(error).__name__}: {error}") from error
        # RFC 9112 section 9.6: "A server that receives a "close" connection option [...] MUST NOT process any further
        # requests received on that connection." pywsgi knows it only where it is the only option.
        if "close" in tokens(self.headers.get_all("Connection", ())):
            self.close_connection = True
        return understood

    def read_requestline(self) -> str:
        """Read a request's first line; called by pywsgi."""
        line = str(super().read_requestline())
        # RFC 9112 section 2.2: "a server that is expecting to receive and parse a request-line SHOULD ignore at least
        # one empty line (CRLF) received prior to the request-line."
        return line if line.rstrip("\r\n") or not line else str(super().read_requestline())

    def get_environ(self) -> dict[str, Any]:
        """Describe the request to the application; called by pywsgi."""
        environ: dict[str, Any] = super().get_environ()
        environ[HEADERS] = [(name.strip(), value.strip()) for name, value in self.headers.items()]
        environ[PEER_CERTIFICATE] = certificate_of(self.socket, self.client_address)
        # For an upgrade pywsgi gives the connection itself, and an application that reads its request's body would wait
        # for frames, and consume them. RFC 6455 section 4.1 has no body.
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        if self.wsgi_input.chunked_input:
            self.wsgi_input.rfile = ChunkedFile(self.wsgi_input.rfile)
        return environ

    def handle_one_response(self) -> None:
        """Answer the request; called by pywsgi."""
        super().handle_one_response()
        # Also where the application went on in spite of the error.
        if getattr(self.wsgi_input.rfile, "malformed", False):
            self.close_connection = True

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """Log an error in answering, and answer with a status that tells it; called by pywsgi."""
        if issubclass(t, MalformedBody):
            self.log_error("%s", v)
            self._send_error_response_if_possible(400)
        else:
            super().handle_error(t, v, tb)

    # RFC 9110 section 9.3.2: "the server MUST NOT send content in the response" to HEAD. It would be taken for the
    # beginning of the next response.

    def finalize_headers(self) -> None:
        """Complete the response's headers; called by pywsgi."""
        super().finalize_headers()
        if self.command == "HEAD":
            self.response_use_chunked = False

    def write(self, data: Any) -> None:
        """Send a part of the response's body; called by pywsgi and by applications. May block the calling greenlet."""
        super().write(b"" if self.command == "HEAD" else data)


class Upgrader(WebSocketHandler, GeventWebSocketHandler):  # type: ignore[misc]  # gevent-websocket has no types
    """One socket that a listener of ours accepted: HTTP requests, until one of them asks for an upgrade."""

    served: ServedSocket
    """The client's socket, below TLS."""
    timeout: Any
    """Runs while a request is awaited or being upgraded."""
    socket: Any
    websocket: tuple[Request, Handshake]

    def run_application(self) -> None:
        if asks_for_websocket(self.environ):
            super().run_application()
            return
        # The application may take as long as it likes; the rest of the request that it did not read, and the next
        # request, may not.
        self.timeout.close()
        try:
            super().run_application()
        finally:
            # A new one: the first request had less time, where the client was slow to begin.
            self.timeout = gevent.Timeout.start_new(self.server.receiver.options.handshake_timeout)

    # -- called by gevent-websocket's run_application --------------------------------------------------------------

    def upgrade_websocket(self) -> None:
        """Judge. Sets `websocket` if the request is accepted, and sends the response if it is refused."""
        if not asks_for_websocket(self.environ):
            note_lost_upgrade(self.environ)
            return
        tls = self.server.tls is not None
        ends = Ends(self.client_address, self.socket.getsockname(), tls, self.environ[PEER_CERTIFICATE])
        request, handshake = judge(self.server.receiver, ends, self._read)
        if request is not None:
            self.websocket = request, handshake
            return
        self.close_connection = True
        self._refuse_upgrade(handshake.response)

    def _read(self) -> HTTPRequest:
        return HTTPRequest(self.path, Headers(self.environ[HEADERS]), self.command, self.request_version)

    def run_websocket(self) -> None:
        """Answer, and hand the socket over. This greenlet ends."""
        sock = self.socket
        self.start_response("101 Switching Protocols", [])  # for the log; it is not sent
        self.headers_sent = True
        switch_protocols(
            self.server.receiver, sock, *self.websocket, lambda: (read_buffered(self.rfile, sock), take_over(sock))
        )
        self.socket = None
        self.timeout.close()

    # -- what pywsgi would print ---------------------------------------------------------------------------------

    def log_error(self, msg: str, *args: Any) -> None:
        self.server.receiver.refused("http", asked=False)
        logger.info("bad request from %s: %r", format_address(self.client_address), msg % args if args else msg)

    def log_request(self) -> None:
        logger.debug("%r", self.format_request())

    @property
    def logger(self) -> logging.Logger:
        return logger

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        self.close_connection = True
        if issubclass(t, MalformedBody):
            super().handle_error(t, v, tb)
        elif v is self.timeout and asks_for_websocket(self.environ):
            self._refuse_upgrade(refusal_by_time(self.server.receiver.options))
        elif v is self.timeout:  # the rest of a page's request did not come
            limit = self.server.receiver.options.handshake_timeout
            logger.info("no answer for %s within %s s", format_address(self.client_address), limit)
            self._refuse(refusal(503, "The server took too long.\n"))
        elif issubclass(t, OSError) and (asks_for_websocket(self.environ) or self.rfile.failed or self.served.failed):
            # Not the application's error: the request's body could not be read, or the response not be sent.
            note_loss(self.client_address, v)
            self._refuse(refusal(400, "The request is incomplete.\n"))
        elif not issubclass(t, gevent.GreenletExit):
            logger.error("error in answering %r", self.requestline, exc_info=(t, v, tb))
            self._send_error_response_if_possible(500)

    def _send_error_response_if_possible(self, error_code: int) -> None:
        # pywsgi looks at whether bytes were sent; gevent-websocket asserts that no headers were.
        if not self.headers_sent:
            super()._send_error_response_if_possible(error_code)

    def _refuse_upgrade(self, response: Response) -> None:
        note_refusal(self.server.receiver, response, self.client_address, self.path)
        self._refuse(response)

    def _refuse(self, response: Response) -> None:
        if not self.headers_sent:
            for data in respond(response, self.start_response):
                self.write(data)


class FairFile:
    """The file that requests are read from, which lets others have their turn.

    gevent switches greenlets only where a socket has nothing to read. A peer that sends requests without end would keep
    the hub from running, and with it every other connection and the timeout.
    """

    def __init__(self, rfile: Any) -> None:
        self._rfile = rfile
        self._reads = 0
        self.failed = False
        """Whether a read failed, or came upon the end of the stream."""

    def read(self, size: int) -> bytes:
        return self._fairly(self._rfile.read, size)

    def readline(self, limit: int = -1) -> bytes:
        return self._fairly(self._rfile.readline, limit)

    def _fairly(self, read: Callable[[int], bytes], size: int) -> bytes:
        self._reads += 1
        if not self._reads % _READS_A_TURN:
            poll_sockets()
        try:
            data = read(size)
        except OSError:
            self.failed = True
            raise
        self.failed = self.failed or (not data and size != 0)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rfile, name)


class _BoundedHead:
    """The file that a request's header lines are read from, with a bound on all of them together."""

    def __init__(self, rfile: Any) -> None:
        self._rfile = rfile
        self._bytes = MAX_HEAD_BYTES
        self._lines = MAX_HEAD_LINES

    def readline(self, limit: int) -> bytes:
        line: bytes = self._rfile.readline(min(limit, self._bytes + 1))
        self._bytes -= len(line)
        self._lines -= 1
        if self._bytes < 0 or self._lines < 0:
            raise ValueError(f"more than {MAX_HEAD_BYTES} bytes or {MAX_HEAD_LINES} lines of headers")
        if not _HEADER_LINE.fullmatch(line):
            raise ValueError(f"no header line: {line[:100]!r}")
        return line

"""Listeners, and the way of a socket from `accept` to its upgrade.

Almost every client sends one plain request for an upgrade: it is answered at once, in the hub. Any other client gets a
greenlet, in which TLS is set up and pywsgi reads HTTP requests (see `http`). `handshake_timeout` bounds all of this.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from gowsev.connection.fork import close_descriptor
from gowsev.connection.sockets import ServedSocket, accept, close_socket
from gowsev.connection.tls import TLSSocket
from gowsev.opening.address import Address
from gowsev.opening.handshake import parse_request, refusal
from gowsev.opening.http import FairFile, Upgrader
from gowsev.opening.proxy_protocol import Malformed, ProxyHeader, Trusted
from gowsev.opening.upgrade import (
    Ends,
    Receiver,
    format_address,
    judge,
    note_uncertified,
    note_unproxied,
    switch_protocols,
    upgrade_required,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Listener"]

logger = logging.getLogger("gowsev")

#: Seconds until accepting is tried again after it failed.
_ACCEPT_AGAIN = 0.25

#: The longest head of a request that is answered at once; a longer one is no ordinary one.
_MOST_PEEKED = 1 << 13

#: What OpenSSL says of a client without a certificate, or with one that it does not accept.
_UNCERTIFIED = frozenset({"PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED"})

_TOO_LATE = "no request from %s within %s s"


class Listener(WSGIServer):  # type: ignore[misc]  # gevent has no types
    """One listening socket and the greenlets of what it accepted.

    Args:
        sock: what `listen` returned.
        address: what it listens on.
        receiver: what gets its connections.
        tls: returns the TLS context for the next client; `None` for plain.
    """

    def __init__(
        self, sock: Any, address: Address, receiver: Receiver, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        self.receiver = receiver
        self.tls = tls
        self._path = address.host if address.family == socket.AF_UNIX else None
        environ = {
            # Given here, since pywsgi would look the name up in the DNS.
            "SERVER_NAME": "localhost" if self._path else address.host or socket.gethostname(),
            "wsgi.url_scheme": "https" if tls else "http",
        }
        application = receiver.options.http_app or upgrade_required
        # A pool, so that `stop` knows the greenlets that are still at a request.
        super().__init__(sock, application, log=None, handler_class=Upgrader, environ=environ, spawn=Pool())
        self._exhausted = False
        proxies = receiver.options.proxy_protocol
        self._proxies = None if proxies is None else Trusted(proxies)
        self.arrivals: set[_Arrival] = set()

    @property
    def bound(self) -> tuple[str, int]:
        """The host and port that are listened on; for a unix socket, its path and 0."""
        if self._path is not None:
            return self._path, 0
        host, port = self.socket.getsockname()[:2]
        return str(host), int(port)

    # -- in the hub: these never wait ------------------------------------------------------------------------------

    def do_read(self) -> None:
        """Accept connections."""
        for _ in range(self.max_accept):
            try:
                accepted = accept(self.socket)
            except OSError as error:
                if error.errno in self.fatal_errors:
                    raise
                self._accept_later(error)
                return
            if accepted is None:
                return
            if self._exhausted:
                self._exhausted = False
                gevent.spawn(logger.info, "accepting connections again")
            if self._proxies is not None:
                self._expect_header(*accepted, self._proxies)
            elif self.tls is None:
                _Arrival(self, *accepted).look()
            else:
                self.serve(*accepted, time.monotonic())

    def _expect_header(self, sock: Any, address: Any, proxies: Trusted) -> None:
        if address in proxies:
            _Arrival(self, sock, address, ProxyHeader()).look()
        else:
            close_socket(sock)
            gevent.spawn(note_unproxied, self.receiver, address, "it is none of the proxies that are named there")

    def _accept_later(self, error: OSError) -> None:
        # As a rule there are no more file descriptors. The connections wait in the backlog, and accepting is soon tried
        # again. The error is logged once, and from a greenlet: a logging handler may block, and the hub must not.
        if not self._exhausted:
            self._exhausted = True
            gevent.spawn(logger.error, "cannot accept connections, trying again until it works: %s", error)
        self.stop_accepting()
        self._timer = self.loop.timer(_ACCEPT_AGAIN)
        self._timer.start(self._start_accepting_if_started)

    def upgrade_at_once(self, sock: Any, address: Any) -> bool:
        """Upgrade a client whose one request asks for it without a fault; return whether nothing is left to do.

        Almost every client goes this way, which is much shorter than that of other HTTP (measured: a connection that
        comes and goes costs 115 us here, 265 us with a greenlet and pywsgi). Where the result is false, nothing has
        been read from the socket.

        Raises:
            BlockingIOError: the client has sent nothing yet.
        """
        head = sock.recv(_MOST_PEEKED, socket.MSG_PEEK)
        if not head:  # it has closed without a request
            close_socket(sock)
            return True
        size = head.find(b"\r\n\r\n") + 4
        asked = parse_request(head[:size]) if size > 3 else None
        if asked is None or self.receiver.may_refuse:
            return False
        request, handshake = judge(self.receiver, Ends(address, sock.getsockname(), tls=False), lambda: asked)
        if request is None:
            return False
        sock.recv(size)
        # Nothing was sent before, so the kernel has room for it.
        switch_protocols(self.receiver, sock, request, handshake, lambda: (b"", sock))
        return True

    def serve(self, sock: Any, address: Any, accepted: float) -> None:
        """Give a client a greenlet for what takes longer: TLS, other requests, faults.

        Args:
            sock: a plain socket.
            address: the peer's.
            accepted: when it was accepted, in seconds of `time.monotonic`.
        """
        sock = ServedSocket(sock.family, sock.type, sock.proto, sock.detach())
        # The link closes the socket however the greenlet ends, even before its start. A socket that was handed over is
        # an empty shell by then.
        self.pool.spawn(self.handle, sock, address, accepted).rawlink(lambda _greenlet: close_socket(sock))

    # -- in a greenlet ---------------------------------------------------------------------------------------------

    def handle(self, served: ServedSocket, address: Any, accepted: float) -> None:
        limit = self.receiver.options.handshake_timeout
        # Bounds each wait of an application's own reading and writing too.
        served.settimeout(limit)
        tls = None if self.tls is None else TLSSocket(served, self.tls())
        sock = tls or served
        handler = Upgrader(sock, address, self)
        handler.served = served
        handler.rfile = FairFile(handler.rfile)
        handler.timeout = gevent.Timeout.start_new(limit and max(0, limit - time.monotonic() + accepted))
        try:
            if tls is None or self._begin_tls(tls, address):
                handler.handle()
        except gevent.Timeout as expired:
            if expired is not handler.timeout:
                raise
            self.note_late(address)
        except OSError as error:
            # What the peer's end of the network does is no error of ours, and other connections go on.
            logger.info("lost %s before its request: %s", format_address(address), error)
        finally:
            handler.timeout.close()

    def _begin_tls(self, sock: TLSSocket, address: Any) -> bool:
        """Shake hands; return whether the client shows a certificate that is accepted, where one is wanted."""
        try:
            sock.do_handshake()
        except ssl.SSLError as error:
            if getattr(error, "reason", None) in _UNCERTIFIED:
                note_uncertified(self.receiver, address, error)
                return False
            self.receiver.refused("tls", asked=False)
            raise
        return True

    def note_late(self, address: Any) -> None:
        """Count and log a client that has asked for nothing in time."""
        self.receiver.refused("handshake_timeout", asked=False)
        logger.info(_TOO_LATE, format_address(address), self.receiver.options.handshake_timeout)

    # -- the end ---------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """The number of clients that are accepted and not yet upgraded."""
        return len(self.arrivals) + len(self.pool)

    def abandon(self) -> None:
        """Let go of them."""
        for arrival in tuple(self.arrivals):
            arrival.close()
        self.pool.kill(block=False)

    def disown(self) -> None:
        """In a forked child: stop listening. The parent goes on, and with it the path of a unix socket."""
        self._path = None
        self.close()

    def disown_clients(self) -> None:
        """In a forked child: let go of clients that are not upgraded."""
        for arrival in tuple(self.arrivals):
            arrival.disown()
        for greenlet in tuple(self.pool):
            close_descriptor(greenlet.args[0])
            if greenlet is not gevent.getcurrent():  # an `http_app` that forks goes on in the child too
                greenlet.kill(block=False)

    def close(self) -> None:
        super().close()
        if self._path is not None:
            path, self._path = self._path, None
            try:
                os.unlink(path)
            except OSError as error:  # another program has removed it, as we wanted to
                logger.debug("could not remove the socket %r: %s", path, error)


class _Arrival:
    """A client that has sent nothing yet. Its watcher and timer cost a tenth of a greenlet's memory.

    Args:
        listener: what accepted it.
        sock: a plain non-blocking socket.
        address: the peer's.
        header: what the peer must begin with, to say whose address counts instead; `None` for nothing.
    """

    __slots__ = ("_accepted", "_address", "_header", "_listener", "_sock", "_timer", "_watcher")

    def __init__(self, listener: Listener, sock: Any, address: Any, header: ProxyHeader | None = None) -> None:
        self._listener = listener
        self._sock = sock
        self._address = address
        self._header = header
        self._accepted = time.monotonic()
        self._watcher: Any = None
        self._timer: Any = None

    def look(self) -> None:
        """Answer the client, or give it a greenlet, if it has sent something; else wait for that."""
        listener = self._listener
        try:
            if self._header is not None and not self._read_header(self._header):
                return
            done = listener.tls is None and listener.upgrade_at_once(self._sock, self._address)
        except BlockingIOError:
            if self._watcher is None:
                self._wait()
            return
        except OSError:
            done = False  # broken already; pywsgi finds that out, and it is logged
        except BaseException:
            # A fault of ours, which the hub prints. Left open, the client would raise it again and again.
            self.close()
            raise
        self._stop()
        if not done:
            listener.serve(self._sock, self._address, self._accepted)

    def _read_header(self, header: ProxyHeader) -> bool:
        """Read what has come of the header, and not a byte more; return whether the client is still there.

        Raises:
            BlockingIOError: it is not complete yet.
        """
        while not header.complete:
            try:
                data = self._sock.recv(_MOST_PEEKED, socket.MSG_PEEK)
                if not data and not header.begun:  # as a load balancer looks whether somebody listens
                    self.close()
                    return False
                if not data:
                    raise Malformed("it ended in the middle")
                self._sock.recv(header.feed(data))
            except BlockingIOError:
                raise
            except (Malformed, OSError) as error:
                self._refuse(str(error))
                return False
        self._header = None
        if header.client is not None:
            self._address = header.client
        return True

    def _refuse(self, why: str) -> None:
        listener = self._listener
        if listener.tls is None:
            text = "This port takes connections of a proxy that speaks the PROXY protocol.\n"
            try:
                self._sock.send(refusal(400, text).serialize())
                self._sock.recv(_MOST_PEEKED)  # what was not read would reset the connection, and the answer be lost
            except OSError:  # it is gone: the log has it all the same
                pass
        self.close()
        gevent.spawn(note_unproxied, listener.receiver, self._address, f"no header of the PROXY protocol: {why}")

    def _wait(self) -> None:
        loop = self._listener.loop
        self._watcher = loop.io(self._sock.fileno(), 1)
        self._watcher.start(self.look)
        limit = self._listener.receiver.options.handshake_timeout
        if limit is not None:
            self._timer = loop.timer(limit)
            self._timer.start(self._expired)
        self._listener.arrivals.add(self)

    def _expired(self) -> None:
        self.close()
        gevent.spawn(self._listener.note_late, self._address)

    def close(self) -> None:
        self._stop()
        close_socket(self._sock)

    def disown(self) -> None:
        """In a forked child: close this process's copy only; the connection is the parent's."""
        self._stop()
        self._sock.close()

    def _stop(self) -> None:
        for watcher in (self._watcher, self._timer):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._listener.arrivals.discard(self)

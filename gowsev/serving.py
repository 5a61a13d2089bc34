"""`Serving`: the words of a context that bring connections in, by listeners, other servers and other clients."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, overload

from gowsev.opening.address import listen, parse_port
from gowsev.opening.certificate import Certificate, check_server_context
from gowsev.opening.listener import Listener
from gowsev.opening.serve_http import serve
from gowsev.request import Accept

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from gowsev.loop.loop import Loop
    from gowsev.opening.admission import Admission
    from gowsev.options import Options

__all__ = ["Serving"]


class Serving:
    """The part of a `Context` that gets it connections. `Context.__init__` sets the attributes."""

    options: Options
    _loop: Loop
    _admission: Admission

    def ListenAndServe(self, port: str | int) -> tuple[str, int]:
        """Listen on a port, and serve connections from then on. May be called many times.

        Args:
            port: `"9000"`, `":9000"` or `9000` for all interfaces, IPv6 and IPv4; `"127.0.0.1:9000"`,
                `"[::1]:9000"`; `"unix:/path"`. Port 0 lets the system choose.

        Returns:
            The host and port that are listened on; for a unix socket, its path and 0.

        Raises:
            TypeError, ValueError: `port` names no address.
            OSError: the address cannot be listened on; the text names it.
            RuntimeError: the context has been shut down, or this is not the thread that made it.
        """
        return self._listen(port, None)

    @overload
    def ListenAndServeTLS(self, port: str | int, certFile: str, keyFile: str) -> tuple[str, int]: ...
    @overload
    def ListenAndServeTLS(self, port: str | int, *, ssl_context: ssl.SSLContext) -> tuple[str, int]: ...
    def ListenAndServeTLS(
        self,
        port: str | int,
        certFile: str | None = None,
        keyFile: str | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> tuple[str, int]:
        """Listen as `ListenAndServe` does, with TLS: with the two files, TLS 1.2 or newer.

        Args:
            port: as for `ListenAndServe`.
            certFile: a PEM file with the certificate and those that lead to its authority.
            keyFile: a PEM file with its key. Both are read again when they change.
            ssl_context: in place of the files, a context of the program's own, as for clients with certificates. It is
                used as it is, for each new connection; what the program changes in it holds from the next one on.

        Raises:
            OSError: also when the files are no certificate and key (`ssl.SSLError`).
            TypeError: also when neither the two files nor `ssl_context` are given, or that is no `ssl.SSLContext`.
            ValueError: also when both are given, or `ssl_context` is a client's or has no certificate.
        """
        parse_port(port)
        return self._listen(port, _tls(certFile, keyFile, ssl_context))

    def _listen(self, port: str | int, tls: Callable[[], ssl.SSLContext] | None) -> tuple[str, int]:
        address = parse_port(port)
        self._loop.check_may_begin()
        return self._loop.serve(Listener(listen(address, self.options), address, self._admission, tls))

    def AddConn(self, conn: object) -> int:
        """Take an outside connection into the loop: its messages and its end come like those of any other.

        `ConnAccepted` is not called for it, as in Go.

        Args:
            conn: what `Dial` returned, which keeps the options that it was dialled with, or an open `WebSocket` of
                gevent-websocket or websocket-client; it must not be used by itself any more.

        Returns:
            Its id.

        Raises:
            TypeError: `conn` is nothing that can be taken over.
            ValueError: it was added before.
            RuntimeError: the context has been shut down, or this is not the thread that made it.
        """
        self._loop.check_may_begin()
        return self._admission.add(conn).id

    def ServeHTTP(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Upgrade a request that another server has read: the context as a WSGI application, after Go's `http.Handler`.

        A Flask view returns it: `return context.ServeHTTP`. It works under gevent's `WSGIServer`, best with
        `handler_class=gowsev.WebSocketHandler`, and under gunicorn with `-k gevent` or, best, with the worker
        `gowsev.gunicorn.Worker`. Options and `ConnRequested` hold as with `ListenAndServe`. Under gevent-websocket's
        handler a refusal is a close frame, and nothing is negotiated. What is no upgrade is answered with 426.

        May block the calling greenlet, for `ConnRequested`, for at most `Options.handshake_timeout`. When it returns,
        the connection belongs to the loop, and the server's greenlet is free.

        Args:
            environ: the request, as PEP 3333 has it.
            start_response: begins the response, likewise.

        Raises:
            RuntimeError: the server is none of these, or this is not the thread that made the context.
        """
        return serve(self._admission, environ, start_response)

    def Upgrade(self, accept: Accept) -> WSGIApplication:
        """Return a WSGI application that upgrades as `ServeHTTP` does, with what a view has found out about the client.

        A Flask view returns `context.Upgrade(gowsev.Accept(user))`. `ConnRequested` is not asked.

        Raises:
            TypeError: `accept` is no `Accept`.
            ValueError: when it is called, where the client does not offer the subprotocol.
        """
        if not isinstance(accept, Accept):
            raise TypeError(f"accept must be a gowsev.Accept, not {accept!r}")
        return partial(serve, self._admission, decided=accept)


def _tls(
    cert_file: str | None, key_file: str | None, ssl_context: ssl.SSLContext | None
) -> Callable[[], ssl.SSLContext]:
    """Return what gives a listener the TLS context for its next client."""
    if ssl_context is None:
        if cert_file is None or key_file is None:
            raise TypeError(
                f"ListenAndServeTLS needs certFile and keyFile, not {cert_file!r} and {key_file!r}, or ssl_context"
            )
        return Certificate(cert_file, key_file).context
    if cert_file is not None or key_file is not None:
        raise ValueError(
            f"ssl_context {ssl_context!r} cannot be given beside certFile and keyFile, {cert_file!r} and {key_file!r}"
        )
    checked = check_server_context(ssl_context)
    return lambda: checked

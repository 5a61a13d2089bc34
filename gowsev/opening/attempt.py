"""What `Dial` does: from what a program wants to a socket whose opening handshake is done, or a `DialError`.

Whatever fails says at which step; all of it has one limit of time; and nothing leaves the socket behind. A redirect is
one more round, as is another address of a server behind a SOCKS proxy that does not look up names.
"""

from __future__ import annotations

import inspect
import os
import ssl
import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import gevent
import gevent.socket
from gevent import monkey
from websockets.client import ClientProtocol

from gowsev.arguments import as_tokens, seconds_or_none
from gowsev.connection.fork import telling_in_child
from gowsev.connection.sockets import close_socket
from gowsev.connection.tls import TLSSocket
from gowsev.errors import DialError
from gowsev.opening.client_handshake import Refused, read_body, shake_hands
from gowsev.opening.connecting import connect, connect_unix, interleaved
from gowsev.opening.framing import judge_framing
from gowsev.opening.handshake import SILENT, HTTPRequest
from gowsev.opening.proxy import choose_proxy
from gowsev.opening.redirect import kept_headers, location_of, same_host
from gowsev.opening.tunnel import check_socks, open_tunnel
from gowsev.opening.upgrade import Ends, certificate_of, describe
from gowsev.opening.url import parse_url
from gowsev.options import Options
from gowsev.request import FRAMING, Request, header_pairs
from gowsev.wire import deflate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from websockets.typing import Origin, Subprotocol

    from gowsev.opening.proxy import Proxy
    from gowsev.opening.url import Target

    Value = TypeVar("Value")

__all__ = ["Opened", "Wanted", "check_names", "check_wanted", "open_connection"]

#: What is allowed at most for `follow_redirects`; browsers follow 20.
_MOST_REDIRECTS = 20


class Wanted(NamedTuple):
    """What a program wants of `Dial`, checked."""

    target: Target
    seconds: float | None
    headers: tuple[tuple[str, str], ...]
    origin: str | None
    subprotocols: tuple[str, ...]
    ssl_context: ssl.SSLContext | None
    options: Options
    proxy: str | Literal[True] | None
    unix: str | None
    redirects: int

    def choose_proxy(self) -> Proxy | None:
        """Return the proxy by which the server is reached, if any.

        Raises:
            TypeError, ValueError: it is none that can be used.
            ImportError: what it takes is not installed.
        """
        proxy = None if self.unix is not None else choose_proxy(self.proxy, self.target.uri)
        check_socks(proxy)
        return proxy


class Opened(NamedTuple):
    """A connection whose opening handshake is done."""

    sock: Any
    client: ClientProtocol
    request: Request
    leftover: bytes
    options: Options


def check_wanted(
    url: str,
    *,
    timeout: float | timedelta | None = 10.0,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    origin: str | None = None,
    subprotocols: Iterable[str] = (),
    ssl_context: ssl.SSLContext | None = None,
    options: Options | None = None,
    proxy: str | Literal[True] | None = True,
    unix: str | os.PathLike[str] | None = None,
    follow_redirects: int = 0,
) -> Wanted:
    """Check the arguments of `Dial`, which names what may be wrong with them."""
    target = parse_url(url)
    seconds = seconds_or_none("timeout", timeout)
    offered = as_tokens("subprotocols", subprotocols)
    pairs = _checked_headers(headers or ())
    if origin is not None:
        header_pairs([("Origin", origin)])
    _checked("ssl_context", ssl_context, monkey.get_original("ssl", "SSLContext"))  # gevent's is derived from it
    if isinstance(follow_redirects, bool) or not isinstance(follow_redirects, int):
        raise TypeError(f"follow_redirects must be an int, not {follow_redirects!r}")
    if not 0 <= follow_redirects <= _MOST_REDIRECTS:
        raise ValueError(f"follow_redirects must be from 0 to {_MOST_REDIRECTS}, not {follow_redirects}")
    path = None if unix is None else _checked_path(unix)
    if path is not None and isinstance(proxy, str):
        raise ValueError("proxy and unix cannot be given both: a unix socket is on this machine")
    options = _checked("options", options, Options) or Options()
    wanted = Wanted(target, seconds, pairs, origin, offered, ssl_context, options, proxy, path, follow_redirects)
    wanted.choose_proxy()
    return wanted


#: The names of these arguments.
_NAMES = frozenset(inspect.signature(check_wanted).parameters)


def check_names(function: str, names: Iterable[str]) -> None:
    """Check the names of arguments that a function takes for `Dial`.

    Raises:
        TypeError: `Dial` has no such argument; the text names it, and `function`.
    """
    for name in names:
        if name not in _NAMES:
            known = name in {field.name for field in fields(Options)}
            hint = f"; options=gowsev.Options({name}=...) takes it" if known else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


def _checked_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    pairs = header_pairs(headers)
    for name, _ in pairs:
        if name.lower() in FRAMING or name.lower().startswith("sec-websocket-"):
            raise ValueError(
                f"header {name} is made by the handshake itself; subprotocols= and options= say what it offers"
            )
    if hosts := [pair for pair in pairs if pair[0].lower() == "host"]:
        judge_framing("HTTP/1.1", hosts)  # RFC 9112 section 3.2: a server refuses two, and one that is none
    return pairs


def _checked_path(unix: str | os.PathLike[str]) -> str:
    path = os.fspath(unix) if isinstance(unix, str | os.PathLike) else None
    if not isinstance(path, str):
        raise TypeError(f"unix must be a path or None, not {unix!r}")
    if not path:
        raise ValueError("unix must be a path, not ''")
    return path


def _checked(name: str, value: Value | None, kind: type[Value]) -> Value | None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__} or None, not {value!r}")
    return value


def open_connection(wanted: Wanted) -> Opened:
    """Connect, and shake hands. Blocks the calling greenlet.

    Raises:
        DialError: that failed.
    """
    seconds = wanted.seconds
    limit = gevent.Timeout(seconds)
    deadline = None if seconds is None else time.monotonic() + seconds
    dialling = _Dialling(wanted)
    with dialling, telling_in_child(dialling):
        try:
            with limit:
                return dialling.run()
        except gevent.Timeout as expired:
            if expired is not limit:
                raise
            raise DialError(
                f"{dialling.name}: timed out after {seconds} s {dialling.step}", proxy=dialling.proxy
            ) from None
        except Refused as refused:
            response = refused.response
            raise DialError(
                f"{dialling.name}: {refused}" + (f" ({dialling.step})" if dialling.proxy else ""),
                None if response is None else response.status_code,
                headers=None if response is None else response.headers,
                body=read_body(dialling.sock, refused, 1.0 if deadline is None else deadline - time.monotonic()),
                location=dialling.location(refused),
                proxy=dialling.proxy,
            ) from refused.__cause__
        except OSError as error:
            raise DialError(f"{dialling.name}: {error} ({dialling.step})", proxy=dialling.proxy) from error


class _Dialling:
    """A `Dial` in progress, in the greenlet that makes this."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.sock: Any = None
        self.step = "connecting"
        self.name = f"dial {wanted.target.safe_url}"
        self._proxy: Proxy | None = None
        self._greenlet = gevent.getcurrent()
        self._hub = gevent.get_hub()
        self._disowned = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.close()

    @property
    def proxy(self) -> str | None:
        """The proxy with which it has to do at this step."""
        return None if self._proxy is None else str(self._proxy)

    def run(self) -> Opened:
        """Connect and shake hands, and again where a redirect is to be followed."""
        while True:
            try:
                return self._attempt()
            except Refused as refused:
                wanted = self._redirected(refused)
                if wanted is None:
                    raise
            self.close()
            self._wanted = wanted
            self.name += f", redirected to {wanted.target.safe_url}"

    def _attempt(self) -> Opened:
        wanted = self._wanted
        uri = wanted.target.uri
        client = ClientProtocol(
            uri,
            origin=cast("Origin | None", wanted.origin),
            extensions=deflate.client_factories(wanted.options),
            subprotocols=cast("Sequence[Subprotocol]", wanted.subprotocols) or None,
            logger=SILENT,
        )
        self._connect()
        ends = Ends(self.sock.getpeername(), self.sock.getsockname(), uri.secure)  # now: a reset would take them away
        if uri.secure:
            self.step = "in the TLS handshake"
            self.sock = TLSSocket(self.sock, wanted.ssl_context or ssl.create_default_context(), uri.host)
            self.sock.do_handshake()
            ends = ends._replace(certificate=certificate_of(self.sock, ends.peer))
        self.step = "in the opening handshake"
        headers, leftover = shake_hands(self.sock, client, wanted.headers)
        return Opened(
            self.sock, client, describe(HTTPRequest(uri.resource_name, headers), ends), leftover, wanted.options
        )

    def _connect(self) -> None:
        """Connect to the server, by whichever way."""
        self.step = "connecting"
        uri = self._wanted.target.uri
        proxy = self._wanted.choose_proxy()
        if self._wanted.unix is not None:
            self.sock = connect_unix(self._wanted.unix)
        elif proxy is None:
            self.sock = connect(self._wanted.target.host, uri.port)
        else:
            hosts = [uri.host]
            if proxy.scheme == "socks5":
                found = gevent.socket.getaddrinfo(uri.host, uri.port, type=gevent.socket.SOCK_STREAM)
                hosts = [str(entry[4][0]) for entry in interleaved(found)]
            self._proxy = proxy
            self._tunnel(proxy, hosts)
            self._proxy = None

    def _tunnel(self, proxy: Proxy, hosts: list[str]) -> None:
        """Connect by a proxy to the first of these hosts that it reaches."""
        *others, last = hosts
        for host in others:
            try:
                return self._ask(proxy, host)
            except Refused:
                self.close()  # the next address of the server may be one that the proxy reaches
        return self._ask(proxy, last)

    def _ask(self, proxy: Proxy, host: str) -> None:
        self.step = f"connecting to the proxy {proxy}"
        self.sock = connect(proxy.host, proxy.port)
        self.step = f"by the proxy {proxy}"
        open_tunnel(self.sock, proxy, host, self._wanted.target.uri.port)

    def _redirected(self, refused: Refused) -> Wanted | None:
        """Return what is wanted after a redirect; `None` if it is none, or not to be followed.

        Raises:
            Refused: it leads to where it may not lead.
        """
        wanted, response = self._wanted, refused.response
        old = wanted.target.uri
        location = self.location(refused)
        if location is None or not wanted.redirects:
            return None
        try:
            target = parse_url(location)
        except ValueError:
            raise Refused(f"{refused}, to what is no URL of a WebSocket", response, refused.begun) from None
        new = target.uri
        if old.secure and not new.secure:
            raise Refused(f"{refused}, which is not followed from wss:// to ws://", response, refused.begun)
        at_home = same_host(old, new)
        if wanted.unix is not None and not at_home:
            raise Refused(f"{refused}, which is not followed from a unix socket", response, refused.begun)
        user, password = (old.username, old.password) if at_home else (None, None)
        return wanted._replace(
            target=target._replace(uri=replace(new, username=user, password=password)),
            headers=wanted.headers if at_home else kept_headers(wanted.headers),
            redirects=wanted.redirects - 1,
        )

    def location(self, refused: Refused) -> str | None:
        """Return where a refusal redirects to; `None` if it is no redirect, or the proxy's, which nobody has asked."""
        if refused.response is None or self._proxy is not None:
            return None
        return location_of(refused.response, self._wanted.target.safe_url)

    def close(self) -> None:
        """Close the socket, if there is one yet."""
        sock, self.sock = self.sock, None
        if sock is None:
            return
        if self._disowned:
            sock.close()
        else:
            close_socket(sock)

    def disown(self) -> None:
        """In a forked child: let the copy of the greenlet fail before it uses the socket, which is the parent's."""
        self._disowned = True
        error = ConnectionAbortedError("the process was forked meanwhile, and only the parent goes on with it")
        self._hub.loop.run_callback(self._greenlet.throw, error)

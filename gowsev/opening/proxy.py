"""Which proxy leads to a server, and what its URL says. No I/O.

The environment is read as `websockets` and curl do: a variable for the scheme of the server's URL (`wss_proxy`), for
SOCKS, for `https` and `http`, at last `all_proxy`; `no_proxy` names the servers that are dialled directly.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from websockets.proxy import get_proxy
from websockets.uri import WebSocketURI

__all__ = ["Proxy", "choose_proxy"]

_DEFAULT_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080}
_USER_INFO = re.compile(r"\A([a-z0-9]+://)?.*@", re.DOTALL | re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
#: RFC 1929: the length of a user name or password is one byte, and of at least 1.
_MOST_SOCKS = 255


class Proxy(NamedTuple):
    """A proxy."""

    scheme: str
    """`http` (which means CONNECT), `socks5`, or `socks5h` where the proxy looks up names."""
    host: str
    port: int
    user: str | None
    """`None` where it wants no credentials."""
    password: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def choose_proxy(proxy: str | Literal[True] | None, uri: WebSocketURI) -> Proxy | None:
    """Return the proxy by which to reach a server, if any.

    Args:
        proxy: its URL; `None` for none; `True` for what the environment says.
        uri: of the server.

    Raises:
        TypeError: `proxy` is none of these.
        ValueError: the URL is none of a proxy that can be used. Its password does not stand in the text.
    """
    if proxy is None:
        return None
    if proxy is True:
        found = _from_environment(uri)
        return None if found is None else _parse(found, "the proxy of the environment")
    if not isinstance(proxy, str):
        raise TypeError(f"proxy must be a URL, None for none, or True for that of the environment, not {proxy!r}")
    return _parse(proxy, "proxy")


def _from_environment(uri: WebSocketURI) -> str | None:
    found = get_proxy(uri)
    if found is None and not proxy_bypass(f"{uri.host}:{uri.port}"):
        found = getproxies().get("all")
    # As curl has it: "If the proxy string does not specify a scheme, http:// is assumed."
    return found if found is None or "://" in found else f"http://{found}"


def _parse(url: str, name: str) -> Proxy:
    # Not by `websockets.proxy.parse_proxy`, whose errors show the password, and which gives SOCKS the port 80.
    try:
        return _understand(url)
    except _Wrong as wrong:
        why = str(wrong)
    except ValueError:  # whose text may hold a part of the password
        why = "wrong host or port, or a user or password that is not percent-encoded"
    safe = _USER_INFO.sub(r"\1", url)
    raise ValueError(
        f"{name} must be like http://host:port, socks5://host:port or socks5h://host:port, not {safe!r}: {why}"
    )


class _Wrong(ValueError):
    """A fault whose text names no part of the URL."""


def _understand(url: str) -> Proxy:
    if _UNPRINTABLE.search(url):
        raise _Wrong("a blank or control character must be percent-encoded")
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    if parts.scheme not in _DEFAULT_PORTS:
        raise _Wrong("its scheme is none of these")
    if not host:
        raise _Wrong("it has no host")
    host.encode("idna")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _Wrong("nothing may stand behind host and port; in a password / ? # are percent-encoded")
    user = None if parts.username is None else unquote(parts.username, errors="strict")
    password = unquote(parts.password or "", errors="strict")
    if user is not None and parts.scheme == "http" and ":" in user:
        # RFC 7617 section 2: "a user-id containing a colon character is invalid"
        raise _Wrong("the user name of basic authorization cannot hold a colon")
    if user is not None and parts.scheme != "http":
        lengths = len(user.encode()), len(password.encode())
        if not all(0 < length <= _MOST_SOCKS for length in lengths):
            raise _Wrong("for SOCKS both user and password are of 1 to 255 bytes")
    return Proxy(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], user, password)

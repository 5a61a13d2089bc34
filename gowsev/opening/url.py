"""The address of a WebSocket server, as `Dial` takes it: RFC 6455 section 3, RFC 3986, RFC 6874. No I/O."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

__all__ = ["Target", "parse_url"]

_USER_INFO = re.compile(r"//[^/?#]*@")
#: Of a URL that is wrong: its scheme, and as far as a password that is not percent-encoded may reach.
_ALL_USER_INFO = re.compile(r"\A([a-z]+://)?.*@", re.DOTALL | re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")


class Target(NamedTuple):
    """Where to dial, and what to ask for there."""

    uri: WebSocketURI
    host: str
    """What to connect to: the host of `uri`, and its zone where it has one."""
    safe_url: str
    """The URL without user and password, which have no place in a log."""


def parse_url(url: str) -> Target:
    """Take a URL apart.

    Raises:
        TypeError: it is no str.
        ValueError: it is no WebSocket URL; the text names the part at fault.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be str, not {url!r}")
    safe_url = _USER_INFO.sub("//", url, count=1)
    try:
        if _UNPRINTABLE.search(url):
            raise InvalidURI(url, "a blank or control character must be percent-encoded")
        uri = parse_uri(url)
        # RFC 7617 section 2: "a user-id containing a colon character is invalid"
        if uri.username is not None and ":" in uri.username:
            raise InvalidURI(url, "the user name of basic authorization cannot hold a colon")
        uri.host.encode("idna")
    except (InvalidURI, ValueError) as error:
        safe_url = _ALL_USER_INFO.sub(r"\1", url)
        if isinstance(error, InvalidURI):
            why = error.msg
        elif safe_url == url:
            why = str(error)
        else:  # whose text may hold a part of the password
            why = "wrong host or port, or a user or password in which / ? # [ ] @ or others are not percent-encoded"
        raise ValueError(f"url must be like ws://host:port/path or wss://host/path, not {safe_url!r}: {why}") from None
    # RFC 6874 section 2: a zone stands behind "%25", and section 3 keeps it to ourselves.
    address, percent, zone = uri.host.partition("%")
    if ":" not in address or not percent:
        return Target(uri, uri.host, safe_url)
    return Target(replace(uri, host=address), f"{address}%{zone.removeprefix('25')}", safe_url)

"""Where a redirect leads, and what of a request may go there. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urldefrag, urljoin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from websockets.http11 import Response
    from websockets.uri import WebSocketURI

__all__ = ["kept_headers", "location_of", "same_host"]

#: RFC 9110 section 15.4: those that name another place. A handshake has no body, so that they are all alike.
_STATUSES = frozenset({301, 302, 303, 307, 308})

_HTTP = re.compile("http(s?):", re.IGNORECASE)

#: What is only for the host that it was meant for.
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})


def location_of(response: Response, safe_url: str) -> str | None:
    """Return the URL that a response redirects to, as `Dial` takes it; `None` if it is no redirect.

    Args:
        response: to our handshake.
        safe_url: which the handshake was for, without a password.
    """
    places = response.headers.get_all("Location")
    if response.status_code not in _STATUSES or not places:
        return None
    try:
        location = urldefrag(urljoin(safe_url, places[0])).url
    except ValueError:  # no URL: the program may still want to see what it is
        return places[0]
    # A handshake is a request for HTTP, and most servers that redirect it know of no other scheme.
    return _HTTP.sub(r"ws\1:", location, count=1)


def same_host(old: WebSocketURI, new: WebSocketURI) -> bool:
    """Whether what was meant for one URL may go to the other: to the same port, or from 80 to its counterpart 443."""
    if old.host != new.host:
        return False
    upgraded = (old.secure, old.port, new.secure, new.port) == (False, 80, True, 443)
    return upgraded or (old.secure <= new.secure and old.port == new.port)


def kept_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the headers that may go to another host."""
    return tuple((name, value) for name, value in headers if name.lower() not in _CREDENTIALS | {"host"})

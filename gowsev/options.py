"""`Options`: everything about a `Context` that can be set, validated when it is made.

Seconds are floats, sizes are bytes, and `None` turns a limit off. The defaults are meant to be safe on the open
internet without reading anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from wsgiref.types import WSGIApplication

from gowsev.arguments import as_networks, as_strings, as_tokens, check_whole, seconds_or_none

__all__ = ["Options"]


#: RFC 6454 section 6.2: a scheme and a host in lower case, perhaps a port, or `null`. An asterisk stands for any.
_ORIGIN = re.compile(r"\*|null|[a-z][-+.0-9a-z]*://[^/\\?#\sA-Z]+")

#: What fits into the system call.
_MOST_BACKLOG = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Settings of a `Context`, for the clients that come to it; or of a `Dial` or `Redial`, for what that opens.

    What each does stands below its field in `gowsev/options.py`, and in the table of `docs/at-a-glance.md`.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of its range; the text names the field, the value and what was expected.
    """

    max_message_bytes: int | None = 1 << 20
    """A longer message, however fragmented or compressed, is refused before it is held, with close code 1009;
    but for one in several frames that `FragmentReceived` gets."""
    max_connections: int | None = None
    """An upgrade beyond this number of open connections is answered with 503."""
    handshake_timeout: float | None = 10.0
    """Seconds from accept to upgrade, the TLS handshake included; also of an idle plain-HTTP keep-alive."""
    ping_interval: float | None = 20.0
    """Seconds of silence after which a ping is sent."""
    ping_timeout: float | None = 20.0
    """Seconds after that ping at which a peer still silent is given up. Any byte received is life."""
    close_timeout: float | None = 5.0
    """Seconds from our close frame to the end of the socket."""
    outbox_bytes: int | None = 4 << 20
    """A write is refused while more than this already waits for that connection."""
    slow_consumer: Literal["close", "drop"] = "close"
    """What a refused write does besides: `"close"` closes with 1013, `"drop"` leaves it at the refusal."""
    inbox_messages: int | None = 256
    """Undelivered messages of one connection at which its reader stops, so that TCP slows the peer."""
    inbox_bytes: int | None = 1 << 20
    """The same, counted in bytes."""
    allowed_origins: tuple[str, ...] | None = None
    """`None`: same origin only, for requests that carry `Origin` (browsers); else the origins; `("*",)` for any."""
    subprotocols: tuple[str, ...] = ()
    """Subprotocols the server speaks, in its order of preference (RFC 6455 section 1.9)."""
    compression: Literal["deflate"] | None = None
    """`"deflate"` negotiates permessage-deflate (RFC 7692)."""
    compression_min_bytes: int = 128
    """A shorter message is sent as it is: on its own it shrinks by less than an eighth."""
    compression_takeover: bool = False
    """Let messages refer to earlier ones of their connection: shorter, most of all where they are short and alike, but
    each is then compressed for each receiver, and each connection in use holds about 52 KB more."""
    http_app: WSGIApplication | None = None
    """WSGI application for requests that are no WebSocket upgrade; without one they are answered with 426."""
    backlog: int = 1024
    """Connections that the kernel holds for a listener until they are accepted."""
    reuse_port: bool = False
    """Set `SO_REUSEPORT` on listeners, so that several processes may share a port."""
    proxy_protocol: tuple[str, ...] | None = None
    """Proxies in front that begin each connection with the PROXY protocol, version 1 or 2: addresses, networks, or
    `"unix"` for a unix socket. `peer` is then the client's address. Listeners of the context refuse anybody else."""
    raise_errors: bool = False
    """Raise what a callback raises out of the iteration, instead of logging it and closing with 1011."""

    if TYPE_CHECKING:
        # What may be given is wider than what is then kept: the fields above say what is read.
        def __init__(
            self,
            *,
            max_message_bytes: int | None = 1 << 20,
            max_connections: int | None = None,
            handshake_timeout: float | timedelta | None = 10.0,
            ping_interval: float | timedelta | None = 20.0,
            ping_timeout: float | timedelta | None = 20.0,
            close_timeout: float | timedelta | None = 5.0,
            outbox_bytes: int | None = 4 << 20,
            slow_consumer: Literal["close", "drop"] = "close",
            inbox_messages: int | None = 256,
            inbox_bytes: int | None = 1 << 20,
            allowed_origins: Iterable[str] | None = None,
            subprotocols: Iterable[str] = (),
            compression: Literal["deflate"] | None = None,
            compression_min_bytes: int = 128,
            compression_takeover: bool = False,
            http_app: WSGIApplication | None = None,
            backlog: int = 1024,
            reuse_port: bool = False,
            proxy_protocol: Iterable[str] | None = None,
            raise_errors: bool = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        for name in ("max_message_bytes", "max_connections", "outbox_bytes", "inbox_messages", "inbox_bytes"):
            check_whole(name, getattr(self, name), 1, optional=True)
        check_whole("backlog", self.backlog, 1)
        check_whole("compression_min_bytes", self.compression_min_bytes, 1)
        if self.backlog > _MOST_BACKLOG:
            raise ValueError(f"backlog must be at most {_MOST_BACKLOG}, not {self.backlog!r}")
        for name in ("handshake_timeout", "ping_interval", "ping_timeout", "close_timeout"):
            value = seconds_or_none(name, getattr(self, name))
            if value == 0:
                raise ValueError(f"{name} must be above 0; None turns it off")
            _set(self, name, value)
        _one_of("slow_consumer", self.slow_consumer, ("close", "drop"))
        _one_of("compression", self.compression, (None, "deflate"))
        _set(self, "subprotocols", as_tokens("subprotocols", self.subprotocols))
        if self.allowed_origins is not None:
            # Any other would equal nothing that a browser sends, and allow no page.
            expected = "origins like 'https://example.com', 'null' or '*'"
            _set(self, "allowed_origins", as_strings("allowed_origins", self.allowed_origins, _ORIGIN, expected))
        if self.proxy_protocol is not None:
            _set(self, "proxy_protocol", as_networks("proxy_protocol", self.proxy_protocol))
        if self.http_app is not None and not callable(self.http_app):
            raise TypeError(f"http_app must be a WSGI application (a callable) or None, not {self.http_app!r}")
        for name in ("compression_takeover", "reuse_port", "raise_errors"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")


def _set(options: Options, name: str, value: object) -> None:
    object.__setattr__(options, name, value)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")

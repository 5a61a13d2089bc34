"""The address of a Redis: what it says, and what is wrong with it. No I/O.

The text of an error repeats nothing of the address but its options: any other part could be one of a password.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

__all__ = ["Address", "ordinary_connection", "parse"]

_ENCODE = "in a name and a password, @ / ? # % [ ] are percent-encoded, such as %2F for /"
#: What may stand behind the ?; timeouts, retries and encodings are ours to choose.
_OPTIONS = {"client_name", "db", "password", "username"}
_TLS = {"ca_certs", "ca_path", "certfile", "check_hostname", "cert_reqs", "keyfile", "password"}


class Address(NamedTuple):
    """Where a Redis is, and how it is spoken to."""

    host: str
    port: int
    path: str
    """Of a unix socket; empty for TCP."""
    tls: dict[str, Any] | None
    """Options of TLS; `None` without it."""
    options: dict[str, Any]
    """What `redis.Connection` takes besides: name, password, database."""
    all: dict[str, Any]
    """What redis-py makes of it."""
    shown: str
    """For the log: without name, password and options."""

    def hide(self, text: str) -> str:
        """Take what is secret out of a text for the log."""
        password = self.options.get("password")
        return text.replace(password, "...") if password else text


def parse(url: object) -> Address:
    """Take the address of a Redis apart.

    Raises:
        TypeError: it is not str.
        ValueError: it is none, or would be understood in part only.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be str, not {type(url).__name__}")
    parts = _split(url)
    try:
        everything: dict[str, Any] = parse_url(url)
        options = dict(everything)
        options.pop("connection_class", None)
        tls = {name[4:]: options.pop(name) for name in list(options) if name.startswith("ssl_")}
        options["db"] = int(options.get("db", 0))
    except ValueError as error:
        raise ValueError(f"url: what stands behind the ? is not understood: {error}") from None
    address = Address(
        host=options.pop("host", "localhost"),
        port=options.pop("port", 6379),
        path=options.pop("path", ""),
        tls=tls if parts.scheme == "rediss" else None,
        options=options,
        all=everything,
        shown=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
    )
    try:
        ordinary_connection(address)  # which does not connect yet
    except redis.RedisError as error:
        raise ValueError(f"url: what stands behind the ? is not understood: {error}") from None
    return address


def ordinary_connection(address: Address, timeout: float = 5.0) -> redis.Connection:
    """Return redis-py's own connection, not opened yet.

    Args:
        address: where to.
        timeout: seconds for Redis to accept, and to answer.
    """
    options = dict(address.all)
    kind = options.pop("connection_class", redis.Connection)
    made: redis.Connection = kind(
        **options, socket_timeout=timeout, socket_connect_timeout=timeout, protocol=2, retry=Retry(NoBackoff(), 0)
    )
    return made


def _split(url: str) -> SplitResult:
    try:
        url.encode()
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"url: its host or port is not understood; {_ENCODE}") from None  # urllib's texts repeat it
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("url must begin with redis://, rediss:// or unix://")
    # What stands before the host's @ ends at the first of these three, and what is left could pass for a path.
    behind = f"{parts.path}?{parts.query}#{parts.fragment}"
    if parts.fragment or ("@" in behind and (parts.scheme != "unix" or parts.netloc)):
        raise ValueError(f"url: the @ before the host stands too far behind, or there is a #; {_ENCODE}")
    if parts.scheme == "unix" and (host or not parts.path):
        raise ValueError(f"url: in unix:// a path follows, or NAME:PASSWORD@ and a path; {_ENCODE}")
    if parts.scheme != "unix" and not host and (port is not None or parts.netloc):
        raise ValueError(f"url: there is no host; {_ENCODE}")
    if "%" in host and ":" not in host:
        raise ValueError(f"url: its host is not understood: the @ before it is not percent-encoded; {_ENCODE}")
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not (database.isascii() and database.isdecimal()):
        raise ValueError("url: a database is a number")
    allowed = _OPTIONS | ({f"ssl_{name}" for name in _TLS} if parts.scheme == "rediss" else set())
    if others := parse_qs(parts.query, keep_blank_values=True).keys() - allowed:
        raise ValueError(f"url: {', '.join(sorted(others))} cannot be chosen behind the ?")
    return parts

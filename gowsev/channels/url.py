"""The address of a Redis: what it says, and what is wrong with it. No I/O.

The text of an error repeats nothing of the address but its options: any other part could be one of a password.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

__all__ = ["Address", "ordinary_connection", "parse"]

_ENCODE = "in a name and a password, @ / ? # % [ ] are percent-encoded, such as %2F for /"
#: What may stand behind the ?; timeouts, retries and encodings are ours to choose.
_OPTIONS = {"client_name", "db", "password", "username"}
_TLS = {"ca_certs", "ca_path", "certfile", "check_hostname", "cert_reqs", "keyfile", "password"}
#: Of an address by way of Sentinel, how the sentinels themselves are spoken to.
_OF_SENTINELS = {"sentinel_password": "password", "sentinel_username": "username"}
_SEVERAL = re.compile(r"(rediss?)\+(sentinel|cluster)://([^/?#]*)([^?#]*)(?:\?(.*))?", re.DOTALL)
_SENTINEL_PORT = 26379


class Address(NamedTuple):
    """Where a Redis is, and how it is spoken to."""

    host: str
    port: int
    path: str
    """Of a unix socket; empty for TCP."""
    tls: dict[str, Any] | None
    """Options of TLS; `None` without it."""
    options: dict[str, Any]
    """Further arguments of `redis.Connection`: name, password, database."""
    all: dict[str, Any]
    """What redis-py makes of it."""
    shown: str
    """For the log: without name, password and options."""
    sentinels: tuple[Address, ...] = ()
    """The sentinels, which are asked where the master is; then `host` and `port` are not its own."""
    service: str = ""
    """What the sentinels call it."""
    members: tuple[Address, ...] = ()
    """Of a cluster, those that are known in advance."""

    def hide(self, text: str) -> str:
        """Take what is secret out of a text for the log."""
        for address in (self, *self.sentinels[:1]):
            if password := address.options.get("password"):
                text = text.replace(password, "...")
        return text

    def at(self, host: str, port: int) -> Address:
        """Return the address of another Redis that is spoken to in the same way."""
        return self._replace(
            host=host, port=port, all={**self.all, "host": host, "port": port}, sentinels=(), members=()
        )


def parse(url: object) -> Address:
    """Take the address of a Redis apart.

    Raises:
        TypeError: it is not str.
        ValueError: it is none, or would be understood in part only.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be str, not {type(url).__name__}")
    several = _SEVERAL.fullmatch(url)
    return _parse_several(*several.groups("")) if several else _parse_one(url)


def _parse_several(scheme: str, kind: str, authority: str, path: str, query: str) -> Address:
    """Take the address of a cluster, or of a Redis with sentinels, apart: each host is parsed by itself."""
    user, at, hosts = authority.rpartition("@")
    options = parse_qsl(query, keep_blank_values=True)
    own = urlencode([(name, value) for name, value in options if name not in _OF_SENTINELS])
    if kind == "cluster":
        if path.strip("/") not in ("", "0"):
            raise ValueError("url: a cluster has no other database than 0")
        if len(own) != len(urlencode(options)):
            raise ValueError("url: a cluster has no sentinels")
        members = tuple(_parse_one(f"{scheme}://{user}{at}{host}/0?{own}") for host in _hosts(hosts))
        return members[0]._replace(members=members, shown=f"{scheme}+cluster://{hosts}")
    service, _, database = path[1:].partition("/")
    if not service or "@" in path:
        raise ValueError(f"url: behind the sentinels there is no /NAME of what they watch; {_ENCODE}")
    master = _parse_one(f"{scheme}://{user}{at}localhost/{database}?{own}")
    theirs = {_OF_SENTINELS[name]: value for name, value in options if name in _OF_SENTINELS}
    sentinels = []
    for host in _hosts(hosts):
        port = urlsplit(f"//{host}").port or _SENTINEL_PORT
        of_tls = "&".join(word for word in own.split("&") if word.startswith("ssl_"))
        one = _parse_one(f"{scheme}://{host}/?{of_tls}").at(urlsplit(f"//{host}").hostname or "", port)
        sentinels.append(one._replace(options={**one.options, **theirs}, all={**one.all, **theirs}))
    return master._replace(
        sentinels=tuple(sentinels), service=unquote(service), shown=f"{scheme}+sentinel://{hosts}/{service}"
    )


def _hosts(hosts: str) -> list[str]:
    listed = hosts.split(",")
    if not all(listed):
        raise ValueError(f"url: between the commas there is no host; {_ENCODE}")
    for host in listed:
        _split(f"redis://{host}")  # its text repeats nothing of it
    return listed


def _parse_one(url: str) -> Address:
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
        raise ValueError(
            "url must begin with redis://, rediss:// or unix://, or with redis+sentinel:// or redis+cluster://"
        )
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

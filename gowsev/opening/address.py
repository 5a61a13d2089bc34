"""Where to listen: from the argument of `ListenAndServe` to a listening socket.

What comes to that socket is the business of `listener`.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent.socket
from gevent import monkey

if TYPE_CHECKING:
    from gowsev.options import Options

__all__ = ["Address", "listen", "parse_port"]

_PORT = re.compile(r"(?:(?P<host>\[[^\]]*\]|[^:\[\]]*):)?(?P<port>[0-9]{1,5})")


class Address(NamedTuple):
    """Where to listen."""

    host: str
    """Empty for all interfaces, IPv6 and IPv4; a path where `family` says so."""
    port: int
    family: int

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_port(port: str | int) -> Address:
    """Understand the argument of `ListenAndServe`.

    Raises:
        TypeError: it is neither str nor int.
        ValueError: it names no address.
    """
    wanted = "a port like '9000', ':9000', 9000, '127.0.0.1:9000', '[::1]:9000' or 'unix:/path'"
    if isinstance(port, bool) or not isinstance(port, str | int):
        raise TypeError(f"port must be {wanted}, not {port!r}")
    if isinstance(port, str) and port.startswith("unix:"):
        if not port[5:] or "\0" in port:
            raise ValueError(f"port must be {wanted}, not {port!r}")
        return Address(port[5:], 0, socket.AF_UNIX)
    match = _PORT.fullmatch(str(port))
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"port must be {wanted}, not {port!r}")
    host = (match["host"] or "").strip("[]")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"port must be {wanted}, not {port!r}: {error}") from None
    return Address(host, int(match["port"]), socket.AF_INET6 if ":" in host or not host else socket.AF_INET)


def listen(address: Address, options: Options) -> Any:
    """Open a listening socket.

    Raises:
        OSError: that fails; the text names the address.
    """
    sock = None
    try:
        sock = _bind(address, options)
        sock.listen(options.backlog)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from error
    return sock


def _bind(address: Address, options: Options) -> Any:
    if address.family == socket.AF_UNIX:
        _remove_stale(address.host)
        sock = gevent.socket.socket(socket.AF_UNIX)
        where: Any = address.host
    elif not address.host and not _has_ipv6():
        sock = gevent.socket.socket(socket.AF_INET)
        where = ("", address.port)
    else:
        where = (address.host, address.port)
        family = address.family
        if family == socket.AF_INET and not _is_ipv4(address.host):  # a name may have an IPv6 address only
            family, _, _, _, where = gevent.socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
        sock = gevent.socket.socket(family)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address.host else 0)
    try:
        if address.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:  # a name, then
        return False
    return True


def _has_ipv6() -> bool:
    try:
        gevent.socket.socket(socket.AF_INET6).close()
    except OSError:  # a kernel without IPv6: all interfaces are then all IPv4 ones
        return False
    return True


def _remove_stale(path: str) -> None:
    """Remove the unix socket that a dead process left at `path`."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:  # the ordinary case: the path is free
        return
    # A plain socket: gevent's would wait for room in the backlog of a live one.
    with monkey.get_original("socket", "socket")(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)

"""Whose connection it is, where proxies that are trusted say so in a header. No I/O."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from gowsev.arguments import TOKEN, as_networks
from gowsev.opening.proxy_protocol import Trusted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gowsev.conn import Conn
    from gowsev.request import Request

__all__ = ["TrustedProxies"]

#: RFC 7239 section 4: pairs of a name and a token or a quoted string; here, those of `for`.
_FOR = re.compile(r'(?:^|[;\s])for=(?:"([^"]*)"|([^\s;"]*))', re.IGNORECASE)
#: An address with its port, as proxies may write it: [2001:db8::1]:4711, 192.0.2.1:4711.
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d+)?|([\d.]+):\d+")


class TrustedProxies:
    """The proxies in front of a server that are believed when they say in a header who the client is.

    A proxy that says it with the PROXY protocol is believed by `Options.proxy_protocol`.

    Args:
        trusted: their addresses or networks, such as `("127.0.0.1", "10.0.0.0/8")`; `"unix"` for whoever connects over
            a unix socket.
        header: the one that they set: X-Forwarded-For or one of its form, a list of addresses; or Forwarded (RFC 7239).
            Any other header is what a client sends.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `trusted` holds no address, or what is none; or no header has this name.
    """

    __slots__ = ("_header", "_trusted")

    def __init__(self, trusted: Iterable[str], header: str = "X-Forwarded-For") -> None:
        self._trusted = Trusted(as_networks("trusted", trusted))
        if not isinstance(header, str):
            raise TypeError(f"header must be a str, not {header!r}")
        if not TOKEN.fullmatch(header):
            raise ValueError(f"header must be the name of a header, not {header!r}")
        self._header = header.lower()

    def client(self, asked: Request | Conn) -> tuple[str, int]:
        """Return the address of the client, in the form of `peer`.

        Each proxy has added to the header who came to it, and the client may have begun it with lies. So it is read
        from its end: the client is the first there that is no trusted proxy. What is no address ends the search.

        Args:
            asked: what the program is told of the client, in `ConnRequested` or by `Context.Conn`.

        Returns:
            A host and a port: `peer` where no trusted proxy says more; else the port, which no header tells for sure,
            is 0.
        """
        address = asked.peer
        if (address if address[0] else None) not in self._trusted:
            return address
        for said in reversed(",".join(asked.headers.get_all(self._header)).split(",")):
            try:
                ip = ip_address(self._host(said.strip()))
            except ValueError:  # "unknown", an obfuscated name, or nothing: nobody knows more than what we have
                break
            address = str(getattr(ip, "ipv4_mapped", None) or ip), 0
            if address not in self._trusted:
                break
        return address

    def _host(self, said: str) -> str:
        """Return what one proxy says, without a port."""
        if self._header == "forwarded":
            match = _FOR.search(said)
            said = (match[1] or match[2] or "") if match else ""
        with_port = _WITH_PORT.fullmatch(said)
        return (with_port[1] or with_port[2]) if with_port else said

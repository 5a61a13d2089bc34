"""Whose connection it is, where it comes through proxies that are trusted to say so. No I/O."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from websockets.datastructures import Headers

__all__ = ["Proxies"]

#: RFC 7239 section 4: pairs of a name and a token or a quoted string; here, those of `for`.
_FOR = re.compile(r'(?:^|[;\s])for=(?:"([^"]*)"|([^\s;"]*))', re.IGNORECASE)
#: An address with its port, as both headers may have it: [2001:db8::1]:4711, 192.0.2.1:4711.
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d+)?|([\d.]+):\d+")


class Proxies:
    """Those that are trusted.

    Args:
        trusted: addresses and networks; "unix" for whoever connects over a unix socket.
        header: "x-forwarded-for" or "forwarded": the one that they set. The other is whatever a client sends.

    Raises:
        ValueError: one is no address.
    """

    def __init__(self, trusted: Iterable[str] = (), header: str = "x-forwarded-for") -> None:
        trusted = set(trusted)
        self._unix = "unix" in trusted
        self._networks = [ip_network(one) for one in trusted - {"unix"}]
        self._header = header

    def client(self, peer: tuple[str, int], headers: Headers) -> str:
        """Return the address of the client: the last one that no trusted proxy has.

        A header says who came to each proxy, and the client may have begun it with lies: so it is read from its end.
        """
        address = peer[0]
        if not (self._unix if not address else self._is_trusted(address)):
            return f"{address}:{peer[1]}" if address else "unknown"
        for said in reversed(",".join(headers.get_all(self._header)).split(",")):
            if self._header == "forwarded":
                match = _FOR.search(said.strip())
                said = (match[1] or match[2] or "") if match else ""
            with_port = _WITH_PORT.fullmatch(said.strip())
            said = (with_port[1] or with_port[2]) if with_port else said.strip()
            try:
                address = str(ip_address(said))
            except ValueError:  # "unknown", an obfuscated name, or nothing: nobody knows more than what we have
                break
            if not self._is_trusted(address):
                break
        return address or "unknown"

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:  # a socket's own address is one; what a header says has been looked at
            return False
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(mapped in network for network in self._networks)

"""From a connected proxy to a stream that ends at the server: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5.

SOCKS5 (RFC 1928, RFC 1929) is spoken by the package `socksio`, an extra, which does no I/O. It takes each answer of the
proxy whole, so that these are read here byte by byte as long as they are: what follows the last one is the server's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from websockets.headers import build_authorization_basic

from gowsev.opening.client_handshake import Refused, read_response

if TYPE_CHECKING:
    from gowsev.opening.proxy import Proxy

__all__ = ["check_socks", "open_tunnel"]


def check_socks(proxy: Proxy | None) -> None:
    """Check that what a proxy takes is installed.

    Raises:
        ImportError: it is not; the text names the extra.
    """
    if proxy is not None and proxy.scheme != "http":
        try:
            import_module("socksio")
        except ImportError:
            raise ImportError(f"the proxy {proxy} takes the package socksio: pip install 'gowsev[socks]'") from None


def open_tunnel(sock: Any, proxy: Proxy, host: str, port: int) -> None:
    """Let a proxy connect to a server. Blocks the calling greenlet.

    Args:
        sock: connected to the proxy; from then on to the server.
        proxy: how it is spoken to, and as whom.
        host: the server's name or address.
        port: the server's.

    Raises:
        Refused: the proxy does not want to, or cannot.
        OSError: the connection broke.
    """
    if proxy.scheme == "http":
        _connect(sock, proxy, host, port)
    else:
        _socks(sock, proxy, host, port)


def _connect(sock: Any, proxy: Proxy, host: str, port: int) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user is not None:
        lines.append(f"Proxy-Authorization: {build_authorization_basic(proxy.user, proxy.password)}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    response, leftover = read_response(sock, "the proxy")
    # "Any 2xx (Successful) response indicates that the sender (and all inbound proxies) will switch to tunnel mode"
    if not 200 <= response.status_code < 300:
        reason = f"{response.status_code} {response.reason_phrase}".strip()
        raise Refused(f"the proxy answered HTTP {reason}", response, leftover)
    if leftover:  # a server has nothing to say before it is asked
        raise Refused("the proxy sent something behind its answer to CONNECT")


def _socks(sock: Any, proxy: Proxy, host: str, port: int) -> None:
    from socksio import ProtocolError, socks5

    if len(host) > _LONGEST_NAME:
        raise Refused("SOCKS takes no name of more than 255 bytes")
    socks: Any = socks5.SOCKS5Connection()

    def ask(request: Any, length: int) -> Any:
        socks.send(request)
        sock.sendall(socks.data_to_send())
        answer = _read(sock, length)
        if length == _REPLY:  # RFC 1928 section 6: the length of the address depends on its type
            answer += _read(sock, {3: answer[4] + 2, 4: 17}.get(answer[3], 5))
        return socks.receive_data(answer)

    methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if proxy.user is not None:
        methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
    try:
        chosen = ask(socks5.SOCKS5AuthMethodsRequest(methods), 2).method
        if chosen not in methods:
            raise Refused(f"the proxy {'takes no' if proxy.user else 'wants a'} user and password")
        if chosen == socks5.SOCKS5AuthMethod.USERNAME_PASSWORD:
            assert proxy.user is not None
            credentials = socks5.SOCKS5UsernamePasswordRequest(proxy.user.encode(), proxy.password.encode())
            if not ask(credentials, 2).success:
                raise Refused("the proxy does not accept the user and password")
        wanted = socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, port))
        reply = ask(wanted, _REPLY).reply_code
    except ProtocolError:
        raise Refused("the proxy's answer is no SOCKS5") from None
    if reply != socks5.SOCKS5ReplyCode.SUCCEEDED:
        raise Refused(f"the proxy answered {reply.name.lower().replace('_', ' ')}")


#: RFC 1928 section 5: the length of a name is one byte.
_LONGEST_NAME = 255

#: The bytes of a reply up to the first of its address.
_REPLY = 5


def _read(sock: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        received = sock.recv(length - len(data))
        if not received:
            raise Refused("the proxy closed the connection")
        data += received
    return data

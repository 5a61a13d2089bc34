"""One connection to Redis, on gevent's sockets whether the process is patched or not.

redis-py speaks the protocol; the socket is opened here. One greenlet may read while another sends.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

import gevent.socket
import gevent.ssl
import redis
from gevent import monkey
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError
from redis.retry import Retry

from gowsev.connection.fork import close_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gowsev.channels.url import Address

__all__ = ["ANSWER", "ASKED", "FAILED", "Line", "ask_once"]

#: Seconds for Redis to accept, to take what is sent, and to answer.
ANSWER = 5.0
#: Seconds to answer for those who are asked where a Redis is, and for them to accept; others can be asked.
ASKED = 2.0
#: What a call of a line fails with; redis-py does not wrap everything that a socket raises.
FAILED = (redis.RedisError, OSError)
# gevent's own would let other greenlets run, even where it is not to wait.
_poll = monkey.get_original("select", "poll")
_NO_TLS_CHECK = {"none": gevent.ssl.CERT_NONE, "optional": gevent.ssl.CERT_OPTIONAL}


class _OnGevent(redis.Connection):
    """redis-py's connection, on a socket that is opened by a function it is given."""

    def __init__(self, open_socket: Callable[[], Any], **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._open_socket = open_socket

    def _connect(self) -> Any:
        # The method in which redis-py's own connections, to unix sockets and through TLS, open theirs.
        return self._open_socket()


class Line:
    """A connection to a Redis, opened once.

    Args:
        address: of the Redis.
        timeout: seconds after which a wait for something to read fails.
    """

    def __init__(self, address: Address, timeout: float = ANSWER) -> None:
        self._address = address
        self._timeout = timeout
        self._sock: Any = None
        self._readable: Any = None
        self._connection: Any = _OnGevent(
            self._open,
            host=address.path or address.host,  # for the texts of errors
            port=address.port,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **address.options,
        )

    def open(self) -> None:
        """Connect, and authenticate. Blocks the greenlet.

        Raises:
            FAILED: that failed.
        """
        self._connection.connect()

    def _open(self) -> Any:
        address = self._address
        limit = min(ANSWER, self._timeout)
        sock: Any
        if address.path:
            sock = gevent.socket.socket(gevent.socket.AF_UNIX)
            sock.settimeout(limit)
        else:
            sock = gevent.socket.create_connection((address.host, address.port), limit)
        try:
            if address.path:
                sock.connect(address.path)
            else:
                sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
            if address.tls is not None:
                sock = _wrap(sock, address.host, address.tls)
                sock.do_handshake()
        except BaseException:  # the end of the greenlet, too
            sock.close()
            raise
        sock.settimeout(self._timeout)
        self._sock = sock
        self._readable = _poll()
        self._readable.register(sock.fileno(), select.POLLIN)
        return sock

    def ask(self, *words: Any) -> Any:
        """Send one command, and return the answer; only while no other greenlet reads.

        Raises:
            FAILED: that failed, or Redis has answered with an error.
        """
        self.send([words])
        answer = self.read()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def send(self, commands: Iterable[Iterable[Any]]) -> None:
        """Send commands. Blocks the greenlet until the kernel has taken them."""
        for part in self._connection.pack_commands(commands):
            self._sock.sendall(part)

    def read(self) -> Any:
        """Return the next answer; one that is an error is returned, too. Blocks the greenlet.

        Raises:
            FAILED: the connection is lost, or nothing came in time.
        """
        try:
            return self._connection.read_response(disconnect_on_error=False)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            # Some answers are of these kinds (`LOADING`); those have not come from the socket.
            if isinstance(error, BusyLoadingError):  # an empty Redis loads at once
                return error
            raise
        except redis.ResponseError as error:
            return error

    def is_spent(self) -> bool:
        """Tell whether the other side has ended it, or sent what nobody asked for; only while no answer is expected.

        Looks, and waits for nothing.
        """
        return self._readable is not None and bool(self._readable.poll(0))

    @property
    def peer(self) -> object:
        """The host and port, or the path, of the other side; `None` while it is not connected."""
        try:
            return self._sock and self._sock.getpeername()
        except OSError:  # it is not connected any more
            return None

    def shut(self) -> None:
        """End it; a greenlet that reads or sends gets an error."""
        if self._sock is not None:
            try:
                self._sock.shutdown(gevent.socket.SHUT_RDWR)
            except OSError:  # the other side was faster
                pass

    def close(self) -> None:
        """Close it, once no greenlet reads or sends."""
        self._readable = None
        self._connection.disconnect()

    def disown(self) -> None:
        """In a forked child: leave it to the parent."""
        if self._sock is not None:  # pragma: no branch - in a child, whose coverage is not measured
            close_descriptor(self._sock)


def ask_once(address: Address, *words: Any) -> Any:
    """Connect, send one command, and return the answer. Blocks the greenlet, for some seconds at most.

    Raises:
        FAILED: that failed, or Redis has answered with an error.
    """
    line = Line(address, ASKED)
    try:
        line.open()
        return line.ask(*words)
    finally:
        line.close()


def _wrap(sock: Any, host: str, options: dict[str, Any]) -> Any:
    """Return a socket for TLS, with redis-py's options, before its handshake."""
    # gevent's class: `create_default_context` makes the standard library's, which would block every greenlet.
    context: Any = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    requirement = _NO_TLS_CHECK.get(options.get("cert_reqs", "required"), gevent.ssl.CERT_REQUIRED)
    checked = options.get("check_hostname", True) and requirement != gevent.ssl.CERT_NONE
    context.check_hostname = checked
    context.verify_mode = requirement
    if "ca_certs" in options or "ca_path" in options:
        context.load_verify_locations(options.get("ca_certs"), options.get("ca_path"))
    else:
        context.load_default_certs()
    if "certfile" in options:
        context.load_cert_chain(options["certfile"], options.get("keyfile"), options.get("password"))
    # The handshake is begun by who closes the socket when it fails: gevent's does not at a greenlet's end.
    return context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)

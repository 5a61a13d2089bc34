"""TLS on top of a socket, a bounded number of bytes at a time.

A TLS socket of the standard library lets OpenSSL read the network by itself, and OpenSSL goes on reading for as long as
what comes holds no data: a peer that sends nothing but KeyUpdate messages (RFC 8446 section 4.6.3) keeps one call, and
with it the whole process, busy until it stops. Here the network is read by us, OpenSSL gets the bytes in memory, and
a peer that sends much without any data is cut off.

A `TLSSocket` can do what is needed of a socket. On a gevent socket its methods wait cooperatively, for the handshakes;
`take_over` in `connection` then puts a plain non-blocking one in its place, where they raise what those of `ssl` would.

What another server or client has set up TLS on cannot be moved here, since its session lives in its own OpenSSL object;
`TakenTLS` makes the best of it.

Invariants: ciphertext leaves in the order in which it was made. What is held is at most one record of input, one send
of ciphertext, and the answers that TLS itself makes, which are bounded.
"""

from __future__ import annotations

import io
import ssl
from typing import Any
from weakref import ref

__all__ = ["TLSSocket", "TakenTLS"]

#: Give OpenSSL this many bytes at a time, in either direction: its buffers grow with more, and never shrink.
_PART = 1 << 14
#: The most bytes that may come without any data in them: several records that are not complete yet, or session tickets.
_MOST_FRUITLESS = 1 << 16
#: The most bytes of answers (each KeyUpdate may ask for one) that may wait for a peer that does not read.
_MOST_ANSWERS = 1 << 16


class _OnASocket:
    """What TLS leaves to the socket below it.

    Each is named: with a `__getattr__`, every look at any attribute would take a slower way of Python's, and to receive
    and to send a small message would cost a quarter more (1.7 and 1.5 µs instead of 1.4 and 1.2).
    """

    sock: Any

    @property
    def family(self) -> int:
        return int(self.sock.family)

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def getsockname(self) -> Any:
        return self.sock.getsockname()

    def setsockopt(self, *args: Any) -> None:
        self.sock.setsockopt(*args)

    def settimeout(self, seconds: float | None) -> None:
        self.sock.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        self.sock.shutdown(how)

    def close(self) -> None:
        self.sock.close()


class TLSSocket(_OnASocket):
    """One TLS connection.

    Args:
        sock: a connected socket.
        context: the certificate, or the authorities, and the settings.
        server_hostname: whose certificate the peer must have; `None` where we are the server.
    """

    def __init__(self, sock: Any, context: ssl.SSLContext, server_hostname: str | None = None) -> None:
        self.sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        if context.sni_callback is not None:
            # A context of gevent's calls back with what this refers to, which gevent sets for its own sockets only.
            self._tls._sslsock = ref(self._tls)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        self._encrypted = 0  # bytes of data whose ciphertext has not left completely: what a refused `send` was given
        self._unsent: bytes | memoryview = b""
        self._left = False  # OpenSSL may hold data for which there was no room
        self._fruitless = 0
        self._ended = False

    # -- with a gevent socket: these wait --------------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Shake hands.

        Raises:
            OSError: the connection broke, or (`ssl.SSLError`) the two sides have nothing in common.
        """
        while True:
            try:
                self._tls.do_handshake()
                self._left = True  # the peer's first data may have come with its last words of the handshake
                self._flush()
                return
            except ssl.SSLWantReadError:  # the ordinary course of a handshake: it is the peer's turn
                self._flush()
                if not self._fill():
                    raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection ended in the TLS handshake") from None
            except ssl.SSLError:
                self._flush()  # the alert that tells the peer why
                raise

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        with memoryview(data) as view:
            for start in range(0, len(view), _PART):
                self.send(view[start : start + _PART])

    def makefile(self, _mode: str, _buffering: int = -1) -> io.BufferedReader:
        """Return a binary file to read from."""
        return io.BufferedReader(_Stream(self))

    @property
    def _sock(self) -> Any:
        """What pywsgi empties before it closes, lest a reset overtake the last response."""
        return self.sock._sock

    # -- with either -----------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Receive what has come, up to `size` bytes; none at the end of the stream.

        Raises:
            BlockingIOError: there is nothing to return now; for a non-blocking socket only.
            OSError: the connection broke, or the peer abuses it.
        """
        received = self._decrypt(size) if self._left else b""
        while not received and not self._ended:
            self._ended = not self._fill()
            received = self._decrypt(size)
        return received

    def _fill(self) -> int:
        """Receive once and give it to OpenSSL; return how much it was."""
        data = self.sock.recv(_PART)
        self._incoming.write(data)
        self._fruitless += len(data)
        return len(data)

    def _decrypt(self, room: int) -> bytes:
        """Decrypt what OpenSSL was given; return up to `room` bytes of it."""
        received = b""
        try:
            while data := self._tls.read(room - len(received)):
                received += data
                self._left = len(received) == room
                if self._left or not self._incoming.pending:
                    break  # to ask once more, in vain, would cost an exception
            else:
                self._ended = True  # the peer's close_notify
        except ssl.SSLWantReadError:
            self._left = False  # the rest of a record is still to come
        finally:
            if self._outgoing.pending:
                self._send_answers()
        if received:
            self._fruitless = 0
        elif self._fruitless > _MOST_FRUITLESS:
            raise ConnectionAbortedError(f"{self._fruitless} bytes of TLS without any data")
        return received

    def _send_answers(self) -> None:
        """Send what TLS itself had to say to what has come."""
        try:
            self._flush()
        except BlockingIOError:
            # It leaves with whatever is sent next; a peer that makes us say more and more, and does not read, won't.
            if self._outgoing.pending > _MOST_ANSWERS:
                raise ConnectionAbortedError("too many answers of TLS wait for the peer") from None

    def send(self, data: Any) -> int:
        """Send `data`; return how many bytes of it have left: all, for a blocking socket.

        Raises:
            BlockingIOError: the kernel takes no more now. The next call must be given the same bytes, or these and more
                behind them, and returns how many of them have left then.
            OSError: the connection broke.
        """
        if not self._encrypted:
            self._encrypted = self._tls.write(data)
        self._flush()
        sent, self._encrypted = self._encrypted, 0
        return sent

    def _flush(self) -> None:
        """Send the ciphertext that has been made."""
        while data := self._unsent or self._outgoing.read():
            self._unsent = data  # what `send` raises must not lose it
            sent = self.sock.send(data)
            self._unsent = memoryview(data)[sent:] if sent < len(data) else b""

    def pending(self) -> bool:
        """Whether `recv` has something to return though the socket has nothing to read."""
        return self._ended or self._left

    def unwrap(self) -> None:
        """Send TLS's own farewell; the peer's is not waited for."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # the peer's is still to come
        finally:
            self._flush()

    def getpeercert(self) -> Any:
        """Return the peer's certificate as the standard library does; an empty one if it was not verified."""
        return self._tls.getpeercert()

    def version(self) -> str | None:
        """Return the version of TLS that was negotiated, such as `TLSv1.3`."""
        return self._tls.version()


class TakenTLS(_OnASocket):
    """TLS that another library has set up on a gevent socket, with gevent and its waiting left out.

    OpenSSL reads the network by itself here: what `TLSSocket` bounds is not bounded.

    Args:
        sock: the non-blocking socket inside gevent's.
        tls: OpenSSL's object, bound to it.
    """

    def __init__(self, sock: Any, tls: Any) -> None:
        self.sock = sock
        self._tls = tls

    def recv(self, size: int) -> bytes:
        """Receive what has come, up to `size` bytes; none at the end of the stream.

        Raises:
            ssl.SSLWantReadError: there is nothing to return now.
            OSError: the connection broke.
        """
        try:
            data: bytes = self._tls.read(size)
        except ssl.SSLEOFError:  # the end of the stream, without TLS's farewell
            return b""
        return data

    def send(self, data: Any) -> int:
        """Send `data`; return how many bytes of it have left.

        Raises:
            ssl.SSLWantWriteError: the kernel takes no more now. The next call must be given the same bytes again.
            OSError: the connection broke.
        """
        return int(self._tls.write(data))

    def pending(self) -> bool:
        """Whether `recv` has something to return though the socket has nothing to read."""
        return bool(self._tls.pending())

    def unwrap(self) -> None:
        """Send TLS's own farewell; the peer's is not waited for."""
        self._tls.shutdown()


class _Stream(io.RawIOBase):
    """What is received, as an unbuffered file."""

    def __init__(self, sock: TLSSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        try:
            data = self._sock.recv(len(buffer))
        except BlockingIOError:
            return None  # as a file says that there is nothing yet
        buffer[: len(data)] = data
        return len(data)

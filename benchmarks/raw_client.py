"""The driver's connections: opened many at a time, as its arguments say, and aborted at the end."""

import socket
import ssl
import struct
from collections import deque

import wire
from wire import WireError

#: Seconds that a connection's opening may wait for the server.
PATIENCE = 20.0
#: How many connections are opened at once; any server's backlog holds them.
AT_ONCE = 100
RESET = struct.pack("ii", 1, 0)


class Stream:
    """A socket, non-blocking, that keeps what the kernel does not take."""

    def __init__(self, sock):
        self.sock = sock
        self.unsent = b""
        sock.setblocking(False)
        self.receive = self._receive_tls if isinstance(sock, ssl.SSLSocket) else sock.recv_into

    def _receive_tls(self, buffer):
        try:
            return self.sock.recv_into(buffer)
        except ssl.SSLWantReadError:
            return None  # a part of a record, or one that holds no data of ours

    def send(self, data):
        """Send as much as the kernel takes; return whether that is all."""
        if self.unsent:
            self.unsent = bytes(self.unsent) + data
            return False
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0  # the server is far behind; epoll says when there is room
        self.unsent = data[sent:]
        return not self.unsent

    def send_rest(self):
        """The same with what is left."""
        rest, self.unsent = memoryview(self.unsent), b""
        return self.send(rest)


class Connection(Stream):
    """One connection, its handshake done."""

    def __init__(self, sock, replies, start, deflate):
        head, behind = read_head(sock)
        self.alone = wire.check_response(head, deflate)
        self.reader = replies.reader(start, self.pong, self.alone)
        self.missing = 0  # replies
        self.begins = deque()  # when what is in flight was sent
        super().__init__(sock)
        if behind:
            self.reader.take(behind)  # a ping; no reply comes before a message

    def pong(self, payload):
        # The kernel has room for these few bytes; or others wait before them, and all leave when there is room.
        self.send(wire.frame(payload, wire.PONG))


def abort(sock):
    """Close with a reset, which leaves no port waiting."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def read_head(sock):
    """Return an answer's head, and what came behind it: frames that the server sent at once."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = sock.recv(4096)
        if not data:
            raise WireError(f"the server closed during the handshake, after {received!r}")
        received += data
    head, end, behind = received.partition(b"\r\n\r\n")
    return head + end, behind


class Client:
    """Opens connections as the arguments say, and aborts at the end what is left of them."""

    def __init__(self, arguments):
        self.address = ("127.0.0.1", arguments.port)
        self.request = wire.request(arguments.port, arguments.deflate)
        self.deflate = arguments.deflate
        self.tls = ssl.create_default_context(cafile=arguments.tls) if arguments.tls else None
        self.socks = set()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for sock in list(self.socks):
            self.abort(sock)

    def abort(self, sock):
        """Close at once."""
        self.socks.discard(sock)
        abort(sock)

    def connect(self):
        """Return a socket on which the request is sent."""
        sock = socket.create_connection(self.address, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_hostname="localhost")
        self.socks.add(sock)
        sock.sendall(self.request)
        return sock

    def open(self, number, replies, step=0):
        """Return `number` connections; each begins `step` further in the cycle of replies than the one before."""
        opened = []
        for first in range(0, number, AT_ONCE):
            socks = [self.connect() for _ in range(min(AT_ONCE, number - first))]
            opened += [Connection(sock, replies, (first + i) * step, self.deflate) for i, sock in enumerate(socks)]
        return opened

    def requests(self, messages):
        """Return the frame for each message."""
        if self.deflate:
            return [wire.frame(wire.compress(message), wire.BINARY | wire.COMPRESSED) for message in messages]
        return [wire.frame(message) for message in messages]

    def replies(self, messages):
        return wire.CompressedReplies(messages) if self.deflate else wire.Replies(messages)

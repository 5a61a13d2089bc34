"""A WebSocket client that sends any bytes, also those that no proper client would send."""

from __future__ import annotations

import base64
import os

import gevent.socket

from gowsev.testing import TIMEOUT as PATIENCE
from gowsev.wire import frames


def binary(*payloads):
    """The frames of a client's binary messages."""
    return b"".join(frames.encode_frame(frames.FIN | frames.BINARY, payload, masked=True) for payload in payloads)


class RawClient:
    """A WebSocket client on a gevent socket that sends exactly the bytes that the test gives it."""

    def __init__(self, host, port, *, headers=(), path="/", tls=None, handshake=True, behind=b"", receive_buffer=None):
        if host.startswith("/"):
            self.sock = gevent.socket.socket(gevent.socket.AF_UNIX)
            self.sock.connect(host)
        elif receive_buffer is not None:
            self.sock = gevent.socket.socket()
            # Before connecting: the kernel tells the peer then how large its window can become.
            self.sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_RCVBUF, receive_buffer)
            self.sock.connect((host, port))
        else:
            self.sock = gevent.socket.create_connection((host, port))
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.sock.settimeout(PATIENCE)
        self.buffer = bytearray()
        self.response = b""
        if handshake:
            self.send(self.request(path, headers) + behind)
            self.response = self.read_head()
            assert self.response.startswith(b"HTTP/1.1 101 "), self.response

    @staticmethod
    def request(path="/", headers=()):
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in headers),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def send(self, data):
        self.sock.sendall(data)

    def send_frame(self, opcode, payload=b"", *, fin=True, masked=True):
        self.send(frames.encode_frame((0x80 if fin else 0) | opcode, payload, masked=masked))

    def send_binary(self, payload):
        self.send_frame(frames.BINARY, payload)

    def send_text(self, text):
        self.send_frame(frames.TEXT, text.encode())

    def send_close(self, code=1000, reason=""):
        self.send_frame(frames.CLOSE, frames.encode_close_payload(code, reason))

    def fill(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError(f"the server closed the connection; unread: {bytes(self.buffer[:100])}")
        self.buffer += data

    def read_head(self):
        """Read up to the empty line that ends an HTTP head."""
        while b"\r\n\r\n" not in self.buffer:
            self.fill()
        end = self.buffer.index(b"\r\n\r\n") + 4
        return self.take(end)

    def take(self, size):
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    def read_frame(self):
        """Return (opcode, payload) of the next frame, which must be whole and unmasked."""
        while True:
            header = frames.parse_header(self.buffer, 0, len(self.buffer))
            if header is not None and len(self.buffer) >= header.size + header.length:
                break
            self.fill()
        assert not header.masked
        assert header.first & 0xF0 == 0x80, "a fragment, or a reserved bit"
        self.take(header.size)
        return header.first & 0x0F, self.take(header.length)

    def read_close(self):
        """Read frames until a close frame; return its code and reason."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == frames.CLOSE:
                return frames.parse_close_payload(payload)

    def read_to_end(self):
        """Read until the server closes the connection, and return all of it."""
        try:
            while True:
                self.fill()
        except (EOFError, ConnectionResetError):
            return self.take(len(self.buffer))

    def reset(self):
        """Close with a TCP RST."""
        self.sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self):
        self.sock.close()

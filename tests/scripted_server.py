"""A server whose every byte a test writes, to see how a client handles them."""

from __future__ import annotations

import contextlib
import re
import socket

import gevent
import gevent.socket
from websockets.utils import accept_key

from gowsev.wire import frames


def accepting(head, more=()):
    """The response 101 to a request."""
    key = re.search(rb"\r\nSec-WebSocket-Key: (\S+)\r\n", head)[1].decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(key)}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Scripted:
    """A listener that reads one request for each connection, and answers as `script(sock, head)` does."""

    def __init__(self, script):
        self.script = script
        self.heads = []
        self.listener = gevent.socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/"
        self.greenlets = [gevent.spawn(self.accept)]

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            self.greenlets.append(gevent.spawn(self.answer, sock))

    def answer(self, sock):
        with sock, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1 << 16) or b"\r\n\r\n"
            self.heads.append(head)
            self.script(sock, head)

    def close(self):
        gevent.killall(self.greenlets)
        self.listener.close()


def frame(payload, opcode=frames.BINARY):
    return frames.encode_frame(frames.FIN | opcode, payload)


def close_frame(code, reason=""):
    return frame(frames.encode_close_payload(code, reason), frames.CLOSE)


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def answer_close(sock):
    """Wait for a close frame, which is all that is to come, and answer it."""
    sock.recv(1 << 16)
    sock.sendall(close_frame(1000))
    until_the_end(sock)


def until_the_end(sock):
    """Read until the peer closes the connection; return all of it."""
    received = bytearray()
    while data := sock.recv(1 << 16):
        received += data
    return bytes(received)

"""Structured fuzzing of requests for pages: heads and bodies that are garbled, in pipelines over loopback.

usage: fuzz_requests.py [--seconds 60] [--seed N]

Each connection sends a pipeline of requests whose bodies are themselves requests, for `/hidden`. Some have lengths and
codings that can be read in two ways, garbled bytes in their headers, or malformed chunks. About every second
connection goes to our own listener, the others to gevent's `WSGIServer` with `gowsev.WebSocketHandler`. The application
notes what it was asked. What must hold for both:

1. No byte of a body is ever taken for a request: the application never sees one for `/hidden`.
2. Requests are answered in their order, each once, until one is refused; those that are whole are never lost.
"""

import argparse
import random
import sys
import time

import gevent
import gevent.socket
from gevent.pywsgi import WSGIServer

import gowsev

PATIENCE = 30.0
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"

#: Header lines that no request may have; with any of these the connection is refused.
FAULTS = (
    b"Content-Length: +3", b"Content-Length: 1_0", b"Content-Length: 0, 3", b"Content-Length: -1", b"Content-Length:",
    b"Content-Length: 0x3", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: gzip, chunked", b"no colon",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, chunked", b"Host: elsewhere", b" folded",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding: \x0bchunked", b"X: \0", b"X: a\rb",
)  # fmt: skip

#: The beginnings of malformed chunked bodies.
CHUNKS = (
    b"\r\n", b";a\r\n", b"5;a\nb\r\nhello\r\n", b"5\r\nhelloXX", b"5\nhello\r\n", b"5 \r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b"0\r\nno colon\r\n\r\n", b"0\r\nA: b\nC: d\r\n\r\n", b"0\r\n folded\r\n\r\n", b"0\r\n\n", b"5;a=\"b\r\nhello\r\n",
)  # fmt: skip


class Pages:
    """The application under test."""

    def __init__(self):
        self.asked = 0
        self.hidden = 0

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"].startswith("/hidden"):
            self.hidden += 1
        self.asked += 1
        environ["wsgi.input"].read(random.choice((0, 5, -1)))  # the server must pass over the rest
        answer = environ["PATH_INFO"].encode()
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]


def good(r, path):
    """Make a request whose end is clear."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % path
    body = HIDDEN * r.randrange(3)
    if r.random() < 0.5:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = b""
    while body:
        size = r.randrange(1, len(body) + 1)
        chunks += b"%x%b\r\n%b\r\n" % (size, r.choice((b"", b";a=b")), body[:size])
        body = body[size:]
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def bad(r, path):
    """Make a request that is to be refused; what follows it hides in the body that it seems to have."""
    lines = [b"POST %b HTTP/1.1" % path, b"Host: localhost", b"Content-Length: %d" % len(HIDDEN), r.choice(FAULTS)]
    if r.random() < 0.3:
        lines[-1] = r.choice((lines[2], b"Transfer-Encoding: chunked"))
    lines[1:] = r.sample(lines[1:], 3)
    return b"\r\n".join([*lines, b"", b""]) + r.choice((b"", b"0\r\n\r\n")) + HIDDEN


def malformed(r, path):
    """Make a request whose chunked body is wrong from some point on; what follows hides in it."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    return head + r.choice((b"", b"3\r\nabc\r\n")) + r.choice(CHUNKS) + HIDDEN


def converse(r, port, faults):
    """Send a pipeline; check its answers. Return how many requests it had."""
    count = r.randrange(1, 40)
    refused = r.random() < 0.5
    last = r.choice((bad, malformed))
    data = b"".join(good(r, b"/%d" % i) for i in range(count)) + (last(r, b"/bad") if refused else b"")
    with gevent.socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(data)
        sock.shutdown(gevent.socket.SHUT_WR)
        answers = b""
        try:
            while more := sock.recv(1 << 16):
                answers += more
        except ConnectionResetError:  # closed before all of it was read: what was sent before it may be lost
            return count
    paths = [part.split(b"HTTP/1.1 ")[0] for part in answers.split(b"\r\n\r\n")[1:]]
    if paths[:count] != [b"/%d" % i for i in range(count)]:
        faults.append(f"{data!r} was answered with {answers!r}")
    # An application that did not read its body to the fault has answered with 200.
    if refused and (len(paths) != count + 1 or (last is bad and b"HTTP/1.1 400 " not in answers)):
        faults.append(f"not refused once: {data!r}: {answers!r}")
    return count + refused


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    pages, faults, requests = Pages(), [], 0
    context = gowsev.MakeContext(gowsev.Handler(), gowsev.Options(http_app=pages))
    _, port = context.ListenAndServe("127.0.0.1:0")
    loop = gevent.spawn(context.EventLoop)
    server = WSGIServer(("127.0.0.1", 0), pages, handler_class=gowsev.WebSocketHandler, log=None, error_log=None)
    server.start()
    ports = (port, server.server_port)
    deadline = time.monotonic() + arguments.seconds
    r = random.Random(seed)
    while time.monotonic() < deadline and not faults:
        requests += converse(r, r.choice(ports), faults)
    if pages.hidden:
        faults.append(f"{pages.hidden} bodies were taken for requests")
    server.stop()
    context.Shutdown(5)
    loop.join()
    print(f"{requests} requests, of which {pages.asked} reached the application")
    print("\n".join(faults) or "passed")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Load a running relay: open thousands of subscribers, publish, and check every delivery, its count and its order.

    load.py --subscribers 1000 --messages 1000

Each publish is a number and a time. A new one is sent as soon as fewer than `--in-flight` are still on their way to
somebody. It ends by itself, at the latest after `--seconds`, and with exit code 1 if anything was lost, doubled or out
of order. The package `tqdm` draws the progress bar.
"""

from __future__ import annotations

import argparse
import math
import resource
import struct
import sys
import time
from array import array
from functools import partial
from pathlib import Path

import gevent.pool
from client import trusting
from service import count
from tokens import authorization
from tqdm import tqdm

import gowsev

#: What each body begins with: the message's number, and when it was sent.
HEAD = struct.Struct("!Qd")
DIALLING = 50


class Load(gowsev.Handler):
    """The subscribers, and the one who publishes to all their channels in turn."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.bar: tqdm
        self.next_of: dict[int, int] = {}
        """By connection: the number that it must receive next."""
        self.publisher = 0
        self.left: dict[int, int] = {}
        """By message under way: how many have not received it yet."""
        self.latencies = array("d")
        self.sent = self.answered = self.delivered = 0
        self.failed = ""

    @property
    def done(self) -> bool:
        return bool(self.failed) or (self.answered == self.args.messages and not self.left)

    def publish(self, context: gowsev.Context) -> None:
        while self.sent < self.args.messages and len(self.left) < self.args.in_flight:
            number = self.sent
            self.sent += 1
            self.left[number] = subscribers_of(number, self.args)
            body = HEAD.pack(number, time.monotonic()).ljust(self.args.bytes, b".")
            context.Write(self.publisher, b"publish:%s:%s" % (channel(number % self.args.channels), body))

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        if id == self.publisher:
            self.answered += 1
            if message != b"OK":
                self.failed = f"a publish was answered with {message!r}"
            return
        number, at = HEAD.unpack_from(message)
        if number != self.next_of[id]:
            self.failed = f"subscriber {id} received {number} where {self.next_of[id]} was due"
            return
        self.next_of[id] = number + self.args.channels
        self.latencies.append(time.monotonic() - at)
        self.delivered += 1
        self.left[number] -= 1
        if not self.left[number]:
            del self.left[number]
            self.bar.update(subscribers_of(number, self.args))
            self.publish(context)

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        if not self.done:
            conn = context.Conn(id)
            self.failed = f"connection {id} was lost: {conn and conn.close_code}"


def subscribers_of(number: int, args: argparse.Namespace) -> int:
    """How many subscribe to the channel that a message goes to."""
    return len(range(number % args.channels, args.subscribers, args.channels))


def channel(number: int) -> bytes:
    return b"load-%d" % number


def connect(args: argparse.Namespace, load: Load, context: gowsev.Context) -> None:
    """Open all connections, and subscribe."""
    headers, tls = authorization(args.token_file), trusting(args.cafile)
    # The driver is not what is measured: it answers pings, and sends none.
    options = gowsev.Options(ping_interval=None)
    open_to = partial(gowsev.Dial, timeout=60.0, headers=headers, ssl_context=tls, options=options, proxy=None)

    def dial(number: int) -> tuple[int, gowsev.DialledConn | Exception]:
        try:
            conn = open_to(args.url[number % len(args.url)])
            conn.WriteMessage(gowsev.BinaryMessage, b"subscribe:" + channel(number % args.channels))
            _, answer = conn.ReadMessage()
        except (gowsev.DialError, gowsev.ConnectionClosed, ValueError, OSError) as error:
            return number, error  # raised here, gevent would print it
        return number, conn if answer == b"OK" else ValueError(f"a subscription was answered with {answer!r}")

    with tqdm(total=args.subscribers, desc="subscribing", unit=" subscribers") as bar:
        for number, conn in gevent.pool.Pool(DIALLING).imap_unordered(dial, range(args.subscribers)):
            if isinstance(conn, Exception):
                raise conn
            load.next_of[context.AddConn(conn)] = number % args.channels
            bar.update()
    load.publisher = context.AddConn(open_to(args.url[0]))


def run(args: argparse.Namespace) -> str:
    """Put the load on; return what went wrong, or nothing."""
    # A round over all channels reaches each subscriber once; the last round may be cut short.
    rounds, rest = divmod(args.messages, args.channels)
    total = rounds * args.subscribers + sum(subscribers_of(number, args) for number in range(rest))
    load = Load(args)
    context = gowsev.MakeContext(load, gowsev.Options(raise_errors=True))
    connecting = time.monotonic()
    connect(args, load, context)
    began = time.monotonic()
    print(f"{args.subscribers} subscribers on {args.channels} channels in {began - connecting:.1f} s")
    load.bar = tqdm(total=total, desc="delivering", unit=" messages", unit_scale=True)
    context.SetTimeout(1.0)
    load.publish(context)
    while not load.done and time.monotonic() - began < args.seconds:
        context.EventLoopIteration()
    took = time.monotonic() - began
    load.bar.close()
    if load.failed:
        return load.failed
    if not load.done:
        return f"not done after {args.seconds} s: {load.delivered} of {total} deliveries"
    # Whatever is delivered twice would come behind.
    settled = time.monotonic() + 0.5
    context.SetTimeout(0.1)
    while time.monotonic() < settled:
        context.EventLoopIteration()
    if load.delivered != total:
        return f"{load.delivered} deliveries instead of {total}"
    ordered = sorted(load.latencies)
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    shares = "  ".join(f"{name} {1000 * ordered[math.ceil(rank * total) - 1]:.1f}" for name, rank in ranks.items())
    print(f"{args.messages} publishes of {args.bytes} bytes in {took:.2f} s: {args.messages / took:,.0f} a second")
    print(f"{total:,} deliveries, each checked: {total / took:,.0f} a second")
    print(f"latency in ms, {args.in_flight} in flight: {shares}")
    return ""


def main() -> None:
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    text = "of the relay, or of several that are one"
    parser.add_argument("--url", nargs="+", default=["ws://localhost:9000/"], help=text)
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="present the token in this file")
    text = "trust the certificates in this file, such as a self-signed one"
    parser.add_argument("--cafile", metavar="FILE", help=text)
    for option, default, text in (
        ("subscribers", 1000, "connections that subscribe"),
        ("channels", 1, "over which they are spread evenly"),
        ("messages", 1000, "how many are published in all"),
        ("bytes", 64, "of each message; at least 16"),
        ("in-flight", 8, "publishes that not everybody has received yet"),
        ("seconds", 240, "after which it is given up"),
    ):
        parser.add_argument(f"--{option}", type=count, default=default, metavar="N", help=f"{text} (%(default)s)")
    args = parser.parse_args()
    args.bytes = max(args.bytes, HEAD.size)
    args.channels = min(args.channels, args.subscribers)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        wrong = run(args)
    except (gowsev.DialError, gowsev.ConnectionClosed, ValueError, OSError) as error:
        wrong = str(error)
    if wrong:
        sys.exit(f"{parser.prog}: FAILED: {wrong}")


if __name__ == "__main__":
    main()

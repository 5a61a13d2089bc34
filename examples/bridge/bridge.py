#!/usr/bin/env python3
"""A bridge between one outside WebSocket server and any number of local clients.

Each local client gets what the outside server sends, and what local clients send goes out; text stays text, and binary
stays binary. When the outside connection ends, it is dialled again, after a delay that doubles with each failure.

It is an ordinary synchronous script: one greenlet, nothing monkey-patched, and a `while` of its own around
`EventLoopIteration`, in which it has other work to do. Here that work is a line of figures every few seconds.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import signal
import time

import gevent

import gowsev

logger = logging.getLogger("bridge")

#: Nothing else happens in this script while it dials, and so it does not dial for long.
DIAL_TIMEOUT = 3.0
FIRST_DELAY = 0.5


class Bridge(gowsev.Handler):
    """The handler: the outside connection, the local ones, and what went through."""

    def __init__(self, url: str, max_delay: float) -> None:
        self.url = url
        #: For the log, which a user and password have no place in.
        self.shown = re.sub("//[^/?#]*@", "//", url, count=1)
        self.max_delay = max_delay
        self.delay = min(FIRST_DELAY, max_delay)
        self.outside = 0  # no connection has this id
        self.local: set[int] = set()
        self.received = self.sent = 0
        self.stopping = False

    # -- the outside connection ----------------------------------------------------------------------------------

    def connect(self, context: gowsev.Context) -> None:
        """Dial the outside server once; try again later if that fails."""
        try:
            conn = gowsev.Dial(self.url, timeout=DIAL_TIMEOUT)
        except gowsev.DialError as error:
            logger.warning("%s", error)
            self.connect_later(context)
            return
        if self.stopping:  # a signal came meanwhile
            conn.Close(1001)
            return
        self.outside = context.AddConn(conn)
        logger.info("Connected to %s", self.shown)

    def connect_later(self, context: gowsev.Context) -> None:
        if not self.stopping:
            logger.info("Trying again in %g s", self.delay)
            context.AfterFunc(self.delay, self.connect)
            self.delay = min(self.delay * 2, self.max_delay)

    def stop(self, context: gowsev.Context) -> None:
        logger.info("Stopping")
        self.stopping = True
        context.Shutdown(5.0)

    # -- the callbacks -------------------------------------------------------------------------------------------

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        # Not called for what AddConn added: this is always a local client.
        self.local.add(id)
        logger.info("Client %d connected", id)

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        if id != self.outside:
            self.local.discard(id)
            logger.info("Client %d left", id)
            return
        self.outside = 0
        conn = context.MustConn(id)
        logger.info("Lost %s: close code %d, reason %r", self.shown, conn.close_code, conn.close_reason)
        self.connect_later(context)

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        if id == self.outside:
            self.came_in()
            context.Broadcast(self.local, message)
        else:
            self.went_out(id, context.Write(self.outside, message))

    def TextReceived(self, context: gowsev.Context, id: int, text: str) -> None:
        if id == self.outside:
            self.came_in()
            context.Broadcast(self.local, text)
        else:
            self.went_out(id, context.WriteText(self.outside, text))

    def came_in(self) -> None:
        self.received += 1
        # Not earlier: a server that accepts connections only to drop them is no success.
        self.delay = min(FIRST_DELAY, self.max_delay)

    def went_out(self, id: int, err: Exception | None) -> None:
        if err is None:
            self.sent += 1
        else:
            logger.warning("Lost a message of client %d: %s", id, err if self.outside else "no outside connection")

    # -- the script's own work -----------------------------------------------------------------------------------

    def report(self) -> None:
        logger.info("So far %d messages in, %d out; clients: %d", self.received, self.sent, len(self.local))


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (0.001 <= value < math.inf):
        raise argparse.ArgumentTypeError(f"expected a number of seconds of at least 0.001, not {text!r}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve what an outside WebSocket server sends to local clients.")
    parser.add_argument(
        "url", nargs="?", default="ws://localhost:9100/", help="the outside server (default: %(default)s, the ticker)"
    )
    parser.add_argument("--host", default="localhost", help="address to serve clients on (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=int,
        default=9101,
        metavar="N",
        help="port to serve them on (default: %(default)s; 0: any free one)",
    )
    parser.add_argument(
        "--max-delay", type=seconds, default=30.0, metavar="S", help="longest wait before dialling again (default: 30)"
    )
    parser.add_argument(
        "--report", type=seconds, default=10.0, metavar="S", help="seconds between lines of figures (default: 10)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    bridge = Bridge(args.url, args.max_delay)
    context = gowsev.MakeContext(bridge)
    try:
        _, number = context.ListenAndServe(f"{args.host}:{args.port}")
        for signum in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(signum, bridge.stop, context)
        logger.info("Listening on ws://%s:%d/", args.host, number)
        bridge.connect(context)
    except (OSError, ValueError) as error:  # a port in use, a URL that is none
        parser.exit(2, f"{parser.prog}: error: {getattr(error, 'strerror', None) or error}\n")

    due = time.monotonic() + args.report
    while True:
        # Wait for an event until the next report is due, and no longer.
        context.SetTimeout(max(0.0, due - time.monotonic()))
        if not context.EventLoopIteration():
            break
        if time.monotonic() >= due:
            bridge.report()
            due = time.monotonic() + args.report
    logger.info("Stopped")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A bridge between one outside WebSocket server and any number of local clients.

Each local client gets what the outside server sends, and what local clients send goes out; text stays text, and binary
stays binary. When the outside connection ends, it is dialled again, by `gowsev.Redial`.

It is an ordinary synchronous script: nothing monkey-patched, and a `while` of its own around `EventLoopIteration`, in
which it has other work to do. Here that work is a line of figures every few seconds.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import time

import gowsev

logger = logging.getLogger("bridge")

#: Seconds within which it dials again after a connection that has lasted.
FIRST_PAUSE = 0.5


class Bridge(gowsev.Handler):
    """The handler: the outside connection, the local ones, and what went through."""

    def __init__(self) -> None:
        self.outside: gowsev.Redial  # made once there is a context
        self.shown = ""  # its URL for the log, which a user and password have no place in
        self.local: set[int] = set()
        self.received = self.sent = 0

    # -- the outside connection ----------------------------------------------------------------------------------

    def dial(self, context: gowsev.Context, url: str, longest_pause: float) -> None:
        """Keep a connection to the outside server, from when the loop is driven until the context is shut down."""
        first_pause = min(FIRST_PAUSE, longest_pause)
        # Why an attempt failed, and when the next one comes, gowsev logs itself.
        self.outside = gowsev.Redial(
            context, url, opened=self.opened, first_pause=first_pause, longest_pause=longest_pause
        )
        self.shown = re.sub("//[^/?#]*@", "//", url, count=1)

    def opened(self, context: gowsev.Context, id: int) -> None:
        logger.info("Connected to %s", self.shown)

    # -- the callbacks -------------------------------------------------------------------------------------------

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        # Not called for the outside connection: this is always a local client.
        self.local.add(id)
        logger.info("Client %d connected", id)

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        if id == self.outside.id:
            conn = context.MustConn(id)
            logger.info("Lost %s: close code %d, reason %r", self.shown, conn.close_code, conn.close_reason)
        else:
            self.local.discard(id)
            logger.info("Client %d left", id)

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        if id == self.outside.id:
            self.received += 1
            context.Broadcast(self.local, message)
        else:
            self.went_out(id, context.Write(self.outside.id, message))

    def TextReceived(self, context: gowsev.Context, id: int, text: str) -> None:
        if id == self.outside.id:
            self.received += 1
            context.Broadcast(self.local, text)
        else:
            self.went_out(id, context.WriteText(self.outside.id, text))

    def went_out(self, id: int, err: Exception | None) -> None:
        if err is None:
            self.sent += 1
        else:
            logger.warning("Lost a message of client %d: %s", id, err if self.outside.id else "no outside connection")

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
    parser = argparse.ArgumentParser(
        description="Serve what an outside WebSocket server sends to local clients.", allow_abbrev=False
    )
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

    bridge = Bridge()
    context = gowsev.MakeContext(bridge)
    try:
        _, number = context.ListenAndServe(f"{args.host}:{args.port}")
        bridge.dial(context, args.url, args.max_delay)
    except (OSError, ValueError) as error:  # a port in use, a URL that is none
        parser.exit(2, f"{parser.prog}: error: {getattr(error, 'strerror', None) or error}\n")

    context.ShutdownOnSignal(timeout=5.0)
    logger.info("Listening on ws://%s:%d/", args.host, number)

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

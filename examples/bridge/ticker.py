#!/usr/bin/env python3
"""A WebSocket server that sends a tick at an interval to all its clients; something for `bridge.py` to dial.

What a client sends goes to all clients too.
"""

from __future__ import annotations

import argparse
import logging
import math
from itertools import count

import gowsev

logger = logging.getLogger("ticker")


class Ticker(gowsev.Handler):
    """The handler: who is connected, and the number of the next tick."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.clients: set[int] = set()
        self.numbers = count(1)

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        self.clients.add(id)
        logger.info("Client %d connected", id)

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        self.clients.discard(id)
        logger.info("Client %d left", id)

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        context.Broadcast(self.clients, message)

    def TextReceived(self, context: gowsev.Context, id: int, text: str) -> None:
        context.Broadcast(self.clients, text)

    def tick(self, context: gowsev.Context) -> None:
        context.AfterFunc(self.interval, self.tick)
        context.Broadcast(self.clients, f"tick {next(self.numbers)}")


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
        description="Send a tick at an interval to every WebSocket client.", allow_abbrev=False
    )
    parser.add_argument("--host", default="localhost", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=9100, metavar="N", help="port to listen on (default: %(default)s; 0: any free one)"
    )
    parser.add_argument(
        "--interval", type=seconds, default=1.0, metavar="S", help="seconds from tick to tick (default: 1)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    ticker = Ticker(args.interval)
    context = gowsev.MakeContext(ticker)
    try:
        _, number = context.ListenAndServe(f"{args.host}:{args.port}")
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {getattr(error, 'strerror', None) or error}\n")
    context.ShutdownOnSignal(timeout=5.0)
    logger.info("Listening on ws://%s:%d/", args.host, number)
    ticker.tick(context)
    context.EventLoop()
    logger.info("Stopped")


if __name__ == "__main__":
    main()

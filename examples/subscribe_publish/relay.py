#!/usr/bin/env python3
"""A relay between WebSocket clients: what one publishes to a channel goes to all who subscribed to it.

This is the Go library's example of the same name, function by function. A client sends one of

    subscribe:(channel)
    unsubscribe:(channel)
    unsubscribe-all
    publish:(channel):(body)

in a binary or a text message, and is answered `OK` or `Invalid message`. A publish sends the body, and nothing else, to
every subscriber of the channel, the publisher included if it is one. Everything is bytes and passes unharmed. Answers
and bodies go out in binary messages.

Where the Go example reads with `fmt.Sscanf` and `strings.SplitN`, the same messages are valid here:

- In "subscribe" and "unsubscribe" the channel begins after any white space and ends before the next (Unicode's
  White_Space, in UTF-8); what follows is ignored. A line feed before it is invalid, and so is an empty channel. A colon
  in it is kept, though no publish can reach such a channel.
- "publish" is split at its first two colons, and white space is nothing special. An empty channel is valid, though
  nobody can subscribe to it; the body may be empty, and may hold colons.

One thing differs: Go's scan replaces a byte that is no UTF-8 by U+FFFD when it subscribes, but not when it publishes.
Here such a byte is part of the channel's name in both.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
from pathlib import Path

import gevent
from localhost_certificate import OWN_CERT, OWN_KEY, NoCertificate, ensure_certificate

import gowsev

logger = logging.getLogger("relay")

#: White_Space in UTF-8. None of these sequences occurs inside or across other characters, so they can be found among
#: bytes that are no UTF-8. (`bytes.isspace` knows ASCII only, `str.isspace` four characters too many.)
SPACES = re.compile(
    rb"(?:[\t-\r ]+|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)++"
)


class Service:
    """The handler: who is subscribed to what, in two maps that say the same.

    No entry of either is ever empty: the last subscriber takes the channel along.
    """

    def __init__(self) -> None:
        self.channels_of: dict[int, set[bytes]] = {}
        self.ids_of: dict[bytes, set[int]] = {}

    # -- the callbacks -------------------------------------------------------------------------------------------

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        logger.info("Connection accepted %d", id)

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        logger.info("Connection closed %d", id)
        self.unsubscribe_all(id)

    def EventLoopTimeout(self, context: gowsev.Context) -> None:
        logger.debug("Timeout")

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        self.handle_message(context, id, message)
        logger.debug("Connection %d sent message %r", id, message)

    # -- what they do --------------------------------------------------------------------------------------------

    def handle_message(self, context: gowsev.Context, id: int, message: bytes) -> None:
        channel = scan_channel(b"subscribe:", message)
        if channel:
            context.Write(id, b"OK")
            self.subscribe(id, channel)
            return

        channel = scan_channel(b"unsubscribe:", message)
        if channel:
            context.Write(id, b"OK")
            self.unsubscribe(id, channel)
            return

        if message == b"unsubscribe-all":
            context.Write(id, b"OK")
            self.unsubscribe_all(id)
            return

        components = message.split(b":", 2)
        if len(components) == 3 and components[0] == b"publish":
            context.Write(id, b"OK")
            self.publish(context, components[1], components[2])
            return

        context.Write(id, b"Invalid message")

    def subscribe(self, id: int, channel: bytes) -> None:
        self.channels_of.setdefault(id, set()).add(channel)
        self.ids_of.setdefault(channel, set()).add(id)

    def unsubscribe(self, id: int, channel: bytes) -> None:
        if id not in self.ids_of.get(channel, ()):
            return
        self.ids_of[channel].remove(id)
        if not self.ids_of[channel]:
            del self.ids_of[channel]
        self.channels_of[id].remove(channel)
        if not self.channels_of[id]:
            del self.channels_of[id]

    def unsubscribe_all(self, id: int) -> None:
        for channel in tuple(self.channels_of.get(id, ())):
            self.unsubscribe(id, channel)

    def publish(self, context: gowsev.Context, channel: bytes, body: bytes) -> None:
        # Write neither blocks nor raises, and a subscriber that is gone or too slow is gowsev's business.
        for id in self.ids_of.get(channel, ()):
            context.Write(id, body)


def scan_channel(command: bytes, message: bytes) -> bytes:
    """Return the channel behind `command`, as `Sscanf(message, command + "%s")` would read it; empty if invalid."""
    if not message.startswith(command):
        return b""
    rest = message[len(command) :]
    blanks = SPACES.match(rest)
    if blanks:
        if b"\n" in blanks[0]:
            return b""
        rest = rest[blanks.end() :]
    return SPACES.split(rest, 1)[0]


# -- the command -----------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Without --cert and --key, TLS uses a self-signed certificate for localhost, made on the first start.",
    )
    parser.add_argument("--host", default="", help="address to listen on (default: all interfaces)")
    parser.add_argument(
        "--port", type=port, default=9000, metavar="N", help="port for ws:// (default: %(default)s; 0: any free one)"
    )
    parser.add_argument(
        "--tls-port",
        type=port_or_none,
        default=9001,
        metavar="N",
        help='port for wss:// (default: %(default)s; 0: any free one; "none": no TLS)',
    )
    parser.add_argument("--cert", type=Path, metavar="FILE", help="certificate for TLS, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--allow-origin",
        type=origin,
        action="append",
        metavar="ORIGIN",
        help='let pages of this origin connect, such as https://example.com, "null" (a local file) or "*" (any); may '
        "be repeated (default: none; programs other than browsers may always connect)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log every message too")
    return parser


def port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def port_or_none(text: str) -> int | None:
    return None if text == "none" else port(text)


def origin(text: str) -> str:
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#]+", text):
        raise argparse.ArgumentTypeError(f'an origin is like https://example.com, "null" or "*", not {text!r}')
    return text


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if (args.cert is None) != (args.key is None):
        parser.error("--cert and --key go together")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.verbose:
        logger.setLevel(logging.DEBUG)

    service = Service()
    context = gowsev.MakeContext(service, gowsev.Options(allowed_origins=args.allow_origin))
    try:
        urls = listen(context, args)
    except (OSError, ValueError) as error:  # a port in use, a file that is no certificate, a host that is none
        parser.exit(2, f"{parser.prog}: error: {getattr(error, 'strerror', None) or error}\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stop, context)
    for url in urls:
        logger.info("Listening on %s%s", "" if args.host else "all interfaces, ", url)
    context.EventLoop()
    logger.info("Stopped")


def listen(context: gowsev.Context, args: argparse.Namespace) -> list[str]:
    """Open the ports; return their URLs."""
    host = f"[{args.host.strip('[]')}]" if ":" in args.host else args.host
    shown = host or "localhost"
    _, number = context.ListenAndServe(f"{host}:{args.port}")
    urls = [f"ws://{shown}:{number}/"]
    if args.tls_port is not None:
        cert, key = args.cert, args.key
        if cert is None:
            cert, key = OWN_CERT, OWN_KEY
            try:
                ensure_certificate(cert, key)
            except NoCertificate as error:
                logger.warning("No TLS: %s. Give one with --cert and --key, or say --tls-port none.", error)
                return urls
        _, number = context.ListenAndServeTLS(f"{host}:{args.tls_port}", os.fspath(cert), os.fspath(key))
        urls.append(f"wss://{shown}:{number}/")
    return urls


def stop(context: gowsev.Context) -> None:
    logger.info("Stopping")
    context.Shutdown(5.0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A client of the relay for the command line: print what arrives on channels, or publish to one.

    client.py subscribe weather news
    client.py publish weather "rain: all day"
    tail -f notes.txt | client.py publish notes

It speaks the subprotocol of v2.py, so one connection serves all channels. A subscriber whose connection is lost comes
back by itself, and prints what it has missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from tokens import authorization
from v2 import SUBPROTOCOL

import gowsev

#: Seconds before a subscriber comes back, at first and at most.
FIRST_DELAY, LAST_DELAY = 0.5, 15.0
#: How the relay closes those who may not come back as they are: their token is gone.
NOT_ALLOWED = 1008


class Failed(Exception):
    """What the user has to know, in one line."""


class Refused(Exception):
    """The relay has refused a command; the text is its own."""


def say(text: str) -> None:
    """Tell the user something that is not what they asked for, but that they have to know."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def trusting(cafile: str | None) -> ssl.SSLContext | None:
    """Return a TLS context that trusts the certificates in a file; `None` without a file.

    Raises:
        ValueError: it cannot be read; the text names it.
    """
    try:
        return None if cafile is None else ssl.create_default_context(cafile=cafile)
    except OSError as error:
        raise ValueError(f"cannot read the certificates in {cafile!r}: {error}") from error


def dial(args: argparse.Namespace) -> gowsev.DialledConn:
    """Connect.

    Raises:
        Failed: an option is wrong, or the relay refuses, and would again.
        DialError: the relay is away.
    """
    try:
        headers, context = authorization(args.token_file), trusting(args.cafile)
        conn = gowsev.Dial(args.url, headers=headers, ssl_context=context, subprotocols=[SUBPROTOCOL])
    except gowsev.DialError as error:
        if error.status is not None and error.status < 500:
            raise Failed(str(error)) from error
        raise
    except ValueError as error:
        raise Failed(str(error)) from error
    if conn.subprotocol != SUBPROTOCOL:
        conn.Close()
        raise Failed(f"{args.url} does not speak {SUBPROTOCOL}")
    return conn


def send(conn: gowsev.DialledConn, body: bytes | None = None, **command: Any) -> None:
    message = json.dumps(command).encode() + (b"" if body is None else b"\n" + body)
    try:
        conn.WriteMessage(gowsev.TextMessage, message.decode())
    except UnicodeDecodeError:
        conn.WriteMessage(gowsev.BinaryMessage, message)


def receive(conn: gowsev.DialledConn) -> tuple[dict[str, Any], bytes]:
    """Wait for a message; return its first line and its body."""
    _, message = conn.ReadMessage()
    head, _, body = (message.encode() if isinstance(message, str) else message).partition(b"\n")
    return json.loads(head), body


class Subscriber:
    """Prints what arrives, and knows where to go on when it has to come back."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.positions: dict[str, str | None] = dict.fromkeys(args.channel)
        self.attempt = 0
        self.begun = False
        """Whether it has once been connected: what is wrong before that is a mistake of the user's."""

    def run(self) -> None:
        while True:
            try:
                with dial(self.args) as conn:
                    self.follow(conn)
            except (gowsev.ConnectionClosed, gowsev.DialError, Refused) as error:
                if not self.begun or getattr(error, "code", None) == NOT_ALLOWED:
                    raise Failed(str(error)) from error
                # A random delay, that doubles with each failure: not all come back at the same moment.
                delay = min(FIRST_DELAY * 2**self.attempt, LAST_DELAY) * random.uniform(0.5, 1.0)  # noqa: S311
                self.attempt += 1
                say(f"{error}; again in {delay:.1f} s")
                time.sleep(delay)

    def follow(self, conn: gowsev.DialledConn) -> None:
        """Subscribe, and print, until the connection is lost."""
        for channel, position in self.positions.items():
            send(conn, do="subscribe", id=channel, channel=channel, after=position)
        answers = 0
        while True:
            fields, body = receive(conn)
            if "error" in fields:
                raise Refused(fields["error"])
            channel, back = fields["channel"], self.positions.get(fields["channel"])
            if "gap" in fields or (back and fields.get("recovered") is False):
                say(f"{channel}: messages were lost")
            elif "re" not in fields:
                name = f"{channel}: ".encode("utf-8", "surrogateescape") if len(self.positions) > 1 else b""
                sys.stdout.buffer.write(name + body + b"\n")
                sys.stdout.buffer.flush()
            self.positions[channel] = fields["position"]
            answers += "re" in fields
            if answers == len(self.positions):
                self.begun = True
                self.attempt = 0


def publish(args: argparse.Namespace) -> None:
    """Publish, one after the other.

    It does not come back when the connection is lost: nobody knows then whether the last one was published, and sent
    again it might be there twice.
    """
    published = 0
    try:
        with dial(args) as conn:
            lines = (line.removesuffix(b"\n") for line in sys.stdin.buffer)
            for body in lines if args.body is None else [args.body.encode("utf-8", "surrogateescape")]:
                send(conn, body, do="publish", channel=args.channel)
                answer, _ = receive(conn)
                if "error" in answer:
                    raise Refused(answer["error"])
                published += 1
    except gowsev.DialError as error:
        raise Failed(str(error)) from error
    except gowsev.ConnectionClosed as error:
        so_far = f"lines published: {published}, and perhaps the next"
        raise Failed(f"{error}; {so_far if args.body is None else 'perhaps it was published'}") from error
    except Refused as error:
        raise Failed(f"{error}; lines published before: {published}" if args.body is None else str(error)) from error


def channel(text: str) -> str:
    if not text or ":" in text or text.split() != [text]:
        raise argparse.ArgumentTypeError(f"a channel's name has no blanks and no colon: {text!r}")
    return text


def main() -> None:
    description, *_ = (__doc__ or "").splitlines()
    # Understood before the command and behind it, where most people look for them; what is not given is set below.
    connecting = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    connecting.add_argument("--url", help="of the relay, ws:// or wss:// (default: ws://localhost:9000/)")
    connecting.add_argument("--token-file", type=Path, metavar="FILE", help="present the token in this file")
    connecting.add_argument(
        "--cafile", metavar="FILE", help="trust the certificates in this file, such as a self-signed one"
    )
    parser = argparse.ArgumentParser(description=description, parents=[connecting], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    subscribing = commands.add_parser(
        "subscribe", parents=[connecting], allow_abbrev=False, help="print what arrives on channels, a line each"
    )
    subscribing.add_argument("channel", nargs="+", type=channel, metavar="CHANNEL")
    subscribing.set_defaults(run=lambda args: Subscriber(args).run())
    publishing = commands.add_parser("publish", parents=[connecting], allow_abbrev=False, help="publish to a channel")
    publishing.add_argument("channel", type=channel, metavar="CHANNEL")
    publishing.add_argument("body", nargs="?", metavar="BODY", help="without it, each line of standard input is one")
    publishing.set_defaults(run=publish)
    args = argparse.Namespace(url="ws://localhost:9000/", token_file=None, cafile=None)
    parser.parse_args(namespace=args)
    try:
        args.run(args)
    except Failed as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:  # how a subscriber is ended
        parser.exit(130)
    except BrokenPipeError:  # what reads a subscriber's output has gone, such as `head`: end as by SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit(141)


if __name__ == "__main__":
    main()

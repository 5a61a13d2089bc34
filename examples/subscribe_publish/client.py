#!/usr/bin/env python3
"""A client of the relay for the command line: print what arrives on channels, or publish to one.

    client.py subscribe weather news
    client.py publish weather "rain: all day"
    tail -f notes.txt | client.py publish notes

What arrives is a bare body, which does not tell its channel. So each channel has a connection of its own.
"""

from __future__ import annotations

import argparse
import ssl
import sys
from pathlib import Path

from tokens import read_tokens

import gowsev


class Failed(Exception):
    """What the user has to know, in one line."""


class Printer(gowsev.Handler):
    """Prints what arrives on the connections that it is given, until one of them ends."""

    def __init__(self, named: bool) -> None:
        self.channels: dict[int, str] = {}
        self.named = named
        self.ended: str | None = None

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        name = f"{self.channels[id]}: ".encode() if self.named else b""
        sys.stdout.buffer.write(name + message + b"\n")
        sys.stdout.buffer.flush()

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        conn = context.Conn(id)
        why = f"{conn.close_code} {conn.close_reason}".strip() if conn else ""
        self.ended = f"the connection for {self.channels[id]} has ended: {why}"


def dial(args: argparse.Namespace) -> gowsev.DialledConn:
    headers = {}
    if args.token_file is not None:
        try:
            headers["Authorization"] = f"Bearer {read_tokens(args.token_file)[0].decode()}"
        except ValueError as error:
            raise Failed(str(error)) from error
    context = None
    if args.cafile is not None:
        try:
            context = ssl.create_default_context(cafile=args.cafile)
        except OSError as error:
            raise Failed(f"cannot read the certificates in {args.cafile!r}: {error}") from error
    try:
        return gowsev.Dial(args.url, headers=headers, ssl_context=context)
    except (gowsev.DialError, ValueError) as error:
        raise Failed(str(error)) from error


def ask(conn: gowsev.DialledConn, command: bytes) -> None:
    """Send a command, and wait for its OK."""
    try:
        conn.WriteMessage(gowsev.BinaryMessage, command)
        _, answer = conn.ReadMessage()
    except gowsev.ConnectionClosed as error:
        raise Failed(str(error)) from error
    if answer != b"OK":
        raise Failed(answer.decode("utf-8", "replace"))


def subscribe(args: argparse.Namespace) -> None:
    printer = Printer(named=len(args.channel) > 1)
    context = gowsev.MakeContext(printer)
    for channel in dict.fromkeys(args.channel):
        conn = dial(args)
        ask(conn, f"subscribe:{channel}".encode())
        printer.channels[context.AddConn(conn)] = channel
    while printer.ended is None:
        context.EventLoopIteration()
    raise Failed(printer.ended)


def publish(args: argparse.Namespace) -> None:
    with dial(args) as conn:
        command = f"publish:{args.channel}:".encode()
        if args.body is not None:
            ask(conn, command + args.body.encode())
            return
        for line in sys.stdin.buffer:
            ask(conn, command + line.removesuffix(b"\n"))


def channel(text: str) -> str:
    if not text or ":" in text or text.split() != [text]:
        raise argparse.ArgumentTypeError(f"a channel's name has no blanks and no colon: {text!r}")
    return text


def add_connecting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", default=argparse.SUPPRESS, help="of the relay, ws:// or wss:// (default: ws://localhost:9000/)"
    )
    parser.add_argument(
        "--token-file", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="present the token in this file"
    )
    parser.add_argument(
        "--cafile",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="trust the certificates in this file, such as a self-signed one",
    )


def main() -> None:
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=description)
    add_connecting(parser)
    # They are understood behind the command too, where most people look for them.
    behind = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    add_connecting(behind)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    subscribing = commands.add_parser("subscribe", parents=[behind], help="print what arrives on channels, a line each")
    subscribing.add_argument("channel", nargs="+", type=channel, metavar="CHANNEL")
    subscribing.set_defaults(run=subscribe)
    publishing = commands.add_parser("publish", parents=[behind], help="publish to a channel")
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


if __name__ == "__main__":
    main()

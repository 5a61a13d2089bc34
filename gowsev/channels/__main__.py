"""`python -m gowsev.channels`: publish, follow and look at channels from the shell."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from gowsev.channels.bell import Bell
from gowsev.channels.errors import ChannelsError
from gowsev.channels.remote import Remote
from gowsev.shell import end_by_interrupt, ending_with_its_reader

if TYPE_CHECKING:
    from collections.abc import Sequence


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gowsev.channels", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("publish", "publish a message, and print its position"),
        ("tail", "print what is published from now on, until Ctrl-C"),
        ("members", "print who is there, and with how many connections"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--url", required=True, help="such as redis://localhost:6379/0")
        command.add_argument("--prefix", default="gowsev")
        command.add_argument("channel")
        if name == "publish":
            command.add_argument("--key", help="publish once, however often it is repeated with this key")
            command.add_argument("message", help="text; - for the bytes of the standard input")
        if name == "tail":
            command.add_argument("--after", help="a position: print what came since, first")
    return parser.parse_args(words)


def _publish(remote: Remote, arguments: argparse.Namespace) -> None:
    message = sys.stdin.buffer.read() if arguments.message == "-" else arguments.message
    print(remote.Publish(arguments.channel, message, arguments.key))  # noqa: T201


def _members(remote: Remote, arguments: argparse.Namespace) -> None:
    for member, connections in sorted(remote.Members(arguments.channel).items()):
        print(connections, member)  # noqa: T201


def _tail(remote: Remote, arguments: argparse.Namespace) -> None:
    after = arguments.after
    if after is None:
        after = next((publication.position for publication in reversed(remote.History(arguments.channel))), None)
    with Bell(arguments.url, arguments.prefix, arguments.channel) as bell:
        while True:
            for publication in remote.History(arguments.channel, after):
                message = publication.message
                sys.stdout.buffer.write((message.encode() if isinstance(message, str) else message) + b"\n")
                after = publication.position
            sys.stdout.buffer.flush()
            bell.wait()


@ending_with_its_reader()
def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code.

    Raises:
        SystemExit: an argument is wrong, or nobody reads what is printed.
    """
    arguments = _arguments(words)
    try:
        with Remote(arguments.url, prefix=arguments.prefix) as remote:
            {"publish": _publish, "members": _members, "tail": _tail}[arguments.command](remote, arguments)
    except (ChannelsError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":  # pragma: no cover  # in a process of its own
    end_by_interrupt()
    sys.exit(main())

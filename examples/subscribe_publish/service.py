#!/usr/bin/env python3
"""A relay between WebSocket clients: what one publishes to a channel goes to all who subscribed to it.

This is the relay's command: its options, and one process from its start to its end. `python relay.py` is the same.
What the relay does is in relay.py, what a process adds to that in service is in node.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import gevent
import gevent.socket
from allowance import Rates
from localhost_certificate import OWN_CERT, OWN_KEY, NoCertificate, ensure_certificate
from metrics import health_of, metrics_of
from node import LIMITS, SUBPROTOCOLS, Node
from page import Page
from tokens import INTERVAL, TokenFile, read_tokens
from workers import READY, Workers, has_terminal, reserve

import gowsev
from gowsev.channels import Limits

logger = logging.getLogger("relay")


# -- options ---------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and repeat nothing that may be a secret."""

    def parse_args(self, *given: Any) -> argparse.Namespace:
        args, rest = self.parse_known_args(*given)
        if rest:
            names = [re.sub("=.*", "=...", word, flags=re.DOTALL) if word.startswith("-") else "..." for word in rest]
            self.error(f"unrecognized arguments: {' '.join(names)}; see --help")
        return args

    def error(self, message: str) -> NoReturn:
        for given in sys.argv[1:]:
            value = given.partition("=")[2] if given.startswith("-") else given
            if "@" in value or ("://" in value and not value.startswith(("http://", "https://"))):
                for form in (value, repr(value)[1:-1]):
                    message = message.replace(form, "...")
        self.exit(2, f"{self.prog}: error: {message}\n")


def arguments() -> argparse.ArgumentParser:
    """The options, group by group: long, and nothing but that."""
    description, *_ = (__doc__ or "").splitlines()
    parser = Parser(
        description=description,
        epilog="Without --cert and --key, TLS uses a self-signed certificate for localhost, made on the first start. "
        "Browsers get a page to try the relay with at /; monitors look at /healthz and /metrics.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("listening").add_argument
    text = "address to listen on, of TCP: a unix socket is none (default: all interfaces)"
    add("--host", type=host, default="", help=text)
    text = "port for ws:// (default: %(default)s; 0: any free one)"
    add("--port", type=port, default=9000, metavar="N", help=text)
    text = 'port for wss:// (default: %(default)s; 0: any free one; "none": no TLS)'
    add("--tls-port", type=port_or_none, default=9001, metavar="N", help=text)
    add("--cert", type=Path, metavar="FILE", help="certificate for TLS, PEM")
    add("--key", type=Path, metavar="FILE", help="its private key, PEM")
    group = parser.add_argument_group("who may connect, and what clients may do")
    add_access(group)
    for option, field, text in LIMIT_OPTIONS:
        default = LIMIT_DEFAULTS.get(field)
        text += " (default: no limit)" if default is None else f" (default: {default:.0f})"
        group.add_argument(option, dest=field, type=count, default=default, metavar="N", help=text)
    add = parser.add_argument_group("more than one process").add_argument
    text = "join all relays that name the same Redis (7.0 or newer), such as redis://localhost:6379/0"
    add("--backplane", metavar="URL", help=text)
    text = "and the same prefix of its keys (default: %(default)s)"
    add("--backplane-prefix", default="relay", metavar="WORD", help=text)
    text = "processes that share the ports (default: %(default)s; more than one takes a backplane)"
    add("--workers", type=count, default=1, metavar="N", help=text)
    add("--worker", type=int, default=0, help=argparse.SUPPRESS)  # set by workers.py
    add("--worker-folder", type=Path, help=argparse.SUPPRESS)
    add = parser.add_argument_group("the log").add_argument
    text = "of the lines on standard error (default: %(default)s)"
    add("--log-format", choices=("text", "json"), default="text", help=text)
    add("-v", "--verbose", action="store_true", help="log every message too")
    return parser


def add_access(group: argparse._ArgumentGroup) -> None:
    text = """let pages of this origin connect, such as https://example.com, "null" (a local file) or "*" (any); may be
        repeated, and then replaces the default (the relay's own page; programs other than browsers may always
        connect)"""
    group.add_argument("--allowed-origin", type=origin, action="append", metavar="ORIGIN", help=text)
    text = """let only clients in that present a token of this file, one a line, and do what its line allows; it is
        read again when it changes (default: anyone)"""
    group.add_argument("--token-file", type=Path, metavar="FILE", help=text)
    text = """believe proxies at this address, or in this network, as to whose connections they pass on; may be
        repeated"""
    group.add_argument("--trusted-proxy", type=proxy, action="append", default=[], metavar="ADDRESS", help=text)
    text = f"""in which header they say so (default: {PROXY_HEADERS[0]}); where that is the PROXY protocol's, version 1
        or 2, nobody else may connect"""
    group.add_argument("--proxy-header", choices=PROXY_HEADERS, help=text)


PROXY_HEADERS = "x-forwarded-for", "forwarded", "proxy-protocol"
#: Options that are whole numbers: each with its name in the program, and its help.
LIMIT_OPTIONS = (
    ("--max-connections", "max_connections", "connections that each process takes"),
    ("--max-message-bytes", "max_message_bytes", "the longest message"),
    ("--max-publishes", "max_publishes", "publishes a second of each client"),
    ("--max-publish-bytes", "max_publish_bytes", "bytes a second that these may have"),
    ("--max-in-flight", "in_flight", "publishes of a client that may wait for the backplane"),
    ("--max-in-flight-bytes", "in_flight_bytes", "bytes that these may have together"),
    ("--max-channels", "channels", "channels that a client may subscribe to"),
    ("--max-channel-bytes", "name_bytes", "the longest name of a channel"),
    ("--history-messages", "history_messages", "messages that a channel keeps for a process that comes back"),
    ("--history-bytes", "history_bytes", "bytes that these may have together"),
    ("--history-seconds", "history_seconds", "seconds after its last message at which a channel forgets them"),
)
#: Of those that have a limit by default.
LIMIT_DEFAULTS = {"max_message_bytes": 1 << 20} | dataclasses.asdict(LIMITS)


def host(text: str) -> str:
    if "/" in text:
        raise argparse.ArgumentTypeError(f"expected a name or an address, since the relay listens on TCP, not {text!r}")
    return text


def port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def port_or_none(text: str) -> int | None:
    return None if text == "none" else port(text)


def count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def checked(look: Callable[[str], object]) -> Callable[[str], str]:
    """Return a type of arguments: text at which the library may look, and raise a ValueError."""

    def check(text: str) -> str:
        try:
            look(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return check


origin = checked(lambda text: gowsev.Options(allowed_origins=(text,)))
proxy = checked(lambda text: gowsev.TrustedProxies((text,)))


# -- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if (args.cert is None) != (args.key is None):
        parser.error("--cert and --key go together")
    if args.cert is not None and args.tls_port is None:
        parser.error("--cert and --key are for TLS, and --tls-port is none")
    if args.proxy_header is not None and not args.trusted_proxy:
        parser.error("--proxy-header takes a --trusted-proxy, who is believed in it")
    if args.workers > 1 and args.backplane is None:
        # They would be separate relays, and who hears whom a matter of luck.
        parser.error("more than one of --workers takes a --backplane, which makes them one relay")
    configure_log(args)
    # As many connections as the system allows.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        if args.backplane is not None:
            check_backplane(args)
        if args.workers > 1 and not args.worker:
            sys.exit(run_workers(args))
        run(args)
    except (OSError, ValueError) as error:  # a port in use, a file that is no certificate
        parser.exit(2, f"{parser.prog}: error: {getattr(error, 'strerror', None) or error}\n")


def run(args: argparse.Namespace) -> None:
    """Serve, until a signal ends it."""
    tokens = TokenFile(args.token_file) if args.token_file is not None else None
    rates = Rates(args.max_publishes, args.max_publish_bytes)
    header = args.proxy_header or PROXY_HEADERS[0]
    by_protocol = header == "proxy-protocol"  # the peer is the client then
    by_header = args.trusted_proxy and not by_protocol
    proxies = gowsev.TrustedProxies(args.trusted_proxy, header) if by_header else None
    node = Node(limits_of(args), tokens.tokens if tokens else (), rates, proxies)
    page = Page(token=tokens is not None)
    options = gowsev.Options(
        max_connections=args.max_connections,
        max_message_bytes=args.max_message_bytes,
        allowed_origins=args.allowed_origin,
        subprotocols=SUBPROTOCOLS,
        http_app=page,
        reuse_port=bool(args.worker),
        proxy_protocol=args.trusted_proxy if by_protocol else None,
    )
    context = gowsev.MakeContext(node, options)
    node.open(context, args.backplane, args.backplane_prefix)
    health = health_of(node, context, args.worker or 1)
    page.apps = {"/healthz": health, "/healthz/alive": health}
    if (metrics := metrics_of(node, context, args.worker or 1, args.worker_folder)) is not None:
        page.apps["/metrics"] = metrics
    urls = listen(context, args)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, node.stop, context)
    gevent.signal_handler(signal.SIGHUP, hang_up, context, node, tokens, has_terminal())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    if tokens is not None:
        follow(context, node, tokens)
    if args.worker:
        gevent.spawn(stop_after_parent, node, context)
        node.when_there(context, lambda: os.kill(os.getppid(), READY))
    for url in urls:
        logger.info("Listening on %s%s", "" if args.host else "all interfaces, ", url)
    context.EventLoop()
    logger.info("Stopped")


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that were asked for."""
    names = {field.name for field in dataclasses.fields(Limits)}
    return dataclasses.replace(LIMITS, **{name: value for name, value in vars(args).items() if name in names})


def check_backplane(args: argparse.Namespace) -> None:
    """Look for what is wrong with the address of the backplane, before anybody uses it.

    Raises:
        ValueError: it cannot be used; the text says why.
    """
    try:
        from gowsev.channels import Remote

        Remote(args.backplane, prefix=args.backplane_prefix)  # which has not connected yet
    except ImportError as error:
        text = f"--backplane takes the Python package redis: {error}; pip install '.[relay]' brings it"
        raise ValueError(text) from error
    except ValueError as error:
        of_prefix = str(error).startswith("prefix")
        option = "--backplane-prefix" if of_prefix else "--backplane is like redis://host:6379/0"
        raise ValueError(f"{option}: {str(error).removeprefix('url: ')}") from error


def follow(context: gowsev.Context, node: Node, tokens: TokenFile) -> None:
    """Look at the file of tokens from now on."""
    if tokens.follow():
        node.replace_tokens(context, tokens.tokens)
    context.AfterFunc(INTERVAL, follow, node, tokens)


def hang_up(context: gowsev.Context, node: Node, tokens: TokenFile | None, terminal: bool) -> None:
    """Do what SIGHUP asks for: read what can change while a relay runs; or end, if its terminal is gone."""
    if terminal and not has_terminal():
        node.stop(context)
    elif tokens is None:
        logger.info("SIGHUP: there is no --token-file to read again")
    else:
        logger.info("SIGHUP: reading the tokens again")
        if tokens.reload():
            node.replace_tokens(context, tokens.tokens)


def stop_after_parent(node: Node, context: gowsev.Context) -> None:
    gevent.socket.wait_read(sys.stdin.fileno())
    node.stop(context)


def run_workers(args: argparse.Namespace) -> int:
    """Let several processes serve; return the exit code."""
    # Nothing comes of these here: what is wrong with them is said once, before there are workers to say it.
    if args.token_file is not None:
        read_tokens(args.token_file)
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        holders = [reserve(args.host.strip("[]"), args.port)]
        more = ["--worker-folder", folder, "--port", str(holders[0].getsockname()[1])]
        if args.tls_port is not None and certificate(args) is not None:
            holders.append(reserve(args.host.strip("[]"), args.tls_port))
            more += ["--tls-port", str(holders[1].getsockname()[1])]
        else:
            more += ["--tls-port", "none"]
        try:
            return Workers([sys.executable, *sys.argv, *more], args.workers, Path(folder)).run()
        finally:
            for holder in holders:
                holder.close()
            logger.info("Stopped")


def listen(context: gowsev.Context, args: argparse.Namespace) -> list[str]:
    """Open the ports; return their URLs."""
    host = f"[{args.host.strip('[]')}]" if ":" in args.host else args.host
    shown = host or "localhost"
    _, number = context.ListenAndServe(f"{host}:{args.port}")
    urls = [f"ws://{shown}:{number}/"]
    files = certificate(args) if args.tls_port is not None else None
    if files is not None:
        _, number = context.ListenAndServeTLS(f"{host}:{args.tls_port}", *map(os.fspath, files))
        urls.append(f"wss://{shown}:{number}/")
    return urls


def certificate(args: argparse.Namespace) -> tuple[Path, Path] | None:
    """The files of a certificate and its key; `None`, and a line in the log, if there are none."""
    if args.cert is not None:
        return args.cert, args.key
    try:
        ensure_certificate(OWN_CERT, OWN_KEY)
    except NoCertificate as error:
        logger.warning("No TLS: %s. Give one with --cert and --key, or say --tls-port none.", error)
        return None
    return OWN_CERT, OWN_KEY


# -- the log ---------------------------------------------------------------------------------------------------------

#: What every record has; the rest of its attributes were given by `extra`.
USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what else the record tells."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = {"worker": worker} if worker else {}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._worker,
            **{name: value for name, value in vars(record).items() if name not in USUAL},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_log(args: argparse.Namespace) -> None:
    handler = logging.StreamHandler()
    if args.log_format == "json":
        handler.setFormatter(JSONFormatter(args.worker))
    else:
        worker = f"worker {args.worker}: " if args.worker else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s {worker}%(message)s", "%Y-%m-%d %H:%M:%S%z"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if args.verbose:
        logger.setLevel(logging.DEBUG)


if __name__ == "__main__":
    main()

"""Load the relay of examples/subscribe_publish with thousands of subscribers, in one to four processes; print a table.

usage: run.py --relay [--processes N ...] [--subscribers N ...] [--deliveries N] [--in-flight N] [--minutes N]

Each run starts the relay, a Redis that keeps what it acknowledges where there are several processes (and for one, once
with it and once without), and the relay's own load.py, which checks the count and the order of every delivery. All
publishes go to one channel, which everybody has subscribed to. It ends by itself: a run that is not done in its share
of the time is given up, and the table says so. It needs redis-server, and the packages redis and tqdm.

Nothing is pinned to a core: the kernel deals relays, Redis and the driver out, as it would in service.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import launch
from channel_servers import Redis
from driver import Server
from launch import ROOT, Unavailable

RELAY = ROOT / "examples" / "subscribe_publish"
HEADS = (
    "subscribers", "processes", "backplane", "publishes", "deliveries a second", "latency p50, p90, p99, max (ms)",
    "CPU of the relays a delivery (µs)", "CPU of Redis a publish (µs)", "subscribed in (s)",
)  # fmt: skip
#: What load.py prints when all have subscribed, and when all has been delivered.
SUBSCRIBED = re.compile(r"subscribers on .* in ([\d.]+) s")
DELIVERED = re.compile(
    r"deliveries, each checked: ([\d,]+) a second\nlatency in ms.*: p50 (\S+)  p90 (\S+)  p99 (\S+)  max (\S+)"
)
#: Seconds that one run may take besides its share of the load: to start, and to end.
AROUND = 10


class Failed(Exception):
    """A run came to nothing; the text says why."""


@contextlib.contextmanager
def relays(processes, redis):
    """Run the relay; give its URL and the clocks of its processes.

    Raises:
        Unavailable: it does not start; the text is its last output.
    """
    command = [sys.executable, RELAY / "relay.py", "--host", "127.0.0.1", "--port", "0", "--tls-port", "none"]
    command += ["--workers", str(processes), *(["--backplane", redis.url] if redis else [])]
    with tempfile.TemporaryFile("w+") as said:
        parent = launch.start(command, core=None, stderr=said)
        try:
            log = _wait_until(said, parent, "The backplane is there" if redis else "Listening on", processes)
            url = re.search(r"ws://\S+", log)[0]
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
            yield url, [Server(int(pid)) for pid in children or [parent.pid]]
        finally:
            parent.terminate()
            parent.wait()


def _wait_until(said, process, text, times):
    """Wait until a line has been logged so many times; return the log."""
    deadline = time.monotonic() + launch.PATIENCE
    while True:
        said.seek(0)
        log = said.read()
        if log.count(text) >= times and log.count("Listening on") >= times:
            return log
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable((log.strip().splitlines() or ["the relay says nothing"])[-1])
        time.sleep(0.05)


def measure(processes, joined, subscribers, args, seconds):
    """Return the cells of one run.

    Raises:
        Failed, Unavailable: there are none.
    """
    publishes = max(1, args.deliveries // subscribers)
    with contextlib.ExitStack() as stack:
        redis = None
        if joined:
            redis = Redis(stack.enter_context(tempfile.TemporaryDirectory()), durable=True, core=None)
            stack.callback(redis.process.wait)
            stack.callback(redis.kill)
        url, clocks = stack.enter_context(relays(processes, redis))
        command = [sys.executable, RELAY / "load.py", "--url", url, "--subscribers", str(subscribers)]
        command += ["--messages", str(publishes), "--in-flight", str(args.in_flight), "--seconds", str(seconds)]
        said = stack.enter_context(tempfile.TemporaryFile("w+"))
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        load = launch.start(command, core=None, stdout=subprocess.PIPE, stderr=said, text=True, env=environ)
        stack.enter_context(load)
        stack.callback(load.kill)
        late = threading.Timer(seconds + AROUND, load.kill)
        late.start()
        stack.callback(late.cancel)
        subscribed = SUBSCRIBED.search(load.stdout.readline())
        watched = [*clocks, *([Server(redis.process.pid)] if redis else [])]
        before = [clock.cpu() for clock in watched]
        text, delivered = "", None
        for line in load.stdout:  # to its last one, and no further: then it closes all its connections
            text += line
            if delivered := DELIVERED.search(text):
                break
        used = [clock.cpu() - earlier for clock, earlier in zip(watched, before, strict=True)]
        if not subscribed or not delivered:
            said.seek(0)
            raise Failed((said.read().strip().splitlines() or ["it took too long"])[-1])
    rate, *latencies = delivered.groups()
    deliveries = publishes * subscribers
    return (
        f"{subscribers:,}", processes, "yes" if joined else "no", publishes, rate, ", ".join(latencies),
        f"{1e6 * sum(used[: len(clocks)]) / deliveries:.1f}",
        f"{1e6 * used[-1] / publishes:.0f}" if joined else "", subscribed[1],
    )  # fmt: skip


def number(text):
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def parse(words):
    parser = argparse.ArgumentParser(prog="run.py --relay", description=__doc__.partition("\n")[0])
    text = "processes of the relay (%(default)s); for 1, in memory and over Redis"
    parser.add_argument("--processes", type=number, nargs="+", default=[1, 2, 4], metavar="N", help=text)
    parser.add_argument("--subscribers", type=number, nargs="+", default=[1000, 10_000], metavar="N")
    text = "of each run (%(default)s); so many publishes as make these"
    parser.add_argument("--deliveries", type=number, default=500_000, metavar="N", help=text)
    text = "publishes that not everybody has received yet (%(default)s)"
    parser.add_argument("--in-flight", type=number, default=8, metavar="N", help=text)
    parser.add_argument("--minutes", type=number, default=5, metavar="N", help="for all of it (%(default)s)")
    return parser.parse_args(words)


def main(words):
    """Measure, and print the table; return the exit code: 1 if a run came to nothing."""
    args = parse(words)
    runs = [
        (processes, joined, subscribers)
        for subscribers in args.subscribers
        for processes in args.processes
        for joined in ([False, True] if processes == 1 else [True])
    ]
    end, failures = time.monotonic() + 60 * args.minutes, 0
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
    for place, (processes, joined, subscribers) in enumerate(runs):
        share = int((end - time.monotonic()) / (len(runs) - place)) - AROUND
        try:
            if share < 1:
                raise Failed("there was no time left")
            cells = measure(processes, joined, subscribers, args, share)
        except (Failed, Unavailable) as error:
            failures += 1
            cells = (f"{subscribers:,}", processes, "yes" if joined else "no", str(error).replace("|", "/"))
            cells += ("",) * (len(HEADS) - len(cells))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

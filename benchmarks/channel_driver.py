"""Run one server in some processes over one Redis, drive it through one scenario, and print one line of JSON.

usage: channel_driver.py publish|kill|back|order --peer NAME [--processes 2] [options]

- publish: clients publish and subscribe; what a delivery and a publish cost the servers and Redis in processor time.
- kill: Redis is killed and comes back while clients publish; what of those acknowledged did not reach a subscriber.
- back: a client's connection is lost, and it comes back on another process, twice; what it gets.
- order: clients of all processes publish to one channel; whether all subscribers have the same sequence.
"""

import argparse
import json
import resource
import sys

from channel_loads import Publishing, measure
from channel_servers import CHANNEL_PEERS, fleet
from channel_trials import back, kill, order
from launch import Unavailable
from wire import WireError


def publish(servers, arguments):
    load = Publishing(
        servers,
        arguments.channels,
        arguments.connections,
        arguments.subscribers,
        arguments.publishers,
        arguments.depth,
    )
    return measure(load, servers, arguments.seconds)


KINDS = {"publish": publish, "kill": kill, "back": back, "order": order}


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--peer", choices=CHANNEL_PEERS, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--connections", type=int, default=50, help="of each process, that share its subscriptions")
    parser.add_argument("--subscribers", type=int, default=1, help="of each channel")
    parser.add_argument("--publishers", type=int, default=1)
    parser.add_argument("--depth", type=int, default=1, help="publishes of each that are under way")
    parser.add_argument("--messages", type=int, default=2000, help="that are published in kill, back and order")
    parser.add_argument("--away", type=float, default=2.0, help="seconds for which a client is away in back")
    parser.add_argument("--durable", action="store_true", help="let Redis keep what it has acknowledged")
    parser.add_argument("--seconds", type=float, default=1.0)
    return parser.parse_args(words)


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    arguments = parse(sys.argv[1:])
    try:
        with fleet(CHANNEL_PEERS[arguments.peer], arguments.processes, arguments.durable) as servers:
            figures = KINDS[arguments.kind](servers, arguments)
    except (WireError, OSError, Unavailable) as error:
        figures = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(figures))
    return "error" in figures


if __name__ == "__main__":
    sys.exit(main())

"""Compare channels with their peers over one real Redis, and print tables of medians.

usage: run.py --channels [--scenario NAME ...] [--server NAME ...] [--rounds 5] [--seconds 1.0] [--quick] [--json FILE]

Each run starts a Redis and two processes of one server (or as many as the scenario says) on one core, and drives them
from another, where there are two; rounds alternate between the servers. A server that cannot run here is left out, and
why is said: they need redis-server, and what benchmarks/requirements.txt lists; socket.io needs node and npm, which
brings it. All of it, with 5 rounds, takes about ten minutes; with --scenario it can be had in parts.

What costs processor time is measured with a Redis that keeps nothing on disk, but for `durable`; what is lost, with one
that keeps all that it has acknowledged.
"""

import argparse
import json
import time
from pathlib import Path

import launch
import medians
import report
from channel_scenarios import SCENARIOS
from channel_servers import CHANNEL_PEERS, PACKAGES, fleet
from launch import BUILD, Unavailable

PACKAGES_OF_PYTHON = ("gevent", "redis", "python-socketio", "channels", "channels-redis", "daphne", "Django")
PACKAGES_OF_NODE = ("socket.io", "@socket.io/redis-streams-adapter", "redis")
HEADS = {
    "delivery_us": "µs a delivery",
    "publish_us": "µs a publish, servers",
    "redis_us": "Redis",
    "per_second": "publishes a second",
    "lost": "acknowledged and lost",
    "first": "share of what was missed",
    "second": "the second time",
    "orders": "sequences",
}


def parse(words):
    parser = argparse.ArgumentParser(prog="run.py --channels", description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument(
        "--server", action="append", choices=CHANNEL_PEERS, metavar="NAME", help=", ".join(CHANNEL_PEERS)
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of each scenario, fewer of the longest; medians are taken (5)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="that each run measures (1.0)")
    parser.add_argument("--quick", action="store_true", help="one round, 0.3 seconds: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    arguments = parser.parse_args(words)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {arguments.rounds}")
    if not 0 < arguments.seconds <= 60:
        parser.error(f"--seconds must be above 0 and at most 60, not {arguments.seconds}")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.3
    return arguments


def prepare(name):
    """Build what a server needs, and see that it starts.

    Raises:
        Unavailable: it cannot take part; the text says why.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    peer = CHANNEL_PEERS[name]
    if peer.build is not None:
        peer.build()
    with fleet(peer, 1, durable=False):
        pass


def gather(names):
    """Return the servers that can run here, and why others can't."""
    found, skipped = [], {}
    for name in names:
        try:
            prepare(name)
            found.append(name)
        except Unavailable as reason:
            skipped[name] = str(reason)
            print(f"left out: {CHANNEL_PEERS[name].title}: {reason}", flush=True)
    return found, skipped


def plan(scenarios, servers, rounds):
    """Return every run, as pairs of scenario and server, in order: all servers of a round, round after round."""
    runs = []
    for name in scenarios:
        joining = [server for server in servers if server in SCENARIOS[name].peers]
        for i in range(min(rounds, SCENARIOS[name].rounds or rounds)):
            runs += [(name, server) for server in joining if i < CHANNEL_PEERS[server].rounds]
    return runs


def measure(name, server, seconds, *words):
    """Do one run; return its figures, of which `error` is one. Words come behind those of the scenario."""
    command = [*SCENARIOS[name].driver.split(), "--peer", server, "--seconds", str(seconds), *words]
    return launch.figures_of("channel_driver", command, seconds * 2 + 240)


def measure_all(runs, seconds, results):
    """Do all runs, and put their medians into `results`."""
    samples = {}
    for i, (name, server) in enumerate(runs, 1):
        begin = time.monotonic()
        sample = measure(name, server, seconds)
        if "error" in sample:
            results["errors"].append(f"{SCENARIOS[name].title}, {CHANNEL_PEERS[server].title}: {sample['error']}")
        else:
            samples.setdefault(name, {}).setdefault(server, []).append(sample)
        found = sample.get("error") or {key: round(sample[key], 2) for key in SCENARIOS[name].figures}
        print(f"{i}/{len(runs)} {name} {server}: {found} ({time.monotonic() - begin:.0f} s)", flush=True)
    for name, servers in samples.items():
        figure = SCENARIOS[name].figures[0]
        results["figures"][name] = {
            server: {**medians.summarize(several, figure), "samples": several} for server, several in servers.items()
        }


def table(results, name):
    """Return the table of one scenario: its figures, and the least and the most of the first."""
    scenario, rows = SCENARIOS[name], []
    for server in CHANNEL_PEERS:
        found = results["figures"][name].get(server)
        if found:
            cells = [medians.figure(found[key]) if found[key] else "0" for key in scenario.figures]
            spread = f"{medians.figure(found['least'])} to {medians.figure(found['most'])}"
            rows.append(f"| {CHANNEL_PEERS[server].title} | {' | '.join(cells)} | {spread} |")
    heads = [HEADS.get(key, key) for key in scenario.figures]
    lines = [f"| {scenario.title} | {' | '.join(heads)} | single runs |", "|---|" + "---:|" * (len(heads) + 1), *rows]
    return "\n".join(lines)


def full(results):
    """Return all tables, and how they were measured."""
    parts = [report.about(results), *(table(results, name) for name in results["figures"])]
    parts += [f"Left out: {CHANNEL_PEERS[name].title}, as {why}." for name, why in results["skipped"].items()]
    return "\n\n".join([*parts, *(f"Failed: {error}." for error in results["errors"])])


def versions(servers):
    """Return the names and versions of all that takes part."""
    found = [*report.versions_of(PACKAGES_OF_PYTHON), report.output("redis-server", "--version").split(" sha=")[0]]
    if "socketio" in servers:
        found.append(f"node {report.output('node', '--version')[1:]}")
        for package in PACKAGES_OF_NODE:
            manifest = json.loads((PACKAGES / "node_modules" / package / "package.json").read_text("utf-8"))
            found.append(f"{package} {manifest['version']}")
    return found


def main(words):
    arguments = parse(words)
    print(launch.pinning())
    servers, skipped = gather(arguments.server or CHANNEL_PEERS)
    results = report.make_results(arguments, versions(servers))
    results["skipped"] = skipped
    runs = plan(arguments.scenario or SCENARIOS, servers, arguments.rounds)
    try:
        measure_all(runs, arguments.seconds, results)
    finally:
        # What was measured before Ctrl-C is of use as well.
        if arguments.json:
            report.save(results, arguments.json)
    print("\n" + full(results))
    return bool(results["errors"])

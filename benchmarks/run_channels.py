"""Compare channels with their peers over one real Redis, and print tables of medians.

usage: run.py --channels [--scenario NAME ...] [--server NAME ...] [--rounds 5] [--seconds 1.0] [--quick] [--json FILE]
       run.py --channels --read FILE [--read FILE ...] [--update]

Each run starts a Redis and two processes of one server (or as many as the scenario says) on one core, and drives them
from another, where there are two; rounds alternate between the servers. A server that cannot run here is left out, and
why is said: they need redis-server, and what benchmarks/requirements.txt lists; socket.io needs node and npm, which
brings it. All of it, with 5 rounds, takes about eleven minutes; with --scenario and --json it can be had in parts,
which --read puts together. With --update the tables in docs/scaling-out.md are replaced.

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
from channel_scenarios import COSTS, SCENARIOS
from channel_servers import CHANNEL_PEERS, PACKAGES, fleet
from launch import ROOT

PACKAGES_OF_PYTHON = ("gevent", "redis", "hiredis", "python-socketio", "channels", "channels-redis", "daphne", "Django")
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
#: The columns of the table in docs/scaling-out.md: head, scenario, its figures, and what stands between these.
SUMMARY = (
    ("fan-out to 200, 8 in flight: µs a delivery", "fanout", ("delivery_us",), ""),
    ("1,000 channels, 16 in flight: µs a publish, servers + Redis", "channels_1000", COSTS, " + "),
    ("10,000 channels", "channels_10000", COSTS, " + "),
    ("Redis killed for 1 s: lost of those acknowledged", "kill", ("lost", "acknowledged"), " of "),
    ("a client back after 2 s: what it gets of what it missed; and again", "back", ("first", "second"), "; "),
    ("orders that 8 subscribers saw", "order", ("orders",), ""),
)
#: The rows of the table of gowsev alone: head, server, and as above.
ALONE = (
    ("10 channels: µs a publish, servers + Redis", "gowsev", "channels_10", COSTS, " + "),
    ("50,000 channels", "gowsev", "channels_50000", COSTS, " + "),
    ("1,000 channels, Redis with `appendfsync always`", "gowsev", "durable", COSTS, " + "),
    ("fan-out to 200, one process: µs a delivery", "gowsev", "fanout_1", ("delivery_us",), ""),
    ("the same in memory, without Redis", "gowsev_memory", "fanout_1", ("delivery_us",), ""),
    *(
        (f"publishes a second, {number}, all on one core with Redis", "gowsev", name, ("per_second",), "")
        for number, name in (("1 process", "rate_1"), ("2 processes", "rate_2"), ("4 processes", "rate_4"))
    ),
)


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
    parser.add_argument("--read", action="append", type=Path, metavar="FILE", help="measure nothing: use these figures")
    parser.add_argument("--update", action="store_true", help="replace the figures in docs/scaling-out.md")
    arguments = parser.parse_args(words)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {arguments.rounds}")
    if not 0 < arguments.seconds <= 60:
        parser.error(f"--seconds must be above 0 and at most 60, not {arguments.seconds}")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.3
    return arguments


def alone(peer):
    """Run one process of a peer for a while, to see that it starts."""
    return fleet(peer, 1, durable=False)


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
            several = samples.setdefault((name, server), [])
            several.append(sample)
            middle = medians.summarize(several, SCENARIOS[name].figures[0])
            results["figures"].setdefault(name, {})[server] = {**middle, "samples": several}
        found = sample.get("error") or {key: round(sample[key], 2) for key in SCENARIOS[name].figures}
        print(f"{i}/{len(runs)} {name} {server}: {found} ({time.monotonic() - begin:.0f} s)", flush=True)


def written(found, key):
    """Write one of the medians of a server; a dash if there is none."""
    value = found.get(key)
    if value is None:
        return "–"
    if key in ("first", "second"):
        return {0: "nothing", 1: "all"}.get(value, f"{value:.0%}")
    if key == "lost" and found["least"] != found["most"]:
        return f"{found['least']:,} to {found['most']:,}"
    return medians.figure(value) if key.endswith("_us") else f"{value:,.0f}"


def summary(results):
    """Return what docs/scaling-out.md shows: all servers side by side, gowsev alone, and how that was measured."""

    def cell(server, name, keys, between):
        found = results["figures"].get(name, {}).get(server, {})
        return between.join(written(found, key) for key in keys) if found else "–"

    lines = ["| | " + " | ".join(head for head, *_ in SUMMARY) + " |", "|---|" + "---:|" * len(SUMMARY)]
    for server in SCENARIOS["fanout"].peers:
        cells = [cell(server, *column) for _, *column in SUMMARY]
        lines.append(f"| {CHANNEL_PEERS[server].title} | {' | '.join(cells)} |")
    lines += ["", "| gowsev alone | |", "|---|---:|"]
    lines += [f"| {head} | {cell(server, name, keys, between)} |" for head, server, name, keys, between in ALONE]
    return "\n".join([*lines, "", report.about(results) if results["figures"] else "Not measured yet."])


def table(results, name):
    """Return the table of one scenario: its figures, and the least and the most of the first one."""
    scenario, rows = SCENARIOS[name], []
    for server in CHANNEL_PEERS:
        found = results["figures"][name].get(server)
        if found:
            cells = [written(found, key) for key in scenario.figures]
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
    found = [
        *report.versions_of(PACKAGES_OF_PYTHON),
        report.output("redis-server", "--version").split(" sha=")[0],
    ]
    if "socketio" in servers:
        found.append(f"node {report.output('node', '--version')[1:]}")
        for package in PACKAGES_OF_NODE:
            manifest = json.loads((PACKAGES / "node_modules" / package / "package.json").read_text("utf-8"))
            found.append(f"{package} {manifest['version']}")
    return found


def read(paths):
    """Return the results of several files as one; of what is in two, the later counts."""
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    together = dict(results[-1])
    for key in ("figures", "skipped"):
        together[key] = {name: value for one in results for name, value in one[key].items()}
    together["errors"] = [error for one in results for error in one["errors"]]
    together["versions"] = max((one["versions"] for one in results), key=len)
    return together


def measured(arguments):
    """Measure what the arguments ask for; return the results."""
    print(launch.pinning())
    servers, skipped = launch.gather(CHANNEL_PEERS, arguments.server or CHANNEL_PEERS, alone)
    results = report.make_results(arguments, versions(servers))
    results["skipped"] = skipped
    try:
        measure_all(plan(arguments.scenario or SCENARIOS, servers, arguments.rounds), arguments.seconds, results)
    finally:
        # What was measured before Ctrl-C is of use as well.
        if arguments.json:
            report.save(results, arguments.json)
    return results


def main(words):
    arguments = parse(words)
    results = read(arguments.read) if arguments.read else measured(arguments)
    print(f"\n{full(results)}\n\n{summary(results)}")
    if arguments.update:
        path = ROOT / "docs" / "scaling-out.md"
        path.write_text(report.replace(path.read_text("utf-8"), "channels", summary(results)), "utf-8")
    return bool(results["errors"])

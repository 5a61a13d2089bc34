"""Compare gowsev with its peers, side by side, and write tables (markdown and JSON) and a picture (SVG).

usage: run.py [--scenario NAME ...] [--peer NAME ...] [--rounds 5] [--seconds 1.0] [--quick] [--update]
       run.py --against REV [...]
       run.py --channels [...]
       run.py --relay [...]

Each server runs in its own process, the driver in another, in alternating rounds. A peer that cannot run here is left
out, and the reason printed. With --update the figures in README.md and docs/ are replaced, else all goes to --output.
With --against, this tree is compared with another commit instead (see compare.py), with --channels, its channels with
others' (see run_channels.py), and with --relay the example relay is loaded (see run_relay.py).
"""

import argparse
import json
import resource
import signal
import sys
import tempfile
from pathlib import Path

import compare
import launch
import medians
import report
import run_channels
import run_relay
from launch import PEERS, Unavailable
from picture import draw
from scenarios import SCENARIOS


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--peer", action="append", choices=PEERS, metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=5, help="of each scenario; medians are taken (5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="that each run measures (1.0)")
    parser.add_argument("--quick", action="store_true", help="one round, 0.3 seconds: to see that it works")
    parser.add_argument("--output", type=Path, default=launch.BUILD, help="folder of results.json, .md and .svg")
    parser.add_argument("--update", action="store_true", help="replace the figures in README.md and docs/")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="measure nothing: use the results of this file")
    parser.add_argument("--against", metavar="REV", help="compare this tree with that commit instead")
    arguments = parser.parse_args(words)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {arguments.rounds}")
    if not 0 < arguments.seconds <= 60:
        parser.error(f"--seconds must be above 0 and at most 60, not {arguments.seconds}")
    if arguments.against and (arguments.peer or arguments.update or arguments.draw):
        parser.error("--against compares gowsev with itself: not with --peer, --update or --draw")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.3
    return arguments


def choose(arguments):
    """Return the scenarios that can run here; say which cannot, and why."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    chosen = []
    for name in arguments.scenario or SCENARIOS:
        if SCENARIOS[name].files > hard:
            print(f"left out: {name}: it takes {SCENARIOS[name].files} open files, and {hard} are allowed (ulimit -Hn)")
        else:
            chosen.append(name)
    return chosen


def plan(scenarios, peers, rounds):
    """Return every run, as pairs of scenario and peer, in order: all peers of a round, round after round."""
    runs = []
    for name in scenarios:
        joining = [peer for peer in peers if PEERS[peer].joins(name, SCENARIOS[name])]
        runs += [(name, peer) for _ in range(min(rounds, SCENARIOS[name].rounds or rounds)) for peer in joining]
    return runs


def measure_all(runs, seconds, results):
    """Do all runs, with a progress bar, and put their medians into `results`."""
    from tqdm import tqdm

    samples = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(runs, unit="run") as progress:
        certificate = launch.make_certificate(folder)
        for name, peer in progress:
            progress.set_description(f"{name}: {peer}")
            try:
                sample = launch.measure(PEERS[peer], SCENARIOS[name], seconds, certificate)
            except Unavailable as reason:
                sample = {"error": str(reason)}
            if "error" in sample:
                results["errors"].append(f"{name}, {PEERS[peer].title}: {sample['error']}")
                progress.write(f"failed: {results['errors'][-1]}")
            else:
                samples.setdefault(name, {}).setdefault(peer, []).append(sample)
    for name, peers in samples.items():
        figure = SCENARIOS[name].figure
        results["figures"][name] = {peer: medians.summarize(several, figure) for peer, several in peers.items()}


def main(words=None):
    words = sys.argv[1:] if words is None else words
    if "--channels" in words:
        return run_channels.main([word for word in words if word != "--channels"])
    if "--relay" in words:
        return run_relay.main([word for word in words if word != "--relay"])
    arguments = parse(words)
    if arguments.against:
        return compare.against(arguments)
    if arguments.draw:
        results = json.loads(arguments.draw.read_text("utf-8"))
    else:
        print(launch.pinning())
        peers, skipped = launch.gather(PEERS, arguments.peer or PEERS)
        results = report.make_results(arguments, report.versions(peers))
        results["skipped"] = skipped
        measure_all(plan(choose(arguments), peers, arguments.rounds), arguments.seconds, results)
    write(results, arguments)
    print(report.full(results))
    return bool(results["errors"])


def write(results, arguments):
    if arguments.update:
        report.update_documents(results)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    report.save(results, arguments.output / "results.json")
    (arguments.output / "results.md").write_text(report.full(results) + "\n", "utf-8")
    if results["figures"]:
        # It needs matplotlib; the figures are safe by now.
        draw(results, arguments.output / "results.svg")
    print(f"written: {arguments.output}/results.json, .md and .svg\n")


if __name__ == "__main__":
    # So that a kill, too, leaves through the `finally`s that end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; --channels has written what it had, all else nothing")

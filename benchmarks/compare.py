"""Compare this tree with another commit: the same servers and driver, alternating runs, and ratios.

usage: run.py --against REV [--scenario NAME ...] [--rounds 5] [--seconds 1.0]

The server program, `servers/gowsev_server.py`, is this tree's in both cases, so that REV need not know a scenario. It
runs with the package of this tree, as it lies there, and with that of REV, checked out into a temporary folder. A ratio
below 1 says that this tree is cheaper. Noise of 2 or 3 % is usual; the spread of the ratios of single rounds stands
beside.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import launch
from launch import PEERS, ROOT, Unavailable
from scenarios import SCENARIOS

#: Those that a change is likely to show in; the others take longer.
USUAL = (
    "echo",
    "echo_pipelined",
    "fanout_1",
    "fanout_8",
    "fanout_write_1",
    "fanout_write_8",
    "echo_64k",
    "churn",
    "memory_open",
)


@contextlib.contextmanager
def checkout(revision, root=ROOT):
    """Check a commit out into a temporary folder; give its path.

    Raises:
        Unavailable: there is no such commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(root), "worktree"]
        launch.run([*git, "add", "--detach", str(tree), revision])
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True, check=False)


def check_tree(tree):
    """Check that a server would import gowsev from `tree`, and not one that is installed.

    Raises:
        Unavailable: it would not.
    """
    environ = {**os.environ, **launch.taken_from(tree)}
    found = launch.run([sys.executable, "-c", "import gowsev; print(gowsev.__file__)"], env=environ, cwd="/").strip()
    if not Path(found).is_relative_to(tree):
        raise Unavailable(f"gowsev would come from {found}, not from {tree}")


def ratios(pairs, figure):
    """Return the ratio of the medians, this to that, and the least and the most of single rounds."""
    this, that = ([sample[figure] for sample in samples] for samples in zip(*pairs, strict=True))
    single = [a / b for a, b in zip(this, that, strict=True)]
    return statistics.median(this) / statistics.median(that), min(single), max(single)


def one_scenario(name, tree, arguments, certificate):
    """Measure one scenario in alternating runs; return the pairs of samples, this tree's first.

    Raises:
        Unavailable: a server does not start, or the driver found a fault.
    """
    pairs = []
    for i in range(arguments.rounds):
        order = (ROOT, tree) if i % 2 == 0 else (tree, ROOT)
        found = {}
        for one in order:
            found[one] = launch.measure(PEERS["gowsev"], SCENARIOS[name], arguments.seconds, certificate, one)
            if "error" in found[one]:
                raise Unavailable(f"{'this tree' if one == ROOT else arguments.against}: {found[one]['error']}")
        pairs.append((found[ROOT], found[tree]))
    return pairs


def line_of(name, pairs):
    """Return the line that says what came out for one scenario."""
    scenario = SCENARIOS[name]
    ratio, least, most = ratios(pairs, scenario.figure)
    this, that = (statistics.median(pair[i][scenario.figure] for pair in pairs) for i in (0, 1))
    figures = f"{this:9.2f} {that:9.2f}  {ratio:5.2f}  ({least:.2f} to {most:.2f})"
    return f"{scenario.title:42} {figures} {scenario.unit}"


def against(arguments):
    """Compare, and print a line for each scenario; return whether something failed."""
    failed = False
    try:
        with checkout(arguments.against) as tree, tempfile.TemporaryDirectory() as folder:
            check_tree(tree)
            check_tree(ROOT)
            certificate = launch.make_certificate(folder)
            print(f"{launch.pinning()}; below 1, this tree is cheaper than {arguments.against}")
            print(f"{'':42} {'this':>9} {'that':>9}  ratio  (single rounds)", flush=True)
            for name in arguments.scenario or USUAL:
                try:
                    line = line_of(name, one_scenario(name, tree, arguments, certificate))
                except Unavailable as reason:
                    failed = True
                    line = f"{SCENARIOS[name].title:42} failed: {reason}"
                print(line, flush=True)
    except Unavailable as reason:
        print(f"cannot compare: {reason}")
        return True
    return failed

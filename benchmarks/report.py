"""From what was measured to tables: markdown, and the places in the documents where they stand."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import textwrap
from datetime import UTC, datetime
from pathlib import Path

from launch import BUILD, PEERS, ROOT, pinning
from medians import MINE, figure, median
from picture import draw
from scenarios import GROWTH, SCENARIOS

from gowsev.version import build

PACKAGES = ("gevent", "picows", "socketify", "aiohttp", "websockets", "uvloop", "gevent-websocket")

#: What the README shows, and the heads of its columns.
SUMMARY = {
    "echo": "echo",
    "echo_pipelined": "echo, 16 in flight",
    "fanout_1": "fan-out to 200",
    "fanout_8": "fan-out, 8 in flight",
    "echo_64k": "echo of 64 KiB",
    "echo_tls": "echo over TLS",
    "churn": "connect and close",
    "memory_idle": "memory, idle (KB)",
}
#: The tables of docs/performance.md: heading, and the scenarios in columns.
TABLES = (
    ("Processor time of the server", ("echo", "echo_pipelined", "fanout_1", "fanout_8", "echo_64k", "echo_tls")),
    ("Fan-out by a loop of Write", ("fanout_write_1", "fanout_write_8")),
    ("Connections", ("churn", "memory_open", "memory_idle")),
    ("Compression", ("echo_deflate", "fanout_deflate", "memory_deflate")),
    ("Large work", ("echo_10k", "fanout_10k", "echo_1m", "echo_16m")),
)


# -- markdown ----------------------------------------------------------------------------------------------------


def table(head, rows):
    """Return a markdown table, the first column a name, gowsev's row in bold."""
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for peer, cells in rows:
        name = PEERS[peer].title
        written = [f"**{cell}**" for cell in (name, *cells)] if peer == MINE else [name, *cells]
        lines.append("| " + " | ".join(written) + " |")
    return "\n".join(lines)


def of_scenarios(results, columns):
    """Return the table of these scenarios, of all peers that have a figure in one of them.

    `columns` is a dict from scenario to the head of its column.
    """
    columns = {name: head for name, head in columns.items() if results["figures"].get(name)}
    rows = []
    for peer in PEERS:
        cells = [median(results, name, peer) for name in columns]
        if any(cell is not None for cell in cells):
            rows.append((peer, [figure(cell) for cell in cells]))
    return table(columns.values(), rows) if columns else ""


def of_latency(results):
    """Return the table of latencies."""
    names = [name for name in ("latency", "latency_loaded") if results["figures"].get(name)]
    head = [f"{how}, {p}" for how in ("lone message", "10,000 messages/s") for p in ("p50", "p99")]
    rows = []
    for peer in PEERS:
        found = [results["figures"][name].get(peer, {}) for name in names]
        if any(found):
            rows.append((peer, [figure(one.get(key)) for one in found for key in ("p50_us", "p99_us")]))
    return table(head[: 2 * len(names)], rows) if names else ""


def of_throughput(results):
    """Return the table of what one core did in a second."""
    names = [n for n in ("echo", "echo_pipelined", "fanout_1", "fanout_8", "churn") if results["figures"].get(n)]
    rows = []
    for peer in PEERS:
        found = [results["figures"][name].get(peer, {}).get("per_second") for name in names]
        if any(found):
            rows.append((peer, [figure(one) for one in found]))
    return table([SCENARIOS[name].title for name in names], rows) if names else ""


def of_growth(results):
    """Return the table of what the work of one message costs as there is more of it, as ratios."""
    growth = [g for g in GROWTH if median(results, g[0], MINE) and median(results, g[1], MINE)]
    rows = []
    for peer in PEERS:
        pairs = [
            (median(results, large, peer), median(results, small, peer), times) for large, small, times, _ in growth
        ]
        if any(large and small for large, small, _ in pairs):
            rows.append((peer, [figure(a / b / times if a and b else None) for a, b, times in pairs]))
    return table([what for *_, what in growth], rows) if growth else ""


def title_of(name):
    return f"{SCENARIOS[name].title} ({SCENARIOS[name].unit})"


def about(results):
    """Say when and where it was measured."""
    rounds = f"medians of {results['rounds']} alternating rounds" if results["rounds"] > 1 else "a single round"
    text = (
        f"Measured on {results['date']}: {results['machine']}; {results['pinning']}; {rounds} of "
        f"{results['seconds']:g} s each. {', '.join(results['versions'])}."
    )
    return textwrap.fill(text, 120)


def full(results):
    """Return all tables, as docs/performance.md shows them."""
    tables = {head: of_scenarios(results, {name: title_of(name) for name in names}) for head, names in TABLES}
    tables["Growth"] = of_growth(results)
    tables["Latency, round trip, in µs"] = of_latency(results)
    tables["Throughput, a second, with one core for the server and one for the driver"] = of_throughput(results)
    parts = [about(results), *(f"### {head}\n\n{table}" for head, table in tables.items() if table)]
    parts += [f"Left out: {PEERS[peer].title}, as {why}." for peer, why in results["skipped"].items()]
    parts += [f"Failed: {error}." for error in results["errors"]]
    return "\n\n".join(parts)


def summary(results):
    """Return what the README shows."""
    return f"{of_scenarios(results, SUMMARY)}\n\n{about(results)}"


# -- documents ---------------------------------------------------------------------------------------------------


def replace(text, name, body):
    """Return `text` with what stands between the markers of this name replaced by `body`.

    Raises:
        ValueError: the markers are not there exactly once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.findall(f"{begin}.*?{end}", text, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{begin} and {end} must stand in the document once, in this order, not {len(found)} times")
    return text.replace(found[0], f"{begin}\n{body}\n{end}")


#: The documents that hold figures, and what makes them.
DOCUMENTS = {"README.md": summary, "docs/performance.md": full}


def update_documents(results, root=ROOT):
    """Write the figures into the documents, and beside them as JSON and as a picture."""
    for name, make in DOCUMENTS.items():
        path = root / name
        path.write_text(replace(path.read_text("utf-8"), "benchmarks", make(results)), "utf-8")
    save(results, root / "docs" / "performance.json")
    draw(results, root / "docs" / "performance.svg")


def save(results, path):
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


# -- where it was measured ---------------------------------------------------------------------------------------


def machine():
    """Describe this machine, without its name."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {platform.system()} {kernel}"


def versions_of(packages):
    """Return the names and versions of Python, of gowsev and of those packages that are installed."""
    found = [f"CPython {platform.python_version()}", f"{MINE} {importlib.metadata.version(MINE)}, {build()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # its server is left out, and the reason said
    return found


def versions(peers):
    """Return the names and versions of all that takes part."""
    found = versions_of(PACKAGES)
    if "gorilla" in peers:
        found.append(output("go", "version").removeprefix("go version ").split(" ")[0])
    if "ws" in peers:
        manifest = json.loads((BUILD / "node_modules" / "ws" / "package.json").read_text("utf-8"))
        found.append(f"node {output('node', '--version')[1:]} with ws {manifest['version']}")
    return found


def output(*command):
    """Return what a command prints."""
    return subprocess.run(
        [shutil.which(command[0]), *command[1:]], capture_output=True, text=True, check=True
    ).stdout.strip()


def make_results(arguments, versions):
    """Return results that hold no figures yet."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "pinning": pinning(),
        "versions": versions,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "skipped": {},
        "errors": [],
        "figures": {},
    }

"""Mutation testing: change a module in one place, run its tests, and see whether one of them notices.

usage: mutation.py [--seconds 3600] [module ...]

mutmut makes the changed modules, the *mutants*, and runs for each those tests of the module's own test file that call
the changed function; one process at a time, and one that takes three times as long as it should is ended. All of it
happens in a copy, `.mutation/`, which stays there: an interrupted run goes on where it stopped (unless something has
changed), and mutmut's own commands work in its folders, `mutmut show` and `mutmut browse` above all.

A mutant that survives must have a row in docs/mutation.md that says why. The program fails where one has none, where a
row has no survivor any more, and where time was up.
"""

import argparse
import ast
import hashlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "mutation.md"
WORK = ROOT / ".mutation"

#: The modules that are changed, by their rooms.
MODULES = [
    "wire/frames",
    "wire/protocol",
    "wire/encoder",
    "connection/gathering",
    "connection/offering",
    "connection/outbox",
    "connection/groups",
    "loop/queue",
]

#: Modules whose tests run for a module too: an outbox's part in a group is tested there, and a batch with its outboxes;
#: messages in pieces have test files of their own.
ALSO_TESTED_BY = {
    "wire/protocol": ["wire/fragments"],
    "wire/encoder": ["wire/fragments"],
    "connection/offering": ["connection/outbox"],
    "connection/outbox": ["connection/groups", "connection/stream"],
    "connection/gathering": ["connection/outbox", "connection/groups", "connection/stream"],
}

#: What a copy consists of, but for the tests of other modules.
COPIED = ["gowsev/**/*.py", "tests/**/*.py", "pyproject.toml", "setup.cfg"]

# Hypothesis's profile `ci` draws the same examples in every run, so that no mutant is killed by luck. mutmut ends a run
# of tests after (what they take + constant) * multiplier seconds.
CONFIGURATION = """
[tool.mutmut]
source_paths = ["gowsev"]
only_mutate = ["gowsev/{module}.py"]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "--hypothesis-profile=ci"]
process_isolation = "forkserver"
timeout_constant = 2.0
timeout_multiplier = 3.0
use_git_change_detection = false
"""


class Mutant(NamedTuple):
    """What was changed: in which function, what stood there, what stands there instead."""

    where: str
    line: str
    instead: str


def explained(module, document):
    """The mutants of a module that the document excuses, in its order."""
    section = re.search(rf"^## `{module}\.py`\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    mutants = []
    for row in re.findall(r"^\| `.*\|$", section[1], re.MULTILINE) if section else []:
        where, line, instead = (cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:4])
        mutants += [Mutant(where.strip(" `"), line.strip(" `"), each) for each in re.findall(r"`(.+?)`", instead)]
    return mutants


def as_rows(mutants):
    """The rows that excuse mutants, without the reasons: one for each line."""
    rows = {}
    for mutant in mutants:
        where, line, instead = (f"`{part}`".replace("|", "\\|") for part in mutant)
        rows.setdefault((where, line), []).append(instead)
    return [f"| {where} | {line} | {'<br>'.join(instead)} | |" for (where, line), instead in rows.items()]


def lines_of(module):
    """The lines of each function of a module: a dict from its name, `function` or `Class.method`, to stripped lines."""
    source = (ROOT / "gowsev" / f"{module}.py").read_text()
    lines = source.splitlines()
    found = {}

    def visit(node, prefix):
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                visit(child, f"{child.name}.")
            elif isinstance(child, ast.FunctionDef):
                found[prefix + child.name] = [line.strip() for line in lines[child.lineno - 1 : child.end_lineno]]

    visit(ast.parse(source), "")
    return found


def prepare(module):
    """Lay out the copy in which a module is changed, unless the one that is there will do."""
    own = [f"tests/{name.replace('/', '/test_')}.py" for name in (module, *ALSO_TESTED_BY.get(module, ()))]
    configuration = CONFIGURATION.format(module=module, tests=own)
    found = sorted(path for pattern in COPIED for path in ROOT.glob(pattern))
    sources = [
        path for path in found if str(path.relative_to(ROOT)) in own or not re.match("test_|mutation", path.name)
    ]
    state = hashlib.sha256(b"".join([configuration.encode(), *(path.read_bytes() for path in sources)])).hexdigest()
    folder = WORK / module
    stamp = folder / "state"
    if not stamp.exists() or stamp.read_text() != state:
        shutil.rmtree(folder, ignore_errors=True)
        for path in sources:
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        with (folder / "pyproject.toml").open("a") as file:
            file.write(configuration)
        stamp.write_text(state)
    return folder


def mutmut(folder, *args):
    """Run a command of mutmut's that only reports; return its lines."""
    command = [sys.executable, "-m", "mutmut", *args]
    return subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout.splitlines()


def run(folder, seconds):
    """Try the mutants that have not been tried; return whether all of them were within the time."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1"]
    process = subprocess.Popen(command, cwd=folder)
    try:
        if process.wait(max(seconds, 0.1)):
            sys.exit(f"mutmut ended with {process.returncode}")
        return True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return False


def results(folder):
    """The names of all mutants, with the outcome of each."""
    return dict(re.fullmatch(r" *(\S+): (.*)", line).groups() for line in mutmut(folder, "results", "--all", "True"))


def describe(folder, name):
    """Tell what a mutant has changed."""
    # The name is that of the module, then x_function__mutmut_1 or xǁClassǁmethod__mutmut_1.
    where = re.sub(r"^x_|__mutmut_\d+$", "", name.rpartition(".")[2]).removeprefix("xǁ").replace("ǁ", ".")
    changed = {"-": [], "+": []}
    for line in mutmut(folder, "show", name):
        if line[:1] in changed and line[:3] not in ("---", "+++"):
            changed[line[0]].append(line[1:].strip())
    return Mutant(where, *(" ".join(lines) for lines in changed.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600, help="the most it may take (%(default)s)")
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of {', '.join(MODULES)}; all of them by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - set(MODULES):
        parser.error(f"no such module: {', '.join(unknown)}")
    deadline = time.monotonic() + arguments.seconds
    # With it mutmut is told to end; a shell that runs us in the background may have set it to be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    table, complaints = [], []
    for module in arguments.modules or MODULES:
        folder = prepare(module)
        if not run(folder, deadline - time.monotonic()):
            sys.exit(f"\n{module}: time was up; run it again to go on from here")
        became = results(folder)
        counts = Counter(became.values())
        survived = {describe(folder, name) for name, how in became.items() if how in ("survived", "no tests")}
        rows = explained(module, DOCUMENT.read_text())
        complaints += [f"survived, in {module}: {row}" for row in as_rows(sorted(survived.difference(rows)))]
        complaints += [f"did not survive, in {module}: {row}" for row in as_rows(m for m in rows if m not in survived)]
        caught = counts.total() - sum(counts[how] for how in ("killed", "survived", "no tests"))
        table.append(
            f"| `{module}.py` | {counts.total()} | {counts['killed']} | {caught} | "
            f"{counts['survived'] + counts['no tests']} |"
        )
    print("", "| module | mutants | killed | timed out | survived |", "|---|---|---|---|---|", *table, sep="\n")
    print(*complaints, sep="\n")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()

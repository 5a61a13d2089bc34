"""`python -m gowsev`: which gowsev runs here, on what; with `--bench`, what a message costs here."""

from __future__ import annotations

import argparse
import platform
import re
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType
from typing import TYPE_CHECKING

from gowsev.bench import measure
from gowsev.shell import end_by_interrupt, ending_with_its_reader
from gowsev.version import COMPILED, __version__, build, is_compiled
from gowsev.wire.frames import apply_mask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SECONDS = 10.0


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name; its architecture where the system tells no name."""
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    names: list[str] = re.findall(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return names[0] if names else platform.machine()


def _facts() -> Iterator[str]:
    yield f"gowsev {__version__}, {build()}"
    compiled = [module.removeprefix("gowsev.") for module in COMPILED if is_compiled(module)]
    yield f"compiled: {', '.join(compiled) or 'no module'}"
    yield f"gevent {version('gevent')}, greenlet {version('greenlet')}"
    masking = "compiled" if isinstance(apply_mask, BuiltinFunctionType) else "pure"
    yield f"websockets {version('websockets')}, {masking}"
    yield f"{platform.python_implementation()} {platform.python_version()}"
    yield f"{platform.system()} {platform.release()} on {processor()}"


@ending_with_its_reader()
def main(words: Sequence[str] | None = None) -> None:
    """Print what runs here, and, where it is asked for, what a message costs.

    Raises:
        SystemExit: an argument is wrong, or nobody reads what is printed.
    """
    parser = argparse.ArgumentParser(prog="python -m gowsev", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--bench",
        nargs="?",
        type=float,
        const=_SECONDS,
        metavar="SECONDS",
        help=f"measure what a message costs on this machine, over loopback, for about {_SECONDS:.0f} seconds",
    )
    arguments = parser.parse_args(words)
    if arguments.bench is not None and not 0 < arguments.bench <= 600:
        parser.error("--bench takes more than 0 and at most 600 seconds")
    for line in _facts():
        print(line)
    if arguments.bench is not None:
        for line in measure(arguments.bench):
            print(line, flush=True)


if __name__ == "__main__":  # pragma: no cover  # in a process of its own
    end_by_interrupt()
    main()

"""Install gowsev as its users do, from a wheel into a fresh environment, and see whether it works there.

    fresh_install.py lowest     with the lowest versions that setup.cfg allows
    fresh_install.py newest     with what there is today

It takes the package `build`, and a network. The wheel is pure, unless `GOWSEV_BUILD=compiled` says otherwise. With
`--tests`, and arguments for pytest behind it, the tests follow, those of the source distribution against the installed
wheel.
"""

import argparse
import configparser
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Extras that are no user's. What they bring need not have a lowest version.
OURS = {"docs", "test"}


def requirements(path=ROOT / "setup.cfg"):
    """What setup.cfg asks for: the requirements of each extra, and of the package itself under the name ""."""
    parser = configparser.RawConfigParser()
    parser.read(path, "utf-8")
    extras = {name: text.split() for name, text in parser["options.extras_require"].items()}
    return {"": parser["options"]["install_requires"].split(), **extras}


def floors(asked):
    """The lowest version of each package that is asked for.

    Raises:
        ValueError: a user's requirement has none, or a package has two.
    """
    found = {}
    for extra, lines in asked.items():
        for line in lines:
            package, version = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", line).groups()
            if version is None:
                if extra not in OURS:
                    raise ValueError(f"{line!r} must say which version is the lowest")
            elif found.setdefault(package, version) != version:
                raise ValueError(f"{package} has the lowest versions {found[package]} and {version}")
    return found


def run(*command, cwd=None, quiet=False):
    """Run a command, or end the program; the output of a quiet one is shown only if it fails."""
    print("+", *command, flush=True)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if quiet else {}
    done = subprocess.run([str(word) for word in command], check=False, cwd=cwd, text=True, **output)
    if done.returncode:
        raise SystemExit((done.stdout or "") + f"{command[0]} ended with {done.returncode}")


def try_it(folder, constraints, tests):
    # The wheel is built from the source distribution, as an installer would that is offered no wheel.
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, quiet=True)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"

    def install(extras):
        asked = f"{wheel}[{','.join(extras)}]" if extras else wheel
        run(python, "-m", "pip", "install", "--quiet", *constraints, asked)
        run(python, "-m", "pip", "check")

    def smoke(*arguments):
        # -I: nothing of this checkout, and no PYTHONPATH, comes before what is installed.
        run(python, "-I", "-W", "error", ROOT / "tests" / "smoke.py", *arguments, cwd=folder)

    install([])
    smoke()
    install([extra for extra in requirements() if extra and extra not in OURS])
    smoke("--extras")
    if tests is not None:
        install(["test"])
    run(python, "-m", "pip", "list", "--format", "freeze")
    if tests is not None:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        # The command, not `-m pytest`, which would put the source before the installed package.
        run(python.parent / "pytest", "--long", *tests, cwd=folder / sdist.name.removesuffix(".tar.gz"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", choices=("lowest", "newest"))
    parser.add_argument("--tests", nargs=argparse.REMAINDER, help="run the tests too, with these arguments for pytest")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        constraints = []
        if arguments.versions == "lowest":
            lines = [f"{package}=={version}\n" for package, version in floors(requirements()).items()]
            (folder / "constraints.txt").write_text("".join(lines), "utf-8")
            constraints = ["--constraint", folder / "constraints.txt"]
        os.environ.pop("PYTHONPATH", None)
        os.environ.setdefault("GOWSEV_BUILD", "pure")
        try_it(folder, constraints, arguments.tests)


if __name__ == "__main__":
    main()

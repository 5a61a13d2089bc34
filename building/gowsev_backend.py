"""The build backend: setuptools', and mypyc for the modules on the way of a message.

Whether they are compiled is decided when a wheel or an editable install is built:

    GOWSEV_BUILD=compiled    they are, or the build fails
    GOWSEV_BUILD=pure        they are not; an editable install loses what was compiled in place
    unset, in a checkout     as `pure`: a clone is set up in seconds
    unset, elsewhere         they are where Python's headers and a C compiler are, and nothing fails for their sake

What is built is written anew by `gowsev_archives`, so that the same source makes the same bytes.

Elsewhere is a source distribution, which an installer builds where no wheel fits. Only a build that compiles needs
mypy, so only that one asks for it.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import gowsev_archives
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # the hooks that stay setuptools'

ROOT = Path(__file__).resolve().parent.parent

#: What compiles. Exact to the minor version: what it makes of our source was tried with this one. websockets is there
#: for its types.
REQUIRES = ["mypy~=2.4.1", "websockets>=17.2"]

_extensions: list = []


def extensions():
    """Return what `setup.py` shall build: nothing outside the hooks below."""
    return _extensions


def wish():
    """Return what is asked for: `compiled`, `pure`, or `possible` for compiled where that can be.

    Raises:
        SystemExit: `GOWSEV_BUILD` is neither.
    """
    asked = os.environ.get("GOWSEV_BUILD", "")
    if asked not in ("", "compiled", "pure"):
        raise SystemExit(f"GOWSEV_BUILD must be compiled, pure or unset, not {asked!r}")
    return asked or ("possible" if (ROOT / "PKG-INFO").exists() else "pure")


def can_compile():
    """Tell whether there is a C compiler that finds Python's headers, for a Python that mypyc compiles for."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    command = [*compiler, f"-I{sysconfig.get_path('include')}", "-fsyntax-only", "-x", "c", "-"]
    try:
        done = subprocess.run(command, input=b"#include <Python.h>\n", capture_output=True, check=False)
    except OSError:  # there is none
        return False
    return done.returncode == 0


def compiles():
    """Tell whether this build compiles."""
    return wish() == "compiled" or (wish() == "possible" and can_compile())


def modules():
    """Return the files to compile; `gowsev.version` names them."""
    names = runpy.run_path(str(ROOT / "gowsev" / "version.py"))["COMPILED"]
    return [f"{name.replace('.', '/')}.py" for name in names]


def compiled_extensions():
    """Translate the modules to C, and return the extensions to build of it.

    Raises:
        Exception, SystemExit: they cannot be translated; what is wrong has been printed.
    """
    from mypyc.build import mypycify

    # Modules that are imported for their types only may import what is not installed here: an extra's package.
    options = ["--config-file=setup.cfg", "--cache-dir=build/mypyc/cache", "--follow-imports=silent"]
    made = mypycify([*options, *modules()], group_name="gowsev", debug_level="0", target_dir="build/mypyc")
    for extension in made:
        # The warnings of a compiler that comes after this version of mypyc are no errors.
        extension.extra_compile_args = [word for word in extension.extra_compile_args if word != "-Werror"]
    return made


def remove_compiled():
    """Remove what an earlier editable install has compiled in place, which Python would prefer to its source."""
    for pattern in ("gowsev/**/*.so", "gowsev__mypyc*.so"):
        for path in ROOT.glob(pattern):
            path.unlink()


@contextlib.contextmanager
def compiling():
    """Let `setup.py` build the extensions."""
    _extensions[:] = compiled_extensions()
    try:
        yield
    finally:
        _extensions.clear()


def built(hook, *arguments):
    """Return what a hook of setuptools' builds: compiled if that is wished for, pure if it need not be and cannot."""
    if compiles():
        try:
            with compiling():
                return hook(*arguments)
        except (Exception, SystemExit) as error:
            if wish() == "compiled":
                raise
            print(f"gowsev could not be compiled, and is installed as pure Python: {error!r}", file=sys.stderr)
            remove_compiled()
    return hook(*arguments)


# -- hooks (PEP 517 and 660) -------------------------------------------------------------------------------------


def get_requires_for_build_wheel(config_settings=None):
    """What building a wheel requires."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *(REQUIRES if compiles() else ())]


def get_requires_for_build_editable(config_settings=None):
    """What an editable install requires."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *(REQUIRES if compiles() else ())]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build a wheel, for this platform and this Python where it is compiled."""
    name = built(build_meta.build_wheel, wheel_directory, config_settings, metadata_directory)
    gowsev_archives.rewrite_wheel(Path(wheel_directory, name))
    return name


def build_sdist(sdist_directory, config_settings=None):
    """Build the source distribution."""
    name = build_meta.build_sdist(sdist_directory, config_settings)
    gowsev_archives.rewrite_sdist(Path(sdist_directory, name))
    return name


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Build an editable install; compiled modules lie beside their source."""
    remove_compiled()
    return built(build_meta.build_editable, wheel_directory, config_settings, metadata_directory)

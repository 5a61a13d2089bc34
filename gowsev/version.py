"""The version, in its one place, and which modules of it run compiled.

`setup.cfg` and the build backend read it without importing the package. It must know of the others no more than names.
"""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

__all__ = ["COMPILED", "__version__", "build", "is_compiled"]

__version__ = "0.2.0"

#: The modules on the way of a message: those that a build compiles where it can, from the same source.
COMPILED = (
    "gowsev.wire.frames",
    "gowsev.wire.encoder",
    "gowsev.wire.protocol",
    "gowsev.connection.credit",
    "gowsev.connection.liveness",
    "gowsev.connection.gathering",
    "gowsev.connection.offering",
    "gowsev.connection.outbox",
    "gowsev.connection.round_trips",
    "gowsev.connection.groups",
    "gowsev.connection.stream",
    "gowsev.connection.sending",
    "gowsev.connection.connection",
    "gowsev.loop.dispatch",
    "gowsev.loop.row",
)


def is_compiled(module: str) -> bool:
    """Tell whether a module of this package is compiled where it lies."""
    spec = find_spec(module)
    return spec is not None and str(spec.origin).endswith(tuple(EXTENSION_SUFFIXES))


def build() -> str:
    """Tell which build this is: `compiled`, `pure`, or `mixed` where some of `COMPILED` are and some are not."""
    compiled = {is_compiled(module) for module in COMPILED}
    return "mixed" if len(compiled) > 1 else "compiled" if True in compiled else "pure"

"""Whether a process is monkey-patched by halves, which is worth a warning.

gowsev itself needs no patching and works the same with it: its sockets are gevent's, or plain ones that it watches
itself. But callbacks and pages run in greenlets of one thread. Where a program is not patched, everybody knows that a
call that blocks stops everything. Where some modules are patched and others are not, it looks as if no call did, and
the one that does is hard to find.
"""

from __future__ import annotations

import logging

from gevent import monkey

__all__ = ["warn_if_half_patched"]

logger = logging.getLogger("gowsev")

#: The modules in which programs wait. `subprocess`, `signal`, `os` and `queue` are left out: a program that excludes
#: these from `patch_all` does so on purpose.
_WAITING = ("socket", "ssl", "select", "threading", "time")

_warned = False


def warn_if_half_patched() -> None:
    """Log a warning, once in a process, if gevent has patched some of the modules that wait, and not others."""
    global _warned
    unpatched = [name for name in _WAITING if not monkey.is_module_patched(name)]
    if not _warned and 0 < len(unpatched) < len(_WAITING):
        _warned = True
        logger.warning(
            "gevent has patched some modules of this process, but not %s: calls in them stop every connection while "
            "they wait; call gevent.monkey.patch_all() before anything else",
            ", ".join(unpatched),
        )

"""What a forked child does with what it has inherited: it lets go of it, without a word to anybody.

A fork copies gevent's hub with all its watchers and timers. A child that waits in gevent's way would run its parent's
readers, and take messages, clients and writes away from it. So an object that holds watchers of one process says
so here, and is told in each child, before that runs any other code: after `os.fork`, `os.forkpty`, `multiprocessing`'s
fork, gevent's own, and in a `subprocess` with a `preexec_fn`. Without one, a subprocess runs no Python before its exec,
which closes the descriptors.

What `disown` may do: stop watchers and timers, close descriptors, change the object's own state. The parent has the
same sockets: nothing may be sent, received or shut down, no file removed, no greenlet be switched to, nothing logged.
To stop a watcher there is safe: libev makes itself a new epoll set in a child before it changes any, and the one that
it shares with the parent stays as it is.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Inherited", "close_descriptor", "disown_all", "tell_in_child", "telling_in_child"]


class Inherited(Protocol):
    """What belongs to the process that made it."""

    def disown(self) -> None:
        """Let go, in a forked child."""
        ...


_inherited: WeakSet[Any] = WeakSet()


def tell_in_child(holder: Inherited) -> None:
    """Let `holder.disown()` be called in each child that is forked while the holder exists."""
    _inherited.add(holder)


@contextmanager
def telling_in_child(holder: Inherited) -> Generator[None, None, None]:
    """Let `holder.disown()` be called in each child that is forked inside this block."""
    _inherited.add(holder)
    try:
        yield
    finally:
        _inherited.discard(holder)


def disown_all() -> None:
    """Let go of everything; called in a child, right after the fork."""
    for holder in tuple(_inherited):
        holder.disown()


def close_descriptor(sock: Any) -> None:
    """Close a gevent socket at once; its own `close` would wait for the hub where a greenlet waits for the socket."""
    descriptor = sock.detach()
    if descriptor >= 0:  # else it is closed already: nothing is to be let go of
        os.close(descriptor)


os.register_at_fork(after_in_child=disown_all)

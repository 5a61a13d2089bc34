"""A signal wakes the hub: what Python's handlers of signals need besides, where gevent waits."""

from __future__ import annotations

import os
import signal
from typing import Any

from gowsev.connection.fork import tell_in_child

__all__ = ["let_signals_wake"]

#: What wakes the hub of the main thread, for as long as the process lives.
_wakers: list[_Waker] = []


def let_signals_wake(hub: Any) -> None:
    """Let a signal wake the hub.

    Python handles one between two steps of its own. If it comes when the hub has just begun to wait, that would be
    after the next event, and perhaps never: 2 of 60 servers that got SIGTERM in their first moment did not end.
    """
    if not _wakers:
        _wakers.append(_Waker(hub))


class _Waker:
    """A pipe into which Python's signal handler writes, and which the hub watches."""

    def __init__(self, hub: Any) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._watcher = hub.loop.io(self._reader, 1, ref=False)
        self._watcher.start(self._drain)
        tell_in_child(self)

    def _drain(self) -> None:
        os.read(self._reader, 1 << 10)

    def disown(self) -> None:
        """In a forked child: leave the pipe to the parent, which has the same one."""
        _wakers.clear()
        self._watcher.stop()
        self._watcher.close()
        current = signal.set_wakeup_fd(-1)
        if current != self._writer:
            signal.set_wakeup_fd(current)  # the program's own
        os.close(self._reader)
        os.close(self._writer)

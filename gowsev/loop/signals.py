"""An orderly end on SIGTERM and Ctrl-C: signal handlers, and a pipe through which they wake gevent's hub."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.connection.fork import tell_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["end_on_signal"]

#: What wakes the hub of the main thread, for as long as the process lives.
_wakers: list[_Waker] = []


def end_on_signal(end: Callable[[], object], ended: Callable[[], bool]) -> None:
    """Let SIGTERM and SIGINT call `end` in a greenlet, once; a second SIGINT does what it did before.

    Handlers that the program had for these signals are called as well, and alone once `ended()` is true.

    Raises:
        ValueError: this is not the main thread, the only one that Python lets handle signals.
    """
    hub = gevent.get_hub()
    before: dict[int, Any] = {}
    process = os.getpid()
    asked = False

    def handle(number: int, frame: Any) -> None:
        # Not gevent's `signal_handler`: that one waits for the hub, which a callback that hangs never lets run.
        nonlocal asked
        forked = os.getpid() != process  # a child has no loop, and may be meant to be terminated
        if forked or ended() or (asked and number == signal.SIGINT):
            signal.signal(number, before[number])
            signal.raise_signal(number)
            return
        if not asked:
            asked = True
            hub.loop.run_callback_threadsafe(gevent.spawn, end)
        if callable(before[number]) and before[number] is not signal.default_int_handler:
            before[number](number, frame)  # such as that of another context

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, handle)
    _let_signals_wake(hub)


def _let_signals_wake(hub: Any) -> None:
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

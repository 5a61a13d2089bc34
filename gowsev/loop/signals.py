"""An orderly end on SIGTERM and Ctrl-C: signal handlers, and a pipe through which they wake gevent's hub."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.connection.fork import tell_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["end_on_signal"]

#: What wakes the hub of the main thread, for as long as the process lives.
_wakers: list[_Waker] = []
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: What a thread that forks had blocked before.
_forking = threading.local()


def end_on_signal(end: Callable[[], object], ended: Callable[[], bool]) -> None:
    """Let SIGTERM and SIGINT call `end` in a greenlet, once; a second SIGINT does what it did before.

    Handlers that the program had for these signals are called as well, and alone once `ended()` is true. A forked child
    has them alone, too.

    Raises:
        ValueError: this is not the main thread, the only one that Python lets handle signals.
    """
    handler = _Handler(end, ended)
    for number in _SIGNALS:
        # None, which Python does not take back, is a handler of some other language.
        handler.before[number] = signal.getsignal(number) or signal.SIG_DFL
        signal.signal(number, handler)
    _let_signals_wake(gevent.get_hub())


class _Handler:
    """What the signals call for one context."""

    def __init__(self, end: Callable[[], object], ended: Callable[[], bool]) -> None:
        self._end = end
        self._ended = ended
        self._loop = gevent.get_hub().loop
        self._process = os.getpid()
        self._asked = False
        #: What each signal called before; that may be the handler of another context.
        self.before: dict[int, Any] = {}

    def __call__(self, number: int, frame: Any) -> None:
        # Not gevent's `signal_handler`: that one waits for the hub, which a callback that hangs never lets run.
        before = self.before[number]
        forked = os.getpid() != self._process  # a child that has not come to `_put_back` yet
        if forked or self._ended() or (self._asked and number == signal.SIGINT):
            signal.signal(number, before)
            signal.raise_signal(number)
            return
        if not self._asked:
            self._asked = True
            self._loop.run_callback_threadsafe(gevent.spawn, self._end)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)  # such as that of another context


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
        """In a forked child: leave the pipe to the parent, which has the same one, and the signals to the program."""
        _wakers.clear()
        _put_back()
        self._watcher.stop()
        self._watcher.close()
        current = signal.set_wakeup_fd(-1)
        if current != self._writer:
            signal.set_wakeup_fd(current)  # the program's own
        os.close(self._reader)
        os.close(self._writer)


# -- a fork ------------------------------------------------------------------------------------------------------------
#
# A child has no loop, and may be meant to be terminated, so its signals do there what they would do without this
# module, from its first moment. A handler of ours that looked at the process was not enough. Python forgets in a child
# what came before its first step, and calls handlers between two steps only, however long one takes: of 34 children
# that got SIGTERM in the moment of their fork, 30 lived on, and of 4,352 that got it when they began to sleep, 7.


def _ours() -> list[signal.Signals]:
    """The signals that call a handler of this module first."""
    return [number for number in _SIGNALS if isinstance(signal.getsignal(number), _Handler)]


def _program_handler(number: int) -> Any:
    """What a signal would call without this module."""
    handler = signal.getsignal(number)
    while isinstance(handler, _Handler):
        handler = handler.before[number]
    return handler


def _put_back() -> None:
    """In a forked child: give the signals to what the program had for them."""
    for number in _ours():
        signal.signal(number, _program_handler(number))


def _hold() -> None:
    """Before a fork: let signals wait that would end the child without this module."""
    deadly = [number for number in _ours() if _program_handler(number) is signal.SIG_DFL]
    if deadly:
        _forking.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, deadly)


def _release() -> None:
    """After a fork, in the parent and in the child: let them come."""
    blocked, _forking.blocked = getattr(_forking, "blocked", None), None
    if blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


# In a child this comes behind `_Waker.disown`, since that was registered first.
os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release)

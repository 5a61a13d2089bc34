"""`Timer`: one call in the future, after Go's `time.AfterFunc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Timer"]


class Timer:
    """A call that the loop will make, unless it is stopped. Made by `Context.AfterFunc`.

    Args:
        seconds: from now until the call is due.
        due: called with this timer when the time has come. It must let the loop call `run`, and may not block.
    """

    __slots__ = ("_timer",)

    def __init__(self, seconds: float, due: Callable[[Timer], object]) -> None:
        self._timer: Any = gevent.get_hub().loop.timer(seconds)
        self._timer.start(due, self, update=True)

    def Stop(self) -> bool:
        """Prevent the call.

        Returns:
            `True` if this prevented it; `False` if it has been made, is being made, or was stopped before.
        """
        if self._timer is None:
            return False
        self._timer.stop()
        self._timer.close()
        self._timer = None
        return True

    def run(self, context: object, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        """Make the call, unless `Stop` came first."""
        if self.Stop():
            callback(context, *args)

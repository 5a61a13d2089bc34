"""Each hub's receive buffer, which its readers share: the protocol copies what it keeps before the next one runs."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import gevent

__all__ = ["SIZE", "buffers", "receive_buffer"]

#: Receive at most this many bytes at once. A larger buffer, made anew each time, costs page faults.
SIZE = 1 << 18
buffers: WeakKeyDictionary[Any, bytearray] = WeakKeyDictionary()


def receive_buffer() -> bytearray:
    """Return the buffer of this thread's hub."""
    hub = gevent.get_hub()
    if hub not in buffers:
        buffers[hub] = bytearray(SIZE)
    return buffers[hub]

"""Each hub's receive buffer, which its readers share: the protocol copies what it keeps before the next one runs."""

from __future__ import annotations

from typing import Any

from gevent.monkey import get_original

__all__ = ["SIZE", "local", "receive_buffer"]

#: Receive at most this many bytes at once. A larger buffer, made anew each time, costs page faults.
SIZE = 1 << 18

#: A thread has one hub. This is the standard library's, since gevent's is one for each greenlet. A weak dictionary by
#: hubs would run Python code while greenlet takes a dead thread apart.
local: Any = get_original("threading", "local")()


def receive_buffer() -> bytearray:
    """Return the buffer of this thread's hub."""
    try:
        buffer: bytearray = local.buffer
    except AttributeError:
        buffer = local.buffer = bytearray(SIZE)
    return buffer

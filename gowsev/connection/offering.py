"""Offering bytes to the kernel: how many of those that wait at once, and what is left of them then."""

from __future__ import annotations

import ssl
from typing import Any, Final

from gowsev.connection.gathering import MOST_JOINED

__all__ = ["WOULD_BLOCK", "drop", "interrupted", "send_part"]

#: POSIX guarantees 16; Linux, the BSDs and macOS take 1,024 buffers in one `sendmsg`.
_MAX_BUFFERS: Final = 1024

#: What a non-blocking socket raises, plain or TLS, when it would have to wait.
WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def interrupted(error: BaseException) -> OSError:
    """Return the error of a connection whose `send` was interrupted, by Ctrl-C as a rule.

    Whether the bytes have left is not known, and nothing may come behind half a frame.
    """
    return OSError(f"interrupted by {type(error).__name__} while sending")


def send_part(sock: Any, tls: bool, chunks: list[bytes | memoryview]) -> int:
    """Send some of what is more than one buffer's worth; return how many bytes.

    Args:
        sock: a non-blocking socket.
        tls: it is a TLS socket, which has no `sendmsg`.
        chunks: what waits; it stays as it is.

    Raises:
        OSError: as the socket's `send`, those of `WOULD_BLOCK` included.
    """
    if not tls:
        return int(sock.send(chunks[0]) if len(chunks) == 1 else sock.sendmsg(chunks[:_MAX_BUFFERS]))
    # TLS reports nothing of a long buffer until all of it has left. After a refusal it must be offered the same bytes
    # again, and no fewer: what has been appended since comes behind them, up to the same length.
    if len(chunks[0]) >= MOST_JOINED:
        return int(sock.send(memoryview(chunks[0])[:MOST_JOINED]))
    size = count = 0
    while size < MOST_JOINED:
        size += len(chunks[count])
        count += 1
    return int(sock.send(b"".join(chunks[:count])[:MOST_JOINED]))


def drop(chunks: list[bytes | memoryview], sent: int) -> None:
    """Take the first `sent` bytes off the chunks, which have more."""
    done = 0
    while len(chunks[done]) <= sent:
        sent -= len(chunks[done])
        done += 1
    del chunks[:done]
    if sent:
        # A view, so that what is left of a long message is not copied for each short send.
        chunks[0] = memoryview(chunks[0])[sent:]

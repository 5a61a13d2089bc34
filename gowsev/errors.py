"""The exceptions of gowsev, each the child of `GowsevError`.

Two kinds live here. Those a program gets *back* from `Context.Write` and its siblings, as Go's error values
(`IdNotFound`, `ConnClosing`, `OutboxFull`), and those that are *raised* (`ProtocolError`, `DialError`,
`ConnectionClosed`). This module knows nothing of the rest of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from websockets.datastructures import Headers

__all__ = [
    "ConnClosing",
    "ConnectionClosed",
    "DialError",
    "GowsevError",
    "IdNotFound",
    "OutboxFull",
    "ProtocolError",
]


class GowsevError(Exception):
    """The parent of every exception that this package defines. All of them can be pickled and copied."""

    def __reduce__(self) -> tuple[object, ...]:
        # Not through `__init__`, whose arguments differ from the text that it passes on.
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: type[GowsevError], args: tuple[object, ...]) -> GowsevError:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class IdNotFound(GowsevError):
    """No connection has this id: it was never given out, or its `ConnClosed` has been called.

    Its text is that of the Go library, so that programs that compare it go on working. `id` is the id.
    """

    def __init__(self, id: object) -> None:
        super().__init__("id not found")
        self.id = id


class ConnClosing(GowsevError):
    """The connection accepts no more messages: a close frame was sent or received, or its socket is gone.

    `id` is the connection's.
    """

    def __init__(self, id: object) -> None:
        super().__init__(f"connection {id} is closing")
        self.id = id


class OutboxFull(GowsevError):
    """The peer reads too slowly: more than `Options.outbox_bytes` already wait for it, so the message was refused.

    `id` is the connection's, `waiting` the number of bytes that wait, and `limit` that of `Options.outbox_bytes`.
    """

    def __init__(self, id: object, waiting: int, limit: int) -> None:
        super().__init__(f"connection {id} is too slow: {waiting} bytes wait for it and outbox_bytes is {limit}")
        self.id = id
        self.waiting = waiting
        self.limit = limit


class ProtocolError(GowsevError):
    """The peer broke RFC 6455, RFC 7692 or one of our limits.

    `code` is the close code that says so on the wire (RFC 6455 section 7.4.1), `reason` says what it was.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (close code {code})")
        self.code = code
        self.reason = reason


class ConnectionClosed(GowsevError):
    """A dialled connection has ended; raised by `ReadMessage` once everything read before has been returned.

    `code` and `reason` are those of the peer's close frame; 1006 when none came (RFC 6455 section 7.1.5).
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"connection closed with code {code}" + (f": {reason}" if reason else ""))
        self.code = code
        self.reason = reason


class DialError(GowsevError, OSError):
    """`Dial` failed; the text says at which step.

    `status` is the HTTP status with which the server refused, or `None`. Where there is one, `headers` are those of the
    response, `body` is the beginning of what followed them, at most 1 KiB, and `location` is the URL that a redirect
    leads to, with `ws` and `wss` for `http` and `https`; `None` if it is no redirect. `proxy` is the URL of the proxy,
    without a password, if that has failed or refused, and not the server.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        headers: Headers | None = None,
        body: bytes = b"",
        location: str | None = None,
        proxy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body
        self.location = location
        self.proxy = proxy

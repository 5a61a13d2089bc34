"""Waiting until something is published in a channel, for a process without a loop. Blocks its thread.

It only says when to look; `Remote.History` returns what there is. It may therefore ring for nothing, and what it misses
while it is cut off is found by the look that follows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import redis

from gowsev.channels.line import FAILED
from gowsev.channels.publication import check_prefix, encoded
from gowsev.channels.reconnecting import pause
from gowsev.channels.routes import Routes
from gowsev.channels.scripts import channel_keys
from gowsev.channels.url import parse

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Bell"]


class Bell:
    """Rings when something is published in a channel. A context manager, which closes its connection.

    Args:
        url, prefix: as for `Remote`.
        channel: its name, which was checked before.
        longest: seconds after which it rings in any case.
    """

    def __init__(self, url: str, prefix: str, channel: str, longest: float = 5.0) -> None:
        self._longest = longest
        self._name = channel_keys(check_prefix(prefix), encoded(channel))[2]
        self._routes = Routes(parse(url))
        self._connection: redis.Connection | None = None
        self._attempt = 0

    def wait(self) -> None:
        """Return when it rings: after a publish, a new connection, or some seconds."""
        try:
            if self._connection is None:
                connection = self._routes.connect(self._name)
                connection.send_command("SSUBSCRIBE", self._name)
                connection.read_response()
                self._connection = connection
                self._attempt = 0
            elif self._connection.can_read(timeout=self._longest):
                self._connection.read_response()
        except FAILED:  # the look that follows says what is wrong, if it goes on
            self._connection = None
            self._routes.close()
            time.sleep(pause(self._attempt))
            self._attempt += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._routes.close()

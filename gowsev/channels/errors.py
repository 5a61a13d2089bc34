"""The errors of channels. They are returned or handed to `done`; only `Remote` raises them.

Each tells whether the publish it stands for is certainly not stored (`certain`), so that a program knows when it may
publish again without fear of doing so twice. This module knows nothing of the rest of the package.
"""

from __future__ import annotations

from gowsev.errors import GowsevError

__all__ = ["ChannelsAway", "ChannelsError", "Refused", "TooManyChannels", "TooMuchInFlight"]


class ChannelsError(GowsevError):
    """The parent of the errors of channels.

    `certain` is whether what was asked has certainly not been done: a publish is not stored. Where it is `False`, it
    may have been.
    """

    def __init__(self, reason: str, certain: bool = True) -> None:
        super().__init__(reason if certain else f"{reason}; perhaps it was stored")
        self.certain = certain


class ChannelsAway(ChannelsError):
    """Redis cannot be reached, or not be used. With `certain` false, it may have stored the message before."""


class Refused(ChannelsError):
    """Redis has refused this one command: the key is of another type, there is no memory left, and the like."""


class TooMuchInFlight(ChannelsError):
    """A publish was refused, because too many wait to be stored already.

    `waiting` is how many wait, `waiting_bytes` how long they are together.
    """

    def __init__(self, waiting: int, waiting_bytes: int) -> None:
        super().__init__(f"{waiting} publishes of {waiting_bytes} bytes wait to be stored already")
        self.waiting = waiting
        self.waiting_bytes = waiting_bytes


class TooManyChannels(ChannelsError):
    """A connection has subscribed to as many channels as `Limits.channels` says; `limit` is that number."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"at most {limit} channels a connection")
        self.limit = limit

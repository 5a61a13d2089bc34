"""What channels carry: a message with its place, and what a program sees of it. No I/O, no clock.

A channel's messages are numbered by their *offset*, from 1 on, within an *epoch*: a random word that is made with the
channel, and anew whenever Redis has lost it. Each message has an *id* of its own, and names the id of the one *before*
it; the first names the epoch. So a chain that has been cut, or continued by others after a failover, is noticed even
where the offsets happen to fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "Gap",
    "Message",
    "Position",
    "Publication",
    "Subscription",
    "check_message",
    "check_name",
    "check_prefix",
    "encoded",
    "publication_of",
]

_POSITION = re.compile(r"(\w{1,40})\.(\d{1,15})\.([-\w]{1,80})", re.ASCII)


class Position(NamedTuple):
    """A place in a channel: behind the message with this id, or at the beginning, where the id is the epoch."""

    epoch: str
    offset: int
    id: str

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}.{self.id}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Read what `str` made; `None` for anything else, which is no place in any channel."""
        match = _POSITION.fullmatch(text)
        return match and cls(match[1], int(match[2]), match[3])


class Message(NamedTuple):
    """One message of a channel, as it is stored and carried."""

    position: Position
    before: str
    text: bool
    payload: bytes

    def follows(self, position: Position) -> bool:
        """Tell whether it comes directly behind a position."""
        mine = self.position
        return self.before == position.id and mine.offset == position.offset + 1 and mine.epoch == position.epoch


@dataclass(frozen=True, slots=True)
class Publication:
    """A message that has been published, as `deliver` gets it."""

    channel: str
    message: str | bytes
    """A str was published as text, bytes as binary."""
    position: str
    """Where it stands: what a client presents as `after` when it comes back. Opaque."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Some messages of a channel are lost to its subscribers here; `deliver` gets it in their place.

    Redis has been emptied or rolled back, or this process was cut off for longer than the history reaches. What a
    client shows may be out of date; a program may tell it to load anew, or close it.
    """

    channel: str
    position: str
    """Where delivery goes on."""
    missed: int | None
    """How many messages are missing; `None` if that is not known."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """The result of a `Subscribe`."""

    channel: str
    position: str
    """Up to where everything was delivered, or is not wanted; what comes later follows. Empty with an error."""
    recovered: bool
    """Whether all that came since `after` was still there, and has been delivered; `False` without `after`."""
    error: Exception | None = None
    """Why there is no subscription."""


def publication_of(channel: str, message: Message) -> Publication:
    """Return a message as a program sees it."""
    content = message.payload.decode() if message.text else message.payload
    return Publication(channel, content, str(message.position))


def check_name(what: str, name: object, most: int) -> bytes:
    """Return a channel's or a member's name as bytes.

    Raises:
        TypeError: it is not str.
        ValueError: it is empty, or longer than `most` bytes, or holds half of a surrogate pair that stands for no byte.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be str, not {name!r}")
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be text, or bytes by way of surrogateescape, not {name!r}") from None
    if not 1 <= len(encoded) <= most:
        raise ValueError(f"{what} must have 1 to {most} bytes in UTF-8, not {len(encoded)}: {name[:50]!r}")
    return encoded


def check_prefix(prefix: object) -> bytes:
    """Return a prefix of keys as bytes.

    Raises:
        TypeError: it is not str.
        ValueError: it is empty, or holds something else than visible characters, or a brace.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be str, not {prefix!r}")
    if not prefix or not prefix.isprintable() or set(prefix) & set("{} "):
        raise ValueError(f"prefix must be a word without braces, not {prefix!r}")
    return prefix.encode()


def encoded(name: str) -> bytes:
    """Return a name that was checked before as bytes."""
    return name.encode("utf-8", "surrogateescape")


def check_message(message: object) -> tuple[bool, bytes]:
    """Return whether a message is text, and its bytes.

    Raises:
        TypeError: it is neither str nor bytes.
        ValueError: it is a str that cannot be encoded.
    """
    if isinstance(message, str):
        return True, message.encode()
    if isinstance(message, bytes | bytearray | memoryview):
        return False, bytes(message)
    raise TypeError(f"message must be str or bytes, not {type(message).__name__}")

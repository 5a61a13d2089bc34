"""A stretch of a channel's messages, and what of it lies behind a position. No I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gowsev.channels.publication import Message, Position

__all__ = ["Continuation", "Timeline"]


class Continuation(NamedTuple):
    """What comes behind a position: `complete` if nothing is missing between the two."""

    complete: bool
    messages: Sequence[Message]
    missed: int | None = 0
    """How many are missing; `None` if that is not known."""


class Timeline(NamedTuple):
    """Messages of one channel without a hole, of which the last stands at `tip`; there may be none."""

    tip: Position
    messages: list[Message]

    def after(self, position: Position | None) -> Continuation:
        """Return what comes behind a position; `None` is an unknown one.

        Nothing is returned of a channel that has taken another course than the one that the position belongs to:
        whether a message is new behind that position cannot be known.
        """
        tip = self.tip
        if position is None or position.epoch != tip.epoch or position.offset > tip.offset:
            return Continuation(False, (), None)
        rest = [message for message in self.messages if message.position.offset > position.offset]
        if not rest:
            missed = tip.offset - position.offset
            same = missed > 0 or tip.id == position.id
            return Continuation(not missed and same, (), missed if same else None)
        missed = rest[0].position.offset - position.offset - 1
        if not missed and rest[0].before != position.id:
            return Continuation(False, (), None)
        return Continuation(not missed, rest, missed)

    def extended(self, messages: Sequence[Message]) -> tuple[Timeline, bool]:
        """Add messages that have arrived by themselves; return the longer stretch, and whether there was no hole.

        Those that it holds already, or that are older, are passed over.
        """
        tip, longer = self.tip, list(self.messages)
        whole = True
        for message in messages:
            if message.follows(tip):
                longer.append(message)
                tip = message.position
            elif message.position.epoch != tip.epoch or message.position.offset > tip.offset:
                whole = False
        return Timeline(tip, longer), whole

"""One channel as this process follows it: what has arrived, what is missing, who waits to join. No I/O, no clock.

Two sources tell of a channel. *Notifications* come by themselves, one for each message. A *look* at Redis tells where
the channel stands, with the messages behind some offset; it is asked for only where notifications do not suffice.

    unconfirmed    notifications need not come yet; what comes is ignored
    unsure         it is not known whether all up to the newest has arrived: a look is wanted
    sure           everything up to `position` has arrived; a notification that follows is passed on at once

Invariants: what is passed on forms one chain, each message naming the one before, and every break in it is told as a
loss. One look is under way at most, and all who wait when it begins share it. What is notified of while it is under
way is kept, so that its answer and the notifications overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gowsev.channels.publication import Position
from gowsev.channels.timeline import Timeline

if TYPE_CHECKING:
    from gowsev.channels.backend import Joining, Receiver
    from gowsev.channels.publication import Message

__all__ = ["Followed"]


class Followed:
    """A channel that is followed.

    Args:
        channel: its name.
        receiver: gets what arrives.
        most_bytes: of notifications that are kept while a look is under way; beyond, it is repeated.
    """

    def __init__(self, channel: str, receiver: Receiver, most_bytes: int) -> None:
        self.channel = channel
        self.joining: list[Joining] = []
        self.look_number = 0
        """Of the last look that was begun; the answers to others are of no use."""
        self._receiver = receiver
        self._most_bytes = most_bytes
        self._position: Position | None = None
        self._confirmed = False
        self._sure = False
        self._asked: list[Joining] | None = None
        self._kept: list[Message] = []
        self._kept_bytes = 0
        self._overflowed = False

    @property
    def position(self) -> Position | None:
        """Up to where everything has arrived, or is told to be lost; `None` before the first look."""
        return self._position

    # -- notifications -------------------------------------------------------------------------------------------

    def confirmed(self) -> None:
        """From now on a notification comes for each message."""
        self._confirmed = True

    def cut_off(self) -> None:
        """Notifications come no longer, until they are confirmed again."""
        self._confirmed = self._sure = False
        self.look_failed()

    def doubt(self) -> None:
        """A notification has come that cannot be understood."""
        self._sure = False

    def notified(self, message: Message) -> None:
        """A notification has come."""
        if not self._confirmed:
            return
        if self._sure:
            assert self._position is not None, "which a look has told"
            if message.follows(self._position):
                self._position = message.position
                self._receiver.arrived(self.channel, message)
            elif message.position != self._position:
                self._sure = False
        if not self._sure or self._asked is not None:
            self._keep(message)

    def _keep(self, message: Message) -> None:
        self._kept_bytes += len(message.payload)
        if self._kept_bytes > self._most_bytes:
            self._overflowed = True
            self._kept.clear()
        else:
            self._kept.append(message)

    # -- joining -------------------------------------------------------------------------------------------------

    def join(self, joining: Joining) -> None:
        """Let a subscription join: at once where nothing must be looked up for it."""
        if self._sure and self._position is not None and (not joining.recovers or joining.after == self._position):
            self._join(joining, self._position)
        else:
            self.joining.append(joining)

    def _join(self, joining: Joining, position: Position) -> None:
        self._receiver.joined(joining, position, Timeline(position, []).after(joining.after))

    # -- looks ---------------------------------------------------------------------------------------------------

    @property
    def wants_look(self) -> bool:
        """Whether a look must begin."""
        return self._confirmed and self._asked is None and (not self._sure or bool(self.joining))

    @property
    def wants_messages(self) -> bool:
        """Whether a look may bring messages, and not only where the channel stands."""
        return self._position is not None or any(one.after is not None for one in self.joining)

    def begin_look(self) -> tuple[bool, dict[str, int]]:
        """Begin a look; return what it is to read.

        Returns:
            Whether all is wanted of an epoch that is not known here, and behind which offset of each that is.
        """
        self.look_number += 1
        self._asked, self.joining = [one for one in self.joining if not one.cancelled], []
        if self._sure or self._overflowed:  # what was notified of before is in the answer
            self._forget_kept()
        # Also what this process lacks itself, even if it is sure: the answer may be ahead of the notifications.
        lacking = [*(one.after for one in self._asked), self._position]
        lowest: dict[str, int] = {}
        for position in lacking:
            if position is not None:
                lowest[position.epoch] = min(position.offset, lowest.get(position.epoch, position.offset))
        return self._position is not None, lowest

    def look_failed(self) -> list[Joining]:
        """Give up the look that is under way; return the subscriptions that wait, now for the next one."""
        self.look_number += 1
        self.joining = [*(self._asked or ()), *self.joining]
        self._asked = None
        self._forget_kept()
        return self.joining

    def give_up(self, before: float) -> list[Joining]:
        """Remove and return those who have waited to join since before a time of `time.monotonic()`."""
        late = [one for one in (*self.joining, *(self._asked or ())) if one.since < before]
        if late:
            self.joining = [one for one in self.joining if one not in late]
            self._asked = self._asked and [one for one in self._asked if one not in late]
        return late

    def looked(self, seen: Timeline) -> None:
        """A look has been answered: pass on what is new, and let those join who wait for it."""
        asked, self._asked = self._asked or [], None
        timeline, whole = seen.extended(self._kept)
        if self._sure and self._overflowed:
            # What was passed on meanwhile is not in the answer, so no subscription can join behind it: look again.
            self.joining = [*asked, *self.joining]
        else:
            if self._position is not None:
                self._pass_on(timeline, self._position)
            self._position = timeline.tip
            self._sure = whole and not self._overflowed
            for joining in asked:
                if not joining.cancelled:
                    self._receiver.joined(joining, timeline.tip, timeline.after(joining.after))
        self._forget_kept()

    def _pass_on(self, timeline: Timeline, position: Position) -> None:
        """Pass on what a stretch of messages has behind a position; tell what is missing."""
        complete, messages, missed = timeline.after(position)
        if not complete:
            if missed is None:
                messages = self._new_to_all(timeline, position)
            first = messages[0] if messages else None
            start = timeline.tip
            if first is not None:
                start = Position(first.position.epoch, first.position.offset - 1, first.before)
            self._receiver.lost(self.channel, start, missed)
        for message in messages:
            self._receiver.arrived(self.channel, message)

    def _new_to_all(self, timeline: Timeline, position: Position) -> list[Message]:
        """Return the messages that were not passed on here, of a channel that has taken another course."""
        if position.epoch != timeline.tip.epoch:
            return timeline.messages
        # The same epoch, rolled back: its offsets begin again. New is what was notified of, and what follows.
        new = {message.position: message for message in (*self._kept, *timeline.messages) if not self._sure}
        return [new[place] for place in sorted(new, key=lambda place: place.offset) if place.epoch == position.epoch]

    def _forget_kept(self) -> None:
        self._kept = []
        self._kept_bytes = 0
        self._overflowed = False

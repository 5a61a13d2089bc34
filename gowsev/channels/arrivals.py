"""From a backend to the program: what the backend reports becomes events of the loop, in the same order.

A subscription therefore joins between two publications, and no other order is needed. What is on its way is counted,
and a backend reads no more than there is room for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gowsev.channels.publication import Gap, Publication, Subscription, publication_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gowsev.channels.backend import Backend, Joining, Publishing
    from gowsev.channels.in_flight import InFlight
    from gowsev.channels.limits import Limits
    from gowsev.channels.publication import Message, Position
    from gowsev.channels.subscribers import Subscribers
    from gowsev.channels.timeline import Continuation
    from gowsev.context import Context

    Deliver = Callable[[Context, tuple[int, ...], Publication | Gap], object]

__all__ = ["Arrivals", "deliver"]

logger = logging.getLogger("gowsev")

#: What an event costs besides its message, in the count of what was not delivered yet.
_OVERHEAD = 200
#: RFC 6455 section 7.4.1 and IANA's registry: "Try Again Later".
_TRY_AGAIN = 1013


def deliver(context: Context, ids: tuple[int, ...], publication: Publication | Gap) -> None:
    """Send a message to its subscribers; at a gap close them with 1013, so that they come back and load anew.

    That is what `Channels` does with arrivals by itself.
    """
    if isinstance(publication, Publication):
        context.Broadcast(ids, publication.message)
        return
    for id in ids:
        context.Close(id, _TRY_AGAIN, "messages were lost")


class Arrivals:
    """The `Receiver` of a backend.

    Args:
        context: whose loop delivers.
        program: `deliver` of the program.
        limits: how much may be on its way.
        subscribers: those who get what arrives.
        in_flight: the publishes that wait.
    """

    backend: Backend

    def __init__(
        self, context: Context, program: Deliver, limits: Limits, subscribers: Subscribers, in_flight: InFlight
    ) -> None:
        self._program = program
        self._limits = limits
        self._subscribers = subscribers
        self._in_flight = in_flight
        self._undelivered_bytes = 0
        self.undelivered = self.refused = self.gaps = self.missed = 0
        self.call: Callable[..., None] = context.Post
        """How the loop is made to call something; what `Context.attach` returns does it sooner."""

    # -- what a backend reports (Receiver) -----------------------------------------------------------------------

    def has_room(self) -> bool:
        return self._undelivered_bytes < self._limits.undelivered_bytes

    def arrived(self, channel: str, message: Message) -> None:
        self._note(message, 1)
        self.answer(self._arrived, channel, message)

    def lost(self, channel: str, position: Position, missed: int | None) -> None:
        self.gaps += 1
        self.missed += missed or 0
        self.answer(self._lost, channel, Gap(channel, str(position), missed))

    def joined(self, joining: Joining, position: Position, continuation: Continuation) -> None:
        for message in continuation.messages:
            self._note(message, 1)
            self.answer(self._caught_up, joining, message)
        subscription = Subscription(joining.channel, str(position), joining.recovers and continuation.complete)
        self.answer(self._joined, joining, subscription)

    def failed(self, joining: Joining, error: Exception) -> None:
        self.answer(self._failed, joining, error)

    def settled(self, publishing: Publishing, position: Position | None, error: Exception | None) -> None:
        self._in_flight.leave(publishing.account, len(publishing.payload))
        self.refused += error is not None
        if publishing.done is not None:
            self.answer(publishing.done, position and str(position), error)
        elif error is not None:
            logger.warning("a publish to channel %r has failed: %s", publishing.channel[:100], error)

    def answer(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self.call(callback, *args)
        except RuntimeError:
            # The loop has ended, so there is no program to tell; `loop_ended` has been called, or will be.
            logger.debug("nobody is left to be told by %s", callback)

    # -- in the loop ---------------------------------------------------------------------------------------------

    def _note(self, message: Message, difference: int) -> None:
        self.undelivered += difference
        self._undelivered_bytes += difference * (len(message.payload) + _OVERHEAD)

    def _delivered(self, message: Message) -> None:
        had_room = self.has_room()
        self._note(message, -1)
        if not had_room and self.has_room():
            self.backend.go_on()

    def _arrived(self, context: Context, name: str, message: Message) -> None:
        self._delivered(message)
        channel = self._subscribers.channels.get(name)
        if channel is not None and channel.live:  # the last one may have left meanwhile
            channel.position = str(message.position)
            self._program(context, tuple(channel.live), publication_of(name, message))

    def _lost(self, context: Context, name: str, gap: Gap) -> None:
        logger.warning("channel %r has a gap: %s messages are lost", name[:100], gap.missed or "some")
        channel = self._subscribers.channels.get(name)
        if channel is not None and channel.live:  # the last one may have left meanwhile
            channel.position = gap.position
            self._program(context, tuple(channel.live), gap)

    def _caught_up(self, context: Context, joining: Joining, message: Message) -> None:
        self._delivered(message)
        if not joining.cancelled:  # it may have ended meanwhile
            self._program(context, (joining.id,), publication_of(joining.channel, message))

    def _joined(self, context: Context, joining: Joining, subscription: Subscription) -> None:
        if self._subscribers.find(joining.id, joining.channel) is not joining:
            return
        channel = self._subscribers.join(joining, subscription.position)
        if joining.member is not None:
            self._count(joining, channel.members, 1)
        self._tell(context, joining, subscription)

    def _failed(self, context: Context, joining: Joining, error: Exception) -> None:
        self.refused += 1
        if joining.cancelled:  # it may have ended meanwhile
            return
        if self._subscribers.find(joining.id, joining.channel) is joining:  # not so where it was refused at once
            self.remove(joining)
        if not any(joining.done):  # nobody would know
            logger.warning("connection %d has not joined channel %r: %s", joining.id, joining.channel[:100], error)
        self._tell(context, joining, Subscription(joining.channel, "", False, error))

    def _tell(self, context: Context, joining: Joining, subscription: Subscription) -> None:
        """Call what waits for the answer, before anything else is delivered."""
        first, *others = joining.done
        for done in others:
            if done is not None:  # one that asks again may have none
                self.answer(done, subscription)
        if first is not None:
            first(context, subscription)

    # -- what becomes of subscriptions ---------------------------------------------------------------------------

    def remove(self, joining: Joining) -> None:
        """End a subscription."""
        channel = self._subscribers.channels[joining.channel]
        was_live = joining.id in channel.live
        last = self._subscribers.remove(joining)
        if was_live and joining.member is not None:
            self._count(joining, channel.members, -1)
        if last:
            self.backend.leave(joining.channel)

    def _count(self, joining: Joining, members: Any, difference: int) -> None:
        members[joining.member] += difference
        self.backend.present(joining.channel, str(joining.member), members[joining.member])

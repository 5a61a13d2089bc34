"""`Channels`: what a program publishes and subscribes with.

Here are the words of a program and the loop's side: who has subscribed, and the order of what the loop is told. What
stores and carries is a backend. Everything that the program gets comes as an event of the loop, posted in the order in
which the backend told it; so a subscription that joins does so between two publications, and no other order is needed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.arguments import check_callable
from gowsev.channels.backend import Joining, Publishing
from gowsev.channels.errors import ChannelsAway, TooManyChannels
from gowsev.channels.in_flight import InFlight
from gowsev.channels.limits import DEFAULTS, Limits
from gowsev.channels.memory import Memory
from gowsev.channels.publication import (
    Gap,
    Position,
    Publication,
    Subscription,
    check_message,
    check_name,
    publication_of,
)
from gowsev.channels.subscribers import Subscribers
from gowsev.errors import IdNotFound
from gowsev.loop.parts import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gowsev.channels.backend import Backend
    from gowsev.channels.publication import Message
    from gowsev.channels.timeline import Continuation
    from gowsev.context import Context

    Deliver = Callable[[Context, tuple[int, ...], Publication | Gap], object]
    Published = Callable[[Context, str | None, Exception | None], object]
    Subscribed = Callable[[Context, Subscription], object]
    Listed = Callable[[Context, Mapping[str, int], Exception | None], object]

__all__ = ["Channels", "Status", "deliver"]

logger = logging.getLogger("gowsev")

#: What an event costs besides its message, in the count of what was not delivered yet.
_OVERHEAD = 200
#: RFC 6455 section 7.4.1 and IANA's registry: "Try Again Later".
_TRY_AGAIN = 1013


@dataclass(frozen=True, slots=True)
class Status:
    """How channels fare; made by `Channels.Status`. Counters begin with the `Channels`."""

    up: bool
    """Whether messages are stored and received. Before the first use over Redis: not yet."""
    since: float
    """Since when that is so, as `time.time()` tells it."""
    reason: str
    """Why it is not up; empty if it is."""
    refused: int
    """Publishes and subscriptions that were refused or failed."""
    lag: int
    """Messages that were received, and that the loop has not delivered yet."""
    gaps: int
    """Gaps that were told."""
    missed: int
    """Messages that these had, as far as anybody can tell."""
    in_flight: int
    """Publishes that wait to be stored."""
    in_flight_bytes: int
    """How long these are, and what they cost besides."""
    channels: int
    """Channels that are followed."""


def deliver(context: Context, ids: tuple[int, ...], publication: Publication | Gap) -> None:
    """Send a message to its subscribers; at a gap close them with 1013, so that they come back and load anew.

    That is what `Channels` does with arrivals by itself.
    """
    if isinstance(publication, Publication):
        context.Broadcast(ids, publication.message)
        return
    for id in ids:
        context.Close(id, _TRY_AGAIN, "messages were lost")


class Channels(Part):
    """Publish and subscribe, for one context.

    Its methods may be called from any greenlet of the context's thread, callbacks included, and `Publish` from any
    thread. None of them blocks.

    Args:
        context: whose connections subscribe.
        url: of the Redis that joins this process with others: `redis://`, `rediss://`, `unix://`, `redis+sentinel://`
            or `redis+cluster://`. `None` for this process alone. The first use connects.
        prefix: with which all keys in Redis begin, without `{` and `}`.
        deliver: `deliver(context, ids, publication)` is called for each arrival, with those connections of this process
            that have subscribed, and a `Publication` or a `Gap`. By default what the function `deliver` here does.
        limits: bounds.

    Raises:
        TypeError, ValueError: an argument is not what it should be; the text names it.
        ImportError: there is a `url`, and no package `redis`.
    """

    def __init__(
        self,
        context: Context,
        url: str | None = None,
        *,
        prefix: str = "gowsev",
        deliver: Deliver = deliver,
        limits: Limits = DEFAULTS,
    ) -> None:
        if not isinstance(limits, Limits):
            raise TypeError(f"limits must be gowsev.channels.Limits, not {limits!r}")
        check_callable("deliver", deliver)
        self.limits = limits
        self._context = context
        self._hub = gevent.get_hub()
        self._program = deliver
        self._subscribers = Subscribers()
        self._in_flight = InFlight(limits)
        self._undelivered = 0
        self._undelivered_bytes = 0
        self._ended = ""
        self._refused = self._gaps = self._missed = 0
        self._backend: Backend
        if url is None:
            self._backend = Memory(self, limits)
        else:
            from gowsev.channels.redis import Redis  # the only place that needs the package

            self._backend = Redis(url, prefix, self, limits)
        context.attach(self)

    # -- the words of a program ----------------------------------------------------------------------------------

    def Subscribe(
        self,
        id: int,
        channel: str,
        after: str | None = None,
        member: str | None = None,
        done: Subscribed | None = None,
    ) -> None:
        """Subscribe a connection to a channel. Whether it may is the program's to say.

        What was published since `after` is delivered first, in order; then `done(context, subscription)` is called, and
        from then on everything published is delivered. To subscribe again changes nothing, and is answered all the
        same. A connection that ends is unsubscribed by itself.

        Args:
            id: the connection's.
            channel: 1 to `Limits.name_bytes` bytes in UTF-8.
            after: a position that the client had from a publication or subscription before. One that means nothing
                here is no error: `recovered` is `False` then, as after a gap.
            member: as whom it is present, for `Members`; as long as a channel's name.
            done: called with a `Subscription`, whose `error` is `None`, `IdNotFound`, `TooManyChannels`, `Refused` or
                `ChannelsAway`.

        Raises:
            TypeError, ValueError: `channel`, `member`, `after` or `done` is not what it should be.
            RuntimeError: this is not the thread that made the context.
        """
        check_name("channel", channel, self.limits.name_bytes)
        if member is not None:
            check_name("member", member, self.limits.name_bytes)
        if after is not None and not isinstance(after, str):
            raise TypeError(f"after must be a position, which is a str, or None, not {after!r}")
        check_callable("done", done, optional=True)
        self._check_thread()
        joining = Joining(id, channel, Position.parse(after or ""), after is not None, member, done)
        before = self._subscribers.find(id, channel)
        if before is not None:
            self._again(before, after, done)
        elif (error := self._objection(id)) is not None:
            self.answer(self._failed, joining, error)
        else:
            self._subscribers.add(joining)
            self._backend.follow(joining)

    def Unsubscribe(self, id: int, channel: str) -> None:
        """Deliver a channel's publications to a connection no longer, from now on; those of no other, nothing changes.

        Raises:
            RuntimeError: this is not the thread that made the context.
        """
        self._check_thread()
        joining = self._subscribers.find(id, channel)
        if joining is not None:
            self._remove(joining)

    def Publish(
        self, channel: str, message: str | bytes, done: Published | None = None, *, id: int | None = None
    ) -> Exception | None:
        """Publish a message to the subscribers of a channel, in all processes. From any greenlet and any thread.

        Messages that one thread publishes to a channel are stored in their order, but for those that fail.

        Args:
            channel: as for `Subscribe`.
            message: a str is sent as text, bytes are sent as binary.
            done: `done(context, position, error)` is called when the message is stored, and nothing but a loss of
                Redis's own data can lose it; or when that has failed. `error.certain` tells whether it is certainly
                not stored.
            id: the connection on whose behalf that is done. Each has its own share of `Limits.in_flight`, and its turn.

        Returns:
            `ChannelsAway`, `TooMuchInFlight`, or `None`; `done` is called only after `None`.

        Raises:
            TypeError, ValueError: `channel`, `message` or `done` is not what it should be.
        """
        check_name("channel", channel, self.limits.name_bytes)
        text, payload = check_message(message)
        check_callable("done", done, optional=True)
        error: Exception | None = self._in_flight.enter(id, len(payload))
        if error is None:
            publishing = Publishing(channel, text, payload, id, done)
            is_here = gevent.get_hub() is self._hub
            error = self._publish(publishing) if is_here else self._hand_over(publishing)
            if error is not None:
                self._in_flight.leave(id, len(payload))
        if error is not None:
            self._refused += 1
        return error

    def Members(self, channel: str, done: Listed) -> None:
        """Find out who is there, over all processes: `done(context, {member: connections}, error)` is called.

        Those who have subscribed as a `member` are, until they unsubscribe or end, and for at most 30 s after their
        process has died.

        Raises:
            TypeError, ValueError: `channel` or `done` is not what it should be.
            RuntimeError: this is not the thread that made the context.
        """
        check_name("channel", channel, self.limits.name_bytes)
        check_callable("done", done)
        self._check_thread()
        if self._ended:
            self.answer(done, {}, ChannelsAway(self._ended))
        else:
            self._backend.members(channel, done)

    def Status(self) -> Status:
        """Return a snapshot of how channels fare."""
        health = self._backend.health
        return Status(
            up=health.up and not self._ended,
            since=health.since,
            reason=self._ended or health.reason,
            refused=self._refused,
            lag=self._undelivered,
            gaps=self._gaps,
            missed=self._missed,
            in_flight=self._in_flight.number,
            in_flight_bytes=self._in_flight.bytes,
            channels=len(self._subscribers.channels),
        )

    # -- subscriptions -------------------------------------------------------------------------------------------

    def _check_thread(self) -> None:
        if gevent.get_hub() is not self._hub:
            raise RuntimeError("channels belong to the thread of their context; only Publish may be called from others")

    def _objection(self, id: int) -> Exception | None:
        if self._ended:
            return ChannelsAway(self._ended)
        if self._context.Conn(id) is None:
            return IdNotFound(id)
        if len(self._subscribers.of(id)) >= self.limits.channels:
            return TooManyChannels(self.limits.channels)
        return None

    def _again(self, joining: Joining, after: str | None, done: Any) -> None:
        channel = self._subscribers.channels[joining.channel]
        if joining.id in channel.waiting:
            joining.done.append(done)
        elif done is not None:
            self.answer(done, Subscription(joining.channel, channel.position, after == channel.position))

    def _remove(self, joining: Joining) -> None:
        channel = self._subscribers.channels[joining.channel]
        was_live = joining.id in channel.live
        last = self._subscribers.remove(joining)
        if was_live and joining.member is not None:
            self._count(joining, channel.members, -1)
        if last:
            self._backend.leave(joining.channel)

    def _count(self, joining: Joining, members: Any, difference: int) -> None:
        members[joining.member] += difference
        self._backend.present(joining.channel, str(joining.member), members[joining.member])

    # -- what a backend tells (Receiver) -------------------------------------------------------------------------

    def has_room(self) -> bool:
        return self._undelivered_bytes < self.limits.undelivered_bytes

    def arrived(self, channel: str, message: Message) -> None:
        self._note(message, 1)
        self.answer(self._arrived, channel, message)

    def lost(self, channel: str, position: Position, missed: int | None) -> None:
        self._gaps += 1
        self._missed += missed or 0
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
        self._refused += error is not None
        if publishing.done is not None:
            self.answer(publishing.done, position and str(position), error)

    def answer(self, callback: Callable[..., object], *args: object) -> None:
        try:
            post: Any = self._context.Post  # whose type wants to know how many arguments there are
            post(callback, *args)
        except RuntimeError:
            # The loop has ended, and with it whoever would be told; `loop_ended` has been called, or will be.
            logger.debug("nobody is left to be told by %s", callback)

    # -- in the loop ---------------------------------------------------------------------------------------------

    def _note(self, message: Message, difference: int) -> None:
        self._undelivered += difference
        self._undelivered_bytes += difference * (len(message.payload) + _OVERHEAD)

    def _delivered(self, message: Message) -> None:
        had_room = self.has_room()
        self._note(message, -1)
        if not had_room and self.has_room():
            self._backend.go_on()

    def _arrived(self, context: Context, name: str, message: Message) -> None:
        self._delivered(message)
        channel = self._subscribers.channels.get(name)
        if channel is not None and channel.live:  # pragma: no branch - the last one may have left meanwhile
            channel.position = str(message.position)
            self._program(context, tuple(channel.live), publication_of(name, message))

    def _lost(self, context: Context, name: str, gap: Gap) -> None:
        logger.warning("channel %r has a gap: %s messages are lost", name[:100], gap.missed or "some")
        channel = self._subscribers.channels.get(name)
        if channel is not None and channel.live:  # pragma: no branch - the last one may have left meanwhile
            channel.position = gap.position
            self._program(context, tuple(channel.live), gap)

    def _caught_up(self, context: Context, joining: Joining, message: Message) -> None:
        self._delivered(message)
        if not joining.cancelled:  # pragma: no branch - it may have ended meanwhile
            self._program(context, (joining.id,), publication_of(joining.channel, message))

    def _joined(self, context: Context, joining: Joining, subscription: Subscription) -> None:
        if self._subscribers.find(joining.id, joining.channel) is not joining:
            return
        channel = self._subscribers.join(joining, subscription.position)
        if joining.member is not None:
            self._count(joining, channel.members, 1)
        self._tell(context, joining, subscription)

    def _failed(self, context: Context, joining: Joining, error: Exception) -> None:
        self._refused += 1
        if joining.cancelled:  # pragma: no cover - it may have ended meanwhile
            return
        if self._subscribers.find(joining.id, joining.channel) is joining:  # not so where it was refused at once
            self._remove(joining)
        self._tell(context, joining, Subscription(joining.channel, "", False, error))

    def _tell(self, context: Context, joining: Joining, subscription: Subscription) -> None:
        """Call what waits for the answer, before anything else is delivered."""
        first, *others = joining.done
        for done in others:
            if done is not None:  # pragma: no branch - who asks again may not want to know
                self.answer(done, subscription)
        if first is not None:
            first(context, subscription)

    # -- other threads, and what the context tells ---------------------------------------------------------------

    def _hand_over(self, publishing: Publishing) -> Exception | None:
        """Let the context's thread publish, which a backend belongs to."""
        try:
            self._context.Post(self._publish_for_thread, publishing)
        except RuntimeError as error:  # the loop has ended
            return ChannelsAway(str(error))
        return None

    def _publish(self, publishing: Publishing) -> Exception | None:
        return ChannelsAway(self._ended) if self._ended else self._backend.publish(publishing)

    def _publish_for_thread(self, _context: Context, publishing: Publishing) -> None:
        error = self._publish(publishing)
        if error is not None:
            self.settled(publishing, None, error)

    def connection_ended(self, id: int) -> None:
        """Unsubscribe a connection whose `ConnClosed` has returned."""
        for channel in self._subscribers.of(id):
            self.Unsubscribe(id, channel)

    def loop_ended(self) -> None:
        """Let go of everything: nobody is left to be told."""
        self._ended = "the context has been shut down"
        self._backend.close()

    def disown(self) -> None:
        """In a forked child: leave to the parent what is its own."""
        self._subscribers.clear()
        self._in_flight.clear()
        self._backend.disown()

"""`Channels`: what a program publishes and subscribes with.

This is a program's interface. A backend stores messages and carries them; what it reports comes through `arrivals`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gevent

from gowsev.arguments import check_callable
from gowsev.channels.arrivals import Arrivals, deliver
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
)
from gowsev.channels.subscribers import Subscribers
from gowsev.errors import IdNotFound
from gowsev.loop.attachments import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gowsev.channels.backend import Backend
    from gowsev.context import Context

    Deliver = Callable[[Context, tuple[int, ...], Publication | Gap], object]
    Published = Callable[[Context, str | None, Exception | None], object]
    Subscribed = Callable[[Context, Subscription], object]
    Listed = Callable[[Context, Mapping[str, int], Exception | None], object]

__all__ = ["Channels", "Status", "deliver"]

logger = logging.getLogger("gowsev")


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
    """Messages that were lost in them, as far as that is known."""
    in_flight: int
    """Publishes that wait to be stored."""
    in_flight_bytes: int
    """The bytes of these, with what each costs besides its message."""
    channels: int
    """Channels that are followed."""


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
        self._subscribers = Subscribers()
        self._in_flight = InFlight(limits)
        self._ended = ""
        self._arrivals = Arrivals(context, deliver, limits, self._subscribers, self._in_flight)
        self._backend: Backend
        if url is None:
            self._backend = Memory(self._arrivals, limits)
        else:
            try:
                from gowsev.channels.redis import Redis  # the only place that needs the package
            except ModuleNotFoundError as error:
                text = f"channels over Redis take the Python package redis, which is the extra 'redis': {error}"
                raise ModuleNotFoundError(text, name=error.name) from error
            self._backend = Redis(url, prefix, self._arrivals, limits)
        self._arrivals.backend = self._backend
        self._arrivals.call = context.attach(self)

    # -- for the program -----------------------------------------------------------------------------------------

    def Subscribe(
        self,
        id: int,
        channel: str,
        after: str | None = None,
        member: str | None = None,
        done: Subscribed | None = None,
    ) -> None:
        """Subscribe a connection to a channel. Whether it may, the program must decide before.

        What was published since `after` is delivered first, in order; then `done(context, subscription)` is called, and
        from then on everything published is delivered. A connection that ends is unsubscribed by itself.

        To subscribe again changes nothing, and delivers nothing for its `after`. It is answered with the channel's
        newest position, and `recovered` is whether that is `after`; or as the first time, if that is not answered yet.
        To get what came since a position, `Unsubscribe` first.

        Args:
            id: the connection's.
            channel: 1 to `Limits.name_bytes` bytes in UTF-8.
            after: a position that the client had from a publication or subscription before. One that means nothing
                here is no error: `recovered` is `False` then, as after a gap.
            member: the name under which `Members` lists it, no longer than a channel's name may be.
            done: called with a `Subscription`, whose `error` is `None`, `IdNotFound`, `TooManyChannels`, `Refused` or
                `ChannelsAway`. Without it, an error is a warning in the log.

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
            self._arrivals.failed(joining, error)
        else:
            self._subscribers.add(joining)
            self._backend.follow(joining)

    def Unsubscribe(self, id: int, channel: str) -> None:
        """End a connection's subscription to a channel, at once; without one this does nothing.

        Raises:
            RuntimeError: this is not the thread that made the context.
        """
        self._check_thread()
        joining = self._subscribers.find(id, channel)
        if joining is not None:
            self._arrivals.remove(joining)

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
                not stored. Without it, a failure is a warning in the log.
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
            self._arrivals.refused += 1
        return error

    def Members(self, channel: str, done: Listed) -> None:
        """Find out who is there, over all processes: `done(context, {member: connections}, error)` is called.

        A connection that has subscribed as a `member` is there until it unsubscribes or ends, and for at most 30 s
        after its process has died.

        Raises:
            TypeError, ValueError: `channel` or `done` is not what it should be.
            RuntimeError: this is not the thread that made the context.
        """
        check_name("channel", channel, self.limits.name_bytes)
        check_callable("done", done)
        self._check_thread()
        if self._ended:
            self._arrivals.answer(done, {}, ChannelsAway(self._ended))
        else:
            self._backend.members(channel, done)

    def Status(self) -> Status:
        """Return a snapshot of how channels fare."""
        health = self._backend.health
        return Status(
            up=health.up and not self._ended,
            since=health.since,
            reason=self._ended or health.reason,
            refused=self._arrivals.refused,
            lag=self._arrivals.undelivered,
            gaps=self._arrivals.gaps,
            missed=self._arrivals.missed,
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
        if self._subscribers.count(id) >= self.limits.channels:
            return TooManyChannels(self.limits.channels)
        return None

    def _again(self, joining: Joining, after: str | None, done: Any) -> None:
        channel = self._subscribers.channels[joining.channel]
        if joining.id in channel.waiting:
            joining.done.append(done)
        elif done is not None:
            self._arrivals.answer(done, Subscription(joining.channel, channel.position, after == channel.position))

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
            self._arrivals.settled(publishing, None, error)

    def connection_ended(self, id: int) -> None:
        """Unsubscribe a connection whose `ConnClosed` has returned."""
        for channel in self._subscribers.of(id):
            self.Unsubscribe(id, channel)

    @property
    def busy(self) -> bool:
        """Whether publishes wait to be stored, or reports of who has left wait to be sent."""
        return self._in_flight.number > 0 or self._backend.busy

    def loop_ended(self) -> None:
        """Let go of everything: the loop has ended, and nothing can be reported."""
        if self._in_flight.number:
            logger.warning("channels end with %d publishes that may not be stored", self._in_flight.number)
        self._ended = "the context has been shut down"
        self._backend.close()

    def disown(self) -> None:
        """In a forked child: leave to the parent what is its own."""
        self._subscribers.clear()
        self._in_flight.clear()
        self._backend.disown()

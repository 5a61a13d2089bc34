"""The relay's handler in service: one process, which may be one of many.

To the relay of relay.py it adds who may connect, limits, counters, and a backplane. With a backplane, a publish and the
first subscription to a channel are answered only when Redis has answered. Everything that a client is sent still comes
in the order of its commands: a connection with a command under way has a queue of *turns*, and its later answers, and
what is published to it meanwhile, wait behind.

Where a command is valid but is not carried out, the answer begins with `Error: `. Nothing else changes by it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from backplane import UNKNOWN, Backplane
from metrics import Counters
from relay import Service, parse

import gowsev

if TYPE_CHECKING:
    from backplane import Position
    from websockets.datastructures import Headers

logger = logging.getLogger("relay")

#: A browser can't send a header of its own with a WebSocket. So the page offers two subprotocols: this one, and the
#: token behind `TOKEN_PREFIX` in base64url without padding. The server answers with the first.
SUBPROTOCOL = "relay"
TOKEN_PREFIX = "token."  # noqa: S105

#: Answers and messages that may wait for one connection's turn; beyond, it is closed with 1013.
MAX_TURNS, MAX_TURN_BYTES = 20_000, 4 << 20
#: The close code for whose token is gone (RFC 6455 section 7.4.1: a message, or here a peer, violates a policy).
NOT_ALLOWED = 1008
#: Seconds for which commands under way may still be answered when the relay stops.
LAST_ANSWERS = 2.0

STOPPING = "the relay is stopping"
DONE = {"subscribe": "subscribed", "publish": "published"}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for."""

    channels: int = 1000
    channel_bytes: int = 1000


class Node(Service):
    """The handler of one process.

    Args:
        limits: for each client.
        tokens: those that let a client in; empty for anyone.
    """

    def __init__(self, limits: Limits = Limits(), tokens: tuple[bytes, ...] = ()) -> None:
        super().__init__()
        self.limits = limits
        self.tokens = tokens
        self.backplane: Backplane | None = None
        self.counters = Counters()
        self.stopping = False
        self._shut = False
        self._token_of: dict[int, bytes] = {}
        """By connection: the token with which it was let in."""
        self._turns: dict[int, Turns] = {}

    # -- the callbacks -------------------------------------------------------------------------------------------

    def ConnRequested(self, context: gowsev.Context, request: gowsev.Request) -> gowsev.Reject | None:
        if not self.tokens or self._knows(presented(request.headers)):
            return None
        return gowsev.Reject(401, "This relay takes a token.\n", {"WWW-Authenticate": 'Bearer realm="relay"'})

    def _knows(self, token: bytes) -> bool:
        # Compared in constant time, with every token there is, so that time tells nothing of any.
        return sum([hmac.compare_digest(token, known) for known in self.tokens]) > 0

    def replace_tokens(self, context: gowsev.Context, tokens: tuple[bytes, ...]) -> None:
        """Let in only who presents one of these from now on; whoever came in with one that is gone is closed with 1008.

        A token is taken away because it must not be used any more, and a connection may last for weeks.
        """
        self.tokens = tokens
        gone = [id for id, token in self._token_of.items() if token not in tokens]
        for id in gone:
            context.Close(id, NOT_ALLOWED, "the token is no longer valid")
        if gone:
            logger.info("Closing %d connections, whose token is gone", len(gone), extra={"connections": len(gone)})

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        conn = context.Conn(id)
        assert conn is not None, "it has just been accepted"
        peer = f"{conn.peer[0]}:{conn.peer[1]}"
        logger.info("Connection accepted %d", id, extra={"connection": id, "peer": peer})
        if self.tokens:
            self._token_of[id] = presented(conn.headers)
            if self._token_of[id] not in self.tokens:  # it was taken away after the request
                context.Close(id, NOT_ALLOWED, "the token is no longer valid")

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        conn = context.Conn(id)
        code = conn.close_code if conn else None
        logger.info("Connection closed %d", id, extra={"connection": id, "code": code})
        self._turns.pop(id, None)
        self._token_of.pop(id, None)
        self.unsubscribe_all(id)
        self._stop_if_quiet(context)

    # -- commands ------------------------------------------------------------------------------------------------

    def handle_message(self, context: gowsev.Context, id: int, message: bytes) -> None:
        command, channel, body = parse(message)
        error = self._objection(id, command, channel)
        if error is not None:
            self._in_turn(context, id, partial(self._refuse, f"not {DONE[command]}: {error}"))
        elif command == "subscribe":
            self._subscribe(context, id, channel)
        elif command == "publish" and self.backplane is not None:
            self._publish(context, id, channel, body)
        else:
            self._in_turn(context, id, partial(self._carry_out, command=command, channel=channel, body=body))

    def _objection(self, id: int, command: str, channel: bytes) -> str | None:
        """Why a valid command is not carried out; `None` if it is."""
        limits = self.limits
        if command in ("subscribe", "publish") and len(channel) > limits.channel_bytes:
            return f"a channel's name has at most {limits.channel_bytes} bytes"
        if command == "subscribe":
            channels = self.channels_of.get(id, ())
            turns = self._turns.get(id)
            if channel not in channels and len(channels) + (turns.subscribing if turns else 0) >= limits.channels:
                return f"at most {limits.channels} channels for each client"
        if command == "publish" and self.stopping:
            return STOPPING
        return None

    def _carry_out(self, context: gowsev.Context, id: int, command: str, channel: bytes, body: bytes) -> None:
        """Do what needs nobody else's answer, as relay.py does it."""
        context.Write(id, b"OK" if command else b"Invalid message")
        if command == "unsubscribe":
            self.unsubscribe(id, channel)
        elif command == "unsubscribe-all":
            self.unsubscribe_all(id)
        elif command == "publish":
            self.counters.publishes += 1
            self.publish(context, channel, body)

    def _refuse(self, error: str, context: gowsev.Context, id: int) -> None:
        self.counters.errors += 1
        context.Write(id, f"Error: {error}".encode())

    def _subscribe(self, context: gowsev.Context, id: int, channel: bytes) -> None:
        backplane = self.backplane
        if backplane is None or (backplane.follows(channel) and id not in self._turns):
            self._subscribed(None, channel, context, id)
            return
        turn = self._begin_turn(context, id, Turn(subscribing=True))
        error = backplane.locate(channel, partial(self._located, context, id, turn, channel))
        if error is not None:
            self._end_turn(context, id, turn, partial(self._refuse, f"not subscribed: {error}"))

    def _located(
        self, context: gowsev.Context, id: int, turn: Turn, channel: bytes, position: Position | None, error: str | None
    ) -> None:
        if error is not None:
            self._end_turn(context, id, turn, partial(self._refuse, f"not subscribed: {error}"))
        else:
            self._end_turn(context, id, turn, partial(self._subscribed, position, channel))

    def _subscribed(self, position: Position | None, channel: bytes, context: gowsev.Context, id: int) -> None:
        context.Write(id, b"OK")
        self.subscribe(id, channel)
        if self.backplane is not None and position is not None:
            self.backplane.follow(channel, position)

    def unsubscribe(self, id: int, channel: bytes) -> None:
        super().unsubscribe(id, channel)
        if self.backplane is not None and channel not in self.ids_of:
            self.backplane.unfollow(channel)

    def _publish(self, context: gowsev.Context, id: int, channel: bytes, body: bytes) -> None:
        assert self.backplane is not None
        turn = self._begin_turn(context, id, Turn())
        error = self.backplane.publish(channel, body, partial(self._published, context, id, turn))
        if error is not None:
            self._published(context, id, turn, error)

    def _published(self, context: gowsev.Context, id: int, turn: Turn, error: str | None) -> None:
        if error is not None:
            certain = "perhaps not" if error == UNKNOWN else "not"
            self._end_turn(context, id, turn, partial(self._refuse, f"{certain} published: {error}"))
        else:
            self.counters.publishes += 1
            self._end_turn(context, id, turn, acknowledge)

    def publish(self, context: gowsev.Context, channel: bytes, body: bytes) -> None:
        """Send a message to the subscribers in this process, as it came from a client or from the backplane."""
        turns = self._turns
        for id in self.ids_of.get(channel, ()):
            if turns and id in turns:
                self._in_turn(context, id, partial(self._deliver, body), len(body))
            else:
                self._deliver(body, context, id)

    def _deliver(self, body: bytes, context: gowsev.Context, id: int) -> None:
        error = context.Write(id, body)
        if error is None:
            self.counters.deliveries += 1
        else:
            self.counters.drop(error)

    # -- turns ---------------------------------------------------------------------------------------------------

    def _begin_turn(self, context: gowsev.Context, id: int, turn: Turn) -> Turn:
        """Add a turn to a connection's queue."""
        turns = self._turns.setdefault(id, Turns())
        turns.add(turn)
        if len(turns) > MAX_TURNS or turns.bytes > MAX_TURN_BYTES:
            context.Close(id, 1013, "too many commands at once")
        return turn

    def _end_turn(self, context: gowsev.Context, id: int, turn: Turn, act: Act) -> None:
        """Say what is to be done in a turn; do it, and whatever may follow, if it is the first."""
        turn.act = act
        turns = self._turns.get(id)
        if turns is None:  # the connection has ended
            return
        while (first := turns.take()) is not None:
            first(context, id)
        if not turns:
            del self._turns[id]
            self._stop_if_quiet(context)

    def _in_turn(self, context: gowsev.Context, id: int, act: Act, size: int = 0) -> None:
        """Do something as soon as all earlier commands of a connection are answered."""
        if id in self._turns:
            self._begin_turn(context, id, Turn(act, size))
        else:
            act(context, id)

    # -- stopping ------------------------------------------------------------------------------------------------

    def stop(self, context: gowsev.Context) -> None:
        """Answer what is under way, then close all connections with 1001 and let the loop end."""
        if not self.stopping:
            logger.info("Stopping")
            self.stopping = True
            context.AfterFunc(LAST_ANSWERS, self._shut_down)
            self._stop_if_quiet(context)

    def _stop_if_quiet(self, context: gowsev.Context) -> None:
        if self.stopping and not self._turns:
            self._shut_down(context)

    def _shut_down(self, context: gowsev.Context) -> None:
        if not self._shut:
            self._shut = True
            context.Shutdown(5.0)


Act = Callable[[gowsev.Context, int], object]


class Turn:
    """One thing to be sent or done for a connection, in its order; `act` is `None` until it is known."""

    __slots__ = ("act", "size", "subscribing")

    def __init__(self, act: Act | None = None, size: int = 0, subscribing: bool = False) -> None:
        self.act = act
        self.size = size
        self.subscribing = subscribing


class Turns:
    """The queue of one connection; never empty for long."""

    def __init__(self) -> None:
        self._queue: deque[Turn] = deque()
        self.bytes = 0
        self.subscribing = 0
        """Subscriptions that are under way."""

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, turn: Turn) -> None:
        self._queue.append(turn)
        self.bytes += turn.size
        self.subscribing += turn.subscribing

    def take(self) -> Act | None:
        """Remove the first turn if it is known what to do in it; return that."""
        if not self._queue or self._queue[0].act is None:
            return None
        turn = self._queue.popleft()
        self.bytes -= turn.size
        self.subscribing -= turn.subscribing
        return turn.act


def acknowledge(context: gowsev.Context, id: int) -> None:
    context.Write(id, b"OK")


def presented(headers: Headers) -> bytes:
    """The token that a request's headers present; empty if there is none."""
    for value in headers.get_all("Authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip().encode("utf-8", "surrogateescape")
    offered = ",".join(headers.get_all("Sec-WebSocket-Protocol")).split(",")
    for name in map(str.strip, offered):
        if name.startswith(TOKEN_PREFIX):
            text = name.removeprefix(TOKEN_PREFIX)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except (binascii.Error, ValueError):  # no base64: such a token is nobody's
                return b""
    return b""

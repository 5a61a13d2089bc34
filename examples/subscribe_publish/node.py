"""The relay's handler in service: one process, which may be one of many.

To the relay of relay.py it adds who may connect, limits, counters, and channels (`gowsev.channels`), which keep a
history and join processes. Publishes and subscriptions are answered when channels have answered; turns.py keeps the
order of a client's answers all the same.

Where a command is valid but is not carried out, the answer begins with `Error: `. Nothing else changes by it.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from access import GONE, Access
from allowance import Rates
from metrics import AWAY, Counters, Refusal, refusal_of
from relay import Service, parse
from turns import Turn, Turns
from v2 import SUBPROTOCOL, V2, frame_of

import gowsev
from gowsev.channels import Channels, Gap, Limits, Publication

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokens import Token

    from gowsev.channels import Subscription

logger = logging.getLogger("relay")

#: The other is what the four commands are called.
SUBPROTOCOLS = SUBPROTOCOL, "relay"

#: Commands and messages that may wait for one connection's turn; beyond, it is closed with 1013.
MAX_TURNS, MAX_TURN_BYTES = 20_000, 4 << 20
#: The close code for whose token is gone (RFC 6455 section 7.4.1: a message, or here a peer, violates a policy).
NOT_ALLOWED = 1008
#: The close code for whose channel has lost messages (a code of our own, of those from 4000 on), and its reason.
GAP = 4001, "messages were lost: subscribe again"
#: Seconds for which commands under way may still be answered when the relay stops.
LAST_ANSWERS = 2.0
#: Whose members a relay asks for when it starts, to see whether Redis answers. No command subscribes to a name with a
#: blank.
PROBE = "relay probe"

#: Seconds for which a subscription waits for a backplane that is away; beyond, it is refused at once.
AWAY_AFTER = 3.0

DONE = {"subscribe": "subscribed", "unsubscribe": "unsubscribed", "publish": "published"}

#: What one client may ask for, and what a channel keeps. Names are as long as ever.
LIMITS = Limits(name_bytes=1000, total_in_flight=1_000_000, total_in_flight_bytes=256 << 20)


class Node(Service):
    """The handler of one process; `open` must be called before connections come.

    Args:
        limits: of channels, and for each client.
        tokens: those that let a client in; empty for anyone.
        rates: for each client.
        proxies: those that are trusted to say who the client is.
    """

    def __init__(
        self,
        limits: Limits = LIMITS,
        tokens: tuple[Token, ...] = (),
        rates: Rates | None = None,
        proxies: gowsev.TrustedProxies | None = None,
    ) -> None:
        super().__init__()
        self.limits = limits
        self.access = Access(tokens)
        self._rates = rates or Rates()
        self._proxies = proxies
        self.channels: Channels
        self.counters = Counters()
        self.v2 = V2(self)
        self.stopping = False
        self._shut = False
        self._since: dict[int, float] = {}
        self.turns: dict[int, Turns] = {}
        """By client: what it waits for, if that is anything."""
        self._holding: dict[str, set[int]] = {}
        """By channel: connections for which messages are held."""

    def open(self, context: gowsev.Context, url: str | None = None, prefix: str = "relay") -> None:
        """Begin to relay: in this process alone, or with all that name the same Redis and prefix."""
        self.channels = Channels(context, url, prefix=prefix, deliver=self._deliver, limits=self.limits)
        # Of a cluster, one member may be away, and most channels be there.
        self._waits_briefly = url is not None and not url.startswith(("redis+cluster:", "rediss+cluster:"))
        if url is not None:
            self.when_there(context, partial(logger.info, "The backplane is there", extra={"backplane": "up"}))

    def when_there(self, context: gowsev.Context, callback: Callable[[], object]) -> None:
        """Call something once the backplane answers."""

        def probe(context: gowsev.Context) -> None:
            # It connects, and is no publish: one that waits for Redis would hold up the relay's end.
            self.channels.Members(PROBE, probed)

        def probed(context: gowsev.Context, _members: object, error: Exception | None) -> None:
            if error is None:
                callback()
            else:  # what it is, channels tell
                context.AfterFunc(1.0, probe)

        probe(context)

    # -- who may connect -----------------------------------------------------------------------------------------

    def ConnRequested(self, context: gowsev.Context, request: gowsev.Request) -> gowsev.Reject | None:
        if self.access.lets_in(request.headers):
            return None
        self.counters.refuse("connection")
        peer = self._peer_of(request)
        logger.info("Connection refused from %s: no token, or one that is not known", peer, extra={"peer": peer})
        return gowsev.Reject(401, "This relay takes a token.\n", {"WWW-Authenticate": 'Bearer realm="relay"'})

    def replace_tokens(self, context: gowsev.Context, tokens: tuple[Token, ...]) -> None:
        """Let in only who presents one of these from now on; close whoever may no longer be there with 1008."""
        closed = list(self.access.replace(tokens, self.channels_of))
        for id, reason in closed:
            context.Close(id, NOT_ALLOWED, reason)
        if closed:
            text = "Closing %d connections, whose token is gone, or allows less"
            logger.info(text, len(closed), extra={"connections": len(closed)})

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        conn = context.Conn(id)
        assert conn is not None, "it has just been accepted"
        self._since[id] = time.monotonic()
        about = {"connection": id, "peer": self._peer_of(conn)}
        if conn.subprotocol == SUBPROTOCOL:
            self.v2.began(id)
        token = self.access.began(id, conn.headers)
        if token is None:
            context.Close(id, NOT_ALLOWED, GONE)
        elif token:
            about["token"] = token
        logger.info("Connection accepted %d from %s", id, about["peer"], extra=about)

    def _peer_of(self, asked: gowsev.Request | gowsev.Conn) -> str:
        """Who that is, as far as the proxies are believed, for the log."""
        host, port = self._proxies.client(asked) if self._proxies else asked.peer
        return f"{host}:{port}" if port else host or "unknown"

    def ConnClosed(self, context: gowsev.Context, id: int) -> None:
        conn = context.Conn(id)
        assert conn is not None, "it is forgotten behind this callback"
        seconds = time.monotonic() - self._since.pop(id)
        about = {"connection": id, "code": conn.close_code, "reason": conn.close_reason, "seconds": round(seconds, 3)}
        about |= {"bytes_received": conn.bytes_received, "bytes_sent": conn.bytes_sent}
        text = "Connection closed %d: code %s after %.1f s, %d bytes received, %d sent"
        logger.info(text, id, conn.close_code, seconds, conn.bytes_received, conn.bytes_sent, extra=about)
        self._forget_turns(id)
        self.access.ended(id)
        self._rates.ended(id)
        self.v2.ended(id)
        self.unsubscribe_all(id)
        self.stop_if_quiet(context)

    # -- commands ------------------------------------------------------------------------------------------------

    def TextReceived(self, context: gowsev.Context, id: int, text: str) -> None:
        if id in self.v2.ids:
            self.v2.received(context, id, text)
            logger.debug("Connection %d sent message %r", id, text)
        else:
            self.MessageReceived(context, id, text.encode())

    def handle_message(self, context: gowsev.Context, id: int, message: bytes) -> None:
        if id in self.v2.ids:
            self.v2.received(context, id, message)
            return
        command, channel, body = parse(message)
        turns = self.turns.setdefault(id, Turns())
        turns.add(Turn(command, channel, channel.decode("utf-8", "surrogateescape"), body))
        self._go_on(context, id, turns)
        self._close_if_too_much(context, id, turns)

    def _go_on(self, context: gowsev.Context, id: int, turns: Turns) -> None:
        """Begin what can be begun, and answer what can be answered."""
        while True:
            while (turn := turns.begin()) is not None:
                self._begin(context, id, turns, turn)
            if (turn := turns.take()) is None:
                break
            self._answer(context, id, turns, turn)
        if not turns:
            self._forget_turns(id)
            self.stop_if_quiet(context)

    def _begin(self, context: gowsev.Context, id: int, turns: Turns, turn: Turn) -> None:
        """Carry a command out, or ask channels for it; `turn.answer` is there when it is done."""
        if turn.name and turn.command in ("subscribe", "publish"):
            error = self.ask(id, turn.command, turn.name, turn.body, partial(self._answered, id, turn))
            if error is None and (turn.command == "subscribe" or turn.channel in self.channels_of.get(id, ())):
                self._hold(id, turns, turn)
        else:
            error = self.objection(id, turn.command, turn.name, turn.body)
            if error is None:
                self._carry_out(id, turn)
        if error is not None:
            self._refuse(turn, error)

    def ask(
        self, id: int, command: str, name: str, body: str | bytes, told: Callable[..., None], after: str | None = None
    ) -> Refusal | Exception | None:
        """Subscribe a client, or publish for it; return why not, or `None`, and then it is told.

        Args:
            id: the client's.
            command: "subscribe" or "publish".
            name: of the channel.
            body: what is published.
            told: called as `told(context, error, position=...)`, for a subscription with `recovered` too, when channels
                have answered, unless the client has gone meanwhile.
            after: the position from which a subscription goes on.
        """
        error: Refusal | Exception | None = self.objection(id, command, name, body)
        if error is None and command == "subscribe":
            self.channels.Subscribe(id, name, after, done=partial(self._subscribed, id, told))
        elif error is None:
            error = self.channels.Publish(name, body, partial(self._published, id, told), id=id)
        return error

    def _subscribed(
        self, id: int, told: Callable[..., None], context: gowsev.Context, subscription: Subscription
    ) -> None:
        if id not in self._since:  # the connection has ended
            return
        if subscription.error is None:
            self.subscribe(id, subscription.channel.encode("utf-8", "surrogateescape"))
        told(context, subscription.error, position=subscription.position, recovered=subscription.recovered)
        self.stop_if_quiet(context)

    def _published(
        self, id: int, told: Callable[..., None], context: gowsev.Context, position: str | None, error: Exception | None
    ) -> None:
        self.counters.publishes += error is None
        if id in self._since:  # else the connection has ended
            told(context, error, position=position)
        self.stop_if_quiet(context)

    def objection(self, id: int, command: str, name: str, body: str | bytes) -> Refusal | None:
        """Why a valid command is not asked for; `None` if it is."""
        limit, channel = self.limits.name_bytes, name.encode("utf-8", "surrogateescape")
        if command in ("subscribe", "publish") and len(channel) > limit:
            return Refusal("name", f"a channel's name has at most {limit} bytes")
        if text := self.access.objection(id, command, name):
            return Refusal("token", text)
        if command == "subscribe" and channel not in self.channels_of.get(id, ()) and self._is_away():
            return Refusal("away", AWAY)
        if command != "publish":
            return None
        if self.stopping:
            return Refusal("stopping", "the relay is stopping")
        text = self._rates.objection(id, body, time.monotonic())
        return Refusal("rate", text) if text else None

    def _is_away(self) -> bool:
        """Whether nobody need wait for the backplane: it has been away for a while."""
        if not self._waits_briefly:
            return False
        status = self.channels.Status()
        return not status.up and time.time() - status.since > AWAY_AFTER

    def _carry_out(self, id: int, turn: Turn) -> None:
        """Do what needs nobody's answer, as relay.py does it."""
        turn.answer = b"OK" if turn.command else b"Invalid message"
        if turn.command == "unsubscribe":
            self.unsubscribe(id, turn.channel)
        elif turn.command == "unsubscribe-all":
            self.unsubscribe_all(id)
        elif turn.command == "publish":  # to the channel without a name, which nobody can have
            self.counters.publishes += 1

    def refused(self, command: str, error: Refusal | Exception) -> tuple[str, bool]:
        """Count a command that was not carried out; return what the client is told, and whether it is certain."""
        reason, text, certain = refusal_of(error) if isinstance(error, Exception) else error
        self.counters.refuse(reason)
        return f"{'' if certain else 'perhaps '}not {DONE[command]}: {text}", certain

    def _refuse(self, turn: Turn, error: Refusal | Exception) -> None:
        turn.answer = f"Error: {self.refused(turn.command, error)[0]}".encode()

    def _answered(self, id: int, turn: Turn, context: gowsev.Context, error: Exception | None, **place: Any) -> None:
        if error is not None:
            self._refuse(turn, error)
        else:
            turn.answer = b"OK"
            turn.position = place["position"] if turn.command == "publish" else None
        self._go_on(context, id, self.turns[id])

    def _answer(self, context: gowsev.Context, id: int, turns: Turns, turn: Turn) -> None:
        """Send an answer, and what was held because it had not been sent."""
        assert turn.answer is not None, "it is taken when it has one"
        context.Write(id, turn.answer)
        held = turns.held.get(turn.name)
        if held is None:
            return
        for body in held.answered(turn.position):
            turns.bytes -= len(body)
            self._send(context, (id,), body)
        if not held.turns:
            del turns.held[turn.name]
            self._release(id, turn.name)

    def unsubscribe(self, id: int, channel: bytes) -> None:
        super().unsubscribe(id, channel)
        self.channels.Unsubscribe(id, channel.decode("utf-8", "surrogateescape"))

    # -- what is published ---------------------------------------------------------------------------------------

    def _deliver(self, context: gowsev.Context, ids: tuple[int, ...], publication: Publication | Gap) -> None:
        """Send a message to the subscribers in this process."""
        several = self.v2.ids & set(ids) if self.v2.ids else ()
        if several:
            self._send(context, tuple(id for id in ids if id in several), frame_of(publication))
            ids = tuple(id for id in ids if id not in several)
        if isinstance(publication, Gap):
            for id in ids:
                context.Close(id, *GAP)
            return
        if not ids:
            return
        message = publication.message
        body = message.encode() if isinstance(message, str) else message
        holding = self._holding.get(publication.channel)
        if holding:
            for id in holding.intersection(ids):
                self._hold_back(context, id, publication, body)
            ids = tuple(id for id in ids if id not in holding)
        self._send(context, ids, body)

    def _send(self, context: gowsev.Context, ids: tuple[int, ...], body: str | bytes) -> None:
        refused = len(context.Broadcast(ids, body))
        self.counters.drops += refused
        self.counters.deliveries += len(ids) - refused

    def _hold_back(self, context: gowsev.Context, id: int, publication: Publication, body: bytes) -> None:
        turns = self.turns[id]
        turns.bytes += len(body)
        for ready in turns.held[publication.channel].arrived(publication.position, body):
            turns.bytes -= len(ready)
            self._send(context, (id,), ready)
        self._close_if_too_much(context, id, turns)

    def waiting(self) -> dict[str, int]:
        """How much waits here, of each kind."""
        turns = self.turns.values()
        return {"commands": sum(map(len, turns)) + self.v2.waiting, "bytes": sum(one.bytes for one in turns)}

    # -- turns ---------------------------------------------------------------------------------------------------

    def _hold(self, id: int, turns: Turns, turn: Turn) -> None:
        turns.hold(turn.name)
        self._holding.setdefault(turn.name, set()).add(id)

    def _release(self, id: int, name: str) -> None:
        holding = self._holding[name]
        holding.remove(id)
        if not holding:
            del self._holding[name]

    def _forget_turns(self, id: int) -> None:
        turns = self.turns.pop(id, None)
        for name in turns.held if turns else ():
            self._release(id, name)

    def _close_if_too_much(self, context: gowsev.Context, id: int, turns: Turns) -> None:
        if turns.bytes > MAX_TURN_BYTES or len(turns) > MAX_TURNS:
            context.Close(id, 1013, "too many commands at once")

    # -- stopping ------------------------------------------------------------------------------------------------

    def stop(self, context: gowsev.Context) -> None:
        """Answer what is under way, then close all connections with 1001 and let the loop end."""
        if not self.stopping:
            logger.info("Stopping")
            self.stopping = True
            context.AfterFunc(LAST_ANSWERS, self._shut_down)
            self.stop_if_quiet(context)

    def stop_if_quiet(self, context: gowsev.Context) -> None:
        """Stop, if that was asked for and no command is under way."""
        if self.stopping and not self.turns and not self.v2.waiting:
            self._shut_down(context)

    def _shut_down(self, context: gowsev.Context) -> None:
        if not self._shut:
            self._shut = True
            context.Shutdown(5.0)

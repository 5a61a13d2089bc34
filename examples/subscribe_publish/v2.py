"""The subprotocol `relay.v2`: one WebSocket for any number of channels, and a way to come back and miss nothing.

A message is one JSON object on its first line; behind a line feed follows the body, where there is one: as it is, in a
text message if it is text and in a binary message if not. A client sends

    {"do": "subscribe", "id": 1, "channel": "news", "after": "POSITION"}      `after` is optional
    {"do": "unsubscribe", "id": 2, "channel": "news"}
    {"do": "publish", "id": 3, "channel": "news"}                             and the body

with an `id` of its own choice, a number or a string. It is sent

    {"re": 1, "do": "subscribe", "channel": "news", "position": "...", "recovered": true}
    {"re": 3, "do": "publish", "channel": "news", "position": "..."}
    {"re": 3, "do": "publish", "channel": "news", "error": "...", "certain": true}
    {"channel": "news", "position": "..."}                                    and the body: what was published
    {"channel": "news", "position": "...", "gap": true, "missed": 3}          messages are lost

Answers come when they are known, in any order. Behind the answer to a subscription comes whatever is published; before
it, what was published since `after`, and `recovered` says whether that was all. A channel is any string; bytes that are
no UTF-8 are in it as Python's surrogateescape has them, which JSON carries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from metrics import Refusal

from gowsev.channels import Gap, Publication

if TYPE_CHECKING:
    from collections.abc import KeysView

    from node import Node

    import gowsev

SUBPROTOCOL = "relay.v2"
#: Bytes of the first line. A name of 1,000 bytes may be six times as long in JSON.
MOST_HEAD = 16 << 10


class Invalid(Exception):
    """A message that is no command; the text says why."""


@dataclass(frozen=True, eq=False, slots=True)
class Command:
    """What a client asks for; equal to nothing but itself."""

    do: str
    id: int | str | None
    channel: str
    after: str | None
    body: str | bytes


def read(message: str | bytes) -> Command:
    """Read a command.

    Raises:
        Invalid: it is none.
    """
    head, _, body = message.partition("\n") if isinstance(message, str) else message.partition(b"\n")
    if len(head) > MOST_HEAD:
        raise Invalid(f"the first line has at most {MOST_HEAD} bytes")
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError):
        raise Invalid("the first line is no JSON") from None
    if not isinstance(fields, dict):
        raise Invalid("the first line is no object")
    do, id, channel, after = map(fields.get, ("do", "id", "channel", "after"))
    if do not in ("subscribe", "unsubscribe", "publish"):
        raise Invalid("do is one of subscribe, unsubscribe, publish")
    if not isinstance(id, int | str | None) or not isinstance(after, str | None):
        raise Invalid("id is a number or a string, after is a string")
    try:
        if not isinstance(channel, str) or not channel.encode("utf-8", "surrogateescape"):
            raise Invalid("channel is a string, and not empty")
    except UnicodeEncodeError:
        raise Invalid("channel holds half of a character") from None
    return Command(do, id, channel, after, body)


def frame_of(arrival: Publication | Gap) -> str | bytes:
    """Return what a subscriber is sent of a message, or of a gap."""
    head: dict[str, Any] = {"channel": arrival.channel, "position": arrival.position}
    if isinstance(arrival, Gap):
        return json.dumps(head | {"gap": True, "missed": arrival.missed})
    text = json.dumps(head) + "\n"
    return text + arrival.message if isinstance(arrival.message, str) else text.encode() + arrival.message


class V2:
    """Carries out the commands of those who speak it.

    Args:
        node: whose channels, limits and counters.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._under_way: dict[int, set[Command]] = {}
        """By connection: commands that are not answered yet."""

    @property
    def ids(self) -> KeysView[int]:
        """Connections that speak it."""
        return self._under_way.keys()

    @property
    def waiting(self) -> int:
        """Commands that are not answered yet."""
        return sum(map(len, self._under_way.values()))

    def began(self, id: int) -> None:
        """A connection that speaks it has been accepted."""
        self._under_way[id] = set()

    def ended(self, id: int) -> None:
        """A connection has ended, whatever it speaks."""
        self._under_way.pop(id, None)

    def received(self, context: gowsev.Context, id: int, message: str | bytes) -> None:
        """Carry out a command, or say why not."""
        try:
            command = read(message)
        except Invalid as invalid:
            self._node.counters.refuse("invalid")
            context.WriteText(id, json.dumps({"re": None, "error": f"invalid: {invalid}", "certain": True}))
            return
        if command.do == "unsubscribe":
            self._node.unsubscribe(id, command.channel.encode("utf-8", "surrogateescape"))
            for other in tuple(self._under_way[id]):
                if other.do == "subscribe" and other.channel == command.channel:
                    self._answer(id, other, context, Refusal("unsubscribed", "unsubscribed meanwhile"))
            self._answer(id, command, context)
            return
        self._under_way[id].add(command)
        told = partial(self._answer, id, command)
        error = self._node.ask(id, command.do, command.channel, command.body, told, command.after)
        if error is not None:
            self._answer(id, command, context, error)

    def _answer(
        self, id: int, command: Command, context: gowsev.Context, error: Exception | Refusal | None = None, **more: Any
    ) -> None:
        self._under_way[id].discard(command)
        if error is not None:
            more = dict(zip(("error", "certain"), self._node.refused(command.do, error), strict=True))
        answer = {"re": command.id, "do": command.do, "channel": command.channel, **more}
        context.WriteText(id, json.dumps(answer))

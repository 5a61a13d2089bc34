"""What Redis answers and notifies, as messages and positions. No I/O.

Raises `ValueError` for everything that is not in the format of docs/channels-format.md; other programs may write there.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, NoScriptError, ReadOnlyError, TryAgainError

from gowsev.channels.publication import Message, Position
from gowsev.channels.timeline import Timeline

__all__ = ["comes_later", "members_of", "notification", "position_of", "timeline_of"]

_FIELDS = [b"i", b"p", b"k", b"m"]
#: What Redis says where it has not carried a command out, and may do so when asked again or elsewhere.
_LATER = ("BUSY", "UNBLOCKED")
#: The same, where redis-py takes the word out of the text and has a class for it: LOADING, NOSCRIPT, READONLY,
#: CLUSTERDOWN and MASTERDOWN, TRYAGAIN.
_LATER_CLASSES = (BusyLoadingError, NoScriptError, ReadOnlyError, ClusterDownError, TryAgainError)


def comes_later(answer: object, cluster: bool) -> bool:
    """Tell whether an answer says that the command was not carried out, and may be yet.

    Args:
        answer: to a command.
        cluster: whether it can be sent to another member.
    """
    if isinstance(answer, AskError):  # ASK and MOVED
        return cluster
    return isinstance(answer, _LATER_CLASSES) or (
        isinstance(answer, redis.ResponseError) and str(answer).split(" ", 1)[0] in _LATER
    )


def position_of(answer: Any) -> Position:
    """Return the position that an answer of a script begins with: epoch, offset and id."""
    return Position(answer[0].decode(), int(answer[1]), answer[2].decode())


def timeline_of(answer: Any) -> Timeline:
    """Return what the script LOOK has answered."""
    tip = position_of(answer)
    messages = []
    for place, fields in answer[3]:
        if fields[::2] != _FIELDS:
            raise ValueError(f"an entry has the fields {fields[::2]!r}")
        id, before, kind, payload = fields[1::2]
        position = Position(tip.epoch, int(place.partition(b"-")[0]), id.decode())
        messages.append(_message(position, before.decode(), kind, payload))
    return Timeline(tip, messages)


def members_of(answer: Any) -> dict[str, int]:
    """Return what the script MEMBERS has answered: how many connections each has."""
    members: dict[str, int] = {}
    for name, connections in zip(answer[::2], answer[1::2], strict=True):
        member = name.decode("utf-8", "surrogateescape")
        members[member] = members.get(member, 0) + int(connections)
    return members


def notification(data: bytes) -> Message:
    """Return the message that a notification carries."""
    head, _, payload = data.partition(b"\n")
    version, epoch, offset, id, before, kind = head.split(b" ")
    if version != b"1":
        raise ValueError(f"a notification has the version {version!r}")
    return _message(Position(epoch.decode(), int(offset), id.decode()), before.decode(), kind, payload)


def _message(position: Position, before: str, kind: bytes, payload: bytes) -> Message:
    if kind == b"t":
        payload.decode()
    elif kind != b"b":
        raise ValueError(f"a message is of the kind {kind!r}")
    return Message(position, before, kind == b"t", payload)

"""The commands for Redis that run scripts, each as the list of its words."""

from __future__ import annotations

import math
import secrets
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from gowsev.channels import scripts

if TYPE_CHECKING:
    from gowsev.channels.limits import Limits

__all__ = ["PUBLISH_SHA", "look_words", "publish_words", "script_words", "with_source"]

_SHA = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in scripts.ALL}
PUBLISH_SHA = _SHA[scripts.PUBLISH]
_SOURCE = {sha: script for script, sha in _SHA.items()}


def script_words(script: str, keys: tuple[bytes, ...], *arguments: Any) -> tuple[Any, ...]:
    """Return the words of the command that runs a script, which Redis knows already."""
    return ("EVALSHA", _SHA[script], len(keys), *keys, *arguments)


def with_source(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the same for a Redis that does not know the script."""
    return ("EVAL", _SOURCE[words[1]], *words[2:])


def publish_words(
    keys: tuple[bytes, ...], session: str, number: int, text: bool, payload: bytes, limits: Limits,
    again: bool = False, key: str = "",
) -> tuple[Any, ...]:  # fmt: skip
    """Return the words of the command that publishes.

    Args:
        keys: of the channel.
        session: who publishes.
        number: of this message in the session, and higher than those before.
        text: whether it is text.
        payload: the message.
        limits: of the channel's history.
        again: whether it may be stored already.
        key: the program's own for it.
    """
    return script_words(
        scripts.PUBLISH, keys, session, number, b"t" if text else b"b", payload, secrets.token_hex(5),
        limits.history_messages, limits.history_bytes, math.ceil(limits.history_seconds), scripts.META_SECONDS,
        key.encode("utf-8", "surrogateescape"), "1" if again else "",
    )  # fmt: skip


def look_words(keys: tuple[bytes, ...], all_of_unknown: bool, lowest: dict[str, int]) -> tuple[Any, ...]:
    """Return the words of the command that looks a channel up.

    Args:
        keys: of the channel.
        all_of_unknown: whether everything is wanted if the epoch is not in `lowest`; else nothing is.
        lowest: behind which offset of each epoch.
    """
    pairs = [word for pair in lowest.items() for word in pair]
    unknown = "0" if all_of_unknown else ""
    return script_words(scripts.LOOK, keys[:2], secrets.token_hex(5), scripts.META_SECONDS, unknown, *pairs)

"""Arguments that a program gives: each is checked at the call, and the error names the value and what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import timedelta
from ipaddress import ip_network

__all__ = [
    "TOKEN",
    "as_bytes",
    "as_networks",
    "as_seconds",
    "as_strings",
    "as_tokens",
    "check_callable",
    "check_whole",
    "seconds_or_none",
]

#: RFC 9110 section 5.6.2: what names of headers and of subprotocols are made of.
TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")


def seconds_or_none(name: str, value: float | timedelta | None) -> float | None:
    """Return a time as seconds, as `as_seconds` does; `None` stays `None`."""
    return None if value is None else as_seconds(name, value, ", or None")


def as_seconds(name: str, value: float | timedelta, otherwise: str = "") -> float:
    """Return a time as seconds.

    Args:
        name: of the argument, for the text of an error.
        value: what was given.
        otherwise: what else may be given, for the text too.

    Raises:
        TypeError: `value` is no number and no `timedelta`; the text names it, and `name`.
        ValueError: it is negative, infinite or no number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds or a timedelta{otherwise}, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"{name} must be a finite number of seconds of at least 0, not {value!r}")
    return seconds


def as_tokens(name: str, value: object) -> tuple[str, ...]:
    """Return several names as a tuple.

    Raises:
        TypeError: `value` is not several str.
        ValueError: one is no token (RFC 9110 section 5.6.2), as a subprotocol's name must be.
    """
    return as_strings(name, value, TOKEN, "names without blanks or separators")


def as_strings(name: str, value: object, pattern: re.Pattern[str], expected: str) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a tuple of str, not {value!r}")
    strings = tuple(value)
    for item in strings:
        if not isinstance(item, str) or not item:
            raise TypeError(f"{name} must hold non-empty str only, not {item!r}")
    for item in strings:
        if not pattern.fullmatch(item):
            raise ValueError(f"{name} must hold {expected}, not {item!r}")
    return strings


def as_networks(name: str, value: object) -> tuple[str, ...]:
    """Return several addresses and networks as a tuple; "unix" stands for whoever connects over a unix socket.

    Raises:
        TypeError: `value` is not several str.
        ValueError: one is neither, or there is none.
    """
    expected = "addresses, networks or 'unix'"
    names = as_strings(name, value, re.compile(r"[0-9A-Fa-f.:/]+|unix"), expected)
    if not names:
        raise ValueError(f"{name} must hold {expected}, not {value!r}")
    for item in names:
        try:
            if item != "unix":
                ip_network(item)
        except ValueError as error:
            raise ValueError(f"{name} must hold {expected} ({error}), not {item!r}") from None
    return names


def as_bytes(message: object, otherwise: str = "") -> bytes:
    """Return a binary message as bytes.

    Args:
        message: what was given.
        otherwise: what else may be given, for the text of an error.

    Raises:
        TypeError: it is not bytes, a bytearray or a memoryview.
    """
    if type(message) is bytes:
        return message
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    expected, hint = f"{otherwise}bytes, bytearray or memoryview", ""
    if isinstance(message, str):
        hint = "; WriteText sends text"
    elif not otherwise and hasattr(message, "__iter__"):
        hint = "; WriteStream sends what comes in pieces"
    raise TypeError(f"message must be {expected}, not {type(message).__name__}{hint}")


def check_whole(name: str, value: object, least: int, optional: bool = False) -> None:
    """Check that an argument is a whole number; where it is `optional`, `None` is accepted too.

    Raises:
        TypeError: it is no int.
        ValueError: it is below `least`.
    """
    if optional and value is None:
        return
    expected = f"a whole number of at least {least}" + (", or None" if optional else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {expected}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {expected}, not {value!r}")


def check_callable(name: str, value: object, optional: bool = False) -> None:
    """Check that an argument can be called; where it is `optional`, `None` is accepted too.

    Raises:
        TypeError: it cannot.
    """
    if not (callable(value) or (optional and value is None)):
        raise TypeError(f"{name} must be callable, not {value!r}")

"""From a host's name to a connected socket, with the haste of RFC 8305 ("Happy Eyeballs").

A name may have several addresses, of two families, and one that is silent must not use up all the time there is. So the
next address is tried as soon as one fails, or after a quarter of a second; the first that connects is taken.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any

import gevent
import gevent.socket
from gevent.queue import Empty, SimpleQueue

__all__ = ["connect", "interleaved"]

#: RFC 8305 section 8: "Connection Attempt Delay [...] Recommended to be 250 milliseconds by default."
_NEXT = 0.25


def connect(host: str, port: int) -> Any:
    """Return a socket that is connected to one of the host's addresses. Blocks the calling greenlet.

    Raises:
        OSError: the name has no address, or none can be connected to; the error is that of the last one that failed.
    """
    addresses = interleaved(gevent.socket.getaddrinfo(host, port, type=gevent.socket.SOCK_STREAM))
    if len(addresses) == 1:
        return _connect(addresses[0])
    outcomes: Any = SimpleQueue()
    attempts: list[Any] = []
    try:
        failed = 0
        while True:
            waiting = len(attempts) < len(addresses)
            if waiting:
                attempts.append(gevent.spawn(_attempt, addresses[len(attempts)], outcomes))
                waiting = len(attempts) < len(addresses)
            try:
                outcome = outcomes.get(timeout=_NEXT if waiting else None)
            except Empty:  # the next one's turn
                continue
            if not isinstance(outcome, OSError):
                return outcome
            failed += 1
            if failed == len(addresses):
                raise outcome
    finally:
        gevent.killall(attempts)
        while not outcomes.empty():  # pragma: no cover - two that connect in the same round of the hub
            late = outcomes.get()
            if not isinstance(late, OSError):
                late.close()


def interleaved(found: list[Any]) -> list[Any]:
    """Order what `getaddrinfo` found so that families take turns (RFC 8305 section 4), the first one's first."""
    first = [entry for entry in found if entry[0] == found[0][0]]
    others = [entry for entry in found if entry[0] != found[0][0]]
    return [entry for entry in chain.from_iterable(zip_longest(first, others)) if entry is not None]


def _attempt(address: Any, outcomes: Any) -> None:
    try:
        outcomes.put(_connect(address))
    except OSError as error:
        outcomes.put(error)


def _connect(address: Any) -> Any:
    family, kind, protocol, _, where = address
    sock = gevent.socket.socket(family, kind, protocol)
    try:
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock

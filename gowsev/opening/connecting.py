"""From a host's name to a connected socket, as fast as RFC 8305 ("Happy Eyeballs") allows.

A name may have several addresses, of two families, and a silent one must not use up all the time there is. So the
next address is tried as soon as one fails, or after a quarter of a second. The first that connects is used.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any

import gevent
import gevent.socket
from gevent.queue import Empty, SimpleQueue

__all__ = ["connect", "connect_unix", "interleaved"]

#: RFC 8305 section 8: "Connection Attempt Delay [...] Recommended to be 250 milliseconds by default."
_NEXT = 0.25


def connect(host: str, port: int) -> Any:
    """Connect to one of the host's addresses, and return the socket. Blocks the calling greenlet.

    Raises:
        OSError: the name has no address, or none of them accepts a connection: the error of the last that failed.
    """
    addresses = interleaved(gevent.socket.getaddrinfo(host, port, type=gevent.socket.SOCK_STREAM))
    if len(addresses) == 1:
        return _connect(addresses[0])
    outcomes = _Outcomes()
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
        # Without waiting for their end: an error in that wait, such as a timeout, would lose the socket to be returned.
        # An attempt that connects before it is killed hands its socket to `outcomes`, which then closes it.
        gevent.killall(attempts, block=False)
        outcomes.close()


def connect_unix(path: str) -> Any:
    """Connect to a unix socket, and return our end of it. Blocks the calling greenlet.

    Raises:
        OSError: nobody listens there.
    """
    return _connect((gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM, 0, "", path))


def interleaved(found: list[Any]) -> list[Any]:
    """Order what `getaddrinfo` found so that families take turns (RFC 8305 section 4), the first one's first."""
    first = [entry for entry in found if entry[0] == found[0][0]]
    others = [entry for entry in found if entry[0] != found[0][0]]
    return [entry for entry in chain.from_iterable(zip_longest(first, others)) if entry is not None]


class _Outcomes:
    """The outcomes of the attempts: connected sockets or errors. Once closed, it closes every socket that comes."""

    def __init__(self) -> None:
        self._queue: Any = SimpleQueue()
        self._closed = False

    def put(self, outcome: Any) -> None:
        self._queue.put(outcome)
        if self._closed:  # pragma: no cover - two that connect in the same round of the hub
            self.close()

    def get(self, timeout: float | None) -> Any:
        """Wait for the next outcome.

        Raises:
            gevent.queue.Empty: there is none within `timeout` seconds.
        """
        return self._queue.get(timeout=timeout)

    def close(self) -> None:
        self._closed = True
        while not self._queue.empty():  # pragma: no cover - two that connect in the same round of the hub
            late = self._queue.get()
            if not isinstance(late, OSError):
                late.close()  # no more than that: in a forked child, it is the parent's


def _attempt(address: Any, outcomes: _Outcomes) -> None:
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

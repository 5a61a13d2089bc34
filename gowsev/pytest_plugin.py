"""Fixtures for pytest, around `testing`. Only pytest imports this, where a `conftest.py` asks for it:

    pytest_plugins = ["gowsev.pytest_plugin"]

Each fixture is a function that a test may call as often as it likes; what it started ends with the test.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from gowsev.testing import Client, Server, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import gevent

    from gowsev.context import Context

__all__ = ["gowsev_client", "gowsev_drive", "gowsev_server"]


@pytest.fixture
def gowsev_server() -> Iterator[Callable[..., Server]]:
    """Start servers: `gowsev_server(handler, **options)`, with the arguments of `gowsev.testing.Server`."""
    with ExitStack() as stack:
        yield lambda handler, **arguments: stack.enter_context(Server(handler, **arguments))


@pytest.fixture
def gowsev_client() -> Iterator[Callable[..., Client]]:
    """Open client connections: `gowsev_client(url)`, with the arguments of `gowsev.testing.Client`."""
    with ExitStack() as stack:
        yield lambda url, **arguments: stack.enter_context(Client(url, **arguments))


@pytest.fixture
def gowsev_drive() -> Iterator[Callable[[Context], gevent.Greenlet[[], None]]]:
    """Drive the loops of a program's own contexts: `gowsev_drive(context)`, as `gowsev.testing.drive` does."""
    with ExitStack() as stack:
        yield lambda context: stack.enter_context(drive(context))

"""RFC 8305: several addresses, and one of them silent."""

from __future__ import annotations

import socket

import gevent
import gevent.socket
import greenlet
import pytest
from conftest import PATIENCE, open_sockets, wait_until
from gevent import monkey

from gowsev.opening.connecting import connect, interleaved

pytestmark = pytest.mark.usefixtures("quiet_hub")


def entry(family, host, port):
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)


@pytest.fixture
def names(monkeypatch):
    """A function that says which addresses a name has: the resolver's part, which no test can bring about by itself."""

    def resolve(*entries):
        monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *args, **kwargs: list(entries))

    return resolve


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield entry(socket.AF_INET, *sock.getsockname())


@pytest.fixture
def silent(silent_address):
    return entry(socket.AF_INET, *silent_address)


@pytest.fixture
def refusing():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield entry(socket.AF_INET, *sock.getsockname())


def test_families_take_turns():
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, 1), (six, 2), (six, 3), (four, 1)]
    assert interleaved(found) == [(six, 1), (four, 1), (six, 2), (six, 3)]


def test_a_silent_address_does_not_use_up_the_time(names, silent, listening):
    names(silent, listening)
    before = open_sockets()
    with gevent.Timeout(PATIENCE), connect("both", 1) as sock:
        assert sock.getpeername() == listening[4]
    wait_until(lambda: open_sockets() <= before)


def test_the_next_address_is_tried_at_once_where_one_refuses(names, refusing, listening):
    names(refusing, listening)
    with connect("both", 1) as sock:
        assert sock.getpeername() == listening[4]


def test_where_all_fail_the_last_error_is_told(names, refusing):
    names(refusing, refusing)
    with pytest.raises(ConnectionRefusedError):
        connect("both", 1)


def test_one_address_is_simply_connected_to(names, listening, refusing):
    names(listening)
    connect("one", 1).close()
    names(refusing)
    with pytest.raises(ConnectionRefusedError):
        connect("one", 1)


@pytest.mark.parametrize("other", ["silent", "refusing"])
def test_nothing_is_left_of_an_attempt_that_is_given_up(names, silent, other, request):
    names(silent, request.getfixturevalue(other))
    before = open_sockets()
    with gevent.Timeout(0.4, False):
        connect("both", 1)
        pytest.fail("nobody answers")
    wait_until(lambda: open_sockets() <= before)


def test_who_comes_second_is_closed(names, listening):
    names(listening, listening, listening)
    before = open_sockets()
    for _ in range(20):
        connect("all", 1).close()
    wait_until(lambda: open_sockets() <= before)


def test_an_interruption_right_after_connecting_loses_no_socket(names, silent):
    dialling, left = gevent.getcurrent(), []
    select = monkey.get_original("select", "select")  # which may be called in the hub, where `interrupt` runs, too

    def interrupt(event, switched):
        """Interrupt the greenlet as a timeout would, if it waits although it has its connection."""
        if switched[0] is dialling and select([server], [], [], 0)[0]:
            left.append(event)
        if switched[1] is dialling and left:
            raise gevent.Timeout(None)  # in the greenlet that is switched to

    with socket.create_server(("127.0.0.1", 0)) as server:
        names(silent, entry(socket.AF_INET, *server.getsockname()))
        before = open_sockets()
        traced = greenlet.settrace(interrupt)
        try:
            sock = connect("both", 1)
        finally:
            greenlet.settrace(traced)
        assert sock.getpeername() == server.getsockname()
        sock.close()
        wait_until(lambda: open_sockets() <= before)

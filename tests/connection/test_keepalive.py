"""`Keepalive`: one clock for many connections."""

from __future__ import annotations

import time

import gevent
import pytest
from conftest import PATIENCE, in_real_thread, wait_until

from gowsev import Options
from gowsev.connection.keepalive import Keepalive

pytestmark = pytest.mark.usefixtures("quiet_hub")


class Connection:
    """What a keepalive knows of a connection: that it can be told to look at the clock."""

    def __init__(self, on_check=None):
        self.checks = []
        self.on_check = on_check

    def check(self, now):
        self.checks.append(now)
        if self.on_check is not None:
            self.on_check(self)


QUICK = Options(ping_interval=0.08, ping_timeout=0.08, close_timeout=0.08)


@pytest.mark.parametrize(
    ("ping_interval", "ping_timeout", "close_timeout", "tick"),
    [
        (20, 20, 5, 5 / 8),
        (20, 2, 5, 2 / 8),
        (0.8, 20, 5, 0.1),
        (100, 100, 100, 1),
        (None, None, None, 1),
        (None, 4, None, 0.5),
        (0.001, 20, 5, 0.01),
    ],
)
def test_a_tick_is_an_eighth_of_the_shortest_interval_within_bounds(ping_interval, ping_timeout, close_timeout, tick):
    options = Options(ping_interval=ping_interval, ping_timeout=ping_timeout, close_timeout=close_timeout)
    assert Keepalive(options, pytest.fail)._tick == pytest.approx(tick)


def test_every_connection_is_told_the_time_tick_after_tick_until_it_leaves():
    emptied = []
    keepalive = Keepalive(QUICK, lambda: emptied.append(True))
    first, second = Connection(), Connection()
    before = time.monotonic()
    keepalive.add(first)
    keepalive.add(second)
    wait_until(lambda: len(first.checks) >= 3 and len(second.checks) >= 3)
    assert first.checks == second.checks, "one sweep, one time for all"
    assert first.checks == sorted(first.checks)
    assert before < first.checks[0]
    assert keepalive.clock.now == first.checks[-1]

    keepalive.remove(first)
    count, others = len(first.checks), len(second.checks)
    wait_until(lambda: len(second.checks) >= others + 3)
    assert len(first.checks) == count
    assert not emptied

    keepalive.remove(second)
    assert emptied == [True]
    count = len(second.checks)
    gevent.sleep(0.03)  # three ticks
    assert len(second.checks) == count


def test_removing_what_is_not_there_does_nothing():
    emptied = []
    keepalive = Keepalive(QUICK, lambda: emptied.append(True))
    keepalive.remove(Connection())
    there = Connection()
    keepalive.add(there)
    keepalive.remove(Connection())
    assert keepalive.connections == {there}
    wait_until(lambda: there.checks)
    assert not emptied
    keepalive.remove(there)
    keepalive.remove(there)
    assert emptied == [True]


def test_it_starts_again_after_it_was_empty_and_knows_the_time_at_once():
    emptied = []
    keepalive = Keepalive(QUICK, lambda: emptied.append(True))
    for _ in range(2):
        connection = Connection()
        time.sleep(0.001)
        before = time.monotonic()
        keepalive.add(connection)
        assert keepalive.clock.now >= before
        wait_until(lambda connection=connection: connection.checks)
        keepalive.remove(connection)
    assert emptied == [True, True]


def test_connections_may_leave_while_they_are_looked_at():
    emptied = []
    keepalive = Keepalive(QUICK, lambda: emptied.append(True))
    connections = [Connection(keepalive.remove) for _ in range(5)]
    for connection in connections:
        keepalive.add(connection)
    wait_until(lambda: emptied)
    assert [len(connection.checks) for connection in connections] == [1] * 5
    assert emptied == [True]
    assert not keepalive.connections


def test_it_does_not_keep_a_program_s_hub_from_ending():
    def run():
        keepalive = Keepalive(QUICK, lambda: None)
        connection = Connection()
        keepalive.add(connection)
        ended = gevent.wait(timeout=PATIENCE)
        keepalive.remove(connection)
        return ended

    assert in_real_thread(run) is True

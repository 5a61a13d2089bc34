"""`Timer`: one call, at its time, unless it is stopped."""

from __future__ import annotations

import time

import gevent
import pytest
from conftest import wait_until

from gowsev.timer import Timer

pytestmark = pytest.mark.usefixtures("quiet_hub")


@pytest.mark.parametrize("seconds", [0, 0.02])
def test_a_timer_is_due_once_after_its_seconds(seconds):
    due = []
    before = time.monotonic()
    timer = Timer(seconds, due.append)
    assert not due, "never before the caller goes on"
    wait_until(lambda: due)
    # libev's clock may be a little behind ours, and rounds to milliseconds.
    assert time.monotonic() - before >= seconds - 0.005
    gevent.sleep(0.05)
    assert due == [timer]


def test_the_call_is_made_once_with_its_arguments():
    calls = []
    timer = Timer(0, lambda timer: timer.run("context", lambda *args: calls.append(args), (1, 2)))
    wait_until(lambda: calls)
    timer.run("context", lambda *args: calls.append(args), (1, 2))
    assert calls == [("context", 1, 2)]


def test_stop_before_it_is_due_prevents_the_call():
    timer = Timer(0.01, pytest.fail)
    assert timer.Stop() is True
    assert timer.Stop() is False
    gevent.sleep(0.05)


def test_stop_between_due_and_the_call_prevents_it():
    due = []
    timer = Timer(0, due.append)
    wait_until(lambda: due)
    assert timer.Stop() is True
    timer.run("context", pytest.fail, ())
    assert timer.Stop() is False


def test_stop_after_the_call_prevented_nothing():
    due = []
    timer = Timer(0, due.append)
    wait_until(lambda: due)
    timer.run("context", lambda _context: None, ())
    assert timer.Stop() is False


def test_stop_in_the_call_prevented_nothing():
    due, results = [], []
    timer = Timer(0, due.append)
    wait_until(lambda: due)
    timer.run("context", lambda _context: results.append(timer.Stop()), ())
    assert results == [False]

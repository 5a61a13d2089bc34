from __future__ import annotations

import socket
import threading
import time

import gevent
import pytest
from conftest import PATIENCE, in_real_thread, wait_until
from gevent import monkey

from gowsev.loop import queue as queue_module
from gowsev.loop.queue import Empty, EventQueue

pytestmark = pytest.mark.usefixtures("quiet_hub")


@pytest.fixture
def queue():
    made = EventQueue()
    yield made
    made.close()


@pytest.fixture
def socket_event(queue):
    """A function that makes a socket readable whose watcher puts "read" into the queue, once."""
    ours, theirs = socket.socketpair()
    watcher = gevent.get_hub().loop.io(ours.fileno(), 1)

    def readable():
        ours.recv(100)
        queue.put("read")

    watcher.start(readable)
    yield lambda: theirs.send(b"x")
    watcher.stop()
    watcher.close()
    ours.close()
    theirs.close()


def test_events_come_out_in_the_order_in_which_they_were_put(queue):
    for event in range(10):
        queue.put(event)
    assert len(queue) == 10
    assert [queue.wait(None) for _ in range(10)] == list(range(10))
    assert len(queue) == 0


def test_posted_events_come_out_in_the_order_in_which_they_were_posted(queue):
    for event in range(10):
        queue.post(event)
    assert len(queue) == 10
    assert [queue.wait(None) for _ in range(10)] == list(range(10))
    assert len(queue) == 0


def test_an_event_that_is_there_can_be_taken_without_waiting(queue):
    queue.put("first")
    queue.put("second")
    assert [queue.get_nowait(), queue.get_nowait()] == ["first", "second"]
    with pytest.raises(Empty):
        queue.get_nowait()


def test_nothing_within_the_timeout_is_none(queue):
    assert queue.wait(0.01) is None
    assert queue.wait(0) is None


def test_what_is_put_after_a_wait_in_vain_is_there(queue):
    assert queue.wait(0.01) is None
    queue.put("event")
    assert queue.get_nowait() == "event"


@pytest.mark.parametrize("timeout", [None, 1, PATIENCE])
def test_waiting_blocks_only_its_own_greenlet_until_an_event_is_put(queue, timeout):
    gevent.spawn(lambda: queue.put("event"))
    assert queue.wait(timeout) == "event"


def test_a_timeout_counts_from_the_call(queue):
    """Not from when the hub looked at the clock last, however long the greenlet has computed since."""
    # Woken by a watcher, as after a read or a sleep: then gevent by itself would not look at the clock again.
    gevent.get_hub().wait(gevent.get_hub().loop.timer(0))
    time.sleep(0.2)
    before = time.monotonic()
    assert queue.wait(0.1) is None
    assert time.monotonic() - before >= 0.09


def test_an_event_that_comes_in_the_round_of_the_timeout_comes_first(queue):
    hub = gevent.get_hub()
    timer = hub.loop.timer(0.02)
    timer.start(lambda: queue.put("event"))
    sleep = monkey.get_original("time", "sleep")
    hub.loop.run_callback(sleep, 0.1)  # so that both are due, the one of the wait first
    assert queue.wait(0.01) == "event"
    timer.close()


@pytest.mark.parametrize("cut_short", [False, True])
def test_each_wait_has_the_whole_of_its_timeout(queue, cut_short):
    for _ in range(4):
        if cut_short:
            gevent.spawn_later(0.03, queue.put, "event")
            assert queue.wait(0.05) == "event"
        before = time.monotonic()
        assert queue.wait(0.05) is None
        assert time.monotonic() - before >= 0.045


def hub_sleeps(seconds=0.1):
    """Let the next round of the hub find all due that is due within some time."""
    gevent.get_hub().loop.run_callback(monkey.get_original("time", "sleep"), seconds)


def test_a_timeout_that_comes_behind_an_event_is_not_kept_for_the_next_wait(queue):
    for _ in range(3):
        timer = gevent.get_hub().loop.timer(0.02)
        timer.start(lambda: queue.put("event"))
        hub_sleeps()
        assert queue.wait(0.01) == "event"
        gevent.spawn(lambda: queue.put("later"))
        assert queue.wait(PATIENCE) == "later"
        timer.close()


def test_a_timeout_of_a_wait_that_was_broken_off_is_not_kept_for_the_next_one(queue):
    for first, second in ((0.01, 0.02), (0.02, 0.01)):
        with gevent.Timeout(first, False):
            hub_sleeps()
            assert queue.wait(second) is None
        gevent.spawn(lambda: queue.put("later"))
        assert queue.wait(PATIENCE) == "later"


def test_a_timeout_that_was_there_when_the_wait_was_broken_off_is_taken_away(queue):
    waiting = gevent.spawn(queue.wait, 0.01)
    gevent.sleep(0)  # it waits

    def throw():
        if len(queue):  # the token is there, and the one that waits has not been woken
            queue.put("event")
            waiting.throw(gevent.GreenletExit())
        elif not waiting.ready():
            gevent.get_hub().loop.run_callback(throw)

    throw()
    waiting.join(PATIENCE)
    assert len(queue) == 1
    assert queue.wait(PATIENCE) == "event"


def test_an_event_that_comes_with_the_token_of_the_timeout_comes_first(queue):
    def put():
        if len(queue):  # the token is there, and the one that waits has not been woken
            queue.put("event")
        else:
            gevent.get_hub().loop.run_callback(put)

    gevent.get_hub().loop.run_callback(put)
    assert queue.wait(0.01) == "event"
    assert len(queue) == 0


def test_the_timeouts_of_several_that_wait_are_their_own(queue):
    patient, hasty = gevent.spawn(queue.wait, None), gevent.spawn(queue.wait, 0.01)
    hasty.join(PATIENCE)
    assert hasty.successful()
    assert hasty.value is None
    assert not patient.ready()
    queue.put("event")
    patient.join(PATIENCE)
    assert patient.value == "event"


def test_all_that_is_put_while_one_waits_is_there_when_it_goes_on(queue):
    gevent.spawn(lambda: [queue.put(event) for event in range(3)])
    assert [queue.wait(None), queue.get_nowait(), queue.get_nowait()] == [0, 1, 2]


@pytest.mark.parametrize("count", [2, 3])
def test_each_of_several_that_wait_gets_an_event(queue, count):
    waiting = [gevent.spawn(queue.wait, None) for _ in range(count)]
    gevent.sleep(0)  # they wait
    for event in range(count):
        queue.put(event)
    gevent.joinall(waiting, PATIENCE)
    assert [greenlet.value for greenlet in waiting] == list(range(count))


def test_who_waits_behind_another_waits_on_until_there_is_an_event_for_it(queue):
    first, second = (gevent.spawn(queue.wait, None) for _ in range(2))
    gevent.sleep(0)  # they wait
    queue.put("first")
    first.join(PATIENCE)
    assert first.value == "first"
    assert queue.wait(0.01) is None
    assert not second.ready()
    queue.put("second")
    second.join(PATIENCE)
    assert second.value == "second"


def test_who_finds_its_event_taken_by_somebody_else_waits_on(queue):
    waiting = gevent.spawn(queue.wait, None)
    gevent.sleep(0)  # they wait
    queue.put("first")
    assert queue.wait(None) == "first", "it is there, and the other has not come yet"
    gevent.spawn(lambda: queue.put("second"))
    waiting.join(PATIENCE)
    assert waiting.value == "second"


def test_an_event_is_not_lost_with_the_one_that_was_woken_for_it(queue):
    woken, other = (gevent.spawn(queue.wait, None) for _ in range(2))
    gevent.sleep(0)  # they wait

    def both():
        queue.put("event")
        woken.throw(gevent.GreenletExit())  # before it has run

    gevent.get_hub().loop.run_callback(both)
    other.join(PATIENCE)
    assert other.value == "event"
    queue.put("next")
    assert queue.wait(None) == "next"


def test_who_is_killed_while_others_wait_takes_nothing_along(queue):
    killed, *others = (gevent.spawn(queue.wait, None) for _ in range(3))
    gevent.sleep(0)  # they wait
    killed.kill()
    for event in ("first", "second"):
        queue.put(event)
    gevent.joinall(others, PATIENCE)
    assert [other.value for other in others] == ["first", "second"]


def test_who_was_woken_for_an_event_that_somebody_else_took_goes_on_waiting(queue):
    def other():
        queue.put("taken")
        assert queue.get_nowait() == "taken"
        gevent.sleep(0.01)
        queue.put("its own")

    gevent.spawn(other)
    assert queue.wait(PATIENCE) == "its own"


def test_a_poll_delivers_what_had_arrived(queue, socket_event):
    socket_event()
    assert queue.wait(0) == "read"


def test_a_poll_delivers_what_was_posted_while_it_looked(queue):
    assert queue.wait(0) is None
    gevent.get_hub().loop.run_callback(queue.post, "posted")
    assert queue.wait(0) == "posted"


def test_events_without_end_do_not_keep_sockets_from_being_looked_at(queue, socket_event, monkeypatch):
    monkeypatch.setattr(queue_module, "MOST_IN_A_ROW", 4)
    socket_event()
    queue.put("more")

    def get():
        # One for each that is taken: the queue is never empty.
        queue.put("more")
        return queue.wait(None)

    seen = [get() for _ in range(20)]
    assert "read" in seen
    assert seen.count("more") == 19


def test_after_so_many_events_in_a_row_the_sockets_are_looked_at(queue, socket_event, monkeypatch):
    monkeypatch.setattr(queue_module, "MOST_IN_A_ROW", 4)
    socket_event()
    looked_after = []
    for taken in range(15):
        queue.put("more")
        before = len(queue)
        queue.wait(None)
        if len(queue) == before:  # one was taken, and "read" has come
            looked_after.append(taken)
            socket_event()
    assert looked_after == [4, 9, 14]


def test_who_looks_at_the_sockets_while_another_takes_the_event_waits_on(queue, monkeypatch):
    monkeypatch.setattr(queue_module, "MOST_IN_A_ROW", 1)
    for event in ("first", "second"):
        queue.put(event)
    assert queue.wait(None) == "first"
    other = gevent.spawn(queue.get_nowait)
    gevent.spawn_later(0.02, queue.put, "third")
    assert queue.wait(PATIENCE) == "third"
    assert other.value == "second"


# -- other threads -----------------------------------------------------------------------------------------------


def test_a_post_from_a_pool_thread_ends_a_wait_for_ever(queue):
    gevent.spawn(in_real_thread, queue.post, "posted")
    assert queue.wait(None) == "posted"


def test_a_post_from_a_plain_thread_ends_a_wait_for_ever(queue):
    thread = threading.Thread(target=queue.post, args=("posted",), daemon=True)
    gevent.spawn(thread.start)
    assert queue.wait(None) == "posted"
    thread.join()


def test_what_was_posted_before_the_first_wait_is_there(queue):
    thread = threading.Thread(target=queue.post, args=("posted",), daemon=True)
    thread.start()
    thread.join()
    assert queue.wait(0) == "posted"


def test_posts_of_several_threads_under_load_all_come_each_thread_s_in_order(queue):
    count = 3000

    def post(name):
        for number in range(count):
            queue.post((name, number))

    threads = [threading.Thread(target=post, args=(name,), daemon=True) for name in range(4)]
    for thread in threads:
        thread.start()
    received = [queue.wait(PATIENCE) for _ in range(count * len(threads))]
    assert None not in received, "a posted event was left behind"
    for name in range(len(threads)):
        assert [number for who, number in received if who == name] == list(range(count))
    assert queue.wait(0) is None
    for thread in threads:
        thread.join()


def test_each_single_post_is_seen_by_a_consumer_that_waits_for_ever(queue):
    """One at a time, so that each finds the consumer about to wait, waiting, or just woken."""
    count = 500
    taken = threading.Semaphore(0)

    def post():
        for number in range(count):
            queue.post(number)
            taken.acquire()

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    with gevent.Timeout(PATIENCE):
        for number in range(count):
            assert queue.wait(None) == number
            taken.release()
    thread.join()


def test_a_wait_for_ever_in_a_thread_with_nothing_else_is_no_deadlock():
    """Its hub has no other watcher, and would raise `LoopExit` in a greenlet that nothing could wake."""
    queues, result = [], []

    def run():
        queues.append(EventQueue())
        result.append(queues[0].wait(None))
        queues[0].close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: queues)
    queues[0].post("posted")
    wait_until(lambda: result)
    assert result == ["posted"]
    thread.join()


def test_a_queue_does_not_keep_a_program_s_hub_from_ending():
    def run():
        queue = EventQueue()
        queue.wait(0.001)  # from here on it listens for posts
        ended = gevent.wait(timeout=PATIENCE)
        queue.close()
        return ended

    assert in_real_thread(run) is True


# -- everything at once ------------------------------------------------------------------------------------------


# -- closing -----------------------------------------------------------------------------------------------------


def test_a_closed_queue_still_takes_and_gives_but_posts_wake_nobody(queue):
    assert queue.wait(0) is None
    queue.close()
    queue.close()
    queue.post("posted")
    queue.put("put")
    assert sorted([queue.wait(0), queue.wait(0)]) == ["posted", "put"]

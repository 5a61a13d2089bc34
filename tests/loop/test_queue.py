from __future__ import annotations

import socket
import threading
import time

import gevent
import pytest
from conftest import PATIENCE, in_real_thread, wait_until
from gevent import monkey

from gowsev.loop import queue as mailbox_module
from gowsev.loop.queue import Empty, Mailbox

pytestmark = pytest.mark.usefixtures("quiet_hub")


@pytest.fixture
def mailbox():
    made = Mailbox()
    yield made
    made.close()


@pytest.fixture
def socket_event(mailbox):
    """A function that makes a socket readable whose watcher puts "read" into the mailbox, once."""
    ours, theirs = socket.socketpair()
    watcher = gevent.get_hub().loop.io(ours.fileno(), 1)

    def readable():
        ours.recv(100)
        mailbox.put("read")

    watcher.start(readable)
    yield lambda: theirs.send(b"x")
    watcher.stop()
    watcher.close()
    ours.close()
    theirs.close()


def test_events_come_out_in_the_order_in_which_they_were_put(mailbox):
    for event in range(10):
        mailbox.put(event)
    assert len(mailbox) == 10
    assert [mailbox.get(None) for _ in range(10)] == list(range(10))
    assert len(mailbox) == 0


def test_posted_events_come_out_in_the_order_in_which_they_were_posted(mailbox):
    for event in range(10):
        mailbox.post(event)
    assert len(mailbox) == 10
    assert [mailbox.get(None) for _ in range(10)] == list(range(10))
    assert len(mailbox) == 0


def test_an_event_that_is_there_can_be_taken_without_waiting(mailbox):
    mailbox.put("first")
    mailbox.put("second")
    assert [mailbox.take(), mailbox.take()] == ["first", "second"]
    with pytest.raises(Empty):
        mailbox.take()


def test_nothing_within_the_timeout_is_none(mailbox):
    assert mailbox.get(0.01) is None
    assert mailbox.get(0) is None


def test_what_is_put_after_a_wait_in_vain_is_there(mailbox):
    assert mailbox.get(0.01) is None
    mailbox.put("event")
    assert mailbox.take() == "event"


@pytest.mark.parametrize("timeout", [None, 1, PATIENCE])
def test_waiting_blocks_only_its_own_greenlet_until_an_event_is_put(mailbox, timeout):
    gevent.spawn(lambda: mailbox.put("event"))
    assert mailbox.get(timeout) == "event"


def test_a_timeout_counts_from_the_call(mailbox):
    """Not from when the hub looked at the clock last, however long the greenlet has computed since."""
    # Woken by a watcher, as after a read or a sleep: then gevent by itself would not look at the clock again.
    gevent.get_hub().wait(gevent.get_hub().loop.timer(0))
    time.sleep(0.2)
    before = time.monotonic()
    assert mailbox.get(0.1) is None
    assert time.monotonic() - before >= 0.09


def time_is_over(mailbox):
    """Do what the timer of the one that waits does."""
    gevent.get_hub().loop.run_callback(mailbox._waiters[0].switch, True)


def test_an_event_that_comes_with_the_timeout_comes_first(mailbox):
    def both():
        time_is_over(mailbox)
        mailbox.put("event")

    gevent.get_hub().loop.run_callback(both)
    assert mailbox.get(PATIENCE) == "event"
    gevent.spawn(lambda: mailbox.put("later"))
    assert mailbox.get(PATIENCE) == "later", "and there was no timeout then"


def test_an_event_that_comes_in_the_round_of_the_timeout_comes_first(mailbox):
    hub = gevent.get_hub()
    timer = hub.loop.timer(0.02)
    timer.start(lambda: mailbox.put("event"))
    sleep = monkey.get_original("time", "sleep")
    hub.loop.run_callback(sleep, 0.1)  # so that both are due, the one of the wait first
    assert mailbox.get(0.01) == "event"
    timer.close()


def test_a_timeout_that_comes_behind_an_event_is_not_kept_for_the_next_wait(mailbox):
    def both():
        late = mailbox._waiters[0].switch
        mailbox.put("event")
        gevent.get_hub().loop.run_callback(late, True)  # as the timer does, where both are due in one round of the hub

    gevent.get_hub().loop.run_callback(both)
    assert mailbox.get(PATIENCE) == "event"
    gevent.spawn(lambda: mailbox.put("later"))
    assert mailbox.get(PATIENCE) == "later"


def test_a_timeout_of_a_wait_that_was_broken_off_is_not_kept_for_the_next_one(mailbox):
    waiting = gevent.getcurrent()

    def both():
        time_is_over(mailbox)
        waiting.throw(gevent.Timeout())  # as the timer of a `gevent.Timeout` does

    gevent.get_hub().loop.run_callback(both)
    with pytest.raises(gevent.Timeout):
        mailbox.get(PATIENCE)
    gevent.spawn(lambda: mailbox.put("later"))
    assert mailbox.get(PATIENCE) == "later"


def test_all_that_is_put_while_one_waits_is_there_when_it_goes_on(mailbox):
    gevent.spawn(lambda: [mailbox.put(event) for event in range(3)])
    assert [mailbox.get(None), mailbox.take(), mailbox.take()] == [0, 1, 2]


def test_who_has_read_put_while_somebody_waited_may_go_on_with_it(mailbox):
    def reader():
        put = mailbox.put
        for event in range(3):
            put(event)

    gevent.spawn(reader)
    assert [mailbox.get(None), mailbox.take(), mailbox.take()] == [0, 1, 2]


@pytest.mark.parametrize("count", [2, 3])
def test_each_of_several_that_wait_gets_an_event(mailbox, count):
    waiting = [gevent.spawn(mailbox.get, None) for _ in range(count)]
    wait_until(lambda: len(mailbox._waiters) == count)
    for event in range(count):
        mailbox.put(event)
    gevent.joinall(waiting, PATIENCE)
    assert [greenlet.value for greenlet in waiting] == list(range(count))


def test_who_waits_behind_another_waits_on_until_there_is_an_event_for_it(mailbox):
    first, second = (gevent.spawn(mailbox.get, None) for _ in range(2))
    wait_until(lambda: len(mailbox._waiters) == 2)
    mailbox.put("first")
    first.join(PATIENCE)
    assert first.value == "first"
    assert mailbox.get(0.01) is None
    assert not second.ready()
    mailbox.put("second")
    second.join(PATIENCE)
    assert second.value == "second"


def test_who_finds_its_event_taken_by_somebody_else_waits_on(mailbox):
    waiting = gevent.spawn(mailbox.get, None)
    wait_until(lambda: mailbox._waiters)
    mailbox.put("first")
    assert mailbox.get(None) == "first", "it is there, and the other has not come yet"
    gevent.spawn(lambda: mailbox.put("second"))
    waiting.join(PATIENCE)
    assert waiting.value == "second"


def test_an_event_is_not_lost_with_the_one_that_was_woken_for_it(mailbox):
    woken, other = (gevent.spawn(mailbox.get, None) for _ in range(2))
    wait_until(lambda: len(mailbox._waiters) == 2)

    def both():
        mailbox.put("event")
        woken.throw(gevent.GreenletExit())  # before it has run

    gevent.get_hub().loop.run_callback(both)
    other.join(PATIENCE)
    assert other.value == "event"
    mailbox.put("next")
    assert mailbox.get(None) == "next"


def test_who_is_killed_while_others_wait_takes_nothing_along(mailbox):
    killed, *others = (gevent.spawn(mailbox.get, None) for _ in range(3))
    wait_until(lambda: len(mailbox._waiters) == 3)
    killed.kill()
    for event in ("first", "second"):
        mailbox.put(event)
    gevent.joinall(others, PATIENCE)
    assert [other.value for other in others] == ["first", "second"]


def test_who_was_woken_for_an_event_that_somebody_else_took_goes_on_waiting(mailbox):
    def other():
        mailbox.put("taken")
        assert mailbox.take() == "taken"
        gevent.sleep(0.01)
        mailbox.put("its own")

    gevent.spawn(other)
    assert mailbox.get(PATIENCE) == "its own"


def test_a_poll_delivers_what_had_arrived(mailbox, socket_event):
    socket_event()
    assert mailbox.get(0) == "read"


def test_a_poll_delivers_what_was_posted_while_it_looked(mailbox):
    assert mailbox.get(0) is None
    gevent.get_hub().loop.run_callback(mailbox.post, "posted")
    assert mailbox.get(0) == "posted"


def test_events_without_end_do_not_keep_sockets_from_being_looked_at(mailbox, socket_event, monkeypatch):
    monkeypatch.setattr(mailbox_module, "MOST_IN_A_ROW", 4)
    socket_event()
    mailbox.put("more")

    def get():
        # One for each that is taken: the queue is never empty.
        mailbox.put("more")
        return mailbox.get(None)

    seen = [get() for _ in range(20)]
    assert "read" in seen
    assert seen.count("more") == 19


def test_after_so_many_events_in_a_row_the_sockets_are_looked_at(mailbox, socket_event, monkeypatch):
    monkeypatch.setattr(mailbox_module, "MOST_IN_A_ROW", 4)
    socket_event()
    looked_after = []
    for taken in range(15):
        mailbox.put("more")
        before = len(mailbox)
        mailbox.get(None)
        if len(mailbox) == before:  # one was taken, and "read" has come
            looked_after.append(taken)
            socket_event()
    assert looked_after == [4, 9, 14]


# -- other threads -----------------------------------------------------------------------------------------------


def test_a_post_from_a_pool_thread_ends_a_wait_for_ever(mailbox):
    gevent.spawn(in_real_thread, mailbox.post, "posted")
    assert mailbox.get(None) == "posted"


def test_a_post_from_a_plain_thread_ends_a_wait_for_ever(mailbox):
    thread = threading.Thread(target=mailbox.post, args=("posted",), daemon=True)
    gevent.spawn(thread.start)
    assert mailbox.get(None) == "posted"
    thread.join()


def test_what_was_posted_before_the_first_wait_is_there(mailbox):
    thread = threading.Thread(target=mailbox.post, args=("posted",), daemon=True)
    thread.start()
    thread.join()
    assert mailbox.get(0) == "posted"


def test_posts_of_several_threads_under_load_all_come_each_thread_s_in_order(mailbox):
    count = 3000

    def post(name):
        for number in range(count):
            mailbox.post((name, number))

    threads = [threading.Thread(target=post, args=(name,), daemon=True) for name in range(4)]
    for thread in threads:
        thread.start()
    received = [mailbox.get(PATIENCE) for _ in range(count * len(threads))]
    assert None not in received, "a posted event was left behind"
    for name in range(len(threads)):
        assert [number for who, number in received if who == name] == list(range(count))
    assert mailbox.get(0) is None
    for thread in threads:
        thread.join()


def test_each_single_post_is_seen_by_a_consumer_that_waits_for_ever(mailbox):
    """One at a time, so that each finds the consumer about to wait, waiting, or just woken."""
    count = 500
    taken = threading.Semaphore(0)

    def post():
        for number in range(count):
            mailbox.post(number)
            taken.acquire()

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    with gevent.Timeout(PATIENCE):
        for number in range(count):
            assert mailbox.get(None) == number
            taken.release()
    thread.join()


def test_a_wait_for_ever_in_a_thread_with_nothing_else_is_no_deadlock():
    """Its hub has no other watcher, and would raise `LoopExit` in a greenlet that nothing could wake."""
    mailboxes, result = [], []

    def run():
        mailboxes.append(Mailbox())
        result.append(mailboxes[0].get(None))
        mailboxes[0].close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: mailboxes and mailboxes[0]._async is not None)
    mailboxes[0].post("posted")
    wait_until(lambda: result)
    assert result == ["posted"]
    thread.join()


def test_a_mailbox_does_not_keep_a_program_s_hub_from_ending():
    def run():
        mailbox = Mailbox()
        mailbox.get(0.001)  # from here on it listens for posts
        ended = gevent.wait(timeout=PATIENCE)
        mailbox.close()
        return ended

    assert in_real_thread(run) is True


# -- everything at once ------------------------------------------------------------------------------------------


# -- closing -----------------------------------------------------------------------------------------------------


def test_a_closed_mailbox_still_takes_and_gives_but_posts_wake_nobody(mailbox):
    assert mailbox.get(0) is None
    mailbox.close()
    mailbox.close()
    assert mailbox._async is None
    mailbox.post("posted")
    mailbox.put("put")
    assert sorted([mailbox.get(0), mailbox.get(0)]) == ["posted", "put"]

"""The two kinds of connections by themselves: what comes at once from two sides."""

from __future__ import annotations

import contextlib
import gc
import os
from itertools import count

import gevent
import pytest
from conftest import PATIENCE, listening, open_sockets, wait_until
from gevent.server import StreamServer
from redis_server import needs_redis

from gowsev.channels.health import Health
from gowsev.channels.notifications import Notifications
from gowsev.channels.pipeline import WINDOW, WINDOW_BYTES, Command, Pipeline
from gowsev.channels.url import parse

pytestmark = needs_redis


class Listener:
    def __init__(self):
        self.told = []

    def confirmed(self, name):
        self.told.append(("confirmed", name))

    def refused(self, name, error):
        self.told.append(("refused", name, str(error)))

    def cut_off(self, names):
        self.told.append(("cut off", *names))

    def has_room(self):
        return True


def notifications_of(url, listener, cluster=False):
    address = parse(url)
    return Notifications(lambda: address, Health(address, ()), "", cluster, lambda line: None, listener)


@pytest.fixture
def pipeline(redis_server):
    address = parse(redis_server.url)
    pipeline = Pipeline(
        lambda: address, Health(address, ()), "", count(1), False, lambda line: None,
        lambda number, again: ("PING",), lambda refused: None, lambda: None,
    )  # fmt: skip
    yield pipeline
    pipeline.close()


def test_redis_is_asked_after_some_silence_whether_it_is_still_there(redis_server):
    asked = []

    def idle(number, again):
        asked.append((number, again))
        return ("PING",)

    address = parse(redis_server.url)
    pipeline = Pipeline(
        lambda: address, Health(address, ()), "", count(1), False, lambda line: None, idle, lambda refused: None,
        lambda: None, silence=0.05,
    )  # fmt: skip
    answers = []
    pipeline.ask(command(answers.append))
    wait_until(lambda: len(asked) >= 3)
    assert answers == [b"1 False"]
    assert asked[:3] == [(2, False), (3, False), (4, False)]
    pipeline.close()


def command(answered, key=b"k"):
    return Command(None, key, lambda number, again: ("ECHO", f"{number} {again}"), 0, answered)


def test_notifications_that_are_lost_while_something_is_sent(redis_server):
    listener = Listener()
    notifications = notifications_of(redis_server.url, listener)
    notifications.follow(b"one")
    wait_until(lambda: ("confirmed", b"one") in listener.told)
    assert notifications.peer == ("127.0.0.1", redis_server.port)
    notifications.follow(b"two")
    notifications.renew()  # the writer, which is to send that, comes before the reader
    wait_until(lambda: ("confirmed", b"two") in listener.told)
    assert listener.told[1:] == [("cut off", b"one", b"two"), ("confirmed", b"one"), ("confirmed", b"two")]
    notifications.close()
    wait_until(lambda: redis_server.cli("client", "list", "type", "pubsub") == "")
    assert notifications.peer is None
    gevent.sleep(0.1)
    assert len(listener.told) == 4


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_connection_that_is_closed_while_it_is_opened_closes_its_socket(scheme, silent_address):
    """Where nobody accepts it, or nobody answers its TLS handshake. What is left to the garbage gives a warning."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening())
        port = (silent_address if scheme == "redis" else listener.getsockname())[1]
        before = open_sockets()
        notifications = notifications_of(f"{scheme}://127.0.0.1:{port}", Listener())
        notifications.start()
        wait_until(lambda: open_sockets() - before)
        if scheme == "rediss":
            accepted = stack.enter_context(listener.accept()[0])
            assert accepted.recv(1) == b"\x16"  # the handshake has begun
            before.add(f"socket:[{os.fstat(accepted.fileno()).st_ino}]")
        notifications.close()
        wait_until(lambda: open_sockets() <= before)
        gc.collect()


@pytest.mark.parametrize("kind", ["notifications", "pipeline"])
def test_a_connection_that_is_closed_in_the_moment_of_its_end_closes_its_socket(redis_server, pipeline, kind):
    """One that is lost waits for its other greenlet, and is itself ended in this wait; what is left gives a warning."""
    before = open_sockets()
    connection = pipeline if kind == "pipeline" else notifications_of(redis_server.url, Listener())
    connection.start()
    wait_until(lambda: connection.peer)
    connection.close()  # it begins to end
    connection.close()
    wait_until(lambda: open_sockets() <= before)
    gc.collect()


def test_a_refusal_of_what_is_followed_anew_is_told_once(redis_server):
    redis_server.cli("acl", "setuser", "app", "on", ">sesame", "~*", "&open", "+@all")
    listener = Listener()
    notifications = notifications_of(redis_server.url.replace("//", "//app:sesame@"), listener)
    notifications.follow(b"open")
    wait_until(lambda: listener.told)
    for act in (notifications.follow, notifications.leave, notifications.follow):
        act(b"shut")
    notifications.follow(b"open 2")
    wait_until(lambda: len(listener.told) == 3)
    assert [told[:2] for told in listener.told[1:]] == [("refused", b"shut"), ("refused", b"open 2")]
    notifications.close()


@contextlib.contextmanager
def answering(*answers):
    """Serve as a Redis does that says OK, but to commands about notifications what each of `answers` gives, in turn."""
    answers = iter(answers)

    def serve(sock, _):
        with sock.makefile("rb") as file:
            while line := file.readline():
                words = []
                for _ in range(int(line[1:])):
                    words.append(file.read(int(file.readline()[1:])))
                    file.readline()
                about = words[0] in (b"SSUBSCRIBE", b"SUNSUBSCRIBE")
                sock.sendall(next(answers)(*words) if about else b"+OK\r\n")

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.server_port}"
    finally:
        server.stop()


def done(word, name):
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(word), word.lower(), len(name), name)


def moved(word, name):
    return b"-MOVED 1 127.0.0.1:1\r\n"


def test_a_slot_that_has_moved_is_followed_over_another_connection():
    listener = Listener()
    with answering(moved, done) as url:
        notifications = notifications_of(url, listener, cluster=True)
        notifications.follow(b"moved")
        wait_until(lambda: listener.told == [("cut off", b"moved"), ("confirmed", b"moved")])
        notifications.close()


def test_a_slot_that_moves_while_its_channel_is_left():
    """Redis says by itself that the channel is over, which looks like the answer; that then says where it is now."""
    listener = Listener()
    with answering(done, done, lambda *words: done(*words) + moved(*words), done) as url:
        notifications = notifications_of(url, listener)
        notifications.follow(b"moves")
        notifications.follow(b"stays")
        wait_until(lambda: len(listener.told) == 2)
        notifications.leave(b"moves")
        wait_until(lambda: listener.told[2:] == [("cut off", b"stays"), ("confirmed", b"stays")])
        notifications.close()


def test_a_connection_that_is_lost_while_something_is_sent(redis_server, pipeline):
    answers = []
    pipeline.ask(command(answers.append))
    wait_until(lambda: len(answers) == 1)
    redis_server.freeze()
    one = command(answers.append)
    pipeline.ask(one)
    wait_until(lambda: one.number)
    pipeline.renew()
    redis_server.thaw()
    wait_until(lambda: len(answers) == 2)
    assert answers == [b"1 False", b"2 True"]


def test_a_connection_that_is_lost_in_the_middle_of_a_command(redis_server, pipeline):
    """More than the kernel takes, so that it is the sending that fails."""
    answers = []
    pipeline.ask(command(answers.append))
    wait_until(lambda: answers)
    redis_server.freeze()
    large = Command(None, b"k", lambda number, again: ("SET", "large", b"x" * (32 << 20)), 32 << 20, answers.append)
    pipeline.ask(large)
    wait_until(lambda: large.number)
    redis_server.kill()
    redis_server.start()
    wait_until(lambda: len(answers) == 2)
    assert answers[1] == b"OK"


@pytest.mark.parametrize(("size", "sent"), [(0, WINDOW), (WINDOW_BYTES // 4, 4)])
def test_what_is_sent_and_not_answered_is_bounded(redis_server, pipeline, size, sent):
    answers = []
    for _ in range(20):  # a single one would be of somebody who waits for each, beside whom others have less
        pipeline.ask(command(answers.append))
    wait_until(lambda: len(answers) == 20)
    redis_server.freeze()
    waiting = [
        Command(i % 20, b"k", lambda number, again: ("ECHO", number), size, answers.append) for i in range(2 * WINDOW)
    ]
    for one in waiting:
        pipeline.ask(one)
    wait_until(lambda: any(one.number for one in waiting))
    assert sum(one.number > 0 for one in waiting) == sent
    redis_server.thaw()
    wait_until(lambda: len(answers) == 20 + len(waiting))


def test_nothing_is_sent_into_a_connection_that_has_ended(redis_server, pipeline):
    """So what is asked next is certainly not carried out, and uses no number."""
    answers = []
    for number in range(3):
        pipeline.ask(command(answers.append))
        wait_until(lambda number=number: len(answers) == number + 1)
        redis_server.cli("client", "kill", "type", "normal")
    redis_server.kill()
    waiting = command(answers.append)
    pipeline.ask(waiting)
    gevent.sleep(0.3)
    assert not waiting.number
    redis_server.start()
    wait_until(lambda: len(answers) == 4)
    assert answers == [b"1 False", b"2 False", b"3 False", b"4 False"]


def test_that_a_connection_has_ended_is_found_by_whoever_wants_to_know(redis_server, pipeline):
    answers = []
    pipeline.ask(command(answers.append))
    pipeline.wait_tried()
    assert pipeline.peer == ("127.0.0.1", redis_server.port)
    wait_until(lambda: answers)
    pipeline.wait_tried()  # it has not ended
    redis_server.kill()
    with gevent.Timeout(PATIENCE):
        pipeline.wait_tried()
    assert pipeline.peer is None
    with gevent.Timeout(PATIENCE):
        pipeline.wait_tried()  # it is known to be away


def test_what_is_given_back_is_not_answered(redis_server, pipeline):
    answers = []
    pipeline.ask(command(answers.append))
    wait_until(lambda: answers)
    redis_server.freeze()
    mine, others = command(answers.append), command(answers.append, b"other")
    for one in (mine, others):
        pipeline.ask(one)
    wait_until(lambda: mine.number and others.number)
    assert pipeline.give_back(lambda command: command.key == b"other") == [others]
    redis_server.thaw()
    wait_until(lambda: len(answers) == 2)
    assert answers == [b"1 False", b"2 True"]
    pipeline.ask(others)  # it has a number
    wait_until(lambda: len(answers) == 3)
    assert answers[2] == b"3 True"


def test_what_is_given_back_while_answers_come(redis_server, pipeline):
    """Both answers are here when the first is handed over."""
    answers, back = [], []

    def answered(answer):
        answers.append(answer)
        back.extend(pipeline.give_back(lambda command: True))

    pipeline.ask(command(lambda answer: None))
    for one in (command(answered), command(answers.append)):
        pipeline.ask(one)
    wait_until(lambda: back)
    for one in back:
        pipeline.ask(one)
    wait_until(lambda: len(answers) == 2)
    assert answers == [b"2 False", b"3 True"]

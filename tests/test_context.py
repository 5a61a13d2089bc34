"""`Context`: every method and error of the public surface. What it promises as a whole is in `test_promises.py`."""

from __future__ import annotations

import array
import gc
import logging
import math
import os
import random
import signal
import threading
import time
import tracemalloc
import zlib
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from weakref import ref

import gevent
import gevent.event
import gevent.socket
import pytest
from conftest import PATIENCE, Judge, Recorder, connection_of, echo, in_real_thread, listening, sockets_of, wait_until
from gevent.pywsgi import WSGIServer
from raw import RawClient

import gowsev
from gowsev.connection.groups import Group
from gowsev.errors import ConnClosing, GowsevError, IdNotFound
from gowsev.opening import http as wsgi
from gowsev.wire import frames
from gowsev.wire.deflate import Deflate
from gowsev.wire.frames import BINARY, CLOSE, TEXT

pytestmark = pytest.mark.usefixtures("quiet_hub")


def connect(server, count=1, **kwargs):
    """Open clients whose `ConnAccepted` has been called; return them and their ids."""
    before = len(server.handler.of("accepted"))
    clients = [server.client(**kwargs) for _ in range(count)]
    if server.loop is None:
        for _ in range(count):
            server.context.EventLoopIteration()
    wait_until(lambda: len(server.handler.of("accepted")) == before + count)
    return clients, [event[1] for event in server.handler.of("accepted")[before:]]


def received_at_once(client):
    """Return what lies in a client's socket, without letting any other greenlet run."""
    client.sock.settimeout(0)
    try:
        return client.sock.recv(1 << 20)
    except BlockingIOError:
        return b""
    finally:
        client.sock.settimeout(PATIENCE)


# -- making one --------------------------------------------------------------------------------------------------

CALLBACKS = ["ConnAccepted", "ConnClosed", "EventLoopTimeout", "MessageReceived"]


def methods(*names):
    return {name: lambda *args: None for name in names}


@pytest.mark.parametrize("missing", CALLBACKS)
def test_a_handler_that_lacks_a_method_is_refused_at_once_and_the_error_names_it(missing):
    names = [name for name in CALLBACKS if name != missing]
    with pytest.raises(TypeError, match=rf"missing: \['{missing}'\]"):
        gowsev.MakeContext(SimpleNamespace(**methods(*names)))
    with pytest.raises(TypeError, match=rf"missing: \['{missing}'\]"):
        gowsev.MakeContext(SimpleNamespace(**methods(*names), **{missing: "not callable"}))


def test_everything_that_is_missing_is_named():
    with pytest.raises(TypeError) as raised:
        gowsev.MakeContext(None)
    assert all(name in str(raised.value).partition("missing")[2] for name in CALLBACKS)


def test_a_class_in_place_of_an_object_is_refused_and_the_error_says_what_to_do():
    with pytest.raises(TypeError, match="not the class Recorder: call it"):
        gowsev.MakeContext(Recorder)
    with pytest.raises(TypeError, match="missing"):
        gowsev.MakeContext(int)


def test_any_object_with_the_four_methods_will_do():
    calls = []
    handler = SimpleNamespace(**methods(*CALLBACKS))
    handler.EventLoopTimeout = calls.append
    context = gowsev.MakeContext(handler)
    context.SetTimeout(0)
    assert context.EventLoopIteration() is True
    assert calls == [context]


@pytest.mark.parametrize("options", [{}, "options", 1, gowsev.Options])
def test_options_must_be_options(options):
    with pytest.raises(TypeError, match=r"options must be gowsev\.Options"):
        gowsev.MakeContext(Recorder(), options)


def test_options_are_readable():
    options = gowsev.Options(backlog=5)
    assert gowsev.MakeContext(Recorder(), options).options is options
    assert gowsev.MakeContext(Recorder()).options == gowsev.Options()


def posts_listened_for():
    gc.collect()
    kind = type(gevent.get_hub().loop.async_())
    return sum(isinstance(thing, kind) and thing.active for thing in gc.get_objects())


def test_a_context_that_nobody_holds_any_more_is_gone_and_listens_for_no_posts():
    context = gowsev.MakeContext(Recorder())
    context.SetTimeout(0)
    context.EventLoopIteration()
    gone, before = ref(context), posts_listened_for()
    del context
    gc.collect()
    assert gone() is None
    assert posts_listened_for() == before - 1


# -- listening ---------------------------------------------------------------------------------------------------


def test_it_may_listen_on_many_ports_plain_and_with_tls(serve, certificate, client_tls, tmp_path):
    server = serve()
    path = str(tmp_path / "socket")
    assert server.port > 0
    assert server.host == "127.0.0.1"
    second = server.context.ListenAndServe("127.0.0.1:0")
    assert second[1] != server.port
    tls = server.context.ListenAndServeTLS("127.0.0.1:0", *certificate)
    assert server.context.ListenAndServe(f"unix:{path}") == (path, 0)
    for client in (
        server.client(),
        RawClient(*second),
        RawClient(*tls, tls=client_tls),
        RawClient(path, 0),
    ):
        client.send_binary(b"hello")
        assert client.read_frame() == (BINARY, b"hello")
        client.close()


def test_listening_errors_come_at_once(serve, tmp_path):
    server = serve()
    with pytest.raises(OSError, match=f"127.0.0.1:{server.port}"):
        server.context.ListenAndServe(f"127.0.0.1:{server.port}")
    with pytest.raises(ValueError, match="nowhere"):
        server.context.ListenAndServe("nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        server.context.ListenAndServeTLS("nowhere", "no file", "no file")
    with pytest.raises(OSError, match=r"absent\.pem"):
        server.context.ListenAndServeTLS("127.0.0.1:0", str(tmp_path / "absent.pem"), str(tmp_path / "absent.pem"))


# -- the timeout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0.0), (0.25, 0.25), (3, 3.0), (timedelta(milliseconds=1500), 1.5), (timedelta(0), 0.0), (None, None)],
)
def test_the_timeout_is_seconds(given, seconds):
    context = gowsev.MakeContext(Recorder())
    assert context.GetTimeout() == 60.0
    assert context.SetTimeout(given) is None
    assert context.GetTimeout() == seconds
    assert type(context.GetTimeout()) is type(seconds)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (-1, ValueError),
        (-0.001, ValueError),
        (timedelta(seconds=-1), ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (10**400, ValueError),
        ("1", TypeError),
        (b"1", TypeError),
        (True, TypeError),
        (Decimal(1), TypeError),
        ([1], TypeError),
    ],
)
def test_what_is_no_timeout_is_refused_and_changes_nothing(given, error):
    context = gowsev.MakeContext(Recorder())
    for refuse in (context.SetTimeout, context.Shutdown, lambda delay: context.AfterFunc(delay, print)):
        with pytest.raises(error):
            refuse(given)
    assert context.GetTimeout() == 60.0
    context.Post(lambda context: None)
    assert context.EventLoopIteration() is True, "a refused Shutdown is none"


def test_the_timeout_callback_comes_once_for_each_wait_without_an_event(idle):
    server = idle(listen=False)
    server.context.SetTimeout(0.02)
    before = time.monotonic()
    assert server.context.EventLoopIteration() is True
    assert time.monotonic() - before >= 0.015
    assert server.context.EventLoopIteration() is True
    assert server.handler.events == [("timeout",)] * 2


def test_in_event_loop_it_may_be_changed_and_used_to_leave(idle):
    class Three(Recorder):
        def EventLoopTimeout(self, context):
            super().EventLoopTimeout(context)
            context.SetTimeout(0.001)
            if len(self.events) == 3:
                context.Shutdown(0)

    server = idle(Three(), listen=False)
    server.context.SetTimeout(timedelta(milliseconds=5))
    server.context.EventLoop()
    assert server.handler.events == [("timeout",)] * 3


def test_a_timeout_of_0_polls_and_what_has_arrived_is_delivered(idle):
    server = idle()
    (client,), _ = connect(server)
    server.context.SetTimeout(0)
    client.send_binary(b"hello")  # no greenlet has run since
    server.context.EventLoopIteration()
    assert server.handler.messages == [b"hello"]
    assert not server.handler.of("timeout")
    server.context.EventLoopIteration()
    assert server.handler.of("timeout") == [("timeout",)]


def test_polling_alone_lets_clients_connect_and_talk(idle):
    """A script with its own `while` and nothing else."""
    server = idle()
    server.context.SetTimeout(0)

    def talk():
        client = RawClient(server.host, server.port)
        client.send_binary(b"hello")
        assert client.read_frame() == (BINARY, b"hello")
        client.send_close()
        assert client.read_close() == (1000, "")
        client.close()

    talking = gevent.spawn(talk)
    deadline = time.monotonic() + PATIENCE
    while not (talking.ready() and server.handler.closed) and time.monotonic() < deadline:
        server.context.EventLoopIteration()
    assert talking.successful()
    assert server.handler.closed


@pytest.mark.parametrize("kind", ["pool", "plain"])
def test_a_timeout_of_none_waits_for_ever_and_a_post_from_a_thread_ends_it(idle, kind):
    server = idle(listen=False)
    server.context.SetTimeout(None)
    calls = []

    def post():
        server.context.Post(lambda *args: calls.append(args), 1, 2)

    start = {
        "pool": lambda: gevent.get_hub().threadpool.spawn(post),
        "plain": lambda: threading.Thread(target=post, daemon=True).start(),
    }[kind]
    gevent.spawn_later(0.01, start)
    with gevent.Timeout(PATIENCE):
        server.context.EventLoopIteration()
    assert calls == [(server.context, 1, 2)]


# -- an iteration ------------------------------------------------------------------------------------------------


def test_an_iteration_handles_one_event_with_at_most_one_callback(idle):
    server = idle()
    (client,), (id,) = connect(server)
    for number in range(5):
        client.send_binary(b"%d" % number)
    client.send_close()
    wait_until(lambda: server.context.Stats().queued_events == 6)
    for count in range(2, 8):
        assert server.context.EventLoopIteration() is True
        assert len(server.handler.events) == count
    assert server.handler.events[-1] == ("closed", id, 1000, "")


def test_what_an_iteration_wrote_has_left_when_it_returns(idle):
    held = []

    def answer(context, id, message):
        context.Write(id, message)
        context.WriteText(id, "text")
        context.Broadcast([id], b"all")
        held.append(context.Conn(id).bytes_sent)

    server = idle(Recorder(answer))
    (client,), _ = connect(server)
    client.send_binary(b"hello")
    wait_until(lambda: server.context.Stats().queued_events)
    server.context.EventLoopIteration()
    assert held == [0], "gathered, to leave together"
    assert received_at_once(client) == b"\x82\x05hello" + b"\x81\x04text" + b"\x82\x03all"


def test_what_the_last_iteration_wrote_has_left_though_it_raised(idle):
    def answer(context, id, message):
        context.Write(id, message)
        raise KeyError("after the write")

    server = idle(Recorder(answer), raise_errors=True)
    (client,), _ = connect(server)
    client.send_binary(b"hello")
    wait_until(lambda: server.context.Stats().queued_events)
    with pytest.raises(KeyError):
        server.context.EventLoopIteration()
    assert received_at_once(client) == b"\x82\x05hello"


def test_a_lone_message_of_a_callback_that_then_blocks_does_not_wait_for_its_end(serve):
    done = gevent.event.Event()
    waited = []

    def answer(context, id, message):
        context.Write(id, message)
        waited.append(done.wait(PATIENCE))

    server = serve(Recorder(answer))
    client = server.client()
    client.send_binary(b"hello")
    assert client.read_frame() == (BINARY, b"hello")
    assert waited == []
    done.set()
    wait_until(lambda: waited == [True])


def test_what_is_written_outside_the_loop_leaves_at_once(idle):
    server = idle()
    (client,), (id,) = connect(server)
    server.context.Write(id, b"one")
    assert received_at_once(client) == b"\x82\x03one"
    server.context.WriteText(id, "two")
    assert received_at_once(client) == b"\x81\x03two"
    server.context.Broadcast([id], b"three")
    assert received_at_once(client) == b"\x82\x05three"
    server.context.Close(id)
    assert received_at_once(client) == b"\x88\x02\x03\xe8"


@pytest.mark.parametrize(
    ("seconds", "sends"),  # the clock is looked at after each event
    [(0, 50), (math.inf, 1)],
    ids=["each look", "none"],
)
def test_a_long_row_of_events_is_interrupted_to_send_what_was_written(idle, monkeypatch, seconds, sends):
    monkeypatch.setattr("gowsev.loop.row._SHORTEST_GATHERING", seconds)
    monkeypatch.setattr("gowsev.loop.row._LONGEST_GATHERING", seconds)
    server = idle()
    (client,), (id,) = connect(server)
    sent = []

    def write(context):
        context.Write(id, b"x")
        sent.append(context.Conn(id).bytes_sent)

    for number in range(16 * 25):
        server.context.Post(write if number % 8 == 0 else lambda context: None)
    loop = gevent.spawn(server.context.EventLoop)
    wait_until(lambda: len(sent) == 50)
    loop.kill(timeout=PATIENCE)
    assert sent[0] == 0, "gathered"
    assert len(set(sent)) == sends
    assert [client.read_frame() for _ in sent] == [(BINARY, b"x")] * len(sent)


def test_no_reply_waits_for_other_callbacks_that_compute(idle):
    server = idle(Slow())
    clients, _ = connect(server, 6)
    for client in clients:
        client.send_binary(b"x")
    wait_until(lambda: server.context.Stats().queued_events == 6)
    loop = gevent.spawn(server.context.EventLoop)
    wait_until(lambda: len(server.handler.sent_before) == 6)
    loop.kill(timeout=PATIENCE)
    # When a callback begins, all that the earlier ones wrote has left.
    assert server.handler.sent_before == [3 * number for number in range(6)]
    assert [client.read_frame() for client in clients] == [(BINARY, b"x")] * 6


class Slow(Recorder):
    """An echo that computes for longer than the loop gathers, and notes how many bytes had been sent by then."""

    def __init__(self):
        super().__init__()
        self.sent_before = []

    def MessageReceived(self, context, id, message):
        self.sent_before.append(context.Stats().bytes_sent)
        end = time.perf_counter() + 0.11
        while time.perf_counter() < end:
            pass
        context.Write(id, message)


@pytest.mark.parametrize("drive", ["EventLoop", "EventLoopIteration"])
def test_posts_are_run_though_the_loop_is_busy_from_its_first_event(idle, drive):
    server = idle()
    done = []

    def again(context):
        if not done:
            context.AfterFunc(0, again)
            context.Post(again)  # one event makes another: the loop never waits
            time.sleep(0.002)

    def run():
        while not done:
            server.context.EventLoopIteration()
        return True

    server.context.Post(again)
    loop = gevent.spawn(server.context.EventLoop if drive == "EventLoop" else run)
    threading.Thread(target=server.context.Post, args=(lambda context: done.append("posted"),)).start()
    wait_until(lambda: done)
    loop.kill(timeout=PATIENCE)


def test_what_ended_and_was_not_delivered_counts_among_the_connections_allowed(idle):
    server = idle(max_connections=4)
    for _ in range(4):
        client = server.client()
        client.send_binary(bytes(1000))
        client.close()
    wait_until(lambda: server.context.Stats().connections == 0)
    assert " 503 " in read_response(ask(server))[0]
    while server.context.Stats().queued_events:
        server.context.EventLoopIteration()
    assert server.context.Stats().closed == 4
    server.client()  # is let in


def test_a_verdict_that_comes_too_late_takes_no_place_for_ever(serve):
    class Late(Judge):
        pause = 0.2

        def ConnRequested(self, context, request):
            gevent.sleep(self.pause)
            return super().ConnRequested(context, request)

    server = serve(Late(), max_connections=2, handshake_timeout=0.05)
    for _ in range(3):
        assert " 503 " in read_response(ask(server))[0]
        wait_until(lambda: not server.context.Stats().queued_events)
    server.handler.pause = 0
    wait_until(lambda: ask(server).read_head().startswith(b"HTTP/1.1 101 "))


def test_who_has_closed_and_keeps_its_socket_open_counts_among_the_connections_allowed(serve):
    server = serve(max_connections=1, close_timeout=PATIENCE)
    client = server.client()
    client.send_close()
    wait_until(lambda: server.handler.closed)
    assert " 503 " in read_response(ask(server))[0]
    client.close()
    wait_until(lambda: ask(server).read_head().startswith(b"HTTP/1.1 101 "))


def test_requests_that_were_abandoned_unjudged_count_among_them(idle):
    server = idle(Judge(), max_connections=2, handshake_timeout=0.05)
    for _ in range(2):
        assert " 503 " in read_response(ask(server))[0]  # nobody drives the loop
    assert server.context.Stats().queued_events == 2
    assert " 503 " in read_response(ask(server))[0]
    assert server.context.Stats().queued_events == 2, "refused at once"
    for _ in range(2):
        server.context.EventLoopIteration()
    asked = ask(server)
    wait_until(lambda: server.context.Stats().queued_events == 1)
    asked.close()


@pytest.fixture
def memory():
    """A function that returns how many bytes Python has allocated since this began."""
    began = not tracemalloc.is_tracing()
    if began:
        tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    if began:
        tracemalloc.stop()


def test_a_broadcast_to_a_group_is_encoded_once(idle, memory):
    server = idle()
    _, ids = connect(server, 6)
    messages = [b"%05d" % number * 2000 for number in range(20)]
    grown = []

    def publish(context):
        for message in messages:
            before = memory()
            context.Broadcast(ids, message)
            grown.append(memory() - before)

    server.context.Post(publish)
    server.context.EventLoopIteration()
    assert len(grown) == len(messages)
    # One frame for each message, and what keeps it; never one for each connection.
    assert max(grown) < 2 * len(messages[0])


def test_short_rows_of_events_are_not_interrupted_however_many_came_before(idle, monkeypatch):
    monkeypatch.setattr("gowsev.loop.row._SHORTEST_GATHERING", 0.5)  # a row takes that long on no machine
    server = idle()
    (client,), (id,) = connect(server)
    loop = gevent.spawn(server.context.EventLoop)
    for row in range(8):
        sent = []

        def write(context, sent):
            context.Write(id, b"x")
            sent.append(context.Conn(id).bytes_sent)

        for _ in range(12):
            server.context.Post(write, sent)
        wait_until(lambda sent=sent: len(sent) == 12)
        assert set(sent) == {row * 12 * 3}, "gathered, and sent before the next row"
        assert [client.read_frame() for _ in sent] == [(BINARY, b"x")] * 12
        gevent.sleep(0.1)  # all rows together take longer
    loop.kill(timeout=PATIENCE)


def test_events_without_end_hold_no_message_back_and_keep_nobody_out(serve):
    server = serve()
    spins = []

    def spin(context):
        spins.append(None)
        if server.clients == [] or server.context.Stats().messages_sent < 3:
            context.Post(spin)

    server.context.Post(spin)
    client = server.client()
    for number in range(3):
        client.send_binary(b"%d" % number)
        assert client.read_frame() == (BINARY, b"%d" % number)
    assert len(spins) > 3


def test_a_callback_that_raises_closes_its_connection_with_1011(serve, caplog):
    def answer(context, id, message):
        raise KeyError("which")

    server = serve(Recorder(answer))
    client = server.client()
    client.send_binary(b"hello")
    assert client.read_close() == (1011, "internal error")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.name == "gowsev"
    assert record.getMessage() == "a callback raised; closing connection 1"
    assert record.exc_info[0] is KeyError


def test_only_one_greenlet_may_drive_but_its_callbacks_may_drive_on(serve):
    results = []

    def answer(context, id, message):
        if message == b"nest":
            results.append(context.EventLoopIteration())

    server = serve(Recorder(answer))
    client = server.client()
    wait_until(lambda: server.handler.events)
    for drive in (server.context.EventLoop, server.context.EventLoopIteration):
        with pytest.raises(RuntimeError, match="driven by <Greenlet"):
            drive()
    client.send_binary(b"nest")
    client.send_binary(b"inner")
    wait_until(lambda: results)
    assert results == [True]
    assert server.handler.messages == [b"nest", b"inner"]


# -- two contexts ------------------------------------------------------------------------------------------------


def test_contexts_do_not_know_of_each_other(serve):
    def shout(context, id, message):
        context.Write(id, message.upper())

    first, second = serve(), serve(Recorder(shout))
    clients = [first.client(), second.client(), first.client(), second.client()]
    for number, client in enumerate(clients):
        client.send_binary(b"m%d" % number)
    assert [client.read_frame()[1] for client in clients] == [b"m0", b"M1", b"m2", b"M3"]
    assert sorted(first.handler.of("accepted")) == sorted(second.handler.of("accepted"))
    assert sorted(first.handler.messages) == [b"m0", b"m2"]
    assert sorted(second.handler.messages) == [b"m1", b"m3"]

    first.context.Shutdown(PATIENCE)
    assert clients[0].read_close() == (1001, "shutting down")
    clients[0].close()
    clients[2].close()
    first.loop.join(PATIENCE)
    clients[1].send_binary(b"still here")
    assert clients[1].read_frame() == (BINARY, b"STILL HERE")


def test_a_context_belongs_to_the_thread_that_made_it(idle):
    server = idle(listen=False)

    def error_of(drive):
        with pytest.raises(RuntimeError) as raised:
            drive()
        return str(raised.value)

    for drive in (server.context.EventLoop, server.context.EventLoopIteration):
        assert "belongs to the thread that made it" in in_real_thread(error_of, drive)
    server.context.Post(lambda context: None)
    assert server.context.EventLoopIteration() is True


def test_what_another_thread_may_not_call_says_so(serve):
    # Where no thread but its own drives a hub, a timer would never fire and a port never answer.
    server = serve()
    with gowsev.Dial(server.url) as conn:
        wait_until(lambda: server.context.Conn(1))
        context = server.context
        calls = [
            lambda: context.Write(1, b"message"),
            lambda: context.Write(99, b"message"),
            lambda: context.WriteText(1, "message"),
            lambda: context.Broadcast([1], b"message"),
            lambda: context.Ping(1),
            lambda: context.Close(1),
            lambda: context.AfterFunc(0, lambda context: None),
            lambda: context.AddConn(conn),
            lambda: context.ListenAndServe("127.0.0.1:0"),
            context.Shutdown,
        ]

        def error_of(call):
            with pytest.raises(RuntimeError, match="only Post may be called from another"):
                call()

        for call in calls:
            in_real_thread(error_of, call)
        context.Write(1, b"the only one")
        assert conn.ReadMessage() == (gowsev.BinaryMessage, b"the only one")


def test_a_context_made_in_another_thread_runs_there():
    def run():
        calls = []
        context = gowsev.MakeContext(Recorder())
        for number in range(3):
            context.Post(lambda context, number: calls.append(number), number)
        context.Post(lambda context: context.Shutdown())
        context.EventLoop()
        return calls

    assert in_real_thread(run) == [0, 1, 2]


# -- writing -----------------------------------------------------------------------------------------------------


class Bytes(bytes):
    pass


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (b"bytes", b"bytes"),
        (b"", b""),
        (Bytes(b"subclass"), b"subclass"),
        (bytearray(b"bytearray"), b"bytearray"),
        (memoryview(b"memoryview"), b"memoryview"),
        (memoryview(b"a.b.c")[::2], b"abc"),
        (memoryview(array.array("H", [0x4141, 0x4242])), b"AABB"),
        (bytes(100_000), bytes(100_000)),
        (bytearray(100_000), bytes(100_000)),
    ],
)
def test_write_sends_a_binary_message(serve, message, payload):
    server = serve()
    (client,), (id,) = connect(server)
    assert server.context.Write(id, message) is None
    assert client.read_frame() == (BINARY, payload)
    assert server.context.Broadcast([id], message) == []
    assert client.read_frame() == (BINARY, payload)


def test_a_buffer_may_be_used_again_as_soon_as_write_has_returned(idle):
    buffer = bytearray(b"first")

    def answer(context, id, message):
        context.Write(id, buffer)
        buffer[:] = b"later"
        context.Write(id, memoryview(buffer))
        buffer[:] = b"never"

    server = idle(Recorder(answer))
    (client,), _ = connect(server)
    client.send_binary(b"go")
    wait_until(lambda: server.context.Stats().queued_events)
    server.context.EventLoopIteration()
    assert [client.read_frame()[1] for _ in range(2)] == [b"first", b"later"]


@pytest.mark.parametrize("message", ["text", 5, None, ["bytes"], object()])
def test_write_takes_nothing_but_bytes_even_for_an_unknown_id(serve, message):
    server = serve()
    (client,), (id,) = connect(server)
    for some_id in (id, 12345):
        with pytest.raises(TypeError, match="message must be bytes, bytearray or memoryview, not "):
            server.context.Write(some_id, message)
    server.context.Write(id, b"unharmed")
    assert client.read_frame() == (BINARY, b"unharmed")


def test_write_of_a_str_says_which_method_sends_text(idle):
    with pytest.raises(TypeError, match="WriteText"):
        idle(listen=False).context.Write(1, "text")


@pytest.mark.parametrize("text", ["", "plain", "häß €", "\U0001f600" * 10_000])
def test_write_text_sends_a_text_message(serve, text):
    server = serve()
    (client,), (id,) = connect(server)
    assert server.context.WriteText(id, text) is None
    assert client.read_frame() == (TEXT, text.encode())
    assert server.context.Broadcast([id], text) == []
    assert client.read_frame() == (TEXT, text.encode())


@pytest.mark.parametrize(
    ("text", "error"), [(b"bytes", TypeError), (None, TypeError), (5, TypeError), ("half \ud83d", ValueError)]
)
def test_write_text_takes_nothing_but_text_that_can_be_encoded(serve, text, error):
    server = serve()
    (client,), (id,) = connect(server)
    for some_id in (id, 12345):
        with pytest.raises(error):
            server.context.WriteText(some_id, text)
    server.context.Write(id, b"unharmed")
    assert client.read_frame() == (BINARY, b"unharmed")


def test_an_unknown_id_gives_go_s_error_value(idle):
    context = idle(listen=False).context
    for error in (context.Write(7, b"x"), context.WriteText(7, "x")):
        assert isinstance(error, IdNotFound)
        assert isinstance(error, GowsevError)
        assert str(error) == "id not found"
        assert error.id == 7
    assert context.Broadcast([7, 8], b"x") == [7, 8]
    assert context.Conn(7) is None
    assert context.Close(7) is None


def test_a_closing_connection_gives_an_error_value(serve):
    server = serve()
    (client,), (id,) = connect(server)
    server.context.Close(id)
    for error in (server.context.Write(id, b"x"), server.context.WriteText(id, "x")):
        assert isinstance(error, ConnClosing)
        assert str(error) == f"connection {id} is closing"
    assert server.context.Broadcast([id], b"x") == [id]
    assert client.read_frame() == (CLOSE, b"\x03\xe8"), "and nothing of it was sent"


def test_messages_arrive_in_the_order_of_their_writes_whoever_wrote_them(serve):
    """From a callback, from other greenlets, small ones and large ones."""
    sent = []

    def write(context, id, payload):
        sent.append(payload)
        context.Write(id, payload)

    def answer(context, id, message):
        for number in range(20):
            write(context, id, b"callback %d" % number * (5000 if number % 5 == 0 else 1))
            if number % 7 == 0:
                gevent.sleep(0)

    server = serve(Recorder(answer))
    (client,), (id,) = connect(server)

    def other():
        for number in range(20):
            write(server.context, id, b"other %d" % number * (5000 if number % 6 == 0 else 1))
            gevent.sleep(0)

    greenlets = [gevent.spawn(other) for _ in range(3)]
    client.send_binary(b"go")
    wait_until(lambda: len(sent) == 80)
    assert [client.read_frame()[1] for _ in range(80)] == sent
    gevent.joinall(greenlets, raise_error=True)


def test_broadcast_tells_who_could_not_take_it(serve):
    server = serve()
    clients, ids = connect(server, 3)
    server.context.Close(ids[1])
    assert server.context.Broadcast((id for id in [999, *ids, 1000]), b"news") == [999, ids[1], 1000]
    assert clients[0].read_frame() == (BINARY, b"news")
    assert clients[2].read_frame() == (BINARY, b"news")
    assert server.context.Broadcast([], b"news") == []


@pytest.mark.parametrize("message", [5, None, ["bytes"], {"a": 1}, object()])
def test_broadcast_of_what_is_no_message_says_what_it_takes(idle, message):
    expected = f"message must be str, bytes, bytearray or memoryview, not {type(message).__name__}"
    with pytest.raises(TypeError, match=f"^{expected}$"):
        idle(listen=False).context.Broadcast([1], message)


@pytest.mark.parametrize("first", ["Write", "Broadcast"])
def test_what_a_callback_publishes_passes_by_who_is_closing(serve, first):
    server = serve()
    clients, ids = connect(server, 3)
    refused = []

    def write_to_each(context, message):
        return [id for id in ids if context.Write(id, message) is not None]

    def publish(context):
        context.Close(ids[1])
        ways = [write_to_each, lambda context, message: context.Broadcast(ids, message)]
        for way in ways if first == "Write" else reversed(ways):
            refused.extend(way(context, message) for message in (b"news", b"more"))

    server.context.Post(publish)
    wait_until(lambda: len(refused) == 4)
    assert refused == [[ids[1]]] * 4
    for client in (clients[0], clients[2]):
        assert [client.read_frame() for _ in range(4)] == [(BINARY, b"news"), (BINARY, b"more")] * 2
    assert clients[1].read_close() == (1000, "")
    clients[1].send_close()
    assert clients[1].sock.recv(1) == b"", "and nothing of it was sent"


@pytest.mark.parametrize("how", ["Write", "WriteText", "Broadcast"])
def test_a_callback_publishes_more_than_an_outbox_gathers(serve, how):
    server = serve()
    (client,), (id,) = connect(server)
    messages = [b"%d" % number for number in range(300)]

    def publish(context):
        for message in messages:
            if how == "Write":
                assert context.Write(id, message) is None
            elif how == "WriteText":
                assert context.WriteText(id, message.decode()) is None
            else:
                assert context.Broadcast([id], message) == []

    server.context.Post(publish)
    assert [client.read_frame()[1] for _ in messages] == messages


def groups():
    """The groups there are, of all contexts."""
    return [thing for thing in gc.get_objects() if type(thing) is Group]


@pytest.mark.parametrize("way", ["plain", "tls"])
def test_who_is_published_to_again_and_again_gets_everything_in_order(serve, certificate, client_tls, way):
    before = groups()
    server = serve(certificate=certificate if way == "tls" else None)
    clients, ids = connect(server, 6, tls=client_tls if way == "tls" else None)
    everybody = {*ids, 999}
    sent = {id: [] for id in ids}
    refused = []
    seen = []

    def to(ids, opcode, payload):
        for id in ids:
            sent[id].append((opcode, payload))

    def publish(context, number):
        if not seen and number > 5:  # whether it still exists at the end is a matter of how fast this machine is
            seen.extend(group for group in groups() if group not in before)
        refused.append(context.Broadcast(everybody, b"binary %d" % number))
        to(ids, BINARY, b"binary %d" % number)
        alone = ids[number % 6]
        if number % 3 == 0:
            assert context.WriteText(alone, f"own {number}") is None
            to([alone], TEXT, b"own %d" % number)
        refused.append(context.Broadcast(everybody, f"text {number}"))
        to(ids, TEXT, b"text %d" % number)
        if number % 4 == 0:
            assert context.Write(alone, b"own too") is None
            to([alone], BINARY, b"own too")
        if number % 5 == 0:
            refused.append(context.Broadcast(everybody, bytes(20_000)))
            to(ids, BINARY, bytes(20_000))

    for number in range(60):
        server.context.Post(publish, number)
        if number % 7 == 0:
            gevent.sleep(0)
    wait_until(lambda: len(refused) == 2 * 60 + 12)
    assert refused == [[999]] * len(refused)
    assert seen, "some of it was sent to a group"
    for client, id in zip(clients, ids, strict=True):
        assert [client.read_frame() for _ in sent[id]] == sent[id]
        assert server.context.Conn(id).messages_sent == len(sent[id])
        sizes = [2 + len(payload) + (2 if len(payload) > 125 else 0) for _, payload in sent[id]]
        assert server.context.Conn(id).bytes_sent == sum(sizes)
    assert server.context.Stats().messages_sent == sum(map(len, sent.values()))
    assert server.context.Stats().bytes_sent == sum(server.context.Conn(id).bytes_sent for id in ids)


def test_who_closes_or_ends_among_those_who_are_published_to_gets_no_more(serve):
    server = serve()
    clients, ids = connect(server, 8)
    refused = []

    def publish(context, number):
        if number == 10:
            context.Close(ids[1])
        refused.append(context.Broadcast(ids, b"%d" % number))
        if number == 20:
            context.Close(ids[2])
        if number == 30:
            connection_of(server, ids[3]).abort("")

    for number in range(40):
        server.context.Post(publish, number)
    wait_until(lambda: len(refused) == 40)
    for client, count in zip(clients, [40, 10, 21, 31, 40, 40, 40, 40], strict=True):
        assert [client.read_frame()[1] for _ in range(count)] == [b"%d" % number for number in range(count)]
    assert clients[1].read_close() == clients[2].read_close() == (1000, "")
    assert clients[3].sock.recv(1) == b""
    ends = [[]] * 10 + [[ids[1]]] * 11 + [ids[1:3]] * 10 + [ids[1:4]] * 9
    assert [sorted(some) for some in refused] == ends


@pytest.mark.parametrize("slow_consumer", ["close", "drop"])
def test_who_reads_too_slowly_among_those_who_are_published_to_is_refused_alone(serve, slow_consumer):
    server = serve(outbox_bytes=100_000, slow_consumer=slow_consumer)
    (slow, *clients), ids = connect(server, 6)
    refused = []
    numbers = []

    def publish():
        number = len(refused)
        payload = number.to_bytes(4) * 2500
        server.context.Post(lambda context: refused.append(context.Broadcast(ids, payload)))
        assert [client.read_frame() for client in clients] == [(BINARY, payload)] * 5
        if not refused[number]:
            numbers.append(number)

    wait_until(lambda: publish() or refused[-1])
    publish()
    assert refused[-2:] == [ids[:1]] * 2
    assert [slow.read_frame()[1][:4] for _ in numbers] == [number.to_bytes(4) for number in numbers]
    if slow_consumer == "close":
        assert slow.read_close() == (1013, "reading too slowly")
        return
    wait_until(lambda: not server.context.Conn(ids[0]).outbox_bytes)
    for _ in range(3):
        publish()
        assert refused[-1] == []
        assert slow.read_frame()[1][:4] == (len(refused) - 1).to_bytes(4)


@pytest.mark.parametrize(
    ("message", "error"), [(5, TypeError), (None, TypeError), (["a"], TypeError), ("\udfff", ValueError)]
)
def test_broadcast_refuses_what_is_no_message_before_anybody_gets_it(serve, message, error):
    server = serve()
    (client,), ids = connect(server)
    for some_ids in (ids, []):
        with pytest.raises(error):
            server.context.Broadcast(some_ids, message)
    server.context.Write(ids[0], b"unharmed")
    assert client.read_frame() == (BINARY, b"unharmed")


DEFLATE = [("Sec-WebSocket-Extensions", "permessage-deflate")]


def count_calls(monkeypatch, owner, name):
    calls = []
    function = getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.mark.parametrize("message", [b"binary" * 2000, "text" * 3000, bytearray(b"buffer" * 2000)], ids=type)
def test_a_broadcast_is_encoded_once(idle, message, memory):
    server = idle()
    clients, ids = connect(server, 8)
    grown = []

    def publish(context):
        before = memory()
        assert context.Broadcast(ids, message) == []
        grown.append(memory() - before)

    server.context.Post(publish)
    server.context.EventLoopIteration()
    # The frame, and the bytes it was made of where they are not the message; not a frame for each of the eight.
    assert grown[0] < 3 * len(message)
    for client in clients:
        assert client.read_frame()[1] == (message.encode() if isinstance(message, str) else message)


#: Each with the window of what we send to it; `None` for no compression at all.
OFFERS = (
    (None, []),
    (15, DEFLATE),
    (9, [("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=9")]),
)


@pytest.mark.parametrize("size", [128, 100_000])
@pytest.mark.parametrize("how", ["Write", "Write of a bytearray", "WriteText", "Broadcast"])
def test_a_message_is_compressed_once_for_all_with_the_same_parameters(serve, size, how, monkeypatch):
    server = serve(compression="deflate")
    peers = [(bits, server.client(headers=headers)) for _ in range(4) for bits, headers in OFFERS]
    wait_until(lambda: len(server.handler.of("accepted")) == len(peers))
    compressed = count_calls(monkeypatch, Deflate, "compress")
    message = b"to each in turn! " * (size // 16)
    ids = range(1, len(peers) + 1)
    if how == "Broadcast":
        assert server.context.Broadcast(ids, message) == []
    for id in ids if how != "Broadcast" else ():
        if how == "WriteText":
            assert server.context.WriteText(id, message.decode()) is None
        else:
            assert server.context.Write(id, message if how == "Write" else bytearray(message)) is None
    assert len(compressed) == 2, "once for either window"
    opcode = TEXT if how == "WriteText" else BINARY
    for bits, client in peers:
        assert (inflate(client, bits) if bits else client.read_frame()) == (opcode, message)


def test_a_short_message_is_sent_as_it_is(serve):
    server = serve(compression="deflate", compression_min_bytes=100)
    (client,), (id,) = connect(server, 1, headers=DEFLATE)
    server.context.Write(id, bytes(99))
    assert client.read_frame() == (BINARY, bytes(99))
    server.context.Write(id, bytes(100))
    assert inflate(client) == (BINARY, bytes(100))


def test_contexts_are_kept_where_that_is_chosen(serve, monkeypatch):
    server = serve(compression="deflate", compression_takeover=True)
    without = [("Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover")]
    clients = [server.client(headers=headers) for headers in (DEFLATE, DEFLATE, without, without, [])]
    wait_until(lambda: len(server.handler.of("accepted")) == 5)
    compressed = count_calls(monkeypatch, Deflate, "compress")
    message = random.Random(4).randbytes(200) + b"and so on " * 10
    lengths = []
    inflaters = [zlib.decompressobj(-12) for _ in range(4)]
    for _ in range(3):
        assert server.context.Broadcast([1, 2, 3, 4, 5], message) == []
        for client, inflater in zip(clients, inflaters, strict=False):
            _, payload = read_compressed(client)
            lengths.append(len(payload))
            if client in clients[2:]:
                inflater = zlib.decompressobj(-12)
            assert inflater.decompress(payload + b"\x00\x00\xff\xff") == message
        assert clients[4].read_frame() == (BINARY, message)
    # Equal bytes, one after the other: those who keep no context get the frame they got before.
    assert len(compressed) == 2 * 3 + 1
    assert [length < 50 for length in lengths] == [False] * 4 + [True, True, False, False] * 2


@pytest.mark.parametrize("takeover", [False, True])
def test_an_idle_connection_that_negotiated_compression_takes_no_more_memory(serve, takeover):
    held = {}
    for headers in ([], DEFLATE):
        server = serve(compression="deflate", compression_takeover=takeover)
        connect(server, 10, headers=headers)
        gc.collect()
        tracemalloc.start()
        try:
            clients, _ = connect(server, 40, headers=headers)
            gc.collect()
            held[bool(headers)] = tracemalloc.get_traced_memory()[0] / len(clients)
        finally:
            tracemalloc.stop()
    assert held[True] - held[False] < 2048


@pytest.mark.parametrize("parts", [1, 5])
def test_a_bomb_takes_no_more_memory_than_the_limit(serve, parts):
    """67 MB in 65 KB, as one frame or as fragments of a message."""
    server = serve(compression="deflate", max_message_bytes=4 << 20)
    (client,), _ = connect(server, 1, headers=DEFLATE)
    compressor = zlib.compressobj(9, wbits=-15)
    bomb = compressor.compress(bytes(64 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
    step = len(bomb) // parts + 1
    tracemalloc.start()
    try:
        for start in range(0, len(bomb), step):
            first = 0x42 if start == 0 else 0
            client.send_frame(first, bomb[start : start + step], fin=start + step >= len(bomb))
        assert client.read_close()[0] == 1009
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < (4 << 20) + 1_000_000, "the bomb went off"


def read_compressed(client):
    """Read one compressed frame; return its opcode and payload."""
    while (header := frames.parse_header(client.buffer, 0, len(client.buffer))) is None or len(
        client.buffer
    ) < header.size + header.length:
        client.fill()
    assert header.first & 0xF0 == 0xC0, "FIN and RSV1"
    end = header.size + header.length
    payload, client.buffer = client.buffer[header.size : end], client.buffer[end:]
    return header.first & 0x0F, payload


def inflate(client, bits=15):
    """Read one compressed frame (RFC 7692 section 7.2.2); return its opcode and message."""
    opcode, payload = read_compressed(client)
    return opcode, zlib.decompress(payload + b"\x00\x00\xff\xff\x01\x00\x00\xff\xff", -bits)


# -- Close -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_close_sends_any_code_that_may_be_sent(serve, code):
    server = serve()
    (client,), (id,) = connect(server)
    assert server.context.Close(id, code, "because") is None
    assert client.read_close() == (code, "because")


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        *((code, "", ValueError) for code in (-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 70000)),
        (True, "", TypeError),
        ("1000", "", TypeError),
        (1000.0, "", TypeError),
        (None, "", TypeError),
        (1000, b"", TypeError),
        (1000, None, TypeError),
    ],
)
def test_close_refuses_what_may_not_be_sent(serve, code, reason, error):
    """RFC 6455 sections 7.4.1 and 7.4.2. The connection stays as it is, and an unknown id makes no difference."""
    server = serve()
    (client,), (id,) = connect(server)
    for some_id in (id, 12345):
        with pytest.raises(error):
            server.context.Close(some_id, code, reason)
    client.send_binary(b"still open")
    assert client.read_frame() == (BINARY, b"still open")


def test_a_long_reason_is_cut_at_a_character_s_edge(serve):
    """RFC 6455 section 5.5: a control frame's payload has 125 bytes at most, and 2 of them are the code."""
    server = serve()
    (client,), (id,) = connect(server)
    server.context.Close(id, 1000, "é" * 100)
    assert client.read_close() == (1000, "é" * 61)


def test_closing_again_and_closing_what_is_not_there_do_nothing(serve):
    server = serve()
    (client,), (id,) = connect(server)
    server.context.Close(id, 4000)
    server.context.Close(id, 4001)
    client.send_close(4000)
    assert client.read_frame() == (CLOSE, b"\x0f\xa0")
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    server.context.Close(id, 4002)
    assert server.handler.closed == [("closed", id, 4000, "")]


def test_a_close_from_its_own_callback_follows_what_the_callback_wrote(serve):
    def answer(context, id, message):
        context.Write(id, message)
        context.Close(id, 4000, "that was it")
        assert isinstance(context.Write(id, b"too late"), ConnClosing)

    server = serve(Recorder(answer))
    client = server.client()
    client.send_binary(b"hello")
    assert client.read_frame() == (BINARY, b"hello")
    assert client.read_close() == (4000, "that was it")
    client.send_close(4000)
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.context.Stats().callback_errors == 0


# -- messages in -------------------------------------------------------------------------------------------------


def test_a_handler_without_text_received_gets_text_as_its_bytes(serve):
    server = serve(Recorder())
    client = server.client()
    client.send_text("häß")
    client.send_binary(b"\xff")
    wait_until(lambda: len(server.handler.messages) == 2)
    assert server.handler.messages == ["häß".encode(), b"\xff"]
    assert [type(message) for message in server.handler.messages] == [bytes, bytes]


def test_a_handler_with_text_received_gets_text_there_and_bytes_in_message_received(serve):
    class Texts(Recorder):
        def TextReceived(self, context, id, text):
            self.events.append(("text", id, text))

    server = serve(Texts())
    client = server.client()
    client.send_text("häß")
    client.send_binary(b"\xff")
    client.send_text("")
    wait_until(lambda: len(server.handler.events) == 4)
    assert server.handler.events[1:] == [("text", 1, "häß"), ("message", 1, b"\xff"), ("text", 1, "")]


# -- ConnRequested -----------------------------------------------------------------------------------------------


def ask(server, **kwargs):
    """Send an upgrade request; return the client, its response not yet read."""
    client = server.client(handshake=False)
    client.send(client.request(**kwargs))
    return client


def read_response(client):
    """Return (status line, headers, body) of a refusal."""
    head, _, body = (client.read_head() + client.read_to_end()).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    return lines[0], dict(line.split(": ", 1) for line in lines[1:]), body


def test_conn_requested_accepts_with_none_and_knows_what_was_asked_for(serve):
    server = serve(Judge())
    client = server.client(path="/a%20room?token=%20x", headers=[("Cookie", "id=5")])
    client.send_binary(b"hello")
    assert client.read_frame() == (BINARY, b"hello")
    (request,) = server.handler.requests
    assert (request.path, request.query) == ("/a room", "token=%20x")
    assert request.headers["cookie"] == "id=5"
    assert request.peer == client.sock.getsockname()
    assert request.local == (server.host, server.port)
    assert request.tls is False


def test_conn_requested_refuses_with_status_text_and_headers(serve):
    reject = gowsev.Reject(401, "Who are you?\n", [("WWW-Authenticate", "Basic"), ("X-Reason", "none")])
    server = serve(Judge(reject))
    status, headers, body = read_response(ask(server))
    assert status == "HTTP/1.1 401 Unauthorized"
    assert headers["WWW-Authenticate"] == "Basic"
    assert headers["X-Reason"] == "none"
    assert headers["Content-Length"] == "13"
    assert body == b"Who are you?\n"
    assert server.context.Stats().rejected == 1
    assert server.handler.events == [], "no ConnAccepted, no ConnClosed"


@pytest.mark.parametrize("verdict", [True, False, 403, "no", gowsev.Reject])
def test_a_verdict_that_is_none_of_these_is_an_error_and_lets_nobody_in(serve, verdict, caplog):
    server = serve(Judge(verdict))
    status, _, _ = read_response(ask(server))
    assert status == "HTTP/1.1 500 Internal Server Error"
    assert "ConnRequested must return None, an Accept or a Reject" in caplog.text
    assert server.context.Stats().callback_errors == 1


def test_a_judge_that_leaves_the_loop_lets_nobody_in(idle):
    def interrupt(context, request):
        raise KeyboardInterrupt

    handler = Recorder()
    handler.ConnRequested = interrupt
    server = idle(handler)
    client = ask(server)
    with pytest.raises(KeyboardInterrupt):
        server.context.EventLoopIteration()
    assert read_response(client)[0] == "HTTP/1.1 500 Internal Server Error"


def test_nobody_is_judged_who_has_given_up_waiting(idle):
    server = idle(Judge(), handshake_timeout=0.05)
    client = ask(server)
    assert read_response(client)[0] == "HTTP/1.1 503 Service Unavailable"
    server.context.SetTimeout(0)
    server.context.EventLoopIteration()
    assert server.handler.requests == []


def test_requests_that_break_the_rules_are_not_shown_to_the_handler(serve):
    server = serve(Judge())
    client = server.client(handshake=False)
    client.send(client.request().replace(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8"))
    assert read_response(client)[0] == "HTTP/1.1 400 Bad Request"
    assert server.handler.requests == []
    assert server.context.Stats().rejected == 1


# -- max_connections ---------------------------------------------------------------------------------------------


def test_more_connections_than_allowed_are_answered_with_503_until_one_ends(serve):
    server = serve(max_connections=2)
    clients, _ = connect(server, 2)
    status, headers, _ = read_response(ask(server))
    assert status == "HTTP/1.1 503 Service Unavailable"
    assert headers["Connection"] == "close"
    assert server.context.Stats().rejected == 1
    clients[0].close()
    wait_until(lambda: server.handler.closed)
    connect(server)
    assert server.context.Stats().connections == 2


def test_no_more_than_allowed_get_in_though_all_were_judged_before_any_was_in(idle):
    server = idle(Judge(), max_connections=1)
    clients = [ask(server) for _ in range(3)]
    wait_until(lambda: server.context.Stats().queued_events == 3)
    for _ in range(3):
        server.context.EventLoopIteration()
    statuses = sorted(client.read_head().split(b"\r\n")[0] for client in clients)
    assert statuses == [b"HTTP/1.1 101 Switching Protocols", *[b"HTTP/1.1 503 Service Unavailable"] * 2]
    assert server.context.Stats().connections == 1


# -- AddConn -----------------------------------------------------------------------------------------------------


def test_an_added_connection_is_like_any_other_but_for_conn_accepted(serve):
    far, near = serve(), serve(Recorder())
    dialled = gowsev.Dial(far.url)
    id = near.context.AddConn(dialled)
    assert dialled.id == id
    assert near.context.Conn(id).peer == (far.host, far.port)
    # A server fails an unmasked frame with 1002 (RFC 6455 section 5.1), so that the echoes show the masking.
    messages = [b"", b"small", bytes(200), bytes(100_000)]
    for message in messages:
        assert near.context.Write(id, message) is None
    assert near.context.Broadcast([id], b"broadcast") == []
    wait_until(lambda: len(near.handler.messages) == 5)
    assert near.handler.messages == [*messages, b"broadcast"]
    near.context.Close(id, 4000, "done")
    wait_until(lambda: near.handler.closed and far.handler.closed)
    assert near.handler.closed == [("closed", id, 4000, "")]
    assert far.handler.closed == [("closed", 1, 4000, "done")]
    assert not near.handler.of("accepted")
    stats = near.context.Stats()
    assert (stats.added, stats.accepted, stats.closed) == (1, 0, 1)


def test_clients_and_outside_connections_share_a_loop_and_a_broadcast(serve):
    far, near = serve(Recorder()), serve()
    outside = near.context.AddConn(gowsev.Dial(far.url))
    client = near.client()
    wait_until(lambda: near.handler.of("accepted"))
    inside = near.handler.events[0][1]
    assert inside != outside
    assert near.context.Broadcast([inside, outside], "to all") == []
    assert client.read_frame() == (TEXT, b"to all")
    wait_until(lambda: far.handler.messages == [b"to all"])


def test_an_added_connection_cannot_be_added_again_nor_used_by_itself(serve):
    server = serve()
    dialled = gowsev.Dial(server.url)
    server.context.AddConn(dialled)
    with pytest.raises(ValueError, match="added to a Context before"):
        server.context.AddConn(dialled)
    for use in (dialled.ReadMessage, lambda: dialled.WriteMessage(gowsev.BinaryMessage, b"x"), dialled.Close):
        with pytest.raises(RuntimeError, match="belongs to a Context"):
            use()
    assert server.context.Stats().added == 1


@pytest.mark.parametrize("thing", [None, 1, "ws://localhost", object()])
def test_what_cannot_be_added_is_a_type_error_that_says_what_can(serve, thing):
    server = serve()
    with pytest.raises(TypeError, match="Dial"):
        server.context.AddConn(thing)
    with gevent.socket.socket() as sock, pytest.raises(TypeError, match="Dial"):
        server.context.AddConn(sock)


# -- Post --------------------------------------------------------------------------------------------------------


def test_posts_run_in_order_as_events_of_the_loop(idle):
    server = idle(listen=False)
    calls = []

    def note(context, *args):
        calls.append((context, *args, gevent.getcurrent()))
        if args == (0,):
            context.Post(note, "posted inside")

    for number in range(3):
        assert server.context.Post(note, number) is None
    assert calls == []
    assert server.context.Stats().queued_events == 3
    for _ in range(4):
        server.context.EventLoopIteration()
    me = gevent.getcurrent()
    assert calls == [(server.context, what, me) for what in (0, 1, 2, "posted inside")]


def test_posts_of_threads_under_load_all_run_each_thread_s_in_order(serve):
    server = serve()
    server.context.SetTimeout(None)
    count, seen = 2000, []

    def post(name):
        for number in range(count):
            server.context.Post(lambda context, *what: seen.append(what), name, number)

    threads = [threading.Thread(target=post, args=(name,), daemon=True) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    pooled = [gevent.get_hub().threadpool.spawn(post, name) for name in ("c", "d")]
    client = server.client()  # and the loop does its other work meanwhile
    for number in range(50):
        client.send_binary(b"%d" % number)
        assert client.read_frame() == (BINARY, b"%d" % number)
    post("here")
    wait_until(lambda: len(seen) == 5 * count)
    for name in ("a", "b", "c", "d", "here"):
        assert [number for who, number in seen if who == name] == list(range(count))
    gevent.joinall(pooled, timeout=PATIENCE)


@pytest.mark.parametrize("callback", [None, 5, "print"])
def test_only_what_can_be_called_is_posted(idle, callback):
    server = idle(listen=False)
    with pytest.raises(TypeError, match="callback must be callable"):
        server.context.Post(callback)
    with pytest.raises(TypeError, match="callback must be callable"):
        server.context.AfterFunc(0, callback)
    assert server.context.Stats().queued_events == 0


# -- AfterFunc ---------------------------------------------------------------------------------------------------


def test_timers_run_in_the_loop_in_the_order_in_which_they_are_due(serve):
    server = serve()
    calls = []

    def note(context, name):
        calls.append(name)
        assert context is server.context
        assert gevent.getcurrent() is server.loop

    for delay, name in [(0.15, "third"), (0.05, "first"), (timedelta(milliseconds=100), "second"), (0, "at once")]:
        assert isinstance(server.context.AfterFunc(delay, note, name), gowsev.Timer)
    assert calls == [], "not before the loop comes to it"
    wait_until(lambda: len(calls) == 4)
    assert calls == ["at once", "first", "second", "third"]
    assert server.context.Stats().callback_errors == 0


def test_a_delay_must_be_given(idle):
    with pytest.raises(TypeError, match="delay"):
        idle(listen=False).context.AfterFunc(None, print)


def test_a_stopped_timer_does_not_run(idle):
    server = idle(listen=False)
    timer = server.context.AfterFunc(0.01, pytest.fail)
    assert timer.Stop() is True
    assert timer.Stop() is False
    server.context.SetTimeout(0.05)
    server.context.EventLoopIteration()
    assert server.handler.events == [("timeout",)]


def test_a_timer_stopped_between_its_time_and_its_turn_does_not_run(idle):
    server = idle(listen=False)
    timer = server.context.AfterFunc(0, pytest.fail)
    wait_until(lambda: server.context.Stats().queued_events == 1)
    assert timer.Stop() is True
    server.context.EventLoopIteration()
    assert server.context.Stats().callback_errors == 0


def test_a_timer_that_has_run_or_is_running_cannot_be_stopped(idle):
    server = idle(listen=False)
    results = []
    timer = server.context.AfterFunc(0, lambda context: results.append(timer.Stop()))
    server.context.EventLoopIteration()
    assert results == [False]
    assert timer.Stop() is False


def test_a_timer_may_start_the_next_one(serve):
    server = serve()
    ticks = []

    def tick(context):
        ticks.append(None)
        if len(ticks) < 5:
            context.AfterFunc(0.001, tick)

    server.context.AfterFunc(0, tick)
    wait_until(lambda: len(ticks) == 5)


# -- Shutdown ----------------------------------------------------------------------------------------------------


def answer_close(client):
    """Read up to the close frame, answer it, read to the end and close; return its code and reason."""
    closed = client.read_close()
    client.send_close(closed[0])
    assert client.read_to_end() == b""
    client.close()
    return closed


def test_shutdown_closes_all_with_1001_and_the_loop_ends_after_the_last_conn_closed(serve):
    server = serve()
    clients, ids = connect(server, 3)
    assert server.context.Shutdown(PATIENCE) is None
    for client in clients[:2]:
        assert answer_close(client) == (1001, "shutting down")
    wait_until(lambda: len(server.handler.closed) == 2)
    assert not server.loop.ready()
    assert answer_close(clients[2]) == (1001, "shutting down")
    server.loop.join(PATIENCE)
    assert server.loop.successful()
    assert sorted(server.handler.closed) == [("closed", id, 1001, "") for id in ids]
    assert server.context.Stats().connections == 0


def test_what_was_written_before_a_shutdown_is_sent_first(serve):
    server = serve(outbox_bytes=None)
    (client,), (id,) = connect(server)
    for _ in range(20):
        assert server.context.Write(id, bytes(1 << 20)) is None
    assert server.context.Stats().outbox_bytes > 0
    server.context.Shutdown(PATIENCE)
    for _ in range(20):
        assert client.read_frame() == (BINARY, bytes(1 << 20))
    assert answer_close(client) == (1001, "shutting down")
    server.loop.join(PATIENCE)
    assert server.loop.ready()


@pytest.mark.parametrize("close_timeout", [None, 3600, 0.1])
def test_a_peer_that_never_answers_is_cut_off_at_the_shorter_timeout(serve, close_timeout):
    server = serve(close_timeout=close_timeout, ping_interval=0.1)
    (client,), (id,) = connect(server)
    server.context.Shutdown(0.1 if close_timeout != 0.1 else 3600)
    server.loop.join(PATIENCE)
    assert server.loop.ready()
    assert server.handler.closed == [("closed", id, 1006, "")]
    assert client.read_close() == (1001, "shutting down")


def test_a_second_shutdown_may_be_more_impatient(serve):
    server = serve(close_timeout=None, ping_interval=0.1)
    (client,), (id,) = connect(server)
    server.context.Shutdown(None)
    assert client.read_close() == (1001, "shutting down")
    server.context.Shutdown(3600)
    assert not server.loop.ready()
    server.context.Shutdown(0)
    server.loop.join(PATIENCE)
    assert server.handler.closed == [("closed", id, 1006, "")]


def test_shutdown_from_inside_a_callback(idle):
    def answer(context, id, message):
        context.Write(id, b"bye")
        context.Shutdown(PATIENCE)

    server = idle(Recorder(answer))
    (client,), _ = connect(server)
    client.send_binary(b"end it")
    loop = gevent.spawn(server.context.EventLoop)
    assert client.read_frame() == (BINARY, b"bye")
    assert answer_close(client) == (1001, "shutting down")
    loop.join(PATIENCE)
    assert loop.successful()
    assert server.context.Stats().callback_errors == 0


def test_shutdown_from_conn_closed_of_the_last_connection(idle):
    class Last(Recorder):
        def ConnClosed(self, context, id):
            super().ConnClosed(context, id)
            context.Shutdown()

    server = idle(Last())
    (client,), _ = connect(server)
    client.close()
    with gevent.Timeout(PATIENCE):
        server.context.EventLoop()
    assert len(server.handler.closed) == 1


@pytest.mark.parametrize("timeout", [None, 60])
def test_shutdown_from_another_greenlet_wakes_a_loop_that_waits(idle, timeout):
    server = idle()
    server.context.SetTimeout(timeout)
    gevent.spawn_later(0.01, server.context.Shutdown)
    with gevent.Timeout(PATIENCE):
        server.context.EventLoop()
    assert server.handler.events == []


def test_with_nothing_connected_shutdown_ends_the_loop_at_once_and_for_good(idle):
    server = idle()
    server.context.Shutdown()
    assert server.context.EventLoopIteration() is False
    assert server.context.EventLoopIteration() is False
    server.context.EventLoop()
    server.context.Shutdown()
    assert server.context.EventLoopIteration() is False
    assert server.handler.events == []


def test_iterations_are_true_until_the_shutdown_has_ended(idle):
    server = idle()
    (client,), (id,) = connect(server)
    server.context.Shutdown(PATIENCE)
    assert client.read_close() == (1001, "shutting down")
    client.send_binary(b"meanwhile")
    client.send_close()
    client.close()
    server.context.SetTimeout(PATIENCE)
    results = []
    while not results or results[-1]:
        results.append(server.context.EventLoopIteration())
    assert server.handler.events[1:] == [("message", id, b"meanwhile"), ("closed", id, 1000, "")]
    assert results[-1] is False


def test_there_is_no_timeout_callback_any_more_while_shutting_down(idle):
    server = idle()
    connect(server)
    server.context.SetTimeout(0)
    server.context.EventLoopIteration()
    assert server.handler.of("timeout") == [("timeout",)]
    server.context.Shutdown(PATIENCE)
    for _ in range(5):
        assert server.context.EventLoopIteration() is True
    assert server.handler.of("timeout") == [("timeout",)]


def test_what_was_posted_before_a_shutdown_still_runs(idle):
    server = idle(listen=False)
    calls = []
    for number in range(3):
        server.context.Post(lambda context, number: calls.append(number), number)
    server.context.Shutdown()
    server.context.EventLoop()
    assert calls == [0, 1, 2]


def test_after_a_shutdown_nobody_gets_in(serve, certificate):
    server = serve()
    waiting = server.client(handshake=False)
    waiting.send(b"GET / HTTP/1.1\r\n")
    (client,), _ = connect(server)
    server.context.Shutdown(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        RawClient(server.host, server.port)
    waiting.send(RawClient.request().partition(b"\r\n")[2])
    assert read_response(waiting)[0] == "HTTP/1.1 503 Service Unavailable"
    for listen in (server.context.ListenAndServe, lambda port: server.context.ListenAndServeTLS(port, *certificate)):
        with pytest.raises(RuntimeError, match="shut down"):
            listen("127.0.0.1:0")
    assert answer_close(client) == (1001, "shutting down")
    server.loop.join(PATIENCE)
    with pytest.raises(RuntimeError, match="shut down"):
        server.context.Post(print)


def test_after_a_shutdown_nothing_is_added(serve):
    far, near = serve(), serve()
    near.context.Shutdown()
    with gowsev.Dial(far.url) as dialled:
        with pytest.raises(RuntimeError, match="shut down"):
            near.context.AddConn(dialled)
        dialled.WriteMessage(gowsev.BinaryMessage, b"still mine")
        assert dialled.ReadMessage() == (gowsev.BinaryMessage, b"still mine")


def test_whoever_waits_to_be_judged_when_the_shutdown_ends_gets_503(idle):
    handler = Recorder()
    handler.ConnRequested = lambda context, request: context.Shutdown()
    server = idle(handler)
    client = ask(server)
    server.context.EventLoop()
    assert read_response(client)[0] == "HTTP/1.1 503 Service Unavailable"
    assert server.handler.events == []


def test_a_request_that_asks_for_the_shutdown_gets_its_answer(serve):
    """The page of an administrator, in the WSGI application beside the WebSockets."""

    def application(environ, start_response):
        server.context.Shutdown(PATIENCE)
        start_response("200 OK", [("Content-Length", "4")])
        return [b"done"]

    server = serve(http_app=application)
    (client,), _ = connect(server)
    page = server.client(handshake=False)
    page.send(b"GET /shutdown HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert read_response(page)[2] == b"done"
    assert answer_close(client) == (1001, "shutting down")
    server.loop.join(PATIENCE)
    assert server.loop.ready()


@pytest.mark.parametrize("others", [0, 1])
def test_a_shutdown_between_the_verdict_and_the_upgrade_closes_what_has_just_come(serve, others, monkeypatch):
    handler = Recorder(echo)
    handler.ConnRequested = lambda context, request: None
    server = serve(handler)
    clients, _ = connect(server, others)
    run_websocket = wsgi.Upgrader.run_websocket

    def late(upgrader):
        server.context.Shutdown(PATIENCE)
        run_websocket(upgrader)

    monkeypatch.setattr(wsgi.Upgrader, "run_websocket", late)
    clients.append(server.client())
    for client in clients:
        assert answer_close(client) == (1001, "shutting down")
    server.loop.join(PATIENCE)
    assert server.loop.ready()
    assert [event[0] for event in server.handler.events] == ["accepted"] * len(clients) + ["closed"] * len(clients)


# -- ShutdownOnSignal -------------------------------------------------------------------------------------------------


@pytest.fixture
def signals():
    """Signals go to whom they went before, when the test is over."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_every_context_down_that_wants_it(serve, signals, number):
    servers = [serve(), serve()]
    clients = [server.client() for server in servers]
    for server in servers:
        server.context.ShutdownOnSignal()
    signal.raise_signal(number)
    for server, client in zip(servers, clients, strict=True):
        assert client.read_close() == (1001, "shutting down")
        client.send_close(1001)
        client.close()
        server.loop.join(PATIENCE)
        assert server.handler.closed == [("closed", 1, 1001, "")]


def test_a_handler_that_was_there_hears_of_a_signal_too(serve, signals):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    server = serve()
    server.context.ShutdownOnSignal()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # impatient
    assert heard == [signal.SIGTERM] * 2
    server.loop.join(PATIENCE)
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM] * 3
    assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>", "for a context that has ended, nothing is left"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_only_a_second_ctrl_c_raises(serve, signals, first):
    server = serve()
    client = server.client()
    server.context.ShutdownOnSignal(timeout=PATIENCE)
    signal.raise_signal(first)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert client.read_close() == (1001, "shutting down")


def test_those_that_do_not_answer_have_the_timeout(serve, signals):
    server = serve(close_timeout=None)
    client = server.client()
    server.context.ShutdownOnSignal(timeout=0.1)
    signal.raise_signal(signal.SIGTERM)
    assert client.read_close() == (1001, "shutting down")
    server.loop.join(PATIENCE)
    assert server.handler.closed == [("closed", 1, 1006, "")]


def test_another_server_is_closed_before_the_connections_and_serves_until_they_are(idle, signals):
    server = idle(listen=False)
    loop = gevent.spawn(server.context.EventLoop)
    other = WSGIServer(listening(), server.context.ServeHTTP, log=None)
    other.start()
    server.context.ShutdownOnSignal(other)
    main = gevent.spawn(other.serve_forever)
    client = RawClient("127.0.0.1", other.server_port)
    signal.raise_signal(signal.SIGTERM)
    assert client.read_close() == (1001, "shutting down")
    with pytest.raises(ConnectionRefusedError):
        RawClient("127.0.0.1", other.server_port)
    gevent.sleep(0.1)
    assert not main.ready()
    client.send_close(1001)
    client.close()
    main.join(PATIENCE)
    assert main.successful()
    assert loop.successful()
    assert server.handler.closed == [("closed", 1, 1001, "")]


def test_a_server_serves_no_longer_than_the_connections_where_nobody_drives_the_loop(idle, signals):
    server = idle(listen=False)
    other = WSGIServer(listening(), server.context.ServeHTTP, log=None)
    other.start()
    server.context.ShutdownOnSignal(other)
    main = gevent.spawn(other.serve_forever)
    signal.raise_signal(signal.SIGTERM)
    main.join(PATIENCE)
    assert main.successful()


def test_a_server_that_the_program_has_stopped_itself_keeps_no_connection_open(serve, signals):
    server = serve()
    client = server.client()
    other = WSGIServer(listening(), server.context.ServeHTTP, log=None)
    other.start()
    server.context.ShutdownOnSignal(other)
    other.stop()
    signal.raise_signal(signal.SIGTERM)
    assert client.read_close() == (1001, "shutting down")


def test_a_server_that_is_not_started_is_refused(idle):
    server = WSGIServer(listening(), None)
    with pytest.raises(ValueError, match=r"^servers must have been started, which <WSGIServer .*> is not"):
        idle().context.ShutdownOnSignal(server)
    server.close()


def test_only_the_main_thread_handles_signals():
    def elsewhere():
        context = gowsev.MakeContext(gowsev.Handler())
        with pytest.raises(ValueError, match="main thread"):
            context.ShutdownOnSignal()

    in_real_thread(elsewhere)


FIRST_MOMENTS = """
import os, signal, sys
import gowsev

codes = []
for _ in range(30):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)  # the end of one that is deaf
        context = gowsev.MakeContext(gowsev.Handler())
        context.ShutdownOnSignal()
        context.ListenAndServe("127.0.0.1:0")
        os.write(writer, b"x")
        context.EventLoop()
        sys.exit()
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    os.kill(child, signal.SIGTERM)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes)
"""


@pytest.mark.long
def test_a_signal_in_the_first_moment_of_a_program_is_heard(run, tmp_path):
    script = tmp_path / "moments.py"
    script.write_text(FIRST_MOMENTS)
    program = run(script)
    assert program.process.wait(PATIENCE * 4) == 0
    assert program.output == f"{[0] * 30}\n"


FORKS = """
import collections, itertools, multiprocessing, os, signal
import gowsev

reader, writer = os.pipe()

def deaf():
    signal.alarm(20)  # its end, if need be
    step = itertools.chain(map(os.write, [writer], [b"x"]), itertools.repeat(None))
    collections.deque(step, maxlen=0)  # one step of Python's, in which it calls no handlers

for _ in range(2):
    gowsev.MakeContext(gowsev.Handler()).ShutdownOnSignal()
child = multiprocessing.get_context("fork").Process(target=deaf)
child.start()
os.read(reader, 1)
child.terminate()
child.join()
print("ended with", child.exitcode)
"""


def test_a_forked_child_is_ended_by_signals_as_any_other(run, tmp_path):
    script = tmp_path / "forks.py"
    script.write_text(FORKS)
    program = run(script)
    assert program.wait() == 0
    assert program.output == "ended with -15\n"


def blocked_signals():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_signal_in_the_very_moment_of_a_fork_ends_the_child(idle, signals):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    idle().context.ShutdownOnSignal()
    blocked = blocked_signals()
    codes = []
    for _ in range(30):
        child = os.fork()
        if not child:
            try:
                signal.alarm(1)  # the end of one that is deaf
                signal.pause()
            finally:
                os._exit(1)
        os.kill(child, signal.SIGTERM)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [-signal.SIGTERM] * 30
    assert blocked_signals() == blocked


def test_a_forked_child_has_the_handlers_of_the_program_and_the_signals_that_it_blocks(idle, signals):
    """Those of the program need no protection: Python's own may be late, and a blocked signal stays blocked."""
    own = [lambda number, frame: None, signal.default_int_handler]
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), own, strict=True):
        signal.signal(number, handler)
    for _ in range(2):
        idle().context.ShutdownOnSignal()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        child = os.fork()
        if not child:
            try:
                now = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
                os._exit(0 if now == own and blocked_signals() == blocked | {signal.SIGTERM} else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0) == (child, 0)
        assert blocked_signals() == blocked | {signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


HANGS = """
import gowsev

class Busy(gowsev.Handler):
    def ConnAccepted(self, context, id):
        print("busy", flush=True)
        while True:
            pass

context = gowsev.MakeContext(Busy())
context.ShutdownOnSignal()
host, port = context.ListenAndServe("127.0.0.1:0")
print(f"listening on port {port}", flush=True)
context.EventLoop()
"""


def test_a_second_ctrl_c_ends_a_callback_that_hangs(run, tmp_path):
    script = tmp_path / "busy.py"
    script.write_text(HANGS)
    program = run(script)
    client = RawClient("127.0.0.1", program.port())
    program.wait_for("busy")
    program.process.send_signal(signal.SIGINT)
    gevent.sleep(0.1)  # two at once are one
    assert program.end(signal.SIGINT) != 0
    assert "KeyboardInterrupt" in program.output
    client.close()


# -- Conn and MustConn -------------------------------------------------------------------------------------------------


def test_must_conn_raises_where_conn_is_none(serve):
    server = serve()
    server.client()
    wait_until(lambda: server.handler.of("accepted"))
    assert server.context.MustConn(1).path == server.context.Conn(1).path == "/"
    assert server.context.Conn(2) is None
    with pytest.raises(IdNotFound, match="id not found") as missing:
        server.context.MustConn(2)
    assert missing.value.id == 2


# -- Stats -------------------------------------------------------------------------------------------------------


def test_stats_count_what_has_happened_and_what_is(serve):
    server = serve(max_connections=2)
    nothing = server.context.Stats()
    assert not any(nothing.round_trips_within.values())
    assert nothing == gowsev.Stats(round_trips_within=nothing.round_trips_within)
    clients, _ = connect(server, 2)
    read_response(ask(server))
    clients[0].send_binary(b"12345")
    assert clients[0].read_frame() == (BINARY, b"12345")
    stats = server.context.Stats()
    assert (stats.connections, stats.accepted, stats.closed, stats.rejected) == (2, 2, 0, 1)
    assert (stats.messages_received, stats.bytes_received) == (1, 11)
    assert (stats.messages_sent, stats.bytes_sent) == (1, 7)

    # Those of connections that have ended go on counting.
    clients[0].send_close()
    assert clients[0].read_close() == (1000, "")
    wait_until(lambda: server.handler.closed)
    later = server.context.Stats()
    assert (later.connections, later.accepted, later.closed, later.added) == (1, 2, 1, 0)
    assert (later.messages_received, later.bytes_received) == (1, 11 + 8)
    assert (later.messages_sent, later.bytes_sent) == (1, 7 + 4)
    assert stats.connections == 2, "a snapshot stays what it was"


def test_stats_count_what_waits(idle):
    server = idle(outbox_bytes=1 << 20, slow_consumer="drop")
    (client,), (id,) = connect(server)
    for number in range(4):
        server.context.Post(lambda context: None)
        client.send_binary(b"%d" % number)
    wait_until(lambda: server.context.Stats().queued_events == 8)
    server.context.Write(id, bytes(20 << 20))
    assert server.context.Write(id, b"x") is not None
    assert server.context.Broadcast([id], b"x") == [id]
    stats = server.context.Stats()
    assert stats.outbox_bytes == server.context.Conn(id).outbox_bytes > 1 << 20
    assert stats.refused_writes == 2
    client.close()
    wait_until(lambda: not sockets_of(server))
    while server.context.Stats().queued_events:
        server.context.EventLoopIteration()
    stats = server.context.Stats()
    assert stats.outbox_bytes == 0
    assert stats.refused_writes == 2


def test_stats_count_callbacks_that_raised(serve, caplog):
    caplog.set_level(logging.CRITICAL, "gowsev")
    server = serve()
    for _ in range(3):
        server.context.Post(lambda context: 1 / 0)
    wait_until(lambda: server.context.Stats().callback_errors == 3)

"""The promises of the library, each under a number; a test fails without the promise that its name begins with.

They are those of docs/single-threaded-loop.md and docs/withstands.md. A seventh, that importing does nothing, needs an
interpreter of its own: `test_layers.py`.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections import defaultdict

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, Recorder, echo, sockets_of, wait_until
from raw import binary

import gowsev
from gowsev.errors import ConnClosing, IdNotFound, OutboxFull
from gowsev.wire import frames
from gowsev.wire.frames import BINARY, FIN

pytestmark = pytest.mark.usefixtures("quiet_hub")


def numbered(count):
    return [b"%d" % number for number in range(count)]


# -- 1: ConnAccepted, the messages in order, one ConnClosed ------------------------------------------------------


class Ordered(gowsev.Handler):
    """Notes each connection's callbacks, and what a write gives inside its `ConnClosed`."""

    def __init__(self):
        self.of = defaultdict(list)
        self.writes = []

    def ConnAccepted(self, context, id):
        self.of[id].append("accepted")

    def MessageReceived(self, context, id, message):
        self.of[id].append(message)
        if len(self.of[id]) % 10 == 0:
            gevent.sleep(0)  # other connections, and the end of this one, may overtake

    def ConnClosed(self, context, id):
        self.of[id].append("closed")
        self.writes.append(context.Write(id, b"too late"))
        self.writes.append(context.WriteText(id, "too late"))
        assert context.Broadcast([id], b"too late") == [id]
        context.Close(id)
        assert context.Conn(id) is not None


ENDS = {
    "close frame": lambda client: client.send_close(),
    "close frame and socket": lambda client: (client.send_close(), client.close()),
    "socket": lambda client: client.close(),
    "violation": lambda client: client.send(frames.encode_frame(FIN | 3, b"", masked=True)),
    "inside a frame": lambda client: (client.send(binary(b"never whole")[:-1]), client.close()),
}


@pytest.mark.parametrize("end", ENDS)
def test_1_each_connection_s_callbacks_come_in_order(serve, end):
    server = serve(Ordered(), inbox_messages=16)
    clients = [server.client() for _ in range(10)]
    sent = numbered(300)

    def talk(client):
        for start in range(0, len(sent), 50):
            client.send(binary(*sent[start : start + 50]))
            gevent.sleep(0)
        ENDS[end](client)

    gevent.joinall([gevent.spawn(talk, client) for client in clients], PATIENCE, raise_error=True)
    wait_until(lambda: server.context.Stats().closed == len(clients))
    gevent.sleep(0.02)
    assert list(server.handler.of.values()) == [["accepted", *sent, "closed"]] * len(clients)
    assert server.context.Stats().callback_errors == 0


def test_1_also_for_messages_in_the_segment_of_the_handshake(serve):
    server = serve(Ordered())
    sent = numbered(600)
    client = server.client(behind=binary(*sent))
    client.send_close()
    wait_until(lambda: server.context.Stats().closed == 1)
    assert server.handler.of[1] == ["accepted", *sent, "closed"]


@pytest.mark.parametrize("end", ENDS)
def test_1_everything_read_before_the_end_is_delivered_before_it(idle, end):
    """The socket is gone before the loop takes the first event."""
    server = idle(Ordered())
    client = server.client()
    sent = numbered(50)
    client.send(binary(*sent))
    ENDS[end](client)
    wait_until(lambda: server.context.Stats().queued_events == 52)
    if end != "violation":
        client.close()
        wait_until(lambda: not sockets_of(server))
    for _ in range(52):
        server.context.EventLoopIteration()
    assert server.handler.of[1] == ["accepted", *sent, "closed"]


def test_1_messages_the_program_is_far_behind_with_are_not_lost_to_a_failing_write(serve):
    server = serve(Recorder(echo))
    client = server.client()
    sent = numbered(2000)
    client.send(binary(*sent))
    client.close()
    wait_until(lambda: server.handler.closed)
    assert server.handler.messages == sent
    assert [event[0] for event in server.handler.events] == ["accepted", *["message"] * 2000, "closed"]


def test_1_nothing_comes_after_conn_closed_whatever_the_peer_goes_on_sending(serve):
    server = serve(Ordered())
    client = server.client()
    client.send(binary(b"good"))
    client.send(frames.encode_frame(FIN | frames.TEXT, b"\xff" * 5000, masked=True)[:4000])
    wait_until(lambda: server.context.Stats().closed == 1)
    client.send(bytes(2000) + binary(b"bad"))
    assert client.read_close()[0] == 1007
    client.close()
    wait_until(lambda: not sockets_of(server))
    gevent.sleep(0.02)
    assert server.handler.of[1] == ["accepted", b"good", "closed"]


def test_1_a_write_inside_conn_closed_and_after_it_gives_an_error(serve):
    server = serve(Ordered())
    client = server.client()
    client.send_close()
    wait_until(lambda: server.context.Stats().closed == 1)
    inside = server.handler.writes
    assert [type(error) for error in inside] == [ConnClosing, ConnClosing]
    after = [server.context.Write(1, b"x"), server.context.WriteText(1, "x")]
    assert [type(error) for error in after] == [IdNotFound, IdNotFound]
    assert [str(error) for error in after] == ["id not found"] * 2
    assert server.context.Broadcast([1], b"x") == [1]


def test_1_also_for_a_connection_that_was_added(serve):
    far, near = serve(Recorder(echo)), serve(Ordered())
    id = near.context.AddConn(gowsev.Dial(far.url))
    sent = numbered(500)
    for message in sent:
        near.context.Write(id, message)
    wait_until(lambda: len(near.handler.of[id]) == 500)
    far.context.Close(1, 4000)
    wait_until(lambda: near.context.Stats().closed == 1)
    assert near.handler.of[id] == [*sent, "closed"]


# -- 2: callbacks only in the loop's greenlet, and one at a time -------------------------------------------------


class Exclusive:
    """Each callback gives others the chance to run, and notes it when another callback takes it."""

    def __init__(self):
        self.inside = None
        self.overlaps = []
        self.greenlets = set()
        self.calls = defaultdict(int)

    def run(self, name):
        if self.inside is not None:
            self.overlaps.append((self.inside, name))
        self.inside = name
        self.greenlets.add(gevent.getcurrent())
        self.calls[name] += 1
        gevent.sleep(0.001 if self.calls[name] % 5 == 0 else 0)
        self.inside = None

    def ConnRequested(self, context, request):
        self.run("ConnRequested")

    def ConnAccepted(self, context, id):
        self.run("ConnAccepted")

    def ConnClosed(self, context, id):
        self.run("ConnClosed")

    def MessageReceived(self, context, id, message):
        self.run("MessageReceived")
        context.Write(id, message)

    def TextReceived(self, context, id, text):
        self.run("TextReceived")
        context.WriteText(id, text)

    def EventLoopTimeout(self, context):
        self.run("EventLoopTimeout")


def test_2_no_callback_runs_outside_the_loop_s_greenlet_and_no_two_at_once(serve):
    handler = Exclusive()
    server = serve(handler)

    def call(context, name):
        handler.run(name)

    def talk():
        client = server.client()
        for number in range(10):
            client.send_binary(b"%d" % number)
            client.send_text(f"{number}")
            assert [client.read_frame()[1] for _ in range(2)] == [b"%d" % number] * 2
            server.context.Post(call, "Post")
            server.context.AfterFunc(0.001, call, "AfterFunc")
        client.send_close()
        assert client.read_close() == (1000, "")
        client.close()

    def post():
        for _ in range(100):
            server.context.Post(call, "Post from a thread")

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    gevent.joinall([gevent.spawn(talk) for _ in range(20)], raise_error=True)
    expected = {
        **dict.fromkeys(["ConnRequested", "ConnAccepted", "ConnClosed"], 20),
        **dict.fromkeys(["MessageReceived", "TextReceived", "Post", "AfterFunc"], 200),
        "Post from a thread": 100,
    }
    wait_until(lambda: {name: handler.calls[name] for name in expected} == expected)
    server.context.SetTimeout(0.001)
    server.context.Post(call, "Post")  # the new timeout holds from the next wait on
    wait_until(lambda: handler.calls["EventLoopTimeout"] > 3)
    assert handler.overlaps == []
    assert handler.greenlets == {server.loop}
    assert server.context.Stats().callback_errors == 0


# -- 3: writes never block ---------------------------------------------------------------------------------------

WRITES = {
    "Write": lambda context, peer: context.Write(peer, bytes(100_000)),
    "small Write": lambda context, peer: context.Write(peer, bytes(100)),
    "WriteText": lambda context, peer: context.WriteText(peer, "x" * 100_000),
    "Broadcast": lambda context, peer: context.Broadcast([peer], bytes(100_000)),
}


def assert_never_switches(action):
    """Run it, and check that no other greenlet ran meanwhile: none of it has waited."""
    others = []
    other = gevent.spawn(others.append, "ran")
    action()
    assert others == []
    other.join()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("where", ["callback", "main greenlet", "another greenlet"])
@pytest.mark.parametrize("slow_consumer", ["close", "drop"])
def test_3_writing_to_a_peer_that_never_reads_does_not_block(serve, write, where, slow_consumer):
    server = serve(Recorder(), outbox_bytes=1 << 20, slow_consumer=slow_consumer)
    server.client()
    id = wait_until(lambda: server.handler.of("accepted"))[0][1]
    results = []

    def write_on():
        # Until a good while after the kernel and the outbox are full, and after the first refusal.
        refused = 0
        while refused < 50:
            result = WRITES[write](server.context, id)
            results.append(result)
            refused += bool(result)
        server.context.Close(id)
        server.context.Close(id)

    def run(context=None):
        assert_never_switches(write_on)

    if where == "callback":
        server.context.Post(run)
        wait_until(lambda: len(results) >= 50 and results[-1])
    elif where == "main greenlet":
        run()
    else:
        gevent.spawn(run).get(timeout=PATIENCE)
    assert server.context.Stats().callback_errors == 0
    assert not results[0], "the first one was taken"
    if write != "Broadcast":
        kinds = {type(result) for result in results[-50:]}
        assert kinds <= ({OutboxFull, ConnClosing} if slow_consumer == "close" else {OutboxFull})


def test_3_writing_without_any_limit_does_not_block_either(serve):
    server = serve(Recorder(), outbox_bytes=None)
    client = server.client()
    id = wait_until(lambda: server.handler.of("accepted"))[0][1]
    payload = bytes(1 << 20)

    def write_on():
        for _ in range(50):
            assert server.context.Write(id, payload) is None
        server.context.Close(id)

    assert_never_switches(write_on)
    for _ in range(50):
        assert client.read_frame()[1] == payload
    assert client.read_close() == (1000, "")


def test_3_nothing_else_that_a_callback_may_call_blocks(serve):
    server = serve(Recorder(), outbox_bytes=1 << 16, slow_consumer="drop")
    client = server.client()
    id = wait_until(lambda: server.handler.of("accepted"))[0][1]
    client.send_binary(b"and a peer that is in the middle of a frame"[:5])

    def call_all():
        context = server.context
        while context.Write(id, bytes(50_000)) is None:
            pass
        context.Post(lambda context: None)
        context.AfterFunc(0, lambda context: None).Stop()
        context.SetTimeout(context.GetTimeout())
        context.Stats()
        context.Conn(id)
        context.ListenAndServe("127.0.0.1:0")
        context.Shutdown(PATIENCE)

    assert_never_switches(call_all)


# -- 4: a slow or dead peer costs bounded memory and delays nobody -----------------------------------------------


def test_4_peers_that_never_read_cost_no_more_than_their_outbox_and_delay_nobody(serve):
    limit, size, peers = 1 << 18, 50_000, 4
    server = serve(Recorder(echo), outbox_bytes=limit, slow_consumer="drop")
    dead = [server.client() for _ in range(peers)]
    live = server.client()
    ids = wait_until(lambda: len(server.handler.of("accepted")) == peers + 1 and server.handler.of("accepted"))
    ids = [event[1] for event in ids]
    payload = bytes(size)

    def publish(context):
        refused = context.Broadcast(ids, bytes(payload))
        assert live_id not in refused

    (live_id,) = [id for id in ids if server.context.Conn(id).peer == live.sock.getsockname()]
    most = 0
    tracemalloc.start()
    try:
        for _ in range(1000):
            server.context.Post(publish)
            assert len(live.read_frame()[1]) == size
            most = max(most, server.context.Stats().outbox_bytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert server.context.Stats().callback_errors == 0
    assert server.context.Stats().refused_writes > 1000, "they never became slow"
    assert limit < most <= peers * (limit + 2 * size)
    # 50 MB were published, for five.
    assert peak < 2 * peers * (limit + 2 * size) + (4 << 20)
    assert len(dead) == peers


def test_4_a_peer_that_floods_a_busy_program_costs_no_more_than_its_credit(serve):
    class Busy(Recorder):
        most = 0

        def MessageReceived(self, context, id, message):
            self.most = max(self.most, context.Stats().queued_events)
            if message == b"urgent":
                context.Write(id, message)
            else:
                gevent.sleep(0)

    size = 1000
    server = serve(Busy(), inbox_messages=50)
    flooder, other = server.client(), server.client()
    chunk = binary(*[bytes(size)] * 1000)
    flooder.sock.settimeout(None)

    def flood():
        while True:
            flooder.send(chunk)

    flooding = gevent.spawn(flood)
    wait_until(lambda: server.handler.most >= 50)
    for _ in range(20):
        other.send_binary(b"urgent")
        while not other.buffer:
            other.fill()
        assert other.read_frame() == (BINARY, b"urgent")
    flooding.kill()
    # One receive may bring 256 KiB at once; beyond that the reader stops.
    assert server.handler.most <= 50 + (1 << 18) // size + 10


def test_4_dead_peers_are_found_and_their_memory_given_back(serve):
    server = serve(Recorder(), ping_interval=0.05, ping_timeout=0.1, outbox_bytes=None)
    for _ in range(5):
        server.client()
    ids = [event[1] for event in wait_until(lambda: len(server.handler.of("accepted")) == 5 and server.handler.events)]
    server.context.Broadcast(ids, bytes(20 << 20))
    assert server.context.Stats().outbox_bytes > 0
    wait_until(lambda: len(server.handler.closed) == 5)
    assert {event[2] for event in server.handler.closed} == {1006}
    assert server.context.Stats().outbox_bytes == 0
    assert server.context.Stats().connections == 0
    assert not sockets_of(server)


# -- 5: a callback that raises -----------------------------------------------------------------------------------


class Raising(Recorder):
    """Raises in one of the callbacks, for as long as `error` is set."""

    def __init__(self, where, error):
        super().__init__(echo)
        self.where, self.error = where, error
        self.raised = 0

    def maybe(self, name):
        if name == self.where and self.error is not None:
            error, self.error = self.error, None
            self.raised += 1
            raise error

    def ConnAccepted(self, context, id):
        super().ConnAccepted(context, id)
        self.maybe("ConnAccepted")

    def MessageReceived(self, context, id, message):
        self.maybe("MessageReceived")
        super().MessageReceived(context, id, message)

    def TextReceived(self, context, id, text):
        self.maybe("TextReceived")

    def ConnClosed(self, context, id):
        super().ConnClosed(context, id)
        self.maybe("ConnClosed")

    def EventLoopTimeout(self, context):
        self.maybe("EventLoopTimeout")

    def posted(self, context):
        self.maybe("Post")

    def timed(self, context):
        self.maybe("AfterFunc")


class RaisingJudge(Raising):
    def ConnRequested(self, context, request):
        self.maybe("ConnRequested")


def raising(where, error):
    return (RaisingJudge if where == "ConnRequested" else Raising)(where, error)


WITH_A_CONNECTION = ["ConnAccepted", "MessageReceived", "TextReceived"]
WITHOUT = ["ConnRequested", "ConnClosed", "EventLoopTimeout", "Post", "AfterFunc"]
CALLBACKS = [*WITH_A_CONNECTION, *WITHOUT]


def provoke(server, where):
    """Make it happen; return the client that it happens to, or `None`."""
    context = server.context
    if where == "Post":
        context.Post(server.handler.posted)
    elif where == "AfterFunc":
        context.AfterFunc(0, server.handler.timed)
    elif where == "EventLoopTimeout":
        context.SetTimeout(0.01)
        context.Post(lambda context: None)
    elif where == "ConnRequested":
        client = server.client(handshake=False)
        client.send(client.request())
        return client
    else:
        client = server.client()
        if where == "MessageReceived":
            client.send_binary(b"provoke")
        elif where == "TextReceived":
            client.send_text("provoke")
        elif where == "ConnClosed":
            client.send_close()
        return client
    return None


class OddError(BaseException):
    """Not an `Exception`, and none of those that leave the loop."""


@pytest.mark.parametrize(
    "error", [ValueError("oh"), gevent.Timeout(5), OddError("odd")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("where", CALLBACKS)
def test_5_it_is_logged_its_connection_closed_with_1011_and_the_loop_goes_on(serve, where, error, caplog):
    server = serve(raising(where, error))
    client = provoke(server, where)
    wait_until(lambda: server.handler.raised)
    server.context.SetTimeout(60)
    if where in WITH_A_CONNECTION:
        assert client.read_close() == (1011, "internal error")
        client.send_close(1011)
        wait_until(lambda: server.handler.closed)
    elif where == "ConnRequested":
        assert client.read_head().startswith(b"HTTP/1.1 500 ")

    wait_until(lambda: caplog.records)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.name == "gowsev"
    assert record.exc_info[1] is error
    assert "Traceback (most recent call last)" in caplog.text
    assert "in maybe" in caplog.text, "the line that raised"
    assert server.context.Stats().callback_errors == 1

    after = server.client()
    after.send_binary(b"still here")
    assert after.read_frame() == (BINARY, b"still here")
    assert not server.loop.ready()


@pytest.mark.parametrize("where", CALLBACKS)
def test_5_other_connections_notice_nothing(serve, where, caplog):
    server = serve(raising(where, None))
    bystander = server.client()
    bystander.send_binary(b"before")
    assert bystander.read_frame() == (BINARY, b"before")
    server.handler.error = ValueError("oh")
    provoke(server, where)
    wait_until(lambda: server.handler.raised)
    bystander.send_binary(b"after")
    assert bystander.read_frame() == (BINARY, b"after")


def iterate_for_ever(context):
    while True:
        context.EventLoopIteration()


@pytest.mark.parametrize("where", CALLBACKS)
def test_5_with_raise_errors_it_is_raised_out_of_the_iteration(idle, where, caplog):
    error = ValueError("oh")
    server = idle(raising(where, error), raise_errors=True)
    client = provoke(server, where)
    with gevent.Timeout(PATIENCE), pytest.raises(ValueError, match="oh") as raised:
        iterate_for_ever(server.context)
    assert raised.value is error
    assert not caplog.records
    assert server.context.Stats().callback_errors == 1
    # The loop may be driven on, and the connection is as it was.
    if where in WITH_A_CONNECTION:
        client.send_binary(b"still here")
        wait_until(lambda: server.context.Stats().queued_events)
        server.context.EventLoopIteration()
        assert client.read_frame() == (BINARY, b"still here")


@pytest.mark.parametrize("raise_errors", [False, True])
@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, gevent.GreenletExit])
@pytest.mark.parametrize("where", CALLBACKS)
def test_5_some_exceptions_always_leave_the_loop(idle, where, leaving, raise_errors, caplog):
    server = idle(raising(where, leaving("leave")), raise_errors=raise_errors)
    provoke(server, where)
    with gevent.Timeout(PATIENCE), pytest.raises(leaving, match="leave"):
        server.context.EventLoop()
    assert not caplog.records
    assert server.context.Stats().callback_errors == 0
    # And it may be entered again.
    server.context.Post(lambda context: None)
    assert server.context.EventLoopIteration() is True


@pytest.mark.parametrize("state", ["waiting", "in a callback"])
def test_5_killing_the_loop_s_greenlet_ends_it_and_another_may_take_over(idle, state, caplog):
    class Sleeper(Recorder):
        def MessageReceived(self, context, id, message):
            super().MessageReceived(context, id, message)
            if message == b"sleep":
                gevent.sleep(PATIENCE * 10)

    server = idle(Sleeper(echo))
    client = server.client()
    first = gevent.spawn(server.context.EventLoop)
    client.send_binary(b"sleep" if state == "in a callback" else b"pass")
    wait_until(lambda: server.handler.messages)
    first.kill(timeout=PATIENCE)
    assert first.dead
    second = gevent.spawn(server.context.EventLoop)
    client.send_binary(b"hello")
    wait_until(lambda: server.handler.messages[1:] == [b"hello"])
    second.kill(timeout=PATIENCE)
    assert not caplog.records


# -- 6: one greenlet drives; nested iterations -------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting", "in a callback"])
def test_6_a_second_greenlet_gets_a_runtime_error_and_the_first_goes_on(serve, state):
    busy, go_on = gevent.event.Event(), gevent.event.Event()

    def answer(context, id, message):
        if message == b"block":
            busy.set()
            go_on.wait(PATIENCE)
        echo(context, id, message)

    server = serve(Recorder(answer))
    client = server.client()
    wait_until(lambda: server.handler.events)
    if state == "in a callback":
        client.send_binary(b"block")
        assert busy.wait(PATIENCE)

    def refused(drive):
        with pytest.raises(RuntimeError, match="is being driven by"):
            drive()

    for drive in (server.context.EventLoop, server.context.EventLoopIteration):
        refused(drive)
        gevent.spawn(refused, drive).get(timeout=PATIENCE)
    go_on.set()
    client.send_binary(b"hello")
    frames_read = [client.read_frame()[1] for _ in range(2 if state == "in a callback" else 1)]
    assert frames_read[-1] == b"hello"
    assert not server.loop.ready()


def test_6_a_greenlet_that_a_callback_starts_may_not_drive_either(idle):
    errors = []

    def answer(context, id, message):
        def drive():
            with pytest.raises(RuntimeError) as raised:
                context.EventLoopIteration()
            errors.append(str(raised.value))

        gevent.spawn(drive).join(PATIENCE)

    server = idle(Recorder(answer))
    client = server.client()
    client.send_binary(b"x")
    server.context.EventLoopIteration()
    server.context.EventLoopIteration()
    assert len(errors) == 1
    assert "is being driven by" in errors[0]


def test_6_a_callback_is_still_the_driver_after_a_nested_iteration(idle):
    errors = []

    def refused(context):
        with pytest.raises(RuntimeError, match="is being driven by") as raised:
            context.EventLoopIteration()
        errors.append(raised.value)

    def answer(context, id, message):
        if message == b"outer":
            context.EventLoopIteration()
            gevent.spawn(refused, context).join(PATIENCE)

    server = idle(Recorder(answer))
    client = server.client()
    server.context.EventLoopIteration()
    client.send(binary(b"outer", b"inner", b"not for the other greenlet"))
    wait_until(lambda: server.context.Stats().queued_events == 3)
    server.context.EventLoopIteration()
    assert len(errors) == 1
    assert server.handler.messages == [b"outer", b"inner"]


def test_6_greenlets_may_take_turns(idle):
    server = idle(Recorder(echo))
    client = server.client()
    gevent.spawn(server.context.EventLoopIteration).get(timeout=PATIENCE)
    client.send_binary(b"hello")
    gevent.spawn(server.context.EventLoopIteration).get(timeout=PATIENCE)
    assert client.read_frame() == (BINARY, b"hello")


def test_6_a_nested_iteration_handles_the_next_event_in_order(idle):
    trace = []

    def answer(context, id, message):
        trace.append(("begin", message))
        if len(trace) < 5:
            assert context.EventLoopIteration() is True
        trace.append(("end", message))

    server = idle(Recorder(answer))
    client = server.client()
    server.context.EventLoopIteration()
    client.send(binary(*numbered(7)))
    wait_until(lambda: server.context.Stats().queued_events == 7)
    while server.context.Stats().queued_events:
        server.context.EventLoopIteration()
    assert [message for what, message in trace if what == "begin"] == numbered(7)
    assert [message for what, message in trace if what == "end"] == [b"4", b"3", b"2", b"1", b"0", b"5", b"6"]


def test_6_what_nested_callbacks_write_arrives_in_the_order_of_the_writes(idle):
    at_return = []

    def answer(context, id, message):
        if message == b"outer":
            context.Write(id, b"before")
            assert context.Conn(id).bytes_sent == 0, "gathered until the callback ends"
            context.EventLoopIteration()
            at_return.append(context.Conn(id).bytes_sent)
            context.Write(id, b"after")
            at_return.append(context.Conn(id).bytes_sent)
        else:
            context.Write(id, message)

    server = idle(Recorder(answer))
    client = server.client()
    server.context.EventLoopIteration()
    client.send(binary(b"outer", b"inner"))
    wait_until(lambda: server.context.Stats().queued_events == 2)
    server.context.EventLoopIteration()
    # What an iteration wrote has left when it returns, a nested one as well; what follows is gathered again.
    assert at_return == [8 + 7, 8 + 7]
    assert [client.read_frame()[1] for _ in range(3)] == [b"before", b"inner", b"after"]


def test_6_the_end_of_a_connection_may_come_inside_its_own_message(idle):
    results = []

    def answer(context, id, message):
        while not server.handler.closed:
            context.EventLoopIteration()
        results.append(context.Write(id, message))

    server = idle(Recorder(answer))
    client = server.client()
    server.context.EventLoopIteration()
    client.send(binary(b"x"))
    client.send_close(4000)
    server.context.EventLoopIteration()
    assert [event[0] for event in server.handler.events] == ["accepted", "message", "closed"]
    assert isinstance(results[0], IdNotFound)
    assert server.context.Stats().callback_errors == 0


def test_6_an_error_in_a_nested_callback_is_its_own(idle, caplog):
    def answer(context, id, message):
        if message == b"outer":
            context.EventLoopIteration()
            context.Write(id, b"outer goes on")
        else:
            raise ValueError(message)

    server = idle(Recorder(answer))
    outer, inner = server.client(), server.client()
    server.context.EventLoopIteration()
    server.context.EventLoopIteration()
    outer.send_binary(b"outer")
    wait_until(lambda: server.context.Stats().queued_events == 1)
    inner.send_binary(b"inner")
    wait_until(lambda: server.context.Stats().queued_events == 2)
    server.context.EventLoopIteration()
    assert outer.read_frame() == (BINARY, b"outer goes on")
    assert inner.read_close() == (1011, "internal error")
    assert len(caplog.records) == 1


def test_6_a_nested_event_loop_ends_with_the_shutdown_and_so_does_the_outer_one(idle):
    def answer(context, id, message):
        if message == b"nest":
            context.EventLoop()
        else:
            context.Shutdown(PATIENCE)

    server = idle(Recorder(answer))
    client = server.client()
    client.send(binary(b"nest", b"stop"))
    loop = gevent.spawn(server.context.EventLoop)
    assert client.read_close() == (1001, "shutting down")
    client.send_close(1001)
    client.close()
    loop.join(PATIENCE)
    assert loop.successful()
    assert server.context.Stats().callback_errors == 0

"""`Context.Ping`, `DialledConn.Ping` and the round trips that they and keepalive measure, against real peers.

How long a round trip takes is for the peer to say: a test measures from when the ping was there to when its pong was
sent, and from before the one to after the other; what is reported lies between.
"""

from __future__ import annotations

import threading
import time

import gevent
import pytest
import websockets.sync.client
import websockets.sync.server
from conftest import (
    PATCHED,
    PATIENCE,
    Recorder,
    accepted,
    connection_of,
    echo,
    in_thread,
    over_tls,
    sockets_of,
    wait_until,
)
from raw import binary

import gowsev
from gowsev.wire import frames
from gowsev.wire.frames import BINARY, CLOSE, PING, PONG

#: More than the socket buffers of both ends can hold together.
MUCH = 20 << 20

pytestmark = pytest.mark.usefixtures("quiet_hub")


@pytest.fixture(params=["plain", "TLS"])
def transport(request, serve, certificate, client_tls):
    """`serve`, once with plain servers and once with TLS, with clients to match."""
    return over_tls(serve, certificate, client_tls) if request.param == "TLS" else serve


def newest(server):
    """Wait for the newest client's `ConnAccepted`, and return its `Conn`."""
    return server.context.MustConn(accepted(server))


def read_ping(client):
    opcode, payload = client.read_frame()
    assert opcode == PING
    return payload


def has_echoed(client):
    """Whether all that was sent before has been handled."""
    client.send_binary(b"still there")
    return client.read_frame() == (BINARY, b"still there")


# -- a ping of one's own -----------------------------------------------------------------------------------------


def test_a_round_trip_takes_as_long_as_the_peer_lets_it(transport):
    server = transport()
    client = server.client()
    conn = newest(server)
    assert conn.round_trip is None
    before = time.monotonic()
    assert server.context.Ping(conn.id) is None
    payload = read_ping(client)
    there = time.monotonic()
    gevent.sleep(0.05)  # the network's pace
    assert conn.round_trip is None
    gone = time.monotonic()
    client.send_frame(PONG, payload)
    wait_until(lambda: conn.round_trip is not None)
    assert gone - there <= conn.round_trip <= time.monotonic() - before
    stats = server.context.Stats()
    assert (stats.round_trips, stats.round_trip_seconds) == (1, conn.round_trip)
    assert list(stats.round_trips_within) == sorted(stats.round_trips_within)
    for bound, number in stats.round_trips_within.items():
        assert number == (conn.round_trip <= bound)
    assert (conn.messages_sent, stats.messages_sent, stats.messages_received) == (0, 0, 0)


# RFC 6455 section 5.5.3. What a peer answers to a ping and how many round trips that makes.
ANSWERS = [
    # "A Pong frame sent in response to a Ping frame must have identical "Application data""
    ("another payload", lambda ping: [ping[::-1] + b"x"], 0),
    ("more than the payload", lambda ping: [ping + ping], 0),
    ("nothing", lambda ping: [b""], 0),
    ("never", lambda ping: [], 0),
    ("twice", lambda ping: [ping, ping], 1),
    # "A Pong frame MAY be sent unsolicited."
    ("unsolicited ones around it", lambda ping: [b"a", ping, b"b"], 1),
]


@pytest.mark.parametrize(("answer", "number"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
def test_only_the_answer_to_a_ping_makes_a_round_trip(serve, answer, number, at_once):
    server = serve()
    client = server.client()
    conn = newest(server)
    server.context.Ping(conn.id)
    pongs = [frames.encode_frame(frames.FIN | PONG, payload, masked=True) for payload in answer(read_ping(client))]
    if at_once:
        client.send(b"".join(pongs))
    else:
        for pong in pongs:
            client.send(pong)
            assert has_echoed(client)
    assert has_echoed(client)
    assert server.context.Stats().round_trips == number
    assert (conn.round_trip is not None) == bool(number)


def test_a_pong_that_nobody_asked_for_makes_none(serve):
    server = serve()
    client = server.client()
    for payload in (b"", b"1234"):
        client.send_frame(PONG, payload)
    assert has_echoed(client)
    assert newest(server).round_trip is None
    assert server.context.Stats().round_trips == 0


def test_a_peer_may_answer_only_the_newest_of_several(serve):
    server = serve()
    client = server.client()
    conn = newest(server)
    before = time.monotonic()
    server.context.Ping(conn.id)
    first = read_ping(client)
    gevent.sleep(0.02)
    between = time.monotonic()
    server.context.Ping(conn.id)
    client.send_frame(PONG, read_ping(client))
    assert has_echoed(client)
    assert conn.round_trip <= time.monotonic() - between < time.monotonic() - before
    trip = conn.round_trip
    client.send_frame(PONG, first)
    assert has_echoed(client)
    assert (server.context.Stats().round_trips, conn.round_trip) == (1, trip)


def test_a_pong_may_come_in_the_middle_of_a_message_and_behind_others(serve):
    server = serve()
    client = server.client()
    conn = newest(server)
    server.context.Ping(conn.id)
    ping = read_ping(client)
    client.send_frame(BINARY, b"begun", fin=False)
    client.send_frame(PONG, ping)
    wait_until(lambda: conn.round_trip is not None)
    client.send_frame(frames.CONTINUATION, b", done")
    assert client.read_frame() == (BINARY, b"begun, done")
    server.context.Ping(conn.id)
    client.send(
        binary(b"1", b"2") + frames.encode_frame(frames.FIN | PONG, read_ping(client), masked=True) + binary(b"3")
    )
    assert [client.read_frame()[1] for _ in range(3)] == [b"1", b"2", b"3"]
    assert server.context.Stats().round_trips == 2


def test_a_ping_leaves_at_once_in_the_middle_of_a_callback_and_behind_what_was_written(serve):
    """What is measured is the network, not how long the callback goes on."""
    reached = gevent.event.Event()

    def answer(context, id, message):
        context.Write(id, b"before")
        assert context.Ping(id) is None
        context.Write(id, b"behind")
        assert reached.wait(PATIENCE)

    server = serve(Recorder(answer))
    client = server.client()
    conn = newest(server)
    client.send_binary(b"go")
    assert client.read_frame() == (BINARY, b"before")
    client.send_frame(PONG, read_ping(client))
    wait_until(lambda: conn.round_trip is not None)
    assert not reached.is_set()
    reached.set()
    assert client.read_frame() == (BINARY, b"behind")
    assert server.context.MustConn(conn.id).messages_sent == 2


def test_one_of_a_group_is_pinged_and_the_others_notice_nothing(serve):
    server = serve()
    clients = [server.client() for _ in range(4)]
    wait_until(lambda: len(server.handler.of("accepted")) == 4)
    ids = [1, 2, 3, 4]

    def say(context):
        for number in range(6):
            context.Broadcast(ids, b"%d" % number)
        context.Ping(2)
        for number in range(6, 12):
            context.Broadcast(ids, b"%d" % number)

    for _ in range(3):
        server.context.Post(say)
        for id, client in enumerate(clients, 1):
            for number in range(12):
                if number == 6 and id == 2:
                    client.send_frame(PONG, read_ping(client))
                assert client.read_frame() == (BINARY, b"%d" % number)
    wait_until(lambda: server.context.Stats().round_trips == 3)
    assert [server.context.Conn(id).round_trip is not None for id in ids] == [False, True, False, False]
    assert [server.context.Conn(id).messages_sent for id in ids] == [36] * 4


# -- errors ------------------------------------------------------------------------------------------------------


def test_a_ping_to_nobody(serve):
    error = serve().context.Ping(17)
    assert isinstance(error, gowsev.IdNotFound)
    assert (str(error), error.id) == ("id not found", 17)


def test_a_closing_connection_is_not_pinged_and_a_pong_still_counts(serve):
    server = serve()
    client = server.client()
    conn = newest(server)
    server.context.Ping(conn.id)
    server.context.Close(conn.id)
    error = server.context.Ping(conn.id)
    assert isinstance(error, gowsev.ConnClosing)
    assert error.id == conn.id
    client.send_frame(PONG, read_ping(client))
    client.send_close()
    assert client.read_frame() == (CLOSE, b"\x03\xe8")
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert conn.round_trip is not None
    # What was counted stays counted, though the connection is gone.
    assert server.context.Stats().connections == 0
    assert server.context.Stats().round_trips == 1


def test_a_ping_to_a_socket_that_turns_out_to_be_broken(serve):
    server = serve()
    client = server.client()
    conn = newest(server)
    client.reset()
    wait_until(lambda: server.context.Ping(conn.id) is not None)
    wait_until(lambda: server.handler.closed)
    assert not sockets_of(server)


@pytest.mark.parametrize("slow_consumer", ["close", "drop"])
def test_a_full_outbox_takes_no_ping_and_stays_as_it_is(serve, slow_consumer):
    server = serve(outbox_bytes=1 << 20, slow_consumer=slow_consumer)
    client = server.client()
    conn = newest(server)
    assert server.context.Write(conn.id, bytes(MUCH)) is None
    error = server.context.Ping(conn.id)
    assert isinstance(error, gowsev.OutboxFull)
    assert (error.id, error.waiting, error.limit) == (conn.id, conn.outbox_bytes, 1 << 20)
    assert conn.close_code is None
    assert server.context.Stats().refused_writes == 0
    assert client.read_frame() == (BINARY, bytes(MUCH))
    wait_until(lambda: conn.outbox_bytes == 0)
    assert server.context.Ping(conn.id) is None
    client.send_frame(PONG, read_ping(client))
    wait_until(lambda: conn.round_trip is not None)


def test_a_ping_waits_behind_what_the_peer_has_not_read(transport):
    server = transport(outbox_bytes=None)
    client = server.client()
    conn = newest(server)
    server.context.Write(conn.id, bytes(MUCH))
    assert server.context.Ping(conn.id) is None
    server.context.Write(conn.id, b"behind")
    client.send_frame(PING, b"theirs")  # whose pong may wait, and must not take the place of our ping
    wait_until(lambda: conn.bytes_received)
    assert client.read_frame() == (BINARY, bytes(MUCH))
    ping = read_ping(client)
    assert client.read_frame() == (BINARY, b"behind")
    assert client.read_frame() == (PONG, b"theirs")
    client.send_frame(PONG, ping)
    wait_until(lambda: conn.round_trip is not None)
    assert conn.messages_sent == 2


# -- readers that were stopped -----------------------------------------------------------------------------------


def test_what_waits_for_a_stopped_reader_is_no_round_trip(idle):
    """The loop is slow there, not the network."""
    server = idle(Recorder(), inbox_messages=2)
    client = server.client()
    server.context.Ping(1)
    before = read_ping(client)
    client.send(binary(b"1", b"2"))
    wait_until(lambda: connection_of(server, 1).credit.exhausted)
    server.context.Ping(1)
    client.send_frame(PONG, before)
    client.send_frame(PONG, read_ping(client))
    client.send_binary(b"3")
    wait_until(lambda: server.context.EventLoopIteration() and len(server.handler.messages) == 3)
    assert server.context.Conn(1).round_trip is None
    server.context.Ping(1)
    client.send_frame(PONG, read_ping(client))
    wait_until(lambda: server.context.Conn(1).round_trip is not None)
    assert server.context.Stats().round_trips == 1


def test_while_the_process_computes_pongs_wait_and_the_round_trip_says_so(serve):
    """The one case in which a slow program looks like a slow network; the loop's delay tells them apart."""
    server = serve()
    client = server.client()
    conn = newest(server)
    server.context.Ping(conn.id)
    client.send_frame(PONG, read_ping(client))
    over = time.monotonic() + 0.05
    while time.monotonic() < over:
        pass  # what a callback must not do, patched or not
    wait_until(lambda: conn.round_trip is not None)
    assert conn.round_trip >= 0.05


# -- keepalive ---------------------------------------------------------------------------------------------------


def test_the_pings_of_keepalive_measure_too(transport):
    server = transport(ping_interval=0.05, ping_timeout=PATIENCE)
    client = server.client()
    conn = newest(server)
    for number in range(3):
        client.send_frame(PONG, read_ping(client))
        wait_until(lambda number=number: server.context.Stats().round_trips == number + 1)
    assert 0 < conn.round_trip < PATIENCE


# -- other libraries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_client_of_websockets_answers(serve, compression):
    server = serve(compression=compression)
    text = "as long as it takes to be compressed " * 10

    def talk():
        with websockets.sync.client.connect(server.url, proxy=None, compression=compression) as client:
            for _ in range(3):
                client.send(text.encode())
                assert client.recv(timeout=PATIENCE) == text.encode()
            while client.recv(timeout=PATIENCE) != b"bye":
                pass

    talking = gevent.spawn(in_thread, talk)
    wait_until(lambda: len(server.handler.messages) == 3)
    for number in range(3):
        server.context.Write(1, text.encode())
        assert server.context.Ping(1) is None
        wait_until(lambda number=number: server.context.Stats().round_trips == number + 1)
    server.context.Write(1, b"bye")
    talking.get(timeout=PATIENCE)


@pytest.fixture
def websockets_server():
    """A server of `websockets`, which answers pings by itself, in a thread of its own."""
    server = websockets.sync.server.serve(lambda connection: [connection.send(m) for m in connection], "127.0.0.1", 0)
    runner = gevent.spawn(server.serve_forever) if PATCHED else threading.Thread(target=server.serve_forever)
    runner.start()
    yield "ws://{}:{}/".format(*server.socket.getsockname())
    server.shutdown()
    runner.join()


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_server_of_websockets_answers_a_dialled_connection_and_then_a_context(websockets_server, serve, compression):
    context = serve().context
    conn = gowsev.Dial(websockets_server, proxy=None, options=gowsev.Options(compression=compression))
    assert conn.round_trip is None
    conn.Ping()
    conn.WriteMessage(gowsev.BinaryMessage, b"x" * 1000)
    # Its pong came before the echo.
    assert conn.ReadMessage() == (gowsev.BinaryMessage, b"x" * 1000)
    first = conn.round_trip
    assert first > 0
    id = context.AddConn(conn)
    assert context.Stats().round_trips == 0, "that was before the context had it"
    assert context.MustConn(id).round_trip == first
    with pytest.raises(RuntimeError, match="Ping on connection 1: it belongs to a Context"):
        conn.Ping()
    assert context.Ping(id) is None
    wait_until(lambda: context.Stats().round_trips == 1)
    assert context.MustConn(id).round_trip == context.Stats().round_trip_seconds


def test_a_dialled_connection_that_has_ended_cannot_be_pinged(serve):
    server = serve()
    with gowsev.Dial(server.url, proxy=None) as conn:
        server.context.Close(1, 4000, "enough")
        with pytest.raises(gowsev.ConnectionClosed):
            conn.ReadMessage()
        with pytest.raises(gowsev.ConnectionClosed) as closed:
            conn.Ping()
        assert (closed.value.code, closed.value.reason) == (4000, "enough")


def test_peers_of_one_context_are_summed_up(serve):
    server = serve(Recorder(echo))
    for _ in range(3):
        client = server.client()
        conn = newest(server)
        server.context.Ping(conn.id)
        client.send_frame(PONG, read_ping(client))
        wait_until(lambda conn=conn: conn.round_trip is not None)
    conns = server.context.Conns()
    before = server.context.Stats()
    server.clients[0].send_close()
    wait_until(lambda: server.handler.closed)
    stats = server.context.Stats()
    assert stats.round_trips == 3
    assert stats.round_trip_seconds == pytest.approx(sum(conn.round_trip for conn in conns))
    assert stats.round_trips_within == before.round_trips_within
    assert stats.round_trips_within[10.0] == 3

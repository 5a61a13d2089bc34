"""One connection, against raw clients on real sockets: its closing races, its clock, its limits.

Where time matters, a test owns the clock (`clock`) and says when a tick comes; nothing here depends on how fast this
machine is.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from types import SimpleNamespace

import gevent
import gevent.socket
import pytest
from conftest import (
    PATIENCE,
    Recorder,
    accepted,
    connection_of,
    descriptors,
    greenlets,
    in_thread,
    open_files,
    over_tls,
    send_until_full,
    sockets_of,
    sweep,
    wait_until,
)
from raw import binary

import gowsev
from gowsev.connection import connection as connection_module
from gowsev.connection import keepalive as keepalive_module
from gowsev.connection.connection import MOST_RECEIVED, Connection
from gowsev.connection.gathering import Batch
from gowsev.connection.keepalive import Keepalive
from gowsev.connection.sockets import take_over
from gowsev.connection.tls import TLSSocket
from gowsev.errors import ConnClosing, OutboxFull
from gowsev.loop.queue import EventQueue
from gowsev.wire import frames
from gowsev.wire.encoder import Encoder
from gowsev.wire.frames import BINARY, CLOSE, PING, PONG
from gowsev.wire.protocol import Protocol

#: How many messages, of how many bytes, are more than the socket buffers of both ends can hold together.
MANY, LARGE = 20, 1 << 20

#: The frames that a reader handles in one turn, at most: docs/withstands.md.
TURN_FRAMES = 256


@pytest.fixture(autouse=True)
def _nothing_is_left(capfd):
    """Each test gives back every file descriptor and greenlet, and the hub has no error to show on stderr."""
    in_thread(int)  # the thread pool opens files of its own when it is first used
    files, alive = open_files(), greenlets()
    yield
    wait_until(lambda: open_files() <= files and greenlets() <= alive)
    assert capfd.readouterr().err == ""


@pytest.fixture
def ended(serve):
    """`serve`, whose contexts must have no connection left once the test has read what it wanted to."""
    servers = []

    def start(*args, **kwargs):
        servers.append(serve(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        for client in server.clients:
            client.close()
        wait_until(lambda server=server: server.context.Stats().connections == 0)
        wait_until(lambda server=server: not sockets_of(server))
        assert server.context.Stats().outbox_bytes == 0


@pytest.fixture(params=["plain", "TLS"])
def transport(request, ended, certificate, client_tls):
    """`ended`, once with plain servers and once with TLS, with clients to match."""
    return over_tls(ended, certificate, client_tls) if request.param == "TLS" else ended


def congest(server, id, times=1):
    """Write more than the kernel takes."""
    for _ in range(MANY * times):
        assert server.context.Write(id, bytes(LARGE)) is None
    assert server.context.Conn(id).outbox_bytes > 0


def read_all_of_it(client):
    """Read what `congest` has written."""
    for _ in range(MANY):
        assert client.read_frame() == (BINARY, bytes(LARGE))


#: No client may send it (RFC 6455 section 5.2: a reserved opcode), and it is answered with 1002.
VIOLATION = frames.encode_frame(frames.FIN | 3, b"", masked=True)


# -- ordinary ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "echoed", "code", "reason"),
    [
        (b"", b"", 1005, ""),  # RFC 6455 section 7.1.5
        (b"\x03\xe8", b"\x03\xe8", 1000, ""),
        (b"\x0f\xa0going", b"\x0f\xa0", 4000, "going"),
    ],
)
def test_the_peer_closes(transport, payload, echoed, code, reason):
    server = transport(Recorder())  # an answer is refused where the close frame has come with the message
    client = server.client()
    client.send_binary(b"last")
    client.send_frame(CLOSE, payload)
    assert client.read_frame() == (CLOSE, echoed)
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.events == [("accepted", 1), ("message", 1, b"last"), ("closed", 1, code, reason)]


def test_we_close_and_the_peer_answers(transport):
    server = transport()
    client = server.client()
    id = accepted(server)
    server.context.Write(id, b"last")
    server.context.Close(id, 4001, "enough")
    server.context.Close(id, 4002, "once more")  # nothing happens
    assert client.read_frame() == (BINARY, b"last")
    assert client.read_frame() == (CLOSE, b"\x0f\xa1enough")
    assert not server.handler.closed
    client.send_close(4001)
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", id, 4001, "")]


def test_what_the_peer_sent_before_its_close_frame_and_after_ours_is_delivered(transport):
    server = transport(Recorder())
    client = server.client()
    id = accepted(server)
    server.context.Close(id)
    assert client.read_close() == (1000, "")
    client.send_binary(b"I had this for you")
    client.send_close()
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.messages == [b"I had this for you"]


def test_a_violation_ends_the_connection_and_what_came_before_it_is_delivered(transport, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = transport(Recorder())
    client = server.client()
    client.send(binary(b"good") + VIOLATION + binary(b"never seen"))
    assert client.read_close() == (1002, "reserved opcode 3")
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.events == [("accepted", 1), ("message", 1, b"good"), ("closed", 1, 1006, "")]
    assert "reserved opcode 3" in caplog.text


def test_nothing_is_delivered_after_a_violation_inside_a_frame(ended):
    """RFC 6455 section 8.1: text that is no UTF-8. What follows is the rest of the very frame that broke the rule."""
    server = ended(Recorder())
    client = server.client()
    frame = frames.encode_frame(frames.FIN | frames.TEXT, b"\xff" * 1000, masked=True)
    client.send(frame[:300])
    assert client.read_close()[0] == 1007
    client.send(frame[300:] + binary(b"more"))
    client.close()
    wait_until(lambda: not sockets_of(server))
    wait_until(lambda: server.handler.closed)
    assert server.handler.messages == []


def test_a_unix_socket(ended, tmp_path):
    path = str(tmp_path / "socket")
    server = ended(port=f"unix:{path}")
    client = server.client()
    client.send_binary(b"hello")
    assert client.read_frame() == (BINARY, b"hello")


# -- races -------------------------------------------------------------------------------------------------------


def test_both_sides_close_at_once(transport):
    server = transport()
    client = server.client()
    id = accepted(server)
    # No greenlet switch between the two: neither side has seen the other's frame.
    client.send_close(4000, "mine")
    server.context.Close(id, 4001, "ours")
    assert client.read_frame() == (CLOSE, b"\x0f\xa1ours")
    assert client.read_to_end() == b"", "one close frame each: RFC 6455 section 5.5.1"
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", id, 4000, "mine")]


def test_we_close_while_the_peer_is_in_the_middle_of_a_frame(transport):
    server = transport(Recorder())
    client = server.client()
    id = accepted(server)
    frame = binary(bytes(range(256)) * 100)
    client.send(frame[:10_000])
    wait_until(lambda: server.context.Conn(id).bytes_received == 10_000)
    server.context.Close(id)
    assert client.read_close() == (1000, "")
    client.send(frame[10_000:])
    client.send_close()
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.events[1:] == [("message", id, bytes(range(256)) * 100), ("closed", id, 1000, "")]


def test_a_peer_that_never_answers_is_cut_off(transport, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = transport(close_timeout=0.1)
    client = server.client()
    id = accepted(server)
    server.context.Close(id)
    assert client.read_frame() == (CLOSE, b"\x03\xe8")
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", id, 1006, "")]
    assert client.read_to_end() == b""
    assert "no close frame came in time" in caplog.text


def test_a_peer_that_answers_but_keeps_its_socket_open_is_cut_off_later(transport):
    server = transport(close_timeout=0.1)
    client = server.client()
    client.send_close()
    wait_until(lambda: server.handler.closed)
    wait_until(lambda: not sockets_of(server))
    assert client.read_frame() == (CLOSE, b"\x03\xe8")
    assert client.read_to_end() == b""


def test_the_peer_half_closes_behind_its_close_frame(ended):
    server = ended()
    client = server.client()
    client.send_binary(b"last")
    client.send_close()
    client.sock.shutdown(socket.SHUT_WR)
    assert client.read_close() == (1000, "")
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.events == [("accepted", 1), ("message", 1, b"last"), ("closed", 1, 1000, "")]


def test_the_peer_half_closes_without_a_close_frame(transport, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = transport(Recorder())
    client = server.client()
    client.send_binary(b"last")
    client.sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: server.handler.closed)
    assert server.handler.events == [("accepted", 1), ("message", 1, b"last"), ("closed", 1, 1006, "")]
    assert "ended without a close frame" in caplog.text


def test_the_log_names_the_option_by_which_a_message_is_too_long_and_the_peer_is_not_told(serve, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = serve(max_message_bytes=10)
    client = server.client()
    client.send_binary(bytes(11))
    assert client.read_close() == (1009, "message longer than 10 bytes")
    wait_until(lambda: server.handler.closed)
    assert "message longer than 10 bytes (close code 1009); see max_message_bytes of gowsev.Options" in caplog.text


def test_the_end_comes_inside_a_frame(transport):
    server = transport(Recorder())
    client = server.client()
    client.send(binary(b"whole", b"a half")[:-3])
    client.close()
    wait_until(lambda: server.handler.closed)
    assert server.handler.events == [("accepted", 1), ("message", 1, b"whole"), ("closed", 1, 1006, "")]


def test_the_peer_resets_the_connection(transport, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = transport(Recorder())
    client = server.client()
    accepted(server)
    client.reset()
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", 1, 1006, "")]
    assert "connection 1 with 127.0.0.1:" in caplog.text, "and why; gevent's TLS reads a reset as an ordinary end"


def test_the_peer_resets_a_congested_connection(transport):
    server = transport(Recorder(), outbox_bytes=None)
    client = server.client()
    id = accepted(server)
    congest(server, id)
    client.reset()
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", id, 1006, "")]


def test_the_socket_breaks_in_a_write(ended):
    """The reader has not seen the end yet: no greenlet switch between the reset and the write."""
    server = ended(Recorder())
    client = server.client()
    id = accepted(server)
    client.reset()
    assert server.context.Write(id, b"x") is None
    assert isinstance(server.context.Write(id, b"y"), ConnClosing)
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", id, 1006, "")]


def test_the_peer_resets_right_behind_its_close_frame(ended):
    """It is found out only when our side of the socket is shut down: there is nothing left to send."""
    server = ended(Recorder())
    client = server.client()
    id = accepted(server)
    server.context.Close(id)
    assert client.read_close() == (1000, "")
    client.send_close()
    client.reset()
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", id, 1000, "")]


def test_what_was_read_before_a_write_failed_is_delivered(ended):
    server = ended()
    client = server.client()
    accepted(server)
    sent = [b"%d" % number for number in range(1000)]
    client.send(binary(*sent))
    client.close()
    wait_until(lambda: server.handler.closed)
    assert server.handler.messages == sent


@pytest.mark.parametrize("end", ["close", "violation"])
def test_the_close_frame_survives_what_the_peer_goes_on_sending(transport, end):
    """Closing a socket with unread input would reset it, and take our close frame back out of the peer's hands."""
    server = transport(Recorder(), inbox_messages=8)
    client = server.client()
    id = accepted(server)
    if end == "close":
        server.context.Close(id, 1001)
        wait_until(lambda: server.context.Conn(id).bytes_sent)
    else:
        client.send(VIOLATION)
        wait_until(lambda: server.handler.closed)
    flood = binary(*[bytes(16384)] * 4)
    for _ in range(100):
        client.send(flood)
    assert client.read_close()[0] == (1001 if end == "close" else 1002)
    client.send_close()
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert len(server.handler.messages) == (400 if end == "close" else 0)


def test_a_close_waits_behind_what_was_written_before(transport):
    server = transport(Recorder(), outbox_bytes=None)
    client = server.client()
    id = accepted(server)
    congest(server, id)
    server.context.Close(id, 4000, "behind it all")
    assert isinstance(server.context.Write(id, b"x"), ConnClosing)
    read_all_of_it(client)
    assert client.read_close() == (4000, "behind it all")
    client.send_close(4000)
    assert client.read_to_end() == b""


def test_the_answer_to_the_peer_s_close_waits_behind_what_was_written_before(transport):
    server = transport(Recorder(), outbox_bytes=None, close_timeout=PATIENCE)
    client = server.client()
    id = accepted(server)
    congest(server, id)
    client.send_close(4000)
    wait_until(lambda: server.handler.closed)
    read_all_of_it(client)
    assert client.read_frame() == (CLOSE, b"\x0f\xa0")
    assert client.read_to_end() == b""


def test_no_pong_follows_our_close_frame(ended):
    """RFC 6455 section 5.5.1: no frame after a close frame; a pong that waited behind the messages is left out."""
    server = ended(Recorder(), outbox_bytes=None)
    client = server.client()
    id = accepted(server)
    congest(server, id)
    client.send_frame(PING, b"answer me")
    wait_until(heard(server, id))
    server.context.Close(id)
    read_all_of_it(client)
    assert client.read_frame() == (CLOSE, b"\x03\xe8")
    client.send_close()
    assert client.read_to_end() == b""


def test_tls_says_farewell_too(ended, certificate, client_tls):
    """Without it the peer could not tell our end from one that somebody forged."""
    server = ended(certificate=certificate)
    client = server.client(tls=client_tls)
    client.send_close()
    assert client.read_close() == (1000, "")
    client.sock.suppress_ragged_eofs = False
    assert client.sock.recv(100) == b""


@pytest.mark.parametrize("ended_by", ["close_timeout", "ping_timeout"])
def test_the_peer_sees_the_end_though_somebody_else_holds_the_descriptor(serve, ended_by):
    server = serve(Recorder(), close_timeout=0.1, ping_interval=0.1, ping_timeout=0.1)
    client = server.client()
    wait_until(lambda: server.handler.of("accepted"))
    held = descriptors_to(client.sock.getsockname())  # as a process does that was forked meanwhile
    try:
        if ended_by == "close_timeout":
            server.context.Close(1)
        client.read_to_end()
    finally:
        for sock in held:
            sock.close()
    assert len(held) == 1


def descriptors_to(address):
    """Duplicates of this process's sockets that are connected to `address`."""
    found = []
    for number in [number for number, link in descriptors().items() if link.startswith("socket:")]:
        sock = socket.socket(fileno=os.dup(number))
        try:
            connected = sock.getpeername() == address
        except OSError:  # it is not connected
            connected = False
        if connected:
            found.append(sock)
        else:
            sock.close()
    return found


def test_without_a_close_timeout_the_peer_has_all_the_time_there_is(idle, clock):
    server = idle(Recorder(), close_timeout=None)
    client = server.client()
    server.context.EventLoopIteration()
    server.context.Close(1)
    assert client.read_close() == (1000, "")
    clock.advance(1e6, server)
    assert server.context.Stats().connections == 1
    client.send_close()
    assert client.read_to_end() == b""


def test_the_end_of_a_connection_whose_socket_is_gone_is_said_once(idle):
    server = idle(Recorder())
    client = server.client()
    client.reset()
    wait_until(lambda: server.context.Stats().queued_events == 2)
    server.context.Close(1)
    assert isinstance(server.context.Write(1, b"x"), ConnClosing)
    connection = connection_of(server, 1)
    connection.abort("once more")
    server.context.EventLoopIteration()
    server.context.EventLoopIteration()
    assert server.handler.events == [("accepted", 1), ("closed", 1, 1006, "")]
    assert server.context.Stats().queued_events == 0


# -- the clock ---------------------------------------------------------------------------------------------------


class Clock:
    """The time that keepalives and connections see; it goes on, and ticks, when a test says so."""

    def __init__(self):
        self.now = time.monotonic()

    def monotonic(self):
        return self.now

    def show_real_time(self):
        """Go by the real clock for a moment: a compiled connection looks at no other."""
        self.now = time.monotonic()

    def advance(self, seconds, *servers):
        self.now += seconds
        for server in servers:
            sweep(server)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    fake = SimpleNamespace(monotonic=made.monotonic)
    monkeypatch.setattr(keepalive_module, "time", fake)
    monkeypatch.setattr(connection_module, "time", fake)
    monkeypatch.setattr(keepalive_module, "_SHORTEST_TICK", 3600.0)
    return made


def heard(server, connection=1):
    """A condition that is true once the connection has received more than now."""
    conn = server.context.Conn(connection)
    before = conn.bytes_received
    return lambda: conn.bytes_received > before


def test_pings_come_by_themselves_and_a_peer_that_answers_stays(ended):
    server = ended(ping_interval=0.05, ping_timeout=PATIENCE)
    client = server.client()
    for _ in range(3):
        opcode, payload = client.read_frame()
        assert opcode == PING
        client.send_frame(PONG, payload)
    assert server.context.Stats().connections == 1


def test_a_peer_that_is_silent_is_given_up_by_itself(transport, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = transport(ping_interval=0.05, ping_timeout=0.05)
    client = server.client()
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", 1, 1006, "")]
    assert client.read_frame()[0] == PING
    assert client.read_to_end() == b""
    assert "silent for" in caplog.text


def test_a_ping_is_sent_after_the_interval_of_silence_and_not_before(idle, clock):
    server = idle(Recorder(), ping_interval=20, ping_timeout=20)
    client = server.client()
    clock.advance(19.9, server)
    assert server.context.Conn(1).bytes_sent == 0
    clock.advance(0.1, server)
    assert client.read_frame()[0] == PING
    clock.advance(19.9, server)
    assert client.buffer == b""
    assert server.context.Conn(1).bytes_sent == 6, "one ping is enough"
    assert server.context.Conn(1).close_code is None
    clock.advance(0.1, server)
    assert server.context.Conn(1).close_code == 1006
    assert client.read_to_end() == b""


@pytest.mark.parametrize(
    "life", [frames.encode_frame(0x8A, b"", masked=True), binary(b"x"), b"\x82"], ids=["pong", "message", "one byte"]
)
def test_any_byte_after_the_ping_is_life(idle, clock, life):
    """A pong, a message, or the first byte of whatever."""
    server = idle(Recorder(), ping_interval=20, ping_timeout=20)
    client = server.client()
    clock.advance(20, server)
    assert client.read_frame()[0] == PING
    clock.advance(10, server)
    client.send(life)
    wait_until(heard(server))
    clock.advance(10, server)
    assert server.context.Conn(1).close_code is None
    clock.advance(9.9, server)
    assert server.context.Conn(1).close_code is None
    assert server.context.Conn(1).bytes_sent == 6
    clock.advance(0.1, server)
    assert client.read_frame()[0] == PING, "the silence began anew"


def test_what_came_while_the_program_was_busy_counts(idle, clock):
    server = idle(Recorder(), ping_interval=20, ping_timeout=20)
    client = server.client()
    clock.advance(20, server)
    client.send(b"\x82")  # no greenlet switch: it lies in the kernel when the tick comes
    clock.advance(30, server)
    assert server.context.Conn(1).close_code is None
    clock.advance(1, server)
    assert server.context.Conn(1).close_code is None


@pytest.mark.parametrize("ping_timeout", [20, None])
def test_without_a_ping_interval_there_is_no_ping_and_no_end(idle, clock, ping_timeout):
    server = idle(Recorder(), ping_interval=None, ping_timeout=ping_timeout)
    server.client()
    clock.advance(1e6, server)
    clock.advance(1e6, server)
    assert server.context.Conn(1).bytes_sent == 0
    assert server.context.Conn(1).close_code is None


def test_without_a_ping_timeout_silence_has_no_end(idle, clock):
    server = idle(Recorder(), ping_interval=20, ping_timeout=None)
    client = server.client()
    clock.advance(20, server)
    clock.advance(1e6, server)
    assert client.read_frame()[0] == PING
    assert server.context.Conn(1).close_code is None


def test_a_connection_that_we_have_stopped_reading_is_neither_pinged_nor_given_up(idle, clock):
    server = idle(Recorder(), inbox_messages=2)
    client = server.client()
    client.send(binary(b"1", b"2"))
    wait_until(lambda: server.context.Stats().queued_events == 3)
    for _ in range(3):
        clock.advance(1000, server)
    assert server.context.Conn(1).bytes_sent == 0
    assert server.context.Conn(1).close_code is None
    for _ in range(3):
        server.context.EventLoopIteration()
    # Its silence begins where the reader goes on, and that knows the time of the last tick.
    clock.advance(19.9, server)
    assert server.context.Conn(1).bytes_sent == 0
    clock.advance(0.1, server)
    assert client.read_frame()[0] == PING


def test_a_peer_far_behind_that_reads_is_alive_though_no_ping_gets_through(idle, clock):
    server = idle(Recorder(), ping_interval=20, ping_timeout=20, outbox_bytes=None)
    client = server.client()
    congest(server, 1, 4)
    conn = server.context.Conn(1)
    for _ in range(5):
        sent = conn.bytes_sent
        while conn.bytes_sent == sent:
            assert client.sock.recv(1 << 20)
            gevent.sleep(0)
        assert conn.outbox_bytes > 0
        clock.advance(25, server)
        assert conn.close_code is None
    # From here on it reads no more, and its silence has only begun.
    for _ in range(3):
        clock.advance(10, server)
        assert conn.close_code is None
    clock.advance(10, server)
    assert conn.close_code == 1006


def test_a_ping_that_would_not_get_through_is_not_sent_and_nothing_else_in_its_place(idle, clock):
    server = idle(Recorder(), ping_interval=20, ping_timeout=20, outbox_bytes=None)
    client = server.client()
    client.send_frame(PING, b"old")
    assert client.read_frame() == (PONG, b"old")
    congest(server, 1)
    clock.advance(0, server)  # the bytes that the kernel took count as life, once
    clock.advance(20, server)
    clock.advance(1, server)
    read_all_of_it(client)
    client.send_frame(PING, b"new")
    assert client.read_frame() == (PONG, b"new")


def test_the_end_of_closing_comes_at_its_deadline_and_not_before(idle, clock):
    server = idle(Recorder(), close_timeout=5)
    client = server.client()
    clock.show_real_time()
    server.context.Close(1)
    clock.advance(4.9, server)
    assert sockets_of(server)
    clock.advance(1, server)
    assert not sockets_of(server)
    assert client.read_close() == (1000, "")
    assert client.read_to_end() == b""


# -- what comes in faster than the loop takes it -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"inbox_messages": 16, "inbox_bytes": None}, 100),
        ({"inbox_messages": None, "inbox_bytes": 20_000}, 100),
        ({"inbox_messages": 1, "inbox_bytes": 1}, 5000),
        ({}, 5000),
    ],
)
def test_a_flood_waits_in_the_kernel_and_nothing_is_lost(idle, options, size):
    server = idle(Recorder(), **options)
    client = server.client()
    count = 3_000_000 // size
    sent = [number.to_bytes(4, "big") * (size // 4) for number in range(count)]
    flood = gevent.spawn(client.send, binary(*sent))
    limits = [options.get("inbox_messages", 256) or count, (options.get("inbox_bytes", 1 << 20) or 1 << 40) // size]
    # One more turn of the reader may be on its way when the credit is used up.
    most = min(limits) + TURN_FRAMES + 1
    while len(server.handler.events) < 1 + count:
        if server.context.Stats().messages_received < count:
            wait_until(lambda: server.context.Stats().queued_events >= min(limits) // 2)
        assert server.context.Stats().queued_events <= most
        server.context.EventLoopIteration()
    assert server.handler.messages == sent
    flood.join(PATIENCE)
    assert flood.successful()


def test_a_peer_whose_messages_are_not_taken_is_held_up_by_tcp(idle):
    server = idle(Recorder(), inbox_messages=4)
    client = server.client()
    client.sock.setblocking(False)
    send_until_full(client.sock, binary(bytes(10_000)))
    assert server.context.Conn(1).bytes_received <= 2 * MOST_RECEIVED
    client.sock.settimeout(PATIENCE)


class Slow(Recorder):
    """Takes a little while for each message, cooperatively."""

    def MessageReceived(self, context, id, message):
        super().MessageReceived(context, id, message)
        gevent.sleep(0)
        context.Write(id, message)


def test_a_flood_starves_nobody(ended):
    server = ended(Slow(), inbox_messages=32)
    flooder, other = server.client(), server.client()
    accepted(server)
    stop = []
    flooder.sock.settimeout(None)

    def flood():
        frame = binary(*[b"flood"] * 1000)
        while not stop:
            flooder.send(frame)

    greenlets = [gevent.spawn(flood), gevent.spawn(flooder.read_to_end)]
    wait_until(lambda: len(server.handler.events) > 1000)
    for number in range(20):
        message = b"%d" % number
        before = len(server.handler.messages)
        other.send_binary(message)
        assert other.read_frame() == (BINARY, message)
        ahead = server.handler.messages.index(message) - before
        # What was in the queue already, and what comes in before gevent, which first runs up to 1,000 callbacks, has
        # looked at the sockets.
        assert ahead <= 4 * (32 + TURN_FRAMES + 1000)
    stop.append(True)
    greenlets[0].join(PATIENCE)
    gevent.killall(greenlets, timeout=PATIENCE)


def test_one_receive_takes_a_bounded_number_of_frames_and_the_rest_follows(idle):
    server = idle(Recorder(), inbox_messages=None)
    server.client()
    flooder = server.client()
    sent = [b"%d" % number for number in range(5 * TURN_FRAMES + 7)]
    flooder.send(binary(*sent))
    server.clients[0].send_binary(b"from another")
    wait_until(lambda: server.context.Stats().queued_events == 2 + len(sent) + 1)
    while server.context.Stats().queued_events:
        server.context.EventLoopIteration()
    others = server.handler.messages.index(b"from another")
    assert others <= 2 * TURN_FRAMES
    assert [message for message in server.handler.messages if message != b"from another"] == sent


def test_a_violation_behind_messages_that_use_up_the_credit(idle):
    """From then on what comes is thrown away, and needs no credit."""
    server = idle(Recorder(), inbox_messages=2)
    client = server.client()
    client.send(binary(b"1", b"2") + VIOLATION)
    assert client.read_close()[0] == 1002
    client.send(bytes(4 << 20))
    client.close()
    wait_until(lambda: not sockets_of(server))
    for _ in range(4):
        server.context.EventLoopIteration()
    assert server.handler.events == [
        ("accepted", 1), ("message", 1, b"1"), ("message", 1, b"2"), ("closed", 1, 1006, "")
    ]  # fmt: skip


def test_a_close_frame_behind_more_than_the_credit_is_found_when_the_loop_gets_there(idle):
    server = idle(Recorder(), inbox_messages=2)
    client = server.client()
    sent = [b"%d" % number for number in range(1000)]
    client.send(binary(*sent))
    client.send_close(4000)
    while not server.handler.closed:
        server.context.EventLoopIteration()
    assert server.handler.messages == sent
    assert server.handler.closed == [("closed", 1, 4000, "")]


# -- what goes out slower than it is written ---------------------------------------------------------------------


def write_until_refused(server, id, message):
    """Write until that is refused; return the error and how many were taken."""
    taken = 0
    while True:
        error = server.context.Write(id, message)
        if error is not None:
            return error, taken
        taken += 1


@pytest.mark.parametrize("size", [1000, 100_000], ids=["small", "large"])
def test_a_slow_consumer_is_closed_with_1013(transport, size, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = transport(Recorder(), outbox_bytes=1 << 20)
    client = server.client()
    id = accepted(server)
    error, taken = write_until_refused(server, id, random.randbytes(size))
    assert isinstance(error, OutboxFull)
    assert error.limit == 1 << 20
    assert 1 << 20 < error.waiting <= (1 << 20) + size + 20
    assert isinstance(server.context.Write(id, b"x"), ConnClosing)
    assert server.context.Stats().refused_writes == 1
    for _ in range(taken):
        opcode, payload = client.read_frame()
        assert (opcode, len(payload)) == (BINARY, size)
    assert client.read_close() == (1013, "reading too slowly")
    client.send_close(1013)
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", id, 1013, "")]
    assert "too slow" in caplog.text


def test_a_slow_consumer_is_spared_where_the_program_says_drop(transport):
    server = transport(Recorder(), outbox_bytes=1 << 20, slow_consumer="drop")
    client = server.client()
    id = accepted(server)
    message = random.randbytes(10_000)
    error, taken = write_until_refused(server, id, message)
    assert isinstance(error, OutboxFull)
    assert isinstance(server.context.Write(id, b"refused"), OutboxFull)
    assert server.context.Stats().refused_writes == 2
    assert not server.handler.closed
    assert client.read_frame() == (BINARY, message)
    for _ in range(taken - 1):
        assert client.read_frame() == (BINARY, message)
    wait_until(lambda: server.context.Conn(id).outbox_bytes == 0)
    assert server.context.Write(id, b"taken again") is None
    assert client.read_frame() == (BINARY, b"taken again")


def test_a_peer_may_send_while_it_does_not_read_and_only_the_newest_ping_is_answered(transport):
    """RFC 6455 section 5.5.3: "MAY elect to send a Pong frame for only the most recently processed Ping frame"."""
    server = transport(Recorder(), outbox_bytes=None)
    client = server.client()
    id = accepted(server)
    congest(server, id)
    waiting = server.context.Conn(id).outbox_bytes
    for number in range(100):
        client.send_frame(PING, b"ping %d" % number)
        client.send_binary(b"%d" % number)
    wait_until(lambda: len(server.handler.messages) == 100)
    assert server.handler.messages == [b"%d" % number for number in range(100)]
    assert server.context.Conn(id).outbox_bytes <= waiting
    read_all_of_it(client)
    assert client.read_frame() == (PONG, b"ping 99")
    client.send_frame(PING, b"and again")
    assert client.read_frame() == (PONG, b"and again"), "no other pong, and at once"


def test_a_peer_that_pings_and_never_reads_costs_bounded_memory(ended):
    server = ended(Recorder())
    client = server.client()
    id = accepted(server)
    conn = server.context.Conn(id)
    pings = frames.encode_frame(0x89, bytes(125), masked=True) * 1000
    most = 0
    for _ in range(100):
        client.send(pings)
        gevent.sleep(0)
        most = max(most, conn.outbox_bytes)
    wait_until(lambda: conn.bytes_received == 100 * len(pings))
    # What one turn of the reader answers may meet a kernel that takes no more.
    assert max(most, conn.outbox_bytes) <= 4 * TURN_FRAMES * 127
    assert not server.handler.closed


# -- messages that are large, and TLS ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 125, 126, 16383, 16384, 65535, 65536, 900_000])
def test_a_message_of_any_size_both_ways(transport, size):
    server = transport(inbox_bytes=1 << 30)
    client = server.client()
    message = random.randbytes(size)
    for _ in range(3):
        sending = gevent.spawn(client.send_binary, message)
        assert client.read_frame() == (BINARY, message)
        sending.get()


def test_several_frames_in_one_tls_record(ended, certificate, client_tls):
    server = ended(certificate=certificate)
    client = server.client(tls=client_tls)
    client.send(binary(*[b"%d" % number for number in range(500)]))
    assert [client.read_frame()[1] for _ in range(500)] == [b"%d" % number for number in range(500)]


def receive_less(monkeypatch):
    """Let TLS sockets give out less at once than is in a record: the rest of a record makes no socket readable."""
    recv = TLSSocket.recv
    monkeypatch.setattr(TLSSocket, "recv", lambda self, size: recv(self, min(size, 100)))


@pytest.mark.parametrize("inbox_messages", [1, 10, None])
def test_what_tls_has_decrypted_is_read_though_the_socket_has_nothing_more(
    idle, certificate, client_tls, inbox_messages, monkeypatch
):
    receive_less(monkeypatch)
    server = idle(Recorder(), inbox_messages=inbox_messages)
    server.host, server.port = server.context.ListenAndServeTLS("127.0.0.1:0", *certificate)
    client = server.client(tls=client_tls)
    sent = [b"%d" % number for number in range(500)]
    client.send(binary(*sent))
    server.context.SetTimeout(PATIENCE)
    while len(server.handler.messages) < len(sent):
        server.context.EventLoopIteration()
        assert not server.handler.of("timeout")
    assert server.handler.messages == sent


def test_tls_ends_while_decrypted_bytes_wait_to_be_read(ended, certificate, client_tls, monkeypatch):
    receive_less(monkeypatch)
    server = ended(Recorder(), certificate=certificate, close_timeout=0.1)
    client = server.client(tls=client_tls)
    client.send(binary(b"good") + VIOLATION + bytes(5000))
    assert client.read_close()[0] == 1002
    wait_until(lambda: not sockets_of(server))
    assert server.handler.messages == [b"good"]


def test_a_tls_connection_ends_just_before_it_would_have_read_more(ended, certificate, client_tls, monkeypatch):
    receive_less(monkeypatch)
    server = ended(Recorder(), certificate=certificate)
    client = server.client(tls=client_tls)
    connection = connection_of(server, accepted(server))
    client.send(binary(*[b"x"] * 1000))
    while not connection.bytes_received:
        gevent.sleep(0)
    connection.abort("cut off")
    received = connection.bytes_received
    assert received < 7000, "all of it was read before the test came to it"
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert connection.bytes_received == received


def test_frames_in_the_segment_of_the_handshake(transport):
    server = transport()
    sent = [b"%d" % number for number in range(600)]
    client = server.client(behind=binary(*sent))
    assert [client.read_frame()[1] for _ in range(600)] == sent


# -- a connection by itself --------------------------------------------------------------------------------------


class Bench:
    """A connection without a context, and the other end of its socket."""

    def __init__(self, **options):
        self.queue, self.batch = EventQueue(), Batch()
        self.options = gowsev.Options(**options)
        self.keepalive = Keepalive(self.options, lambda: None)
        sock, self.peer = gevent.socket.socketpair()
        self.peer.settimeout(PATIENCE)
        self.connection = Connection(
            take_over(sock),
            request=gowsev.Request("/", "", gowsev.Headers(), ("", 0), ("", 0), False),
            subprotocol=None,
            protocol=Protocol(),
            encoder=Encoder(),
            options=self.options,
            put=self.queue.put,
            batch=self.batch,
            keepalive=self.keepalive,
        )

    def close(self):
        self.connection.abort("the test is over")
        self.queue.close()
        self.peer.close()


@pytest.fixture
def bench():
    benches = []

    def make(**options):
        benches.append(Bench(**options))
        return benches[-1]

    yield make
    for made in benches:
        made.close()


def test_taking_over_leaves_an_empty_shell_behind():
    theirs, sock = gevent.socket.socketpair()
    descriptor = sock.fileno()
    plain = take_over(sock)
    assert not isinstance(plain, gevent.socket.socket)
    assert plain.fileno() == descriptor
    assert plain.gettimeout() == 0
    sock.close()
    plain.send(b"still open")
    assert theirs.recv(100) == b"still open"
    plain.close()
    theirs.close()


def test_what_is_left_of_a_receive_when_the_socket_ends_comes_before_the_end_and_is_answered_by_nobody(bench):
    rig = bench(inbox_messages=None)
    rig.connection.start(binary(*[b"x"] * 1000) + VIOLATION)
    rig.connection.abort("it is gone")
    wait_until(lambda: len(rig.queue) == 1001)
    kinds = [rig.queue.wait(0)[0] for _ in range(1001)]
    assert kinds == [BINARY] * 1000 + [CLOSE]
    assert rig.peer.recv(100) == b""
    gevent.sleep(0.01)
    assert len(rig.queue) == 0


def test_what_is_left_of_a_receive_waits_for_credit_even_when_the_socket_has_ended(bench):
    rig = bench(inbox_messages=300)  # one turn of 256 messages fits, a second one exhausts it
    rig.connection.start(binary(*[b"x"] * 1000))
    rig.connection.abort("it is gone")
    gevent.sleep(0.01)
    assert len(rig.queue) == 512
    kinds = []
    while CLOSE not in kinds:
        kinds.append(rig.queue.wait(PATIENCE)[0])
        if kinds[-1] == BINARY:
            rig.connection.credit.refund(1)
        assert len(rig.queue) <= 512
    assert kinds == [BINARY] * 1000 + [CLOSE]


def test_what_a_callback_had_gathered_is_sent_before_the_socket_is_closed(bench):
    rig = bench()
    rig.connection.start()
    rig.batch.held = True
    assert rig.connection.outbox.write(BINARY, b"gathered") is None
    rig.connection.abort("it is over")
    assert rig.peer.recv(100) == b"\x82\x08gathered"
    assert rig.peer.recv(100) == b""


def test_an_error_of_our_own_in_the_reader_ends_its_connection_and_is_shown(bench, capfd):
    """Were the socket left open, what it still holds would bring the error about again and again."""
    rig = bench()

    def put(event):
        if event[0] == BINARY:
            raise MemoryError("no room")
        rig.queue.put(event)

    rig.connection.move(put, rig.batch, rig.keepalive)
    rig.connection.start()
    rig.peer.sendall(binary(b"x"))
    assert rig.queue.wait(PATIENCE) == (CLOSE, rig.connection, None)
    assert rig.connection.end == "MemoryError in the reader: no room"
    assert rig.peer.recv(100) == b""
    assert "MemoryError: no room" in capfd.readouterr().err


def test_a_close_with_a_time_of_its_own_keeps_the_shorter_one(bench, clock):
    for own, deadline in ((2, 2), (100, 5), (None, 5)):
        rig = bench(close_timeout=5)
        rig.connection.start()
        clock.show_real_time()
        rig.connection.close(1001, "", own)
        rig.connection.check(clock.now + deadline - 0.1)
        assert rig.connection in rig.keepalive.connections
        rig.connection.check(clock.now + deadline + 1)
        assert rig.connection not in rig.keepalive.connections


# -- from one clock and queue to others --------------------------------------------------------------------------


def test_a_dialled_connection_brings_what_it_has_read_along(ended):
    server, mine = ended(), ended(Recorder())
    dialled = gowsev.Dial(server.url)
    for number in range(3):
        dialled.WriteMessage(gowsev.BinaryMessage, b"%d" % number)
    wait_until(lambda: dialled.messages_received == 3)
    id = mine.context.AddConn(dialled)
    assert len(sockets_of(mine)) == 1
    wait_until(lambda: len(mine.handler.messages) == 3)
    mine.context.Write(id, b"3")
    wait_until(lambda: len(mine.handler.messages) == 4)
    mine.context.Close(id)
    wait_until(lambda: mine.handler.closed)
    assert mine.handler.events == [*(("message", id, b"%d" % n) for n in range(4)), ("closed", id, 1000, "")]


def test_a_dialled_connection_that_has_ended_already_tells_so(ended):
    server, mine = ended(), ended(Recorder())
    dialled = gowsev.Dial(server.url)
    server.context.Write(accepted_id(server), b"last")
    server.context.Close(1, 4000)
    wait_until(lambda: dialled.close_code == 4000 and server.context.Stats().connections == 0)
    wait_until(lambda: dialled._connection.gone)
    id = mine.context.AddConn(dialled)
    wait_until(lambda: mine.handler.closed)
    assert mine.handler.events == [("message", id, b"last"), ("closed", id, 4000, "")]


def accepted_id(server):
    return wait_until(lambda: server.handler.of("accepted"))[-1][1]


# -- how far a peer is -------------------------------------------------------------------------------------------


def test_what_a_slow_tls_peer_has_taken_of_a_long_message_is_known_before_all_of_it_has_left(
    ended, certificate, client_tls
):
    server = ended(Recorder(), certificate=certificate, outbox_bytes=None)
    client = server.client(tls=client_tls)
    id = accepted(server)
    message = bytes(MANY * LARGE)
    server.context.Write(id, message)
    conn = server.context.Conn(id)
    assert conn.outbox_bytes > 0
    before = conn.bytes_sent
    assert 0 < before < len(message)
    client.fill()
    wait_until(lambda: client.fill() or conn.bytes_sent > before)
    assert client.read_frame() == (BINARY, message)

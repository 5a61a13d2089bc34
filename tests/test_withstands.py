"""What the server withstands as a whole: slow consumers among many, floods of aborted handshakes, no more file
descriptors, certificates that change under load, a shutdown with thousands connected, clients that are killed.

The numbers are those of an ordinary test run. `GOWSEV_SCALE=50` multiplies the number of aborted connections.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time

import gevent
import gevent.pool
import gevent.socket
import pytest
from conftest import PATIENCE, Recorder, greenlets, in_thread, open_files, wait_until
from raw import RawClient

import gowsev
from gowsev.wire import frames

SCALE = int(os.environ.get("GOWSEV_SCALE", "1"))


@pytest.fixture
def many_files():
    """As many file descriptors as this user may have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 1 << 16), hard))
    yield min(wanted, 1 << 16)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_clients(server, number, **kwargs):
    pool = gevent.pool.Pool(100)
    return pool.map(lambda _: server.client(**kwargs), range(number))


# -- slow consumers --------------------------------------------------------------------------------------------------

MESSAGE, BROADCASTS = b"m" * 2000, 150
STREAM = b"".join(frames.encode_frame(0x82, b"%06d" % i + MESSAGE, masked=False) for i in range(BROADCASTS))


def read_stream(client):
    """Read the whole stream, and check every byte; raises if it ends early."""
    position = 0
    while position < len(STREAM):
        data = client.sock.recv(1 << 16)
        assert data
        assert STREAM.startswith(data, position)
        position += len(data)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["close", "drop"])
def test_one_of_a_thousand_subscribers_stops_reading(serve, many_files, policy):
    limit = 1_000_000  # more than the whole stream, so that none of the others can be refused, however busy the machine
    server = serve(Recorder(), outbox_bytes=limit, slow_consumer=policy, ping_interval=None, close_timeout=PATIENCE * 4)
    context = server.context
    stalled = server.client(receive_buffer=4096)
    others = open_clients(server, min(999, many_files // 2 - 100))
    wait_until(lambda: context.Stats().connections == len(others) + 1)
    readers = [gevent.spawn(read_stream, client) for client in others]
    ids = [event[1] for event in server.handler.of("accepted")]
    slow = ids[0]
    refused, waited = [], 0
    filler = b"f" * 50_000  # what the kernel takes for a peer that does not read differs from system to system
    while not refused:
        refused = context.Broadcast([slow], filler)
        waited = max(waited, context.Conn(slow).outbox_bytes)
    for i in range(BROADCASTS):
        refused += context.Broadcast(ids, b"%06d" % i + MESSAGE)
        waited = max(waited, context.Conn(slow).outbox_bytes)
        gevent.sleep(0)
    gevent.joinall(readers, PATIENCE * 2)
    assert [reader for reader in readers if not reader.successful()] == []
    assert set(refused) == {slow}
    # Refused while more than the limit waits: at most one message beyond it, and the close frame.
    assert waited <= limit + len(filler) + 200
    assert context.Stats().outbox_bytes <= waited
    if policy == "close":
        assert stalled.read_close() == (frames.TRY_AGAIN_LATER, "reading too slowly")
        stalled.send_close(1013)
        wait_until(lambda: server.handler.closed)
        assert [event[1:3] for event in server.handler.closed] == [(slow, 1013)]
    else:
        assert server.handler.closed == []
        assert isinstance(context.Write(slow, b"x"), gowsev.OutboxFull)
        wait_until(lambda: stalled.sock.recv(1 << 16) and context.Conn(slow).outbox_bytes == 0)
        assert context.Write(slow, b"x") is None


# -- handshakes that are not finished --------------------------------------------------------------------------------

REQUEST = RawClient.request()
STAGES = [b"", b"G", REQUEST[:-30], REQUEST[:-1], REQUEST, REQUEST + b"\x82", REQUEST + b"\x82\x85abcdhel"]


def test_connections_aborted_at_every_stage_leave_nothing_behind(serve):
    server = serve(handshake_timeout=5.0)
    in_thread(int)
    before = open_files(), greenlets()

    def abort(number):
        sock = gevent.socket.create_connection((server.host, server.port))
        sock.sendall(STAGES[number % len(STAGES)])
        if number % 3 == 0:  # else an ordinary end of the stream
            sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if number % 5 == 0 and STAGES[number % len(STAGES)]:
            gevent.sleep(0)
        sock.close()

    pool = gevent.pool.Pool(50)
    for number in range(2000 * SCALE):
        pool.spawn(abort, number)
    pool.join()
    wait_until(lambda: (open_files(), greenlets()) == before)
    assert server.context.Stats().connections == 0
    accepted, closed = server.handler.of("accepted"), server.handler.closed
    assert sorted(event[1] for event in accepted) == sorted(event[1] for event in closed)
    client = server.client()
    client.send_binary(b"still there")
    assert client.read_frame() == (2, b"still there")


EXHAUSTED_SERVER = """
import logging, resource, sys
import gevent, gowsev
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
class Echo(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, message)
context = gowsev.MakeContext(Echo())
print(context.ListenAndServe("127.0.0.1:0")[1], flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
gevent.signal_handler(15, context.Shutdown)
context.EventLoop()
"""


def test_accepting_goes_on_when_there_are_file_descriptors_again(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen([sys.executable, "-c", EXHAUSTED_SERVER], stdout=subprocess.PIPE, stderr=errors)
    try:
        port = int(in_thread(process.stdout.readline))
        clients = [RawClient("127.0.0.1", port) for _ in range(20)]
        waiting = [RawClient("127.0.0.1", port, handshake=False) for _ in range(40)]
        wait_until(lambda: "cannot accept connections" in log.read_text())
        # Those that are connected are served, and those that wait are not forgotten.
        clients[0].send_binary(b"here")
        assert clients[0].read_frame() == (2, b"here")
        waiting[-1].send(RawClient.request())
        until = time.monotonic() + 1.5  # several tries to accept, in which it must not say so again
        wait_until(lambda: time.monotonic() > until)
        assert log.read_text().count("cannot accept connections") == 1
        for client in clients + waiting[:-1]:
            client.close()
        assert waiting[-1].read_head().startswith(b"HTTP/1.1 101 ")
        wait_until(lambda: "accepting connections again" in log.read_text())
        waiting[-1].close()
        # What was in the backlog may take all descriptors once more before its end is seen; that is said again then.
        said = re.findall("cannot accept connections|accepting connections again", log.read_text())
        assert all(earlier != later for earlier, later in itertools.pairwise(said))
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        process.stdout.close()


# -- certificates ----------------------------------------------------------------------------------------------------


def test_certificates_change_and_vanish_under_load(serve, authority, client_tls, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew():
        issued = authority.issue_cert("localhost", "127.0.0.1")
        # One after the other, as tools do: for a moment they don't belong together.
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        gevent.sleep(0.005)
        issued.private_key_pem.write_to_path(key)

    renew()
    server = serve(certificate=(str(cert), str(key)))
    stop = []

    def connect_all_the_time():
        served = 0
        while not stop:
            client = RawClient(server.host, server.port, tls=client_tls)
            client.send_binary(b"x")
            assert client.read_frame() == (2, b"x")
            client.close()
            served += 1
        return served

    workers = [gevent.spawn(connect_all_the_time) for _ in range(4)]
    for round in range(10):
        renew()
        gevent.sleep(0.02)
        if round % 3 == 0:
            cert.unlink()
            gevent.sleep(0.02)
    stop.append(True)
    gevent.joinall(workers, PATIENCE)
    assert all(worker.successful() and worker.value > 0 for worker in workers), [worker.exception for worker in workers]


# -- the end of many -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_shutdown_says_goodbye_to_thousands_in_time(serve, many_files):
    server = serve(Recorder(), ping_interval=None, close_timeout=PATIENCE * 4)
    clients = open_clients(server, min(5000, (many_files - 300) // 2))
    wait_until(lambda: server.context.Stats().connections == len(clients))
    codes = []

    def say_goodbye(client):
        codes.append(client.read_close()[0])
        client.send_close(1001)
        client.read_to_end()

    goodbyes = [gevent.spawn(say_goodbye, client) for client in clients[10:]]  # ten never answer
    server.context.Shutdown(PATIENCE * 4)
    gevent.joinall(goodbyes, PATIENCE * 2)  # 10 s were too few beside a whole suite
    assert codes == [1001] * len(goodbyes)
    wait_until(lambda: len(server.handler.closed) == len(goodbyes))
    assert not server.loop.ready()
    server.context.Shutdown(0.5)  # it is urgent now: the silent ones are given up
    server.loop.join(PATIENCE)
    assert server.loop.ready()
    assert sorted(event[2] for event in server.handler.closed) == [1001] * len(goodbyes) + [1006] * 10
    assert server.context.Stats().connections == 0


CLIENTS = """
import sys, time
from websockets.sync.client import connect
connections = [connect(sys.argv[1]) for _ in range(20)]
for connection in connections:
    connection.send(b"here")
print("connected", flush=True)
time.sleep(600)
"""


def test_killed_clients_are_closed_with_1006(serve):
    server = serve(Recorder())
    process = subprocess.Popen([sys.executable, "-c", CLIENTS, server.url], stdout=subprocess.PIPE)
    assert in_thread(process.stdout.readline) == b"connected\n"
    wait_until(lambda: len(server.handler.messages) == 20)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()
    wait_until(lambda: len(server.handler.closed) == 20)
    assert {event[2] for event in server.handler.closed} == {1006}
    assert server.context.Stats().connections == 0

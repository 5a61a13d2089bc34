"""`tls`: against the standard library's TLS, and against peers that keep TLS busy."""

import contextlib
import io
import logging
import random
import socket
import ssl
import struct
import time
import warnings

import gevent
import gevent.socket
import pytest
from conftest import PATIENCE, echoes, wait_until
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from raw import RawClient

from gowsev.connection.sockets import take_over
from gowsev.connection.tls import TLSSocket
from gowsev.opening.certificate import Certificate

#: The data of one full record (RFC 8446 section 5.1), which is also what OpenSSL is given at a time.
PART = 1 << 14
#: The bytes that may come without any data, and those of answers that may wait: docs/withstands.md.
MOST_WITHOUT_DATA = 1 << 16

# -- peers that keep TLS busy ------------------------------------------------------------------------------------


class Updater:
    """A TLS 1.3 client that can send what no TLS library sends: KeyUpdate messages without end.

    The standard library shakes hands, and notes the secret from which the client's keys follow (RFC 8446 section 7.1).
    """

    def __init__(self, sock, client_tls, folder, data=b""):
        self.sock = sock
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(client_tls.get_ca_certs(True)[0]))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(folder / f"keys-{id(self)}")
        self.tls = TLSSocket(sock, context, "localhost")
        self.tls.do_handshake()
        assert self.tls._tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
        with open(context.keylog_filename) as keys:
            secrets = dict(line.split()[0::2] for line in keys if not line.startswith("#"))
        self.secret = bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"])
        self.records = 0
        if data:
            self.tls.sendall(data)
            self.records = 1

    def _derive(self, label, length):
        label = b"tls13 " + label
        info = struct.pack("!HB", length, len(label)) + label + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self.secret)

    def record(self, kind, content):
        """Encrypt one record (RFC 8446 section 5.2)."""
        header = struct.pack("!BHH", 23, 0x0303, len(content) + 1 + 16)
        start = int.from_bytes(self._derive(b"iv", 12), "big")
        nonce = (start ^ self.records).to_bytes(12, "big")
        self.records += 1
        return header + AESGCM(self._derive(b"key", 32)).encrypt(nonce, content + bytes([kind]), header)

    def updates(self, number, wants_answer=False):
        """Make so many KeyUpdate messages (RFC 8446 section 4.6.3)."""
        made = []
        for _ in range(number):
            made.append(self.record(22, bytes([24, 0, 0, 1, wants_answer])))
            self.secret = self._derive(b"traffic upd", 48)
            self.records = 0
        return b"".join(made)


@pytest.mark.parametrize("data", [RawClient.request(), b"GET / HT", b""], ids=["upgraded", "in a request", "silent"])
@pytest.mark.parametrize("wants_answer", [False, True])
def test_a_flood_of_key_updates_is_cut_off_and_holds_up_nobody(
    serve, certificate, client_tls, tmp_path, caplog, informed, data, wants_answer
):
    caplog.set_level(logging.INFO, "gowsev")
    server = serve(certificate=certificate)
    other = server.client(tls=client_tls)
    updater = Updater(gevent.socket.create_connection((server.host, server.port)), client_tls, tmp_path, data)
    flood = updater.updates(4 * MOST_WITHOUT_DATA // 27, wants_answer)

    def pour():
        with contextlib.suppress(ConnectionError):
            updater.sock.sendall(flood)
            while updater.sock.recv(1 << 16):
                pass
        return "cut off"

    pouring = gevent.spawn(pour)
    assert echoes(other)
    assert pouring.get(timeout=PATIENCE) == "cut off"
    assert echoes(other)
    wait_until(lambda: server.context.Stats().connections == 1)
    if server.context.Stats().accepted == 2:
        assert any("bytes of TLS without any data" in line for line in informed())
    updater.sock.close()


def test_a_few_key_updates_are_answered_and_harm_nobody(serve, certificate, client_tls, tmp_path):
    server = serve(certificate=certificate)
    sock = gevent.socket.create_connection((server.host, server.port))
    updater = Updater(sock, client_tls, tmp_path, RawClient.request())
    frame = b"\x82\x82\0\0\0\0hi"
    sock.sendall(updater.updates(100, wants_answer=True) + updater.record(23, frame))
    answer = b""
    while b"\x82\x02hi" not in answer:
        answer += updater.tls.recv(1 << 16)
    sock.close()


def test_answers_that_nobody_reads_are_bounded(pair, certificate, client_tls, tmp_path):
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    ours, updater = shake_hands(ours, certificate, lambda: Updater(theirs, client_tls, tmp_path))
    take_over(ours)

    def ask_and_never_read():
        for _ in range(1000):
            # Always some data with it: this is no flood without any.
            theirs.sendall(updater.updates(100, wants_answer=True) + updater.record(23, b"data"))
            assert read_all(ours, 1 << 16) == b"data"

    with pytest.raises(ConnectionAbortedError, match="too many answers of TLS"):
        ask_and_never_read()
    assert ours._outgoing.pending < 2 * MOST_WITHOUT_DATA
    ours.close()


# -- what arrives, and what leaves -------------------------------------------------------------------------------


@pytest.fixture
def pair():
    """Two gevent sockets that never wait for ever."""
    sockets = gevent.socket.socketpair()
    for sock in sockets:
        sock.settimeout(PATIENCE)
    yield sockets
    for sock in sockets:
        sock.close()


def shake_hands(ours, certificate, client):
    """Return our side, and what `client()` made of the other."""
    server = TLSSocket(ours, Certificate(*certificate).context())
    handshake = gevent.spawn(server.do_handshake)
    made = client()
    handshake.get(timeout=PATIENCE)
    return server, made


@pytest.fixture
def connected(pair, certificate, client_tls):
    """Our side, cooperative, and the standard library's."""
    ours, theirs = pair
    server, client = shake_hands(ours, certificate, lambda: client_tls.wrap_socket(theirs, server_hostname="localhost"))
    client.settimeout(PATIENCE)
    yield server, client
    server.close()
    client.close()


class InMemory:
    """A client whose bytes the test sends by itself."""

    def __init__(self, client_tls):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_tls.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def shake_hands(self, sock):
        """Return the last bytes of the handshake, which are still to be sent."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        sock.sendall(self.outgoing.read())
        while not self.outgoing.pending:
            self.incoming.write(sock.recv(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
        return self.outgoing.read()


def fill(sock, data):
    """Send `data` again and again until the kernel takes no more; return how many bytes that were."""
    sent = 0
    try:
        while True:
            sent += sock.send(data)
    except BlockingIOError:
        return sent


def read_all(sock, size):
    """Read from a non-blocking socket until it has nothing more; what it had."""
    data = b""
    try:
        while part := sock.recv(size):
            data += part
    except BlockingIOError:
        return data
    return data + b" and the end"


SIZES = [1, 1000, PART - 1, PART, PART + 1, 65536, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("room", [100, 1 << 18])
def test_what_is_sent_arrives(connected, size, room):
    ours, theirs = connected
    data = random.randbytes(size)
    sending = gevent.spawn(theirs.sendall, data)
    received = b""
    while len(received) < size:
        received += ours.recv(room)
    assert received == data
    sending.get(timeout=PATIENCE)
    sending = gevent.spawn(ours.sendall, data)
    received = b""
    while len(received) < size:
        received += theirs.recv(room)
    assert received == data
    sending.get(timeout=PATIENCE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("room", [100, 1 << 18])
def test_without_waiting_too(connected, size, room):
    ours, theirs = connected
    data = random.randbytes(size)
    take_over(ours)
    sending = gevent.spawn(theirs.sendall, data)
    received = b""

    def arrived():
        nonlocal received
        received += read_all(ours, room)
        return len(received) >= size

    wait_until(arrived)
    assert received == data
    assert not ours.pending()
    sending.get(timeout=PATIENCE)


def test_one_receive_is_bounded(connected):
    ours, theirs = connected
    take_over(ours)
    sending = gevent.spawn(theirs.sendall, bytes(1 << 20))
    wait_until(lambda: _waiting(ours) > 2 * PART)
    while not sending.ready():
        try:
            assert 0 < len(ours.recv(1 << 20)) <= 2 * PART, "a part, and the rest of a record before it"
        except BlockingIOError:
            gevent.sleep(0)


def _waiting(sock):
    with contextlib.suppress(BlockingIOError):
        return len(sock.sock.recv(1 << 20, socket.MSG_PEEK))
    return 0


def test_a_record_in_pieces(pair, certificate, client_tls):
    """Nothing is returned, and nothing lost, while a record is incomplete."""
    ours, theirs = pair
    client = InMemory(client_tls)
    ours, _ = shake_hands(ours, certificate, lambda: theirs.sendall(client.shake_hands(theirs)))
    take_over(ours)
    client.tls.write(b"in pieces")
    *first, last = client.outgoing.read()
    for byte in first:
        theirs.sendall(bytes([byte]))
        assert read_all(ours, 100) == b""
    theirs.sendall(bytes([last]))
    assert read_all(ours, 100) == b"in pieces"
    ours.close()


def test_data_that_comes_with_the_end_of_the_handshake(pair, certificate, client_tls):
    ours, theirs = pair
    client = InMemory(client_tls)

    def at_once():
        last = client.shake_hands(theirs)
        client.tls.write(b"at once")
        theirs.sendall(last + client.outgoing.read())

    ours, _ = shake_hands(ours, certificate, at_once)
    assert ours.pending()
    assert ours.recv(100) == b"at once"
    assert not ours.pending()


def test_a_refused_send_goes_on_where_it_was(connected):
    ours, theirs = connected
    take_over(ours)
    data, more = random.randbytes(1 << 16), random.randbytes(1000)
    sent = fill(ours, data)
    stream = b""

    def send_while_reading(offered):
        nonlocal stream
        while True:
            try:
                return ours.send(offered)
            except BlockingIOError:
                stream += theirs.recv(1 << 14)

    assert send_while_reading(data + more) == len(data), "as many as were encrypted, not as many as were offered last"
    assert send_while_reading(more) == len(more)
    sent += len(data) + len(more)
    while len(stream) < sent:
        stream += theirs.recv(1 << 16)
    assert stream == data * (sent // len(data)) + more


def test_a_waiting_answer_does_not_keep_data_from_being_read(pair, certificate, client_tls, tmp_path):
    ours, theirs = pair
    ours, updater = shake_hands(ours, certificate, lambda: Updater(theirs, client_tls, tmp_path))
    take_over(ours)
    fill(ours, bytes(1 << 16))
    theirs.sendall(updater.updates(1, wants_answer=True) + updater.record(23, b"data"))
    assert read_all(ours, 1 << 16) == b"data"
    ours.close()


# -- the end -----------------------------------------------------------------------------------------------------


def test_a_farewell_is_the_end_though_the_socket_stays_open(connected):
    ours, theirs = connected
    theirs.sendall(b"last")
    farewell = gevent.spawn(theirs.unwrap)
    take_over(ours)
    received = b""

    def ended():
        nonlocal received
        received += read_all(ours, 100)
        return received.endswith(b" and the end")

    wait_until(ended)
    assert received == b"last and the end"
    assert ours.pending(), "so that whoever read the data reads once more"
    ours.unwrap()
    farewell.get(timeout=PATIENCE).close()


@pytest.mark.parametrize("waiting", [True, False])
def test_the_end_of_the_socket_is_the_end(connected, waiting):
    ours, theirs = connected
    theirs.sendall(b"last")
    theirs.shutdown(socket.SHUT_WR)
    if not waiting:
        take_over(ours)
    assert ours.recv(100) == b"last"
    assert ours.recv(100) == b""
    assert ours.recv(100) == b""


def test_our_farewell_is_read_by_the_peer(connected):
    ours, theirs = connected
    ours.sendall(b"last")
    ours.unwrap()
    assert theirs.recv(100) == b"last"
    assert theirs.recv(100) == b""
    theirs.unwrap().close()


def test_garbage_is_an_error(connected):
    ours, theirs = connected
    take_over(ours)
    raw = theirs.detach()
    with socket.socket(fileno=raw) as plain:
        plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError):
            ours.recv(100)


def test_a_handshake_that_ends_early(pair, certificate):
    ours, theirs = pair
    theirs.sendall(b"\x16\x03\x01\x02")
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ssl.SSLEOFError, match="ended in the TLS handshake"):
        TLSSocket(ours, Certificate(*certificate).context()).do_handshake()


def test_a_handshake_that_fails_tells_the_peer_why(pair, certificate):
    ours, theirs = pair
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings(action="ignore"):
        old.maximum_version = old.minimum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    failing = gevent.spawn(TLSSocket(ours, Certificate(*certificate).context()).do_handshake)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
        TLSSocket(theirs, old, "localhost").do_handshake()
    with pytest.raises(ssl.SSLError):
        failing.get(timeout=PATIENCE)


# -- as a file ---------------------------------------------------------------------------------------------------


def test_a_file_reads_lines_and_what_is_there(connected):
    ours, theirs = connected
    file = ours.makefile("rb", -1)
    assert isinstance(file, io.BufferedReader)
    theirs.sendall(b"one\ntwo\nthree")
    assert file.readline() == b"one\n"
    assert file.readline() == b"two\n"
    take_over(ours)
    assert file.read1(100) == b"three"
    assert not file.read1(100)
    theirs.shutdown(socket.SHUT_WR)
    wait_until(lambda: ours.pending() or not ours.recv(1))
    assert file.read() == b""


def test_it_has_what_its_socket_has(connected):
    ours, theirs = connected
    assert ours.fileno() == ours.sock.fileno()
    assert ours.family == socket.AF_UNIX
    assert ours.version() == theirs.version() == "TLSv1.3"


def test_a_response_is_not_overtaken_by_a_reset_for_what_nobody_has_read(serve, certificate, client_tls):
    server = serve(certificate=certificate)
    client = TLSSocket(gevent.socket.create_connection((server.host, server.port)), client_tls, "localhost")
    client.do_handshake()
    client.sendall(b"GET /" + b"x" * 40_000)  # pywsgi reads 8 KiB of it, so TLS its first record: 2 times 16 KiB
    response = b""
    while data := client.recv(1 << 16):  # it would raise ConnectionResetError
        response += data
    assert response.startswith(b"HTTP/1.1 414 ")
    client.close()


def test_a_timeout_of_the_socket_holds(connected):
    ours, _ = connected
    ours.settimeout(0.01)
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        ours.recv(100)
    assert time.monotonic() - before >= 0.01

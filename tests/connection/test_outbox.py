from __future__ import annotations

import errno
import random
import socket

import gevent
import gevent.socket
import gevent.ssl
import pytest
from conftest import PATIENCE, greenlets, in_thread, wait_until

from gowsev.connection import outbox as outbox_module
from gowsev.connection.gathering import Batch
from gowsev.connection.outbox import Outbox
from gowsev.connection.sockets import poll_sockets
from gowsev.connection.tls import TLSSocket
from gowsev.errors import OutboxFull
from gowsev.wire.deflate import Deflate
from gowsev.wire.encoder import LARGE, Encoder
from gowsev.wire.frames import BINARY, FIN, encode_frame

pytestmark = pytest.mark.usefixtures("quiet_hub")

REFUSED = OutboxFull(1, 1000, 1000)


class Owner:
    """What an outbox calls when its socket is broken, and where it refuses a message."""

    def __init__(self, lost):
        self.lost = lost

    def refuse(self):
        return REFUSED


class Rig:
    """An outbox on one end of a socket pair, and what its peer has read at the other."""

    def __init__(self, kind=socket.SOCK_STREAM, limit=None):
        self.batch = Batch()
        self.errors = []
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.outbox = Outbox(Owner(self.errors.append), Encoder(), self.ours, False, self.batch, limit)

    def read(self):
        """Read all that has arrived."""
        data = b""
        try:
            while piece := self.theirs.recv(1 << 20):
                data += piece
        except BlockingIOError:
            pass
        return data

    def read_until(self, size):
        """Read slowly, in pieces that end anywhere, until `size` bytes are there and nothing more comes."""
        data = bytearray()

        def enough():
            try:
                data.extend(self.theirs.recv(random.randrange(1, 1 << 15)))
            except BlockingIOError:
                pass
            return len(data) >= size and not self.outbox.congested

        wait_until(enough)
        return bytes(data) + self.read()

    def congest(self):
        """Append until the kernel takes no more; return what was appended."""
        data = b""
        while not self.outbox.congested:
            chunk = random.randbytes(5000)
            self.outbox.append(chunk)
            data += chunk
        return data

    def close(self):
        self.outbox.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def packets():
    """A rig whose peer sees each `send` as a packet of its own."""
    made = Rig(socket.SOCK_SEQPACKET)
    yield made
    made.close()


# -- gathering ---------------------------------------------------------------------------------------------------


def test_outside_the_loop_every_append_leaves_at_once(packets):
    for chunk in (b"one", b"two"):
        packets.outbox.append(chunk)
        assert packets.theirs.recv(100) == chunk
    packets.outbox.append_long((b"th", b"ree"))
    assert packets.theirs.recv(100) == b"three"
    assert packets.outbox.size == 0
    assert packets.outbox.bytes_sent == 11


class Interrupted:
    """A socket whose first `send` is interrupted by Ctrl-C."""

    def __init__(self):
        self.sent = []
        self.interrupt = True

    def send(self, data):
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        self.sent.append(bytes(data))
        return len(data)


def test_an_interrupted_flush_forgets_none_of_the_outboxes_behind(capfd):
    batch, lost = Batch(), []
    batch.held = True
    sockets = [Interrupted() for _ in range(3)]
    outboxes = [Outbox(Owner(lost.append), Encoder(), sock, False, batch) for sock in sockets]
    sockets[1].interrupt = sockets[2].interrupt = False
    for outbox in outboxes:
        outbox.append(b"frame")
    with pytest.raises(KeyboardInterrupt):
        batch.flush()
    assert str(lost[0]) == "interrupted by KeyboardInterrupt while sending", "half a frame may have left"
    batch.flush()
    assert [sock.sent for sock in sockets] == [[], [b"frame"], [b"frame"]]
    assert len(lost) == 1


def test_an_interrupted_send_of_a_long_frame_ends_its_connection():
    batch, lost = Batch(), []
    batch.held = True
    outbox = Outbox(Owner(lost.append), Encoder(), Interrupted(), False, batch)
    outbox.append_long((bytes(LARGE),))
    with pytest.raises(KeyboardInterrupt):
        batch.flush()
    assert [str(error) for error in lost] == ["interrupted by KeyboardInterrupt while sending"]
    assert outbox.size == 0, "nothing can come behind half a frame"


def test_an_interrupted_flush_of_the_hub_is_made_up_for(capfd):
    batch, lost = Batch(), []
    batch.held = True
    sockets = [Interrupted() for _ in range(2)]
    outboxes = [Outbox(Owner(lost.append), Encoder(), sock, False, batch) for sock in sockets]
    last = sockets[1]
    last.interrupt = False
    for outbox in outboxes:
        outbox.append(b"frame")
    hub = gevent.get_hub()
    errors = hub.SYSTEM_ERROR
    hub.SYSTEM_ERROR = ()  # or it would end this test; the hub prints it in place of that
    try:
        wait_until(lambda: last.sent)
    finally:
        hub.SYSTEM_ERROR = errors
    assert last.sent == [b"frame"]
    assert "KeyboardInterrupt" in capfd.readouterr().err


def test_while_held_they_wait_for_the_flush_and_leave_in_one_send(packets):
    packets.batch.held = True
    packets.outbox.append(b"one ")
    packets.outbox.append_long((b"two ", b"three "))
    packets.outbox.append(b"four")
    assert packets.read() == b""
    assert packets.outbox.size == 18
    assert packets.outbox.bytes_sent == 0
    packets.batch.flush()
    assert packets.theirs.recv(100) == b"one two three four"
    assert packets.outbox.size == 0
    assert packets.outbox.bytes_sent == 18


def test_a_long_frame_alone_leaves_with_the_flush_too(packets):
    packets.batch.held = True
    for chunks in ((b"one",), (b"two ", b"chunks")):
        packets.outbox.append_long(chunks)
        assert packets.read() == b""
        packets.batch.flush()
        assert packets.theirs.recv(100) == b"".join(chunks)


def test_a_batch_flushes_every_outbox_that_gathered_once():
    rigs = [Rig(socket.SOCK_SEQPACKET) for _ in range(3)]
    batch = Batch()
    batch.held = True
    for rig in rigs:
        rig.outbox.move(batch)
        rig.outbox.append(b"a")
        rig.outbox.append(b"b")
    batch.flush()
    batch.flush()
    for rig in rigs:
        assert rig.theirs.recv(100) == b"ab"
        assert rig.read() == b""
        rig.close()


def test_while_held_the_hub_flushes_before_it_waits_for_anything(packets):
    """A callback that blocks cooperatively holds no message back."""
    packets.batch.held = True
    for chunk in (b"first", b"second"):
        packets.outbox.append(chunk)
        assert packets.read() == b""
        gevent.sleep(0)
        assert packets.theirs.recv(100) == chunk


def test_what_the_loop_has_flushed_is_not_flushed_again_by_the_hub(packets):
    packets.batch.held = True
    packets.outbox.append(b"first")
    packets.batch.flush()
    gevent.sleep(0)
    assert packets.theirs.recv(100) == b"first"
    assert packets.read() == b""


def test_more_bytes_than_are_worth_gathering_are_offered_at_once_even_while_held(rig, monkeypatch):
    monkeypatch.setattr(outbox_module, "_EAGER", 1000)
    rig.batch.held = True
    for _ in range(2):
        rig.outbox.append_long((bytes(900), bytes(100)))
        assert rig.read() == b""
        rig.outbox.append_long((b"x",))
        assert rig.read() == bytes(1000) + b"x"
        assert rig.outbox.size == 0


def test_more_frames_than_are_worth_gathering_are_offered_at_once_even_while_held(packets):
    packets.batch.held = True
    for number in range(64):
        packets.outbox.append(bytes([number]))
    assert packets.read() == b""
    packets.outbox.append(b"?")
    assert packets.theirs.recv(100) == bytes(range(64)) + b"?"
    packets.outbox.append(b"next")
    packets.batch.flush()
    assert packets.theirs.recv(100) == b"next"


def test_what_is_gathered_is_counted_before_it_leaves(packets):
    packets.batch.held = True
    packets.outbox.append(b"one")
    packets.outbox.append(b"two")
    assert (packets.outbox.size, packets.outbox.frames) == (6, 2)
    packets.batch.flush()
    assert packets.theirs.recv(100) == b"onetwo"
    assert (packets.outbox.size, packets.outbox.frames, packets.outbox.bytes_sent) == (0, 2, 6)


@pytest.mark.parametrize(
    ("limit", "most"), [(None, 64), (64 * LARGE - 1, 63), (2 * LARGE, 2), (2 * LARGE - 1, 1), (LARGE - 1, 0)]
)
def test_no_more_short_frames_are_gathered_than_the_limit_has_room_for(limit, most):
    rig = Rig(socket.SOCK_SEQPACKET, limit=limit)
    rig.batch.held = True
    for _ in range(most):
        assert rig.outbox.write(BINARY, b"x") is None
    assert rig.read() == b""
    assert rig.outbox.write(BINARY, b"x") is None
    assert rig.theirs.recv(1000) == encode_frame(FIN | BINARY, b"x") * (most + 1)
    rig.close()


def test_nothing_is_gathered_while_a_writer_is_at_work(rig):
    rig.congest()
    rig.batch.held = True
    rig.outbox.append(b"behind")
    rig.outbox.append_long((b"further", b"behind"))
    size = rig.outbox.size
    rig.batch.flush()
    assert rig.outbox.size == size, "it waits behind the rest"


def test_frames_are_counted_however_they_came_and_wherever_they_are(rig):
    rig.outbox.append(b"sent")
    rig.batch.held = True
    rig.outbox.append_long((b"two ", b"chunks"))
    rig.outbox.append(b"gathered")
    assert rig.outbox.frames == 3
    rig.batch.held = False
    rig.batch.flush()
    assert rig.outbox.frames == 3
    before = rig.outbox.frames + len(rig.congest()) // 5000
    rig.outbox.append(b"waits")
    rig.outbox.append_long((b"waits", b"too"))
    assert rig.outbox.frames == before + 2
    rig.outbox.close()
    assert rig.outbox.frames == before + 2


def test_it_is_full_when_more_than_the_limit_waits_that_the_kernel_does_not_take():
    rig = Rig(limit=1000)
    rig.batch.held = True
    rig.outbox.append_long((bytes(2000),))
    assert rig.outbox.write(BINARY, b"short") is None, "the kernel takes it"
    rig.batch.flush()
    assert rig.read() == bytes(2000) + encode_frame(FIN | BINARY, b"short")
    rig.batch.held = False
    rig.congest()
    while rig.outbox.size <= 1000:
        assert rig.outbox.write(BINARY, bytes(100)) is None
    size = rig.outbox.size
    for length in (0, 1, LARGE):
        assert rig.outbox.write(BINARY, bytes(length)) is REFUSED
    rig.outbox.append(b"control frames are sent all the same")
    assert rig.outbox.size == size + 36
    rig.close()


def test_a_message_is_taken_while_no_more_than_the_limit_waits(rig):
    rig.congest()
    full = Outbox(Owner(rig.errors.append), Encoder(), rig.ours, False, rig.batch, 1000)
    full.append_long((bytes(1000),))
    assert full.size == 1000
    assert full.write(BINARY, b"one more") is None
    assert full.write(BINARY, b"too many") is REFUSED
    full.close()


def test_message_that_is_refused_leaves_the_encoder_as_it_was(rig):
    """One that compresses with its context would else refer to bytes that the peer never gets."""
    rig.congest()
    encoder = Encoder(Deflate(takeover=True))
    full = Outbox(Owner(rig.errors.append), encoder, rig.ours, False, rig.batch, 0)
    full.append_long((bytes(1000),))
    assert full.write(BINARY, b"something long enough to be compressed" * 9) is REFUSED
    frame = encoder.encode(BINARY, b"something long enough to be compressed" * 9)
    assert frame == Encoder(Deflate(takeover=True)).encode(BINARY, b"something long enough to be compressed" * 9)
    full.close()


def test_flushing_nothing_sends_nothing(packets):
    packets.batch.flush()
    packets.outbox.flush()
    assert packets.read() == b""


# -- long messages and many chunks -------------------------------------------------------------------------------


def test_what_is_more_than_one_buffer_s_worth_leaves_in_one_send_too(packets):
    packets.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    packets.batch.held = True
    for _ in range(3):
        packets.outbox.append(bytes(40_000))
    packets.batch.flush()
    assert packets.theirs.recv(1 << 20) == bytes(120_000)


@pytest.mark.parametrize(
    "sizes",
    [
        [0xFFFF],
        [10, 100_000],
        [40_000, 40_000],
        [1, 65_535, 1, 65_536],
        [100] * 3000,  # more buffers than one `sendmsg` takes
        [1] * 2000 + [200_000] + [1] * 2000,
    ],
)
@pytest.mark.parametrize("read_first", [True, False], ids=["reading peer", "late peer"])
def test_every_byte_leaves_once_and_in_order(rig, sizes, read_first):
    rig.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    chunks = [random.randbytes(size) for size in sizes]
    rig.batch.held = True
    for chunk in chunks:
        rig.outbox.append(chunk)
    rig.batch.held = False
    rig.batch.flush()
    if not read_first:
        gevent.sleep(0.01)
    assert rig.read_until(sum(sizes)) == b"".join(chunks)
    assert rig.outbox.size == 0
    assert rig.outbox.bytes_sent == sum(sizes)


def test_a_long_frame_leaves_in_one_send_though_it_has_chunks(packets):
    packets.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    packets.outbox.append_long((b"header", bytes(100_000)))
    assert packets.theirs.recv(1 << 20) == b"header" + bytes(100_000)


# -- congestion --------------------------------------------------------------------------------------------------


def test_what_the_kernel_does_not_take_waits_counted_and_is_sent_when_the_peer_reads(rig):
    data = rig.congest()
    sent = len(data) - rig.outbox.size
    assert 0 < sent < len(data)
    assert rig.outbox.bytes_sent == sent

    # What comes now queues up behind, and asks the kernel nothing.
    more = random.randbytes(300_000)
    rig.outbox.append(more[:100_000])
    rig.outbox.append_long((more[100_000:200_000], more[200_000:]))
    rig.outbox.flush()
    assert rig.outbox.bytes_sent == sent
    assert rig.outbox.size == len(data) + len(more) - sent

    assert rig.read_until(len(data) + len(more)) == data + more
    assert rig.outbox.size == 0
    assert rig.outbox.bytes_sent == len(data) + len(more)
    assert not rig.errors


@pytest.mark.parametrize("size", [60_000, 300_000])
def test_what_the_kernel_takes_a_part_of_is_counted_and_the_rest_is_sent(rig, size):
    data = random.randbytes(size)
    rig.outbox.append(data)
    assert 0 < rig.outbox.bytes_sent < size
    assert rig.outbox.size == size - rig.outbox.bytes_sent
    assert rig.read_until(size) == data
    assert (rig.outbox.size, rig.outbox.bytes_sent) == (0, size)


def test_a_peer_in_another_thread_gets_everything(rig):
    """Nothing but the writer runs here meanwhile, so its every round follows directly on the one before."""
    data = random.randbytes(1_000_000)
    rig.outbox.append(data)
    assert rig.outbox.congested
    rig.theirs.setblocking(True)
    rig.theirs.settimeout(PATIENCE)
    assert in_thread(rig.theirs.makefile("rb").read, len(data)) == data
    wait_until(lambda: not rig.outbox.congested)


def test_a_writer_exists_only_while_there_is_congestion(rig):
    before = greenlets()
    for _ in range(3):
        data = rig.congest()
        assert greenlets() == before + 1
        assert rig.read_until(len(data)) == data
        wait_until(lambda: greenlets() == before)
        assert not rig.outbox.congested
        rig.outbox.append(b"at once")
        assert rig.read() == b"at once"


class NotingSocket:
    """A socket that notes what is offered to it, the buffers of each send."""

    def __init__(self, sock):
        self.sock = sock
        self.offers = []

    def fileno(self):
        return self.sock.fileno()

    def send(self, data):
        self.offers.append([data])
        return self.sock.send(data)

    def sendmsg(self, buffers):
        self.offers.append(buffers)
        return self.sock.sendmsg(buffers)


def test_a_writer_is_not_woken_by_what_its_peer_sends(rig):
    """Else it would keep the processor busy for as long as nobody reads that."""
    noting = NotingSocket(rig.ours)
    rig.outbox = Outbox(Owner(rig.errors.append), Encoder(), noting, False, rig.batch)
    rig.congest()
    gevent.sleep(0)  # the writer has begun to wait
    before = len(noting.offers)
    rig.theirs.send(b"something to read")
    for _ in range(10):
        poll_sockets()
    assert len(noting.offers) == before


def test_a_long_payload_is_not_copied_however_often_it_is_offered(rig):
    noting = NotingSocket(rig.ours)
    rig.outbox = Outbox(Owner(rig.errors.append), Encoder(), noting, False, rig.batch)
    data = random.randbytes(300_000)
    rig.outbox.append_long((b"header", data))
    assert rig.read_until(6 + len(data)) == b"header" + data
    long = [buffer for offer in noting.offers for buffer in offer if len(buffer) > 1 << 16]
    assert len(long) > 2
    assert all(memoryview(buffer).obj is data for buffer in long)


def test_appending_to_a_congested_outbox_while_held_needs_no_flush(rig):
    data = rig.congest()
    rig.batch.held = True
    rig.outbox.append(b"end")
    assert rig.read_until(len(data) + 3) == data + b"end"


def test_drained_is_told_each_time_nothing_is_left_and_only_then(rig):
    told = []
    rig.outbox.drained = lambda: told.append(rig.outbox.size)
    rig.outbox.append(b"x")
    assert told == [0]
    assert rig.read() == b"x"
    data = rig.congest()
    del told[:]
    rig.outbox.append(b"end")
    assert not told
    assert rig.read_until(len(data) + 3) == data + b"end"
    assert told == [0]


def test_whoever_waits_goes_on_when_everything_has_been_sent(rig):
    rig.outbox.wait()  # nothing to wait for
    data = rig.congest()
    waiting = gevent.spawn(rig.outbox.wait)
    gevent.sleep(0.01)
    assert not waiting.ready()
    assert rig.read_until(len(data)) == data
    waiting.get(timeout=PATIENCE)
    assert rig.outbox.size == 0
    assert rig.outbox.discarded is False


def test_whoever_waits_goes_on_and_can_tell_when_it_was_thrown_away(rig):
    rig.congest()
    waiting = gevent.spawn(rig.outbox.wait)
    gevent.sleep(0.01)
    rig.outbox.close()
    waiting.get(timeout=PATIENCE)
    assert rig.outbox.discarded is True


def test_closing_throws_away_what_was_gathered_too(rig):
    rig.batch.held = True
    rig.outbox.append(b"x")
    rig.outbox.close()
    assert rig.outbox.discarded is True
    assert (rig.outbox.size, rig.outbox.frames) == (0, 1)
    rig.batch.flush()
    assert rig.read() == b""


def test_closing_what_is_empty_throws_nothing_away(rig):
    rig.outbox.append(b"x")
    rig.outbox.close()
    assert rig.outbox.discarded is False


# -- the late chunk ----------------------------------------------------------------------------------------------


def test_the_late_chunk_is_sent_last_and_only_its_newest_value(rig):
    data = rig.congest()
    rig.outbox.late = b"first"
    rig.outbox.late = b"second"
    rig.outbox.append(b"more")
    assert rig.read_until(len(data) + 10) == data + b"more" + b"second"
    assert rig.outbox.late == b""
    assert rig.outbox.size == 0
    assert rig.outbox.bytes_sent == len(data) + 10


# -- ends --------------------------------------------------------------------------------------------------------


def test_closing_forgets_what_waits_and_ends_the_writer(rig):
    before = greenlets()
    data = rig.congest()
    gevent.sleep(0)  # the writer has begun to wait
    rig.outbox.late = b"late"
    taken = len(data) - rig.outbox.size
    rig.outbox.close()
    assert rig.outbox.size == 0
    assert not rig.outbox.congested
    wait_until(lambda: greenlets() == before)
    assert rig.read() == data[:taken]
    gevent.sleep(0.01)
    assert rig.read() == b""
    assert not rig.errors


def test_closing_before_the_writer_has_begun_ends_it_too(rig):
    before = greenlets()
    rig.congest()
    rig.outbox.close()
    wait_until(lambda: greenlets() == before)


def test_a_writer_that_is_being_ended_does_not_disturb_its_successor(rig):
    before = rig.congest()
    taken = len(before) - rig.outbox.size
    gevent.sleep(0)  # the first writer has begun to wait
    rig.outbox.close()
    after = random.randbytes(100_000)
    rig.outbox.append(after)
    assert rig.outbox.congested
    assert rig.read_until(taken + len(after)) == before[:taken] + after


@pytest.mark.parametrize("chunks", [(b"y",), (b"y", bytes(100_000))], ids=["short", "long"])
def test_a_broken_socket_is_reported_once_and_nothing_waits_any_more(rig, chunks):
    rig.theirs.close()
    rig.batch.held = True
    rig.outbox.append(b"x")
    for chunk in chunks:
        rig.outbox.append(chunk)
    rig.batch.flush()
    assert [error.errno for error in rig.errors] == [errno.EPIPE]
    assert rig.outbox.size == 0
    assert not rig.outbox.congested, "there is nothing to write any more"
    rig.outbox.flush()
    assert len(rig.errors) == 1


def test_a_socket_that_breaks_while_congested_is_reported_once(rig):
    before = greenlets()
    rig.congest()
    gevent.sleep(0)
    rig.outbox.late = b"late"
    rig.theirs.close()
    wait_until(lambda: rig.errors)
    wait_until(lambda: greenlets() == before)
    assert len(rig.errors) == 1
    assert isinstance(rig.errors[0], OSError)
    assert (rig.outbox.size, rig.outbox.congested, rig.outbox.late) == (0, False, b"")


def test_whoever_is_told_of_the_loss_may_close_the_outbox_and_the_socket(rig):
    def lost(error):
        rig.errors.append(error)
        rig.outbox.flush()
        rig.outbox.close()
        rig.ours.close()

    rig.outbox = Outbox(Owner(lost), Encoder(), rig.ours, False, rig.batch)
    before = greenlets()
    rig.congest()
    rig.theirs.close()
    wait_until(lambda: rig.errors)
    wait_until(lambda: greenlets() == before)
    gevent.sleep(0.01)
    assert len(rig.errors) == 1


# -- TLS ---------------------------------------------------------------------------------------------------------


class TLSRig(Rig):
    """The same over TLS: gevent's `send` there returns 0 where ours raises, and there is no `sendmsg`."""

    def __init__(self, certificate, client_tls, shake_hands):
        ours, theirs = gevent.socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server = gevent.spawn(shake_hands, context, ours)
        self.theirs = client_tls.wrap_socket(theirs, server_hostname="localhost")
        self.ours = server.get(timeout=PATIENCE)
        self.ours.settimeout(0.0)
        self.theirs.settimeout(0.0)
        self.batch = Batch()
        self.errors = []
        self.outbox = Outbox(Owner(self.errors.append), Encoder(), self.ours, True, self.batch)

    def read(self):
        data = b""
        try:
            while piece := self.theirs.recv(1 << 20):
                data += piece
        except gevent.ssl.SSLWantReadError:
            pass
        return data

    def read_until(self, size):
        data = bytearray()

        def enough():
            try:
                data.extend(self.theirs.recv(random.randrange(1, 1 << 15)))
            except gevent.ssl.SSLWantReadError:
                pass
            return len(data) >= size and not self.outbox.congested

        wait_until(enough)
        return bytes(data) + self.read()


def with_ours(context, sock):
    made = TLSSocket(sock, context)
    made.do_handshake()
    return made


def with_gevents(context, sock):
    return context.wrap_socket(sock, server_side=True)


@pytest.fixture(params=[with_ours, with_gevents])
def tls_rig(request, certificate, client_tls):
    made = TLSRig(certificate, client_tls, request.param)
    yield made
    made.close()


@pytest.mark.parametrize(
    "sizes",
    [
        [5],
        [60_000, 10_000],
        [10, 100],
        [10, 100_000],
        [40_000, 40_000, 40_000],
        [100] * 3000,
        [1] * 2000 + [200_000, 1, 1],
    ],
)
def test_over_tls_every_byte_leaves_once_and_in_order(tls_rig, sizes):
    chunks = [random.randbytes(size) for size in sizes]
    tls_rig.batch.held = True
    for chunk in chunks:
        tls_rig.outbox.append(chunk)
    tls_rig.batch.held = False
    tls_rig.batch.flush()
    assert tls_rig.read_until(sum(sizes)) == b"".join(chunks)
    assert tls_rig.outbox.size == 0
    assert tls_rig.outbox.bytes_sent == sum(sizes)


def test_over_tls_a_refused_send_is_repeated_as_openssl_wants_it(tls_rig):
    """SSL_write must be given the same bytes again after it could not send them, however much has queued up since."""
    data = tls_rig.congest()
    more = random.randbytes(100_000)
    for start in range(0, len(more), 1000):
        tls_rig.outbox.append(more[start : start + 1000])
    assert tls_rig.read_until(len(data) + len(more)) == data + more
    assert not tls_rig.errors


@pytest.mark.parametrize("sizes", [(200_000,), (60_000, 10_000), (65_536, 1), (1, 30_000, 30_000, 30_000)])
def test_over_tls_no_more_is_offered_at_once_than_one_buffer_s_worth_and_no_less(tls_rig, sizes):
    noting = NotingSocket(tls_rig.ours)
    tls_rig.outbox = Outbox(Owner(tls_rig.errors.append), Encoder(), noting, True, tls_rig.batch)
    chunks = tuple(random.randbytes(size) for size in sizes)
    tls_rig.outbox.append_long(chunks)
    assert tls_rig.read_until(sum(sizes)) == b"".join(chunks)
    lengths = [len(data) for [data] in noting.offers]
    assert lengths[0] == max(lengths) == 1 << 16


def test_over_tls_a_broken_socket_is_reported(tls_rig):
    tls_rig.congest()
    tls_rig.theirs.close()
    wait_until(lambda: tls_rig.errors)
    assert isinstance(tls_rig.errors[0], OSError)
    assert tls_rig.outbox.size == 0


def test_progress_is_seen_before_the_kernel_takes_more():
    rig = Rig()
    rig.outbox.append(bytes(1 << 20))
    assert rig.outbox.congested
    seen, sent = rig.outbox.progress(), rig.outbox.bytes_sent
    assert rig.read()
    assert rig.outbox.bytes_sent == sent
    assert rig.outbox.progress() > seen
    rig.outbox.close()
    rig.ours.close()
    rig.theirs.close()


def test_without_a_kernel_that_tells_progress_is_what_was_sent(tmp_path):
    with (tmp_path / "no socket").open("wb") as file:
        assert Outbox(Owner([].append), Encoder(), file, False, Batch()).progress() == 0

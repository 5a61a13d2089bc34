"""Messages in pieces, sent: what reaches the peer, what is held meanwhile, and every way in which one can end."""

import gzip
import io
import logging
import random

import gevent
import pytest
from conftest import PATIENCE, Recorder, echo, in_thread, wait_until
from hypothesis import given
from hypothesis import strategies as st
from tables import PROPERTY
from websockets.sync.client import connect

import gowsev
from gowsev.connection.fork import disown_all
from gowsev.wire import frames
from gowsev.wire.frames import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT

MEGABYTE = 1 << 20


class Source:
    """Pieces that note how far they were asked for, and what became of them."""

    def __init__(self, pieces):
        self._pieces = iter(pieces)
        self.pulled = 0
        self.closed = 0

    def __iter__(self):
        return self

    def __next__(self):
        piece = next(self._pieces)
        self.pulled += 1
        return piece

    def close(self):
        self.closed += 1


class Outcomes(Recorder):
    """Notes what `done` is called with, between the other events."""

    def done(self, context, id, error):
        self.events.append(("done", id, error))

    @property
    def outcomes(self):
        return [event[2] for event in self.of("done")]


def begin(server, source, write="WriteStream", then=None):
    """Let a callback write a message in pieces to connection 1, and do something more."""
    results = []

    def post(context):
        results.append(getattr(context, write)(1, source, server.handler.done))
        if then is not None:
            results.append(then(context))

    server.context.Post(post)
    wait_until(lambda: results)
    return results


def read_frame(client):
    """Return the first byte and the payload of the next frame, which may be a fragment."""
    while True:
        header = frames.parse_header(client.buffer, 0, len(client.buffer))
        if header is not None and len(client.buffer) >= header.size + header.length:
            client.take(header.size)
            return header.first, client.take(header.length)
        client.fill()


def read_message(client):
    """Return the opcode and the payload of a fragmented message, and the control frames that came in between."""
    first, begun = read_frame(client)
    opcode, controls, payload = first & 0x0F, [], bytearray(begun)
    assert opcode in (TEXT, BINARY)
    while not first & FIN or first & 0x0F >= CLOSE:
        first, piece = read_frame(client)
        if first & 0x0F >= CLOSE:
            controls.append((first & 0x0F, piece))
        else:
            assert first in (CONTINUATION, FIN | CONTINUATION)
            payload += piece
    return opcode, payload, controls


# -- what reaches the peer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "pieces", "expected"),
    [
        # RFC 6455 section 5.4: "a fragmented message consists of a single frame with the FIN bit clear and an opcode
        # other than 0, followed by zero or more frames with the FIN bit clear and the opcode set to 0, and terminated
        # by a single frame with the FIN bit set and an opcode of 0."
        ("WriteStream", [bytes(65536), b"end"], [(2, bytes(65536)), (0x80, b"end")]),
        (
            "WriteStream",
            [bytes(200_000)],
            [(2, bytes(65536)), (0, bytes(65536)), (0, bytes(65536)), (0x80, bytes(3392))],
        ),
        ("WriteStream", [bytes(65536)], [(2, bytes(65536)), (0x80, b"")]),
        # Short pieces are gathered: a message of very many frames is refused by some peers.
        ("WriteStream", [bytes(1000)] * 100, [(2, bytes(65536)), (0x80, bytes(34464))]),
        ("WriteStream", [b"Hel", bytearray(b"l"), b"", memoryview(b"o")], [(0x82, b"Hello")]),
        ("WriteStream", [], [(0x82, b"")]),
        ("WriteTextStream", ["Gr", "üß", "e"], [(0x81, "Grüße".encode())]),
        # 5.6: "a particular text frame might include a partial UTF-8 sequence".
        ("WriteTextStream", ["a", "ü" * 32768], [(1, b"a" + "ü".encode() * 32767 + b"\xc3"), (0x80, b"\xbc")]),
        ("WriteTextStream", [""], [(0x81, b"")]),
    ],
)
def test_pieces_are_sent_as_fragments(serve, write, pieces, expected):
    server = serve(Outcomes())
    client = server.client()
    assert begin(server, pieces, write) == [None]
    assert [read_frame(client) for _ in expected] == expected
    wait_until(lambda: server.handler.outcomes == [None])
    assert server.context.Stats().messages_sent == 1


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("takeover", [False, True])
def test_another_library_reads_it_as_one_message(serve, compression, takeover):
    server = serve(Outcomes(), compression=compression, compression_takeover=takeover)
    big = random.Random(1).randbytes(150_000) + bytes(150_000)
    turns = [("WriteStream", [big, b"", b"end"]), ("WriteTextStream", ["wörld"] * 1000), ("WriteStream", [])] * 2

    def read():
        with connect(server.url, max_size=None, compression=compression) as client:
            client.send("go")
            return [client.recv() for _ in range(2 * len(turns))]

    def answer(context, id, message):
        for write, pieces in turns:
            assert getattr(context, write)(id, iter(pieces), server.handler.done) is None
            assert context.WriteText(id, "between") is None

    server.handler.answer = answer
    whole = [big + b"end", "wörld" * 1000, b""] * 2
    assert in_thread(read) == [message for one in whole for message in (one, "between")]
    assert server.handler.outcomes == [None] * 6


@PROPERTY
@given(st.lists(st.binary(max_size=300) | st.integers(65000, 140000).map(bytes), max_size=6), st.booleans())
def test_any_split_is_the_same_message(pieces, compressed):
    from websockets.extensions.permessage_deflate import PerMessageDeflate
    from wsproto import extensions
    from wsproto.frame_protocol import FrameProtocol

    from gowsev.wire.deflate import Deflate
    from gowsev.wire.encoder import Encoder

    encoded = Encoder(Deflate() if compressed else None).fragments(BINARY)
    data = b"".join(b"".join(encoded.add(piece)) for piece in pieces[:-1]) + encoded.end(b"".join(pieces[-1:]))
    read = websockets_frames(data, [PerMessageDeflate(True, True, 15, 15)] if compressed else [])
    assert b"".join(read) == b"".join(pieces)
    deflate = extensions.PerMessageDeflate(client_no_context_takeover=True, server_no_context_takeover=True)
    deflate.finalize("permessage-deflate; server_no_context_takeover; client_no_context_takeover")
    protocol = FrameProtocol(client=True, extensions=[deflate] if compressed else [])
    protocol.receive_bytes(data)
    assert b"".join(bytes(frame.payload) for frame in protocol.received_frames()) == b"".join(pieces)


def websockets_frames(data, extensions):
    """Return the payload of each frame that the `websockets` library finds in a server's bytes."""
    from websockets.frames import Frame
    from websockets.streams import StreamReader

    reader = StreamReader()
    reader.feed_data(data)
    while reader.buffer:
        step = Frame.parse(reader.read_exact, mask=False, extensions=extensions)
        try:
            next(step)
        except StopIteration as parsed:
            yield parsed.value.data
        else:
            raise AssertionError("a frame is cut")


@pytest.mark.parametrize("opened", ["memory", "gzip", "path"])
def test_a_file_is_read_in_chunks_and_closed(serve, tmp_path, opened):
    server = serve(Outcomes())
    client = server.client()
    content = random.Random(1).randbytes(MEGABYTE + 1)
    (tmp_path / "file").write_bytes(gzip.compress(content, 1) if opened == "gzip" else content)
    how = {"memory": lambda _: io.BytesIO(content), "gzip": gzip.open, "path": lambda path: path.open("rb")}
    file = how[opened](tmp_path / "file")
    begin(server, file)
    assert read_message(client) == (BINARY, content, [])
    wait_until(lambda: server.handler.outcomes == [None])
    assert file.closed


def test_a_text_file_is_a_text_message(serve, tmp_path):
    server = serve(Outcomes())
    client = server.client()
    (tmp_path / "file").write_text("Grüße\n" * 50000, "utf-8")
    begin(server, (tmp_path / "file").open(encoding="utf-8"), "WriteTextStream")
    assert read_message(client) == (TEXT, ("Grüße\n" * 50000).encode(), [])


# -- while the peer is slow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("limit", [1, 1000, 100_000, MEGABYTE])
def test_no_more_is_held_than_the_outbox_allows(serve, certificate, client_tls, tls, limit):
    total = (64 << 20) if limit >= 100_000 and not tls else 300_000
    if limit == 1:
        total = 300
    piece = random.Random(1).randbytes(max(1, total // 64))
    source = Source(piece for _ in range(total // len(piece)))
    server = serve(Outcomes(), outbox_bytes=limit, certificate=certificate if tls else None)
    client = server.client(tls=client_tls if tls else None)
    most = 0

    def watch():
        nonlocal most
        while True:
            most = max(most, server.context.Stats().outbox_bytes)
            gevent.sleep(0)

    begin(server, source)
    watcher = gevent.spawn(watch)
    received = 0
    first, payload = read_frame(client)
    while not first & FIN:
        received += len(payload)
        first, payload = read_frame(client)
    watcher.kill()
    received += len(payload)
    assert received == len(piece) * (total // len(piece))
    assert most <= max(limit, 15), "one byte and the longest header, where the limit is less than that"
    wait_until(lambda: server.handler.outcomes == [None])
    assert source.closed == 1


def test_a_peer_that_does_not_read_is_asked_for_nothing_more_and_others_are_served(serve):
    server = serve(Outcomes(echo))
    server.client(receive_buffer=4096)
    source = Source(bytes(65536) for _ in range(10_000))
    begin(server, source)
    wait_until(lambda: server.context.Stats().outbox_bytes)
    other = server.client()
    for _ in range(3):
        other.send_binary(b"x")
        assert other.read_frame() == (BINARY, b"x")
    assert source.pulled < 200, "what the kernel's buffers take, and one turn"
    assert not source.closed


def test_other_connections_have_their_turns_while_a_source_never_waits(serve):
    server = serve(Outcomes(echo))
    server.client()
    ended = []

    def endless():
        while not ended:
            yield b""  # which never waits for the peer
        yield b"end"

    begin(server, endless())
    other = server.client()
    other.send_binary(b"x")
    assert other.read_frame() == (BINARY, b"x")
    ended.append(True)
    wait_until(lambda: server.handler.outcomes == [None])


def test_control_frames_go_between_the_fragments(serve):
    server = serve(Outcomes())
    client = server.client()
    begin(server, Source(bytes(65536) for _ in range(400)))
    wait_until(lambda: server.context.Stats().outbox_bytes)
    client.send_frame(PING, b"old")
    client.send_frame(PING, b"newest")
    wait_until(lambda: server.context.Stats().bytes_received >= 21)
    opcode, payload, controls = read_message(client)
    assert (opcode, len(payload)) == (BINARY, 400 * 65536)
    # 5.4: "Control frames (see Section 5.5) MAY be injected in the middle of a fragmented message."
    assert (PONG, b"newest") in controls


def test_messages_wait_in_order_behind_it_up_to_the_limit(serve):
    server = serve(Outcomes(), outbox_bytes=100_000, slow_consumer="drop")
    client = server.client()
    refused = []

    def then(context):
        context.WriteText(1, "one")
        context.WriteTextStream(1, iter(["tw", "o"]), server.handler.done)
        assert context.Broadcast([1], bytes(40_000)) == []
        assert context.Stats().outbox_bytes >= 3 + 65536 + 40_000
        refused.append(context.Write(1, b"refused"))
        spare = Source([])
        refused.append(context.WriteStream(1, spare, server.handler.done))
        assert spare.closed == 1
        assert context.Stats().messages_sent == 2

    begin(server, [b"ze", b"ro"], then=then)
    assert read_message(client) == (BINARY, b"zero", [])
    assert client.read_frame() == (TEXT, b"one")
    assert read_message(client) == (TEXT, b"two", [])
    assert client.read_frame() == (BINARY, bytes(40_000))
    assert [type(error) for error in refused] == [gowsev.OutboxFull] * 2
    wait_until(lambda: server.handler.outcomes == [None, None])
    assert server.context.Write(1, b"again") is None, "nothing is held back any more"
    assert client.read_frame() == (BINARY, b"again")
    assert server.context.Stats().messages_sent == 5


def test_a_group_of_a_broadcast_goes_on_without_one_that_streams(serve):
    server = serve(Outcomes())
    clients = [server.client() for _ in range(6)]
    ids = range(1, 7)
    wait_until(lambda: len(server.context.Conns()) == 6)

    def broadcast(context):
        for number in range(20):
            assert context.Broadcast(ids, b"%d" % number) == []
            if number == 12:
                context.WriteStream(1, [b"in ", b"pieces"], server.handler.done)

    server.context.Post(broadcast)
    for number in range(20):
        for client in clients:
            assert client.read_frame() == (BINARY, b"%d" % number)
        if number == 12:
            assert read_message(clients[0]) == (BINARY, b"in pieces", [])


# -- how it ends -------------------------------------------------------------------------------------------------


BEGUN = bytes(65536)


def raising(error):
    yield BEGUN
    raise error


@pytest.mark.parametrize(
    ("source", "write", "error", "text"),
    [
        (raising(LookupError("no row")), "WriteStream", LookupError, "no row"),
        ([BEGUN, "text"], "WriteStream", TypeError, "must be bytes, bytearray or memoryview, not str"),
        ([BEGUN, None], "WriteStream", TypeError, "must be bytes, bytearray or memoryview, not NoneType"),
        (["\0" * 65536, b"bytes"], "WriteTextStream", TypeError, "must be str, not bytes"),
        (["\0" * 65536, "\ud800"], "WriteTextStream", UnicodeEncodeError, "surrogates not allowed"),
    ],
)
def test_an_error_of_the_source_closes_the_connection_and_is_told(serve, caplog, source, write, error, text):
    caplog.set_level(logging.INFO)
    server = serve(Outcomes())
    client = server.client()
    begin(server, source, write, then=lambda context: context.Write(1, b"behind"))
    assert read_frame(client)[1] == BEGUN
    assert client.read_frame() == (CLOSE, b"\x03\xf3internal error"), "between the fragments: 1011"
    client.send_close(1011)
    wait_until(lambda: server.handler.closed)
    [outcome] = server.handler.outcomes
    assert isinstance(outcome, error)
    assert text in str(outcome)
    assert [event[0] for event in server.handler.events] == ["accepted", "done", "closed"]
    assert server.context.Stats().callback_errors == 1
    assert "1 messages behind it were not sent" in caplog.text
    assert any(record.exc_info and record.exc_info[1] is outcome for record in caplog.records)


@pytest.mark.parametrize("how", ["close frame", "reset", "violation"])
def test_the_end_of_the_connection_ends_it(serve, how):
    server = serve(Outcomes())
    client = server.client(receive_buffer=4096)
    first, second = Source(bytes(65536) for _ in range(10_000)), Source([b"x"])
    begin(server, first, then=lambda context: context.WriteStream(1, second, server.handler.done))
    wait_until(lambda: server.context.Stats().outbox_bytes)
    if how == "reset":
        client.reset()
    else:
        client.send_close(1000) if how == "close frame" else client.send_frame(3)
        data = client.read_to_end()
        assert data.endswith((b"\x03\xe8", b"reserved opcode 3"))
    wait_until(lambda: server.handler.closed)
    assert [type(outcome) for outcome in server.handler.outcomes] == [gowsev.ConnClosing] * 2
    assert [event[0] for event in server.handler.events] == ["accepted", "done", "done", "closed"]
    assert first.closed == second.closed == 1
    assert first.pulled < 10_000
    assert second.pulled == 0
    assert server.context.Stats().outbox_bytes == 0


@pytest.mark.parametrize("stop", ["Close", "Shutdown"])
def test_a_close_goes_behind_what_was_written_before(serve, stop):
    server = serve(Outcomes())
    client = server.client()
    refused = []

    def then(context):
        context.WriteText(1, "behind")
        context.Shutdown() if stop == "Shutdown" else context.Close(1, 4000, "first")
        context.Close(1, 4001, "a second one does nothing")
        refused.append(context.Write(1, b"late"))
        spare = Source([])
        refused.append(context.WriteStream(1, spare))
        assert spare.closed == 1

    begin(server, Source(bytes(65536) for _ in range(100)), then=then)
    opcode, payload, _ = read_message(client)
    assert (opcode, len(payload)) == (BINARY, 100 * 65536)
    assert client.read_frame() == (TEXT, b"behind")
    assert client.read_close() == ((1001, "shutting down") if stop == "Shutdown" else (4000, "first"))
    client.send_close()
    wait_until(lambda: server.handler.closed)
    assert server.handler.outcomes == [None]
    assert [type(error) for error in refused] == [gowsev.ConnClosing] * 2


def test_a_close_in_the_middle_is_bounded_in_time(serve, caplog):
    caplog.set_level(logging.INFO)
    server = serve(Outcomes(), close_timeout=0.3)
    server.client(receive_buffer=4096)
    source = Source(bytes(65536) for _ in range(10_000))
    begin(server, source, then=lambda context: context.Close(1))
    wait_until(lambda: server.handler.closed)
    assert isinstance(server.handler.outcomes[0], gowsev.ConnClosing)
    assert source.closed == 1
    assert "a message in pieces was not completed" in caplog.text


def test_the_peer_answers_a_close_that_has_not_been_sent_yet(serve):
    server = serve(Outcomes())
    client = server.client(receive_buffer=4096)
    begin(server, Source(bytes(65536) for _ in range(10_000)), then=lambda context: context.Close(1, 4000))
    wait_until(lambda: server.context.Stats().outbox_bytes)
    client.send_close(4001)
    assert client.read_to_end().endswith(b"\x0f\xa1")
    wait_until(lambda: server.handler.closed)
    assert isinstance(server.handler.outcomes[0], gowsev.ConnClosing)
    assert server.context.Stats().closed_by_code == {4001: 1}


def test_a_slow_consumer_s_close_waits_for_its_message_too(serve):
    server = serve(Outcomes(), outbox_bytes=100_000)
    client = server.client()
    refused = []

    def then(context):
        assert context.Write(1, bytes(100_001)) is None
        refused.append(context.Write(1, b"refused"))

    begin(server, [b"piece"], then=then)
    assert read_message(client) == (BINARY, b"piece", [])
    assert client.read_frame() == (BINARY, bytes(100_001))
    assert client.read_close() == (1013, "reading too slowly")
    assert isinstance(refused[0], gowsev.OutboxFull)


def test_the_connection_ends_while_the_source_waits(serve):
    server = serve(Outcomes())
    client = server.client()
    go_on = gevent.event.Event()
    ended = []

    def pieces():
        try:
            yield b"begun"
            go_on.wait(PATIENCE)
            yield b"too late"
        finally:
            ended.append(True)

    begin(server, pieces())
    client.reset()
    wait_until(lambda: server.context.Conn(1).close_code)
    assert not ended
    go_on.set()
    wait_until(lambda: server.handler.closed)
    assert ended
    assert [event[0] for event in server.handler.events] == ["accepted", "done", "closed"]
    assert isinstance(server.handler.outcomes[0], gowsev.ConnClosing)


def test_the_source_closes_its_own_connection_and_raises(serve, caplog):
    server = serve(Outcomes())
    client = server.client()

    def pieces():
        yield b"begun"
        client.reset()
        wait_until(lambda: server.context.Conn(1).close_code)
        raise LookupError("both at once")

    begin(server, pieces())
    wait_until(lambda: server.handler.closed)
    assert isinstance(server.handler.outcomes[0], LookupError)


def test_a_source_may_run_the_loop_and_write(serve):
    server = serve(Outcomes(echo))
    client = server.client()

    def pieces():
        yield b"one "
        client.send_frame(PING)  # its answer drains the outbox, which asks for a turn: not inside this one
        wait_until(lambda: server.context.Stats().queued_events)
        server.context.EventLoopIteration()
        client.send_binary(b"question")
        while not server.handler.messages:
            server.context.EventLoopIteration()
        yield b"two"

    begin(server, pieces())
    assert client.read_frame() == (PONG, b"")
    assert read_message(client) == (BINARY, b"one two", [])
    assert client.read_frame() == (BINARY, b"question")
    wait_until(lambda: server.handler.outcomes == [None])


def test_what_iter_returned_is_closed_and_so_is_the_iterable(serve):
    server = serve(Outcomes())
    server.client(receive_buffer=4096)
    closed = []

    class Rows:
        def __iter__(self):
            try:
                while True:
                    yield bytes(65536)
            finally:
                closed.append("generator")

        def close(self):
            closed.append("rows")

    begin(server, Rows())
    wait_until(lambda: server.context.Stats().outbox_bytes)
    server.context.Shutdown(0)
    wait_until(lambda: server.handler.outcomes)
    assert closed == ["generator", "rows"]


def test_an_error_of_close_is_logged_and_done_is_called(serve, caplog):
    class Stubborn(Source):
        def close(self):
            raise OSError("cannot be closed")

    server = serve(Outcomes())
    client = server.client()
    begin(server, Stubborn([b"x"]))
    assert read_message(client) == (BINARY, b"x", [])
    wait_until(lambda: server.handler.outcomes == [None])
    assert "cannot be closed" in caplog.text


def test_without_done_nobody_is_told(serve):
    server = serve()
    client = server.client()
    wait_until(lambda: server.handler.of("accepted"))
    assert server.context.WriteStream(1, iter([b"x"])) is None
    assert read_message(client) == (BINARY, b"x", [])


def test_an_unknown_id(serve):
    source = Source([])
    error = serve().context.WriteStream(7, source, lambda *args: pytest.fail("it was refused"))
    assert isinstance(error, gowsev.IdNotFound)
    assert source.closed == 1


def test_a_broken_socket_is_found_by_the_write(serve):
    server = serve(Outcomes(), outbox_bytes=10)
    client = server.client()
    wait_until(lambda: server.handler.of("accepted"))
    client.reset()
    errors = []

    def fill(context):
        # In one callback, in which no reader runs; what gathers is over the limit, and the flush finds the end.
        context.Write(1, bytes(100))
        errors.append(context.WriteStream(1, []))
        errors.append(context.WriteStream(1, []))

    server.context.Post(fill)
    wait_until(lambda: errors)
    assert isinstance(errors[-1], gowsev.ConnClosing | gowsev.IdNotFound | None)


async def asynchronous():
    yield b""


@pytest.mark.parametrize(
    ("write", "arguments", "text"),
    [
        ("WriteStream", (b"whole",), "not bytes; Write sends"),
        ("WriteStream", ("whole",), "not str; Write sends"),
        ("WriteTextStream", ("whole",), "not str; WriteText sends"),
        ("WriteStream", (7,), "an iterable of pieces or a file, not 7"),
        ("WriteStream", (asynchronous(),), "awaits nothing"),
        ("WriteStream", (io.StringIO(),), "opened in binary mode"),
        ("WriteTextStream", (io.BytesIO(),), "opened in text mode"),
        ("WriteStream", ([], 7), "done must be callable"),
        ("Write", ([b"piece"],), "not list; WriteStream sends what comes in pieces"),
        ("Write", (7,), "not int$"),
    ],
)
def test_wrong_arguments(serve, write, arguments, text):
    with pytest.raises(TypeError, match=text):
        getattr(serve().context, write)(1, *arguments)


def test_no_iterable_is_broadcast(serve):
    with pytest.raises(TypeError, match="must be str, bytes, bytearray or memoryview, not generator"):
        serve().context.Broadcast([1], (b"" for _ in range(3)))


def test_a_forked_child_leaves_the_source_to_its_parent(quiet_hub):
    handler = Outcomes()
    context = gowsev.MakeContext(handler)
    host, port = context.ListenAndServe("127.0.0.1:0")
    from raw import RawClient

    joined = gevent.spawn(RawClient, host, port, receive_buffer=4096)
    while not handler.of("accepted"):
        context.EventLoopIteration()
    sources = [Source(bytes(65536) for _ in range(10_000)) for _ in range(2)]
    for source in sources:
        assert context.WriteStream(1, source, handler.done) is None
    context.EventLoopIteration()
    pulled = sources[0].pulled
    assert pulled
    disown_all()
    context.SetTimeout(0)
    context.EventLoopIteration()
    assert [source.closed for source in sources] == [0, 0]
    assert sources[0].pulled == pulled
    assert handler.outcomes == []
    joined.get().close()

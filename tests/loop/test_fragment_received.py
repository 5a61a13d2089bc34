"""The callback that gets what has come of a message in several frames."""

import gevent
import pytest
from conftest import Recorder, echo, in_thread, wait_until
from websockets.sync.client import connect

import gowsev
from gowsev import testing
from gowsev.wire.frames import BINARY, CONTINUATION, TEXT


class Fragments(Recorder):
    """Notes fragments too, and writes each message back in pieces when its last one has come."""

    def __init__(self):
        super().__init__(echo)

    def TextReceived(self, context, id, text):
        context.WriteText(id, text)

    def FragmentReceived(self, context, id, fragment, final):
        self.events.append(("fragment", id, fragment, final))
        conn = context.MustConn(id)
        conn.data = [*(conn.data or []), fragment]
        if final:
            write = context.WriteTextStream if isinstance(fragment, str) else context.WriteStream
            write(id, conn.data)
            conn.data = None


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_another_library_gets_its_fragments_back(serve, compression):
    server = serve(Fragments(), compression=compression, max_message_bytes=1000)
    messages = [["Grü", "ße", "😀" * 50_000], [b"a", bytes(300_000)], ["short", ""]]

    def exchange():
        with connect(server.url, max_size=None, compression=compression) as client:
            for pieces in messages:
                client.send(pieces)
                yield client.recv()
                client.send(pieces[0])
                yield client.recv()

    answers = [answer for pieces in messages for answer in (type(pieces[0])().join(pieces), pieces[0])]
    assert in_thread(lambda: [*exchange()]) == answers
    fragments = server.handler.of("fragment")
    assert {type(event[2]) for event in fragments} == {str, bytes}
    assert sum(event[3] for event in fragments) == 3
    assert server.context.Stats().messages_received == 6


def test_text_comes_in_whole_characters(serve):
    server = serve(Fragments())
    client = server.client()
    for payload in (b"\xe2", b"\x82\xac\xf0\x9f"):
        client.send_frame(TEXT if payload == b"\xe2" else CONTINUATION, payload, fin=False)
    client.send_frame(CONTINUATION, b"\x98\x80")
    wait_until(lambda: len(server.handler.of("fragment")) == 2)
    assert server.handler.of("fragment") == [("fragment", 1, "€", False), ("fragment", 1, "😀", True)]


def test_the_reader_stops_while_fragments_are_not_handled(serve):
    class Slow(Fragments):
        go_on = gevent.event.Event()

        def FragmentReceived(self, context, id, fragment, final):
            self.events.append(("fragment", len(fragment), final))
            self.go_on.wait()

    server = serve(Slow(), inbox_bytes=200_000)
    client = server.client()
    sender = gevent.spawn(
        lambda: [client.send_frame(BINARY if not i else CONTINUATION, bytes(65536), fin=i == 500) for i in range(501)]
    )
    wait_until(lambda: server.context.Stats().bytes_received > 200_000)
    gevent.sleep(0.1)  # in which nothing more may come
    assert server.context.Stats().bytes_received < 600_000
    server.handler.go_on.set()
    wait_until(lambda: server.handler.events[-1][-1] is True)
    assert sum(event[1] for event in server.handler.of("fragment")) == 501 * 65536
    sender.join()


def test_what_it_raises_closes_the_connection(serve, caplog):
    class Raises(Fragments):
        def FragmentReceived(self, context, id, fragment, final):
            raise LookupError("no room")

    server = serve(Raises())
    client = server.client()
    client.send_frame(BINARY, b"x", fin=False)
    assert client.read_close() == (1011, "internal error")
    assert "no room" in caplog.text


def test_a_dialled_connection_that_is_added(serve):
    handler = Fragments()
    context = gowsev.MakeContext(handler)

    class Sends(gowsev.Handler):
        def MessageReceived(self, context, id, message):
            context.WriteStream(id, [bytes(65536), b"two"])

    server = serve(Sends())
    with testing.drive(context):
        context.Write(context.AddConn(gowsev.Dial(server.url)), b"go")
        wait_until(lambda: len(handler.of("fragment")) >= 2)  # it answers what it gets, and is answered
    assert [event[2:] for event in handler.of("fragment")[:2]] == [(bytes(65536), False), (b"two", True)]


def test_a_test_waits_for_it():
    recorder = testing.Recorder(Fragments())
    with testing.Server(recorder) as server:
        server.context.AddConn(gowsev.Dial(server.url))
        server.context.WriteStream(2, [bytes(65536), b"two"])
        assert recorder.wait_for("FragmentReceived")[1:] == (bytes(65536), False)
        assert recorder.wait_for("FragmentReceived")[1:] == (b"two", True)


def test_an_async_one_is_refused():
    class Async(gowsev.Handler):
        async def FragmentReceived(self, context, id, fragment, final):
            pass

    with pytest.raises(TypeError, match="FragmentReceived must be an ordinary function"):
        gowsev.MakeContext(Async())

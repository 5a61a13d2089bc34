"""Clients that nobody here wrote, against a running echo server: what they send comes back, and both sides' closes."""

import asyncio
import shutil
import socket
import ssl
import subprocess

import gevent.socket
import gevent.ssl
import pytest
import websocket
import websockets
import websockets.asyncio.client
import wsproto
import wsproto.events as ws
from conftest import PATIENCE, Recorder, echo, in_thread, listeners_of, wait_until
from programs import websocket_client, websockets_client

import gowsev

#: The edges of the three forms of a frame's length (RFC 6455 section 5.2), and a message of several reads.
SIZES = (0, 1, 125, 126, 127, 65535, 65536, 65537, 300_000)
BINARIES = tuple((bytes(range(256)) * (size // 256 + 1))[:size] for size in SIZES)
TEXTS = ("", "a", "grüezi", "\u20ac" * 42, "\U0001f600" * 30_000, "x" * 300_000, "\x00")


class EchoBoth(Recorder):
    """Answers a text with a text, and a binary message with a binary one; `close N REASON` with a close."""

    def __init__(self):
        super().__init__(echo)

    def TextReceived(self, context, id, text):
        if text.startswith("close "):
            _, code, reason = text.split(" ", 2)
            context.Close(id, int(code), reason)
        else:
            context.WriteText(id, text)


@pytest.fixture(params=["plain", "TLS", "compressed", "compressed, contexts kept"])
def server(request, serve, certificate):
    compression = "deflate" if request.param.startswith("compressed") else None
    kept = request.param.endswith("kept")
    certificate = certificate if request.param == "TLS" else None
    return serve(EchoBoth(), certificate=certificate, compression=compression, compression_takeover=kept)


@pytest.fixture
def url(request, server):
    secure = listeners_of(server)[0].tls is not None
    return f"{'wss' if secure else 'ws'}://localhost:{server.port}/room?x=1"


@pytest.fixture
def tls(authority, url):
    """What the standard library's clients want: a blocking context where the URL is `wss`, else nothing."""
    if url.startswith("ws:"):
        return None
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def closed_with(server, code, reason):
    wait_until(lambda: server.handler.closed)
    return server.handler.closed == [("closed", 1, code, reason)]


# -- websockets, with asyncio ------------------------------------------------------------------------------------


def with_asyncio(url, tls, task):
    """Run `task(connection)` in an event loop of asyncio's own, in a real thread; return its result."""

    async def run():
        async with websockets.asyncio.client.connect(url, ssl=tls, proxy=None) as connection:
            return await task(connection)

    return in_thread(lambda: asyncio.run(run()))


def test_websockets_with_asyncio_gets_back_what_it_sends(server, url, tls):
    async def task(connection):
        answers = []
        for message in (*BINARIES, *TEXTS):
            await connection.send(message)
            answers.append(await connection.recv())
        # In flight all at once, too.
        for message in BINARIES:
            await connection.send(message)
        answers.extend([await connection.recv() for _ in BINARIES])
        return answers

    assert with_asyncio(url, tls, task) == [*BINARIES, *TEXTS, *BINARIES]
    assert closed_with(server, 1000, "")


def test_websockets_with_asyncio_fragments_and_pings(server, url, tls):
    async def task(connection):
        async def pieces():
            for number in range(20):
                yield f"grüezi {number} "
                await asyncio.wait_for(await connection.ping(f"{number}"), PATIENCE)

        await connection.send(pieces())
        return await connection.recv()

    assert with_asyncio(url, tls, task) == "".join(f"grüezi {number} " for number in range(20))


def test_websockets_with_asyncio_closes_and_is_closed(server, url, tls):
    async def closing(connection):
        await connection.close(4000, "grüezi")
        return connection.close_code, connection.close_reason

    assert with_asyncio(url, tls, closing) == (4000, "")
    assert closed_with(server, 4000, "grüezi")

    async def closed(connection):
        await connection.send("close 4001 adieu")
        with pytest.raises(websockets.ConnectionClosed):
            await connection.recv()
        return connection.close_code, connection.close_reason

    assert with_asyncio(url, tls, closed) == (4001, "adieu")


def test_websockets_sees_that_deflate_is_spoken(serve):
    async def task(connection):
        await connection.send("x" * 100_000)
        return connection.response.headers.get("Sec-WebSocket-Extensions"), await connection.recv()

    server = serve(EchoBoth(), compression="deflate")
    extensions, answer = with_asyncio(server.url, None, task)
    assert extensions.startswith("permessage-deflate")
    assert answer == "x" * 100_000
    assert server.context.Stats().bytes_sent < 1000


# -- websockets, with threads ------------------------------------------------------------------------------------


def with_threads(url, tls, task):
    def run():
        with websockets_client(url, tls) as connection:
            return task(connection)

    return in_thread(run)


def test_websockets_with_threads_gets_back_what_it_sends(server, url, tls):
    def task(connection):
        answers = []
        for message in (*BINARIES, *TEXTS):
            connection.send(message)
            answers.append(connection.recv(PATIENCE))
        assert connection.ping("are you there").wait(PATIENCE)
        return answers

    assert with_threads(url, tls, task) == [*BINARIES, *TEXTS]
    assert closed_with(server, 1000, "")


def test_websockets_with_threads_closes_and_is_closed(server, url, tls):
    def closing(connection):
        connection.close(4000, "grüezi")
        return connection.close_code

    assert with_threads(url, tls, closing) == 4000
    assert closed_with(server, 4000, "grüezi")

    def closed(connection):
        connection.send("close 1001 adieu")
        with pytest.raises(websockets.ConnectionClosedOK):
            connection.recv(PATIENCE)
        return connection.close_code, connection.close_reason

    assert with_threads(url, tls, closed) == (1001, "adieu")


def test_websockets_is_told_why_it_is_refused(serve):
    class Bouncer(EchoBoth):
        def ConnRequested(self, context, request):
            return gowsev.Reject(403, "members only")

    server = serve(Bouncer())
    with pytest.raises(websockets.InvalidStatus) as caught:
        with_threads(server.url, None, lambda connection: None)
    assert caught.value.response.status_code == 403
    assert caught.value.response.body == b"members only"


def test_websockets_agrees_on_a_subprotocol(serve):
    server = serve(EchoBoth(), subprotocols=("v2", "v1"))

    def run():
        with websockets_client(server.url, subprotocols=["v1", "v2"]) as connection:
            return connection.subprotocol

    assert in_thread(run) == "v2"


def test_many_clients_of_websockets_at_once(serve):
    server = serve(EchoBoth())

    async def one(number):
        async with websockets.asyncio.client.connect(server.url, proxy=None) as connection:
            for turn in range(10):
                await connection.send(f"{number} {turn}")
                assert await connection.recv() == f"{number} {turn}"

    async def run():
        await asyncio.gather(*map(one, range(50)))

    in_thread(lambda: asyncio.run(run()))
    wait_until(lambda: len(server.handler.closed) == 50)
    assert {event[2] for event in server.handler.closed} == {1000}


# -- websocket-client --------------------------------------------------------------------------------------------


def with_websocket_client(url, tls, task):
    def run():
        with websocket_client(url, tls) as connection:
            return task(connection)

    return in_thread(run)


def test_websocket_client_gets_back_what_it_sends(server, url, tls):
    def task(connection):
        answers = []
        for message in BINARIES:
            connection.send_binary(message)
            answers.append(connection.recv())
        for message in TEXTS:
            connection.send(message)
            answers.append(connection.recv())
        return answers

    assert with_websocket_client(url, tls, task) == [*BINARIES, *TEXTS]
    assert closed_with(server, 1000, "")


def test_websocket_client_pings_and_fragments(server, url, tls):
    def task(connection):
        connection.ping("are you there")
        pong = connection.recv_data_frame(control_frame=True)
        connection.send_frame(websocket.ABNF.create_frame("grü", websocket.ABNF.OPCODE_TEXT, fin=0))
        connection.ping("in between")
        second = connection.recv_data_frame(control_frame=True)
        connection.send_frame(websocket.ABNF.create_frame("ezi", websocket.ABNF.OPCODE_CONT, fin=1))
        return (pong[0], pong[1].data), (second[0], second[1].data), connection.recv()

    pong = websocket.ABNF.OPCODE_PONG
    expected = (pong, b"are you there"), (pong, b"in between"), "grüezi"
    assert with_websocket_client(url, tls, task) == expected


def test_websocket_client_closes_and_is_closed(server, url, tls):
    def closing(connection):
        connection.send_close(4000, "grüezi".encode())
        opcode, frame = connection.recv_data_frame(control_frame=True)
        return opcode, frame.data

    assert with_websocket_client(url, tls, closing) == (websocket.ABNF.OPCODE_CLOSE, (4000).to_bytes(2, "big"))
    assert closed_with(server, 4000, "grüezi")

    def closed(connection):
        connection.send("close 4001 adieu")
        opcode, frame = connection.recv_data_frame(control_frame=True)
        return opcode, frame.data

    expected = websocket.ABNF.OPCODE_CLOSE, (4001).to_bytes(2, "big") + b"adieu"
    assert with_websocket_client(url, tls, closed) == expected


# -- wsproto, on a socket of our own -----------------------------------------------------------------------------


class WsprotoClient:
    """A gevent socket driven by wsproto's state machine."""

    def __init__(self, server, client_tls):
        self.sock = gevent.socket.create_connection(("127.0.0.1", server.port))
        if client_tls is not None:
            self.sock = client_tls.wrap_socket(self.sock, server_hostname="localhost")
        self.sock.settimeout(PATIENCE)
        self.connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.events = iter(())
        self.send(ws.Request(host="localhost", target="/room?x=1"))
        assert isinstance(self.next(), ws.AcceptConnection)

    def send(self, event):
        self.sock.sendall(self.connection.send(event))

    def next(self):
        while (event := next(self.events, None)) is None:
            self.connection.receive_data(self.sock.recv(1 << 16) or None)
            self.events = self.connection.events()
        return event

    def message(self):
        """Return the next message, put together from its pieces."""
        pieces = [self.next()]
        while not pieces[-1].message_finished:
            pieces.append(self.next())
        return pieces[0].data[:0].join(piece.data for piece in pieces)


@pytest.fixture(params=["plain", "TLS"])
def wsproto_client(request, serve, certificate, client_tls):
    """A pair of an echo server and a client of it."""
    secure = request.param == "TLS"
    server = serve(EchoBoth(), certificate=certificate if secure else None)
    client = WsprotoClient(server, client_tls if secure else None)
    yield server, client
    client.sock.close()


def test_wsproto_gets_back_what_it_sends(wsproto_client):
    _, client = wsproto_client
    for message in BINARIES:
        client.send(ws.BytesMessage(data=message))
        assert client.message() == message
    for message in TEXTS:
        client.send(ws.TextMessage(data=message))
        assert client.message() == message


def test_wsproto_fragments_and_pings(wsproto_client):
    _, client = wsproto_client
    client.send(ws.TextMessage(data="grü", message_finished=False))
    client.send(ws.Ping(payload=b"in between"))
    pong = client.next()
    assert (type(pong), bytes(pong.payload)) == (ws.Pong, b"in between")
    client.send(ws.TextMessage(data="ezi", message_finished=True))
    assert client.message() == "grüezi"


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_wsproto_closes(wsproto_client, code):
    server, client = wsproto_client
    client.send(ws.CloseConnection(code=code, reason="grüezi"))
    answer = client.next()
    assert (type(answer), answer.code) == (ws.CloseConnection, code)
    assert client.sock.recv(1) == b""
    client.sock.close()
    assert closed_with(server, code, "grüezi")


def test_wsproto_is_closed(wsproto_client):
    server, client = wsproto_client
    client.send(ws.TextMessage(data="close 4001 adieu"))
    event = client.next()
    assert (type(event), event.code, event.reason) == (ws.CloseConnection, 4001, "adieu")
    client.send(event.response())
    assert client.sock.recv(1) == b""
    client.sock.close()
    assert closed_with(server, 4001, "adieu")


# -- curl --------------------------------------------------------------------------------------------------------


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


def curl(*arguments, stdin=b""):
    command = ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE), "--noproxy", "*", *arguments]
    return in_thread(lambda: subprocess.run(command, input=stdin, capture_output=True, check=False))


def curl_speaks_websocket():
    if shutil.which("curl") is None:
        return False
    version = subprocess.run(["curl", "--version"], capture_output=True, check=True, text=True).stdout
    (protocols,) = [line for line in version.splitlines() if line.startswith("Protocols:")]
    return "ws" in protocols.split()


@needs_curl
def test_curl_is_told_to_upgrade(serve):
    server = serve(EchoBoth())
    result = curl("--include", f"http://127.0.0.1:{server.port}/page")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nUpgrade: websocket\r\n" in result.stdout
    assert result.stdout.endswith(b"\r\n\r\nThis is a WebSocket server; open it with a WebSocket client.\n")


@needs_curl
def test_curl_gets_pages_and_posts_forms_on_one_connection(serve):
    def pages(environ, start_response):
        body = environ["REQUEST_METHOD"].encode() + b" " + environ["wsgi.input"].read() + b"\n"
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]

    server = serve(EchoBoth(), http_app=pages)
    page = f"http://127.0.0.1:{server.port}/page"
    told = ("--write-out", "opened %{num_connects}\\n")
    result = curl(*told, page, page, "--next", *told, "--data", "name=value", page)
    assert result.returncode == 0
    assert result.stdout == b"GET \nopened 1\nGET \nopened 0\nPOST name=value\nopened 0\n"


@needs_curl
def test_curl_gets_a_page_with_tls_and_by_a_unix_socket(serve, certificate, authority, tmp_path):
    server = serve(EchoBoth(), certificate=certificate)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    result = curl("--cacert", str(tmp_path / "authority.pem"), "--include", f"https://localhost:{server.port}/")
    assert result.stdout.startswith(b"HTTP/1.1 426 "), result.stderr
    server.context.ListenAndServe(f"unix:{tmp_path}/chat.sock")
    result = curl("--unix-socket", f"{tmp_path}/chat.sock", "--include", "http://localhost/")
    assert result.stdout.startswith(b"HTTP/1.1 426 "), result.stderr


@needs_curl
def test_curl_speaks_websocket_where_it_can(serve):
    if not curl_speaks_websocket():
        pytest.skip("this curl does not speak ws://")

    class Greeting(EchoBoth):
        def ConnAccepted(self, context, id):
            super().ConnAccepted(context, id)
            context.WriteText(id, "grüezi")
            context.Close(id)

    server = serve(Greeting())
    result = curl(f"ws://127.0.0.1:{server.port}/")
    # Some print what the close frame holds too.
    assert result.stdout.removesuffix((1000).to_bytes(2, "big")) == "grüezi".encode()
    wait_until(lambda: server.handler.closed)


# -- the standard library's sockets, with nothing at all ---------------------------------------------------------


def test_the_example_of_the_rfc_byte_for_byte(serve):
    # RFC 6455 sections 1.2 and 5.7.
    server = serve(EchoBoth(), allowed_origins=("http://example.com",), subprotocols=("chat",))
    request = (
        b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n"
        b"Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )

    def run():
        with (
            socket.create_connection((server.host, server.port), timeout=PATIENCE) as sock,
            sock.makefile("rb") as file,
        ):
            sock.sendall(request)
            head = [file.readline() for _ in range(7)]
            sock.sendall(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")  # "A single-frame masked text message"
            return head, file.read(7)

    head, frame = in_thread(run)
    assert head[0] == b"HTTP/1.1 101 Switching Protocols\r\n"
    assert head[-1] == b"\r\n"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
    assert b"Sec-WebSocket-Protocol: chat\r\n" in head
    assert frame == b"\x81\x05\x48\x65\x6c\x6c\x6f"  # "A single-frame unmasked text message"

"""`dial`: a client connection by itself, in a synchronous style, against gowsev, another library and plain sockets."""

import contextlib
import random
import re
import socket
import ssl
import threading
import time

import gevent
import gevent.socket
import pytest
import websockets.sync.server
from conftest import PATIENCE, Recorder, echo, in_thread, wait_until
from gevent.event import Event
from websockets.utils import accept_key

import gowsev
from gowsev.wire import frames

#: How long a `Dial` may take where a test waits for the end of that.
SHORT = 0.3


# -- servers to dial ---------------------------------------------------------------------------------------------


class EchoBoth(Recorder):
    """Answers a text with a text, and a binary message with a binary one."""

    def __init__(self):
        super().__init__(echo)
        self.requests = []

    def TextReceived(self, context, id, text):
        self.events.append(("text", id, text))
        context.WriteText(id, text)

    def ConnRequested(self, context, request):
        self.requests.append(request)


@pytest.fixture
def library():
    """A factory of servers of the `websockets` library, each in a real thread; `library(handler)` returns the URL."""
    servers = []

    def start(handler, **kwargs):
        server = websockets.sync.server.serve(handler, "127.0.0.1", 0, **kwargs)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        scheme = "wss://localhost" if "ssl" in kwargs else "ws://127.0.0.1"
        return f"{scheme}:{server.socket.getsockname()[1]}/"

    yield start
    for server, thread in servers:
        in_thread(server.shutdown)
        in_thread(thread.join)


def echo_in_thread(connection):
    for message in connection:
        connection.send(message)


@pytest.fixture(params=["gowsev", "websockets"])
def echo_url(request, serve, library):
    return serve(EchoBoth()).url if request.param == "gowsev" else library(echo_in_thread)


def accepting(head, more=()):
    """The response 101 to a request."""
    key = re.search(rb"\r\nSec-WebSocket-Key: (\S+)\r\n", head)[1].decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(key)}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Scripted:
    """A listener that reads one request for each connection, and answers as `script(sock, head)` does."""

    def __init__(self, script):
        self.script = script
        self.heads = []
        self.listener = gevent.socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/"
        self.greenlets = [gevent.spawn(self.accept)]

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            self.greenlets.append(gevent.spawn(self.answer, sock))

    def answer(self, sock):
        with sock, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1 << 16) or b"\r\n\r\n"
            self.heads.append(head)
            self.script(sock, head)

    def close(self):
        gevent.killall(self.greenlets)
        self.listener.close()


@pytest.fixture
def scripted():
    """A factory of listeners: `scripted(script)`; `script` may be bytes, sent before the connection is closed."""
    listeners = []

    def start(script):
        if isinstance(script, bytes):
            data = script

            def script(sock, head):
                sock.sendall(data)

        listeners.append(Scripted(script))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def frame(payload, opcode=frames.BINARY):
    return frames.encode_frame(frames.FIN | opcode, payload)


def close_frame(code, reason=""):
    return frame(frames.encode_close_payload(code, reason), frames.CLOSE)


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def error_of(function, *args):
    """Spawn a call that is to fail; the greenlet's value is the error. A greenlet that fails itself is printed."""

    def call():
        with pytest.raises(gowsev.ConnectionClosed) as caught:
            function(*args)
        return caught.value

    return gevent.spawn(call)


def answer_close(sock):
    """Wait for a close frame, which is all that is to come, and answer it."""
    sock.recv(1 << 16)
    sock.sendall(close_frame(1000))
    until_the_end(sock)


def until_the_end(sock):
    """Read until the peer closes the connection; return all of it."""
    received = bytearray()
    while data := sock.recv(1 << 16):
        received += data
    return bytes(received)


@pytest.fixture(autouse=True)
def quiet(capfd):
    """Nothing may be printed: what goes wrong is for the caller, in an exception."""
    yield
    assert capfd.readouterr().err == ""


# -- a connection in a synchronous style -------------------------------------------------------------------------


def test_messages_go_and_come_as_what_they_are(echo_url):
    conn = gowsev.Dial(echo_url)
    conn.WriteMessage(gowsev.TextMessage, "grüezi")
    assert conn.ReadMessage() == (gowsev.TextMessage, "grüezi")
    for data in (b"\x00\xff", bytearray(b"array"), memoryview(b"view"), b"", b"x" * 125, b"x" * 126, b"x" * 65536):
        conn.WriteMessage(gowsev.BinaryMessage, data)
        assert conn.ReadMessage() == (gowsev.BinaryMessage, bytes(data))
    for data in (b"text in bytes", bytearray("zürich".encode()), memoryview(b"view"), ""):
        conn.WriteMessage(gowsev.TextMessage, data)
        assert conn.ReadMessage() == (gowsev.TextMessage, data if isinstance(data, str) else bytes(data).decode())
    assert (conn.messages_sent, conn.messages_received) == (12, 12)
    conn.Close()
    assert conn.close_code == 1000


def test_the_types_have_the_values_of_gorilla_and_the_rfc():
    assert (gowsev.TextMessage, gowsev.BinaryMessage) == (1, 2)


def test_a_large_message_goes_and_comes(echo_url):
    with gowsev.Dial(echo_url, options=gowsev.Options(compression=None)) as conn:
        data = bytes(range(256)) * 2048
        conn.WriteMessage(gowsev.BinaryMessage, data)
        assert conn.ReadMessage() == (gowsev.BinaryMessage, data)


@pytest.mark.parametrize("takeover", [False, True])
def test_messages_are_compressed_where_both_agree(library, takeover):
    asked = []

    def note(connection):
        asked.append(connection.request.headers["Sec-WebSocket-Extensions"])
        echo_in_thread(connection)

    options = gowsev.Options(compression="deflate", compression_takeover=takeover)
    with gowsev.Dial(library(note), options=options) as conn:
        for data in (b"x" * 100_000, b"x" * 100_000, b""):
            conn.WriteMessage(gowsev.BinaryMessage, data)
            assert conn.ReadMessage() == (gowsev.BinaryMessage, data)
        assert conn.bytes_sent < 1000
        assert conn.bytes_received < 1000
        # It repeats no further within itself than it does from one to the next.
        data = random.Random(7).randbytes(2000)
        for _ in range(2):
            before = conn.bytes_sent, conn.bytes_received
            conn.WriteMessage(gowsev.BinaryMessage, data)
            assert conn.ReadMessage() == (gowsev.BinaryMessage, data)
        sent, received = conn.bytes_sent - before[0], conn.bytes_received - before[1]
        assert [sent < 100, received < 100] == [takeover, takeover]
    assert asked[0].startswith("permessage-deflate")


def test_short_messages_are_sent_as_they_are(serve):
    server = serve(EchoBoth(), compression="deflate")
    with gowsev.Dial(server.url, options=gowsev.Options(compression="deflate", compression_min_bytes=100)) as conn:
        for size, sent in ((99, 99 + 6), (100, 20)):
            before = conn.bytes_sent
            conn.WriteMessage(gowsev.BinaryMessage, bytes(size))
            assert conn.ReadMessage() == (gowsev.BinaryMessage, bytes(size))
            assert (conn.bytes_sent - before == sent) is (size < 100)
            assert conn.bytes_sent - before <= sent


@pytest.mark.parametrize("made_by", [gevent.ssl.SSLContext, ssl.SSLContext], ids=["gevent", "standard library"])
def test_tls_with_either_kind_of_context(serve, certificate, authority, made_by):
    server = serve(EchoBoth(), certificate=certificate)
    context = made_by(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    with gowsev.Dial(f"wss://localhost:{server.port}/", ssl_context=context) as conn:
        assert conn.tls
        conn.WriteMessage(gowsev.BinaryMessage, b"x" * 300_000)
        # Cooperative: the server is another greenlet of this very thread.
        assert conn.ReadMessage() == (gowsev.BinaryMessage, b"x" * 300_000)
        # A message that waits decrypted, behind another, is seen too.
        for number in range(20):
            conn.WriteMessage(gowsev.TextMessage, str(number))
        assert [conn.ReadMessage()[1] for _ in range(20)] == [str(number) for number in range(20)]
    assert conn.close_code == 1000


def test_tls_against_another_library(library, certificate, client_tls):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with gowsev.Dial(library(echo_in_thread, ssl=context), ssl_context=client_tls) as conn:
        conn.WriteMessage(gowsev.TextMessage, "hello")
        assert conn.ReadMessage() == (gowsev.TextMessage, "hello")


def test_a_certificate_of_an_unknown_authority_is_refused(serve, certificate):
    server = serve(certificate=certificate)
    with pytest.raises(gowsev.DialError, match=r"(?i)certificate verify failed.*\(in the TLS handshake\)") as caught:
        gowsev.Dial(f"wss://localhost:{server.port}/")
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert caught.value.status is None


def test_a_certificate_of_another_host_is_refused(serve, certificate, authority, tmp_path, client_tls):
    issued = authority.issue_cert("example.org")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(files[0])
    issued.private_key_pem.write_to_path(files[1])
    server = serve(certificate=files)
    with pytest.raises(gowsev.DialError, match=r"(?i)hostname mismatch"):
        gowsev.Dial(f"wss://localhost:{server.port}/", ssl_context=client_tls)


# -- what is asked for -------------------------------------------------------------------------------------------


def test_the_request_is_what_was_asked_for(serve):
    server = serve(EchoBoth(), subprotocols=("v2", "v1"), allowed_origins=("https://example.org",))
    conn = gowsev.Dial(
        f"ws://alice:p%40ss@127.0.0.1:{server.port}/some%20room?token=1&x=%20",
        headers={"X-One": "1", "User-Agent": "test"},
        origin="https://example.org",
        subprotocols=["v1", "v2"],
    )
    (request,) = server.handler.requests
    assert (request.path, request.query) == ("/some room", "token=1&x=%20")
    assert request.headers["Host"] == f"127.0.0.1:{server.port}"
    assert request.headers["Origin"] == "https://example.org"
    assert request.headers["X-One"] == "1"
    assert request.headers.get_all("User-Agent") == ["test"]
    assert request.headers["Authorization"] == "Basic YWxpY2U6cEBzcw=="
    assert conn.subprotocol == "v2"
    assert (conn.id, conn.tls, conn.close_code, conn.close_reason) == (0, False, None, "")
    assert conn.query == "token=1&x=%20"
    assert conn.peer == ("127.0.0.1", server.port)
    assert request.peer == conn.local
    assert conn.headers["upgrade"] == "websocket"
    conn.Close()


def test_headers_may_be_pairs_and_be_repeated(serve):
    server = serve(EchoBoth())
    with gowsev.Dial(server.url, headers=[("X-Two", "a"), ("X-Two", "b")]):
        assert server.handler.requests[0].headers.get_all("X-Two") == ["a", "b"]


def test_headers_of_the_program_replace_ours(scripted):
    asked = []

    def script(sock, head):
        asked.append(head.decode().split("\r\n"))
        sock.sendall(accepting(head))
        answer_close(sock)

    url = scripted(script).url.replace("//", "//user:password@")
    headers = {"host": "example.org", "Origin": "http://mine", "Authorization": "Bearer x"}
    gowsev.Dial(url, headers=headers, origin="http://other").Close()
    (lines,) = asked
    found = {line for line in lines if line.lower().startswith(("host:", "origin:", "authorization:"))}
    assert found == {"host: example.org", "Origin: http://mine", "Authorization: Bearer x"}


def test_a_header_that_replaces_ours_may_be_spelt_in_two_ways(scripted):
    asked = []

    def script(sock, head):
        asked.append(head.decode().split("\r\n"))
        sock.sendall(accepting(head))
        answer_close(sock)

    headers = [("Authorization", "Bearer x"), ("authorization", "Bearer y")]
    gowsev.Dial(scripted(script).url.replace("//", "//user:password@"), headers=headers).Close()
    (lines,) = asked
    found = [line for line in lines if line.lower().startswith("authorization:")]
    assert found == ["Authorization: Bearer x", "authorization: Bearer y"]


@pytest.mark.parametrize(
    "name",
    ["Sec-WebSocket-Key", "sec-websocket-protocol", "Upgrade", "connection", "Content-Length", "Transfer-Encoding"],
)
def test_headers_of_the_handshake_are_not_the_programs(name):
    with pytest.raises(ValueError, match=f"header {name} is made by the handshake"):
        gowsev.Dial("ws://localhost:1/", headers={name: "x"})


def test_without_extras_the_request_has_the_headers_of_the_rfc_only(scripted):
    listener = scripted(lambda sock, head: sock.sendall(accepting(head)))
    gowsev.Dial(listener.url).Close()
    lines = listener.heads[0].decode().split("\r\n")
    assert lines[0] == "GET / HTTP/1.1"
    headers = dict(line.split(": ") for line in lines[1:-2])
    assert re.fullmatch("[A-Za-z0-9+/]{22}==", headers.pop("Sec-WebSocket-Key"))
    assert headers == {
        "Host": f"127.0.0.1:{listener.port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
    }


def test_no_common_subprotocol_is_none(serve):
    with gowsev.Dial(serve(subprotocols=("v2",)).url, subprotocols=("v1",)) as conn:
        assert conn.subprotocol is None


# -- arguments that cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost", "http://localhost/", "https://localhost/", "ws:", "ws://", "ws:///room", "ws://:80/"),
        *("ws://localhost/#fragment", "ws://localhost:port/", "ws://localhost:65536/", "ws://[::1/"),
        *("ws://alice@localhost/", "ws://a..b/", "ws://" + "a" * 64 + ".example/", "ws://alice:%ff@localhost/"),
    ],
)
def test_a_url_that_is_none_is_a_value_error_that_names_it(url):
    with pytest.raises(ValueError, match=r"^url must be like ws://host:port/path or wss://host/path, not ") as caught:
        gowsev.Dial(url)
    assert repr(re.sub("alice.*@", "", url)) in str(caught.value)


@pytest.mark.parametrize("url", [None, 5, b"ws://localhost/", ("ws://localhost/",)])
def test_a_url_of_another_type_is_a_type_error(url):
    with pytest.raises(TypeError, match=r"^url must be str, not"):
        gowsev.Dial(url)


@pytest.mark.parametrize("path", ["a room", "a\x00room", "a\x7froom", "room\r\nX-Injected:1"])
def test_a_url_with_what_may_not_stand_in_a_request_line_is_a_value_error(scripted, path):
    listener = scripted(lambda sock, head: sock.sendall(accepting(head)))
    with pytest.raises(ValueError, match="url"):
        gowsev.Dial(listener.url + path).Close()


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"X-One": "1\r\nX-Injected: 1"}, ValueError),
        ({"X-One": "1\n"}, ValueError),
        ({"X-One": "\x00"}, ValueError),
        ({"X-One": "\u20ac"}, ValueError),
        ({"X-One\r\nX-Injected": "1"}, ValueError),
        ({"X One": "1"}, ValueError),
        ({"": "1"}, ValueError),
        ({"X-One": 1}, TypeError),
        ({1: "1"}, TypeError),
        ([("X-One",)], TypeError),
        (["X-One: 1"], TypeError),
        (5, TypeError),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_before_anything_is(scripted, headers, error):
    listener = scripted(b"")
    with pytest.raises(error):
        gowsev.Dial(listener.url, headers=headers)
    assert listener.heads == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"origin": "http://example.org\r\nX-Injected: 1"}, ValueError),
        ({"subprotocols": ["chat\r\nX-Injected: 1"]}, ValueError),
        ({"subprotocols": ["two words"]}, ValueError),
        ({"subprotocols": [""]}, TypeError),
        ({"subprotocols": "chat"}, TypeError),
        ({"subprotocols": [1]}, TypeError),
        ({"subprotocols": None}, TypeError),
        ({"origin": 1}, TypeError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"ssl_context": "cert.pem"}, TypeError),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_sent(scripted, arguments, error):
    listener = scripted(b"")
    with pytest.raises(error, match=f"(?i){next(iter(arguments)).removesuffix('s')}"):
        gowsev.Dial(listener.url, **arguments)
    assert listener.heads == []


def test_options_of_another_type_are_a_type_error():
    with pytest.raises(TypeError, match=r"^options must be Options or None, not"):
        gowsev.Dial("ws://localhost/", options={"ping_interval": 5})


def test_options_hold_for_the_connection(serve):
    def multiply(context, id, message):
        context.Write(id, message * 1000)

    server = serve(Recorder(multiply))
    conn = gowsev.Dial(server.url, options=gowsev.Options(max_message_bytes=1000))
    conn.WriteMessage(gowsev.BinaryMessage, b"x")
    assert conn.ReadMessage() == (gowsev.BinaryMessage, b"x" * 1000)
    conn.WriteMessage(gowsev.BinaryMessage, b"xx")
    with pytest.raises(gowsev.ConnectionClosed):
        conn.ReadMessage()
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed[0][2] == 1009


@pytest.mark.parametrize(
    ("type", "data", "error"),
    [
        (gowsev.TextMessage, 5, TypeError),
        (gowsev.TextMessage, None, TypeError),
        (gowsev.TextMessage, b"\xff", ValueError),
        (gowsev.TextMessage, "\ud800", ValueError),
        (gowsev.BinaryMessage, "text", TypeError),
        (gowsev.BinaryMessage, [1, 2], TypeError),
        (0, b"", ValueError),
        (8, b"", ValueError),
        (9, b"", ValueError),
        ("text", "", ValueError),
        (None, b"", ValueError),
    ],
)
def test_a_message_that_cannot_be_sent_is_refused_and_the_connection_goes_on(serve, type, data, error):
    with gowsev.Dial(serve(EchoBoth()).url) as conn:
        with pytest.raises(error):
            conn.WriteMessage(type, data)
        conn.WriteMessage(gowsev.TextMessage, "still here")
        assert conn.ReadMessage() == (gowsev.TextMessage, "still here")
        assert conn.messages_sent == 1


def test_a_str_as_a_binary_message_is_refused_with_what_to_do(serve):
    with gowsev.Dial(serve(EchoBoth()).url) as conn:
        with pytest.raises(TypeError, match=r"BinaryMessage must be bytes.*, not str; a str goes as TextMessage"):
            conn.WriteMessage(gowsev.BinaryMessage, "text")
        with pytest.raises(TypeError, match="TextMessage must be str, or its UTF-8 as bytes, not int"):
            conn.WriteMessage(gowsev.TextMessage, 5)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_a_close_code_that_may_not_be_sent_is_a_value_error(serve, code):
    with gowsev.Dial(serve(EchoBoth()).url) as conn:
        with pytest.raises(ValueError, match="close code"):
            conn.Close(code)
        conn.WriteMessage(gowsev.TextMessage, "still here")
        assert conn.ReadMessage() == (gowsev.TextMessage, "still here")


# -- what does not lead to a connection --------------------------------------------------------------------------


def test_nobody_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{bound.getsockname()[1]}/"
        with pytest.raises(gowsev.DialError, match=r"(?i)refused \(connecting\)$") as caught:
            gowsev.Dial(url)
    assert str(caught.value).startswith(f"dial {url}: ")
    assert caught.value.status is None
    assert isinstance(caught.value, gowsev.GowsevError)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_host_that_there_is_not():
    with pytest.raises(gowsev.DialError, match=r"\(connecting\)$") as caught:
        gowsev.Dial("ws://no-such-host.invalid/")  # RFC 6761
    assert isinstance(caught.value.__cause__, socket.gaierror)


def test_a_timeout_while_connecting():
    with socket.socket() as full, contextlib.ExitStack() as clients:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # What exceeds the backlog is not answered at all.
        for _ in range(3):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        with pytest.raises(gowsev.DialError, match=f"timed out after {SHORT} s connecting$"):
            gowsev.Dial(f"ws://127.0.0.1:{port}/", timeout=SHORT)


@pytest.mark.parametrize(
    ("scheme", "step"),
    [
        ("ws", "in the opening handshake"),
        ("wss", "in the TLS handshake"),
    ],
)
def test_a_listener_that_never_answers(scheme, step):
    with gevent.socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(gowsev.DialError, match=f"timed out after {SHORT} s {step}$") as caught:
            gowsev.Dial(url, timeout=SHORT)
        assert caught.value.status is None
        with silent.accept()[0] as accepted:
            accepted.settimeout(PATIENCE / 10)
            until_the_end(accepted)  # the socket was closed


@pytest.mark.parametrize("answer", [b"HTTP/1.1 101 Sw", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 101 OK\r\nX: y\r\n"])
def test_an_answer_that_never_ends(scripted, answer):
    def script(sock, head):
        sock.sendall(answer)
        until_the_end(sock)

    with pytest.raises(gowsev.DialError, match="timed out"):
        gowsev.Dial(scripted(script).url, timeout=SHORT)


def test_another_timeout_than_its_own_passes_through(scripted):
    listener = scripted(lambda sock, head: until_the_end(sock))
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(SHORT) as outer:
        gowsev.Dial(listener.url)
    assert caught.value is outer
    wait_until(lambda: all(greenlet.dead for greenlet in listener.greenlets[1:]))


def test_a_greenlet_that_is_killed_while_it_dials_leaves_no_socket(scripted):
    listener = scripted(lambda sock, head: until_the_end(sock))
    dialling = gevent.spawn(gowsev.Dial, listener.url)
    wait_until(lambda: listener.heads)
    dialling.kill()
    wait_until(lambda: all(greenlet.dead for greenlet in listener.greenlets[1:]))


def test_no_timeout_at_all(serve):
    gowsev.Dial(serve().url, timeout=None).Close()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 403),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", 404),
        (b"HTTP/1.1 404 Not Found\r\n\r\na body that ends with the connection", 404),
        (b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n", 503),
        (b"HTTP/1.1 301 Moved Permanently\r\nLocation: ws://localhost/\r\nContent-Length: 0\r\n\r\n", 301),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200),
    ],
)
def test_a_server_that_refuses_is_an_error_with_its_status(scripted, answer, status):
    with pytest.raises(gowsev.DialError, match=f"HTTP {status}") as caught:
        gowsev.Dial(scripted(answer).url)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\ncut off", id="cut off"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3000000, id="large"),
        pytest.param(b"HTTP/1.0 404 Not Found\r\n\r\n", id="HTTP/1.0"),
    ],
)
def test_a_refusal_whose_body_is_not_to_be_had_still_has_its_status(scripted, answer):
    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(scripted(answer).url)
    assert caught.value.status == 404


def test_a_body_that_comes_late_is_waited_for(scripted):
    def script(sock, head):
        sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n")
        gevent.sleep(0.01)
        sock.sendall(b"gone")

    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(scripted(script).url)
    assert caught.value.status == 404


def test_a_gowsev_server_that_refuses_is_an_error_with_its_status(serve):
    class Bouncer(Recorder):
        def ConnRequested(self, context, request):
            return gowsev.Reject(403, "members only")

    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(serve(Bouncer()).url)
    assert caught.value.status == 403


def with_wrong_key(head):
    return re.sub(rb"(?<=Accept: ).{4}", b"AAAA", accepting(head))


def without_accept(head):
    return re.sub(rb"Sec-WebSocket-Accept: .*?\r\n", b"", accepting(head))


def without_upgrade(head):
    return accepting(head).replace(b"Upgrade: websocket\r\n", b"")


def without_connection(head):
    return accepting(head).replace(b"Connection: Upgrade\r\n", b"")


def with_a_subprotocol_nobody_asked_for(head):
    return accepting(head, ["Sec-WebSocket-Protocol: chat"])


def with_an_extension_nobody_asked_for(head):
    return accepting(head, ["Sec-WebSocket-Extensions: permessage-deflate"])


def without_version(head):
    return accepting(head).replace(b"HTTP/1.1 ", b"")


def with_a_line_that_is_none(head):
    return accepting(head, ["nonsense"])


def garbage(head):
    return b"220 mail.example.org ESMTP\r\n\r\n"


def binary(head):
    return bytes(range(256)) * 300


def endless_headers(head):
    return b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 20_000


def endless_line(head):
    return b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"y" * 100_000


@pytest.mark.parametrize(
    "answer",
    [
        # RFC 6455 section 4.1: "the client MUST _Fail the WebSocket Connection_" in each case.
        *(with_wrong_key, without_accept, without_upgrade, without_connection),
        *(with_a_subprotocol_nobody_asked_for, with_an_extension_nobody_asked_for),
        *(without_version, with_a_line_that_is_none, garbage, binary, endless_headers, endless_line),
    ],
)
def test_an_answer_that_is_no_handshake_is_an_error(scripted, answer):
    def script(sock, head):
        sock.sendall(answer(head))
        until_the_end(sock)

    listener = scripted(script)
    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(listener.url)
    assert str(caught.value).startswith(f"dial {listener.url}: ")
    assert caught.value.status is None
    assert len(str(caught.value)) < 1000
    wait_until(lambda: all(greenlet.dead for greenlet in listener.greenlets[1:]))  # the socket was closed


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "closed the connection without a response"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgr", "in the middle of its response, after 38 bytes"),
    ],
)
def test_a_connection_closed_without_a_response_is_an_error(scripted, answer, text):
    with pytest.raises(gowsev.DialError, match=text):
        gowsev.Dial(scripted(answer).url)


# What must stand in the text of the error, by what the server answers to the head of the request.
FAULTS = [
    ("HTTP/1.0", lambda head: accepting(head).replace(b"HTTP/1.1", b"HTTP/1.0"), "101 over HTTP/1.0"),
    ("too many headers", lambda head: accepting(head, ["X: y"] * 100), "more than 100 headers"),
    ("a header without a colon", lambda head: accepting(head, ["nonsense"]), "no header: b'nonsense'"),
    ("no end of interim responses", lambda head: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20, "16 interim responses"),
    ("an endless header", lambda head: accepting(head, ["X: " + "y" * 70_000]), "no end within 65536 bytes"),
]


@pytest.mark.parametrize(("answer", "text"), [pytest.param(*row, id=id) for id, *row in FAULTS])
def test_the_error_says_what_is_wrong_with_the_response(scripted, answer, text):
    def script(sock, head):
        sock.sendall(answer(head))
        until_the_end(sock)

    with pytest.raises(gowsev.DialError, match=re.escape(text)):
        gowsev.Dial(scripted(script).url)


def without_reason(head):
    return accepting(head).replace(b" Switching Protocols", b"", 1)


ODD = [
    ("RFC 9110 15.2: interim responses", lambda head: b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + accepting(head)),
    ("RFC 9110 15.2: with headers", lambda head: b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + accepting(head)),
    ("RFC 9112 4: no reason", without_reason),
    ("RFC 9112 5.2: a folded header", lambda head: accepting(head, ["X-Folded: one", "  two"])),
    ("a header of 9 KB", lambda head: accepting(head, ["X-Long: " + "y" * 9000])),
    ("RFC 9112 2.2: a single LF", lambda head: accepting(head).replace(b"\r\n", b"\n")),
]


@pytest.mark.parametrize("answer", [pytest.param(answer, id=id) for id, answer in ODD])
def test_odd_responses_are_taken(scripted, answer):
    def script(sock, head):
        sock.sendall(answer(head) + frame(b"behind"))
        answer_close(sock)

    with gowsev.Dial(scripted(script).url) as conn:
        assert conn.ReadMessage() == (gowsev.BinaryMessage, b"behind")
        if "X-Folded" in conn.headers:
            assert conn.headers["X-Folded"] == "one two"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda head, filling: accepting(head, [f"X: a{filling}b"]), id="within a value"),
        pytest.param(lambda head, filling: accepting(head, [f"X: {filling}"]), id="behind a colon"),
        pytest.param(
            lambda head, filling: accepting(head).replace(b" Switching", b" " + filling.encode()), id="in the reason"
        ),
    ],
)
def test_blanks_in_a_response_cost_as_much_as_letters(scripted, answer):
    # To take the square of their number stopped everything else for half a minute: 10,000 times what letters cost.
    def cost(filling):
        def script(sock, head):
            sock.sendall(answer(head, filling))
            answer_close(sock)

        url = scripted(script).url
        began = time.process_time()
        gowsev.Dial(url).Close()
        return time.process_time() - began

    letters = min(cost("x" * 60_000) for _ in range(3))
    assert min(cost(" " * 60_000) for _ in range(3)) < 100 * letters


def test_what_came_before_a_reset_is_delivered(scripted):
    def script(sock, head):
        sock.sendall(accepting(head) + frame(b"last words") + close_frame(1008, "go away"))
        gevent.sleep(0.01)
        reset(sock)

    for _ in range(10):
        conn = gowsev.Dial(scripted(script).url)
        assert conn.ReadMessage() == (gowsev.BinaryMessage, b"last words")
        with pytest.raises(gowsev.ConnectionClosed) as closed:
            conn.ReadMessage()
        assert (closed.value.code, closed.value.reason) == (1008, "go away")


def test_a_connection_reset_without_a_response_is_an_error(scripted):
    with pytest.raises(gowsev.DialError, match=r"(?i)reset"):
        gowsev.Dial(scripted(lambda sock, head: reset(sock)).url)


def test_a_connection_reset_right_behind_the_response_has_ended(scripted):
    def script(sock, head):
        sock.sendall(accepting(head))
        reset(sock)

    try:
        conn = gowsev.Dial(scripted(script).url)
    except gowsev.DialError:
        return  # as good
    with pytest.raises(gowsev.ConnectionClosed):
        conn.ReadMessage()


def test_a_password_is_not_shown_in_an_error(scripted):
    listener = scripted(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(f"ws://alice:secret@127.0.0.1:{listener.port}/room")
    assert "secret" not in str(caught.value)


# -- reading -----------------------------------------------------------------------------------------------------


def test_frames_right_behind_the_response_are_received(scripted):
    def script(sock, head):
        sock.sendall(accepting(head) + frame(b"first") + frame(b"zweite", frames.TEXT) + frame(b"x" * 300_000))
        answer_close(sock)

    conn = gowsev.Dial(scripted(script).url)
    assert conn.ReadMessage() == (gowsev.BinaryMessage, b"first")
    assert conn.ReadMessage() == (gowsev.TextMessage, "zweite")
    assert conn.ReadMessage() == (gowsev.BinaryMessage, b"x" * 300_000)
    conn.Close()


def test_an_end_right_behind_the_response_comes_after_the_messages(scripted):
    listener = scripted(lambda sock, head: sock.sendall(accepting(head) + frame(b"last") + close_frame(4000, "bye")))
    conn = gowsev.Dial(listener.url)
    assert conn.ReadMessage() == (gowsev.BinaryMessage, b"last")
    with pytest.raises(gowsev.ConnectionClosed) as caught:
        conn.ReadMessage()
    assert (caught.value.code, caught.value.reason) == (4000, "bye")


def test_a_response_in_pieces_with_much_behind_it(scripted):
    payload = b"x" * 65_500

    def script(sock, head):
        answer = accepting(head)
        sock.sendall(answer[:100])
        gevent.sleep(0.01)
        sock.sendall(answer[100:] + frame(payload))
        answer_close(sock)

    conn = gowsev.Dial(scripted(script).url)
    assert conn.ReadMessage() == (gowsev.BinaryMessage, payload)
    conn.Close()


def test_a_response_in_pieces(scripted):
    def script(sock, head):
        for byte in accepting(head) + frame(b"hello"):
            sock.sendall(bytes((byte,)))
            gevent.sleep(0)
        answer_close(sock)

    conn = gowsev.Dial(scripted(script).url)
    assert conn.ReadMessage() == (gowsev.BinaryMessage, b"hello")
    conn.Close()


def test_reading_waits_in_its_own_greenlet_only(serve):
    server = serve(EchoBoth())
    with gowsev.Dial(server.url) as conn:
        reading = gevent.spawn(conn.ReadMessage)
        wait_until(lambda: server.handler.of("accepted"))
        assert not reading.ready()
        server.context.Write(1, b"now")
        assert reading.get(timeout=PATIENCE) == (gowsev.BinaryMessage, b"now")


def test_a_client_that_does_not_read_holds_its_peer_back_and_loses_nothing(serve):
    server = serve(Recorder())
    with gowsev.Dial(server.url, options=gowsev.Options(inbox_messages=10)) as conn:
        wait_until(lambda: server.handler.of("accepted"))
        sent = [b"%d" % number for number in range(1000)]
        for message in sent:
            server.context.Write(1, message)
        wait_until(lambda: conn.messages_received >= 10)
        assert [conn.ReadMessage()[1] for _ in sent] == sent


def test_pings_are_answered_while_nobody_reads(scripted):
    answers = []

    def script(sock, head):
        sock.sendall(accepting(head) + frame(b"are you there", frames.PING))
        answers.append(sock.recv(1 << 16))
        sock.sendall(close_frame(1000))
        until_the_end(sock)

    conn = gowsev.Dial(scripted(script).url)
    with pytest.raises(gowsev.ConnectionClosed):
        conn.ReadMessage()
    header = frames.parse_header(answers[0], 0, len(answers[0]))
    # RFC 6455 section 5.3: from a client, masked
    assert (header.first, header.masked) == (frames.FIN | frames.PONG, True)
    assert frames.apply_mask(answers[0][header.size :], header.mask) == b"are you there"


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (close_frame(1000), 1000, ""),
        (close_frame(1001, "going"), 1001, "going"),
        (close_frame(4321, "grüezi"), 4321, "grüezi"),
        (frame(b"", frames.CLOSE), 1005, ""),
        (b"", 1006, "ended without a close frame"),
        (b"\xff\x00", 1006, "reserved bit set (close code 1002)"),
        (frames.encode_frame(0x82, b"x", masked=True), 1006, "masked server frame (close code 1002)"),
    ],
    ids=["1000", "1001", "4321", "1005", "no close frame", "reserved bit", "masked"],
)
def test_the_end_of_a_connection_is_told_each_time(scripted, end, code, reason):
    ready = Event()

    def script(sock, head):
        sock.sendall(accepting(head))
        ready.wait(PATIENCE)
        sock.sendall(end)
        if code != 1006:
            until_the_end(sock)

    conn = gowsev.Dial(scripted(script).url)
    reading = error_of(conn.ReadMessage)
    gevent.sleep(0)
    ready.set()
    errors = [reading.get(timeout=PATIENCE)]
    errors += [error_of(conn.ReadMessage).get(timeout=PATIENCE) for _ in range(2)]
    errors.append(error_of(conn.WriteMessage, gowsev.BinaryMessage, b"too late").get(timeout=PATIENCE))
    assert [(error.code, error.reason) for error in errors] == [(code, reason)] * 4
    assert str(errors[0]) == f"connection closed with code {code}" + (f": {reason}" if reason else "")
    assert conn.close_code == code
    conn.Close()
    conn.Close(4000, "again")


def test_a_peer_that_closes_its_socket_behind_its_close_frame_has_closed_orderly(scripted):
    listener = scripted(lambda sock, head: sock.sendall(accepting(head) + close_frame(1000)))
    conn = gowsev.Dial(listener.url)
    wait_until(lambda: all(greenlet.dead for greenlet in listener.greenlets[1:]))
    error = error_of(conn.ReadMessage).get(timeout=PATIENCE)
    assert (error.code, error.reason) == (1000, "")


def test_a_reset_while_reading_is_the_end(scripted):
    ready = Event()

    def script(sock, head):
        sock.sendall(accepting(head) + frame(b"last"))
        ready.wait(PATIENCE)
        reset(sock)

    conn = gowsev.Dial(scripted(script).url)
    assert conn.ReadMessage() == (gowsev.BinaryMessage, b"last")
    reading = error_of(conn.ReadMessage)
    gevent.sleep(0)
    ready.set()
    assert reading.get(timeout=PATIENCE).code == 1006


# -- writing -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stalled(scripted):
    """A listener whose peer side does not read until `go` is set, and then does as `stalled.then(sock)` says."""

    def script(sock, head):
        sock.sendall(accepting(head))
        listener.go.wait(PATIENCE)
        listener.then(sock)

    def read(sock):
        listener.received = until_the_end(sock)

    listener = scripted(script)
    listener.go = Event()
    listener.then = read
    yield listener
    listener.go.set()


def test_writing_blocks_while_the_peer_does_not_read_and_goes_on_when_it_does(stalled):
    conn = gowsev.Dial(stalled.url)
    data = bytes(range(256)) * 80_000
    waited = []

    def let_go():
        wait_until(lambda: conn.outbox_bytes)
        for _ in range(10):
            gevent.sleep(0.001)
            waited.append(conn.outbox_bytes)
        stalled.go.set()

    def read(sock):
        received = bytearray()
        size = len(data) + 14  # a header with a length of 8 bytes, and a mask
        while len(received) < size:
            received += sock.recv(min(1 << 16, size - len(received)))
        stalled.received = bytes(received)
        answer_close(sock)

    stalled.then = read
    letting_go = gevent.spawn(let_go)
    conn.WriteMessage(gowsev.BinaryMessage, data)
    assert all(waited)
    assert letting_go.ready(), "WriteMessage returned before its peer had read"
    assert (conn.outbox_bytes, conn.bytes_sent) == (0, len(data) + 14)
    conn.Close()
    assert conn.close_code == 1000
    header = frames.parse_header(stalled.received, 0, 14)
    assert (header.size, header.length) == (14, len(data))
    assert frames.apply_mask(stalled.received[14:], header.mask) == data


@pytest.mark.parametrize("end", [reset, lambda sock: None], ids=["reset", "closed"])
def test_a_peer_that_goes_while_writing_waits_is_the_end(stalled, end):
    stalled.then = end
    conn = gowsev.Dial(stalled.url)
    writing = error_of(conn.WriteMessage, gowsev.BinaryMessage, b"x" * 20_000_000)
    wait_until(lambda: conn.outbox_bytes)
    stalled.go.set()
    assert writing.get(timeout=PATIENCE).code == 1006
    with pytest.raises(gowsev.ConnectionClosed):
        conn.ReadMessage()


def test_a_close_while_writing_waits_ends_it(stalled):
    conn = gowsev.Dial(stalled.url, options=gowsev.Options(close_timeout=SHORT))
    writing = error_of(conn.WriteMessage, gowsev.BinaryMessage, b"x" * 20_000_000)
    wait_until(lambda: conn.outbox_bytes)
    conn.Close()
    assert writing.get(timeout=PATIENCE).code == 1006


def test_writing_to_a_connection_that_has_ended_is_an_error(serve):
    server = serve(EchoBoth())
    conn = gowsev.Dial(server.url)
    wait_until(lambda: server.handler.of("accepted"))
    server.context.Close(1, 4000, "enough")
    wait_until(lambda: conn.close_code)
    with pytest.raises(gowsev.ConnectionClosed) as caught:
        conn.WriteMessage(gowsev.TextMessage, "too late")
    assert (caught.value.code, caught.value.reason) == (4000, "enough")
    assert isinstance(caught.value.__cause__, gowsev.ConnClosing)


def test_greenlets_may_write_and_read_at_once(serve):
    server = serve(EchoBoth())
    received = []
    with gowsev.Dial(server.url) as conn:

        def write(name):
            for number in range(50):
                conn.WriteMessage(gowsev.TextMessage, f"{name} {number}")
                gevent.sleep(0)

        def read():
            for _ in range(50):
                received.append(conn.ReadMessage()[1])

        tasks = [gevent.spawn(write, name) for name in "abcd"] + [gevent.spawn(read) for _ in range(4)]
        gevent.joinall(tasks, timeout=PATIENCE, raise_error=True)
    assert sorted(received) == sorted(f"{name} {number}" for name in "abcd" for number in range(50))
    for name in "abcd":
        assert [message for message in received if message[0] == name] == [f"{name} {n}" for n in range(50)]


def test_greenlets_may_write_large_messages_at_once(serve):
    server = serve(Recorder())
    with gowsev.Dial(server.url, options=gowsev.Options(outbox_bytes=None)) as conn:

        def write(name):
            for _ in range(20):
                conn.WriteMessage(gowsev.BinaryMessage, name * 300_000)

        tasks = [gevent.spawn(write, name) for name in (b"a", b"b", b"c", b"d")]
        gevent.joinall(tasks, timeout=PATIENCE, raise_error=True)
        assert all(task.successful() for task in tasks)
        wait_until(lambda: len(server.handler.messages) == 80)
    assert (
        sorted(message[:1] for message in server.handler.messages)
        == [b"a"] * 20 + [b"b"] * 20 + [b"c"] * 20 + [b"d"] * 20
    )
    assert all(message == message[:1] * 300_000 for message in server.handler.messages)


def test_a_full_outbox_is_not_told_as_the_end_of_the_connection(stalled):
    conn = gowsev.Dial(stalled.url, options=gowsev.Options(outbox_bytes=1000, slow_consumer="drop"))
    first = gevent.spawn(conn.WriteMessage, gowsev.BinaryMessage, b"x" * 20_000_000)
    wait_until(lambda: conn.outbox_bytes)
    second = gevent.spawn(conn.WriteMessage, gowsev.BinaryMessage, b"second")
    gevent.sleep(0.05)
    stalled.go.set()
    first.get(timeout=PATIENCE)
    with contextlib.suppress(gowsev.OutboxFull):  # either: it says so, or it waits
        second.get(timeout=PATIENCE)


# -- closing -----------------------------------------------------------------------------------------------------


def test_close_sends_its_code_and_reason_and_waits_for_the_end(serve):
    server = serve(EchoBoth())
    conn = gowsev.Dial(server.url)
    conn.Close(4000, "that is all")
    assert conn.close_code == 4000
    wait_until(lambda: server.handler.closed == [("closed", 1, 4000, "that is all")])
    conn.Close()


def test_close_to_another_library(library):
    ends = []

    def note(connection):
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            connection.recv()
        ends.append((connection.close_code, connection.close_reason))

    gowsev.Dial(library(note)).Close(4000, "that is all")
    wait_until(lambda: ends == [(4000, "that is all")])


def test_another_library_closes(library):
    conn = gowsev.Dial(library(lambda connection: connection.close(4000, "that is all")))
    with pytest.raises(gowsev.ConnectionClosed) as caught:
        conn.ReadMessage()
    assert (caught.value.code, caught.value.reason) == (4000, "that is all")


def test_close_of_a_peer_that_does_not_answer_is_bounded(scripted):
    gone = Event()

    def script(sock, head):
        sock.sendall(accepting(head))
        until_the_end(sock)
        gone.set()

    conn = gowsev.Dial(scripted(script).url, options=gowsev.Options(close_timeout=SHORT))
    conn.Close()
    assert conn.close_code == 1006
    assert gone.wait(PATIENCE)


def test_close_throws_away_what_was_not_read(serve):
    server = serve(EchoBoth())
    conn = gowsev.Dial(server.url)
    for number in range(5):
        conn.WriteMessage(gowsev.TextMessage, str(number))
    assert conn.ReadMessage() == (gowsev.TextMessage, "0")
    wait_until(lambda: conn.messages_received == 5)
    conn.Close()
    with pytest.raises(gowsev.ConnectionClosed):
        conn.ReadMessage()
    assert conn.close_code == 1000


def test_close_while_the_inbox_is_full_sees_the_answer(serve):
    server = serve(Recorder())
    conn = gowsev.Dial(server.url, options=gowsev.Options(inbox_messages=10, close_timeout=PATIENCE))
    wait_until(lambda: server.handler.of("accepted"))
    for _ in range(100):
        server.context.Write(1, b"unread")
    wait_until(lambda: conn.messages_received >= 10)
    conn.Close()
    assert conn.close_code == 1000


def test_the_context_manager_closes(serve):
    server = serve(EchoBoth())
    with gowsev.Dial(server.url) as conn:
        assert isinstance(conn, gowsev.DialledConn)
        assert isinstance(conn, gowsev.Conn)
        assert conn.close_code is None
    assert conn.close_code == 1000
    wait_until(lambda: server.handler.closed == [("closed", 1, 1000, "")])


def test_the_context_manager_closes_after_an_error_too(serve):
    with pytest.raises(ZeroDivisionError), gowsev.Dial(serve().url) as conn:
        raise ZeroDivisionError
    assert conn.close_code == 1000


# -- in a context ------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(serve):
    """A context whose loop runs, to add connections to."""
    return serve(Recorder())


def test_a_connection_that_was_added_is_the_context_s(serve, loop):
    server = serve(EchoBoth())
    conn = gowsev.Dial(server.url)
    conn.WriteMessage(gowsev.BinaryMessage, b"before")
    wait_until(lambda: conn.messages_received == 1)
    id = loop.context.AddConn(conn)
    assert conn.id == id == 1
    assert loop.context.Conn(id).path == "/"
    assert loop.context.Write(id, b"after") is None
    wait_until(lambda: loop.handler.messages == [b"before", b"after"])
    for method, arguments in (
        (conn.ReadMessage, ()),
        (conn.WriteMessage, (gowsev.BinaryMessage, b"")),
        (conn.Close, ()),
    ):
        with pytest.raises(RuntimeError, match=f"^{method.__name__} on connection 1: it belongs to a Context"):
            method(*arguments)
    loop.context.Close(id, 4000, "bye")
    wait_until(lambda: loop.handler.closed)
    assert loop.handler.of("accepted") == []
    assert conn.close_code == 4000


def test_a_connection_can_be_added_only_once(serve, loop):
    conn = gowsev.Dial(serve().url)
    loop.context.AddConn(conn)
    with pytest.raises(ValueError, match="was added to a Context before"):
        loop.context.AddConn(conn)
    with pytest.raises(ValueError, match="was added to a Context before"):
        gowsev.MakeContext(Recorder()).AddConn(conn)


def test_the_context_manager_leaves_a_connection_that_was_added_alone(serve, loop):
    server = serve(EchoBoth())
    with gowsev.Dial(server.url) as conn:
        id = loop.context.AddConn(conn)
    assert loop.context.Write(id, b"still open") is None
    wait_until(lambda: loop.handler.messages == [b"still open"])


@pytest.mark.parametrize("conn", [None, 1, "ws://localhost/", object, socket.socket], ids=repr)
def test_a_foreign_object_cannot_be_added(loop, conn):
    with pytest.raises(TypeError, match=r"^AddConn takes "):
        loop.context.AddConn(conn)


def test_a_connection_that_has_ended_can_be_added_and_ends_there(serve, loop):
    server = serve(EchoBoth())
    conn = gowsev.Dial(server.url)
    conn.WriteMessage(gowsev.BinaryMessage, b"last")
    wait_until(lambda: conn.messages_received == 1)
    server.context.Close(1, 4000, "enough")
    wait_until(lambda: server.handler.closed)
    wait_until(lambda: conn.close_code)
    id = loop.context.AddConn(conn)
    wait_until(lambda: loop.handler.closed)
    assert loop.handler.events == [("message", id, b"last"), ("closed", id, 4000, "enough")]


def test_adding_a_connection_lets_nothing_else_run(serve, loop):
    server = serve(Recorder())
    conn = gowsev.Dial(server.url, options=gowsev.Options(inbox_messages=None))
    wait_until(lambda: server.handler.of("accepted"))
    for number in range(3000):
        server.context.Write(1, b"%d" % number)
    wait_until(lambda: conn.messages_received == 3000)
    ran = []
    gevent.spawn(ran.append, True)
    loop.context.AddConn(conn)
    assert not ran
    wait_until(lambda: len(loop.handler.messages) == 3000)
    assert loop.handler.messages == [b"%d" % number for number in range(3000)]


def test_whoever_waits_for_a_message_when_its_connection_is_added_is_told(serve, loop):
    conn = gowsev.Dial(serve(EchoBoth()).url)

    def read():
        with pytest.raises(RuntimeError, match="belongs to a Context"):
            conn.ReadMessage()

    readers = [gevent.spawn(read) for _ in range(2)]
    gevent.sleep(0)
    loop.context.AddConn(conn)
    gevent.joinall(readers, PATIENCE)
    assert all(reader.successful() for reader in readers)

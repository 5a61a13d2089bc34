"""`dial`: a client connection by itself, in a synchronous style, against gowsev, another library and plain sockets."""

import contextlib
import ipaddress
import random
import re
import socket
import ssl
import threading

import gevent
import gevent.socket
import pytest
import websockets.sync.server
from conftest import PATIENCE, Recorder, echo, in_thread, wait_until
from gevent.event import Event
from programs import for_two_threads
from scripted_server import accepting, answer_close, close_frame, frame, reset, until_the_end

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


def error_of(function, *args):
    """Spawn a call that is to fail; the greenlet's value is the error. A greenlet that fails itself is printed."""

    def call():
        with pytest.raises(gowsev.ConnectionClosed) as caught:
            function(*args)
        return caught.value

    return gevent.spawn(call)


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


@pytest.mark.parametrize("takeover", [False, True])
def test_a_window_of_8_bits_is_kept_to_by_compressing_nothing(scripted, takeover):
    # RFC 7692 section 7.1.2.2 lets a server ask for a window that zlib cannot make.
    received = []
    payload = b"the same again and again " * 8

    def script(sock, head):
        others = "" if takeover else "; server_no_context_takeover; client_no_context_takeover"
        extension = f"permessage-deflate; client_max_window_bits=8{others}"
        sock.sendall(accepting(head, [f"Sec-WebSocket-Extensions: {extension}"]))
        sock.sendall(frame(b"\xaa\xa8\x00\x01\x00\x00", frames.RSV1 | frames.BINARY))  # b"xxxxxx"
        while len(received) < 2:
            header = sock.recv(8, gevent.socket.MSG_WAITALL)
            assert header[:4] == bytes((frames.FIN | frames.BINARY, 0x80 | 126, 0, len(payload)))
            masked = sock.recv(len(payload), gevent.socket.MSG_WAITALL)
            received.append(bytes(byte ^ header[4 + i % 4] for i, byte in enumerate(masked)))
        answer_close(sock)

    options = gowsev.Options(compression="deflate", compression_takeover=takeover)
    with gowsev.Dial(scripted(script).url, options=options) as conn:
        assert conn.ReadMessage() == (gowsev.BinaryMessage, b"xxxxxx")
        for _ in range(2):
            conn.WriteMessage(gowsev.BinaryMessage, payload)
        wait_until(lambda: received == [payload] * 2)


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
    with gowsev.Dial(library(echo_in_thread, ssl=for_two_threads(context)), ssl_context=client_tls) as conn:
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
    assert (conn.path, conn.query) == ("/some room", "token=1&x=%20")
    assert conn.peer == ("127.0.0.1", server.port)
    assert request.peer == conn.local
    assert conn.headers["upgrade"] == "websocket"
    conn.Close()


def link_local():
    """An address of this machine that needs a zone, and its interface's name and number; or none."""
    with open("/proc/net/if_inet6") as table:
        for digits, number, _, scope, _, name in map(str.split, table):
            if scope == "20":
                return ipaddress.IPv6Address(int(digits, 16)).compressed, name, int(number, 16)
    return None


@pytest.mark.skipif(link_local() is None, reason="no interface has a link-local IPv6 address")
@pytest.mark.parametrize("percent", ["%", "%25"])
def test_a_zone_is_for_connecting_and_stays_out_of_the_host_that_is_sent(percent):
    # RFC 6874 section 3: a zone means something on this machine only.
    address, name, number = link_local()
    hosts = []

    def answer():
        sock, _ = listener.accept()
        with sock:
            head = sock.recv(1 << 16)
            hosts.append(re.search(rb"\r\nHost: (.*?)\r\n", head)[1].decode())
            sock.sendall(accepting(head))
            answer_close(sock)

    with gevent.socket.socket(socket.AF_INET6) as listener:
        listener.bind((address, 0, 0, number))
        listener.listen()
        port = listener.getsockname()[1]
        answering = gevent.spawn(answer)
        gowsev.Dial(f"ws://[{address}{percent}{name}]:{port}/").Close()
        answering.get(timeout=PATIENCE)
    assert hosts == [f"[{address}]:{port}"]


def test_headers_may_be_pairs_and_be_repeated(serve):
    server = serve(EchoBoth())
    with gowsev.Dial(server.url, headers=[("X-Two", "a"), ("X-Two", "b")]):
        assert server.handler.requests[0].headers.get_all("X-Two") == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    ["Sec-WebSocket-Key", "sec-websocket-protocol", "Upgrade", "connection", "Content-Length", "Transfer-Encoding"],
)
def test_headers_of_the_handshake_are_not_the_programs(name):
    with pytest.raises(ValueError, match=f"header {name} is made by the handshake"):
        gowsev.Dial("ws://localhost:1/", headers={name: "x"})


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


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        (["one.example", "two.example"], "one Host header, not 2"),
        (["same.example", "same.example"], "one Host header, not 2"),
        (["one.example,two.example"], "Host header is no host: 'one.example,two.example'"),
        (["a b"], "Host header is no host: 'a b'"),
    ],
)
def test_a_host_that_no_server_takes_is_a_value_error_and_nothing_is_sent(scripted, hosts, text):
    listener = scripted(accepting)
    names = ["Host", "host"]
    with pytest.raises(ValueError, match=text):
        gowsev.Dial(listener.url, headers=[*zip(names, hosts, strict=False)])
    assert listener.heads == []


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


@pytest.mark.parametrize("headers", ["Authorization: Bearer x", b"Authorization: Bearer x", 5])
def test_headers_that_are_no_pairs_are_told_as_they_were_given(headers):
    text = re.escape(f"headers must be a mapping or pairs of str, not {headers!r}")
    for function in (lambda: gowsev.Dial("ws://localhost/", headers=headers), lambda: gowsev.Reject(headers=headers)):
        with pytest.raises(TypeError, match=f"^{text}$"):
            function()


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
    with pytest.raises(
        gowsev.ConnectionClosed, match=r"longer than 1000 bytes .*; see max_message_bytes of gowsev\.Options$"
    ):
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("1000",), "code must be an int, not '1000'"),
        ((True,), "code must be an int, not True"),
        ((1000.0,), "code must be an int, not 1000.0"),
        ((1000, b"bye"), "reason must be str, not b'bye'"),
        ((1000, None), "reason must be str, not None"),
    ],
)
def test_closing_with_a_wrong_type_is_a_type_error_and_closes_nothing(serve, arguments, expected):
    with gowsev.Dial(serve(EchoBoth()).url) as conn:
        with pytest.raises(TypeError, match=expected):
            conn.Close(*arguments)
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


def test_a_timeout_while_connecting(silent_address):
    with pytest.raises(gowsev.DialError, match=f"timed out after {SHORT} s connecting$"):
        gowsev.Dial(f"ws://127.0.0.1:{silent_address[1]}/", timeout=SHORT)


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

"""Dialling by a proxy: tinyproxy and microsocks, and proxies whose every byte a test writes."""

import socket
import sys

import gevent
import gevent.socket
import pytest
from conftest import Recorder, wait_until
from forward_proxies import needs_microsocks, needs_tinyproxy, running_microsocks, running_tinyproxy
from scripted_server import Scripted, until_the_end

import gowsev

pytestmark = pytest.mark.usefixtures("quiet_hub")

SHORT = 0.3


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch):
    for name in ("ws", "wss", "http", "https", "socks", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.fixture
def tinyproxy(tmp_path):
    with running_tinyproxy(tmp_path) as proxy:
        yield proxy


@pytest.fixture
def microsocks(tmp_path):
    with running_microsocks(tmp_path) as proxy:
        yield proxy


def converse(url, **arguments):
    with gowsev.Dial(url, **arguments) as conn:
        conn.WriteMessage(gowsev.BinaryMessage, b"by a proxy" * 10_000)
        assert conn.ReadMessage() == (gowsev.BinaryMessage, b"by a proxy" * 10_000)
        return conn.peer


# -- HTTP CONNECT ------------------------------------------------------------------------------------------------


@needs_tinyproxy
def test_by_connect_plain_and_with_tls(serve, tinyproxy, certificate, client_tls):
    plain, secure = serve(), serve(certificate=certificate)
    proxy = f"http://127.0.0.1:{tinyproxy.port}"
    assert converse(plain.url, proxy=proxy) == ("127.0.0.1", tinyproxy.port)
    converse(f"wss://localhost:{secure.port}/", proxy=proxy, ssl_context=client_tls)
    wait_until(lambda: f"CONNECT 127.0.0.1:{plain.port} HTTP/1.1" in tinyproxy.log())
    wait_until(lambda: f"CONNECT localhost:{secure.port} HTTP/1.1" in tinyproxy.log())


@needs_tinyproxy
def test_by_the_proxy_of_the_environment_and_past_it(serve, tinyproxy, monkeypatch):
    server = serve()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{tinyproxy.port}")
    assert converse(server.url)[1] == tinyproxy.port
    assert converse(server.url, proxy=None)[1] == server.port
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert converse(server.url)[1] == server.port


@needs_tinyproxy
def test_a_proxy_that_wants_a_password(serve, tmp_path):
    server = serve()
    with running_tinyproxy(tmp_path, "BasicAuth alice s3cret") as running:
        converse(server.url, proxy=f"http://alice:s3cret@127.0.0.1:{running.port}")
        for given in ("", "alice:wrong@", "bob:s3cret@"):
            with pytest.raises(gowsev.DialError) as caught:
                gowsev.Dial(server.url, proxy=f"http://{given}127.0.0.1:{running.port}")
            error = caught.value
            assert error.status in (401, 407)
            assert error.proxy == f"http://127.0.0.1:{running.port}"
            assert error.headers["Server"].startswith("tinyproxy")
            assert b"<html" in error.body
            assert f"the proxy answered HTTP {error.status}" in str(error)
            assert f"(by the proxy {error.proxy})" in str(error)
            assert "wrong" not in str(error)
            assert "s3cret" not in str(error)


@needs_tinyproxy
def test_a_server_that_the_proxy_does_not_reach(tinyproxy):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(gowsev.DialError, match="the proxy answered HTTP 5") as caught:
            gowsev.Dial(f"ws://127.0.0.1:{bound.getsockname()[1]}/", proxy=f"http://127.0.0.1:{tinyproxy.port}")
    assert caught.value.status >= 500
    assert caught.value.proxy


@needs_tinyproxy
def test_a_server_that_refuses_behind_a_proxy_is_not_the_proxy(serve, tinyproxy):
    class Bouncer(Recorder):
        def ConnRequested(self, context, request):
            return gowsev.Reject(403, "members only")

    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(serve(Bouncer()).url, proxy=f"http://127.0.0.1:{tinyproxy.port}")
    assert (caught.value.status, caught.value.body, caught.value.proxy) == (403, b"members only", None)


def test_what_is_asked_of_a_proxy(scripted):
    asking = scripted(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nLocation: ws://elsewhere/\r\n\r\n")
    proxy = f"http://alice:p%40ss@127.0.0.1:{asking.port}"
    for url in ("ws://server.example/", "wss://[::1]:9000/"):
        with pytest.raises(gowsev.DialError) as caught:
            gowsev.Dial(url, proxy=proxy, headers={"Cookie": "secret"}, follow_redirects=2)
        assert caught.value.location is None
    assert asking.heads == [
        b"CONNECT server.example:80 HTTP/1.1\r\nHost: server.example:80\r\n"
        b"Proxy-Authorization: Basic YWxpY2U6cEBzcw==\r\n\r\n",
        b"CONNECT [::1]:9000 HTTP/1.1\r\nHost: [::1]:9000\r\nProxy-Authorization: Basic YWxpY2U6cEBzcw==\r\n\r\n",
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "the proxy closed the connection without a response"),
        (b"SSH-2.0-x\r\n\r\n", "the proxy's response is no HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "the proxy answered HTTP 101"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 Switching", "the proxy sent something behind its answer"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n", "the proxy answered HTTP 302 Found"),
    ],
)
def test_a_proxy_that_answers_something_else(scripted, answer, said):
    with pytest.raises(gowsev.DialError, match=said) as caught:
        gowsev.Dial("ws://server.example/", proxy=f"http://127.0.0.1:{scripted(answer).port}", follow_redirects=1)
    assert caught.value.proxy
    assert caught.value.location is None


def test_the_time_for_a_proxy_is_that_of_dial(scripted):
    silent = scripted(lambda sock, head: until_the_end(sock))
    with pytest.raises(gowsev.DialError, match=rf"timed out after {SHORT} s by the proxy http://127") as caught:
        gowsev.Dial("ws://server.example/", proxy=f"http://a:secret@127.0.0.1:{silent.port}", timeout=SHORT)
    assert "secret" not in str(caught.value)
    wait_until(lambda: all(greenlet.dead for greenlet in silent.greenlets[1:]))  # its socket was closed


def test_a_proxy_that_is_not_there():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(gowsev.DialError, match=rf"(?i)refused \(connecting to the proxy {proxy}\)$") as caught:
            gowsev.Dial("ws://server.example/", proxy=proxy)
    assert caught.value.proxy == proxy


# -- SOCKS5 ------------------------------------------------------------------------------------------------------


@needs_microsocks
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_by_socks_plain_and_with_tls(serve, microsocks, certificate, client_tls, scheme):
    proxy = f"{scheme}://127.0.0.1:{microsocks.port}"
    plain, secure = serve(), serve(certificate=certificate)
    assert converse(plain.url, proxy=proxy) == ("127.0.0.1", microsocks.port)
    # The name may have an address of IPv6 too, where nobody listens.
    converse(f"wss://localhost:{secure.port}/", proxy=proxy, ssl_context=client_tls)
    name = "localhost" if scheme == "socks5h" else "127.0.0.1"
    wait_until(lambda: f"connected to {name}:{secure.port}" in microsocks.log())


@needs_microsocks
def test_socks_with_a_user_and_password(serve, tmp_path):
    server = serve()
    with running_microsocks(tmp_path, "-u", "alice", "-P", "secret") as running:
        where = f"127.0.0.1:{running.port}"
        converse(server.url, proxy=f"socks5h://alice:secret@{where}")
        for given, said in (
            ("", "the proxy wants a user and password"),
            ("alice:wrong@", "the proxy does not accept the user and password"),
        ):
            with pytest.raises(gowsev.DialError, match=rf"{said} \(by the proxy socks5h://{where}\)$") as caught:
                gowsev.Dial(server.url, proxy=f"socks5h://{given}{where}")
            assert (caught.value.status, caught.value.proxy) == (None, f"socks5h://{where}")


@needs_microsocks
def test_a_server_that_socks_does_not_reach(microsocks):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(gowsev.DialError, match="the proxy answered connection refused"):
            gowsev.Dial(f"ws://127.0.0.1:{bound.getsockname()[1]}/", proxy=f"socks5h://127.0.0.1:{microsocks.port}")


class ScriptedSocks(Scripted):
    """A SOCKS proxy that says what a test wants, each answer a byte at a time, and notes what it was told."""

    def __init__(self, *answers):
        self.answers = answers
        super().__init__(None)

    def answer(self, sock):
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for answer in self.answers:
                self.heads.append(sock.recv(1 << 10))
                for byte in answer:
                    sock.sendall(bytes((byte,)))
                    gevent.sleep(0)


@pytest.fixture
def scripted_socks():
    made = []

    def start(*answers):
        made.append(ScriptedSocks(*answers))
        return made[-1]

    yield start
    for listener in made:
        listener.close()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b""], "the proxy closed the connection"),
        ([b"\x05"], "the proxy closed the connection"),
        ([b"HT"], "the proxy's answer is no SOCKS5"),
        ([b"\x05\xff"], "the proxy wants a user and password"),
        ([b"\x05\x01"], "the proxy wants a user and password"),  # GSSAPI, which was not offered
        ([b"\x05\x00", b"\x05\x02\x00\x01\0\0\0\0\0\0"], "the proxy answered connection not allowed by ruleset"),
        ([b"\x05\x00", b"\x05\x04\x00\x04" + bytes(18)], "the proxy answered host unreachable"),
        ([b"\x05\x00", b"\x05\x05\x00\x03\x03abc\0\0"], "the proxy answered connection refused"),
        ([b"\x05\x00", b"\x05\x63\x00\x01\0\0\0\0\0\0"], "the proxy's answer is no SOCKS5"),
        ([b"\x05\x00", b"\x05\x00\x00\x07\0\0\0\0\0\0"], "the proxy's answer is no SOCKS5"),
        ([b"\x05\x00", b"\x04\x00\x00\x01\0\0\0\0\0\0"], "the proxy's answer is no SOCKS5"),
        ([b"\x05\x00", b"\x05\x00\x00\x01\0\0"], "the proxy closed the connection"),
    ],
)
def test_every_answer_of_a_socks_proxy(scripted_socks, answers, said):
    proxy = f"socks5h://127.0.0.1:{scripted_socks(*answers).port}"
    with pytest.raises(gowsev.DialError, match=rf"{said} \(by the proxy {proxy}\)$"):
        gowsev.Dial("ws://server.example/", proxy=proxy)


def test_what_is_asked_of_a_socks_proxy(scripted_socks):
    no = b"\x05\x01\x00\x01\0\0\0\0\0\0"
    asking = scripted_socks(b"\x05\x02", b"\x01\x00", no)
    with pytest.raises(gowsev.DialError, match="general server failure"):
        gowsev.Dial("ws://server.example/", proxy=f"socks5h://alice:secret@127.0.0.1:{asking.port}")
    assert asking.heads == [
        b"\x05\x02\x00\x02",
        b"\x01\x05alice\x06secret",
        b"\x05\x01\x00\x03\x0eserver.example\0\x50",
    ]
    refusing = scripted_socks(b"\x05\xff")
    with pytest.raises(gowsev.DialError, match="the proxy takes no user and password"):
        gowsev.Dial("ws://x/", proxy=f"socks5h://alice:secret@127.0.0.1:{refusing.port}")
    for host, address in (("127.0.0.1", b"\x01\x7f\0\0\x01"), ("[::1]", b"\x04" + bytes(15) + b"\x01")):
        asking = scripted_socks(b"\x05\x00", no)
        with pytest.raises(gowsev.DialError):
            gowsev.Dial(f"ws://{host}:258/", proxy=f"socks5://127.0.0.1:{asking.port}")
        assert asking.heads[1] == b"\x05\x01\x00" + address + b"\x01\x02"


def test_a_name_that_is_too_long_for_socks(scripted_socks):
    name = ".".join(["a" * 60] * 5)
    with pytest.raises(gowsev.DialError, match="SOCKS takes no name of more than 255 bytes"):
        gowsev.Dial(f"ws://{name}/", proxy=f"socks5h://127.0.0.1:{scripted_socks(b'').port}")


def test_a_name_that_there_is_not_is_looked_up_here(scripted_socks):
    proxy = f"socks5://127.0.0.1:{scripted_socks(b'').port}"
    with pytest.raises(gowsev.DialError, match=r"\(connecting\)$") as caught:
        gowsev.Dial("ws://no-such-host.invalid/", proxy=proxy)
    assert caught.value.proxy is None


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ImportError, match=r"^the proxy socks5h://proxy:1080 takes .* pip install 'gowsev\[socks\]'$"):
        gowsev.Dial("ws://server.example/", proxy="socks5h://alice:secret@proxy")


def test_a_unix_socket_and_a_proxy_are_not_both(tmp_path):
    with pytest.raises(ValueError, match=r"^proxy and unix"):
        gowsev.Dial("ws://localhost/", proxy="http://proxy", unix=tmp_path / "socket")


@needs_microsocks
def test_the_next_address_of_a_server_where_the_proxy_does_not_reach_one(serve, microsocks, monkeypatch):
    with socket.socket() as bound:
        bound.bind(("127.0.0.2", 0))  # where nobody listens
        port = bound.getsockname()[1]
        server = serve(port=f"127.0.0.1:{port}")
        real = gevent.socket.getaddrinfo

        def two_addresses(host, *args, **kwargs):
            hosts = ["127.0.0.2", "127.0.0.1"] if host == "chat.example" else [host]
            return [entry for name in hosts for entry in real(name, *args, **kwargs)]

        monkeypatch.setattr(gevent.socket, "getaddrinfo", two_addresses)
        converse(f"ws://chat.example:{port}/", proxy=f"socks5://127.0.0.1:{microsocks.port}")
    wait_until(lambda: server.handler.closed)

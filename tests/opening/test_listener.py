"""`server`: all that can come to a port before an upgrade, each case on a live server.

Every test here also shows, through the fixture `clean`, that nothing was printed on stderr, that no traceback and
nothing unescaped of a request got into the log, and that no socket was left open.
"""

import contextlib
import gc
import logging
import os
import random
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
import time

import gevent
import gevent.os
import gevent.socket
import gevent.ssl
import pytest
from conftest import (
    PATIENCE,
    Conns,
    Judge,
    Recorder,
    echo,
    echoes,
    greenlets,
    held_sockets,
    listeners_of,
    open_sockets,
    wait_until,
)
from gevent.event import Event
from raw import RawClient

import gowsev
from gowsev.opening import http as wsgi
from gowsev.opening.listener import Listener
from gowsev.wire import frames

pytestmark = pytest.mark.usefixtures("clean")

#: How long servers wait for a request where a test waits for the end of that.
SHORT = 0.3


# -- what the tests share ----------------------------------------------------------------------------------------


KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
GOOD = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def upgrade(changes=None, *, line="GET / HTTP/1.1", more=(), body=b""):
    """A request for an upgrade: the good one with some headers changed (`None`: left out) and more header lines."""
    headers = GOOD | (changes or {})
    lines = [line, *(f"{name}: {value}" for name, value in headers.items() if value is not None), *more]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path="/", headers=()):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode("latin-1")


def read_response(client):
    """Read a response that has a Content-Length; return its head and body."""
    head = client.read_head()
    length = int(re.search(rb"\r\ncontent-length: *([0-9]+)\r\n", head, re.IGNORECASE)[1])
    while len(client.buffer) < length:
        client.fill()
    return head, client.take(length)


def pages(environ, start_response):
    """A WSGI application that tells what it was asked."""
    sent = environ["wsgi.input"].read()
    names = ("REQUEST_METHOD", "wsgi.url_scheme", "PATH_INFO", "QUERY_STRING", "SERVER_NAME")
    body = " ".join([*(environ[name] for name in names), sent.decode()]).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


# -- plain HTTP --------------------------------------------------------------------------------------------------


def test_a_plain_request_is_told_to_upgrade_and_the_connection_stays_open(serve):
    client = serve().client(handshake=False)
    for _ in range(2):
        client.send(get())
        head, body = read_response(client)
        # RFC 9110 section 15.5.22: "The server MUST send an Upgrade header field in a 426 response".
        assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
        assert b"\r\nUpgrade: websocket\r\n" in head
        assert b"\r\nConnection: Upgrade\r\n" in head
        assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in head
        assert body == b"This is a WebSocket server; open it with a WebSocket client.\n"
    client.send(upgrade())
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert echoes(client)


def test_an_application_serves_pages_before_an_upgrade_on_the_same_connection(serve):
    server = serve(Conns(), http_app=pages)
    client = server.client(handshake=False)
    client.send(get("/some%20page?x=%20y"))
    head, body = read_response(client)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"GET http /some page x=%20y 127.0.0.1 "
    client.send(b"POST /form HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nname=value")
    assert read_response(client)[1] == b"POST http /form  127.0.0.1 name=value"
    client.send(
        b"POST /form HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nname=\r\n5\r\nvalue\r\n0\r\n\r\n"
    )
    assert read_response(client)[1] == b"POST http /form  127.0.0.1 name=value"
    client.send(upgrade(line="GET /some%20room?x=%20y HTTP/1.1"))
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert echoes(client)
    conn = server.handler.conns[0]
    assert (conn.path, conn.query, conn.peer) == ("/some room", "x=%20y", client.sock.getsockname())


def test_an_application_serves_pages_with_tls(serve, certificate, client_tls):
    server = serve(http_app=pages, certificate=certificate)
    client = server.client(handshake=False, tls=client_tls)
    client.send(get("/page"))
    assert read_response(client)[1] == b"GET https /page  127.0.0.1 "
    client.send(upgrade())
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert echoes(client)


def test_an_application_serves_pages_on_a_unix_socket(serve, tmp_path):
    client = serve(http_app=pages, port=f"unix:{tmp_path}/chat.sock").client(handshake=False)
    client.send(get("/page"))
    assert read_response(client)[1] == b"GET http /page  localhost "


def test_connection_close_is_obeyed(serve):
    client = serve(http_app=pages).client(handshake=False)
    client.send(get("/", ["Connection: close"]))
    assert client.read_to_end().startswith(b"HTTP/1.1 200 OK\r\n")


def test_an_application_may_take_longer_than_the_handshake_may(serve):
    def slow(environ, start_response):
        gevent.sleep(SHORT * 2)
        return pages(environ, start_response)

    client = serve(http_app=slow, handshake_timeout=SHORT).client(handshake=False)
    client.send(get("/page"))
    assert read_response(client)[1] == b"GET http /page  127.0.0.1 "


def expected_error(caplog):
    """The one error in the log, taken out of it."""
    (record,) = [record for record in caplog.records if record.levelno > logging.INFO]
    caplog.clear()
    assert record.name == "gowsev"
    return record


@pytest.mark.parametrize("error", [ZeroDivisionError("its own fault"), gevent.Timeout(10), OSError("its own fault")])
def test_a_failing_application_is_a_500_and_a_logged_traceback(serve, caplog, error):
    def failing(environ, start_response):
        raise error

    server = serve(http_app=failing)
    client = server.client(handshake=False)
    client.send(get("/\x9b31mred"))
    response = client.read_to_end()
    assert response.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"its own fault" not in response
    record = expected_error(caplog)
    assert record.exc_info[1] is error
    assert record.getMessage() == r"error in answering 'GET /\x9b31mred HTTP/1.1'"
    assert echoes(server.client())


def test_an_application_that_fails_in_the_middle_ends_its_connection(serve, caplog):
    def failing(environ, start_response):
        start_response("200 OK", [("Content-Length", "100")])
        yield b"so far so good"
        raise ZeroDivisionError

    client = serve(http_app=failing).client(handshake=False)
    client.send(get())
    response = client.read_to_end()
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"so far so good")
    assert expected_error(caplog).exc_info[0] is ZeroDivisionError


def test_an_application_that_is_killed_ends_its_connection_silently(serve):
    def killed(environ, start_response):
        raise gevent.GreenletExit

    client = serve(http_app=killed).client(handshake=False)
    client.send(get())
    assert client.read_to_end() == b""


def test_a_timeout_that_an_application_left_running_is_not_taken_for_ours(serve, capfd):
    def careless(environ, start_response):
        gevent.Timeout.start_new(0.01)
        return pages(environ, start_response)

    server = serve(http_app=careless)
    client = server.client(handshake=False)
    client.send(get())
    assert client.read_to_end().startswith(b"HTTP/1.1 200 OK\r\n")
    # It is an error of the program, which gevent reports as it does for any greenlet.
    errors = []
    wait_until(lambda: errors.append(capfd.readouterr().err) or "gevent.timeout.Timeout: 0.01" in "".join(errors))
    gevent.sleep(0)
    capfd.readouterr()
    assert echoes(server.client())


def test_an_invalid_chunk_in_a_body_is_a_400(serve, informed):
    client = serve(http_app=pages).client(handshake=False)
    client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n\r\n")
    assert client.read_to_end().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert any(line.startswith("bad request from 127.0.0.1:") for line in informed())


def test_an_application_that_cannot_read_its_malformed_body_is_a_400(serve, informed):
    def application(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            with contextlib.suppress(OSError):
                environ["wsgi.input"].read()  # as one that empties what is left; it ends pywsgi's own care for the body
            raise error

    client = serve(http_app=application).client(handshake=False)
    client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n")
    assert client.read_to_end().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert any("no size of a chunk in a chunked body: b'none" in line for line in informed())


@pytest.mark.parametrize(
    "tls",
    [False, True],
    ids=["plain", "TLS"],
)
def test_a_client_that_resets_while_an_application_answers_is_nobodys_error(serve, certificate, client_tls, tls):
    asked, gone, done = Event(), Event(), Event()

    def large(environ, start_response):
        asked.set()
        gone.wait()
        start_response("200 OK", [])
        yield b"x" * 10_000_000
        done.set()

    server = serve(http_app=large, certificate=certificate if tls else None)
    client = server.client(handshake=False, tls=client_tls if tls else None)
    client.send(get())
    asked.wait(PATIENCE)
    client.reset()
    gone.set()
    assert echoes(server.client(tls=client_tls if tls else None))
    assert not done.is_set()


def test_a_client_that_does_not_read_its_page_is_given_up(serve):
    def large(environ, start_response):
        # So large a header that its sending blocks, before pywsgi has counted a byte of the response.
        start_response("200 OK", [("X-Large", "x" * 20_000_000)])
        return [b"page"]

    server = serve(http_app=large, handshake_timeout=SHORT)
    client = server.client(handshake=False)
    client.send(get())
    (listener,) = listeners_of(server)
    wait_until(lambda: listener.pending)
    wait_until(lambda: not listener.pending)
    assert echoes(server.client())


# -- the upgrade -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(upgrade(), id="RFC 6455 1.3"),
        pytest.param(upgrade({"Upgrade": "WebSocket", "Connection": "upgrade"}), id="4.2.1: ASCII case-insensitive"),
        pytest.param(upgrade({"Connection": "keep-alive, Upgrade"}), id="4.2.1: among other options"),
        pytest.param(upgrade({"Connection": "keep-alive"}, more=["Connection: Upgrade"]), id="4.2.1: on another line"),
        pytest.param(upgrade({"Upgrade": "h2c, websocket"}), id="RFC 9110 7.8: Upgrade is a list"),
        pytest.param(b"\r\n" + upgrade(), id="RFC 9112 2.2: an empty line before the request line"),
        pytest.param(upgrade({"Sec-WebSocket-Key": f"  {KEY}\t "}), id="RFC 9110 5.5: blanks around a value"),
        pytest.param(upgrade({"Content-Length": "0"}), id="RFC 9110 8.6: an empty body"),
        pytest.param(upgrade().replace(b"\r\n", b"\n"), id="RFC 9112 2.2: a single LF"),
        pytest.param(upgrade({"X-Latin": "\xe9"}), id="RFC 9110 5.5: obs-text"),
        pytest.param(upgrade(line="GET http://localhost/ HTTP/1.1"), id="RFC 9112 3.2.2: absolute-form"),
    ],
)
def test_a_good_opening_handshake_is_answered_with_101(serve, data):
    client = serve().client(handshake=False)
    client.send(data)
    response = client.read_head()
    assert response.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    lines = response.decode().split("\r\n")[1:-2]
    headers = dict(line.split(": ") for line in lines)
    assert len(headers) == len(lines)
    headers.pop("Date", None)
    assert headers == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",  # RFC 6455 section 1.3
    }
    assert echoes(client)


def long_header(size):
    return "X-Long: " + "x" * size


FAULTS = [
    # RFC 6455 section 4.2.1: what the client must send, and 4.4 for versions.
    ("4.2.1 (1) not GET", upgrade(line="POST / HTTP/1.1"), 405),
    ("RFC 9110 7.8: HTTP/1.0 has no Upgrade", upgrade(line="GET / HTTP/1.0"), 426),
    ("4.2.1 (1) HTTP/1.2", upgrade(line="GET / HTTP/1.2"), 505),
    ("4.2.1 (1) HTTP/2", upgrade(line="GET / HTTP/2.0"), 400),
    ("4.2.1 (1) no version", upgrade(line="GET /"), 400),
    ("4.2.1 (1) another protocol", upgrade(line="GET / RTSP/1.0"), 400),
    ("4.2.1 (4) Connection is missing", upgrade({"Connection": None}), 426),
    ("4.2.1 (4) Connection is another", upgrade({"Connection": "keep-alive"}), 426),
    ("4.2.1 (4) Connection is longer", upgrade({"Connection": "Upgraded"}), 426),
    ("4.2.1 (5) key is missing", upgrade({"Sec-WebSocket-Key": None}), 400),
    ("4.2.1 (5) key is empty", upgrade({"Sec-WebSocket-Key": ""}), 400),
    ("4.2.1 (5) key is no base64", upgrade({"Sec-WebSocket-Key": "!" * 24}), 400),
    ("4.2.1 (5) key is not ASCII", upgrade({"Sec-WebSocket-Key": "\xe9" * 24}), 400),
    ("4.2.1 (5) key has 15 bytes", upgrade({"Sec-WebSocket-Key": "A" * 20}), 400),
    ("4.2.1 (5) key has 17 bytes", upgrade({"Sec-WebSocket-Key": "A" * 23 + "="}), 400),
    ("4.2.1 (5) key is not padded", upgrade({"Sec-WebSocket-Key": KEY.rstrip("=")}), 400),
    ("11.3.1 two keys", upgrade(more=[f"Sec-WebSocket-Key: {KEY}"]), 400),
    ("4.2.1 (6) version is missing", upgrade({"Sec-WebSocket-Version": None}), 400),
    ("4.4 version 8", upgrade({"Sec-WebSocket-Version": "8"}), 400),
    ("4.4 version 130", upgrade({"Sec-WebSocket-Version": "130"}), 400),
    ("4.4 two versions", upgrade(more=["Sec-WebSocket-Version: 8"]), 400),
    ("11.3.4 protocol is no token", upgrade({"Sec-WebSocket-Protocol": "chat;"}), 400),
    ("10.2 a foreign origin", upgrade({"Origin": "http://evil.example"}), 403),
    # A body would be taken for frames.
    ("a body", upgrade({"Content-Length": "5"}, body=b"hello"), 400),
    ("a chunked body", upgrade({"Transfer-Encoding": "chunked"}, body=b"0\r\n\r\n"), 400),
    # RFC 9112 and 9110.
    ("9112 3: one word", b"GET\r\n\r\n", 400),
    ("9112 3: four words", upgrade(line="GET / / HTTP/1.1"), 400),
    ("9112 3: not a version", upgrade(line="GET / HTTP/x"), 400),
    ("9112 5.2: a folded header", upgrade(more=["X-Folded: one", " two"]), 400),
    ("9112 5.2: folded by a tab", upgrade(more=["X-Folded: one", "\ttwo"]), 400),
    ("9112 5.2: folded in the first line", b"GET / HTTP/1.1\r\n X: y\r\n\r\n", 400),
    ("9110 8.6: length is no number", upgrade({"Content-Length": "five"}), 400),
    ("9110 8.6: length below 0", upgrade({"Content-Length": "-5"}), 400),
    ("a long request line", get("/" + "x" * 10_000), 414),
    ("a long header", upgrade(more=[long_header(70_000)]), 400),
    ("many bytes of headers", upgrade(more=[long_header(1000)] * 70), 400),
    ("many headers", upgrade(more=["X: y"] * 100), 400),
    ("binary garbage", random.Random(6455).randbytes(300) + b"\n", 400),
    ("an old protocol of ours", b"\x00hello\xff\r\n", 400),
]


@pytest.mark.parametrize(("data", "status"), [pytest.param(data, status, id=id) for id, data, status in FAULTS])
def test_a_faulty_opening_handshake_is_refused(serve, informed, data, status):
    server = serve()
    client = server.client(handshake=False)
    client.send(data)
    assert client.read_to_end().startswith(b"HTTP/1.1 %d " % status)
    assert server.handler.events == []
    if status != 414:  # this one pywsgi answers by itself
        assert len(informed()) == 1
    # The server goes on.
    assert echoes(server.client())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(upgrade({"Host": None}), id="RFC 6455 4.2.1 (2), RFC 9112 3.2: no Host"),
        pytest.param(upgrade(more=["Host: example.org"]), id="RFC 9112 3.2: two Hosts"),
        pytest.param(upgrade(more=["Nonsense"]), id="RFC 9112 5.1: no colon"),
        pytest.param(upgrade(more=["\x1b[2J"]), id="RFC 9112 5.1: no colon, controls"),
        pytest.param(upgrade(more=["X : y"]), id="RFC 9112 5.1: a blank before the colon"),
        pytest.param(upgrade(more=["X(): y"]), id="RFC 9110 5.1: a name that is no token"),
        pytest.param(upgrade(more=[": y"]), id="RFC 9110 5.1: no name"),
    ],
)
def test_a_request_that_pywsgi_would_take_is_refused(serve, data):
    client = serve().client(handshake=False)
    client.send(data)
    assert client.read_head().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("cut", [2, 1], ids=["before the empty line", "in the empty line"])
def test_a_request_that_is_cut_off_is_not_answered_with_101(serve, cut):
    # RFC 9112 section 8: a request is complete when its empty line has come.
    server = serve()
    client = server.client(handshake=False)
    client.send(upgrade()[:-cut])
    client.sock.shutdown(socket.SHUT_WR)
    assert not client.read_to_end().startswith(b"HTTP/1.1 101 ")
    assert server.handler.events == []


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_malformed_extension_is_refused(serve, compression):
    # RFC 6455 section 9.1: "the recipient of such malformed data MUST immediately _Fail the WebSocket Connection_".
    client = serve(compression=compression).client(handshake=False)
    client.send(upgrade({"Sec-WebSocket-Extensions": "=;"}))
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")


def test_a_refusal_says_why_and_closes(serve, informed):
    server = serve()
    client = server.client(handshake=False)
    client.send(upgrade({"Sec-WebSocket-Version": "8"}, line="GET /room HTTP/1.1"))
    head, body = read_response(client)
    assert client.read_to_end() == b""
    # RFC 6455 section 4.4: the answer names the version that we speak.
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in head
    assert b"\r\nConnection: close\r\n" in head
    assert b"Sec-WebSocket-Version" in body
    host, port = client.sock.getsockname()
    (line,) = informed()
    assert line.startswith(f"refused {host}:{port}, which asked for '/room': 400 ")
    assert server.context.Stats().rejected == 1


@pytest.mark.parametrize("options", [{}, {"http_app": pages}], ids=["alone", "with pages"])
def test_an_upgrade_that_a_proxy_has_lost_is_logged(serve, informed, options):
    client = serve(**options).client(handshake=False)
    client.send(get("/room", ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]))
    head, body = read_response(client)
    if options:
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    else:
        assert head.startswith(b"HTTP/1.1 426 ")
        assert b"a proxy in front of this WebSocket server does not pass it on" in body
    (line,) = informed()
    assert line.startswith("a request from '127.0.0.1' for '/room' has a Sec-WebSocket-Key, but no Upgrade: a proxy ")


def test_tls_on_a_port_without_it_is_called_so_in_the_log(serve, informed):
    client = serve().client(handshake=False)
    client.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\n")
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")
    (line,) = informed()
    assert line.startswith("bad request from 127.0.0.1:")
    assert "the client began with TLS, and this port has none" in line


def test_an_origin_that_may_not_connect_is_logged_with_what_allows_it(serve, informed):
    client = serve().client(handshake=False)
    client.send(upgrade({"Origin": "http://localhost:8000"}))
    assert client.read_to_end().startswith(b"HTTP/1.1 403 Forbidden\r\n")
    (line,) = informed()
    assert line.endswith(
        """403 "Pages of 'http://localhost:8000' may not connect here: see allowed_origins of gowsev.Options.\""""
    )


def test_the_answer_to_another_method_names_the_one_allowed(serve):
    client = serve().client(handshake=False)
    client.send(upgrade(line="DELETE / HTTP/1.1"))
    # RFC 9110 section 15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
    assert b"\r\nAllow: GET\r\n" in client.read_head()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(upgrade(line="GET /\x1b[31mred\x07\x9b HTTP/1.1", more=["Sec-WebSocket-Version: 8"]), id="path"),
        pytest.param(upgrade({"Sec-WebSocket-Version": "\x1b[31m8"}), id="version"),
        pytest.param(upgrade({"Sec-WebSocket-Key": "\x1b]0;title\x07"}), id="key"),
        pytest.param(upgrade({"Connection": "Upgrade\x1b[2J"}), id="connection"),
        pytest.param(upgrade({"Origin": "http://\x1b[2J"}), id="origin"),
        pytest.param(upgrade(line="\x1b[2J / HTTP/1.1"), id="method"),
        pytest.param(upgrade(line="GET / \x1b[2J"), id="protocol"),
        pytest.param(upgrade({"Content-Length": "\x1b[2J"}), id="length"),
        pytest.param(b"\x1b[2J\r\n\r\n", id="nothing else"),
        pytest.param(b"%s %d %(x)s %\r\n\r\n", id="formats"),
    ],
)
def test_nothing_of_a_request_gets_into_the_log_unescaped(serve, informed, data):
    client = serve().client(handshake=False)
    client.send(data)
    assert re.match(rb"HTTP/1.1 4[0-9][0-9] ", client.read_to_end())
    # That it is printable, the fixture `clean` checks.
    (line,) = informed()
    assert re.search(r"127\.0\.0\.1:[0-9]+", line)


def test_the_path_of_an_upgrade_is_logged_escaped_at_debug_level(serve, caplog):
    client = serve().client(handshake=False)
    client.send(upgrade(line="GET /%1b[31mred HTTP/1.1"))
    client.read_head()
    wait_until(lambda: any(r"'/\x1b[31mred'" in record.getMessage() for record in caplog.records))


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://localhost/room?x=1", "/room", "x=1"),
        ("https://localhost:443/room", "/room", ""),
        ("http://localhost", "/", ""),
        ("http://localhost?x=1", "/", "x=1"),
        ("/http://localhost/room", "/http://localhost/room", ""),
    ],
)
def test_the_path_of_an_absolute_uri_is_its_path(serve, target, path, query):
    # RFC 6455 section 4.2.1 (1): "(or an absolute HTTP/HTTPS URI containing the /resource name/)"
    server = serve(Conns())
    client = server.client(handshake=False)
    client.send(upgrade(line=f"GET {target} HTTP/1.1"))
    client.read_head()
    wait_until(lambda: server.handler.conns)
    assert (server.handler.conns[0].path, server.handler.conns[0].query) == (path, query)


def test_a_path_that_is_no_utf_8_does_not_fail(serve):
    server = serve(Conns())
    server.client(path="/%ff/%c3%a9?%ff")
    wait_until(lambda: server.handler.conns)
    assert (server.handler.conns[0].path, server.handler.conns[0].query) == ("/\ufffd/\xe9", "%ff")


# -- a handshake that takes too long -----------------------------------------------------------------------------


def dribble(client, data):
    """Send the bytes of `data` one at a time, until they or the connection end."""
    with contextlib.suppress(OSError):
        for byte in data:
            client.send(bytes((byte,)))
            gevent.sleep(0.01)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"GET / HT", id="silent in the request line"),
        pytest.param(upgrade()[:-2], id="silent in the headers"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "TLS", "unix"])
def test_a_client_that_falls_silent_is_given_up(serve, informed, certificate, client_tls, tmp_path, data, kind):
    server = serve(
        port=f"unix:{tmp_path}/chat.sock" if kind == "unix" else "127.0.0.1:0",
        certificate=certificate if kind == "TLS" else None,
        handshake_timeout=SHORT,
    )
    client = server.client(handshake=False, tls=client_tls if kind == "TLS" else None)
    client.send(data)
    assert client.read_to_end() == b""
    who = "a unix socket" if kind == "unix" else "{}:{}".format(*client.sock.getsockname())
    wait_until(lambda: informed() == [f"no request from {who} within {SHORT} s"])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /" + b"x" * 8000, id="request line"),
        pytest.param(get("/", ["X: " + "y" * 100] * 80), id="headers"),
    ],
)
def test_a_client_that_dribbles_is_given_up(serve, data):
    client = serve(handshake_timeout=SHORT).client(handshake=False)
    sender = gevent.spawn(dribble, client, data)
    assert client.read_to_end() == b""
    sender.kill()


@pytest.mark.parametrize("kind", ["plain", "TLS", "half-closed"])
def test_a_client_that_is_given_up_sees_the_end_although_another_process_holds_its_socket(serve, certificate, kind):
    server = serve(certificate=certificate if kind == "TLS" else None, handshake_timeout=SHORT)
    before = open_sockets()
    client = server.client(handshake=False)
    wait_until(lambda: len(open_sockets() - before) == 2)  # both ends
    with held_sockets():
        if kind == "half-closed":
            client.sock.shutdown(socket.SHUT_WR)
        assert client.read_to_end() == b""


def test_an_endless_request_line_is_refused_at_its_bound(serve):
    client = serve().client(handshake=False)
    with contextlib.suppress(OSError):
        client.send(b"GET /")
        while True:
            client.send(b"x" * 4096)
            gevent.sleep(0)
    assert client.read_to_end()[:13] in (b"", b"HTTP/1.1 414 ")  # empty: a reset has overtaken it


@pytest.mark.parametrize("line", [b"X: y\r\n", b"X: " + b"y" * 60_000], ids=["lines", "line"])
def test_endless_headers_are_refused_at_their_bound(serve, informed, line):
    client = serve().client(handshake=False)
    with contextlib.suppress(OSError):
        client.send(b"GET / HTTP/1.1\r\n")
        while True:
            client.send(line)
            gevent.sleep(0)
    assert client.read_to_end()[:13] in (b"", b"HTTP/1.1 400 ")
    wait_until(lambda: any("more than 65536 bytes or 100 lines of headers" in entry for entry in informed()))


def test_an_idle_keep_alive_is_ended(serve, informed):
    client = serve(http_app=pages, handshake_timeout=SHORT).client(handshake=False)
    for _ in range(2):
        client.send(get("/page"))
        assert read_response(client)[1] == b"GET http /page  127.0.0.1 "
    assert client.read_to_end() == b""
    wait_until(lambda: any(line.startswith("no request from 127.0.0.1:") for line in informed()))


def test_a_client_that_is_slow_to_begin_has_the_whole_time_for_its_next_request(serve):
    limit = 2.0
    client = serve(http_app=pages, handshake_timeout=limit).client(handshake=False)
    gevent.sleep(limit / 2)
    begun = time.monotonic()
    client.send(get("/page"))
    assert read_response(client)[1] == b"GET http /page  127.0.0.1 "
    assert client.read_to_end() == b""
    assert time.monotonic() - begun > limit * 0.9


def test_a_dribbled_body_that_nobody_asked_for_is_given_up(serve):
    server = serve(handshake_timeout=SHORT)
    client = server.client(handshake=False)
    client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
    assert read_response(client)[0].startswith(b"HTTP/1.1 426 ")
    sender = gevent.spawn(dribble, client, b"x" * 1_000_000)
    try:
        with gevent.Timeout(SHORT * 10):
            assert client.read_to_end() == b""
    finally:
        sender.kill()


def test_a_silent_tls_client_is_given_up(serve, certificate, informed):
    server = serve(certificate=certificate, handshake_timeout=SHORT)
    client = server.client(handshake=False)
    assert client.read_to_end() == b""
    wait_until(lambda: len(informed()) == 1)
    assert "no request from 127.0.0.1:" in informed()[0]


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_an_upgraded_connection_outlives_the_handshake_timeout(serve, timeout):
    # In both forms of the option; that a shorter one does not end it either, is the next test.
    assert echoes(serve(handshake_timeout=timeout).client())


def test_the_handshake_timeout_does_not_end_what_has_been_upgraded(serve, certificate, client_tls, informed):
    server = serve(certificate=certificate, handshake_timeout=SHORT)
    client = server.client(tls=client_tls)
    # A second client, silent, is given up meanwhile: then the time is over for the first one too.
    assert server.client(handshake=False).read_to_end() == b""
    assert echoes(client)


def test_a_request_that_nobody_judges_is_a_503(informed):
    context = gowsev.MakeContext(Judge(), gowsev.Options(handshake_timeout=SHORT))
    client = RawClient(*context.ListenAndServe("127.0.0.1:0"), handshake=False)
    try:
        client.send(upgrade())
        assert client.read_to_end().startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        host, port = client.sock.getsockname()
        text = f"No answer within {SHORT} s: see handshake_timeout of gowsev.Options."
        assert informed() == [f"refused {host}:{port}, which asked for '/': 503 '{text}'"]
        assert context.Stats().rejected == 1
    finally:
        client.close()
        context.Shutdown(5)
        context.EventLoop()


def test_a_verdict_may_refuse_with_any_status_body_and_headers(serve, informed):
    reject = gowsev.Reject(499, "not you\x1b[2J", {"Retry-After": "60"})
    server = serve(Judge(reject))
    client = server.client(handshake=False)
    client.send(upgrade())
    head, body = read_response(client)
    assert head.startswith(b"HTTP/1.1 499 Refused\r\n")
    assert b"\r\nRetry-After: 60\r\n" in head
    assert body == b"not you\x1b[2J"
    assert client.read_to_end() == b""
    assert informed()[0].endswith(r"499 'not you\x1b[2J'")


def test_a_verdict_sees_the_request(serve, certificate, client_tls):
    server = serve(Judge(), certificate=certificate)
    client = server.client(tls=client_tls, path="/room%21?token=1", headers=[("X-Two", "a"), ("X-Two", "b")])
    assert echoes(client)
    (request,) = server.handler.requests
    assert (request.path, request.query, request.tls) == ("/room!", "token=1", True)
    assert request.headers.get_all("x-two") == ["a", "b"]
    assert request.peer == client.sock.getsockname()
    assert request.local == client.sock.getpeername()


def test_the_right_client_is_upgraded_when_many_are_judged_at_once(serve):
    server = serve(Judge())
    clients = [server.client(handshake=False) for _ in range(20)]
    for number, client in enumerate(clients):
        client.send(upgrade(line=f"GET /{number} HTTP/1.1"))
    for number, client in enumerate(clients):
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert echoes(client, b"%d" % number)
    assert sorted(request.path for request in server.handler.requests) == sorted(f"/{n}" for n in range(20))


# -- what belongs to another protocol ----------------------------------------------------------------------------


def client_hello():
    """The first bytes of a TLS client."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_tls_on_a_plain_port_is_refused_or_given_up(serve, informed):
    server = serve(handshake_timeout=SHORT)
    client = server.client(handshake=False)
    client.send(client_hello())
    # Its random bytes may hold the end of a line, or not.
    assert client.read_to_end()[:13] in (b"", b"HTTP/1.1 400 ")
    wait_until(lambda: len(informed()) == 1)
    assert echoes(server.client())


def test_a_tls_client_finds_that_a_plain_port_speaks_no_tls(serve, client_tls):
    with pytest.raises(OSError, match=r"(?i)wrong version number|eof|reset|record layer"):
        serve(handshake_timeout=SHORT).client(tls=client_tls)


@pytest.mark.parametrize("data", [get(), upgrade(), b"\x00" * 300, b"\x16\x03\x01\xff\xff" + b"x" * 300])
def test_what_is_no_tls_on_a_tls_port_is_given_up(serve, certificate, client_tls, informed, data):
    server = serve(certificate=certificate, handshake_timeout=SHORT)
    client = server.client(handshake=False)
    client.send(data)
    assert b"HTTP" not in client.read_to_end()
    wait_until(lambda: len(informed()) == 1)
    assert re.match(r"(lost|no request from) 127\.0\.0\.1:[0-9]+ ", informed()[0])
    assert echoes(server.client(tls=client_tls))


@pytest.mark.parametrize("data", [b"", b"GET / HT", upgrade()[:60], upgrade()])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_client_that_goes_in_the_middle_of_its_request_is_nobodys_error(
    serve, certificate, client_tls, data, tls, end
):
    server = serve(certificate=certificate if tls else None)
    client = server.client(handshake=False, tls=client_tls if tls else None)
    client.send(data)
    getattr(client, end)()
    assert echoes(server.client(tls=client_tls if tls else None))


def test_a_client_that_goes_while_its_request_is_judged_is_nobodys_error(serve):
    judging, judged = Event(), Event()

    class Slow(Judge):
        def ConnRequested(self, context, request):
            if not self.requests:
                judging.set()
                judged.wait()
            return super().ConnRequested(context, request)

    server = serve(Slow())
    client = server.client(handshake=False)
    client.send(upgrade())
    judging.wait(PATIENCE)
    client.reset()
    judged.set()
    assert echoes(server.client())


# -- what comes with the handshake -------------------------------------------------------------------------------


def frame(payload, opcode=frames.BINARY):
    return frames.encode_frame(frames.FIN | opcode, payload, masked=True)


@pytest.mark.parametrize("kind", ["plain", "TLS", "unix"])
@pytest.mark.parametrize("size", [0, 1, 125, 8000, 100_000])
def test_frames_behind_the_handshake_are_received(serve, certificate, client_tls, tmp_path, kind, size):
    server = serve(
        port=f"unix:{tmp_path}/chat.sock" if kind == "unix" else "127.0.0.1:0",
        certificate=certificate if kind == "TLS" else None,
    )
    payloads = [b"first", b"x" * size, b"last"]
    client = server.client(tls=client_tls if kind == "TLS" else None, behind=b"".join(map(frame, payloads)))
    assert [client.read_frame() for _ in payloads] == [(frames.BINARY, payload) for payload in payloads]
    assert echoes(client)


@pytest.mark.parametrize("cut", [1, 3, 7, 11])
def test_a_frame_of_which_a_part_came_with_the_handshake_is_received(serve, cut):
    whole = frame(b"hello")
    server = serve()
    client = server.client(behind=whole[:cut])
    client.send(whole[cut:])
    assert client.read_frame() == (frames.BINARY, b"hello")


def test_a_close_frame_behind_the_handshake_closes(serve):
    server = serve()
    client = server.client(behind=frame(b"hello") + frame(frames.encode_close_payload(1000, "bye"), frames.CLOSE))
    # Its echo comes too late for a peer that has said that it is done.
    assert client.read_close() == (1000, "")
    wait_until(lambda: server.handler.closed == [("closed", 1, 1000, "bye")])
    assert server.handler.messages == [b"hello"]


def test_http_pipelined_behind_the_upgrade_breaks_the_protocol(serve):
    server = serve(http_app=pages)
    client = server.client(behind=get("/page"))
    assert client.read_close()[0] == 1002
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)


def test_an_upgrade_pipelined_behind_a_page_works(serve):
    client = serve(http_app=pages).client(handshake=False)
    client.send(get("/page") + upgrade() + frame(b"hello"))
    assert read_response(client)[1] == b"GET http /page  127.0.0.1 "
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert client.read_frame() == (frames.BINARY, b"hello")


# -- the short way of ordinary requests, and the long one --------------------------------------------------------


def ways(listener):
    """Whether a client took the long way is seen from the greenlet that it got."""
    taken = []
    really_serve = listener.serve
    listener.serve = lambda *args: taken.append("long") or really_serve(*args)
    return taken


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (upgrade(), {}),
        (upgrade(line="GET /r%C3%B6m?a=b&c HTTP/1.1"), {}),
        (upgrade({"Connection": "keep-alive, Upgrade", "Origin": "http://localhost"}), {}),
        (upgrade({"Sec-WebSocket-Protocol": "b, a"}), {"subprotocols": ("a", "b")}),
        (upgrade({"Sec-WebSocket-Extensions": "permessage-deflate"}), {"compression": "deflate"}),
        (upgrade(more=["X-Two: a", "X-Two: b"]), {"handshake_timeout": None}),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["the request is there", "the request comes later"])
def test_both_ways_lead_to_the_same(serve, request_, options, late):
    answers, conns = [], []
    # A verdict takes time: with one to ask for, every client takes the long way.
    for handler, expected in ((Conns(), []), (Judge(), ["long"])):
        server = serve(handler, **options)
        (listener,) = listeners_of(server)
        taken = ways(listener)
        client = server.client(handshake=False)
        if late:
            wait_until(lambda listener=listener: listener.pending == 1)
        client.send(request_)
        status, *headers = client.read_head().strip().split(b"\r\n")
        answers.append((status, sorted(line for line in headers if not line.startswith(b"Date:"))))
        assert len(headers) == len(answers[-1][1]) + 1, "one Date"
        wait_until(lambda handler=handler: handler.of("accepted"))
        conn = server.context.Conn(1)
        conns.append((conn.path, conn.query, sorted(conn.headers.raw_items()), conn.subprotocol, conn.tls, conn.local))
        assert conn.peer == client.sock.getsockname()
        assert taken == expected
        assert listener.pending == 0
    assert answers[0] == answers[1]
    assert conns[0][:-1] == conns[1][:-1]
    assert conns[0][-1][0] == conns[1][-1][0] == "127.0.0.1"


@pytest.mark.parametrize(
    "request_",
    [
        upgrade({"Sec-WebSocket-Version": "12"}),
        upgrade({"Origin": "http://elsewhere.example"}),
        upgrade({"Sec-WebSocket-Extensions": "permessage-deflate; ="}),
        upgrade(line="GET http://localhost/ HTTP/1.1"),
        upgrade(more=["X: " + "y" * 9000]),
        get(),
    ],
)
def test_what_is_out_of_the_ordinary_takes_the_long_way(serve, request_):
    server = serve()
    taken = ways(listeners_of(server)[0])
    client = server.client(handshake=False)
    client.send(request_)
    client.read_head()
    assert taken == ["long"]


def test_a_request_in_pieces_takes_the_long_way(serve):
    server = serve()
    taken = ways(listeners_of(server)[0])
    client = server.client(handshake=False)
    request = upgrade()
    client.send(request[:20])
    wait_until(lambda: taken)
    client.send(request[20:])
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert taken == ["long"]


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_goes_without_a_word(serve, end, late):
    server = serve()
    (listener,) = listeners_of(server)
    client = server.client(handshake=False)
    if late:
        wait_until(lambda: listener.pending == 1)
    getattr(client, end)()
    wait_until(lambda: listener.pending == 0)
    assert echoes(server.client())


def test_a_client_that_goes_just_after_its_upgrade(serve, monkeypatch):
    """The long way looks for what was read behind the request, and finds the connection broken."""
    handler = Judge()
    server = serve(handler)
    client = server.client(handshake=False)
    read_buffered = wsgi.read_buffered

    def late(rfile, sock):
        client.reset()
        wait_until(lambda: select.select([sock.fileno()], [], [], 0)[0])
        return read_buffered(rfile, sock)

    monkeypatch.setattr(wsgi, "read_buffered", late)
    client.send(upgrade())
    wait_until(lambda: handler.closed)
    assert handler.events == [("accepted", 1), ("closed", 1, 1006, "")]


def test_a_socket_that_only_seems_to_be_readable_is_waited_for_again(serve):
    server = serve()
    (listener,) = listeners_of(server)
    client = server.client(handshake=False)
    wait_until(lambda: listener.pending == 1)
    (arrival,) = listener.arrivals
    arrival.look()
    assert listener.pending == 1
    client.send(upgrade())
    assert client.read_head().startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("late", [False, True])
def test_a_mistake_of_ours_costs_its_client_only(serve, late, monkeypatch, capfd):
    server = serve()
    (listener,) = listeners_of(server)
    client = server.client(handshake=False)
    if late:
        wait_until(lambda: listener.arrivals)

    def mistaken(*_args):
        raise LookupError("a mistake")

    with monkeypatch.context() as patched:
        patched.setattr("gowsev.opening.listener.judge", mistaken)
        client.send(upgrade())
        with contextlib.suppress(ConnectionError):
            assert client.read_to_end() == b""
    assert capfd.readouterr().err.count("LookupError: a mistake") == 1
    assert not listener.pending
    wait_until(lambda: echoes(server.client()))


def test_a_shutdown_lets_go_of_clients_that_have_said_nothing(serve):
    server = serve()
    (listener,) = listeners_of(server)
    client = server.client(handshake=False)
    wait_until(lambda: listener.arrivals)
    server.context.Shutdown(5)
    assert client.read_to_end() == b""
    assert not listener.arrivals


def test_others_have_their_turn_while_many_connect(serve):
    server = serve()
    listeners_of(server)[0].max_accept = 1
    clients = [server.client(handshake=False) for _ in range(5)]
    for client in clients:
        client.send(upgrade())
    for client in clients:
        assert client.read_head().startswith(b"HTTP/1.1 101 ")


# -- running out, and shutting down ------------------------------------------------------------------------------


def test_accepting_goes_on_after_a_lack_of_file_descriptors(serve, caplog, monkeypatch):
    monkeypatch.setattr("gowsev.opening.listener._ACCEPT_AGAIN", 0.01)
    tries = []
    really_read = Listener.do_read
    monkeypatch.setattr(Listener, "do_read", lambda listener: tries.append(1) or really_read(listener))
    server = serve()
    sock = gevent.socket.socket()
    lowest = os.dup(0)
    os.close(lowest)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        sock.connect((server.host, server.port))
        wait_until(lambda: len(tries) > 3)
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1, "logged once, not for every try"
        assert errors[0].startswith("cannot accept connections, trying again until it works: ")
        caplog.clear()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with sock:
        sock.settimeout(PATIENCE)
        sock.sendall(upgrade())
        assert sock.recv(12) == b"HTTP/1.1 101"
    wait_until(lambda: [r.getMessage() for r in caplog.records if "accepting connections again" in r.getMessage()])


def test_a_listening_socket_that_breaks_ends_its_listener(serve, capfd):
    server = serve()
    _, other = server.context.ListenAndServe("127.0.0.1:0")
    with socket.socket(fileno=os.dup(listeners_of(server)[0].socket.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)  # which Linux answers with EINVAL at the next accept
    errors = []
    wait_until(lambda: errors.append(capfd.readouterr().err) or "Invalid argument" in "".join(errors))
    wait_until(lambda: listeners_of(server)[0].closed)
    capfd.readouterr()
    with pytest.raises(ConnectionRefusedError):
        server.client()
    client = RawClient("127.0.0.1", other)
    server.clients.append(client)
    assert echoes(client)


@pytest.mark.parametrize(
    ("tls", "shakes_hands", "data"),
    [
        (False, False, b""),
        (False, False, b"GET / HT"),
        (False, False, upgrade()[:-2]),
        (True, False, b""),
        (True, True, b""),
        (True, True, upgrade()[:-2]),
    ],
)
def test_a_shutdown_lets_go_of_clients_that_are_at_a_request(serve, certificate, client_tls, tls, shakes_hands, data):
    server = serve(certificate=certificate if tls else None)
    client = server.client(handshake=False, tls=client_tls if shakes_hands else None)
    client.send(data)
    (listener,) = listeners_of(server)
    wait_until(lambda: listener.pending)
    server.context.Shutdown(5)
    server.loop.join(PATIENCE)
    assert server.loop.successful()
    assert client.read_to_end() == b""
    wait_until(lambda: not listener.pending)


# -- what is left behind -----------------------------------------------------------------------------------------


def test_nothing_is_left_behind(certificate, client_tls, caplog):
    def run():
        handler = Recorder(echo)
        context = gowsev.MakeContext(handler, gowsev.Options(http_app=pages, handshake_timeout=SHORT))
        plain = context.ListenAndServe("127.0.0.1:0")
        tls = context.ListenAndServeTLS("127.0.0.1:0", *certificate)
        loop = gevent.spawn(context.EventLoop)
        for address, client_context in ((plain, None), (tls, client_tls)):
            for end in (RawClient.close, RawClient.reset, RawClient.read_to_end):
                for data in (b"", upgrade()[:-2], get("/page"), b"nonsense\r\n\r\n"):
                    client = RawClient(*address, handshake=False, tls=client_context)
                    client.send(data)
                    end(client)
                    client.close()
            for end in (RawClient.close, RawClient.reset):
                client = RawClient(*address, tls=client_context)
                assert echoes(client)
                end(client)
        stays = RawClient(*plain)
        context.Shutdown(5)
        assert stays.read_close() == (1001, "shutting down")
        stays.close()
        loop.join(PATIENCE)
        assert loop.successful()
        assert len(handler.closed) == len(handler.of("accepted"))

    run()  # so that what gevent makes once and keeps is there
    sockets, alive = open_sockets(), greenlets()
    run()
    wait_until(lambda: open_sockets() <= sockets)
    wait_until(lambda: gc.collect() is not None and greenlets() <= alive)


def test_listening_again_after_a_shutdown(serve):
    server = serve()
    client = server.client()
    server.context.Shutdown(5)
    assert client.read_close() == (1001, "shutting down")
    client.send_close(1001)
    client.close()
    server.loop.join(PATIENCE)
    # At once, though the old connection lingers in the kernel.
    again = serve(port=f"127.0.0.1:{server.port}")
    assert echoes(again.client())
    with pytest.raises(RuntimeError, match="shut down"):
        server.context.ListenAndServe("127.0.0.1:0")


# -- peers that always have something more ------------------------------------------------------------------------

#: A process that always has more to send, and takes what it is sent.
FLOOD = """
import socket, sys, time
host, port, head, more = sys.argv[1:]
sock = socket.create_connection((host, int(port)))
sock.sendall(bytes.fromhex(head))
sock.setblocking(False)
data = more = bytes.fromhex(more) * 500
print(flush=True)
end = time.monotonic() + 20  # where nobody else has a turn, nobody else can end this either
while time.monotonic() < end:
    try:
        data = data[sock.send(data):] or more
    except BlockingIOError:
        pass
    try:
        sock.recv(1 << 16)
    except BlockingIOError:
        pass
"""


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (b"", get()),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n", b"x" * 100),
    ],
    ids=["pipelined requests", "chunks", "a long body"],
)
def test_endless_requests_keep_nobody_from_having_a_turn(serve, head, more):
    server = serve(handshake_timeout=PATIENCE)
    client = server.client()
    command = [sys.executable, "-c", FLOOD, server.host, str(server.port), head.hex(), more.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as flood:
        try:
            gevent.os.make_nonblocking(flood.stdout.fileno())
            gevent.os.nb_read(flood.stdout.fileno(), 1)
            for _ in range(20):
                assert echoes(client)
            assert flood.poll() is None, "the flood has ended"
        finally:
            flood.kill()


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nshort",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nshort",
    ],
    ids=["length", "chunked"],
)
def test_a_body_that_is_cut_off_is_no_error_of_the_application(serve, informed, data):
    client = serve(http_app=pages).client(handshake=False)
    client.send(data)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")
    assert any("during its request" in line for line in informed())


def test_a_body_that_stops_is_no_error_of_the_application(serve, informed):
    client = serve(http_app=pages, handshake_timeout=SHORT).client(handshake=False)
    client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nshort")
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")
    assert any("during its request" in line for line in informed())

"""Where a request ends and whom it asks: from tables that cite RFC 9112 and RFC 9110, by itself and over sockets."""

from __future__ import annotations

import logging

import gevent
import pytest
from conftest import Conns, Recorder, wait_until
from gevent.pywsgi import WSGIServer
from hypothesis import given
from hypothesis import strategies as st
from raw import RawClient, binary

import gowsev
from gowsev.opening.framing import Framing, absolute_form, check_target, judge_framing, tokens
from gowsev.wire.frames import BINARY

pytestmark = pytest.mark.usefixtures("quiet_hub")

HOST = ("Host", "localhost")

# id, version, header lines, what it is
CLEAR = [
    ("no body", "1.1", [], Framing(None, False)),
    ("9112 6.3 (7): an empty one", "1.1", [("Content-Length", "0")], Framing(0, False)),
    ("9112 6.3 (6): a length", "1.1", [("content-length", " 17\t")], Framing(17, False)),
    ("9110 8.6: leading zeros are digits", "1.1", [("Content-Length", "0017")], Framing(17, False)),
    ("9112 6.3 (4): chunked", "1.1", [("Transfer-Encoding", "chunked")], Framing(None, True)),
    ("9112 7: names of codings ignore case", "1.1", [("Transfer-Encoding", "Chunked")], Framing(None, True)),
    ("a length in HTTP/1.0", "1.0", [("Content-Length", "5")], Framing(5, False)),
]

# id, version, header lines
UNCLEAR = [
    ("9112 6.3 (5): two lengths", "1.1", [("Content-Length", "5"), ("Content-Length", "6")]),
    ("9112 6.3 (5): two equal lengths", "1.1", [("Content-Length", "5"), ("Content-Length", "5")]),
    ("9112 6.3 (5): two in a line", "1.1", [("Content-Length", "5, 5")]),
    ("9110 8.6: a sign", "1.1", [("Content-Length", "+3")]),
    ("9110 8.6: below 0", "1.1", [("Content-Length", "-3")]),
    ("9110 8.6: an underscore", "1.1", [("Content-Length", "1_0")]),
    ("9110 8.6: hexadecimal", "1.1", [("Content-Length", "0x10")]),
    ("9110 8.6: a fraction", "1.1", [("Content-Length", "3.0")]),
    ("9110 8.6: empty", "1.1", [("Content-Length", "")]),
    ("9110 8.6: a blank inside", "1.1", [("Content-Length", "1 0")]),
    ("9110 8.6: digits that are not ASCII", "1.1", [("Content-Length", "\xb2")]),
    ("9110 8.6: more than any body has", "1.1", [("Content-Length", "9" * 40)]),
    ("9112 6.1: chunked twice", "1.1", [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")]),
    ("9112 6.1: chunked twice in a line", "1.1", [("Transfer-Encoding", "chunked, chunked")]),
    ("9112 6.1: another coding before", "1.1", [("Transfer-Encoding", "gzip, chunked")]),
    ("9112 6.3 (4): chunked is not the last", "1.1", [("Transfer-Encoding", "chunked, gzip")]),
    ("9112 6.3 (4): not chunked", "1.1", [("Transfer-Encoding", "identity")]),
    ("9112 6.1: chunked and identity", "1.1", [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")]),
    ("9112 6.3 (4): nothing", "1.1", [("Transfer-Encoding", "")]),
    ("9112 6.3 (4): quoted", "1.1", [("Transfer-Encoding", '"chunked"')]),
    ("9112 6.3 (4): with a parameter", "1.1", [("Transfer-Encoding", "chunked;a=b")]),
    ("9110 5.6.3: another blank", "1.1", [("Transfer-Encoding", "\x0bchunked")]),
    ("9112 6.3 (3): both", "1.1", [("Transfer-Encoding", "chunked"), ("Content-Length", "5")]),
    ("9112 6.3 (3): both, the other way", "1.1", [("Content-Length", "5"), ("Transfer-Encoding", "chunked")]),
    ("both, of no known coding", "1.1", [("Content-Length", "5"), ("Transfer-Encoding", "xchunked")]),
    ("9112 6.1: in HTTP/1.0", "1.0", [("Transfer-Encoding", "chunked")]),
    ("two lengths in HTTP/1.0", "1.0", [("Content-Length", "5"), ("Content-Length", "5")]),
]

# id, version, hosts
HOSTS = [
    ("a name", "1.1", ["example.org"], True),
    ("a name and a port", "1.1", ["example.org:8080"], True),
    ("9110 4.2.1: an empty port", "1.1", ["example.org:"], True),
    ("IPv4", "1.1", ["127.0.0.1:80"], True),
    ("IPv6", "1.1", ["[::1]:80"], True),
    ("an underscore, as Docker has", "1.1", ["my_service"], True),
    ("9112 3.2: empty, where the target has no authority", "1.1", [""], True),
    ("9112 3.2: HTTP/1.0 need not have one", "1.0", [], True),
    ("9112 3.2: none", "1.1", [], False),
    ("9112 3.2: two", "1.1", ["a", "b"], False),
    ("9112 3.2: two that are equal", "1.1", ["a", "a"], False),
    ("9112 3.2: two in HTTP/1.0", "1.0", ["a", "b"], False),
    ("3986 3.2.2: a blank", "1.1", ["a b"], False),
    ("3986 3.2.2: markup", "1.1", ["<x>"], False),
    ("two that were joined", "1.1", ["a,b"], False),
    ("9110 4.2.4: with a user", "1.1", ["good@evil"], False),
    ("a path", "1.1", ["a/b"], False),
    ("a port that is no number", "1.1", ["a:x"], False),
    ("not ASCII", "1.1", ["\xe9"], False),
    ("an address that does not end", "1.1", ["[::1"], False),
    ("3986 3.2.2: no address", "1.1", ["[:::]"], False),
    ("3986 3.2.2: an address of the future", "1.1", ["[v1.a]"], False),
    ("a port that no host has", "1.1", ["a:65536"], False),
    ("the highest port", "1.1", ["a:65535"], True),
]


@pytest.mark.parametrize(("version", "fields", "framing"), [pytest.param(*row, id=id) for id, *row in CLEAR])
def test_where_a_request_ends(version, fields, framing):
    assert judge_framing(f"HTTP/{version}", [HOST, *fields]) == framing
    assert framing.has_body is (framing.chunked or framing.length not in (None, 0))


@pytest.mark.parametrize(("version", "fields"), [pytest.param(*row, id=id) for id, *row in UNCLEAR])
def test_where_that_is_unclear(version, fields):
    with pytest.raises(ValueError, match=r"Content-Length|Transfer-Encoding"):
        judge_framing(f"HTTP/{version}", [HOST, *fields])


@pytest.mark.parametrize(("version", "hosts", "good"), [pytest.param(*row, id=id) for id, *row in HOSTS])
def test_whom_a_request_asks(version, hosts, good):
    fields = [("Host", host) for host in hosts]
    if good:
        assert judge_framing(f"HTTP/{version}", fields) == Framing(None, False)
    else:
        with pytest.raises(ValueError, match="Host"):
            judge_framing(f"HTTP/{version}", fields)


@given(st.lists(st.tuples(st.sampled_from(["Content-Length", "Transfer-Encoding", "Host", "X"]), st.text())))
def test_whatever_comes_there_is_one_reading_or_none(fields):
    try:
        framing = judge_framing("HTTP/1.1", fields)
    except ValueError:
        return
    names = [name for name, _ in fields]
    assert names.count("Content-Length") + names.count("Transfer-Encoding") <= 1 == names.count("Host")
    assert framing.chunked is ("Transfer-Encoding" in names)
    assert (framing.length is not None) is ("Content-Length" in names)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/path?a=b", None),
        ("*", None),
        ("http://good/path?a=b", ("good", "/path?a=b")),
        ("HTTPS://good:81", ("good:81", "/")),
        ("http://good?a=b", ("good", "/?a=b")),
        ("http://a@b/", ("a@b", "/")),
    ],
)
def test_absolute_form(target, parts):
    assert absolute_form(target) == parts


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/"), ("OPTIONS", "*"), ("GET", "http://a"), ("GET", "https://[::1]:1/")]
)
def test_targets_of_an_origin_server(method, target):
    check_target(method, target)


# What RFC 9112 section 3 and RFC 9110 have no room for in a request line.
NO_REQUEST_LINES = [
    ("9112 3: another blank", "GET\t/first HTTP/1.1"),
    ("9112 3: a CR", "GET /first\rHTTP/1.1"),
    ("9112 3: two blanks", "GET  /first HTTP/1.1"),
    ("9112 3: a blank behind", "GET /first HTTP/1.1 "),
    ("9112 3: a control character", "GET /fir\x00st HTTP/1.1"),
    ("9110 9.1: a method that is no token", "GE(T /first HTTP/1.1"),
    ("9112 2.3: no version", "GET /first"),
    ("9112 2.3: HTTP/0.9", "GET /first HTTP/0.9"),
    ("9112 2.3: HTTP/1.00", "GET /first HTTP/1.00"),
    ("9112 2.3: HTTP/1.+1", "GET /first HTTP/1.+1"),
    ("9112 2.3: in small letters", "GET /first http/1.1"),
    ("9112 3.2: no form", "GET first HTTP/1.1"),
    ("9112 3.2.2: another scheme", "GET ws://evil/first HTTP/1.1"),
    ("9110 4.2.1: no host", "GET http:///first HTTP/1.1"),
    ("9110 4.2.1: a port only", "GET http://:80/first HTTP/1.1"),
    ("9112 3.2.3: of a proxy", "CONNECT first:80 HTTP/1.1"),
    ("9112 3.2.4: not of OPTIONS", "GET * HTTP/1.1"),
]


def test_tokens_are_the_elements_of_a_list():
    assert tokens([" WebSocket, h2c,, ", "x"]) == ["websocket", "h2c", "x"]


# -- over sockets ------------------------------------------------------------------------------------------------------


class Pages:
    """A WSGI application that records what it was asked."""

    def __init__(self):
        self.asked = []
        self.chunked = False
        """Whether the answer is."""

    def __call__(self, environ, start_response):
        self.asked.append((environ["PATH_INFO"], environ["wsgi.input"].read(), environ.get("HTTP_HOST")))
        self.environ = environ
        start_response("200 OK", [] if self.chunked else [("Content-Length", "2")])
        return iter([b"ok"])


@pytest.fixture
def pages(page_server):
    """The two kinds of server that read requests: pages, and how to reach them."""
    found = Pages()
    found.connect = page_server(found)
    return found


def message(line, fields, body=b""):
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in fields), "", ""]).encode("latin-1") + body


BEHIND = message("GET /behind HTTP/1.1", [HOST])


@pytest.mark.parametrize(("version", "fields"), [pytest.param(*row, id=id) for id, *row in UNCLEAR])
@pytest.mark.parametrize("more", [[], [("Connection", "Upgrade"), ("Upgrade", "websocket")]], ids=["page", "upgrade"])
def test_what_stands_behind_an_unclear_request_is_never_answered(pages, version, fields, more):
    client = pages.connect()
    request = message(f"POST /first HTTP/{version}", [HOST, ("Connection", "keep-alive"), *more, *fields])
    client.send(request + b"5\r\nhello\r\n0\r\n\r\n" + BEHIND)
    answer = client.read_to_end()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert pages.asked == []


@pytest.mark.parametrize("line", [pytest.param(line, id=id) for id, line in NO_REQUEST_LINES])
@pytest.mark.parametrize("more", [[], [("Connection", "Upgrade"), ("Upgrade", "websocket")]], ids=["page", "upgrade"])
def test_what_stands_behind_a_request_line_that_is_none_is_never_answered(pages, line, more):
    client = pages.connect()
    client.send(message(line, [HOST, *more]) + BEHIND)
    answer = client.read_to_end()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert pages.asked == []


@pytest.mark.parametrize("options", [["close, x"], ["x", "close"], ["X,CLOSE"]], ids=repr)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_no_request_behind_one_that_closes_the_connection_is_answered(pages, options, version):
    client = pages.connect()
    more = [("Connection", option) for option in (["keep-alive"] if version == "1.0" else []) + options]
    client.send(message(f"GET /last HTTP/{version}", [HOST, *more]) + BEHIND)
    client.read_to_end()
    assert [path for path, *_ in pages.asked] == ["/last"]


def test_an_expectation_over_http_1_0_is_ignored(pages):
    client = pages.connect()
    client.send(message("POST / HTTP/1.0", [HOST, ("Expect", "100-continue"), ("Content-Length", "1")], b"x"))
    assert client.read_to_end().startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("chunked", [False, True])
def test_the_answer_to_head_has_no_body(pages, chunked):
    pages.chunked = chunked
    client = pages.connect()
    client.send(message("HEAD / HTTP/1.1", [HOST]) + message("GET / HTTP/1.1", [HOST, ("Connection", "close")]))
    head, between, _ = client.read_to_end().split(b"\r\n\r\n", 2)
    assert between.startswith(b"HTTP/1.1 200 ")
    assert (b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 2") in head


@pytest.mark.parametrize(("version", "hosts", "good"), [pytest.param(*row, id=id) for id, *row in HOSTS if not row[-1]])
def test_a_page_without_a_clear_host_is_refused(pages, version, hosts, good):
    client = pages.connect()
    client.send(message(f"GET / HTTP/{version}", [("Host", host) for host in hosts]) + BEHIND)
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")
    assert pages.asked == []


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([("Content-Length", "5")], b"hello"),
        ([("Transfer-Encoding", "chunked")], b"5\r\nhello\r\n0\r\n\r\n"),
        ([("Transfer-Encoding", "Chunked")], b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"),
    ],
)
def test_what_stands_behind_a_clear_request_is_the_next_one(pages, fields, body):
    client = pages.connect()
    last = message("GET /behind HTTP/1.1", [HOST, ("Connection", "close")])
    client.send(message("POST /first HTTP/1.1", [HOST, *fields], body) + b"\r\n" + last)
    assert client.read_to_end().count(b"HTTP/1.1 200 OK") == 2
    assert [asked[:2] for asked in pages.asked] == [("/first", b"hello"), ("/behind", b"")]


def test_the_authority_of_an_absolute_target_counts(pages):
    client = pages.connect()
    client.send(message("GET http://good/path?a=b HTTP/1.1", [("Host", "evil"), ("Connection", "close")]))
    assert client.read_to_end().startswith(b"HTTP/1.1 200 ")
    assert pages.asked == [("/path", b"", "good")]


@pytest.mark.parametrize("target", ["http://a b/", "http://good@evil/", "http://<x>/"])
def test_an_authority_that_is_none_is_refused(pages, target):
    client = pages.connect()
    client.send(message(f"GET {target} HTTP/1.1", [("Host", "good")]))
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")


def test_an_upgrade_over_http_1_0_is_a_page(pages):
    client = pages.connect()
    client.send(message("GET / HTTP/1.0", [HOST, ("Connection", "Upgrade"), ("Upgrade", "websocket")]))
    assert client.read_to_end().startswith(b"HTTP/1.1 200 ")
    assert "HTTP_UPGRADE" not in pages.environ


@pytest.mark.parametrize("first", [b"\r\n", b"\n"])
def test_one_empty_line_is_ignored_before_a_request(pages, first):
    client = pages.connect()
    client.send(first + message("GET / HTTP/1.1", [HOST, ("Connection", "close")]))
    assert client.read_to_end().startswith(b"HTTP/1.1 200 ")
    client = pages.connect()
    client.send(first * 2 + message("GET / HTTP/1.1", [HOST]))
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("protocol", ["websocket2", "websocket;;", "h2c"])
def test_an_upgrade_to_something_else_is_a_page(pages, protocol):
    client = pages.connect()
    client.send(message("GET / HTTP/1.1", [HOST, ("Connection", "Upgrade, close"), ("Upgrade", protocol)]))
    assert client.read_head().startswith(b"HTTP/1.1 200 ")
    client.close()


@pytest.mark.parametrize(("origin", "status"), [("http://good", b"101"), ("http://evil", b"403")])
def test_the_origin_of_an_upgrade_is_compared_with_the_target(serve, origin, status):
    server = serve()
    client = server.client(handshake=False)
    client.send(client.request(headers=[("Origin", origin)]).replace(b"GET / ", b"GET http://good/ "))
    assert client.read_head().split()[1] == status


@pytest.mark.parametrize("first", [b"", b"\r\n"], ids=["at once", "by way of HTTP"])
def test_the_program_sees_the_upgrade_header_as_it_was_sent(serve, first):
    server = serve(Conns())
    client = server.client(handshake=False)
    client.send(first + client.request().replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket"))
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    wait_until(lambda: server.handler.conns)
    assert server.handler.conns[0].headers["Upgrade"] == "h2c, websocket"


def test_a_view_that_reads_the_body_of_an_upgrade_finds_none_and_frames_are_kept():
    recorder = Conns()
    context = gowsev.MakeContext(recorder)
    loop = gevent.spawn(context.EventLoop)
    import flask

    app = flask.Flask(__name__)
    bodies = []
    app.before_request(lambda: bodies.append(flask.request.get_data()))
    app.add_url_rule("/", view_func=lambda: context.ServeHTTP, websocket=True)
    server = WSGIServer(("127.0.0.1", 0), app, handler_class=gowsev.WebSocketHandler, log=None)
    server.start()
    client = RawClient("127.0.0.1", server.server_port, handshake=False)
    client.send(client.request() + binary(b"early"))
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    wait_until(lambda: recorder.messages == [b"early"])
    assert bodies == [b""]
    client.close()
    context.Shutdown(0)
    loop.join()
    server.stop()


class Waits(logging.Handler):
    """A handler of log records that waits in gevent's way, as one that sends them over the network does."""

    def emit(self, record):
        gevent.sleep(0.01)


def test_nothing_logs_in_the_hub_however_much_is_logged(serve, capfd):
    names = [None, "gowsev", "websockets.server", "websockets"]
    handler = Waits()
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    try:
        server = serve(Recorder())
        clients = [server.client() for _ in range(8)]
        for client in clients:
            client.send_binary(b"x")
        wait_until(lambda: len(server.handler.messages) == 8)
        server.context.Broadcast(range(1, 9), b"y")
        assert [client.read_frame() for client in clients] == [(BINARY, b"y")] * 8
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
    assert "BlockingSwitchOut" not in capfd.readouterr().err

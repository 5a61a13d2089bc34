"""Chunked bodies: from tables that cite RFC 9112, by themselves and on both kinds of server that read them."""

from __future__ import annotations

import io

import pytest

from gowsev.opening.chunked import ChunkedFile, MalformedBody

pytestmark = pytest.mark.usefixtures("quiet_hub")

END = b"0\r\n\r\n"

GOOD = [
    ("7.1: chunks", b"5\r\nhello\r\n6\r\n\r\nyou\n\r\n" + END),
    ("7.1: leading zeros, in either case", b"0000B\r\nhello\r\nyou\n\r\n00\r\n\r\n"),
    ("7.1.1: an extension", b"b;a\r\nhello\r\nyou\n\r\n0;b=c\r\n\r\n"),
    ("7.1.1: quoted", b'b;a="b \\" ; \xe9";c=d\r\nhello\r\nyou\n\r\n' + END),
    ("7.1.2: trailers", b"b\r\nhello\r\nyou\n\r\n0\r\nA: b\r\nC:\r\n\r\n"),
]

BAD = [
    ("7.1: no size", b"\r\n"),
    ("7.1: no size, with an extension", b";a=b\r\n"),
    ("7.1: no number", b"x\r\n"),
    ("7.1: a sign", b"+5\r\nhello\r\n"),
    ("7.1: a size in Python's way", b"0x5\r\nhello\r\n"),
    ("7.1: more than any body has", b"1" * 16 + b"\r\n"),
    ("7.1: a single LF", b"5\nhello\r\n"),
    ("7.1: no CRLF behind the data", b"5\r\nhelloXX"),
    ("7.1: a single LF behind the data", b"5\r\nhello\n"),
    ("7.1.1: white space", b"5 ;a\r\nhello\r\n"),
    ("7.1.1: a single LF", b"5;a\nb\r\nhello\r\n"),
    ("7.1.1: a single CR", b"5;a\rb\r\nhello\r\n"),
    ("7.1.1: NUL", b"5;a\0\r\nhello\r\n"),
    ("7.1.1: a quotation without an end", b'5;a="b\r\nhello\r\n'),
    ("7.1.1: endless", b"5;" + b"a" * 5000 + b"\r\nhello\r\n"),
    ("7.1.2: no header", b"0\r\nabc\r\n\r\n"),
    ("7.1.2: folded", b"0\r\n 0\r\n\r\n"),
    ("7.1.2: a single LF", b"0\r\nA: b\nC: d\r\n\r\n"),
    ("7.1.2: a single LF at the end", b"0\r\n\n"),
    ("7.1.2: endless", b"0\r\n" + b"A: b\r\n" * 101 + b"\r\n"),
]


class Application:
    """Reads bodies in one of several ways; `/hidden` is what no request asks for."""

    def __init__(self):
        self.bodies = []
        self.hidden = 0
        self.patient = False

    def __call__(self, environ, start_response):
        self.hidden += environ["PATH_INFO"] == "/hidden"
        stream = environ["wsgi.input"]
        way = environ["QUERY_STRING"]
        try:
            if way == "lines":
                self.bodies.append(b"".join(stream))
            elif way == "bytes":
                self.bodies.append(b"".join(iter(lambda: stream.read(1), b"")))
            elif way != "unread":
                self.bodies.append(stream.read())
        except OSError:
            if way != "careless":
                raise
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


@pytest.fixture
def server(page_server):
    application = Application()
    application.connect = page_server(application)
    return application


def post(way, body):
    return b"POST /?%b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % way.encode() + body


LAST = b"GET /hidden HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("way", ["all", "lines", "bytes", "unread"])
@pytest.mark.parametrize("body", [pytest.param(body, id=id) for id, body in GOOD])
def test_good_bodies(server, way, body):
    client = server.connect()
    client.send(post(way, body) + LAST)
    assert client.read_to_end().count(b"HTTP/1.1 200 OK") == 2
    assert server.hidden == 1
    assert server.bodies[:-1] == ([] if way == "unread" else [b"hello\r\nyou\n"])


@pytest.mark.parametrize("way", ["all", "lines", "bytes", "unread", "careless"])
@pytest.mark.parametrize("body", [pytest.param(body, id=id) for id, body in BAD])
def test_nothing_behind_a_bad_body_is_taken_for_a_request(server, way, body):
    client = server.connect()
    client.send(post(way, body) + LAST * 2)
    answer = client.read_to_end()
    assert server.hidden == 0
    assert answer.count(b"HTTP/1.1 ") <= 1
    if way == "all" and answer:  # else a reset has overtaken it
        assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("cut", range(len(GOOD[-1][1])))
def test_a_body_that_stops_is_the_end(server, cut):
    client = server.connect()
    client.send(post("careless", GOOD[-1][1][:cut]))
    client.sock.shutdown(1)
    assert client.read_to_end().count(b"HTTP/1.1 ") == 1
    assert server.hidden == 0


def test_what_is_not_checked_is_the_connections():
    rfile = io.BytesIO()
    assert ChunkedFile(rfile).getvalue() == rfile.getvalue()


def test_after_a_fault_the_file_is_at_its_end():
    file = ChunkedFile(io.BytesIO(b"x\r\n" + END))
    with pytest.raises(MalformedBody, match="no size of a chunk"):
        file.read(1)
    assert (file.malformed, file.read(1)) == (True, b"")

"""The opening handshake of a server: a request in, a response out, from tables that cite RFC 6455."""

import http

import pytest
from websockets.http11 import Request as HTTPRequest

from gowsev.opening.handshake import MAX_HEAD_LINES, Negotiator, parse_request, refusal
from gowsev.options import Options
from gowsev.request import Accept, Headers, Reject, Request, header_pairs

# RFC 6455 section 1.3
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

VALID = (
    ("Host", "localhost:9000"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
)


def request(*changes, method="GET", protocol="HTTP/1.1"):
    """A valid request, but for what is changed: (name, value) replaces or adds; (name, None) removes.

    A name that comes twice among the changes comes twice in the request.
    """
    changed = {name.lower() for name, _ in changes}
    headers = Headers([pair for pair in VALID if pair[0].lower() not in changed])
    for name, value in changes:
        if value is not None:
            headers[name] = value
    return HTTPRequest("/chat", headers, method, protocol)


def negotiate(request, options):
    return Negotiator(options).negotiate(request)


def test_the_rfcs_own_example():
    response, subprotocol, deflate, _ = negotiate(request(), Options())
    assert response.status_code == 101
    assert response.headers["Sec-WebSocket-Accept"] == ACCEPT
    assert response.headers["Upgrade"].lower() == "websocket"
    assert response.headers["Connection"].lower() == "upgrade"
    assert "Sec-WebSocket-Extensions" not in response.headers
    assert "Sec-WebSocket-Protocol" not in response.headers
    assert not response.body
    assert subprotocol is None
    assert deflate is None


# name, section of RFC 6455, what differs from a valid request, the status of the answer
HANDSHAKES = [
    ("Upgrade in other letters", "4.2.1", [("Upgrade", "WebSocket")], 101),
    ("Connection in other letters", "4.2.1", [("Connection", "uPGRADE")], 101),
    ("Connection as Firefox sends it", "4.2.1", [("Connection", "keep-alive, Upgrade")], 101),
    ("Connection twice", "4.2.1", [("Connection", "keep-alive"), ("Connection", "Upgrade")], 101),
    ("names in other letters", "4.2.1", [("sec-websocket-key", KEY), ("SEC-WEBSOCKET-VERSION", "13")], 101),
    ("an empty body", "4.1", [("Content-Length", "0")], 101),
    ("an unknown extension", "9.1", [("Sec-WebSocket-Extensions", "x-unknown; a=1")], 101),
    ("a header of the program's", "4.2.1", [("Cookie", "a=b")], 101),
    ("no Connection", "4.2.1", [("Connection", None)], 426),
    ("Connection without the token", "4.2.1", [("Connection", "keep-alive")], 426),
    ("a token that only contains it", "4.2.1", [("Connection", "notupgrade")], 426),
    ("a token that begins with it", "4.2.1", [("Connection", "upgrade2")], 426),
    ("no Upgrade", "4.2.1", [("Upgrade", None)], 426),
    ("Upgrade to something else", "4.2.1", [("Upgrade", "h2c")], 426),
    ("Upgrade that only contains it", "4.2.1", [("Upgrade", "notwebsocket")], 426),
    ("Upgrade to one of two, RFC 9110 7.8", "4.2.1", [("Upgrade", "h2c, websocket")], 101),
    ("no key", "4.2.1", [("Sec-WebSocket-Key", None)], 400),
    ("an empty key", "4.2.1", [("Sec-WebSocket-Key", "")], 400),
    ("a key of 15 bytes", "4.2.1", [("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA")], 400),
    ("a key of 17 bytes", "4.2.1", [("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA=")], 400),
    ("a key without padding", "4.2.1", [("Sec-WebSocket-Key", KEY.rstrip("="))], 400),
    ("a key in the wrong alphabet", "4.2.1", [("Sec-WebSocket-Key", "-_" + KEY[2:])], 400),
    ("a key with a space", "4.2.1", [("Sec-WebSocket-Key", KEY[:8] + " " + KEY[8:])], 400),
    ("a key that is not ASCII", "4.2.1", [("Sec-WebSocket-Key", "\xe9" + KEY[1:])], 400),
    ("two keys", "11.3.1", [("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Key", KEY)], 400),
    ("two keys in one", "11.3.1", [("Sec-WebSocket-Key", f"{KEY}, {KEY}")], 400),
    ("a body", "4.1", [("Content-Length", "5")], 400),
    ("a body of no length", "4.1", [("Content-Length", "")], 400),
    ("two lengths", "4.1", [("Content-Length", "0"), ("Content-Length", "5")], 400),
    ("a chunked body", "4.1", [("Transfer-Encoding", "chunked")], 400),
    ("a chunked body and a length", "4.1", [("Content-Length", "0"), ("Transfer-Encoding", "chunked")], 400),
    ("no version", "4.2.1", [("Sec-WebSocket-Version", None)], 400),
    ("a malformed Connection", "4.2.1", [("Connection", "Upgrade;")], 400),
    ("a malformed subprotocol", "4.2.1", [("Sec-WebSocket-Protocol", "a b")], 400),
]


@pytest.mark.parametrize(
    ("changes", "status"), [row[2:] for row in HANDSHAKES], ids=[f"{row[1]} {row[0]}" for row in HANDSHAKES]
)
def test_handshake(changes, status):
    response, subprotocol, deflate, _ = negotiate(request(*changes), Options(subprotocols=["a"]))
    assert response.status_code == status
    assert subprotocol is None
    assert deflate is None
    if status == 101:
        assert response.headers["Sec-WebSocket-Accept"] == ACCEPT
    else:
        assert "Sec-WebSocket-Accept" not in response.headers
        assert response.headers.get_all("Connection")[-1] == "close"
        assert response.headers["Content-Length"] == str(len(response.body))
        assert response.body.endswith(b"\n")
    if status == 426:
        # RFC 9110 7.8: "A sender of Upgrade MUST also send an "Upgrade" connection option"
        assert response.headers.get_all("Connection") == ["Upgrade", "close"]
        # RFC 9110 15.5.22: "The server MUST send an Upgrade header field in a 426 response"
        assert response.headers["Upgrade"] == "websocket"


# name, the values of Sec-WebSocket-Version
VERSIONS = [
    ("hybi-08", ["8"]),
    ("of the future", ["14"]),
    ("ours among others", ["13, 8"]),
    ("ours twice", ["13, 13"]),
    ("ours in two headers", ["13", "13"]),
    ("with a leading zero", ["013"]),
    ("no number", ["thirteen"]),
    ("empty", [""]),
]


@pytest.mark.parametrize("versions", [row[1] for row in VERSIONS], ids=[row[0] for row in VERSIONS])
def test_version_we_do_not_speak_is_answered_with_the_one_we_do(versions):
    # 4.4: "If the server doesn't support the requested version, it MUST respond with a |Sec-WebSocket-Version| header
    # field (or multiple [...]) containing all versions it is willing to use."
    response, *_ = negotiate(request(*(("Sec-WebSocket-Version", version) for version in versions)), Options())
    assert response.status_code == 400
    assert response.headers["Sec-WebSocket-Version"] == "13"


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "get"])
def test_method_other_than_get(method):
    # 4.1: "The method of the request MUST be GET"
    response, *_ = negotiate(request(method=method), Options())
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET"


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/0.9", "HTTP/2"])
def test_http_other_than_1_1(protocol):
    # 4.1: "the HTTP version MUST be at least 1.1", and a later one upgrades otherwise.
    response, *_ = negotiate(request(protocol=protocol), Options())
    assert response.status_code == 505


# -- origins (RFC 6455 section 10.2, RFC 6454) ---------------------------------------------------------------------

# name, Host, Origin, the status with the default options
ORIGINS = [
    ("none: no browser", "localhost:9000", None, 101),
    ("the same", "localhost:9000", "http://localhost:9000", 101),
    ("another scheme: a proxy ends TLS", "localhost:9000", "https://localhost:9000", 101),
    ("default port left out by both", "example.com", "http://example.com", 101),
    ("default port of TLS left out by both", "example.com", "https://example.com", 101),
    ("default port in Host only", "example.com:80", "http://example.com", 101),
    ("default port of TLS in Host only", "example.com:443", "https://example.com", 101),
    ("default port in Origin only", "example.com", "https://example.com:443", 101),
    ("letters of either case", "Example.COM", "http://eXample.com", 101),
    ("scheme in other letters", "example.com", "HTTP://example.com", 101),
    ("an IPv6 address", "[::1]:9000", "http://[::1]:9000", 101),
    ("an IPv6 address, default port", "[::1]", "http://[::1]:80", 101),
    ("an IPv6 address in other letters", "[FE80::a]", "http://[fe80::A]", 101),
    ("another host", "localhost:9000", "http://evil.example:9000", 403),
    ("a host below ours", "example.com", "http://evil.example.com", 403),
    ("a host that begins with ours", "example.com", "http://example.com.evil.example", 403),
    ("a host that ends with ours", "example.com", "http://notexample.com", 403),
    ("ours as the user of another", "example.com", "http://example.com@evil.example", 403),
    ("ours as the path of another", "example.com", "http://evil.example/example.com", 403),
    ("another IPv6 address", "[::1]:9000", "http://[::2]:9000", 403),
    ("another port", "localhost:9000", "http://localhost:8000", 403),
    ("the default port of plain HTTP, not of TLS", "example.com:80", "https://example.com", 403),
    ("port in Host only", "localhost:9000", "http://localhost", 403),
    ("port in Origin only", "localhost", "http://localhost:9000", 403),
    ("a sandboxed page", "localhost:9000", "null", 403),
    ("empty", "localhost:9000", "", 403),
    ("a host without a scheme", "localhost:9000", "localhost:9000", 403),
    ("garbage", "localhost:9000", "][", 403),
    ("a broken IPv6 address", "localhost:9000", "http://[::1", 403),
    ("a port that is no number", "localhost:9000", "http://localhost:90x0", 403),
    ("a port out of range", "localhost:9000", "http://localhost:99999", 403),
    ("no host in Origin", "localhost:9000", "file://", 403),
    ("a port that is no number in Host, RFC 9112 3.2", "localhost:x", "http://localhost", 400),
    ("an empty Host", "", "http://localhost", 403),
    ("an empty Host and a sandboxed page", "", "null", 403),
    ("an empty Host and a file", "", "file:///", 403),
]


@pytest.mark.parametrize(("host", "origin", "status"), [row[1:] for row in ORIGINS], ids=[row[0] for row in ORIGINS])
def test_same_origin_only_by_default(host, origin, status):
    response, *_ = negotiate(request(("Host", host), ("Origin", origin)), Options())
    assert response.status_code == status


@pytest.mark.parametrize("hosts", [[None], ["localhost", "localhost"], ["localhost", "evil.example"]])
@pytest.mark.parametrize("allowed", [None, ("*",)])
def test_one_host_there_must_be(hosts, allowed):
    # RFC 9112 section 3.2
    changes = [("Host", host) for host in hosts]
    response, *_ = negotiate(request(*changes, ("Origin", "http://localhost")), Options(allowed_origins=allowed))
    assert response.status_code == 400
    assert b"Host" in response.body


# name, allowed_origins, Origin, the status
ALLOWED = [
    ("one of them", ("https://a.example", "https://b.example"), "https://b.example", 101),
    ("none of them", ("https://a.example", "https://b.example"), "https://c.example", 403),
    ("another scheme", ("https://a.example",), "http://a.example", 403),
    ("a port of its own", ("https://a.example",), "https://a.example:8443", 403),
    ("a host below", ("https://a.example",), "https://b.a.example", 403),
    ("no browser", ("https://a.example",), None, 101),
    ("the same host, not among them", ("https://a.example",), "http://localhost:9000", 403),
    ("a sandboxed page, allowed by name", ("null",), "null", 101),
    ("nobody is", (), "http://localhost:9000", 403),
    ("nobody is, and no browser", (), None, 101),
    ("anybody is", ("*",), "https://anybody.example", 101),
    ("anybody is, garbage too", ("*",), "][", 101),
    ("anybody is, beside somebody", ("https://a.example", "*"), "https://b.example", 101),
    ("an asterisk is no pattern", ("https://*.example",), "https://a.example", 403),
]


@pytest.mark.parametrize(("allowed", "origin", "status"), [row[1:] for row in ALLOWED], ids=[row[0] for row in ALLOWED])
def test_allowed_origins(allowed, origin, status):
    response, *_ = negotiate(request(("Origin", origin)), Options(allowed_origins=allowed))
    assert response.status_code == status


@pytest.mark.parametrize("origin", ["http://localhost:8000", "null"])
def test_the_refusal_of_an_origin_names_it_and_the_option(origin):
    response, *_ = negotiate(request(("Origin", origin)), Options())
    text = f"Pages of '{origin}' may not connect here: see allowed_origins of gowsev.Options.\n"
    assert bytes(response.body).decode() == text
    assert response.headers["Connection"] == "close"


@pytest.mark.parametrize("allowed", [None, ("*",), ("http://localhost:9000",), ()])
def test_two_origins_are_refused_whatever_is_allowed(allowed):
    # RFC 6454 7.3: "the user agent MUST NOT include more than one Origin header field"
    origin = ("Origin", "http://localhost:9000")
    response, *_ = negotiate(request(origin, origin), Options(allowed_origins=allowed))
    assert response.status_code == 400


# -- subprotocols (RFC 6455 section 1.9) ---------------------------------------------------------------------------

# name, ours, the values of Sec-WebSocket-Protocol, which one it is
SUBPROTOCOLS = [
    ("nobody has any", (), [], None),
    ("we have none", (), ["a, b"], None),
    ("the client has none", ("a",), [], None),
    ("none in common is no reason to refuse", ("a", "b"), ["c, d"], None),
    ("the only one", ("a",), ["a"], "a"),
    ("the server's favourite, not the client's", ("a", "b"), ["b, a"], "a"),
    ("the first in common", ("a", "b", "c"), ["d, c, b"], "b"),
    ("over two headers", ("a", "b"), ["c", "b"], "b"),
    ("letters count", ("Chat",), ["chat"], None),
    ("no part of a word", ("chat",), ["superchat, chat2"], None),
]


@pytest.mark.parametrize(
    ("ours", "offered", "chosen"), [row[1:] for row in SUBPROTOCOLS], ids=[row[0] for row in SUBPROTOCOLS]
)
def test_subprotocol(ours, offered, chosen):
    changes = [("Sec-WebSocket-Protocol", value) for value in offered]
    response, subprotocol, *_ = negotiate(request(*changes), Options(subprotocols=ours))
    assert response.status_code == 101
    assert subprotocol == chosen
    assert response.headers.get("Sec-WebSocket-Protocol") == chosen


# -- compression -------------------------------------------------------------------------------------------------

PMD = "permessage-deflate; client_max_window_bits"


def test_compression_is_negotiated_where_it_is_turned_on():
    response, _, deflate, _ = negotiate(request(("Sec-WebSocket-Extensions", PMD)), Options(compression="deflate"))
    assert response.status_code == 101
    assert response.headers["Sec-WebSocket-Extensions"].startswith("permessage-deflate")
    assert not deflate.takeover


@pytest.mark.parametrize(("offer", "compression"), [(PMD, None), (None, "deflate"), ("x-other", "deflate")])
def test_compression_takes_two(offer, compression):
    response, _, deflate, _ = negotiate(request(("Sec-WebSocket-Extensions", offer)), Options(compression=compression))
    assert response.status_code == 101
    assert "Sec-WebSocket-Extensions" not in response.headers
    assert deflate is None


def test_an_answer_depends_on_no_other():
    options = Options(compression="deflate", subprotocols=["chat"])
    requests = (
        request(("Sec-WebSocket-Extensions", PMD), ("Sec-WebSocket-Protocol", "chat")),
        request(),
        request(("Origin", "http://elsewhere")),
        request(("Upgrade", None)),
        request(("Origin", "http://localhost:9000"), ("Sec-WebSocket-Protocol", "chat")),
        request(("Transfer-Encoding", "chunked")),
        request(("Sec-WebSocket-Extensions", PMD), ("Sec-WebSocket-Version", "8")),
    )

    def outcome(handshake):
        response, subprotocol, deflate, _ = handshake
        headers = [(name, value) for name, value in response.headers.raw_items() if name != "Date"]
        return response.status_code, headers, bytes(response.body), subprotocol, deflate is None

    alone = [outcome(negotiate(asked, options)) for asked in requests]
    assert [status for status, *_ in alone] == [101, 101, 403, 426, 101, 400, 400]
    for order in (1, -1):
        negotiator = Negotiator(options)
        assert [outcome(negotiator.negotiate(asked)) for asked in requests[::order]] == alone[::order]


# -- refusals ----------------------------------------------------------------------------------------------------

REFUSALS = [
    (403, "Forbidden"),
    (http.HTTPStatus.TOO_MANY_REQUESTS, "Too Many Requests"),
    (499, "Refused"),
    (599, "Refused"),
]


@pytest.mark.parametrize(("status", "phrase"), REFUSALS)
def test_refusal(status, phrase):
    response = refusal(status, "n\u00e3o\n")
    assert (response.status_code, response.reason_phrase, response.body) == (status, phrase, b"n\xc3\xa3o\n")
    assert list(response.headers.raw_items()) == [
        ("Connection", "close"),
        ("Content-Length", "5"),
        ("Content-Type", "text/plain; charset=utf-8"),
    ]
    assert response.serialize().startswith(f"HTTP/1.1 {int(status)} {phrase}\r\n".encode())


def test_refusal_with_headers():
    pairs = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("content-type", "application/json")]
    headers = refusal(403, "{}", pairs).headers
    assert headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert headers.get_all("Content-Type") == ["application/json"]
    assert headers.get_all("Content-Length") == ["2"]


def repeated_headers():
    headers = Headers([("Set-Cookie", "a"), ("Retry-After", "5")])
    headers["Set-Cookie"] = "b"
    return headers


# name, headers as a program gives them, as pairs
PAIRS = [
    ("none", (), ()),
    ("a dict", {"Retry-After": "5"}, (("Retry-After", "5"),)),
    ("pairs", [("A", "1"), ("A", "2")], (("A", "1"), ("A", "2"))),
    ("an iterator", iter([("A", "1")]), (("A", "1"),)),
    (
        "headers, one of them twice",
        repeated_headers(),
        (("Set-Cookie", "a"), ("Retry-After", "5"), ("Set-Cookie", "b")),
    ),
    ("every character of a name", {"!#$%&'*+-.^_`|~09azAZ": "x"}, (("!#$%&'*+-.^_`|~09azAZ", "x"),)),
    ("an empty value", {"A": ""}, (("A", ""),)),
    ("a tab, and a letter of Latin-1", {"A": "a\tb \xe9"}, (("A", "a\tb \xe9"),)),
]


@pytest.mark.parametrize(("headers", "pairs"), [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS])
def test_header_pairs(headers, pairs):
    assert header_pairs(headers) == pairs


# name, headers, the error, what its text holds (RFC 9110 sections 5.1 and 5.5)
BAD_HEADERS = [
    ("a line end in a value", {"A": "b\r\nSet-Cookie: c"}, ValueError, "of header A"),
    ("a carriage return", {"A": "b\r"}, ValueError, "of header A"),
    ("a line feed at the end", {"A": "b\n"}, ValueError, "of header A"),
    ("a NUL", {"A": "b\0"}, ValueError, "of header A"),
    ("a DEL", {"A": "b\x7f"}, ValueError, "of header A"),
    ("a letter beyond Latin-1", {"A": "\u20ac"}, ValueError, "of header A"),
    ("an empty name", {"": "b"}, ValueError, "header name ''"),
    ("a space in a name", {"A B": "b"}, ValueError, "header name 'A B'"),
    ("a colon in a name", {"A:": "b"}, ValueError, "header name 'A:'"),
    ("a line end in a name", {"A\r\n": "b"}, ValueError, "header name"),
    ("a line feed at the end of a name", {"A\n": "b"}, ValueError, "header name"),
    ("a name that is not ASCII", {"\xe9": "b"}, ValueError, "header name"),
    ("a value that is no str", {"A": 5}, TypeError, "pairs of str"),
    ("a value in bytes", {"A": b"b"}, TypeError, "pairs of str"),
    ("a name in bytes", [(b"A", "b")], TypeError, "pairs of str"),
    ("a triple", [("A", "b", "c")], TypeError, "pairs of str"),
    ("a str", "A: b", TypeError, "pairs of str"),
    ("a line", ["A: b"], TypeError, "pairs of str"),
    ("a list of None", [None], TypeError, "pairs of str"),
    ("None", None, TypeError, ""),
    ("a number", 5, TypeError, ""),
]


@pytest.mark.parametrize(
    ("headers", "error", "text"), [row[1:] for row in BAD_HEADERS], ids=[row[0] for row in BAD_HEADERS]
)
def test_bad_headers(headers, error, text):
    for check in (header_pairs, lambda headers: Reject(403, "no", headers), lambda headers: Accept(headers=headers)):
        with pytest.raises(error) as caught:
            check(headers)
        assert text in str(caught.value)


def test_reject():
    reject = Reject()
    assert (reject.status, reject.reason, reject.headers) == (403, "", ())
    reject = Reject(http.HTTPStatus.UNAUTHORIZED, "who?", {"WWW-Authenticate": "Basic"})
    assert type(reject.status) is int
    assert repr(reject) == "Reject(401, 'who?', (('WWW-Authenticate', 'Basic'),))"
    for status in (300, 307, 499, 599):
        assert Reject(status).status == status


#: What a program may not add to an answer.
OF_THE_SERVER = ("Content-Length", "connection", "TRANSFER-ENCODING", "Upgrade", "sec-websocket-accept")

# name, arguments, the error, what its text begins with
BAD_REJECTS = [
    ("200 accepts nothing", (200,), ValueError, "status must be from 300 to 599, not 200"),
    ("101 is not its to send", (101,), ValueError, "status must be from 300 to 599, not 101"),
    ("299", (299,), ValueError, "status must be from 300 to 599, not 299"),
    ("600", (600,), ValueError, "status must be from 300 to 599, not 600"),
    ("-1", (-1,), ValueError, "status must be from 300 to 599, not -1"),
    ("a str", ("403",), TypeError, "status must be an int, not '403'"),
    ("a float", (403.0,), TypeError, "status must be an int, not 403.0"),
    ("a bool", (True,), TypeError, "status must be an int, not True"),
    ("None", (None,), TypeError, "status must be an int, not None"),
    ("a reason in bytes", (403, b"no"), TypeError, "reason must be str, not b'no'"),
    ("no reason", (403, None), TypeError, "reason must be str, not None"),
    ("a reason that cannot be encoded", (403, "\ud800"), ValueError, "'utf-8' codec can't encode"),
    *(
        (f"a {name} of its own", (403, "", {name: "x"}), ValueError, f"header {name} is made by the server")
        for name in OF_THE_SERVER
    ),
]


@pytest.mark.parametrize(
    ("arguments", "error", "text"), [row[1:] for row in BAD_REJECTS], ids=[row[0] for row in BAD_REJECTS]
)
def test_bad_reject(arguments, error, text):
    with pytest.raises(error) as caught:
        Reject(*arguments)
    assert str(caught.value).startswith(text)


def test_accept():
    accept = Accept()
    assert (accept.data, accept.headers, accept.subprotocol) == (None, (), None)
    accept = Accept("Ann", headers={"Set-Cookie": "a=1"}, subprotocol="chat.v2")
    assert repr(accept) == "Accept('Ann', headers=(('Set-Cookie', 'a=1'),), subprotocol='chat.v2')"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"subprotocol": 1}, TypeError, "subprotocol must be str or None, not 1"),
        ({"subprotocol": b"chat"}, TypeError, "subprotocol must be str or None, not b'chat'"),
        ({"subprotocol": ""}, ValueError, "subprotocol must be a name without blanks or separators, not ''"),
        ({"subprotocol": "a, b"}, ValueError, "subprotocol must be a name without blanks or separators, not 'a, b'"),
        ({"subprotocol": "a\r\nX: y"}, ValueError, "subprotocol must be a name without blanks"),
        *(({"headers": {name: "x"}}, ValueError, f"header {name} is made by the server") for name in OF_THE_SERVER),
    ],
)
def test_bad_accept(arguments, error, text):
    with pytest.raises(error) as caught:
        Accept(**arguments)
    assert str(caught.value).startswith(text)


def test_request_cannot_be_changed():
    asked = Request("/a", "b=c", Headers({"X": "y"}), ("127.0.0.1", 5), ("127.0.0.1", 9000), False)
    assert asked.headers["x"] == "y"
    assert repr(asked) == "<Request '/a' peer=('127.0.0.1', 5)>"
    with pytest.raises(AttributeError):
        asked.path = "/b"


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("X", "")],
        [("X", "a: b"), ("x", "second"), ("Y", ": colon"), ("Z", "\u00e9\xff\t.")],
        [("Sec-WebSocket-Protocol", "a, b"), ("Cookie", 'a="b c"; d=e')],
    ],
)
def test_the_headers_of_a_request_are_those_that_it_had(pairs):
    asked = Request("/", "", Headers(pairs), ("", 0), ("", 0), False)
    assert list(asked.headers.raw_items()) == pairs


# -- requests in which nothing is out of the ordinary ------------------------------------------------------------

ORDINARY = b"GET /path?query HTTP/1.1\r\nHost: localhost\r\nX-Two: a\r\nX-Two:b\t \r\n\r\n"


def test_an_ordinary_request_is_parsed():
    request = parse_request(ORDINARY)
    assert (request.method, request.path, request.protocol) == ("GET", "/path?query", "HTTP/1.1")
    assert request.headers["host"] == "localhost"
    assert request.headers.get_all("X-Two") == ["a", "b"]


@pytest.mark.parametrize(
    "head",
    [
        ORDINARY.replace(b"/path", b"path"),
        ORDINARY.replace(b"/path", b"http://localhost/path"),  # the absolute form
        ORDINARY.replace(b"/path", b"*"),
        ORDINARY.replace(b"/path", b"/p\xc3\xa4th"),
        ORDINARY.replace(b" HTTP/1.1", b""),
        ORDINARY.replace(b"HTTP/1.1", b"HTTP/2.0"),
        ORDINARY.replace(b"X-Two:b", b" folded: b"),
        ORDINARY.replace(b"X-Two:b", b"X Two: b"),
        ORDINARY.replace(b"X-Two:b", b"no header"),
        ORDINARY.replace(b"X-Two:b", b"X-Two: \0"),
        ORDINARY.replace(b"X-Two:b", b"Content-Length: 1"),
        ORDINARY.replace(b"X-Two:b", b"Transfer-Encoding: chunked"),
        ORDINARY.replace(b"X-Two: a\r\n", b"X-Two: a\n"),
        ORDINARY[:-4],
        ORDINARY[:-2] + b"X: y\r\n" * MAX_HEAD_LINES + b"\r\n",
        b"\r\n" + ORDINARY,
        b"",
    ],
)
def test_anything_else_is_left_to_an_http_server(head):
    assert parse_request(head) is None

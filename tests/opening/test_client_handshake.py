"""The opening handshake of a client: what it sends, and every answer to it."""

import re
import time

import gevent
import pytest
from conftest import Recorder, held_sockets, wait_until
from scripted_server import accepting, answer_close, close_frame, frame, until_the_end

import gowsev
from gowsev.wire import frames

pytestmark = pytest.mark.usefixtures("quiet_hub")


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


def test_a_refusal_does_not_wait_for_its_body(scripted):
    def script(sock, head):
        sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n")
        until_the_end(sock)  # its body never comes

    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(scripted(script).url)
    assert caught.value.status == 404


def test_a_server_that_refuses_sees_the_end_although_another_process_holds_the_socket(scripted):
    received = []

    def script(sock, head):
        with held_sockets():
            sock.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            received.append(until_the_end(sock))

    with pytest.raises(gowsev.DialError):
        gowsev.Dial(scripted(script).url)
    wait_until(lambda: received == [b""])


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


TERMINAL = b"\x1b[2J\x9b2J"


@pytest.mark.parametrize(
    "answer",
    [
        lambda head: b"HTTP/1.1 403 " + TERMINAL + b"\r\n\r\n",
        lambda head: b"HTTP/1.1 403 \x9b2J\r\n\r\n",
        lambda head: accepting(head).replace(b"Accept: ", b"Accept: " + TERMINAL),
        lambda head: accepting(head).replace(b"Upgrade: websocket", b"Upgrade: " + TERMINAL),
        lambda head: accepting(head).replace(b"Upgrade: websocket", b"Upgrade: \x9b2J"),
        lambda head: TERMINAL + accepting(head),
    ],
    ids=["reason", "reason in latin-1", "key", "upgrade", "upgrade in latin-1", "status line"],
)
def test_an_error_shows_nothing_of_the_peer_unescaped(scripted, answer):
    def script(sock, head):
        sock.sendall(answer(head))

    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(scripted(script).url)
    assert str(caught.value).isprintable()
    assert "2J" in str(caught.value)


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

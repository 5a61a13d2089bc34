"""What a program answers to a request for an upgrade, and what becomes of it: by a listener, and by `ServeHTTP`."""

from __future__ import annotations

import pytest
from conftest import Judge, wait_until
from raw import RawClient

import gowsev
from gowsev.wire.frames import BINARY

OFFER = ("Sec-WebSocket-Protocol", "chat, chat.v2")


def let_in(serve, verdict, headers=(), **options):
    """Return the server that answers with `verdict`, and a client that it has let in."""
    server = serve(Judge(verdict), **options)
    client = server.client(headers=headers)
    client.send_binary(b"hello")
    assert client.read_frame() == (BINARY, b"hello")
    return server, client


def fields(client, name):
    return [line.partition(b": ")[2] for line in client.response.split(b"\r\n") if line.startswith(name + b": ")]


def test_what_a_program_knows_travels_with_the_connection(serve):
    user = object()
    server, _ = let_in(serve, gowsev.Accept(user))
    assert server.handler.conns[0].data is user
    assert server.context.MustConn(1).data is user


@pytest.mark.parametrize("verdict", [None, gowsev.Accept()])
def test_without_it_there_is_no_data_and_the_program_may_set_it(serve, verdict):
    server, _ = let_in(serve, verdict)
    assert server.context.MustConn(1).data is None
    server.context.MustConn(1).data = "Ann"
    assert server.context.MustConn(1).data == "Ann"


def test_headers_of_the_program_are_on_the_101(serve):
    accept = gowsev.Accept(headers=[("Set-Cookie", "a=1; HttpOnly"), ("Set-Cookie", "b=2"), ("X-Request-Id", "7f")])
    _, client = let_in(serve, accept)
    assert fields(client, b"Set-Cookie") == [b"a=1; HttpOnly", b"b=2"]
    assert fields(client, b"X-Request-Id") == [b"7f"]


@pytest.mark.parametrize("options", [{}, {"subprotocols": ("chat",)}, {"subprotocols": ("other",)}])
def test_a_subprotocol_is_chosen_for_each_request(serve, options):
    server, client = let_in(serve, gowsev.Accept(subprotocol="chat.v2"), [OFFER], **options)
    assert fields(client, b"Sec-WebSocket-Protocol") == [b"chat.v2"]
    assert server.handler.conns[0].subprotocol == "chat.v2"


def test_an_accept_without_a_subprotocol_leaves_it_to_the_options(serve):
    server, client = let_in(serve, gowsev.Accept("Ann"), [OFFER], subprotocols=("chat",))
    assert fields(client, b"Sec-WebSocket-Protocol") == [b"chat"]
    assert (server.handler.conns[0].subprotocol, server.handler.conns[0].data) == ("chat", "Ann")


@pytest.mark.parametrize("offer", [[], [("Sec-WebSocket-Protocol", "chat.v3, chat.v21")]])
def test_a_subprotocol_that_the_client_does_not_offer_is_an_error_and_lets_nobody_in(serve, offer, caplog):
    """RFC 6455 section 4.1: the client would fail the connection."""
    server = serve(Judge(gowsev.Accept(subprotocol="chat.v2")))
    client = server.client(handshake=False)
    client.send(client.request(headers=offer))
    assert client.read_head().startswith(b"HTTP/1.1 500 ")
    assert "subprotocol must be one of those that the client offers" in caplog.text
    assert "not 'chat.v2'" in caplog.text
    assert server.context.Stats().callback_errors == 1
    assert server.handler.of("accepted") == []


@pytest.mark.parametrize(
    ("headers", "offered"),
    [
        ([], ()),
        ([("Sec-WebSocket-Protocol", "b, a")], ("b", "a")),
        ([("Sec-WebSocket-Protocol", "b"), ("sec-websocket-protocol", "a ,\tc")], ("b", "a", "c")),
        ([("Sec-WebSocket-Protocol", "a, , c")], ("a", "c")),
    ],
)
def test_a_program_sees_what_is_offered(serve, headers, offered):
    server, _ = let_in(serve, None, headers)
    assert server.handler.requests[0].subprotocols == offered


def test_the_connections_of_a_context_can_be_walked(serve):
    server = serve(Judge(gowsev.Accept("Ann")))
    assert server.context.Conns() == []
    clients = [server.client() for _ in range(3)]
    wait_until(lambda: len(server.handler.of("accepted")) == 3)
    assert [(conn.id, conn.data) for conn in server.context.Conns()] == [(1, "Ann"), (2, "Ann"), (3, "Ann")]
    conns = server.context.Conns()
    clients[1].send_close(1000)
    wait_until(lambda: server.handler.of("closed"))
    assert [conn.id for conn in server.context.Conns()] == [1, 3]
    assert conns[1].close_code == 1000, "a view is live"


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (b"nonsense\r\n", {}, "http"),
        (b"", {"handshake_timeout": 0.3}, "handshake_timeout"),
        (b"GET / HTTP/1.1\r\n", {"handshake_timeout": 0.3}, "handshake_timeout"),
        (RawClient.request(headers=[("Sec-WebSocket-Version", "13")]), {}, "handshake"),
        (RawClient.request(headers=[("Origin", "https://elsewhere.example")]), {}, "allowed_origins"),
        (RawClient.request(), {"max_connections": 1}, "max_connections"),
        (RawClient.request(path="/reject"), {}, "program"),
        (RawClient.request(), {}, "tls"),
    ],
)
def test_who_is_not_let_in_is_counted_by_reason(serve, certificate, client_tls, data, options, reason):
    class Guard(Judge):
        def ConnRequested(self, context, request):
            return gowsev.Reject() if request.path == "/reject" else None

    tls = reason == "tls"
    server = serve(Guard(), certificate=certificate if tls else None, **options)
    server.client(tls=client_tls if tls else None)
    before = server.context.Stats()
    client = server.client(handshake=False)
    client.send(data)
    client.read_to_end()
    wait_until(lambda: server.context.Stats().refusals == {reason: 1})
    stats = server.context.Stats()
    assert stats.rejected == (data.startswith(b"GET") and b"Upgrade" in data and not tls)
    assert (before.refusals, stats.accepted) == ({}, 1)

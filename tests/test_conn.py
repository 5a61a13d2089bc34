"""`Conn`: what a program may read of a connection, at every moment of its life."""

from __future__ import annotations

import pytest
from conftest import Recorder, echo, wait_until

import gowsev
from gowsev.wire.frames import BINARY

ATTRIBUTES = [name for name in dir(gowsev.Conn) if not name.startswith("_")]


def snapshot(conn):
    return {name: getattr(conn, name) for name in ATTRIBUTES}


class Looking(Recorder):
    """Notes what is known of a connection inside its `ConnClosed`."""

    last = None

    def ConnClosed(self, context, id):
        super().ConnClosed(context, id)
        self.last = snapshot(context.Conn(id))


@pytest.fixture
def server(serve):
    return serve(Looking(echo), subprotocols=("chat",))


def conn_of(server):
    id = wait_until(lambda: server.handler.of("accepted"))[-1][1]
    return server.context.Conn(id)


def test_what_the_handshake_said(server):
    headers = [("X-Token", "one"), ("x-token", "two"), ("Sec-WebSocket-Protocol", "chat")]
    client = server.client(path="/a%20room/%C3%A9?q=%20x&r", headers=headers)
    conn = conn_of(server)
    assert conn.id == 1
    assert conn.path == "/a room/é"
    assert conn.query == "q=%20x&r"
    assert conn.headers["HOST"] == "localhost"
    assert conn.headers.get_all("X-TOKEN") == ["one", "two"]
    assert conn.headers.get("X-Other") is None
    assert conn.peer == client.sock.getsockname()
    assert conn.local == (server.host, server.port)
    assert conn.subprotocol == "chat"
    assert conn.tls is False
    assert repr(conn) == f"<Conn 1 '/a room/é' peer={conn.peer}>"


def test_what_the_handshake_did_not_say(server):
    server.client()
    conn = conn_of(server)
    assert (conn.path, conn.query, conn.subprotocol) == ("/", "", None)


def test_over_tls(serve, certificate, client_tls):
    server = serve(certificate=certificate)
    server.client(tls=client_tls)
    assert conn_of(server).tls is True


def test_on_a_unix_socket(serve, tmp_path):
    path = str(tmp_path / "socket")
    server = serve(port=f"unix:{path}")
    server.client()
    assert conn_of(server).peer == ("", 0)
    assert conn_of(server).local == (path, 0)


def test_a_dialled_connection(serve):
    server = serve(subprotocols=("chat",))
    with gowsev.Dial(server.url + "room?x=1", subprotocols=["chat"]) as conn:
        assert isinstance(conn, gowsev.Conn)
        assert conn.id == 0
        assert (conn.path, conn.query, conn.subprotocol) == ("/room", "x=1", "chat")
        assert conn.peer == (server.host, server.port)
        assert conn.local == conn_of(server).peer
        assert conn.headers["Upgrade"] == "websocket"
        assert repr(conn).startswith("<DialledConn 0 '/room' peer=")


def test_it_counts_while_the_connection_is_open(server):
    client = server.client()
    conn = conn_of(server)
    assert conn.close_code is None
    assert conn.close_reason == ""
    for name in ("messages_received", "messages_sent", "bytes_received", "bytes_sent", "outbox_bytes"):
        assert getattr(conn, name) == 0
    client.send_binary(b"12345")
    assert client.read_frame() == (BINARY, b"12345")
    assert (conn.messages_received, conn.bytes_received) == (1, 6 + 5)
    assert (conn.messages_sent, conn.bytes_sent, conn.outbox_bytes) == (1, 2 + 5, 0)


def test_it_tells_what_waits_for_a_peer_that_does_not_read(serve):
    server = serve(outbox_bytes=None)
    client = server.client()
    conn = conn_of(server)
    for _ in range(20):
        server.context.Write(conn.id, bytes(1 << 20))
    whole = 20 * ((1 << 20) + 10)
    assert conn.outbox_bytes > 0
    assert conn.outbox_bytes + conn.bytes_sent == whole
    for _ in range(20):
        client.read_frame()
    assert (conn.outbox_bytes, conn.bytes_sent) == (0, whole)


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (lambda client: client.send_close(4000, "done"), 4000, "done"),
        (lambda client: client.send_frame(8), 1005, ""),  # RFC 6455 section 7.1.5: no status code
        (lambda client: client.close(), 1006, ""),  # section 7.1.5: no close frame at all
    ],
    ids=["code and reason", "empty close frame", "no close frame"],
)
def test_inside_conn_closed_and_after_it_tells_how_things_ended(server, end, code, reason):
    client = server.client()
    conn = conn_of(server)
    client.send_binary(b"12345")
    client.read_frame()
    before = snapshot(conn)
    end(client)
    wait_until(lambda: server.handler.last)
    last = server.handler.last
    assert (last["close_code"], last["close_reason"]) == (code, reason)
    assert last["messages_received"] == last["messages_sent"] == 1
    for name in ("id", "path", "query", "headers", "peer", "local", "subprotocol", "tls", "peer_certificate"):
        assert last[name] == before[name]
    assert snapshot(conn) == last, "whoever kept it may read it after"
    assert server.context.Conn(conn.id) is None


def test_the_code_we_closed_with_is_not_the_peer_s(server):
    client = server.client()
    conn = conn_of(server)
    server.context.Close(conn.id, 4001, "ours")
    assert conn.close_code == 1006, "none has come yet"
    assert client.read_close() == (4001, "ours")
    client.send_close(4002, "theirs")
    wait_until(lambda: server.handler.last)
    assert (conn.close_code, conn.close_reason) == (4002, "theirs")


@pytest.mark.parametrize("name", [name for name in ATTRIBUTES if name != "data"])
def test_nothing_of_it_can_be_set_but_the_programs_own(server, name):
    server.client()
    with pytest.raises(AttributeError):
        setattr(conn_of(server), name, None)


def test_no_attribute_is_forgotten_here():
    known = "id data path query headers peer local subprotocol tls peer_certificate close_code close_reason"
    counted = "messages_received messages_sent bytes_received bytes_sent outbox_bytes round_trip"
    assert sorted(ATTRIBUTES) == sorted(f"{known} {counted}".split())

"""`AddConn` with connections that other libraries opened, and the sockets that are taken out of their hands."""

import socket
import ssl
import subprocess
import sys
import types

import gevent
import gevent.socket
import gevent.ssl
import pytest
import websocket as websocket_client
from conftest import PATIENCE, Recorder, echoes, in_thread, listening, wait_until
from gevent.pywsgi import WSGIServer
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler
from geventwebsocket.logging import create_logger
from raw import RawClient

from gowsev.opening import adoption
from gowsev.opening.handshake import HTTPRequest
from gowsev.opening.upgrade import describe
from gowsev.request import Headers
from gowsev.wire import frames

# -- gevent-websocket --------------------------------------------------------------------------------------------------


@pytest.fixture
def legacy(capfd):
    """A factory of gevent-websocket servers with a handler of the old kind: `legacy(application)`."""
    servers = []

    def start(application, **tls):
        server = WSGIServer(
            ("127.0.0.1", 0), application, handler_class=WebSocketHandler, log=None, environ={"SERVER_NAME": "x"}, **tls
        )
        server.logger = create_logger("geventwebsocket")
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(timeout=1)
    assert capfd.readouterr().err == ""


def old_style(context, stay=None):
    """An application that talks by itself until it is told to move over."""

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        while (message := ws.receive()) != "move":
            ws.send(message)
        application.id = context.AddConn(ws)
        application.websocket = ws
        if stay is not None:
            stay(ws)
        return []

    return application


def text(payload):
    return frames.encode_frame(0x81, payload, masked=True)


@pytest.mark.parametrize("tls", [False, True])
def test_a_gevent_websocket_moves_over_in_the_middle(idle, legacy, certificate, client_tls, tls):
    server = idle(listen=False)
    application = old_style(server.context)
    secure = {}
    if tls:
        secure["ssl_context"] = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure["ssl_context"].load_cert_chain(*certificate)
    http = legacy(application, **secure)
    loop = gevent.spawn(server.context.EventLoop)
    half = text(b"half")
    early = text(b"old") + text(b"move") + text(b"at once") + half[:5]
    client = RawClient(
        "127.0.0.1", http.server_port, behind=early, path="/a?b", headers=[("Cookie", "c=1")],
        tls=client_tls if tls else None,
    )  # fmt: skip
    assert client.read_frame() == (frames.TEXT, b"old")
    assert client.read_frame() == (frames.BINARY, b"at once")
    client.send(half[5:])
    assert client.read_frame() == (frames.BINARY, b"half")
    conn = server.context.Conn(application.id)
    assert (conn.path, conn.query, conn.tls, conn.headers["Cookie"]) == ("/a", "b", tls, "c=1")
    assert conn.peer == client.sock.getsockname()
    assert conn.local == ("127.0.0.1", http.server_port)
    assert server.handler.of("accepted") == [], "as in Go"
    assert server.context.Stats().added == 1
    assert application.websocket.closed
    client.send_close(1001, "leaving")
    assert client.read_close() == (1001, "")
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", application.id, 1001, "leaving")]
    client.close()
    server.context.Shutdown(0)
    loop.join(PATIENCE)


def test_the_application_may_stay(idle, legacy):
    server = idle(listen=False)
    told = gevent.event.Event()
    errors = []
    stayed = []

    def stay(ws):
        stayed.append(gevent.getcurrent())
        with pytest.raises(WebSocketError):
            ws.receive()
        with pytest.raises(WebSocketError):
            ws.send("by myself")
        with pytest.raises(ValueError, match="is closed, or was added before"):
            server.context.AddConn(ws)
        errors.append("all")
        told.wait(PATIENCE)

    http = legacy(old_style(server.context, stay))
    loop = gevent.spawn(server.context.EventLoop)
    client = RawClient("127.0.0.1", http.server_port, behind=text(b"move"))
    assert echoes(client)
    assert errors == ["all"]
    told.set()
    stayed[0].join(PATIENCE)
    assert stayed[0].dead, "the application has returned, and its server is done with the connection"
    assert echoes(client), "nothing came of that"
    client.close()
    server.context.Shutdown(0)
    loop.join(PATIENCE)


# -- websocket-client --------------------------------------------------------------------------------------------------


def dialled(server, secure=None, **options):
    sslopt = {"context": secure} if secure is not None else {}
    scheme = "wss" if secure is not None else "ws"
    return websocket_client.create_connection(
        f"{scheme}://localhost:{server.port}/", sslopt=sslopt, timeout=PATIENCE, **options
    )


@pytest.fixture
def client_side(idle):
    """A context that adds connections, and whose loop runs."""
    side = idle(Recorder(), listen=False)
    loop = gevent.spawn(side.context.EventLoop)
    yield side
    side.context.Shutdown(0)
    loop.join(PATIENCE)


@pytest.mark.parametrize("tls", [False, True])
def test_a_websocket_client_is_added(serve, client_side, authority, certificate, tls):
    server = serve(subprotocols=("chat",), certificate=certificate if tls else None)
    secure = None
    if tls:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(secure)
    ws = in_thread(lambda: dialled(server, secure, subprotocols=["chat"]))
    id = client_side.context.AddConn(ws)
    assert not ws.connected
    conn = client_side.context.Conn(id)
    assert (conn.path, conn.query, conn.tls, conn.subprotocol) == ("", "", tls, "chat")
    assert conn.headers["Upgrade"] == "websocket"
    assert conn.peer == ("127.0.0.1", server.port)
    for size in (5, 1 << 20):
        assert client_side.context.Write(id, bytes(size)) is None
    wait_until(lambda: len(client_side.handler.messages) == 2)
    assert [len(message) for message in client_side.handler.messages] == [5, 1 << 20]
    client_side.context.Close(id, 1000, "done")
    wait_until(lambda: client_side.handler.closed)
    assert client_side.handler.closed == [("closed", id, 1000, "")]
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", 1, 1000, "done")], "masked, as a client's frames must be"


class Peer:
    """A server down to the byte: what it sends behind its handshake is what the test says."""

    def __init__(self, behind=b""):
        self.listener = listening()
        self.port = self.listener.getsockname()[1]
        self.behind = behind
        self.sock = None
        self.greenlet = gevent.spawn(self.serve)

    def serve(self):
        from websockets.datastructures import Headers
        from websockets.server import ServerProtocol

        self.sock, _ = self.listener.accept()
        protocol = ServerProtocol()
        while not (requests := protocol.events_received()):
            protocol.receive_data(self.sock.recv(65536))
        assert isinstance(protocol.accept(requests[0]).headers, Headers)
        protocol.send_response(protocol.accept(requests[0]))
        self.sock.sendall(b"".join(protocol.data_to_send()) + self.behind)

    def close(self):
        self.greenlet.kill()
        self.listener.close()
        if self.sock is not None:
            self.sock.close()


def frame(first, payload):
    return frames.encode_frame(first, payload)


LONG = bytes(range(256)) * 300
#: What comes behind the handshake, how much of it is read by websocket-client before it is added, and what is left.
LEFTOVERS = {
    "nothing": (b"", b"", []),
    "a frame behind the handshake": (frame(0x82, b"early"), b"", [b"early"]),
    "in a short header": (frame(0x82, b"early")[:1], frame(0x82, b"early")[1:], [b"early"]),
    "in a frame": (frame(0x82, b"early")[:4], frame(0x82, b"early")[4:], [b"early"]),
    "in a medium length": (frame(0x82, bytes(300))[:3], frame(0x82, bytes(300))[3:], [bytes(300)]),
    "in a medium frame": (frame(0x82, bytes(300))[:200], frame(0x82, bytes(300))[200:], [bytes(300)]),
    "in a long length": (frame(0x82, LONG)[:7], frame(0x82, LONG)[7:], [LONG]),
    "in a long frame": (frame(0x82, LONG)[:70000], frame(0x82, LONG)[70000:], [LONG]),
    "between fragments": (frame(0x02, b"one ") + frame(0x00, b"two "), frame(0x80, b"three"), [b"one two three"]),
    "in a later fragment": (frame(0x01, b"one ") + frame(0x80, b"two")[:4], frame(0x80, b"two")[4:], [b"one two"]),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_a_websocket_client_has_read_is_not_lost(client_side, name):
    behind, rest, messages = LEFTOVERS[name]
    peer = Peer(behind)
    whole = name in ("nothing", "a frame behind the handshake")

    def dial():
        ws = websocket_client.create_connection(f"ws://127.0.0.1:{peer.port}/", timeout=PATIENCE)
        if not whole:
            ws.settimeout(0.2)
            with pytest.raises(websocket_client.WebSocketTimeoutException):
                ws.recv()
        return ws

    ws = in_thread(dial)
    client_side.context.AddConn(ws)
    peer.greenlet.join(PATIENCE)
    peer.sock.sendall(rest + frame(0x82, b"last"))
    wait_until(lambda: client_side.handler.messages[-1:] == [b"last"])
    assert client_side.handler.messages == [*messages, b"last"]
    peer.close()


def test_a_masked_header_is_put_together_again():
    # No server masks, but whoever says that one does must find the connection failed for it, not its stream garbled.
    buffer = types.SimpleNamespace(
        header=(1, 0, 0, 0, 2, 1, 5), length=5, mask_value=b"mask", recv_buffer=[b"p", b"ay"]
    )
    ws = types.SimpleNamespace(cont_frame=types.SimpleNamespace(cont_data=None), frame_buffer=buffer)
    assert adoption._unread(ws) == b"\x82\x85maskpay"


def test_a_websocket_client_on_a_gevent_socket_is_added(serve, client_side):
    server = serve()
    sock = gevent.socket.create_connection((server.host, server.port))
    ws = websocket_client.create_connection(f"ws://localhost:{server.port}/", socket=sock, timeout=PATIENCE)
    id = client_side.context.AddConn(ws)
    client_side.context.WriteText(id, "hello")
    wait_until(lambda: client_side.handler.messages == [b"hello"])
    sock.close()
    client_side.context.WriteText(id, "hello again")
    wait_until(lambda: client_side.handler.messages == [b"hello", b"hello again"])


PATCHED = """
import sys
if "before" in sys.argv:
    from gevent import monkey
    monkey.patch_all()
import gowsev, websocket, ssl
port, certfile = sys.argv[1:3]
options = {"sslopt": {"context": ssl.create_default_context(cafile=certfile)}} if certfile else {}
ws = websocket.create_connection(f"{'wss' if certfile else 'ws'}://localhost:{port}/", timeout=30, **options)
if "after" in sys.argv:
    from gevent import monkey
    monkey.patch_all()

class Once(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        print(type(message).__name__, len(message), flush=True)
        context.Shutdown()

context = gowsev.MakeContext(Once())
id = context.AddConn(ws)
context.Write(id, bytes(100000))
context.EventLoop()
print(context.Stats().closed)
"""


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_a_websocket_client_is_added_patched_or_not(serve, authority, certificate, tmp_path, when, tls):
    server = serve(certificate=certificate if tls else None)
    authority_file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(authority_file)
    done = in_thread(
        lambda: subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PATCHED, str(server.port), str(authority_file) if tls else "", when],
            capture_output=True, text=True, timeout=PATIENCE,
        )
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("bytes 100000\n1\n", "")


# -- anything else -----------------------------------------------------------------------------------------------------


def test_closed_ones_are_refused(serve, client_side):
    server = serve()
    ws = in_thread(lambda: dialled(server))
    client_side.context.AddConn(ws)
    with pytest.raises(ValueError, match="is not connected, or was added before"):
        client_side.context.AddConn(ws)
    with pytest.raises(ValueError, match="is not connected, or was added before"):
        client_side.context.AddConn(websocket_client.WebSocket())


@pytest.mark.parametrize("what", [None, 17, "ws://localhost/", socket.socket, object()])
def test_anything_else_is_refused_with_what_to_use(client_side, what):
    wanted = r"takes what gowsev\.Dial returns, a WebSocket of gevent-websocket, or .* of websocket-client, not"
    with pytest.raises(TypeError, match=wanted):
        client_side.context.AddConn(what)


def test_a_websocket_client_on_something_that_is_no_socket_is_refused(client_side):
    ws = websocket_client.WebSocket()
    ws.sock, ws.connected = object(), True
    with pytest.raises(TypeError, match="on a socket, not on <object"):
        client_side.context.AddConn(ws)


def test_a_module_that_only_has_the_name_is_none(client_side, monkeypatch):
    monkeypatch.setitem(sys.modules, "websocket", types.ModuleType("websocket"))
    with pytest.raises(TypeError, match="AddConn takes"):
        client_side.context.AddConn(object())


# -- sockets -----------------------------------------------------------------------------------------------------------


def test_a_dead_end_is_left_behind():
    ours, theirs = gevent.socket.socketpair()
    reader = ours.makefile("rb")
    taken = adoption.take_from_server(ours)
    taken.send(b"from the taker")
    assert theirs.recv(100) == b"from the taker"
    assert ours.recv(100) == b""
    assert reader.read() == b""
    with pytest.raises(BrokenPipeError):
        ours.sendall(b"from the owner")
    reader.close()
    ours.close()
    taken.send(b"still there")
    assert theirs.recv(100) == b"still there"
    taken.close()
    theirs.close()


def test_the_peer_of_a_broken_socket_is_unknown_as_a_unix_sockets_is():
    with gevent.socket.socket() as broken:
        ends = [adoption.ends_of(broken)]
    ours, theirs = gevent.socket.socketpair()
    ends.append(adoption.ends_of(ours))
    ours.close()
    theirs.close()
    assert [describe(HTTPRequest("/", Headers()), each).peer for each in ends] == [("", 0), ("", 0)]

"""A program against gowsev's types, as its users write them: a checker finds nothing here. It is read, never run."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, assert_type
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import gowsev

if TYPE_CHECKING:
    # pytest runs a test with these; the names are all that a checker needs.
    from gowsev.testing import Callback, Client, Recorder, Server

# -- handlers ----------------------------------------------------------------------------------------------------------


class Echo(gowsev.Handler):
    """Derived, with some of the callbacks."""

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None:
        err = context.Write(id, message)
        assert_type(err, Exception | None)
        if isinstance(err, gowsev.OutboxFull):
            print(err.waiting, "of", err.limit, "bytes wait")
        elif err is not None:
            print(str(err) == "id not found")


class Door(gowsev.Handler):
    """Derived, with those that are optional."""

    def __init__(self) -> None:
        self.welcome: dict[int, str] = {}

    def ConnRequested(self, context: gowsev.Context, request: gowsev.Request) -> gowsev.Reject | None:
        assert_type(request.headers, gowsev.Headers)
        assert_type(request.headers.get_all("Authorization"), list[str])
        if request.path != "/live" or context.Stats().connections > 100:
            return gowsev.Reject(404, "no such place\n", {"Cache-Control": "no-store"})
        return None

    def ConnAccepted(self, context: gowsev.Context, id: int) -> None:
        conn = context.MustConn(id)
        assert_type(conn, gowsev.Conn)
        assert_type(conn.peer, tuple[str, int])
        assert_type(conn.close_code, int | None)
        self.welcome[conn.id] = conn.path
        assert_type(context.Conn(id + 1), gowsev.Conn | None)

    def TextReceived(self, context: gowsev.Context, id: int, text: str) -> None:
        assert_type(context.WriteText(id, text.upper()), Exception | None)

    def FragmentReceived(self, context: gowsev.Context, id: int, fragment: bytes | str, final: bool) -> None:
        if isinstance(fragment, str):
            assert_type(context.WriteTextStream(id, iter([fragment])), Exception | None)
        else:
            assert_type(context.WriteStream(id, [fragment], self.written), Exception | None)
            context.WriteStream(id, io.BytesIO(fragment))

    def written(self, context: gowsev.Context, id: int, error: BaseException | None) -> None: ...


class AllWelcome(gowsev.Handler):
    """Its `ConnRequested` refuses nobody."""

    def ConnRequested(self, context: gowsev.Context, request: gowsev.Request) -> None:
        print(request.peer)


class Plain:
    """Derived from nothing: an object with the four methods, names of its own for arguments, and two optional ones."""

    def ConnAccepted(self, loop: gowsev.Context, connection: int) -> None: ...
    def ConnClosed(self, context: gowsev.Context, connection: int) -> None: ...
    def EventLoopTimeout(self, context: gowsev.Context) -> None: ...
    def MessageReceived(self, context: gowsev.Context, connection: int, data: bytes) -> None: ...
    def TextReceived(self, context: gowsev.Context, id: int, text: str) -> None: ...
    def ConnRequested(self, context: gowsev.Context, request: gowsev.Request) -> gowsev.Reject | None: ...


class Unread:
    """What its methods return is nobody's business, nor whether they read every argument."""

    def ConnAccepted(self, *args: object) -> bool:
        return True

    ConnClosed = EventLoopTimeout = ConnAccepted

    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes | str) -> list[int]:
        return context.Broadcast([id], message)


contexts: list[gowsev.Context] = [
    gowsev.MakeContext(gowsev.Handler()),
    gowsev.MakeContext(Echo()),
    gowsev.MakeContext(Door(), None),
    gowsev.MakeContext(AllWelcome()),
    gowsev.MakeContext(Plain(), gowsev.Options()),
    gowsev.MakeContext(Unread()),
    gowsev.Context(Echo()),
]
context = contexts[0]

# -- the loop ----------------------------------------------------------------------------------------------------------

assert_type(context.ListenAndServe("9000"), tuple[str, int])
assert_type(context.ListenAndServe(0), tuple[str, int])
assert_type(context.ListenAndServeTLS(":9001", "cert.pem", "key.pem"), tuple[str, int])
assert_type(context.GetTimeout(), float | None)
context.SetTimeout(1)
context.SetTimeout(timedelta(minutes=1))
context.SetTimeout(None)
while context.EventLoopIteration():
    pass
context.EventLoop()
context.Close(1)
context.Close(1, 4000, reason="enough")
context.Shutdown()
context.Shutdown(timedelta(seconds=5))
context.ShutdownOnSignal()
context.ShutdownOnSignal(timeout=timedelta(seconds=5))
assert_type(context.options.allowed_origins, tuple[str, ...] | None)

# -- writing -----------------------------------------------------------------------------------------------------------

ids = {1, 2, 3}
assert_type(context.Write(1, bytearray(b"a message")), Exception | None)
assert_type(context.Write(1, memoryview(b"a message")), Exception | None)
assert_type(context.Broadcast(ids, b"bytes go binary"), list[int])
assert_type(context.Broadcast((id for id in ids if id != 2), "text goes as text"), list[int])

# -- calls and timers --------------------------------------------------------------------------------------------------


def nothing_more(context: gowsev.Context) -> None: ...


def publish(context: gowsev.Context, channel: str, body: bytes, times: int = 1) -> list[int]:
    return context.Broadcast(ids, channel.encode() + body * times)


class Work:
    def finished(self, context: gowsev.Context, id: int, result: bytes) -> None:
        context.Write(id, result)


context.Post(nothing_more)
context.Post(publish, "weather", b"rain")
context.Post(publish, "weather", b"rain", 2)
context.Post(Work().finished, 1, b"done")
context.Post(gowsev.Context.Shutdown, 5.0)
context.Post(lambda context, id: context.Close(id), 1)
assert_type(context.AfterFunc(1.5, publish, "weather", b"sun"), gowsev.Timer)
assert_type(context.AfterFunc(timedelta(seconds=1), nothing_more).Stop(), bool)

# -- options -----------------------------------------------------------------------------------------------------------


def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"a page\n"]


options = gowsev.Options(
    max_message_bytes=None,
    ping_interval=45,
    ping_timeout=timedelta(seconds=20),
    close_timeout=None,
    slow_consumer="drop",
    allowed_origins=["https://www.example.org"],
    subprotocols=("chat", "superchat"),
    compression="deflate",
    http_app=page,
)
assert_type(options.ping_timeout, float | None)
assert_type(options.subprotocols, tuple[str, ...])
assert_type(options.http_app, WSGIApplication | None)

# -- inside a web app --------------------------------------------------------------------------------------------------

application: WSGIApplication = context.ServeHTTP


def choose(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    chosen = context.ServeHTTP if environ["PATH_INFO"] == "/live" else page
    return chosen(environ, start_response)


handler_class: type = gowsev.WebSocketHandler

# -- counters ----------------------------------------------------------------------------------------------------------

stats = context.Stats()
assert_type(stats, gowsev.Stats)
assert_type(stats.connections, int)

# -- clients -----------------------------------------------------------------------------------------------------------


def dial(headers: Mapping[str, str]) -> str:
    try:
        conn = gowsev.Dial(
            "wss://localhost:9001/live",
            timeout=2,
            headers=headers,
            origin="https://www.example.org",
            subprotocols=["chat"],
            ssl_context=ssl.create_default_context(),
            options=gowsev.Options(max_message_bytes=1000),
            proxy="socks5h://localhost",
            follow_redirects=3,
        )
    except gowsev.DialError as error:
        assert_type(error.status, int | None)
        assert_type(error.headers, gowsev.Headers | None)
        assert_type(error.body, bytes)
        assert_type(error.location, str | None)
        assert_type(error.proxy, str | None)
        return str(error)
    with conn as same:
        assert_type(same, gowsev.DialledConn)
        same.WriteMessage(gowsev.BinaryMessage, b"hello")
        same.WriteMessage(gowsev.TextMessage, "hello")
        try:
            type, data = same.ReadMessage()
        except gowsev.ConnectionClosed as closed:
            assert_type(closed.code, int)
            return closed.reason
        assert_type(type, int)
        assert_type(data, bytes | str)
        return str(same.subprotocol)


gowsev.Dial("ws://localhost/", proxy=True, unix=Path("/run/chat.sock")).Close()
gowsev.Dial("ws://localhost/", proxy=None, unix="/run/chat.sock").Close()


def opened(context: gowsev.Context, id: int) -> None:
    context.WriteText(id, "hello")


def failed(context: gowsev.Context, error: gowsev.DialError, pause: float) -> None:
    if error.status == 401:
        link.Stop(1000, "enough")


link = gowsev.Redial(context, "ws://localhost/", opened=opened, failed=failed, first_pause=2, headers={"Cookie": "a=1"})
assert_type(link, gowsev.Redial)
assert_type(link.id, int)
assert_type(context.ListenAndServeTLS(9001, "cert.pem", "key.pem"), tuple[str, int])
assert_type(context.ListenAndServeTLS(9001, ssl_context=ssl.create_default_context()), tuple[str, int])
certificate = context.MustConn(1).peer_certificate
assert_type(certificate, gowsev.PeerCertificate | None)
if certificate is not None:
    assert_type([value for names in certificate["subject"] for _, value in names], list[str])
    assert_type(certificate.get("subjectAltName"), tuple[tuple[str, str], ...] | None)
assert_type(context.AddConn(gowsev.Dial("ws://localhost:9000/", headers=[("Cookie", "a=1")])), int)

# -- tests -------------------------------------------------------------------------------------------------------------


def test_with_a_server() -> None:
    from gowsev.testing import TIMEOUT, Recorder, Server, drive, in_thread, wait_until

    door = Recorder(Door())
    with Server(door, max_connections=3) as server:
        assert_type(server.port, int)
        with server.dial("/live", origin="https://www.example.org") as client:
            assert_type(client, Client)
            client.send("hello")
            assert_type(client.receive(), str | bytes)
            assert_type(door.wait_for("ConnAccepted"), tuple[int])
            assert_type(door.wait_for("MessageReceived", 1), tuple[int, bytes])
            (id, text) = door.wait_for("TextReceived", 1, timeout=TIMEOUT)
            assert_type(id, int)
            assert_type(text, str)
            (request,) = door.wait_for("ConnRequested")
            assert_type(request.path, str)
            assert_type(door.wait_for("EventLoopTimeout"), tuple[()])
            assert_type(client.wait_closed().code, int)
        assert_type(door.handler.welcome, dict[int, str])
        assert_type(door.callbacks, list[Callback])
        assert_type(wait_until(lambda: door.handler.welcome.get(1)), str | None)
        assert_type(in_thread(dial, {"Cookie": "a=1"}), str)
    with drive(gowsev.MakeContext(door)):
        pass


def test_with_fixtures(
    gowsev_server: Callable[..., Server], gowsev_client: Callable[..., Client], recorder: Recorder[Echo]
) -> None:
    server = gowsev_server(recorder)
    assert_type(gowsev_client(server.url).receive(), str | bytes)

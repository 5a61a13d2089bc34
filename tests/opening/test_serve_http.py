"""`ServeHTTP`: upgrades under gevent's WSGI server, with every handler, and inside web frameworks.

gunicorn, which has processes of its own, is in `test_gunicorn`.
"""

import contextlib
import functools
import gc
import io
import ssl
import subprocess
import sys
import wsgiref.simple_server

import gevent
import gevent.ssl
import pytest
from conftest import PATIENCE, Conns, Judge, Recorder, echo, echoes, send_until_full, wait_until
from gevent import monkey
from gevent.event import Event
from gevent.pywsgi import WSGIHandler, WSGIServer
from geventwebsocket.handler import WebSocketHandler as GeventWebSocketHandler
from geventwebsocket.logging import create_logger
from raw import RawClient, binary

import gowsev
from gowsev.loop.loop import Loop
from gowsev.opening import adoption
from gowsev.wire import frames

HANDLERS = {"pywsgi": WSGIHandler, "gowsev": gowsev.WebSocketHandler, "gevent-websocket": GeventWebSocketHandler}
#: Those that leave the handshake to us.
OURS = ["pywsgi", "gowsev"]
EARLY = binary(b"early")

# The frameworks are imported by the tests that use them: each process of the tests imports this file.
urlpatterns = []


@functools.cache
def django_application():
    import django.conf
    import django.core.wsgi
    import django.http
    import django.urls

    django.conf.settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None)
    urlpatterns.append(django.urls.path("", lambda request: django.http.HttpResponse("a page")))
    return django.core.wsgi.get_wsgi_application()


def in_flask(context):
    import flask

    app = flask.Flask("pages")
    app.add_url_rule("/", view_func=lambda: "a page", endpoint="page")

    @app.route("/live", websocket=True)
    def live():
        return context.ServeHTTP

    return app


def in_bottle(context):
    import bottle

    app = bottle.Bottle()
    app.get("/")(lambda: "a page")
    app.mount("/live", context.ServeHTTP)
    return app


def in_django(context):
    app = django_application()

    def by_path(environ, start_response):
        chosen = context.ServeHTTP if environ["PATH_INFO"] == "/live" else app
        return chosen(environ, start_response)

    return by_path


def itself(context):
    return context.ServeHTTP


@pytest.fixture
def beside(idle, capfd):
    """A factory of servers: `beside(app, handler, **options)`, which print nothing."""
    started = []

    def start(app=itself, handler="gowsev", recorder=None, *, loop=True, tls=None, **options):
        server = idle(recorder, listen=False, **options)
        kind = HANDLERS[handler]
        secure = {}
        if tls is not None:
            secure["ssl_context"] = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            secure["ssl_context"].load_cert_chain(*tls)
        server.http = WSGIServer(
            ("127.0.0.1", 0),
            app(server.context),
            handler_class=kind,
            log=None,
            environ={"SERVER_NAME": "x"},
            **secure,
        )
        server.http.logger = create_logger("geventwebsocket")
        server.http.start()
        server.host, server.port = "127.0.0.1", server.http.server_port
        server.loop = gevent.spawn(server.context.EventLoop) if loop else None
        started.append(server)
        return server

    yield start
    for server in started:
        server.http.stop(timeout=0)
        for client in server.clients:
            client.close()
        server.context.Shutdown(0)
        if server.loop is not None:
            server.loop.join(PATIENCE)
    assert capfd.readouterr().err == ""


def ask(server, request, **kwargs):
    """Send a request; return the whole response, of a server that then closes."""
    client = RawClient(server.host, server.port, handshake=False, **kwargs)
    server.clients.append(client)
    client.send(request)
    return client.read_to_end()


def upgrade(*headers, path="/live"):
    return RawClient.request(path, headers)


# -- that it works -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("app", [in_flask, in_django, in_bottle, itself])
def test_a_connection_is_upgraded(beside, app, handler):
    server = beside(app, handler)
    client = server.client(path="/live", behind=EARLY)
    assert client.read_frame() == (frames.BINARY, b"early")
    assert echoes(client)
    client.send_close(1000, "done")
    assert client.read_close() == (1000, "")
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.events == [
        ("accepted", 1),
        ("message", 1, b"early"),
        ("message", 1, b"still there"),
        ("closed", 1, 1000, "done"),
    ]


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_connection_is_upgraded_over_tls(beside, certificate, client_tls, handler):
    server = beside(in_flask, handler, Conns(), tls=certificate)
    client = server.client(path="/live", behind=EARLY, tls=client_tls)
    assert client.read_frame() == (frames.BINARY, b"early")
    large = bytes(3 << 20)
    for payload in (b"small", large[: 1 << 19]):
        client.send_binary(payload)
        assert client.read_frame() == (frames.BINARY, payload)
    server.context.Write(1, large)
    assert client.read_frame() == (frames.BINARY, large)
    assert server.handler.conns[0].tls is True
    server.context.Close(1, 1000, "enough")
    assert client.read_close() == (1000, "enough")
    client.send_close(1000)
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)


@pytest.mark.parametrize("end", ["reset", "close"])
def test_the_end_of_a_tls_connection_is_seen(beside, certificate, client_tls, end):
    server = beside(recorder=Recorder(), tls=certificate)
    client = server.client(tls=client_tls)
    getattr(client, end)()
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed == [("closed", 1, 1006, "")]


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("app", [in_flask, in_django, in_bottle])
def test_pages_are_served_beside_and_may_come_first(beside, app, handler):
    server = beside(app, handler)
    client = RawClient(server.host, server.port, handshake=False)
    server.clients.append(client)
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = client.read_head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    wait_until(lambda: client.buffer or client.fill())
    assert b"a page" in client.buffer
    client.buffer.clear()
    client.send(upgrade() + EARLY)
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert client.read_frame() == (frames.BINARY, b"early")


@pytest.mark.parametrize("handler", HANDLERS)
def test_another_request_gets_426(beside, handler):
    server = beside(itself, handler)
    response = ask(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nUpgrade: websocket\r\n" in response
    assert server.handler.events == []


def test_an_upgrade_that_a_proxy_has_lost_is_logged(beside, caplog):
    caplog.set_level("INFO", "gowsev")
    server = beside(itself)
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    response = ask(server, b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + key + b"\r\n")
    assert response.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    (record,) = caplog.records
    assert record.getMessage().startswith("a request from '127.0.0.1' for '/live' has a Sec-WebSocket-Key, but no ")


@pytest.mark.parametrize("handler", OURS)
def test_subprotocols_and_compression_are_negotiated(beside, handler):
    server = beside(in_flask, handler, Conns(), subprotocols=("b", "a"), compression="deflate")
    headers = [("Sec-WebSocket-Protocol", "a, b"), ("Sec-WebSocket-Extensions", "permessage-deflate")]
    client = server.client(path="/live", headers=headers)
    assert b"\r\nSec-WebSocket-Protocol: b\r\n" in client.response
    assert b"\r\nSec-WebSocket-Extensions: permessage-deflate" in client.response
    wait_until(lambda: server.handler.conns)
    assert server.handler.conns[0].subprotocol == "b"


def test_gevent_websocket_picks_the_subprotocol_itself(beside):
    def app(context):
        def application(environ, start_response):
            return context.ServeHTTP(environ, start_response)

        application.app_protocol = lambda path: "chat"
        return application

    server = beside(app, "gevent-websocket", Conns(), subprotocols=("b",), compression="deflate")
    headers = [("Sec-WebSocket-Protocol", "b, chat"), ("Sec-WebSocket-Extensions", "permessage-deflate")]
    client = server.client(headers=headers)
    assert b"Sec-WebSocket-Extensions" not in client.response
    assert echoes(client)
    assert server.handler.conns[0].subprotocol == "chat"


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("app", [in_bottle, itself])
def test_the_program_sees_the_request(beside, app, handler):
    server = beside(app, handler, Judge())
    headers = [("Cookie", "session=17"), ("X-Of-Ours", "1"), ("X-Of-Ours", "2"), ("Content-Type", "text/x")]
    client = server.client(path="/live/caf%C3%A9?a=b%20c", headers=headers)
    assert echoes(client)
    (request,) = server.handler.requests
    assert request.path == "/live/café"
    assert request.query == "a=b%20c"
    assert request.headers["cookie"] == "session=17"
    assert request.headers["Host"] == "localhost"
    assert request.headers["Content-Type"] == "text/x"
    assert request.headers.get_all("X-Of-Ours") == (["1", "2"] if handler == "gowsev" else ["1,2"])
    assert request.peer == client.sock.getsockname()
    assert request.local == (server.host, server.port)
    assert request.tls is False
    conn = server.handler.conns[0]
    assert (conn.path, conn.query, conn.peer, conn.local) == (request.path, request.query, request.peer, request.local)


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("app", [in_bottle, itself])
@pytest.mark.parametrize(
    ("sent", "path"), [("%3Fa%2525", "?a%25"), ("%23%2F;x=%C3%A9", "#/;x=é"), ("a+b%20c", "a+b c")]
)
def test_a_path_is_decoded_once(beside, app, handler, sent, path):
    server = beside(app, handler, Judge())
    assert echoes(server.client(path=f"/live/{sent}?x=%3F&y=?%C3%A9"))
    (request,) = server.handler.requests
    assert (request.path, request.query) == (f"/live/{path}", "x=%3F&y=?%C3%A9")


# -- what a view has found out -----------------------------------------------------------------------------------------


def knowing(accept):
    """An app of one view, which knows who asks."""
    return lambda context: lambda environ, start_response: context.Upgrade(accept)(environ, start_response)


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_view_knows_is_the_connections_data_and_nobody_is_asked(beside, handler):
    server = beside(knowing(gowsev.Accept("Ann")), handler, Judge(gowsev.Reject(403)))
    assert echoes(server.client())
    assert server.handler.conns[0].data == "Ann"
    assert server.handler.requests == []


@pytest.mark.parametrize("handler", OURS)
def test_what_a_view_adds_to_the_answer_is_sent(beside, handler):
    accept = gowsev.Accept(headers={"Set-Cookie": "seen=1"}, subprotocol="chat.v2")
    server = beside(knowing(accept), handler, Conns(), subprotocols=("chat",))
    client = server.client(headers=[("Sec-WebSocket-Protocol", "chat, chat.v2")])
    assert b"\r\nSet-Cookie: seen=1\r\n" in client.response
    assert b"\r\nSec-WebSocket-Protocol: chat.v2\r\n" in client.response
    assert echoes(client)
    assert server.handler.conns[0].subprotocol == "chat.v2"


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_answer_of_conn_requested_may_accept_too(beside, caplog, handler):
    server = beside(itself, handler, Judge(gowsev.Accept("Ann", headers={"Set-Cookie": "seen=1"})))
    client = server.client()
    assert echoes(client)
    assert server.handler.conns[0].data == "Ann"
    sent = b"\r\nSet-Cookie: seen=1\r\n" in client.response
    warned = "gevent-websocket has answered a handshake before the program" in caplog.text
    assert (sent, warned) == ((True, False) if handler in OURS else (False, True))


@pytest.mark.parametrize("handler", OURS)
def test_a_view_that_accepts_while_the_context_is_full_is_refused_too(beside, handler):
    server = beside(knowing(gowsev.Accept("Ann")), handler, max_connections=1)
    assert echoes(server.client())
    assert ask(server, upgrade()).startswith(b"HTTP/1.1 503 ")


def test_a_view_that_accepts_with_a_subprotocol_that_is_not_offered_hears_of_it(beside):
    errors = []

    def app(context):
        def view(environ, start_response):
            with pytest.raises(ValueError, match="subprotocol must be one of those that the client offers") as error:
                context.Upgrade(gowsev.Accept(subprotocol="chat"))(environ, start_response)
            errors.append(error.value)
            start_response("500 Internal Server Error", [("Content-Length", "0"), ("Connection", "close")])
            return []

        return view

    server = beside(app)
    assert ask(server, upgrade()).startswith(b"HTTP/1.1 500 ")
    assert len(errors) == 1


@pytest.mark.parametrize("accept", [None, "Ann", gowsev.Reject(403), gowsev.Accept])
def test_only_an_accept_upgrades(beside, accept):
    server = beside()
    with pytest.raises(TypeError, match=r"accept must be a gowsev\.Accept, not "):
        server.context.Upgrade(accept)


# -- refusals ----------------------------------------------------------------------------------------------------------

REFUSALS = {
    "another origin": ({}, [("Origin", "http://evil.example")], 403, 1008),
    "the program's": ({"recorder": Judge(gowsev.Reject(401, "no token", {"X-Why": "because"}))}, [], 401, 1008),
    "a program that fails": ({"recorder": Judge("what?")}, [], 500, 1008),
    "a header that is none": ({}, [("Sec-WebSocket-Extensions", "=;")], 400, 1008),
}


@pytest.mark.parametrize("handler", OURS)
@pytest.mark.parametrize("why", REFUSALS)
def test_refusals(beside, informed, caplog, handler, why):
    caplog.set_level("INFO", "gowsev")
    options, headers, status, _ = REFUSALS[why]
    server = beside(in_flask, handler, **options)
    response = ask(server, upgrade(*headers))
    assert response.startswith(f"HTTP/1.1 {status} ".encode()), response
    assert server.context.Stats().rejected == 1
    assert informed()[-1].startswith("refused 127.0.0.1:")


@pytest.mark.parametrize("why", REFUSALS)
def test_refusals_after_gevent_websockets_handshake_are_close_frames(beside, why):
    options, headers, _, code = REFUSALS[why]
    server = beside(in_flask, "gevent-websocket", **options)
    client = server.client(path="/live", headers=headers)
    assert client.read_close()[0] == code
    assert client.read_to_end() == b""
    assert server.handler.of("accepted") == []
    assert server.context.Stats().rejected == 1


@pytest.mark.parametrize("end", ["reads", "leaves"])
def test_an_answer_that_waits_for_its_client_to_read_has_a_place(beside, end):
    full = []

    def app(context):
        def view(environ, start_response):
            if environ["PATH_INFO"] == "/full":  # as after a page that the client has not read
                sock, _ = adoption.socket_of(environ)
                sock.settimeout(0)
                send_until_full(sock, b"x" * 1000)
                full.append(sock)
            return context.ServeHTTP(environ, start_response)

        return view

    server = beside(app, "pywsgi", max_connections=1)
    first = server.client(handshake=False)
    first.send(upgrade(path="/full"))
    wait_until(lambda: full)
    assert ask(server, upgrade()).startswith(b"HTTP/1.1 503 ")
    assert server.context.Stats().accepted == 0
    if end == "reads":
        assert first.read_head().lstrip(b"x").startswith(b"HTTP/1.1 101 ")
        assert echoes(first)
        assert ask(server, upgrade()).startswith(b"HTTP/1.1 503 ")
    else:
        first.reset()
        wait_until(lambda: full[0].closed)
        assert echoes(server.client())


@pytest.mark.parametrize("handler", HANDLERS)
def test_no_more_connections_than_allowed(beside, handler):
    server = beside(in_flask, handler, max_connections=1)
    first = server.client(path="/live")
    assert echoes(first)
    if handler == "gevent-websocket":
        second = server.client(path="/live")
        reason = "The server has as many connections as it takes: see max_connections of gowsev.Options."
        assert second.read_close() == (1013, reason)
    else:
        assert ask(server, upgrade()).startswith(b"HTTP/1.1 503 ")
    assert echoes(first)


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_question_that_nobody_answers_has_an_end(beside, handler):
    server = beside(in_flask, handler, Judge(), loop=False, handshake_timeout=0.05)
    if handler == "gevent-websocket":
        assert server.client(path="/live").read_close() == (
            1013,
            "No answer within 0.05 s: see handshake_timeout of gowsev.Options.",
        )
    else:
        response = ask(server, upgrade())
        assert response.startswith(b"HTTP/1.1 503 ")
        assert response.endswith(b"No answer within 0.05 s: see handshake_timeout of gowsev.Options.\n")
    assert server.handler.requests == []


def test_headers_that_cannot_be_are_refused(beside):
    server = beside(in_django, "pywsgi")
    assert ask(server, upgrade(("X-Escape", "\x1b[31m"))).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("handler", OURS)
def test_a_client_that_leaves_during_its_request_is_no_error(beside, handler, informed, caplog):
    caplog.set_level("INFO", "gowsev")
    asked, answer = Event(), Event()

    class Slow(Judge):
        def ConnRequested(self, context, request):
            asked.set()
            answer.wait(PATIENCE)

    server = beside(itself, handler, Slow())
    client = RawClient(server.host, server.port, handshake=False)
    client.send(upgrade())
    assert asked.wait(PATIENCE)
    client.reset()
    gevent.sleep(0)
    answer.set()
    wait_until(lambda: any("during its request: " in line for line in informed()))
    assert server.handler.events == []


def test_a_client_that_leaves_before_gevent_websockets_handshake_is_refused_is_no_error(beside, informed, caplog):
    caplog.set_level("INFO", "gowsev")
    asked, answer, ended = Event(), Event(), []

    class Slow(Judge):
        def ConnRequested(self, context, request):
            asked.set()
            answer.wait(PATIENCE)
            return gowsev.Reject(403)

    def app(context):
        def application(environ, start_response):
            try:
                body = context.ServeHTTP(environ, start_response)
            except OSError as error:
                ended.append(error)
                raise
            ended.append("quietly")
            return body

        return application

    server = beside(app, "gevent-websocket", Slow())
    client = server.client()
    assert asked.wait(PATIENCE)
    client.reset()
    answer.set()
    wait_until(lambda: ended)
    assert ended == ["quietly"]
    refused, lost = informed()
    assert refused.startswith("refused 127.0.0.1:")
    assert lost.startswith("lost 127.0.0.1:")
    assert "during its request: " in lost


def test_an_application_that_cannot_read_its_malformed_body_is_a_400(beside, capfd):
    def app(context):
        def application(environ, start_response):
            body = environ["wsgi.input"]
            try:
                body.read()
            except OSError as error:
                with contextlib.suppress(OSError):
                    body.read()  # as one that empties what is left; it ends pywsgi's own care for the body
                raise error

        return application

    server = beside(app)
    response = ask(server, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n")
    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert "no size of a chunk in a chunked body: b'none" in capfd.readouterr().err, "gevent says it"


def test_an_application_that_fails_is_a_500_of_the_server(beside, capfd):
    def app(context):
        def application(environ, start_response):
            raise LookupError("its own fault")

        return application

    server = beside(app)
    response = ask(server, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert "LookupError: its own fault" in capfd.readouterr().err, "gevent says it"


# -- the server lets go ------------------------------------------------------------------------------------------------


def held_by_servers():
    return {id(item) for item in gc.get_objects() if issubclass(type(item), WSGIHandler)}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("app", [in_flask, itself])
def test_the_server_keeps_nothing_of_an_open_connection(beside, app, handler):
    before = held_by_servers()
    server = beside(app, handler)
    clients = [server.client(path="/live") for _ in range(5)]
    assert all(map(echoes, clients))
    gc.collect()
    assert held_by_servers() <= before
    server.http.stop(timeout=0)
    assert all(map(echoes, clients)), "the server closed what it had given away"


def test_a_server_with_a_pool_has_room_again(beside):
    server = beside(in_flask)
    server.http.set_spawn(2)
    clients = [server.client(path="/live") for _ in range(5)]
    assert all(map(echoes, clients))
    assert server.http.pool.free_count() == 2


def test_without_a_driver_connections_wait(beside):
    server = beside(in_flask, loop=False)
    client = server.client(path="/live")
    client.send_binary(b"is anybody there?")
    wait_until(lambda: server.context.Stats().messages_received)
    assert server.handler.events == []
    server.loop = gevent.spawn(server.context.EventLoop)
    assert client.read_frame() == (frames.BINARY, b"is anybody there?")


# -- servers that do not allow it --------------------------------------------------------------------------------------


def test_another_server_gets_one_clear_error(idle):
    server = idle(listen=False)
    environ = {"HTTP_UPGRADE": "websocket", "SERVER_SOFTWARE": "waitress", "wsgi.input": io.BytesIO()}
    with pytest.raises(RuntimeError, match=r"\(waitress\).* gunicorn -k gowsev\.gunicorn\.Worker.*ListenAndServe"):
        server.context.ServeHTTP(environ, None)
    environ["gunicorn.socket"] = None
    with pytest.raises(RuntimeError, match="ServeHTTP cannot take a connection out of this server"):
        server.context.ServeHTTP(environ, None)
    environ["gunicorn.socket"] = object()
    with pytest.raises(RuntimeError, match="ServeHTTP cannot take a connection out of this server"):
        server.context.ServeHTTP(environ, None)
    environ["wsgi.websocket"] = object()  # of a library that we know nothing of
    with pytest.raises(RuntimeError, match="ServeHTTP cannot take a connection out of this server"):
        server.context.ServeHTTP(environ, None)


def test_a_threaded_server_gets_the_same_error(idle):
    errors = []
    server = idle(listen=False)

    def app(environ, start_response):
        try:
            return server.context.ServeHTTP(environ, start_response)
        except RuntimeError as error:
            errors.append(str(error))
            raise

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *_args):
            pass

        def get_stderr(self):
            return io.StringIO()

    def once():
        with wsgiref.simple_server.make_server("127.0.0.1", 0, app, handler_class=Quiet) as http:
            ports.append(http.server_port)
            http.handle_request()

    ports = []
    task = gevent.get_hub().threadpool.spawn(once)
    port = wait_until(lambda: ports and ports[0])
    client = RawClient("127.0.0.1", port, handshake=False)
    client.send(upgrade())
    assert client.read_head().startswith(b"HTTP/1.0 500 ")
    client.close()
    task.get(timeout=PATIENCE)
    assert len(errors) == 1


def test_another_thread_is_refused(beside):
    errors = []

    def app(context):
        def application(environ, start_response):
            errors.append(gevent.get_hub().threadpool.apply(attempt, (context, environ)))
            start_response("200 OK", [("Connection", "close")])
            return []

        return application

    def attempt(context, environ):
        with pytest.raises(RuntimeError) as raised:
            context.ServeHTTP(environ, None)
        return str(raised.value)

    server = beside(app, "pywsgi")
    ask(server, upgrade())
    assert errors == ["a context belongs to the thread that made it; only Post may be called from another"]


# -- a loop in a greenlet beside an app --------------------------------------------------------------------------------


def test_pages_write_broadcast_and_post(beside):
    def app(context):
        import flask

        app = flask.Flask("pages")

        @app.route("/live", websocket=True)
        def live():
            return context.ServeHTTP

        @app.get("/say")
        def say():
            gevent.sleep(0)  # as a query would
            context.Write(1, b"written")
            context.Broadcast([1, 2], "broadcast")
            context.Post(lambda context: context.WriteText(2, "posted"))
            return "said"

        return app

    server = beside(app)
    first = server.client(path="/live")
    wait_until(lambda: len(server.handler.of("accepted")) == 1)
    second = server.client(path="/live")
    wait_until(lambda: len(server.handler.of("accepted")) == 2)
    ask(server, b"GET /say HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert first.read_frame() == (frames.BINARY, b"written")
    assert first.read_frame() == (frames.TEXT, b"broadcast")
    assert second.read_frame() == (frames.TEXT, b"broadcast")
    assert second.read_frame() == (frames.TEXT, b"posted")


def test_a_callback_that_waits_holds_up_callbacks_only(beside):
    asked, query = Event(), Event()

    class Waits(Recorder):
        def MessageReceived(self, context, id, message):
            if message == b"query":
                asked.set()
                query.wait(PATIENCE)
            super().MessageReceived(context, id, message)

    server = beside(in_flask, recorder=Waits(echo))
    first, second = (server.client(path="/live") for _ in range(2))
    first.send_binary(b"query")
    assert asked.wait(PATIENCE)
    second.send_binary(b"after it")
    wait_until(lambda: server.context.Stats().messages_received == 2)
    # Pages, upgrades, pings and writes go on.
    page = ask(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert page.endswith(b"a page")
    third = server.client(path="/live")
    third.send_frame(frames.PING, b"alive?")
    assert third.read_frame() == (frames.PONG, b"alive?")
    server.context.Write(2, b"from a page")
    assert second.read_frame() == (frames.BINARY, b"from a page")
    assert server.handler.messages == []
    query.set()
    assert first.read_frame() == (frames.BINARY, b"query")
    assert second.read_frame() == (frames.BINARY, b"after it")


class Raises(Recorder):
    def MessageReceived(self, context, id, message):
        super().MessageReceived(context, id, message)
        if message == b"raise":
            raise LookupError("a mistake")


@pytest.mark.parametrize("handler", OURS)
def test_a_loop_that_ends_by_an_error_is_visible(beside, caplog, capfd, handler):
    server = beside(in_flask, handler, Raises(echo), raise_errors=True)
    client = server.client(path="/live")
    client.send_binary(b"raise")
    server.loop.join(PATIENCE)
    assert isinstance(server.loop.exception, LookupError)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage().startswith(
        "the greenlet of this loop has ended with LookupError('a mistake'); its 1 connections wait"
    )
    assert record.exc_info
    assert "LookupError" in capfd.readouterr().err, "gevent says it too"
    response = ask(server, upgrade())
    assert response.startswith(b"HTTP/1.1 503 ")
    assert response.endswith(b"The server's event loop has ended.\n")
    # Whoever drives it again has all connections back.
    server.loop = gevent.spawn(server.context.EventLoop)
    client.send_binary(b"again")
    assert client.read_frame() == (frames.BINARY, b"raise")
    assert client.read_frame() == (frames.BINARY, b"again")
    assert echoes(server.client(path="/live"))


def test_a_listener_refuses_too_when_the_loop_has_been_killed(idle, caplog):
    caplog.set_level("INFO", "gowsev")
    server = idle()
    loop = gevent.spawn(server.context.EventLoop)
    gevent.sleep(0)
    loop.kill()
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "has ended with GreenletExit" in record.getMessage()
    assert not record.exc_info
    client = RawClient(server.host, server.port, handshake=False)
    client.send(upgrade())
    assert client.read_head().startswith(b"HTTP/1.1 503 ")
    client.close()


@pytest.mark.parametrize("recorder", [Recorder, Judge])
def test_a_loop_that_nobody_has_driven_is_said_once_when_clients_wait_for_it(beside, caplog, monkeypatch, recorder):
    monkeypatch.setattr("gowsev.loop.loop._UNDRIVEN", 0.01)
    server = beside(in_flask, "gowsev", recorder(), loop=False)
    for _ in range(2):
        server.client(path="/live", handshake=False).send(upgrade())
    wait_until(lambda: caplog.records)
    gevent.sleep(0.05)  # time in which nothing more may come
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("clients of this context wait for its loop, which was never driven")


@pytest.mark.parametrize("meanwhile", ["EventLoopIteration", "Shutdown"])
def test_a_loop_that_is_driven_in_time_or_shut_down_is_no_fault(idle, caplog, monkeypatch, meanwhile):
    monkeypatch.setattr("gowsev.loop.loop._UNDRIVEN", 0.01)
    server = idle()
    server.client()
    getattr(server.context, meanwhile)()
    gevent.sleep(0.05)  # time in which nothing may be said
    assert not caplog.records


def test_a_loop_that_is_gone_is_no_fault(caplog, monkeypatch):
    monkeypatch.setattr("gowsev.loop.loop._UNDRIVEN", 0.01)
    loop = Loop(gowsev.Options())
    loop.expect_driver()
    del loop
    gc.collect()
    gevent.sleep(0.05)  # time in which nothing may be said
    assert not caplog.records


#: A program of its own, whose hub has nothing from elsewhere that would be waited for.
UNDRIVEN = f"""
import gevent, gowsev, gowsev.loop.loop as module
module._UNDRIVEN = 3600
loop = module.Loop(gowsev.Options())
loop.expect_driver()
assert gevent.wait(timeout={PATIENCE}), "it would be waited for"
"""


def test_a_program_that_ends_does_not_wait_to_say_that_its_loop_was_not_driven():
    subprocess.run([sys.executable, "-c", UNDRIVEN], timeout=PATIENCE * 2, check=True)


def test_what_leaves_a_loop_in_the_main_greenlet_is_only_raised(idle, caplog):
    server = idle(Raises(), raise_errors=True)
    server.client().send_binary(b"raise")
    with pytest.raises(LookupError):
        server.context.EventLoop()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_leaves_a_nested_loop_leaves_the_outer_one_its_driver(serve):
    class Nests(Recorder):
        def MessageReceived(self, context, id, message):
            super().MessageReceived(context, id, message)
            if message == b"nest":
                with pytest.raises(SystemExit):
                    context.EventLoop()
            if message == b"leave":
                raise SystemExit

    server = serve(Nests(echo))
    client = server.client()
    client.send_binary(b"nest")
    client.send_binary(b"leave")
    assert echoes_all(client, [b"nest", b"leave"])
    assert echoes(server.client()), "nobody is refused"


def echoes_all(client, payloads):
    return [client.read_frame() for _ in payloads] == [(frames.BINARY, payload) for payload in payloads]


@pytest.mark.parametrize("thread", ["gevent's threadpool", "a thread of the system's"])
def test_posts_of_real_threads_under_load_are_all_run(beside, thread):
    server = beside(in_flask)
    client = server.client(path="/live")
    noise = server.client(path="/live")
    posted, threads = 5000, 4
    seen = {number: [] for number in range(threads)}

    def post(number):
        for count in range(posted):
            server.context.Post(lambda context, *args: seen[args[0]].append(args[1]), number, count)

    def load():
        while True:
            noise.send_binary(bytes(2000))
            noise.read_frame()

    loading = gevent.spawn(load)
    if thread == "gevent's threadpool":
        tasks = [gevent.get_hub().threadpool.spawn(post, number) for number in range(threads)]
        for task in tasks:
            task.get(timeout=PATIENCE)
    else:
        start, ended = monkey.get_original("_thread", "start_new_thread"), []
        for number in range(threads):
            start(lambda number=number: (post(number), ended.append(number)), ())
        wait_until(lambda: len(ended) == threads)
    assert echoes(client)
    wait_until(lambda: sum(map(len, seen.values())) == posted * threads)
    assert all(counts == list(range(posted)) for counts in seen.values())
    loading.kill()

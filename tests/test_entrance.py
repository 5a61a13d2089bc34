"""`ServeHTTP`: upgrades under other WSGI servers and inside web frameworks."""

import bottle
import flask
import gevent
import gevent.ssl
import pytest
from conftest import PATIENCE, echoes, wait_until
from gevent.pywsgi import WSGIHandler, WSGIServer
from geventwebsocket.handler import WebSocketHandler as GeventWebSocketHandler
from geventwebsocket.logging import create_logger

import gowsev
from gowsev import frames

HANDLERS = {"pywsgi": WSGIHandler, "gowsev": gowsev.WebSocketHandler, "gevent-websocket": GeventWebSocketHandler}
EARLY = frames.encode_frame(0x82, b"early", masked=True)


def in_flask(context):
    app = flask.Flask("pages")

    @app.get("/")
    def page():
        return "a page"

    @app.route("/live", websocket=True)
    def live():
        return context.ServeHTTP

    return app


def in_bottle(context):
    app = bottle.Bottle()
    app.get("/")(lambda: "a page")
    app.mount("/live", context.ServeHTTP)
    return app


def by_path(app, context):
    return lambda environ, start_response: (context.ServeHTTP if environ["PATH_INFO"].startswith("/live") else app)(
        environ, start_response
    )


def in_django(context):
    import django.conf
    import django.core.wsgi
    import django.http
    import django.urls

    class Urls:
        urlpatterns = (django.urls.path("", lambda request: django.http.HttpResponse("a page")),)

    if not django.conf.settings.configured:
        django.conf.settings.configure(ROOT_URLCONF=Urls, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None)
        django.setup()
    return by_path(django.core.wsgi.get_wsgi_application(), context)


APPS = {"flask": in_flask, "django": in_django, "bottle": in_bottle, "itself": lambda context: context.ServeHTTP}


@pytest.fixture
def beside(idle, capfd):
    """A factory of servers: `beside(app, handler_class=..., **options)`; nothing may be printed by them."""
    started = []

    def start(app="itself", handler="gowsev", recorder=None, tls=None, loop=True, **options):
        server = idle(recorder, listen=False, **options)
        application = APPS[app](server.context) if isinstance(app, str) else app(server.context)
        http = WSGIServer(("127.0.0.1", 0), application, handler_class=HANDLERS[handler], log=None, **(tls or {}))
        http.logger = create_logger("geventwebsocket")
        http.start()
        server.host, server.port = http.server_host, http.server_port
        driver = gevent.spawn(server.context.EventLoop) if loop else None
        started.append((server, http, driver))
        server.http = http
        return server

    yield start
    for server, http, driver in started:
        http.stop(timeout=0)
        for client in server.clients:
            client.close()
        server.context.Shutdown(5)
        if driver is not None:
            driver.join(PATIENCE)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("app", APPS)
def test_a_connection_is_upgraded_and_echoes(beside, app, handler):
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

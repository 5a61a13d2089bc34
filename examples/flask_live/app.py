"""A Flask app with pages, a login, and a live page: its WebSocket opens only for users who are logged in.

The login is Flask's: a session in a signed cookie. A browser sends that cookie with the handshake of a WebSocket too,
so `ConnRequested` reads it, with Flask's own serializer, and refuses those without one. The live page shows who is
there, how often they have waved, and which process serves it.

    python app.py                                                  # one process
    gunicorn -k gowsev.gunicorn.Worker -w 2 "app:create_app()"     # two workers, in this folder
"""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import os
import secrets
from collections import Counter

import flask
import gevent
from flask.sessions import SecureCookieSessionInterface
from gevent.pywsgi import WSGIServer
from itsdangerous import BadSignature
from werkzeug.http import parse_cookie

import gowsev

#: The close code that tells a page that its user has logged out; 4000 to 4999 are a program's own.
LOGGED_OUT = 4401


class Live(gowsev.Handler):
    """Who is on the live page. One for each process: what it knows, another worker does not."""

    def __init__(self, user_of):
        self.user_of = user_of
        self.users = {}  # by id
        self.waves = Counter()
        self.seconds = 0

    def ConnRequested(self, context, request):
        if self.user_of(request.headers) is None:
            return gowsev.Reject(401, "Log in first.\n")
        return None

    def ConnAccepted(self, context, id):
        self.users[id] = self.user_of(context.MustConn(id).headers)
        self.publish(context)

    def ConnClosed(self, context, id):
        self.users.pop(id, None)
        self.publish(context)

    def TextReceived(self, context, id, text):
        if text != "wave":
            context.Close(id, 1008, "the only command is wave")
            return
        self.waves[self.users[id]] += 1
        self.publish(context)

    def tick(self, context):
        context.AfterFunc(1.0, self.tick)
        self.seconds += 1
        self.publish(context)

    def log_out(self, context, user):
        for id, name in self.users.items():
            if name == user:
                context.Close(id, LOGGED_OUT, "logged out")

    def publish(self, context):
        people = [{"name": name, "waves": self.waves[name]} for name in sorted(set(self.users.values()))]
        context.Broadcast(self.users, json.dumps({"worker": os.getpid(), "seconds": self.seconds, "people": people}))


def read_session(app, headers):
    """Return the session in the cookie of a handshake, or an empty one: Flask does the same for a page."""
    cookies = parse_cookie(headers.get("Cookie"))
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    max_age = int(app.permanent_session_lifetime.total_seconds())
    try:
        return serializer.loads(cookies.get(app.config["SESSION_COOKIE_NAME"], ""), max_age=max_age)
    except BadSignature:  # none, or one that is forged or too old
        return {}


def create_app():
    """Make the app, its context, and the greenlet of its loop; under gunicorn, in each worker."""
    app = flask.Flask(__name__)
    app.config["SECRET_KEY"] = os.environ.get("SECRET_KEY") or secrets.token_hex()
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    live = Live(lambda headers: read_session(app, headers).get("user"))
    app.extensions["gowsev"] = context = gowsev.MakeContext(live)
    live.tick(context)
    gevent.spawn(context.EventLoop)

    @app.get("/")
    def index():
        if "user" not in flask.session:
            return flask.render_template("login.html")
        return flask.render_template("live.html", user=flask.session["user"], worker=os.getpid())

    @app.post("/login")
    def login():
        name = flask.request.form["name"].strip()[:30]
        if name:  # an app of yours would ask for a password
            flask.session["user"] = name
        return flask.redirect("/")

    @app.post("/logout")
    def logout():
        user = flask.session.pop("user", None)
        context.Post(live.log_out, user)
        return flask.redirect("/")

    @app.get("/live", websocket=True)  # Flask tells requests for WebSockets from those for pages
    def websocket():
        return context.ServeHTTP

    return app


def main():
    parser = argparse.ArgumentParser(
        description="A Flask app with a live page for users who are logged in.", allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port (default: %(default)s; 0: any free)")
    args = parser.parse_args()
    app = create_app()
    server = WSGIServer((args.host, args.port), app, handler_class=gowsev.WebSocketHandler, log=None)
    server.start()
    app.extensions["gowsev"].ShutdownOnSignal(server)
    print(f"Listening on http://{args.host}:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

"""A Flask app that notifies its users, under gunicorn with four workers: pages, logins and notices in SQLite.

    python store.py                    # once: make the database
    gunicorn "app:create_app()"        # in this folder, with a Redis; gunicorn.conf.py says the rest

gunicorn's gevent workers patch the process. Whatever worker a view runs in, its notice reaches every tab of a user and
everybody in a room, on whichever worker their WebSockets are.
"""

import json
import os

import flask
import gevent
import store
from live import Live

from gowsev.channels import ChannelsError, Remote

URL = os.environ.get("REDIS_URL") or "redis://localhost:6379/0"


def tell(live, notice):
    """Publish a notice that was stored; return whether it was told. If not, `tell_again` sees to it."""
    error = live.publish(notice["channel"], notice)
    if error is None:
        store.told(notice["id"])
    else:
        store.not_told(notice["id"])
    return error is None


def tell_again():
    """Tell what has not been told, for ever: Redis was away, or a worker died between storing and telling.

    Each worker does that. The key makes it happen once, whoever is first.
    """
    remote = Remote(URL)
    while True:
        gevent.sleep(1)
        try:
            for notice in store.due_notices():
                remote.Publish(notice["channel"], json.dumps(notice), key=f"notice {notice['id']}")
                store.told(notice["id"])
        except (ChannelsError, store.Error) as error:  # the next attempt may do better
            print(f"notices wait to be told: {error}", flush=True)


def create_app():
    """Make the app and its part of the WebSockets; gunicorn calls it in each worker."""
    app = flask.Flask(__name__)
    app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]  # the same in all workers
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"  # forms of other sites come without it

    def login_of(headers):
        """The id of the login in the cookie of a handshake, read by Flask itself."""
        cookie = "; ".join(headers.get_all("Cookie"))
        with app.test_request_context("/", headers={"Cookie": cookie}):
            return flask.session.get("login", "")

    live = Live(URL, login_of)
    live.start()
    gevent.spawn(tell_again)

    def user():
        """Whoever is logged in; 401 for anybody else."""
        return store.user_of(flask.session.get("login")) or flask.abort(401)

    @app.get("/live", websocket=True)  # Flask tells requests for WebSockets from those for pages
    def websocket():
        user()
        return live.context.ServeHTTP

    @app.get("/")
    def index():
        found = store.user_of(flask.session.get("login"))
        if found is None:
            return flask.render_template("login.html")
        channels = store.channels_of(found["id"])
        return flask.render_template("index.html", user=found, channels=channels, people=store.people())

    @app.get("/notices/<channel>")
    def notices(channel):
        if channel not in store.channels_of(user()["id"]):
            flask.abort(403)
        return flask.jsonify(store.last_notices(channel))

    @app.post("/notices")
    def notify():
        """Notify a user, or a room that the sender is in."""
        sender = user()
        channel, text = flask.request.form["channel"], flask.request.form["text"].strip()[:500]
        to_user = channel in {f"user:{id}" for id in store.people()}
        if not text or not (to_user or channel in store.channels_of(sender["id"])):
            flask.abort(403)
        was_told = tell(live, store.add_notice(channel, sender["name"], text))
        return {"told": was_told}, 201

    @app.post("/login")
    def login():
        made = store.log_in(flask.request.form["name"], flask.request.form["password"])
        if made is None:
            return flask.render_template("login.html", wrong=True), 403
        flask.session["login"] = made
        return flask.redirect("/")

    @app.post("/logout")
    def logout():
        channel = f"user:{user()['id']}"
        login = flask.session.pop("login")
        # First the login ends, and then its connections do, on all workers: a tab that comes back is refused. If Redis
        # is away, they stay until their pages load anew.
        store.log_out(login)
        live.publish(channel, {"logout": login})
        return flask.redirect("/")

    return app

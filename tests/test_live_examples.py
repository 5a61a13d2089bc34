"""The examples with live pages, in processes of their own: Flask with a login, alone and under gunicorn, and Django."""

from __future__ import annotations

import http.cookiejar
import json
import re
import signal
import urllib.parse
import urllib.request
from pathlib import Path

import flask
import pytest
from browser import needs_chromium
from conftest import PATIENCE, answered, in_thread, wait_until
from flask.sessions import SecureCookieSessionInterface

import gowsev
from gowsev.testing import Client

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FLASK = EXAMPLES / "flask_live"


class User:
    """Somebody with a cookie jar, as a browser has one."""

    def __init__(self, url, name=None):
        self.url = url
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))
        if name is not None:
            self.fetch("login", {"name": name})

    def fetch(self, path="", form=None):
        """Get a page, or post a form to it; return the text that comes at the end of redirections."""
        data = urllib.parse.urlencode(form).encode() if form is not None else None
        return in_thread(lambda: self._opener.open(self.url + path, data, PATIENCE).read().decode())

    @property
    def cookie(self):
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.jar)

    def live(self, cookie=None):
        """Open the WebSocket of the live page."""
        return Client(self.url.replace("http", "ws") + "live", headers={"Cookie": cookie or self.cookie})


def news(client, wanted):
    """Receive until there is news for which `wanted` is true; return it."""
    while not wanted(told := json.loads(client.receive())):
        pass
    return told


def names(told):
    return [person["name"] for person in told["people"]]


@pytest.fixture(scope="module")
def app(run_for_module):
    """The Flask app in one process, the same for all tests here; its address."""
    return run_for_module(FLASK / "app.py", "--port", 0).wait_for(r"Listening on (http://\S+)")[1]


@pytest.fixture
def workers(run):
    """The Flask app under gunicorn, with the two workers that its settings say; the program and its address."""
    arguments = ["gunicorn", "-c", FLASK / "gunicorn.conf.py", "--chdir", FLASK, "-b", "127.0.0.1:0"]
    program = run("-m", *arguments, "app:create_app()")
    url = program.wait_for(r"Listening at: (http://\S+)")[1] + "/"
    wait_until(lambda: len(re.findall("Booting worker", program.output)) == 2)
    yield program, url
    # The master is killed after the test, if it has not ended; the workers would stay for a while.
    program.process.terminate()
    program.process.wait(PATIENCE)


# -- Flask in one process ----------------------------------------------------------------------------------------


def test_pages_need_a_login(app):
    assert "Log in" in User(app).fetch()
    ann = User(app, "Ann <3")
    assert 'You are <b id="user">Ann &lt;3</b>' in ann.fetch()
    assert "Log in" in ann.fetch("logout", {})


def test_those_who_are_there_see_each_other(app):
    with User(app, "Ann").live() as ann:
        news(ann, lambda told: names(told) == ["Ann"])
        with User(app, "Bob").live() as bob:
            news(ann, lambda told: names(told) == ["Ann", "Bob"])
            bob.send("wave")
            assert news(ann, lambda told: told["people"][-1] == {"name": "Bob", "waves": 1})
        news(ann, lambda told: names(told) == ["Ann"])
        first = news(ann, lambda told: True)["seconds"]
        news(ann, lambda told: told["seconds"] > first + 1)  # by the clock of the loop


def forged(app):
    """A session as Flask signs it, but with a key of somebody else's."""
    other = flask.Flask("other")
    other.secret_key = "guessed"
    return "session=" + SecureCookieSessionInterface().get_signing_serializer(other).dumps({"user": "Ann"})


@pytest.mark.parametrize("cookie", [lambda app: "a=b", lambda app: "session=nonsense", forged])
def test_the_handshake_wants_the_session(app, cookie):
    with pytest.raises(gowsev.DialError) as refused:
        User(app).live(cookie(app))
    assert refused.value.status == 401


def test_a_session_without_a_user_is_no_login(app):
    ann = User(app, "Ann")
    ann.fetch("logout", {})
    with pytest.raises(gowsev.DialError) as refused:
        ann.live("session=")
    assert refused.value.status == 401


def test_logging_out_ends_the_connections_of_that_user(app):
    ann, bob = User(app, "Ann"), User(app, "Bob")
    with ann.live() as one, ann.live() as two, bob.live() as other:
        ann.fetch("logout", {})
        for client in one, two:
            assert client.wait_closed().code == 4401
        news(other, lambda told: names(told) == ["Bob"])


def test_an_unknown_command_is_refused(app):
    with User(app, "Ann").live() as ann:
        ann.send("dance")
        assert ann.wait_closed().code == 1008


@needs_chromium
def test_the_live_page_in_a_browser(app, chromium):
    with chromium.profile() as browser:
        page = browser.open(app)
        page.wait_for_text("h1", "Come in")
        page.fill("#name", "Ann")
        page.click("button")
        page.wait_for_text("#state", "live")
        page.wait_for_text("#people", "Ann\n0 waves")
        with User(app, "<b>Bob</b>").live() as bob:
            bob.send("wave")
            page.wait_for_text("#people", "<b>Bob</b>\n1 wave\nAnn\n0 waves")
            page.click("#wave")
            news(bob, lambda told: {"name": "Ann", "waves": 1} in told["people"])
        page.wait_for_text("#people", "Ann\n1 wave")
        other = browser.open(app)  # a second tab, with the same cookies
        other.wait_for_text("#state", "live")
        page.click(".quiet")
        page.wait_for_text("h1", "Come in")
        other.wait_for_text("h1", "Come in")


# -- Flask under gunicorn ----------------------------------------------------------------------------------------


def test_two_workers_share_sessions_and_no_state(workers):
    program, url = workers
    of_worker = {}
    clients = []
    for number in range(200):  # the kernel deals them out as it likes
        user = f"user {number}"
        client = User(url, user).live()
        clients.append(client)
        told = news(client, lambda told, user=user: user in names(told))
        of_worker.setdefault(told["worker"], set()).add(user)
        if len(of_worker) == 2:
            break
    assert len(of_worker) == 2
    assert str(told["worker"]) in program.output, "the process that gunicorn tells of"
    assert set(names(told)) == of_worker[told["worker"]], "those of the other worker"
    # A graceful end closes them all.
    program.process.terminate()
    for client in clients:
        assert client.wait_closed().code == 1001
    assert program.process.wait(PATIENCE) == 0


@needs_chromium
def test_the_live_page_tells_its_worker(workers, chromium):
    program, url = workers
    with chromium.profile() as browser:
        page = browser.open(url)
        page.wait_for_text("h1", "Come in")
        page.fill("#name", "Ann")
        page.click("button")
        page.wait_for_text("#people", "Ann\n0 waves")
        pids = set(re.findall(r"Booting worker with pid: (\d+)", program.output))
        assert {page.text("#worker"), page.text("#page-worker")} <= pids


# -- Django ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(run_for_module):
    """The Django project, the same for all tests here; its address."""
    program = run_for_module(EXAMPLES / "django_live" / "site_live.py", "--port", 0)
    return program.wait_for(r"Listening on (http://\S+)")[1]


@pytest.fixture
def visits(site):
    """How many visits the site has had so far."""
    with User(site).live() as client:
        return int(client.receive())


def test_a_view_of_django_writes_to_everybody(site, visits):
    visitor = User(site)
    visitor.fetch()
    with visitor.live() as one, visitor.live() as two:
        assert one.receive() == two.receive() == str(visits + 1)
        visitor.fetch()
        assert one.receive() == two.receive() == str(visits + 2)
    # Those that have left are forgotten.
    with visitor.live() as third:
        assert third.receive() == str(visits + 2)
        visitor.fetch()
        assert third.receive() == str(visits + 3)


def test_a_plain_request_for_the_path_of_the_websockets_is_told(site):
    with answered(426):
        User(site).fetch("live")


def test_another_origin_is_refused(site):
    with pytest.raises(gowsev.DialError) as refused:
        Client(site.replace("http", "ws") + "live", origin="http://elsewhere.example")
    assert refused.value.status == 403


@needs_chromium
def test_the_page_of_django_in_a_browser(site, visits, chromium):
    with chromium.profile() as browser:
        first = browser.open(site)
        first.wait_for_text("#visits", str(visits + 1))
        browser.open(site).wait_for_text("#visits", str(visits + 2))
        first.wait_for_text("#visits", str(visits + 2))


# -- their end ---------------------------------------------------------------------------------------------------

ENDS = """
import atexit, gowsev, {module} as program
ended = []
handler = program.{handler}
before = handler.ConnClosed
def note(self, context, id):
    before(self, context, id)
    ended.append(context.MustConn(id).close_code)
handler.ConnClosed = note
atexit.register(lambda: print("ended", ended, flush=True))
program.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("script", "handler"), [("flask_live/app.py", "Live"), ("django_live/site_live.py", "Live")])
def test_a_signal_closes_every_connection_and_calls_every_conn_closed(run, tmp_path, script, handler, number):
    path = EXAMPLES / script
    (tmp_path / "run.py").write_text(ENDS.format(module=path.stem, handler=handler))
    program = run("run.py", "--port", 0, PYTHONPATH=str(path.parent))
    url = program.wait_for(r"Listening on (http://\S+)")[1]
    user = User(url, "Ann" if "flask" in script else None)
    user.fetch()
    with user.live() as one, user.live() as two:
        one.receive(), two.receive()
        program.process.send_signal(number)
        assert one.wait_closed().code == two.wait_closed().code == 1001
        assert program.wait() == 0
    assert "ended [1001, 1001]" in program.output
    assert "Traceback" not in program.output


# -- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [path for path in EXAMPLES.iterdir() if path.is_dir()], ids=lambda path: path.name)
def test_each_example_has_its_readme_and_a_line_in_ours(folder):
    assert (folder / "README.md").is_file()  # whose commands test_documents.py looks at
    assert f"examples/{folder.name}" in (EXAMPLES.parent / "README.md").read_text("utf-8")

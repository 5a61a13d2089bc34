"""The example `examples/notifications`: gunicorn with four workers, a real Redis, and headless Chromium."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from pathlib import Path

import pytest
from browser import needs_chromium
from conftest import PATIENCE, answered, in_thread, wait_until
from redis_server import needs_redis
from test_gunicorn import NO_CONTROL_SOCKET
from test_live_examples import User

import gowsev
from gowsev.channels import Remote

pytestmark = needs_redis

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "notifications"


class Network:
    """What stands between the browser and the server: passes bytes on, until it is cut."""

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = set()
        self._is_cut = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):  # the listener is shut
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._pass, args=(source, sink)))
                    self._threads[-1].start()

    def _pass(self, source, sink):
        with contextlib.suppress(OSError):  # either end has gone
            while data := source.recv(65536):
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):  # the other direction was first
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """End all connections, and let none come about."""
        self._is_cut = True
        for sock in tuple(self._open):
            with contextlib.suppress(OSError):  # it has ended
                sock.shutdown(socket.SHUT_RDWR)

    def mend(self):
        self._is_cut = False

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE)
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE)
        for sock in (self._listener, *self._open):
            sock.close()


class Site:
    """The example as it is run, with a database and a Redis of its own."""

    def __init__(self, run, folder, redis_server):
        self.environ = {
            "REDIS_URL": redis_server.url,
            "NOTIFICATIONS_DB": str(folder / "notifications.db"),
            "PYTHONWARNINGS": "ignore",
        }
        self._run = run
        assert self.script("store.py").wait() == 0
        arguments = ["gunicorn", "-c", EXAMPLE / "gunicorn.conf.py", "--chdir", EXAMPLE, "-b", "127.0.0.1:0"]
        self.program = run("-m", *arguments, *NO_CONTROL_SOCKET, "app:create_app()", **self.environ)
        self.port = int(self.program.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
        self.url = f"http://127.0.0.1:{self.port}/"
        self.wait_for_workers(4)

    def script(self, name, *arguments):
        return self._run(EXAMPLE / name, *arguments, **self.environ)

    def wait_for_workers(self, number):
        """Wait until so many have begun, the first ones included."""
        wait_until(lambda: self.program.output.count("Booting worker") >= number, PATIENCE * 2)

    def reload(self):
        """Let gunicorn replace all workers."""
        begun = self.program.output.count("Booting worker")
        self.program.process.send_signal(signal.SIGHUP)
        self.wait_for_workers(begun + 4)

    def end(self):
        self.program.process.terminate()
        self.program.process.wait(PATIENCE)


class Member(User):
    """Somebody who is logged in."""

    def __init__(self, site, name):
        super().__init__(site.url)
        self.fetch("login", {"name": name, "password": "secret"})

    def notify(self, channel, text):
        """Notify somebody; return whether it was told at once."""
        return json.loads(self.fetch("notices", {"channel": channel, "text": text}))["told"]

    def join(self, positions=None):
        """Open a WebSocket, and say what is there."""
        client = self.live()
        client.send(json.dumps(positions or {}))
        return client


@contextlib.contextmanager
def running_site(run, folder, redis_server):
    opened = Site(run, folder, redis_server)
    yield opened
    opened.end()


@pytest.fixture(scope="module")
def site(run_for_module, tmp_path_factory, redis_for_module):
    """What several tests share, since four workers take a core four seconds to begin and to end."""
    with running_site(run_for_module, tmp_path_factory.mktemp("site"), redis_for_module) as opened:
        yield opened


@pytest.fixture
def new_site(run, tmp_path, redis_server):
    """One of which nobody has read anything."""
    with running_site(run, tmp_path, redis_server) as opened:
        yield opened


@pytest.fixture
def network(new_site):
    opened = Network(new_site.port)
    yield opened
    opened.close()


def told(client, wanted):
    """Receive until there is something for which `wanted` is true; return it."""
    while not wanted(message := json.loads(client.receive())):
        pass
    return message


def joined(client, channel):
    return told(client, lambda message: "joined" in message and message["channel"] == channel)


# -- without a browser -------------------------------------------------------------------------------------------------


def test_who_may_read_what(site):
    ann, bob = Member(site, "ann"), Member(site, "bob")
    with pytest.raises(gowsev.DialError) as refused:
        User(site.url).live()
    assert refused.value.status == 401
    # Bob asks for all there is, and gets what is his.
    with bob.join({"user:1": None, "user:2": None, "room:1": None, "room:2": None}) as client:
        channels = {told(client, lambda message: "joined" in message)["channel"] for _ in range(2)}
        assert channels == {"user:2", "room:1"}
        assert ann.notify("user:1", "for ann")
        assert ann.notify("room:2", "in the cellar")
        assert ann.notify("user:2", "for bob")
        assert told(client, lambda message: "notice" in message)["notice"]["text"] == "for bob"
    for path, form in (
        ("notices/room:2", None),
        ("notices", {"channel": "room:2", "text": "x"}),
        ("login", {"name": "ann", "password": "guessed"}),
    ):
        with answered(403):
            bob.fetch(path, form)
    assert [notice["text"] for notice in json.loads(ann.fetch("notices/room:2"))] == ["in the cellar"]


def test_a_logout_ends_the_connections_of_that_login_on_all_workers(site):
    ann, again = Member(site, "ann"), Member(site, "ann")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ann.join()) for _ in range(8)]
        other = stack.enter_context(again.join())
        for client in (*clients, other):
            position = joined(client, "user:1")["position"]
        ann.fetch("logout", {})
        for client in clients:
            assert client.wait_closed().code == 4401
        again.notify("user:1", "still there")
        assert told(other, lambda message: "notice" in message)["notice"]["text"] == "still there"
        # Who comes back with a position from before is not closed by the old logout.
        with again.join({"user:1": position}) as late:
            assert told(late, lambda message: "notice" in message)["notice"]["text"] == "still there"
            assert joined(late, "user:1")["recovered"]


def test_what_cannot_be_told_is_told_later(site, redis_for_module):
    ann = Member(site, "ann")
    with ann.join() as client:
        begin = joined(client, "user:1")["position"]
        redis_for_module.kill()
        task = site.script("task.py", "user:1", "while Redis was away")
        assert task.wait() == 0
        assert task.output == "stored; the app will tell it\n"
        wait_until(lambda: "notices wait to be told" in site.program.output)
        redis_for_module.start()
        told(client, lambda message: message.get("notice", {}).get("text") == "while Redis was away")
        task = site.script("task.py", "user:1", "the end")
        assert task.wait() == 0
        last = told(client, lambda message: message.get("notice", {}).get("text") == "the end")
        assert last["position"] == task.output.strip()
    with Remote(redis_for_module.url) as remote:  # whichever worker told it, that was once
        assert len(remote.History("user:1", begin)) == 2


# -- in a browser ------------------------------------------------------------------------------------------------------

#: Notes what comes over every WebSocket of a page, below the page's own care that nothing is shown twice.
TAP = """
window.frames_ = [];
const Plain = WebSocket;
window.WebSocket = class extends Plain {
  constructor(...words) {
    super(...words);
    this.addEventListener("message", (event) => window.frames_.push(JSON.parse(event.data)));
  }
};
"""


class Tab:
    """A tab of the example, of somebody who has logged in."""

    def __init__(self, browser, url, name):
        self.page = browser.open("about:blank#")
        self.page.call("Page.addScriptToEvaluateOnNewDocument", source=TAP)
        self.page.go(url)
        if self.page.look("document.querySelector('#password') !== null"):
            self.page.fill("#name", name)
            self.page.fill("#password", "secret")
            self.page.click("button")
        self.wait_until_live()
        assert self.page.text("#user") == name

    def set_offline(self, offline):
        self.page.call("Network.enable")
        self.page.call(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def wait_until_live(self):
        self.page.wait_for_text("#state", "live")

    @property
    def worker(self):
        return int(self.page.text("#worker"))

    def shown(self, channel):
        """What the page shows in a channel."""
        return self.page.texts(f"[data-channel='{channel}'] li")

    def came(self, channel):
        """What came over its WebSockets in a channel."""
        asked = f"frames_.filter((told) => told.notice && told.channel === {channel!r}).map((told) => told.notice.text)"
        return self.page.look(asked)

    def wait_for(self, channel, texts):
        """Wait until all of these came, and look whether they did so once, in order."""
        wait_until(lambda: len(self.shown(channel)) >= len(texts), PATIENCE * 2)
        assert self.came(channel) == texts
        assert texts_of(self.shown(channel)) == texts


def texts_of(lines):
    return [line.partition(": ")[2] for line in lines]


def on_several_workers(tabs):
    """Let tabs connect anew until there are at least two workers that serve them."""

    def spread():
        if len({tab.worker for tab in tabs}) > 1:
            return True
        tabs[-1].page.look("socket.close()")
        wait_until(lambda: tabs[-1].page.text("#state") != "live" or len({tab.worker for tab in tabs}) > 1)
        tabs[-1].wait_until_live()
        return False

    wait_until(spread, PATIENCE * 4)


@pytest.mark.long
@needs_chromium
def test_nothing_is_missing_and_nothing_comes_twice(new_site, network, redis_server, chromium):
    url = f"http://127.0.0.1:{network.port}/"
    sender = Member(new_site, "bob")
    expected = {"user:1": [], "room:1": []}

    def publish(number):
        """A view publishes to a user and to a room, and a task does."""
        for channel, texts in expected.items():
            for _ in range(number):
                texts.append(f"notice {len(texts)} {channel}")
                assert sender.notify(channel, texts[-1])
        expected["user:1"].append(f"task {len(expected['user:1'])}")
        assert new_site.script("task.py", "user:1", expected["user:1"][-1]).wait() == 0

    with chromium.profile() as first, chromium.profile() as second:
        ann, also_ann, bob = tabs = [Tab(first, url, "ann"), Tab(first, url, "ann"), Tab(second, url, "bob")]
        on_several_workers(tabs)

        def all_have_it():
            for tab in tabs:
                tab.wait_until_live()
                tab.wait_for("room:1", expected["room:1"])
            for tab in (ann, also_ann):
                tab.wait_for("user:1", expected["user:1"])

        publish(3)
        all_have_it()
        wait_until(lambda: ann.page.text("[data-channel='room:1'] .members") == "ann, bob")
        # gunicorn replaces its workers, in the middle of it.
        before = {tab.worker for tab in tabs}
        publishing = threading.Thread(target=publish, args=(10,))
        publishing.start()
        new_site.reload()
        in_thread(publishing.join)
        wait_until(lambda: not before & {tab.worker for tab in tabs}, PATIENCE * 2)
        all_have_it()
        # No network for a while; one of the browsers notices by itself.
        ann.set_offline(True)
        network.cut()
        for tab in tabs:
            wait_until(lambda tab=tab: tab.page.text("#state") == "coming back")
        publish(5)
        network.mend()
        for tab in tabs[1:]:
            tab.wait_until_live()
        assert ann.page.text("#state") == "coming back"
        ann.set_offline(False)
        all_have_it()
        assert len(ann.page.texts("[data-channel='user:1'] .missed")) >= 6
        # Redis is killed and comes back.
        redis_server.kill()
        expected["room:1"].append("while Redis was away")
        telling = threading.Thread(target=sender.notify, args=("room:1", expected["room:1"][-1]))
        telling.start()
        redis_server.start()
        in_thread(telling.join)
        all_have_it()
        publish(2)
        all_have_it()
        # The data of Redis are lost: a page loads what it shows from the database.
        network.cut()
        publish(1)
        redis_server.cli("flushall")
        network.mend()
        for tab in tabs:
            tab.wait_until_live()
            wait_until(lambda tab=tab: len(tab.shown("room:1")) == len(expected["room:1"]), PATIENCE * 2)
            assert texts_of(tab.shown("room:1")) == expected["room:1"]
        for tab in (ann, also_ann):
            wait_until(lambda tab=tab: len(tab.shown("user:1")) == len(expected["user:1"]), PATIENCE * 2)
            assert texts_of(tab.shown("user:1")) == expected["user:1"]
        wait_until(lambda: ann.page.text("[data-channel='room:1'] .members") == "ann, bob")
        bob.page.look("clearTimeout(watchdog), socket.onclose = null, socket.close()")
        wait_until(lambda: ann.page.text("[data-channel='room:1'] .members") == "ann")
        # A logout ends both of ann's tabs, wherever they are.
        ann.page.look("document.querySelector('.quiet').scrollIntoView()")
        ann.page.click(".quiet")
        for tab in (ann, also_ann):
            tab.page.wait_for_text("h1", "Log in")

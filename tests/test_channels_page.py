"""The programs of the pages on channels run: docs/channels.md, channels-format.md and moving-from-flask-socketio.md."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest
from conftest import PATIENCE, wait_until
from programs import snippets, websockets_client
from redis_server import needs_redis
from test_gunicorn import NO_CONTROL_SOCKET, RUN
from test_howto import Visitor
from test_readme import receive
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gowsev.channels import Remote

ADDRESS = "redis://localhost:6379/0"


@snippets("docs/channels.md", "rooms.py")
def test_rooms_in_one_process(page):
    url = f"ws://127.0.0.1:{page.serve('rooms.py')}/"
    with websockets_client(url) as ann, websockets_client(url) as bob:
        for client in (ann, bob):
            client.send("news")
            assert client.recv(timeout=PATIENCE) == "in news"
        ann.send("news:hello: all")
        assert [client.recv(timeout=PATIENCE) for client in (ann, bob)] == ["hello: all"] * 2


def under_gunicorn(page, *arguments, **environ):
    """Start gunicorn with four workers; return its port."""
    (page.folder / "run.py").write_text(RUN)
    program = page.run("run.py", *arguments, *NO_CONTROL_SOCKET, PYTHONPATH=".", PYTHONWARNINGS="ignore", **environ)
    port = int(program.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
    wait_until(lambda: len(re.findall("Booting worker", program.output)) >= 4)
    return port


def end(page):
    """Let gunicorn end, which its workers would outlive for a while if it was killed."""
    page.programs[0].process.terminate()
    assert page.programs[0].wait() == 0, page.programs[0].output


class Person(Visitor):
    """Somebody who is logged in to the app of the page."""

    def __init__(self, port, user):
        super().__init__(port)
        self.open("/login", user=user)

    def come(self, stack, position=""):
        """Open a WebSocket; return it, and what came before the answer to the subscription, and that."""
        client = stack.enter_context(self.dial())
        client.send(position)
        came = []
        while "recovered" not in (message := json.loads(receive(client))):
            came.append(message["text"])
        return client, came, message


@pytest.mark.long
@needs_redis
@snippets("docs/channels.md", "app.py", "gunicorn.conf.py", "task.py")
def test_the_app_under_gunicorn(page, redis_server):
    page.write("app.py", replace=[(ADDRESS, redis_server.url)])
    page.write("gunicorn.conf.py", replace=[("127.0.0.1:8000", "127.0.0.1:0")])
    port = under_gunicorn(page, "app:app")
    with pytest.raises(InvalidStatus, match="401"):
        Visitor(port).dial()
    ann, bob = Person(port, "ann"), Person(port, "bob")
    with ExitStack() as stack:
        tabs = [ann.come(stack)[0] for _ in range(4)]
        other, _, _ = bob.come(stack)
        assert ann.open("/notify", user="ann", text="hello") == "published\n"
        for tab in tabs:
            message = json.loads(receive(tab))
            assert message["text"] == "hello"
            tab.close()
        for _ in range(2):  # a task that is run again
            task = page.start("task.py", replace=[(ADDRESS, redis_server.url)])
            assert task.wait() == 0, task.output
        ann.open("/notify", user="bob", text="for bob")
        assert json.loads(receive(other))["text"] == "for bob"
        for _ in range(3):  # whichever worker it meets
            _, came, answer = ann.come(stack, message["position"])
            assert came == ["the report is ready"]
            assert answer["recovered"]
        last, came, answer = ann.come(stack, "nonsense")
        assert (came, answer["recovered"]) == ([], False)
        end(page)
        for client in (last, other):
            with pytest.raises(ConnectionClosed, match="1001"):
                receive(client)


@needs_redis
@snippets("docs/channels-format.md")
def test_publishing_by_the_format_alone(page, redis_server, redis_nodes):
    node = redis_nodes()
    id = node.join()
    program = page.start("elsewhere.py", replace=[(ADDRESS, redis_server.url)])
    node.wait_for(id, "message 1", "message 2")
    assert program.wait() == 0
    assert [publication.position for publication in node.delivered[id]] == program.output.split()
    with Remote(redis_server.url) as remote:
        assert [publication.position for publication in remote.History("news")] == program.output.split()


@pytest.mark.long
@needs_redis
@snippets("docs/moving-from-flask-socketio.md", "after.py")
def test_the_chat_that_has_moved(page, redis_server):
    page.write("after.py")
    worker = ("-k", "gowsev.gunicorn.Worker", "-w", 4, "-b", "127.0.0.1:0", "--graceful-timeout", 10)
    port = under_gunicorn(page, *worker, "after:app", REDIS_URL=redis_server.url)
    visitor = Visitor(port)
    with visitor.dial("/chat") as ann, visitor.dial("/chat") as bob:
        for client in (ann, bob):
            client.send(json.dumps(["join", "lobby", None]))
            assert json.loads(receive(client))[:2] == ["joined", "room:lobby"]
        ann.send(json.dumps(["say", "lobby", "hello"]))
        for client in (ann, bob):
            what, channel, position, text = json.loads(receive(client))
            assert (what, channel, text) == ("said", "room:lobby", "hello")
        assert visitor.open("/announce", text="tea is ready") == "announced\n"
        for client in (ann, bob):
            assert json.loads(receive(client))[3] == "tea is ready"
    with visitor.dial("/chat") as back:
        back.send(json.dumps(["join", "lobby", position]))
        assert json.loads(receive(back))[3] == "tea is ready"
        assert json.loads(receive(back))[3] is True
    end(page)


@snippets("docs/security.md", "members_only.py")
def test_members_only(page):
    judged = "        if self.users[id] not in"
    expels = '        if room == "expel":\n            return self.expel(message, "kitchen")\n' + judged
    url = f"ws://127.0.0.1:{page.serve('members_only.py', replace=[(judged, expels)])}/"
    with pytest.raises(InvalidStatus, match="401"):
        websockets_client(url)
    as_ann, as_bob = ({"Authorization": f"Bearer {token}"} for token in ("sesame", "abracadabra"))
    for text in ("cellar", "cellar:hello"):
        with websockets_client(url, additional_headers=as_bob) as bob:
            bob.send(text)
            with pytest.raises(ConnectionClosed, match="4403"):
                bob.recv(timeout=PATIENCE)
    with (
        websockets_client(url, additional_headers=as_ann) as ann,
        websockets_client(url, additional_headers=as_bob) as bob,
    ):
        for client in (ann, bob):
            client.send("kitchen")
            client.send("kitchen:hello")
            assert client.recv(timeout=PATIENCE) == "hello"
        assert ann.recv(timeout=PATIENCE) == "hello"  # bob's
        ann.send("expel:bob")
        ann.send("kitchen:between us")
        assert ann.recv(timeout=PATIENCE) == "between us"
        bob.send("kitchen:hello?")
        with pytest.raises(ConnectionClosed, match="4403"):
            bob.recv(timeout=PATIENCE)

"""The pages `docs/moving-from-*.md`: their programs run, before, after and between, and do the same."""

import asyncio
import urllib.request

import chat_load
import pytest
from conftest import PATIENCE, in_real_thread, in_thread
from programs import snippets

PAGE = "docs/moving-from-gevent-websocket.md"


def chat_works(page, gowsev_client, name, replace=()):
    address = f"127.0.0.1:{page.serve(name, replace=replace)}"
    ann = gowsev_client(f"ws://{address}/chat")
    ann.send("ann is here")
    assert ann.receive() == "ann is here"
    bob = gowsev_client(f"ws://{address}/chat")
    bob.send("bob is here")
    assert ann.receive() == bob.receive() == "bob is here"
    ann.send(b"\x00binary")
    assert ann.receive() == bob.receive() == b"\x00binary"
    bob.close()
    ann.send("alone")
    assert ann.receive() == "alone"
    shown = in_thread(lambda: urllib.request.urlopen(f"http://{address}/", timeout=30).read())
    assert shown == b"a page\n"


@snippets(PAGE, "before.py", "after.py")
def test_the_chat_is_the_same_before_and_after(page, gowsev_client):
    for name in page.names:
        chat_works(page, gowsev_client, name)


@snippets("docs/moving-from-flask-sock.md", "before.py", "after.py")
def test_the_chat_of_flask_sock_is_the_same_before_and_after(page, gowsev_client):
    pytest.importorskip("flask_sock")
    chat_works(page, gowsev_client, "before.py", replace=[("8000", "0")])
    chat_works(page, gowsev_client, "after.py")


@snippets("docs/moving-from-flask-socketio.md", "before.py")
def test_the_chat_of_flask_socketio_runs_before_it_moves(page):
    # What it has become is tried, over four workers, in `test_channels_page.py`.
    pytest.importorskip("flask_socketio")
    port = page.serve("before.py")

    async def converse():
        ann, bob = chat_load.SocketIO(), chat_load.SocketIO()
        for client in (ann, bob):
            await client.open(port)
            await client.emit("join", "lobby")
            assert await client.hear() == "lobby"
        await ann.emit("say", "lobby", "hello")
        said = {"room": "lobby", "text": "hello"}
        assert [await ann.hear(), await bob.hear()] == [said, said]
        await ann.close()
        await bob.close()

    in_real_thread(lambda: asyncio.run(asyncio.wait_for(converse(), PATIENCE)))


@snippets(PAGE, "halfway.py")
def test_a_connection_moves_in_the_middle(page, gowsev_client):
    address = f"127.0.0.1:{page.serve('halfway.py')}"
    old, new = gowsev_client(f"ws://{address}/"), gowsev_client(f"ws://{address}/")
    old.send("old")
    old.send("hello")
    assert old.receive() == "the old way: hello"
    new.send("new")
    new.send("straight behind")
    assert new.receive() == "STRAIGHT BEHIND"
    new.close()
    assert new.wait_closed().code == 1000

"""`docs/moving-from-gevent-websocket.md`: its programs run, before, after and between, and do the same."""

import re
import urllib.request
from pathlib import Path

import pytest
from conftest import in_thread

PAGE = (Path(__file__).parent.parent / "docs" / "moving-from-gevent-websocket.md").read_text("utf-8")
PROGRAMS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def start(tmp_path, run):
    """Start a program of the page; return where it listens, without the scheme."""

    def start(name):
        script = tmp_path / name
        assert '("127.0.0.1", 8000)' in PROGRAMS[name]
        script.write_text(PROGRAMS[name].replace('("127.0.0.1", 8000)', '("127.0.0.1", 0)'), "utf-8")
        return f"127.0.0.1:{run(script).wait_for(r'listening on port ([0-9]+)$')[1]}"

    return start


@pytest.mark.parametrize("name", ["before.py", "after.py"])
def test_the_chat_is_the_same_before_and_after(start, gowsev_client, name):
    address = start(name)
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
    page = in_thread(lambda: urllib.request.urlopen(f"http://{address}/", timeout=30).read())
    assert page == b"a page\n"


def test_a_connection_moves_in_the_middle(start, gowsev_client):
    address = start("halfway.py")
    old, new = gowsev_client(f"ws://{address}/"), gowsev_client(f"ws://{address}/")
    old.send("old")
    old.send("hello")
    assert old.receive() == "the old way: hello"
    new.send("new")
    new.send("straight behind")
    assert new.receive() == "STRAIGHT BEHIND"
    new.close()
    assert new.wait_closed().code == 1000


def test_every_program_of_the_page_is_run():
    assert set(PROGRAMS) == {"before.py", "after.py", "halfway.py"}
    assert PAGE.count("```python\n") == 3

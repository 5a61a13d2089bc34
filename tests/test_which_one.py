"""`docs/which-one.md`: the chats of `docs/chats/` have as many lines as it says, and those that can run do the same."""

import asyncio
import importlib.util
import re

import chat_load
import pytest
from conftest import PATIENCE, in_real_thread
from programs import ROOT, read
from test_readme import code, rows

FOLDER = ROOT / "docs" / "chats"
CHATS = sorted(path.name for path in FOLDER.glob("chat_*.py") if path.name != "chat_load.py")

#: What a chat needs that may not be here.
NEEDS = {
    "chat_channels.py": ("channels", "uvicorn"),
    "chat_flask_sock.py": ("flask_sock",),
    "chat_flask_socketio.py": ("flask_socketio",),
}


def test_lines_are_counted():
    listed = {
        code(name): int(lines)
        for name, lines, _ in rows(read("docs/which-one.md"), "chat", "lines", "microseconds a delivery")
    }
    counted = {
        name: len(re.findall(r"^\s*[^\s#].*$", (FOLDER / name).read_text("utf-8"), re.MULTILINE)) for name in CHATS
    }
    assert listed == counted


async def converse(name, port):
    ann, bob = chat_load.client(name), chat_load.client(name)
    await ann.open(port)
    assert await ann.hear() == "1 here"
    await bob.open(port)
    assert [await ann.hear(), await bob.hear()] == ["2 here", "2 here"]
    await bob.say("hello")
    assert [await ann.hear(), await bob.hear()] == ["hello", "hello"]
    await bob.close()
    assert await ann.hear() == "1 here"
    await ann.close()


@pytest.mark.parametrize("name", CHATS)
def test_the_chats_do_the_same(name, run, tmp_path):
    missing = [module for module in NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}, which the extra `test` does not bring")
    program = run(chat_load.program(name, tmp_path))
    port = int(program.wait_for(r"^listening on port (\d+)$")[1])
    in_real_thread(lambda: asyncio.run(asyncio.wait_for(converse(name, port), PATIENCE)))

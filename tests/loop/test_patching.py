"""Monkey-patched, not, before or after the import, and by halves."""

import subprocess
import sys

import pytest
from conftest import PATIENCE

#: Runs a whole conversation, over plain sockets of the standard library in whatever state they are.
CONVERSATION = """
import logging, sys
first, then = sys.argv[1:3]
exec(first)
import gowsev
exec(then)

class Echo(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, message)

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
context = gowsev.MakeContext(Echo())
host, port = context.ListenAndServe("127.0.0.1:0")
import gevent, threading, queue
loop = gevent.spawn(context.EventLoop)
with gowsev.Dial(f"ws://{host}:{port}/") as conn:
    conn.WriteMessage(gowsev.BinaryMessage, b"hello")
    print(conn.ReadMessage())
done = queue.Queue()
thread = threading.Thread(target=context.Post, args=(lambda context: done.put("posted"),))
thread.start()
while done.empty():
    gevent.sleep(0.01)
print(done.get())
gowsev.MakeContext(Echo())  # a second word is not said
context.Shutdown()
loop.join()
print("ended")
"""

ALL = "from gevent import monkey; monkey.patch_all()"


def run(*arguments):
    command = [sys.executable, "-W", "ignore", "-c", CONVERSATION, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(("first", "then"), [("", ""), (ALL, ""), ("", ALL)], ids=["never", "before", "after"])
def test_a_program_runs_patched_and_not(first, then):
    assert run(first, then) == ["(2, b'hello')", "posted", "ended"]


@pytest.mark.parametrize(
    ("patch", "missing"),
    [
        ("from gevent import monkey; monkey.patch_socket()", "ssl, select, threading, time"),
        ("from gevent import monkey; monkey.patch_all(ssl=False)", "ssl"),
        ("from gevent import monkey; monkey.patch_all(thread=False)", "threading"),
    ],
)
def test_a_half_patched_process_is_warned_once(patch, missing):
    warning, *rest = run(patch, "")
    assert warning == (
        f"WARNING gevent has patched some modules of this process, but not {missing}: calls in them stop every "
        "connection while they wait; call gevent.monkey.patch_all() before anything else"
    )
    assert rest == ["(2, b'hello')", "posted", "ended"]


def test_the_warning_in_this_process(monkeypatch, caplog):
    from gevent import monkey

    from gowsev.loop import patching

    patched = {"socket"}
    monkeypatch.setattr(patching, "_warned", False)
    monkeypatch.setattr(monkey, "is_module_patched", lambda name: name in patched)
    for _ in range(2):
        patching.warn_if_half_patched()
    assert len(caplog.records) == 1
    monkeypatch.setattr(patching, "_warned", False)
    patched.update(patching._WAITING)
    patching.warn_if_half_patched()
    patched.clear()
    patching.warn_if_half_patched()
    assert len(caplog.records) == 1
    caplog.clear()

"""`Remote` where it is used: threads, greenlets, children, an asyncio program, and a task of Celery's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from conftest import PATIENCE, wait_until
from redis_server import needs_redis

from gowsev.channels import Remote

pytestmark = needs_redis

SCRIPT = Path(__file__).with_name("publish_from.py")
NUMBER = 5


def published(redis_server, channel="news"):
    with Remote(redis_server.url) as remote:
        return [publication.message for publication in remote.History(channel)]


@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("threads", [f"thread {number}" for number in range(4)]),
        ("patched", [f"thread {number}" for number in range(4)]),
        ("asyncio", [f"task {number}" for number in range(4)]),
        ("fork", ["parent", "parent again", "child 0", "child 1"]),
        ("spawn", ["parent", "parent again", "child 0", "child 1"]),
    ],
)
def test_all_is_published_once_and_in_order(run, redis_server, way, names):
    program = run(SCRIPT, redis_server.url, way)
    assert program.wait() == 0, program.output
    assert program.output == ""
    messages = published(redis_server)
    assert len(messages) == NUMBER * len(names)
    for name in names:
        mine = [message for message in messages if message.rpartition(" ")[0] == name]
        assert mine == [f"{name} {number}" for number in range(NUMBER)]


TASKS = """
import os
from celery import Celery
from gowsev.channels import Remote

app = Celery("tasks", broker=os.environ["BROKER"])
app.conf.task_ignore_result = True
app.conf.task_acks_late = True  # once the worker has seen the end of a task
app.conf.broker_connection_retry_on_startup = True
remote = Remote(os.environ["REDIS_URL"])  # before the workers are forked; each has a connection of its own


@app.task
def notify(number):
    remote.Publish("news", f"{number} of {os.getpid()}", key=f"task {number}")
    remote.Publish("ran", str(number))
"""
SEND = """
import sys, tasks
for number in range(int(sys.argv[1])):
    tasks.notify.delay(number)
    tasks.notify.delay(number)  # a task that is run again
"""


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("celery") is None, reason="needs the package celery")
def test_a_task_of_celerys(run, tmp_path, redis_server):
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "send.py").write_text(SEND)
    environ = {
        "BROKER": redis_server.url.replace("/0", "/1"), "REDIS_URL": redis_server.url,
        "PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    worker = run(
        "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING",
        "--without-gossip", "--without-mingle", "--without-heartbeat", **environ,
    )  # fmt: skip
    sender = run("send.py", 10, **environ)
    assert sender.wait() == 0, sender.output

    def all_ran():
        # And the worker knows it: told to end before, it reads no result, for which its child waits for half a minute.
        return len(published(redis_server, "ran")) == 20 and redis_server.cli("hlen", "unacked", db=1) == "0"

    wait_until(lambda: worker.process.poll() is not None or all_ran(), PATIENCE * 2)
    assert worker.end() == 0, worker.output
    messages = published(redis_server)
    assert sorted(int(message.split()[0]) for message in messages) == list(range(10))
    assert str(worker.process.pid) not in {message.split()[2] for message in messages}, "in its children"
    assert "Traceback" not in worker.output

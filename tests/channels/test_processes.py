"""Channels in processes of their own: patched and unpatched, forked, frozen and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import wait_until
from redis_server import needs_redis

from gowsev import testing
from gowsev.channels import Remote

pytestmark = needs_redis

NODE = Path(__file__).with_name("channel_node.py")


class Client:
    def __init__(self, program):
        self.client = testing.Client(f"ws://127.0.0.1:{program.port()}/")

    def ask(self, *command):
        """Send a command, and return its answer; what is delivered before it is kept."""
        self.client.send(json.dumps(command))
        self.delivered = []
        while True:
            text = self.receive()
            if text.startswith("["):
                return json.loads(text)[1:]
            self.delivered.append(text)

    def receive(self):
        return self.client.receive()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.client.close()


@pytest.fixture
def processes(run, redis_server):
    return lambda *words: run(NODE, redis_server.url, *words)


@pytest.mark.parametrize("words", [(), ("patched",)])
def test_patched_and_unpatched(processes, words):
    one, two = processes(*words), processes()
    with Client(one) as ann, Client(two) as bob:
        ann.ask("subscribe", "news", None, None)
        bob.ask("subscribe", "news", None, None)
        for i in range(50):
            for client in (ann, bob):
                assert client.ask("publish", "news", str(i))[1] == "None"
    for program in (one, two):
        assert program.end() == 0
        assert program.output.count("\n") == 1, program.output


def test_back_on_another_process_when_the_first_has_died(processes, redis_nodes):
    one, two, here = processes(), processes(), redis_nodes()
    with Client(one) as ann:
        position, _ = ann.ask("subscribe", "news", None, None)
        one.process.kill()
        here.publish("missed")
    with Client(two) as ann:
        assert ann.ask("subscribe", "news", position, None)[1] == "True"
        assert ann.delivered == ["missed"]


def test_a_process_that_is_frozen_has_missed_nothing(processes, redis_nodes):
    one, here = processes(), redis_nodes()
    with Client(one) as ann:
        ann.ask("subscribe", "news", None, None)
        one.process.send_signal(signal.SIGSTOP)
        for i in range(300):
            here.publish(str(i))
        one.process.send_signal(signal.SIGCONT)
        assert [ann.receive() for _ in range(300)] == [str(i) for i in range(300)]


def peak(program):
    """The most memory that a process has had, in MiB."""
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.long
def test_memory_of_a_process_that_was_stopped(processes, redis_server):
    """Four times what a process may hold is published meanwhile; it gets what is kept, and a gap for the rest."""
    one = processes()
    with Client(one) as ann, Remote(redis_server.url) as remote:
        for number in range(100):
            ann.ask("subscribe", f"c{number}", None, None)
        before = peak(one)
        one.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            for number in range(100):
                remote.Publish(f"c{number}", "x" * (1 << 20))
        one.process.send_signal(signal.SIGCONT)
        delivered = [ann.receive() for _ in range(100)]
        while delivered.count("1048576 characters") < 100:
            delivered.append(ann.receive())
        # 16 MiB that are not delivered, eight histories of 1 MiB (as they are read and as messages), and as much again.
        assert peak(one) - before < 80


@pytest.mark.long
def test_members_of_a_process_that_dies_are_gone_within_30_s(processes, redis_nodes):
    one, here = processes(), redis_nodes()
    here.join(member="here")
    with Client(one) as ann:
        ann.ask("subscribe", "news", None, "ann")
        wait_until(lambda: here.members() == {"here": 1, "ann": 1})
        one.process.kill()
        killed = time.monotonic()
        wait_until(lambda: here.members() == {"here": 1}, 45)
        assert time.monotonic() - killed < 30


def test_members_are_there_again_when_redis_was_emptied(redis_nodes, redis_server):
    node = redis_nodes()
    node.join(member="ann")
    wait_until(lambda: node.members() == {"ann": 1})
    redis_server.cli("flushall")
    assert node.members() == {}
    wait_until(lambda: node.members() == {"ann": 1})


@pytest.mark.parametrize("words", [(), ("patched",)])
def test_a_child_of_a_process_whose_loop_runs_lets_go(processes, redis_nodes, words):
    one, here = processes(*words), redis_nodes()
    with Client(one) as ann:
        ann.ask("subscribe", "news", None, None)
        assert ann.ask("fork", "news") == ["0"]
        here.publish("after")
        assert ann.receive() == "after"
        assert ann.ask("publish", "other", "x")[1] == "None"
    assert one.end() == 0
    assert one.output.count("\n") == 1, one.output


@pytest.mark.parametrize("words", [("preload",), ("patched", "preload")])
def test_a_program_that_was_loaded_before_the_fork(processes, redis_nodes, words):
    one, here = processes(*words), redis_nodes()
    one.port()  # the master has published
    child = int(Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text())
    try:
        id = here.join()
        with Client(one) as ann:
            ann.ask("subscribe", "news", None, None)
            assert ann.ask("publish", "news", "from the child")[1] == "None"
            here.publish("from here")
            here.wait_for(id, "from the child", "from here")
    finally:
        os.kill(child, signal.SIGTERM)
    assert one.wait() == 0, one.output
    assert one.output.count("\n") == 1, one.output

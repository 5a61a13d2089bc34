"""The topics of `docs/`: their programs are run, and do what is said of them."""

import contextlib
import json
import time
import urllib.request

import pytest
from conftest import PATIENCE, answered, wait_until
from programs import snippets
from test_howto import receive_all
from test_readme import dial, receive
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus


@snippets("docs/single-threaded-loop.md", "clock.py")
def test_clock(page):
    with dial(page.serve("clock.py")) as client:
        first = int(receive(client).removeprefix("tick "))
        assert [receive(client) for _ in range(3)] == [f"tick {first + more}" for more in (1, 2, 3)]


@snippets("docs/backpressure.md", "levels.py")
def test_levels_of_a_slow_consumer(page):
    program = page.start("levels.py")
    # One that reads nothing, and one that reads all the time.
    with dial(program.port(), max_queue=1) as slow, dial(program.port()) as quick:
        wait_until(lambda: receive(quick) and "1 does not keep up" in program.output)
        numbers = []
        wait_until(lambda: numbers.append(json.loads(receive(slow))["number"]) or "1 is back" in program.output)
        back = int(program.wait_for(r"1 is back, at (\d+)")[1])
        while numbers[-1] < back:
            numbers.append(json.loads(receive(slow))["number"])
        assert numbers == sorted(set(numbers)), "in order, none twice"
        assert numbers[-1] == back
        assert len(numbers) < back, "and some were dropped"
        assert "2 does not" not in program.output
        # A client that has stopped reading would give up its closing handshake, and close a socket that its reader has
        # still registered; gevent's selector must not meet that (the process aborts).
        program.end()
        for client in (slow, quick):
            with pytest.raises(ConnectionClosed, match="1001"):
                receive_all(client, [])


@snippets("docs/broadcast.md", "rooms.py")
def test_rooms(page):
    port = page.serve("rooms.py")
    with dial(port, "/blue") as ann, dial(port, "/blue") as bob, dial(port, "/red") as eve:
        for client in (ann, bob, eve):
            assert client.ping().wait(PATIENCE)
        ann.send("hello")
        assert receive(bob) == "hello"
        bob.send("hello, Ann")
        assert receive(ann) == "hello, Ann"
        with pytest.raises(TimeoutError):
            eve.recv(timeout=0)


@snippets("docs/memory.md", "budget.py")
def test_budget(page):
    page.output_of("budget.py")


@snippets("docs/threads-and-greenlets.md", "work.py")
def test_work_in_threads(page):
    with dial(page.serve("work.py")) as client:
        client.send(b"stressed")
        assert receive(client) == b"desserts"


@snippets("docs/threads-and-greenlets.md", "sensor.py")
def test_a_thread_that_posts(page):
    with dial(page.serve("sensor.py")) as client:
        first = int(receive(client))
        assert [int(receive(client)) for _ in range(3)] == [first + 1, first + 2, first + 3]


def ticket(port, method="POST"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.read().decode()


@snippets("docs/security.md", "tickets.py")
def test_tickets(page):
    port = page.serve("tickets.py")
    with answered(405):
        ticket(port, "GET")
    good = ticket(port)
    with dial(port, f"/?ticket={good}") as client:
        assert receive(client) == "welcome"
    for path in ("/", "/?ticket=", "/?ticket=made-up", f"/?ticket={good}"):
        with pytest.raises(InvalidStatus, match="403"):
            dial(port, path)
    port = page.serve("tickets.py", replace=[("SECONDS = 10", "SECONDS = 0.01")])
    old = ticket(port)
    until = time.monotonic() + 0.1
    wait_until(lambda: time.monotonic() > until)
    with pytest.raises(InvalidStatus, match="403"):
        dial(port, f"/?ticket={old}")


@snippets("docs/security.md", "patience.py")
def test_patience(page):
    with dial(page.serve("patience.py")) as client:
        with contextlib.suppress(ConnectionClosedError):  # it may come to an end before the last one is sent
            for number in range(100):
                client.send(str(number))
        answers = []
        with pytest.raises(ConnectionClosedError) as closed:
            receive_all(client, answers)
        assert 10 <= len(answers) < 100
        assert closed.value.rcvd.code == 1008

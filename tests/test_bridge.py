"""The bridge of examples/bridge and its ticker, as programs of their own, with a client nobody here wrote."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from conftest import PATIENCE
from programs import outcomes, websockets_client
from websockets.exceptions import ConnectionClosed

FOLDER = Path(__file__).parent.parent / "examples" / "bridge"
TICKER, BRIDGE = FOLDER / "ticker.py", FOLDER / "bridge.py"

HERE = ("--host", "127.0.0.1")


def free_port():
    """A port that nobody has now. Programs started later may use it, one after another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def start_ticker(run):
    """A factory of tickers, which tick often."""

    def start(port=0):
        program = run(TICKER, *HERE, "--port", port, "--interval", 0.05)
        program.url()
        return program

    return start


@pytest.fixture
def start_bridge(run):
    """A factory of bridges, which dial again soon."""

    def start(url, *args):
        return run(BRIDGE, url, *HERE, "--port", 0, "--max-delay", 0.2, *args)

    return start


def receive_until(client, is_wanted):
    """Receive messages up to the one that is wanted, among ticks that never end; return it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        message = client.recv(PATIENCE)
        if is_wanted(message):
            return message
    pytest.fail("what was wanted did not come")


def receive(client, wanted):
    """Receive messages up to the one that is `wanted`."""
    receive_until(client, lambda message: message == wanted)


def next_tick(client):
    """Receive up to the next tick; return its number."""
    tick = receive_until(client, lambda message: isinstance(message, str) and message.startswith("tick "))
    return int(tick.removeprefix("tick "))


def receive_to_end(client):
    """Receive until the server closes the connection; return its close code."""
    with contextlib.suppress(ConnectionClosed):
        receive_until(client, lambda message: False)
    return client.close_code


def test_every_local_client_gets_what_the_outside_sends(start_ticker, start_bridge):
    bridge = start_bridge(start_ticker().url())
    with websockets_client(bridge.url()) as one, websockets_client(bridge.url()) as two:
        for client in (one, two):
            first = next_tick(client)
            assert [next_tick(client) for _ in range(3)] == [first + 1, first + 2, first + 3]


def test_what_local_clients_send_goes_out_text_as_text_and_bytes_as_bytes(start_ticker, start_bridge):
    ticker = start_ticker()
    bridge = start_bridge(ticker.url())
    bridge.wait_for("Connected to ")
    with websockets_client(ticker.url()) as outside, websockets_client(bridge.url()) as local:
        next_tick(outside)  # it is a client of the ticker by now
        for message in ("grüezi", b"\x00\xff", ""):
            local.send(message)
            receive(outside, message)
            # The ticker sends it to everybody, and so it comes back through the bridge.
            receive(local, message)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_ticks_come_back_with_the_ticker(start_ticker, start_bridge, end):
    port = free_port()
    ticker = start_ticker(port)
    bridge = start_bridge(ticker.url())
    with websockets_client(bridge.url()) as client:
        for _ in range(3):
            next_tick(client)
        ticker.end(end)
        bridge.wait_for("Lost ws://.*: close code " + ("1001" if end == signal.SIGTERM else "1006"))
        bridge.wait_for("Connection refused")
        client.send("into the void")
        bridge.wait_for("Lost a message of client .*: no outside connection")

        ticker = start_ticker(port)
        bridge.wait_for(r"Connected to (.|\n)*Connected to ")
        # What comes behind its echo comes from the new ticker, not from what was left unread of the old.
        client.send("heard again")
        receive(client, "heard again")
        assert next_tick(client) + 1 == next_tick(client)
    assert "Traceback" not in bridge.output


def test_a_password_in_the_url_stays_out_of_the_log(start_ticker, start_bridge):
    ticker = start_ticker()
    bridge = start_bridge(ticker.url().replace("//", "//alice:secret@"))
    bridge.wait_for("Connected to ws://127")
    ticker.end(signal.SIGTERM)
    bridge.wait_for("Lost ws://127")
    bridge.wait_for("dialled again")
    assert "secret" not in bridge.output
    assert "alice" not in bridge.output


def test_a_bridge_may_be_started_first(start_ticker, start_bridge):
    port = free_port()
    bridge = start_bridge(f"ws://127.0.0.1:{port}/", "--max-delay", 0.5)
    with websockets_client(bridge.url()) as client:
        bridge.wait_for(r"(dialled again in (.|\n)*){3}")
        lines = [line for line in bridge.output.splitlines() if "refused" in line or "again" in line]
        pauses = [re.search(r"Connection refused .*; it is dialled again in (\S+) s$", line) for line in lines]
        assert all(0 <= float(pause[1]) <= 0.5 for pause in pauses), "one line for each attempt"
        start_ticker(port)
        next_tick(client)


def test_the_bridge_does_its_own_work_between_events(start_ticker, start_bridge):
    bridge = start_bridge(f"ws://127.0.0.1:{free_port()}/", "--max-delay", 60, "--report", 0.05)
    # With nothing to do but wait,
    bridge.wait_for(r"(So far 0 messages in, 0 out; clients: 0(.|\n)*){3}")
    # and among events that come faster than it reports.
    busy = start_bridge(start_ticker().url(), "--report", 0.2)
    busy.wait_for(r"(So far [1-9]\d* messages in(.|\n)*){3}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_in_order(start_ticker, start_bridge, number):
    ticker = start_ticker()
    bridge = start_bridge(ticker.url())
    bridge.wait_for("Connected to ")
    with websockets_client(bridge.url()) as client, websockets_client(ticker.url()) as outside:
        for program, of_it in ((bridge, client), (ticker, outside)):
            program.process.send_signal(number)
            assert receive_to_end(of_it) == 1001
            assert program.process.wait(PATIENCE) == 0
            assert program.output.rstrip().endswith("Stopped")
            assert "Traceback" not in program.output
    # The bridge ended its own outside connection, and tried no new one.
    assert "dialled again" not in bridge.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bridge_that_waits_to_dial_again_ends_too(start_bridge, number):
    bridge = start_bridge(f"ws://127.0.0.1:{free_port()}/", "--max-delay", 60)
    bridge.wait_for("dialled again")
    assert bridge.end(number) == 0
    assert "Traceback" not in bridge.output


def test_a_signal_while_it_dials_ends_it(start_bridge):
    # A server that accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bridge = start_bridge(f"ws://127.0.0.1:{silent.getsockname()[1]}/")
        silent.settimeout(PATIENCE)
        connection, _ = silent.accept()
        with connection:
            assert bridge.end() == 0
    assert "Traceback" not in bridge.output
    assert "dialled again" not in bridge.output


# What is wrong with the command line, and what the last line says of it.
MISTAKES = [
    (BRIDGE, ["http://localhost/"], r"url must be like ws://.*, not 'http://localhost/'.*"),
    (BRIDGE, ["--port", "70000"], r"port must be .*, not 'localhost:70000'"),
    (BRIDGE, ["--port", "http"], r"argument --port: invalid int value: 'http'"),
    (BRIDGE, ["--report", "0"], r"argument --report: expected a number of seconds of at least 0\.001, not '0'"),
    (BRIDGE, ["--max-delay", "inf"], r"argument --max-delay: expected a number of seconds .*, not 'inf'"),
    (BRIDGE, ["--host", "192.0.2.1"], r"cannot listen on 192\.0\.2\.1:9101: .*"),
    (TICKER, ["--port", "70000"], r"port must be .*, not 'localhost:70000'"),
    (TICKER, ["--host", "192.0.2.1"], r"cannot listen on 192\.0\.2\.1:9100: .*"),
    (TICKER, ["--interval", "soon"], r"argument --interval: expected a number of seconds .*, not 'soon'"),
]


@pytest.mark.parametrize("script", [BRIDGE, TICKER])
def test_a_mistake_in_the_command_line_is_one_clear_line_and_exit_code_2(tmp_path, script):
    mistakes = [mistake for of, *mistake in MISTAKES if of == script]
    rows = [arguments + ([] if {"--port", "--host"} & {*arguments} else ["--port", 0]) for arguments, _ in mistakes]
    for (code, output), (_, said) in zip(outcomes(tmp_path, script, ["gowsev"], rows), mistakes, strict=True):
        assert code == 2
        assert re.fullmatch(rf"{script.name}: error: {said}", output.splitlines()[-1])
        assert "Traceback" not in output


@pytest.mark.parametrize("script", [BRIDGE, TICKER])
def test_a_port_in_use_is_one_clear_line_and_exit_code_2(run, script):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        program = run(script, *HERE, "--port", number)
        assert program.process.wait(PATIENCE) == 2
    assert program.output == f"{script.name}: error: cannot listen on 127.0.0.1:{number}: Address already in use\n"


@pytest.mark.parametrize(
    ("script", "options"),
    [(BRIDGE, ("url", "--host", "--port", "--max-delay", "--report")), (TICKER, ("--host", "--port", "--interval"))],
)
def test_help_lists_the_options(run, script, options):
    program = run(script, "--help", COLUMNS="200", NO_COLOR="1")
    assert program.process.wait(PATIENCE) == 0
    for option in options:
        assert re.search(rf"^  .*{option}\b", program.output, re.MULTILINE)

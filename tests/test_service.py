"""The relay's command in service: who may connect, limits, its pages, its log, several workers, and its own clients."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
from datetime import datetime

import gevent
import pytest
import workers
from access import Access
from allowance import Rates
from conftest import PATIENCE, RELAY, wait_until
from haproxy_server import needs_haproxy, passing_on, running_haproxy
from metrics import REASONS
from node import LIMITS, Node
from programs import fences, outcomes, read, websockets_client
from prometheus_client.parser import text_string_to_metric_families
from redis_server import free_port, needs_redis
from shell_output import without_reader
from test_readme import code, rows
from tokens import parse_tokens
from websockets.exceptions import ConnectionClosed, InvalidStatus

import gowsev
from gowsev.channels import Remote
from gowsev.shell import NOBODY_READS
from gowsev.version import build

CURL = shutil.which("curl")
OK = b"OK"

needs_curl = pytest.mark.skipif(CURL is None, reason="needs curl (Debian's package curl)")


@pytest.fixture
def relay(run):
    """A factory of running relays, on a port of this machine."""
    return lambda *options, **environ: run(
        RELAY / "relay.py", "--host", "127.0.0.1", "--port", 0, "--tls-port", "none", *options, **environ
    )


def ask(client, message):
    client.send(message)
    return client.recv(timeout=PATIENCE)


def curl(program, path, *options):
    """Fetch a page; return its status, its headers and its body."""
    url = program.url().replace("ws:", "http:") + path
    command = [CURL, "-sS", "-i", "--max-time", str(int(PATIENCE)), *options, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    head, _, body = done.stdout.partition("\n\n")
    status, *lines = head.splitlines()
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


# -- who may connect -------------------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("\ufeffsésame\n\n# of the printer\n  another-token \n  #third\n")
    return path


def bearer(token):
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


def offered(token):
    text = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    return {"subprotocols": ["relay", f"token.{text}"]}


def test_a_token_lets_in_and_nothing_else_does(relay, token_file):
    program = relay("--token-file", token_file)
    for right in (bearer("another-token"), offered("another-token"), offered("sésame")):
        with websockets_client(program.url(), **right) as client:
            assert ask(client, "subscribe:a") == OK
            assert client.subprotocol == ("relay" if "subprotocols" in right else None)
    wrong = [{}, bearer(""), bearer("another-toke"), bearer("another-token2"), bearer("x"), offered("nobody's")]
    wrong += [
        {"subprotocols": ["relay"]},
        {"subprotocols": ["relay", "token.!"]},
        {"subprotocols": ["relay", "token."]},
    ]
    wrong += [{"additional_headers": {"Authorization": "Basic another-token"}}]
    wrong += [bearer("#third"), offered("# of the printer"), offered("\ufeffsésame")]
    for given in wrong:
        with pytest.raises(InvalidStatus) as refused:
            websockets_client(program.url(), **given).__enter__()
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["WWW-Authenticate"] == 'Bearer realm="relay"'
    assert program.end() == 0
    assert "another-token" not in program.output


def test_tokens_are_compared_in_constant_time_and_all_of_them(monkeypatch):
    import hmac

    compared = []
    original = hmac.compare_digest

    def compare(one, other):
        compared.append((one, other))
        return original(one, other)

    monkeypatch.setattr("access.hmac.compare_digest", compare)
    access = Access(parse_tokens(b"a\nb name=of-b\nc\n"))
    assert access.token(b"b").name == "of-b"
    assert access.token(b"d") is None
    assert compared == [(token, known) for token in (b"b", b"d") for known in (b"a", b"b", b"c")]


def test_a_token_may_do_what_its_line_says_and_refusals_are_in_the_log_by_name(relay, token_file):
    token_file.write_text(
        "shop-secret name=shop subscribe=shop/,news publish=shop/\nreader name=reader publish=\nall\n"
    )
    program = relay("--token-file", token_file)
    with (
        websockets_client(program.url(), **bearer("shop-secret")) as shop,
        websockets_client(program.url(), **bearer("reader")) as reader,
        websockets_client(program.url(), **bearer("all")) as anything,
    ):
        for channel in ("shop/a", "news", "news/today"):
            assert ask(shop, f"subscribe:{channel}") == OK
        for _ in range(2):
            assert ask(shop, "subscribe:sho") == b"Error: not subscribed: this token may not subscribe there"
            assert ask(shop, "publish:news:x") == b"Error: not published: this token may not publish there"
        assert ask(reader, "subscribe:news") == OK
        assert ask(reader, "publish:shop/a:x") == b"Error: not published: this token may not publish there"
        assert ask(shop, "publish:shop/b:x") == OK
        assert ask(anything, "publish:news:for all") == OK
        assert [client.recv(timeout=PATIENCE) for client in (shop, reader)] == [b"for all"] * 2
        assert ask(shop, "unsubscribe:news") == OK
        # Other rules hold at once, and whoever has more than they allow must go.
        token_file.write_text("shop-secret name=shop subscribe=news\nreader name=reader publish=shop/\n")
        with pytest.raises(ConnectionClosed) as closed:
            shop.recv(timeout=PATIENCE)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the token may no longer subscribe there")
        assert ask(reader, "publish:shop/a:x") == OK
    assert program.end() == 0
    said = re.findall(r"Refused: connection \d with the token '(\w+)' may not (\w+): '([^']+)'$", program.output, re.M)
    assert said == [("shop", "subscribe", "sho"), ("shop", "publish", "news"), ("reader", "publish", "shop/a")]
    assert "shop-secret" not in program.output


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("secret secret2", "line 2: word 2 is not understood; behind a token stand"),
        ("secret name=a name=b", "line 2: word 3 is not understood; behind a token stand"),
        ("secret read=a", "line 2: word 2 is not understood; behind a token stand"),
        ("secret publish=a, b", "line 2: word 3 is not understood; .* with no blank behind a comma"),
        ("first", "line 2 repeats a token"),
    ],
)
def test_a_line_of_tokens_that_is_not_understood(line, said):
    with pytest.raises(ValueError, match=said) as raised:
        parse_tokens(f"first name=x\n{line}\n".encode())
    assert "secret" not in str(raised.value)


def test_the_tokens_of_the_readme_may_do_what_it_says():
    (block,) = (one.text for one in fences("examples/subscribe_publish/README.md") if one.text.startswith("# tokens"))
    shop, reader, writer, anything = parse_tokens(block.encode())
    assert [shop.may("subscribe", name) for name in ("shop/a", "news/a", "newsletter", "news")] == [1, 1, 0, 0]
    assert [token.may("subscribe", "any") for token in (shop, reader, writer, anything)] == [0, 1, 0, 1]
    assert [token.may("publish", "shop/a") for token in (shop, reader, writer, anything)] == [1, 0, 1, 1]
    assert [token.may("publish", "any") for token in (shop, reader, writer, anything)] == [0, 0, 0, 1]


def test_a_star_in_a_rule_is_a_character_and_the_log_warns(relay, token_file):
    token_file.write_text("secret name=shop publish=shop/*\n")
    program = relay("--token-file", token_file)
    program.wait_for(r"The rule 'shop/\*' of the token 'shop' allows only names that begin so, \* included$")
    with websockets_client(program.url(), **bearer("secret")) as client:
        assert ask(client, "publish:shop/a:x") == b"Error: not published: this token may not publish there"
        assert ask(client, "publish:shop/*a:x") == OK
    token_file.write_text("secret name=shop subscribe=*\n")
    program.wait_for(r"The rule '\*' of the token 'shop' allows only names that begin so, \* included$")
    assert program.end() == 0


# -- who the client is -----------------------------------------------------------------------------------------------


def test_the_log_has_the_client_behind_a_trusted_proxy(relay):
    program = relay("--log-format", "json", "--trusted-proxy", "127.0.0.0/8")
    url = wait_until(lambda: re.search(r"ws://[\d.:]+/", program.output))[0]
    with websockets_client(url, additional_headers={"X-Forwarded-For": "203.0.113.9, 198.51.100.1"}) as client:
        assert ask(client, "subscribe:a") == OK
    program.wait_for('"peer": "198.51.100.1"')
    assert program.end() == 0


def test_the_log_has_who_is_refused_behind_a_trusted_proxy(relay, token_file):
    program = relay("--log-format", "json", "--trusted-proxy", "127.0.0.0/8", "--token-file", token_file)
    url = wait_until(lambda: re.search(r"ws://[\d.:]+/", program.output))[0]
    with pytest.raises(InvalidStatus):
        websockets_client(url, additional_headers={"X-Forwarded-For": "198.51.100.1"}).__enter__()
    line = json.loads(program.wait_for("^.*Connection refused.*$")[0])
    assert (line["level"], line["peer"]) == ("info", "198.51.100.1")
    assert program.end() == 0


@needs_haproxy
def test_behind_haproxy_it_is_the_client_that_is_logged(relay, tmp_path):
    program, port = relay("--trusted-proxy", "127.0.0.0/8", "--proxy-header", "proxy-protocol"), free_port()
    url = wait_until(lambda: re.search(r"ws://[\d.:]+:(\d+)/", program.output))
    lines = passing_on(port, url[1], "send-proxy-v2")
    with running_haproxy(tmp_path, port, lines), websockets_client(f"ws://127.0.0.1:{port}/") as client:
        assert ask(client, "subscribe:a") == OK
        own = client.socket.getsockname()[1]
    program.wait_for("Connection closed")
    assert program.end() == 0
    assert f"Connection accepted 1 from 127.0.0.1:{own}" in program.output


def refused(program, token):
    """Whether a token is refused."""
    try:
        with websockets_client(program.url(), **bearer(token)):
            return False
    except InvalidStatus as error:
        return error.response.status_code == 401


def test_tokens_that_are_added_or_taken_away_count_at_once(relay, token_file):
    program = relay("--token-file", token_file)
    with (
        websockets_client(program.url(), **offered("sésame")) as staying,
        websockets_client(program.url(), **bearer("another-token")) as going,
    ):
        assert ask(staying, "subscribe:a") == OK
        token_file.write_text("new\nsésame\n")
        with pytest.raises(ConnectionClosed) as closed:
            going.recv(timeout=PATIENCE)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the token is no longer valid")
        assert refused(program, "another-token")
        with websockets_client(program.url(), **bearer("new")) as client:
            assert ask(client, "publish:a:still there") == OK
        assert staying.recv(timeout=PATIENCE) == b"still there"
    assert program.end() == 0
    assert re.search(rf"Read the tokens in '{token_file}' again: 2$", program.output, re.MULTILINE)
    assert "Closing 1 connections, whose token is gone" in program.output


@pytest.mark.parametrize("content", [None, "", "# nobody\n", "sésame\n".encode("utf-16"), b"s\xe9same\n", "a folder"])
def test_while_the_tokens_cannot_be_read_the_old_ones_hold_and_it_is_said_once(relay, token_file, content):
    program = relay("--token-file", token_file)
    with websockets_client(program.url(), **bearer("another-token")) as client:
        token_file.unlink()
        if content == "a folder":
            token_file.mkdir()
        elif content is not None:
            token_file.write_bytes(content.encode() if isinstance(content, str) else content)
        said = (
            rf"cannot read the tokens in '{token_file}': (No such file|there is no token|it is no).*; the 2 read before"
        )
        program.wait_for(said)
        assert ask(client, "subscribe:a") == OK
        assert not refused(program, "another-token")
        assert refused(program, "")
        if content == "a folder":
            token_file.rmdir()
        gevent.sleep(2.5)  # in which it is looked at again
        token_file.write_text("new\n")
        program.wait_for(r"Read the tokens in '.*' again: 1$")
        assert refused(program, "another-token")
        assert not refused(program, "new")
    assert program.output.count("cannot read the tokens") == 1 + (content == "a folder")
    assert program.end() == 0


def test_sighup_reads_the_tokens_again_and_says_so(relay, token_file):
    program = relay("--token-file", token_file)
    program.url()
    for _ in range(2):
        token_file.unlink(missing_ok=True)
        program.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP: reading the tokens again" in program.output)
    # Whoever asks is answered, though it has been said before.
    wait_until(lambda: program.output.count("the 2 read before still hold") == 2)
    token_file.write_text("new\n")
    program.process.send_signal(signal.SIGHUP)
    program.wait_for("again: 1$")
    assert not refused(program, "new")
    assert program.end() == 0


def test_sighup_without_tokens_changes_nothing(relay):
    program = relay()
    with websockets_client(program.url()) as client:
        assert ask(client, "subscribe:a") == OK
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("SIGHUP: there is no --token-file to read again")
        assert ask(client, "publish:a:x") == OK
    assert program.end() == 0


@pytest.mark.long
@needs_redis
def test_all_workers_read_the_tokens_again(workers_of, token_file):
    program = workers_of(2, "--token-file", token_file)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(websockets_client(program.url(), **bearer("another-token"))) for _ in range(20)]
        token_file.write_text("sésame\n")
        for client in clients:
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE)
            assert closed.value.rcvd.code == 1008
    assert all(refused(program, "another-token") for _ in range(10))
    for worker in (1, 2):
        program.wait_for(f"worker {worker}: Read the tokens in .* again: 1$")
    # SIGHUP replaces the workers, unless their successors cannot start.
    token_file.write_text("")
    program.process.send_signal(signal.SIGHUP)
    program.wait_for("Worker 1 goes on, and so do those behind it: its successor ended with exit code 2")
    with websockets_client(program.url(), **offered("sésame")) as client:
        assert ask(client, "subscribe:a") == OK
    token_file.write_text("new\n")
    program.process.send_signal(signal.SIGHUP)
    wait_until(lambda: program.output.count("Connection closed") >= 21 and program.output.count("Stopped") == 2)
    assert not refused(program, "new")
    assert program.end() == 0
    assert "killed" not in program.output


@contextlib.contextmanager
def in_a_terminal(output, *command):
    """Run a command in a terminal of its own; yield the process and what closes the terminal."""
    master, slave = pty.openpty()

    def begin_session():  # not start_new_session, which gevent's Popen heeds after this function, and Python's before
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with open(output, "wb") as file:
        process = subprocess.Popen(command, stdin=slave, stdout=file, stderr=file, preexec_fn=begin_session)
    os.close(slave)
    try:
        yield process, lambda: os.close(master)
    finally:
        process.kill()
        process.wait()


TRIED = ["--host", "127.0.0.1", "--port", "0", "--tls-port", "none"]


@needs_redis
@pytest.mark.parametrize("workers", [1, 2])
def test_a_relay_ends_in_order_with_its_terminal(tmp_path, redis_server, workers):
    output = tmp_path / "output"
    options = [*TRIED, "--backplane", redis_server.url, "--workers", str(workers)]
    with in_a_terminal(output, sys.executable, str(RELAY / "relay.py"), *options) as (process, close):
        wait_until(lambda: output.read_text().count("The backplane is there") == workers)
        url = re.search(r"ws://\S+:\d+/", output.read_text())[0]
        with websockets_client(url) as client:
            if workers == 1:
                process.send_signal(signal.SIGHUP)  # the terminal is still there
                wait_until(lambda: "SIGHUP: there is no" in output.read_text())
            assert ask(client, "subscribe:a") == OK
            close()
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE)
            assert closed.value.rcvd.code == 1001
        assert process.wait(PATIENCE) == 0
    assert output.read_text().endswith("Stopped\n")


def test_a_relay_with_nohup_outlives_its_terminal(tmp_path):
    output = tmp_path / "output"
    command = ["nohup", sys.executable, str(RELAY / "relay.py"), *TRIED]
    with in_a_terminal(output, *command) as (process, close):
        url = wait_until(lambda: re.search(r"ws://\S+:\d+/", output.read_text()))[0]
        with websockets_client(url) as client:
            assert ask(client, "subscribe:a") == OK
            close()
            wait_until(lambda: "SIGHUP" in output.read_text())
            assert ask(client, "publish:a:x") == OK
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_connections_beyond_the_limit_are_refused(relay):
    program = relay("--max-connections", 2)
    with websockets_client(program.url()), websockets_client(program.url()):
        with pytest.raises(InvalidStatus) as refused:
            websockets_client(program.url()).__enter__()
        assert refused.value.response.status_code == 503


def test_a_message_beyond_the_limit_is_refused(relay):
    program = relay("--max-message-bytes", 1000)
    with websockets_client(program.url()) as client:
        assert ask(client, b"publish:a:" + b"x" * 990) == OK
        client.send(b"publish:a:" + b"x" * 991)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE)
        assert closed.value.rcvd.code == 1009


# -- limits ----------------------------------------------------------------------------------------------------------


def answer(client, message):
    client.send_binary(message)
    return client.read_frame()[1]


def test_what_is_beyond_a_limit_is_an_error_and_nothing_is_lost(serve):
    node = Node(dataclasses.replace(LIMITS, channels=2, name_bytes=5))
    server = serve(node)
    node.open(server.context)
    client = server.client()
    for channel in (b"one", b"two", b"one"):
        assert answer(client, b"subscribe:" + channel) == OK
    too_many = b"Error: not subscribed: at most 2 channels for each client"
    assert answer(client, b"subscribe:three") == too_many
    too_long = b"a channel's name has at most 5 bytes"
    assert answer(client, b"subscribe:sixsix") == b"Error: not subscribed: " + too_long
    assert answer(client, b"publish:sixsix:body") == b"Error: not published: " + too_long
    assert answer(client, b"nonsense") == b"Invalid message"
    assert node.channels_of == {1: {b"one", b"two"}}
    assert answer(client, b"publish:two:still here") == OK
    assert client.read_frame()[1] == b"still here"
    assert answer(client, b"unsubscribe:one") == OK
    assert answer(client, b"subscribe:three") == OK
    counters = node.counters
    assert (counters.refusals, counters.publishes, counters.deliveries) == ({"channels": 1, "name": 2}, 1, 1)


def test_who_publishes_too_fast_gets_an_error_and_nobody_else_does(serve):
    node = Node(rates=Rates(publishes=3, bytes=1000))
    server = serve(node)
    node.open(server.context)
    fast, large, other = (server.client() for _ in range(3))
    answers = [answer(fast, b"publish:a:x") for _ in range(6)]
    too_fast = b"Error: not published: at most 3 publishes a second for each client"
    assert answers[:3] == [OK] * 3
    assert set(answers[3:]) <= {OK, too_fast}  # more than three, if the machine has taken its time
    assert answer(large, b"publish:a:" + b"x" * 100_000) == OK
    assert answer(large, b"publish:a:x") == b"Error: not published: at most 1000 bytes a second for each client"
    assert answer(other, b"publish:a:x") == OK
    assert answer(large, b"subscribe:a") == OK


def test_an_allowance():
    rates = Rates(bytes=10)

    def may(size, now, id=1):
        return not rates.objection(id, b"x" * size, now)

    assert [may(1, 100.0) for _ in range(11)] == [True] * 10 + [False]
    assert may(1, 100.0, id=2)
    assert not may(1, 100.05)
    assert [may(1, 100.15) for _ in range(2)] == [True, False]
    assert [may(1, 200.0) for _ in range(11)] == [True] * 10 + [False]  # not more for having been silent
    assert may(35, 201.0)  # more than a second's, and made up for
    assert not may(1, 203.0)
    assert may(1, 203.7)


@needs_redis
def test_who_has_many_publishes_under_way_holds_nobody_up(serve, redis_server):
    node = Node()
    server = serve(node)
    node.open(server.context, redis_server.url)
    greedy, other, watching = (server.client() for _ in range(3))
    assert answer(watching, b"subscribe:a") == OK
    redis_server.freeze()
    for i in range(1500):
        greedy.send_binary(b"publish:a:%d" % i)
    wait_until(
        lambda: node.channels.Status().in_flight == LIMITS.in_flight and not server.context.Stats().queued_events
    )
    other.send_binary(b"publish:a:other")
    wait_until(lambda: node.channels.Status().in_flight > LIMITS.in_flight)
    redis_server.thaw()
    assert other.read_frame()[1] == OK
    order = [watching.read_frame()[1] for _ in range(LIMITS.in_flight + 1)]
    assert order.index(b"other") < 200  # behind what was on its way to Redis already
    answers = [greedy.read_frame()[1] for _ in range(1500)]
    assert answers == [OK] * 1000 + [b"Error: not published: too many commands wait for the backplane"] * 500


def test_a_slow_consumer_is_counted_and_costs_nobody_else_a_message(serve):
    node = Node()
    server = serve(node, outbox_bytes=100_000)
    node.open(server.context)
    slow, quick, publisher = (server.client() for _ in range(3))
    for client in (slow, quick):
        assert answer(client, b"subscribe:a") == OK
    body = b"x" * 500_000
    for _ in range(100):
        assert answer(publisher, b"publish:a:" + body) == OK
        assert quick.read_frame()[1] == body
        if server.context.Stats().refused_writes:
            break
    assert server.context.Stats().refused_writes == 1
    assert node.counters.drops >= 1


# -- pages -----------------------------------------------------------------------------------------------------------


@needs_curl
def test_the_page_and_its_files_are_served_with_a_strict_policy(relay):
    program = relay()
    types = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "page.svg": "image/svg+xml"}
    for path, type in types.items():
        status, headers, body = curl(program, path)
        assert status == 200
        assert headers["Content-Type"].startswith(type)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        # Nothing from outside, nothing inline.
        assert not re.search(
            r"(src|href)=.?(https?:)?//|\surl\(|@import|style=|<script>|\son(click|load|error|submit)=", body
        )
        again = curl(program, path, "-H", f"If-None-Match: {headers['ETag']}")
        assert (again[0], again[2]) == (304, "")
    status, headers, body = curl(program, "", "-I")
    assert (status, body) == (200, "")
    assert curl(program, "nowhere")[0] == 404
    assert curl(program, "../relay.py", "--path-as-is")[0] == 404
    status, headers, _ = curl(program, "", "-d", "x=y")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@needs_curl
def test_health_and_metrics_tell_how_things_are(relay):
    program = relay()
    with websockets_client(program.url()) as one, websockets_client(program.url()) as two:
        for client in (one, two):
            assert ask(client, "subscribe:a") == OK
        for _ in range(3):
            assert ask(one, "publish:a:hello") == OK
            assert [one.recv(timeout=PATIENCE), two.recv(timeout=PATIENCE)] == [b"hello"] * 2
        assert ask(one, b"publish:" + b"x" * 1001 + b":x").startswith(b"Error: ")
        status, _, body = curl(program, "healthz")
        health = json.loads(body)
        assert status == 200
        assert (health["status"], health["channels"], health["connections"]) == ("ok", "up", 2)
        assert (health["alive"], health["ready"], health["refused"], health["lag"], health["gaps"]) == (1, 1, 1, 0, 0)
        assert curl(program, "healthz/alive")[0] == 200
        status, headers, body = curl(program, "metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        samples = [sample for family in text_string_to_metric_families(body) for sample in family.samples]
        values = {sample.name: sample.value for sample in samples if "le" not in sample.labels}
        assert values["gowsev_connections"] == 2
        assert values["gowsev_channels_channels"] == 1
        assert values["relay_subscriptions"] == 2
        assert values["relay_publishes_total"] == 3
        assert values["relay_deliveries_total"] == 6
        assert values["gowsev_messages_received_total"] == 6
        assert values["gowsev_messages_sent_total"] == 12
        assert values["gowsev_bytes_received_total"] > 0
        assert values["process_resident_memory_bytes"] > 0
        for name in ("relay_drops_total", "gowsev_refused_writes_total", "gowsev_rejected_total", "relay_waiting"):
            assert values[name] == 0
        assert 'relay_refusals_total{reason="name"} 1.0' in body
        labels = f'build="{build()}",python="{platform.python_version()}",version="{gowsev.__version__}"'
        assert f"gowsev_build_info{{{labels}}} 1.0" in body
    wait_until(lambda: re.search(r"^gowsev_loop_delay_seconds_count [1-9]", curl(program, "metrics")[2], re.MULTILINE))


@needs_curl
def test_the_alerts_of_the_readme_name_what_is_on_the_page_from_the_start(relay):
    body = curl(relay(), "metrics")[2]
    assert dict(re.findall(r'^relay_refusals_total\{reason="(\w+)"\} (\S+)$', body, re.MULTILINE)) == (
        dict.fromkeys(REASONS, "0.0")
    )
    text = read("examples/subscribe_publish/README.md")
    alerts = [code(alert) for alert, _ in rows(text, "alert on", "because")]
    assert 0 < len(alerts) <= 8
    there = set(re.findall(r"^(\w+)[ {]", body, re.MULTILINE))
    for alert in alerts:
        named = set(re.findall(r"\b(?:gowsev|relay|process)_\w+", alert))
        assert named
        assert named <= there
        assert set(re.findall(r'reason="(\w+)"', alert)) <= {*REASONS}
    told = re.search(r"\(`relay_refusals_total`: (.*?)\)", text, re.DOTALL)[1]
    assert sorted(re.findall(r"`(\w+)`", told)) == sorted(REASONS)


@needs_curl
def test_without_prometheus_client_metrics_say_what_they_need(relay, tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not installed')\n")
    program = relay(PYTHONPATH=str(tmp_path))
    needed = "Metrics need the Python package prometheus-client: pip install '.[relay]' brings it.\n"
    assert curl(program, "metrics")[::2] == (501, needed)
    assert curl(program, "healthz")[0] == 200


def test_the_relay_needs_no_package_but_gowsev(run, tmp_path):
    for name in ("redis", "prometheus_client", "tqdm", "cryptography"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed')\n")
    options = ["--host", "127.0.0.1", "--port", 0, "--tls-port", "none"]
    program = run(RELAY / "relay.py", *options, PYTHONPATH=str(tmp_path))
    with websockets_client(program.url()) as client:
        assert ask(client, "subscribe:a") == OK
    assert program.end() == 0
    refused = run(RELAY / "relay.py", *options, "--backplane", "redis://localhost/", PYTHONPATH=str(tmp_path))
    assert refused.process.wait(PATIENCE) == 2
    needed = "--backplane takes the Python package redis: not installed; pip install '.[relay]' brings it"
    assert refused.output == f"relay.py: error: {needed}\n"


# -- configuration and the log ---------------------------------------------------------------------------------------

MISTAKES = [
    (["--workers", "2"], "more than one of --workers takes a --backplane, which makes them one relay"),
    (["--workers", "0"], "argument --workers: expected a whole number of at least 1, not '0'"),
    (["--max-connections", "many"], "argument --max-connections: expected a whole number of at least 1, not 'many'"),
    (["--max-channels", "-1"], "argument --max-channels: .*"),
    (["--backplane", "http://localhost"], "--backplane is like redis://host:6379/0: .*"),
    (["--backplane", "redis://localhost:port"], "--backplane is like redis://host:6379/0: .*"),
    (["--backplane", "redis://localhost/zero"], "--backplane is like redis://host:6379/0: a database is a number"),
    (
        ["--backplane", "redis://localhost?pasword=x"],
        r"--backplane is like redis://host:6379/0: pasword cannot be chosen behind the \?",
    ),
    (["--backplane", "rediss://localhost?ssl_cert_reqs=perhaps"], "--backplane is like .*perhaps"),
    (["--backplane", "redis://localhost", "--backplane-prefix", "{a}"], "--backplane-prefix: prefix must be a word .*"),
    (
        ["--trusted-proxy", "example.com"],
        "argument --trusted-proxy: .* addresses, networks or 'unix', not 'example.com'",
    ),
    (["--proxy-header", "forwarded"], "--proxy-header takes a --trusted-proxy, who is believed in it"),
    (["--proxy-header", "proxy-protocol"], "--proxy-header takes a --trusted-proxy, who is believed in it"),
    (["--cert", "cert.pem", "--key", "key.pem"], "--cert and --key are for TLS, and --tls-port is none"),
    (["--token-file", "missing"], "cannot read the tokens in 'missing': No such file or directory"),
    (["--token-file", os.devnull], "cannot read the tokens in '/dev/null': there is no token in it"),
    (["--workers", "2", "--backplane", "nonsense"], "--backplane is like redis://host:6379/0: .*"),
    (["--log-format", "xml"], "argument --log-format: .*"),
    (["--max-publishs", "5"], r"unrecognized arguments: --max-publishs \.\.\.; see --help"),
    (["--token", "secret"], r"unrecognized arguments: --token \.\.\.; see --help"),
    (["--token=secret"], r"unrecognized arguments: --token=\.\.\.; see --help"),
]


def refusals(folder, rows):
    """What the relay says to each of these lists of arguments; it ends with exit code 2."""
    here = ["--host", "127.0.0.1", "--port", 0, "--tls-port", "none"]
    ends = outcomes(folder, RELAY / "relay.py", ["service", "gowsev.channels.redis"], [[*here, *row] for row in rows])
    assert [code for code, _ in ends] == [2] * len(rows)
    return [output for _, output in ends]


@pytest.mark.long
def test_a_mistake_in_the_configuration_is_one_line_and_exit_code_2(tmp_path):
    outputs = refusals(tmp_path, [arguments for arguments, _ in MISTAKES])
    for output, (_, said) in zip(outputs, MISTAKES, strict=True):
        assert re.fullmatch(rf"relay\.py: error: {said}\n", output)


@pytest.mark.parametrize("password", ["sesame", "sesa@me", "sesa%40me"])
def test_the_password_of_redis_is_not_in_the_log(relay, password):
    with socket.create_server(("127.0.0.1", 0)) as taken:  # where nobody answers once it is closed
        port = taken.getsockname()[1]
    program = relay("--backplane", f"redis://:{password}@127.0.0.1:{port}/0")
    program.wait_for(rf"channels: the Redis at redis://127\.0\.0\.1:{port}/0 is away: ")
    assert program.end() == 0
    assert "sesa" not in program.output
    assert "me@" not in program.output


#: Addresses that hold "sesa" and "me", the parts of a password, and are none of Redis.
SPOILT = [
    "redis://:sesa/me@localhost:6379/0",
    "redis://:12/sesame@localhost:6379/0",
    "redis://default:/sesame@localhost:6379/0",
    "redis://:sesa?me@localhost:6379/0",
    "redis://:12?sesa=me@localhost/0",
    "redis://:sesa#me@localhost:6379/0",
    "redis://:12#sesame@localhost/0",
    "redis://localhost:6379/0?password=sesa@me",
    "redis://:sesa[me]@localhost:6379/0",
    "redis://:sesa]me@localhost:6379/0",
    "redis://:sesa\u2100me@localhost:6379/0",
    "redis://:sesame",
    "redis://:sesa%2Fme%40localhost:6379/0",
    "redis://sesame%40localhost/0",
    "redis://:sesa@me@localhost:port/0",
    "redis://:sesame@localhost:99999/0",
    b"redis://:sesa\xffme@localhost:6379/0",
    "unix://:sesa/me@/run/redis.sock",
    "unix://sesame/run/redis.sock",
    "http://:sesame@localhost:6379/0",
    "redis:/:sesame@localhost",
    ":sesame@localhost",
    "redis://:sesame@localhost/zero",
    "redis://:sesame@localhost?pasword=x",
]


@pytest.mark.long
def test_nothing_of_a_password_is_in_the_error_of_an_address(tmp_path):
    for output in refusals(tmp_path, [["--backplane", os.fsdecode(url)] for url in SPOILT]):
        assert re.fullmatch(r"relay\.py: error: --backplane is like redis://host:6379/0: .*\n", output)
        assert "sesa" not in output
        assert not re.search(r"\bme\b", output)


def test_nothing_of_a_password_is_in_the_error_of_another_option(tmp_path):
    rows = [
        ["--bakplane", "redis://:sesa me@localhost"],
        ["--bakplane=redis://:sesa'me@localhost"],
        ["--back=redis://:sesa me@localhost"],
        ["--workers", "redis://:sesa'me"],
        ["redis://:sesa?me@localhost/0"],
    ]
    for output in refusals(tmp_path, rows):
        assert re.fullmatch(r"relay\.py: error: .*\.\.\..*\n", output)
        assert "sesa" not in output
        assert not re.search(r"\bme\b", output)


def test_log_lines_can_be_json(relay):
    program = relay("--log-format", "json")
    url = wait_until(lambda: re.search(r"ws://[\d.:]+/", program.output))[0]
    with websockets_client(url) as client:
        assert ask(client, "subscribe:a") == OK
    program.wait_for("Connection closed")
    assert program.end() == 0
    lines = [json.loads(line) for line in program.output.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    accepted = next(line for line in lines if line["message"].startswith("Connection accepted 1 from 127.0.0.1:"))
    assert (accepted["connection"], accepted["level"]) == (1, "info")
    assert accepted["peer"].startswith("127.0.0.1:")
    closed = next(line for line in lines if line["message"].startswith("Connection closed 1: code 1000 after "))
    assert (closed["code"], closed["connection"]) == (1000, 1)
    assert closed["seconds"] > 0
    assert closed["bytes_received"] > closed["bytes_sent"] > 0
    for line in lines:
        assert datetime.fromisoformat(line["time"]).tzinfo is not None


def test_a_relay_whose_redis_never_came_has_lost_nothing_at_its_end(relay):
    program = relay("--backplane", f"redis://127.0.0.1:{free_port()}/0")
    program.wait_for("the Redis at .* is away")
    assert program.end() == 0
    assert "may not be stored" not in program.output


# -- workers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def workers_of(relay, redis_server):
    def start(number=2, *options):
        program = relay("--workers", number, "--backplane", redis_server.url, *options)
        for worker in range(1, number + 1):
            program.wait_for(f"worker {worker}: The backplane is there")
        return program

    return start


def pids(program):
    """The processes of a relay's workers."""
    path = f"/proc/{program.process.pid}/task/{program.process.pid}/children"
    with open(path) as children:
        return [int(pid) for pid in children.read().split()]


def dead(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@needs_redis
def test_workers_share_a_port_and_are_one_relay(workers_of):
    program = workers_of(2)
    clients = [websockets_client(program.url()).__enter__() for _ in range(30)]
    try:
        for client in clients:
            assert ask(client, "subscribe:a") == OK
        accepted = {worker for worker in (1, 2) if f"worker {worker}: Connection accepted" in program.output}
        assert accepted == {1, 2}  # by chance, in one of half a billion runs, not
        publisher = websockets_client(program.url()).__enter__()
        clients.append(publisher)
        assert ask(publisher, "publish:a:to all") == OK
        assert [client.recv(timeout=PATIENCE) for client in clients[:-1]] == [b"to all"] * 30
        if CURL:

            def connections():
                body = curl(program, "metrics")[2]
                found = re.findall(r'^gowsev_connections\{worker="(\d)"\} (\S+)', body, re.MULTILINE)
                return {worker: int(float(number)) for worker, number in found}

            # Whichever worker is asked: the other's counters are at most a second old.
            wait_until(lambda: sum(connections().values()) == 31)
            assert set(connections()) == {"1", "2"}
        program.process.send_signal(signal.SIGTERM)
        for client in clients:
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE)
            assert closed.value.rcvd.code == 1001
        assert program.process.wait(PATIENCE) == 0
        assert program.output.rstrip().endswith("Stopped")
    finally:
        for client in clients:
            client.close()


@pytest.mark.long
@needs_redis
def test_a_worker_that_dies_is_replaced_and_the_others_go_on(workers_of):
    program = workers_of(2)
    before = pids(program)
    os.kill(before[0], signal.SIGKILL)
    program.wait_for(r"Worker 1 was killed by SIGKILL after .* s; a new one starts in 0\.5 s")
    wait_until(lambda: program.output.count("worker 1: The backplane") == 2)
    after = pids(program)
    assert before[1] in after
    assert before[0] not in after
    assert len(after) == 2
    with websockets_client(program.url()) as client:
        assert ask(client, "subscribe:a") == OK
        assert ask(client, "publish:a:x") == OK
        assert client.recv(timeout=PATIENCE) == b"x"
    assert program.end() == 0


@needs_redis
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(workers_of, number):
    program = workers_of(2)
    children = pids(program)
    assert program.end(number) == 0
    assert all(dead(pid) for pid in children)


@needs_redis
def test_workers_do_not_outlive_a_parent_that_is_killed(workers_of):
    program = workers_of(2)
    children = pids(program)
    program.process.kill()
    wait_until(lambda: all(dead(pid) for pid in children))


def test_two_relays_do_not_share_a_port_by_mistake():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            workers.reserve("127.0.0.1", port)
    with workers.reserve("127.0.0.1", 0) as holder, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(holder.getsockname())


#: How many files a parent may have open: one that does not close what it had with a dead worker soon has too many.
OPEN_FILES = 40


@contextlib.contextmanager
def supervise(tmp_path, command, number=1, delays=(workers.FIRST_DELAY, workers.LAST_DELAY)):
    """Run workers that are this command, under a parent of their own; yield its process, which is killed at the end."""
    parent = (
        f"import sys, logging, pathlib, resource; sys.path.insert(0, {str(RELAY)!r}); import workers\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({OPEN_FILES}, {OPEN_FILES}))\n"
        "logging.basicConfig(level=logging.INFO)\n"
        f"sys.exit(workers.Workers({command!r}, {number}, pathlib.Path({str(tmp_path)!r}), {delays!r}).run())\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # else a test that fails would wait for its end for ever


def worker_of(script):
    """The command of a worker that is this shell script; `$2` is its number."""
    return ["/bin/sh", "-c", script, "worker"]


def test_workers_that_die_of_their_start_are_replaced_ever_more_slowly(tmp_path):
    with supervise(tmp_path, worker_of("exit 1")) as parent:
        delays = []
        for line in parent.stderr:
            delays += re.findall(r"Worker 1 ended with exit code 1 after .* a new one starts in (.*) s", line)
            if len(delays) == 3:
                break
        parent.terminate()
        parent.stderr.read()
        assert parent.wait(PATIENCE) == 0
    assert delays == ["0.5", "1.0", "2.0"]


def test_workers_that_cannot_be_configured_end_their_parent(tmp_path):
    with supervise(tmp_path, worker_of("test $2 = 1 && exit 2; exec cat"), 2) as parent:
        parent.stderr.read()
        assert parent.wait(PATIENCE) == 2


def test_delays_grow_to_the_longest_and_stay_there_for_ever():
    # More than 1,024 of them, at which a power of two is too large for a float: in service, more than eight hours.
    delays = [0.0]
    for _ in range(1100):
        delays.append(workers.next_delay(delays[-1], 0.5, 30.0))
    assert delays[:8] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(delays[7:]) == {30.0}


def test_a_worker_that_never_starts_is_tried_for_ever_and_the_others_serve_on(tmp_path):
    # In pauses of up to 2 ms, and more often than the parent may have files open.
    command = worker_of("test $2 = 1 && exit 1; echo $$ >> pids; exec cat")
    command[2] = f"cd {tmp_path}; {command[2]}"
    with supervise(tmp_path, command, 2, delays=(0.001, 0.002)) as parent:
        deaths = 0
        while deaths < OPEN_FILES * 2:
            line = parent.stderr.readline()
            assert line, f"the parent ended after {deaths} deaths"
            # A start for which there are no files is put off too, and the attempts go on: not so here.
            assert "cannot be started" not in line
            deaths += "Worker 1 ended with exit code 1" in line
        assert line.endswith("a new one starts in 0.0 s\n")
        (healthy,) = map(int, (tmp_path / "pids").read_text().split())
        assert not dead(healthy)
        parent.terminate()
        assert "Traceback" not in parent.stderr.read()
        assert parent.wait(PATIENCE) == 0
        assert dead(healthy)


def test_a_worker_that_is_killed_by_a_signal_without_a_name_is_replaced(tmp_path):
    with supervise(tmp_path, worker_of("kill -40 $$")) as parent:
        assert re.search(r"Worker 1 was killed by signal 40 after .* starts in 0\.5 s", parent.stderr.readline())
        parent.terminate()
        parent.stderr.read()
        assert parent.wait(PATIENCE) == 0


def test_a_worker_that_cannot_be_started_is_tried_again_and_the_others_serve_on(tmp_path):
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\ncd {tmp_path}\nif test $2 = 2; then touch serving; exec cat; fi\n"
        "while ! test -e serving; do sleep 0.01; done\nmv program program.away\n"
    )
    program.chmod(0o700)
    with supervise(tmp_path, [str(program)], 2, delays=(0.1, 0.1)) as parent:
        lines = iter(parent.stderr.readline, "")
        assert any("Worker 1 ended with exit code 0" in line for line in lines)
        missing = rf"Worker 1 cannot be started: .*No such file.*{program}.*; the next attempt is in 0\.1 s"
        assert any(re.search(missing, line) for line in lines)
        (tmp_path / "program.away").rename(program)
        assert any("Worker 1 ended with exit code 0" in line for line in lines)
        parent.terminate()
        assert "Worker 2" not in parent.stderr.read()
        assert parent.wait(PATIENCE) == 0


# -- the relay's own clients -----------------------------------------------------------------------------------------


def client_of(program, *arguments, url=None, input=None):
    command = [sys.executable, str(RELAY / "client.py"), "--url", url or program.url(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=input, timeout=PATIENCE * 2)


def test_the_command_line_client_publishes_and_prints_what_arrives(relay, run):
    program = relay()
    printing = run(RELAY / "client.py", "--url", program.url(), "subscribe", "weather", "news")
    single = run(RELAY / "client.py", "--url", program.url(), "subscribe", "news")
    program.wait_for("Connection accepted 2")
    with websockets_client(program.url()) as watching:
        assert ask(watching, "subscribe:weather") == OK

        # All have subscribed when what they publish has come back.
        def published():
            done = client_of(program, "publish", "news", "hello: all")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            return "news: hello: all" in printing.output and "hello: all\n" in single.output

        wait_until(published)
        done = client_of(program, "publish", "weather", input="one\n\ntwo: zürich")
        assert (done.returncode, done.stderr) == (0, "")
        assert [watching.recv(timeout=PATIENCE) for _ in range(3)] == [b"one", b"", "two: zürich".encode()]
    printing.wait_for("^weather: one\nweather: \nweather: two: zürich$")
    assert single.process.poll() is None
    assert printing.end(signal.SIGINT) == 130
    assert "Traceback" not in printing.output
    assert program.end() == 0
    single.wait_for(r"^client\.py: connection closed with code 1001: shutting down; again in 0\.\d s$")
    assert single.end(signal.SIGINT) == 130


def test_a_subscriber_whose_output_nobody_reads_ends_quietly(relay):
    program = relay()
    line = [sys.executable, str(RELAY / "client.py"), "--url", program.url(), "subscribe", "news"]
    ending = gevent.spawn(without_reader, line)
    with websockets_client(program.url()) as publishing:

        def ended():
            publishing.send("publish:news:hello")
            assert publishing.recv(timeout=PATIENCE) == OK
            return ending.ready()

        wait_until(ended)
    assert ending.get() == (NOBODY_READS, "")


@needs_redis
def test_a_subscriber_on_the_command_line_comes_back_and_has_missed_nothing(relay, run, redis_server):
    program = relay("--backplane", redis_server.url)
    program.wait_for("The backplane is there")
    port = program.url().rsplit(":", 1)[1].strip("/")
    printing = run(RELAY / "client.py", "--url", program.url(), "subscribe", "news", "weather")
    program.wait_for("Connection accepted 1 ")
    wait_until(lambda: client_of(program, "publish", "news", "begun").returncode or "begun" in printing.output)
    assert program.end() == 0
    printing.wait_for("again in .* s$")
    with Remote(redis_server.url, prefix="relay") as remote:
        for number in range(100):
            remote.Publish("news", f"while away {number}")
        remote.Publish("weather", b"rain")
    again = run(RELAY / "relay.py", *TRIED, "--backplane", redis_server.url, "--port", port)
    printing.wait_for("^news: while away 99$")
    assert client_of(again, "publish", "news", "behind").returncode == 0
    printing.wait_for("^news: behind$")
    numbers = re.findall(r"^news: while away (\d+)$", printing.output, re.MULTILINE)
    assert numbers == [str(number) for number in range(100)]
    assert "lost" not in printing.output
    redis_server.cli("flushall")
    assert client_of(again, "publish", "news", "anew").returncode == 0
    printing.wait_for("^news: anew$")
    assert "client.py: news: messages were lost" in printing.output
    assert printing.end(signal.SIGINT) == 130


@pytest.fixture
def relay_over_tls(run, certificate, client_tls, token_file, tmp_path):
    """A relay with tokens and a certificate; and the file that a client must trust."""
    authority = tmp_path / "authority.pem"
    authority.write_text("".join(ssl.DER_cert_to_PEM_cert(c) for c in client_tls.get_ca_certs(True)))
    cert, key = certificate
    options = ["--port", 0, "--tls-port", 0, "--cert", cert, "--key", key, "--token-file", token_file]
    program = run(RELAY / "relay.py", "--host", "127.0.0.1", *options)
    return program, authority


def test_the_command_line_client_over_tls_with_a_token(relay_over_tls, tmp_path):
    program, authority = relay_over_tls
    secret = tmp_path / "secret"
    secret.write_text("\ufeff# of the printer\nanother-token\n")
    url = program.url("wss")
    done = client_of(program, "--cafile", authority, "--token-file", secret, "publish", "a", "x", url=url)
    assert (done.returncode, done.stderr) == (0, "")
    done = client_of(program, "publish", "a", "x", "--cafile", authority, "--token-file", secret, url=url)
    assert (done.returncode, done.stderr) == (0, ""), "options behind the command"
    done = client_of(program, "--cafile", authority, "publish", "a", "x", url=url)
    assert done.returncode == 1
    assert re.fullmatch(r"client\.py: dial .*: the server answered HTTP 401 Unauthorized\n", done.stderr)
    done = client_of(program, "publish", "a", "x", url=url)
    assert done.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_a_publisher_on_the_command_line_says_how_many_lines_were_published(relay):
    program = relay("--max-message-bytes", 10_000, "--max-publishes", 3)
    done = client_of(program, "publish", "news", input="x\n" * 1000)
    limit = r"client\.py: not published: at most 3 publishes a second for each client; lines published before: (\d+)\n"
    assert done.returncode == 1
    assert 3 <= int(re.fullmatch(limit, done.stderr)[1]) < 1000
    done = client_of(program, "publish", "news", input=f"1\n{'2' * 10_000}\n3\n")
    assert done.returncode == 1
    assert re.fullmatch(
        r"client\.py: connection closed with code 1009.*; lines published: 1, and perhaps the next\n", done.stderr
    )
    done = client_of(program, "publish", "news", "x" * 10_000)
    assert done.returncode == 1
    assert re.fullmatch(r"client\.py: connection closed with code 1009.*; perhaps it was published\n", done.stderr)
    # As after `tail -f`: the next line comes when the relay has ended.
    command = [sys.executable, str(RELAY / "client.py"), "--url", program.url(), "publish", "news"]
    with (
        websockets_client(program.url()) as watching,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as publishing,
    ):
        assert ask(watching, "subscribe:news") == OK
        publishing.stdin.write("1\n2\n")
        assert [watching.recv(timeout=PATIENCE) for _ in range(2)] == [b"1", b"2"]
        assert program.end() == 0
        publishing.stdin.write("3\n")
        assert publishing.wait(PATIENCE) == 1
        assert publishing.stderr.read() == (
            "client.py: connection closed with code 1001: shutting down; lines published: 2, and perhaps the next\n"
        )


def test_mistakes_of_the_command_line_client_are_one_line(relay):
    program = relay("--max-channel-bytes", 3)
    done = client_of(program, "subscribe", "long-name")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "client.py: not subscribed: a channel's name has at most 3 bytes\n"
    assert client_of(program, "publish", "a:b", "x").returncode == 2
    assert "must be like ws://" in client_of(program, "publish", "a", "x", url="http://localhost/").stderr
    assert client_of(program, "--token-file", "missing", "publish", "a", "x").returncode == 1


def test_the_load_checks_every_delivery(relay):
    program = relay()
    command = [
        sys.executable,
        str(RELAY / "load.py"),
        "--url",
        program.url(),
        "--subscribers",
        "50",
        "--messages",
        "40",
    ]
    done = subprocess.run([*command, "--channels", "3"], capture_output=True, text=True, timeout=PATIENCE * 2)
    assert done.returncode == 0, done.stderr
    assert "50 subscribers on 3 channels" in done.stdout
    assert re.search(r"^667 deliveries, each checked", done.stdout, re.MULTILINE)
    assert re.search(r"p50 [\d.]+  p90 [\d.]+  p99 [\d.]+  max [\d.]+", done.stdout)
    assert "delivering: 100%" in done.stderr


@pytest.mark.long
def test_the_load_over_tls_with_a_token_and_what_it_says_without(relay_over_tls, token_file):
    program, authority = relay_over_tls
    url = program.url("wss")

    def load(*options):
        command = [sys.executable, str(RELAY / "load.py"), "--url", url, "--subscribers", "60", "--messages", "5"]
        command += ["--in-flight", "1", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2)

    done = load("--cafile", authority, "--token-file", token_file)
    assert done.returncode == 0, done.stderr
    assert "300 deliveries, each checked" in done.stdout
    for options, said in (
        (["--cafile", authority], "dial .*: the server answered HTTP 401 Unauthorized"),
        (["--cafile", "missing"], "cannot read the certificates in 'missing': .*"),
        ([], "dial .*CERTIFICATE_VERIFY_FAILED.*"),
    ):
        done = load(*options)
        assert done.returncode == 1
        assert re.fullmatch(rf"load\.py: FAILED: {said}", done.stderr.splitlines()[-1])
        assert "Greenlet" not in done.stderr
        assert "Traceback" not in done.stderr


def test_the_load_fails_on_what_is_not_its_own(relay):
    program = relay()
    command = [sys.executable, str(RELAY / "load.py"), "--url", program.url(), "--subscribers", "5"]
    command += ["--messages", "100000000", "--seconds", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        output = []
        reading = threading.Thread(target=lambda: output.append(process.stderr.read()))
        reading.start()
        with websockets_client(program.url()) as intruder:
            program.wait_for("Connection accepted 6 ")
            # Until the subscribers have subscribed it goes to nobody.
            while process.poll() is None:
                assert ask(intruder, b"publish:load-0:" + b"\0" * 16) == OK
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
            assert process.returncode == 1
        reading.join(PATIENCE)
    assert re.search(r"FAILED: subscriber \d received 0 where \d+ was due", output[0])

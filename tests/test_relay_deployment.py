"""The systemd unit and the nginx snippet of the relay's README, tried: what is written there is what runs here."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import urllib.request

import pytest
from conftest import PATIENCE, RELAY, wait_until
from nginx_server import needs_nginx, running_nginx
from programs import fences, snippets, websockets_client
from redis_server import free_port, needs_redis
from websockets.exceptions import InvalidStatus

from gowsev.channels import Remote

DOCUMENT = "examples/subscribe_publish/README.md"
ANALYZE = shutil.which("systemd-analyze")


def block(language):
    """The README's fenced block of one language."""
    (found,) = (fence.text for fence in fences(DOCUMENT) if fence.language == language)
    return found


def replaced(text, **replacements):
    """`text` with each of these, found exactly as often as it must be, replaced."""
    for old, new in replacements.values():
        assert old in text, old
        text = text.replace(old, str(new))
    return text


@snippets(DOCUMENT, "relay.service")
@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze (Debian's package systemd)")
def test_the_unit_is_one_that_systemd_understands(tmp_path):
    unit = tmp_path / "relay.service"
    # The program must exist, and Redis's unit may not be installed here.
    text = replaced(block("ini"), python=("/opt/gowsev/.venv/bin/python", shutil.which("python3")))
    unit.write_text(replaced(text, redis=(" redis-server.service", "")))
    done = subprocess.run([ANALYZE, "verify", unit], capture_output=True, text=True, timeout=PATIENCE)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "relay.service" in line]
    assert complaints == []


def test_the_unit_starts_the_relay_with_options_that_it_has(run):
    arguments = block("ini").split("relay.py", 1)[1].split("ExecReload")[0].replace("\\\n", " ").split()
    shown = run(RELAY / "relay.py", "--help", COLUMNS="200", NO_COLOR="1")
    assert shown.process.wait(PATIENCE) == 0
    for option in arguments:
        assert not option.startswith("-") or re.search(rf"^  .*{option}\b", shown.output, re.MULTILINE)


def configured(port, certificate, relays, more=""):
    """The configuration of nginx, for this port, these files and the ports of these relays."""
    cert, key = certificate
    return replaced(
        block("nginx"),
        port=("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl; {more}"),
        name=("relay.example.com", "localhost"),
        cert=("/etc/ssl/relay.pem", cert),
        key=("/etc/ssl/relay.key", key),
        one=("127.0.0.1:9000", f"127.0.0.1:{relays[0]}"),
        two=("127.0.0.1:9002", f"127.0.0.1:{relays[1]}"),
    )


@needs_nginx
@snippets(DOCUMENT, "relay.conf")
def test_nginx_with_the_snippet_carries_pages_and_websockets(run, certificate, client_tls, tmp_path):
    program = run(RELAY / "relay.py", "--host", "127.0.0.1", "--port", 0, "--tls-port", "none")
    port, away = free_port(), free_port()
    snippet = configured(port, certificate, (program.url().rsplit(":", 1)[1].strip("/"), away))
    with running_nginx(tmp_path, snippet):
        tls = ssl.create_default_context()
        tls.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(c) for c in client_tls.get_ca_certs(True)))
        url = f"https://localhost:{port}/"
        for path, found in (
            ("", "<title>Relay</title>"),
            ("healthz", '"status": "ok"'),
            ("metrics", "gowsev_connections"),
        ):
            with urllib.request.urlopen(url + path, timeout=PATIENCE, context=tls) as response:
                assert found in response.read().decode()
        # As the page does it: its origin is the proxy's.
        address = f"wss://localhost:{port}/"
        with websockets_client(address, ssl=tls, origin=url.rstrip("/")) as client:
            client.send("subscribe:a")
            assert client.recv(timeout=PATIENCE) == b"OK"
            client.send(b"publish:a:" + b"x" * 500_000)
            assert [client.recv(timeout=PATIENCE) for _ in range(2)] == [b"OK", b"x" * 500_000]
        with pytest.raises(InvalidStatus) as refused:
            websockets_client(address, ssl=tls, origin="https://elsewhere.example").__enter__()
        assert refused.value.response.status_code == 403


@needs_nginx
@needs_redis
def test_over_a_rolling_restart_nobody_gets_a_502_or_misses_a_message(
    run, redis_server, certificate, client_tls, tmp_path
):
    ports, port = [free_port(), free_port()], free_port()

    def start(number):
        program = run(
            RELAY / "relay.py", "--host", "127.0.0.1", "--port", ports[number], "--tls-port", "none",
            "--backplane", redis_server.url,
        )  # fmt: skip
        program.wait_for("The backplane is there")
        program.url()
        return program

    authority = tmp_path / "authority.pem"
    authority.write_text("".join(ssl.DER_cert_to_PEM_cert(one) for one in client_tls.get_ca_certs(True)))
    access = tmp_path / "access"
    relays = [start(number) for number in (0, 1)]
    with (
        running_nginx(tmp_path, configured(port, certificate, ports, f"access_log {access};")),
        Remote(redis_server.url, prefix="relay") as remote,
    ):
        options = ["--url", f"wss://localhost:{port}/", "--cafile", authority]
        clients = [run(RELAY / "client.py", *options, "subscribe", "news", "other") for _ in range(4)]

        def begun():
            remote.Publish("news", "begun")
            return all("news: begun" in client.output for client in clients)

        wait_until(begun)
        for number in range(1000):
            remote.Publish("news", f"number {number}")
            if number in (200, 600):
                assert relays[number // 600].end() == 0
            elif number in (400, 800):
                relays[number // 800] = start(number // 800)
        for client in clients:
            client.wait_for("^news: number 999$")
            numbers = re.findall(r"^news: number (\d+)$", client.output, re.MULTILINE)
            assert numbers == [str(number) for number in range(1000)]
            assert "lost" not in client.output
    assert sum(program.output.count("Connection accepted") for program in relays) > 0
    assert '" 502 ' not in access.read_text()
    assert access.read_text().count('" 101 ') > 4  # some have come back

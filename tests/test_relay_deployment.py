"""The systemd unit and the nginx snippet of the relay's README, tried: what is written there is what runs here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import PATIENCE, RELAY, answered, wait_until
from haproxy_server import needs_haproxy, running_haproxy
from nginx_server import needs_nginx, needs_stream, running_nginx
from programs import fences, snippets, websockets_client
from redis_server import CLI, SERVER, free_port, needs_redis
from websockets.exceptions import InvalidStatus

from gowsev.channels import Remote

DOCUMENT = "examples/subscribe_publish/README.md"
ANALYZE = shutil.which("systemd-analyze")

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (Debian's package curl)")


def block(language, name=""):
    """The README's fenced block of one language, or the one of these that begins with this name."""
    (found,) = (one.text for one in fences(DOCUMENT) if one.language == language and one.text.startswith(f"# {name}"))
    return found


def replaced(text, **replacements):
    """`text` with each of these, found exactly as often as it must be, replaced."""
    for old, new in replacements.values():
        assert old in text, old
        text = text.replace(old, str(new))
    return text


@snippets(DOCUMENT, "relay.service")
@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze (Debian's package systemd)")
@pytest.mark.parametrize(("name", "port"), [("relay.service", "9000"), ("relay@.service", "%i")])
def test_the_unit_is_one_that_systemd_understands(tmp_path, name, port):
    unit = tmp_path / name
    # The programs must exist, and Redis's unit may not be installed here.
    python = sys.executable
    text = replaced(block("ini"), python=("/opt/gowsev/.venv/bin/python", python), kill=("=kill ", f"={python} "))
    text = replaced(text, redis=(" redis-server.service", ""), port=("--port 9000 ", f"--port {port} "))
    unit.write_text(text)
    started = tmp_path / name.replace("@", "@9002")
    done = subprocess.run([ANALYZE, "verify", started], capture_output=True, text=True, timeout=PATIENCE)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "relay" in line]
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
        block("nginx", "relay.conf"),
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
        for path, found in (("", "<title>Relay</title>"), ("healthz", '"status": "ok"')):
            with urllib.request.urlopen(url + path, timeout=PATIENCE, context=tls) as response:
                assert found in response.read().decode()
        with answered(403):
            urllib.request.urlopen(url + "metrics", timeout=PATIENCE, context=tls)
        # As the page does it: its origin is the proxy's.
        address = f"wss://localhost:{port}/"
        with websockets_client(address, tls=tls, origin=url.rstrip("/")) as client:
            client.send("subscribe:a")
            assert client.recv(timeout=PATIENCE) == b"OK"
            client.send(b"publish:a:" + b"x" * 500_000)
            assert [client.recv(timeout=PATIENCE) for _ in range(2)] == [b"OK", b"x" * 500_000]
        with pytest.raises(InvalidStatus) as refused:
            websockets_client(address, tls=tls, origin="https://elsewhere.example").__enter__()
        assert refused.value.response.status_code == 403


@needs_stream
@snippets(DOCUMENT, "stream.conf")
def test_nginx_that_passes_tcp_on_tells_whose_connection_it_is_and_passes_a_relay_over(
    run, certificate, client_tls, tmp_path
):
    options = ["--tls-port", "none", "--trusted-proxy", "127.0.0.1", "--proxy-header", "proxy-protocol"]
    relays = [run(RELAY / "relay.py", "--host", "127.0.0.1", "--port", 0, *options) for _ in range(2)]
    one, two = (re.search(r":(\d+)/", program.wait_for("Listening on .*")[0])[1] for program in relays)
    port, (cert, key) = free_port(), certificate
    stream = replaced(
        block("nginx", "stream.conf"),
        port=("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        cert=("/etc/ssl/relay.pem", cert),
        key=("/etc/ssl/relay.key", key),
        one=("127.0.0.1:9000", f"127.0.0.1:{one}"),
        two=("127.0.0.1:9002", f"127.0.0.1:{two}"),
    )
    tls = ssl.create_default_context()
    tls.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(c) for c in client_tls.get_ca_certs(True)))
    url = f"https://localhost:{port}"

    def connects():
        """A client is answered; return its own port."""
        with websockets_client(f"wss://localhost:{port}/", tls=tls, origin=url) as client:
            client.send("subscribe:a")
            assert client.recv(timeout=PATIENCE) == b"OK"
            return client.socket.getsockname()[1]

    with running_nginx(tmp_path, stream=stream):
        with urllib.request.urlopen(url, timeout=PATIENCE, context=tls) as response:
            assert "<title>Relay</title>" in response.read().decode()
        for number in [connects() for _ in range(4)]:
            line = f"Connection accepted [0-9]+ from 127.0.0.1:{number}$"
            wait_until(lambda line=line: any(re.search(line, program.output, re.MULTILINE) for program in relays))
        assert all("Connection accepted" in program.output for program in relays)
        assert relays[0].end() == 0
        assert all(connects() for _ in range(4))


@pytest.fixture
def deployed(run, redis_server, certificate, client_tls, tmp_path):
    """What a rolling restart is tried with: relays, and what is in front of them."""
    return Deployed(run, redis_server.url, certificate, client_tls, tmp_path)


class Deployed:
    def __init__(self, run, url, certificate, client_tls, folder):
        self.run, self.url, self.certificate, self.folder = run, url, certificate, folder
        self.port, *self.metrics = (free_port() for _ in range(3))
        self.authority = folder / "authority.pem"
        self.authority.write_text("".join(ssl.DER_cert_to_PEM_cert(one) for one in client_tls.get_ca_certs(True)))
        self.access = folder / "access"

    def relay(self, port, *options):
        own = ["--host", "127.0.0.1", "--port", port, "--tls-port", "none", "--backplane", self.url]
        program = self.run(RELAY / "relay.py", *own, *options)
        program.wait_for("The backplane is there")
        return program

    def nginx(self, ports):
        return running_nginx(self.folder, configured(self.port, self.certificate, ports, f"access_log {self.access};"))

    def haproxy(self, ports):
        both = self.folder / "both.pem"
        both.write_bytes(b"".join(Path(path).read_bytes() for path in self.certificate))
        lines = replaced(
            block("haproxy"),
            port=("bind :443 ", f"bind 127.0.0.1:{self.port} "),
            cert=("/etc/ssl/relay-and-key.pem", both),
            one=("127.0.0.1:9000", f"127.0.0.1:{ports[0]}"),
            two=("127.0.0.1:9002", f"127.0.0.1:{ports[1]}"),
            first=("127.0.0.1:9100", f"127.0.0.1:{self.metrics[0]}"),
            second=("127.0.0.1:9102", f"127.0.0.1:{self.metrics[1]}"),
        )
        return running_haproxy(self.folder, self.port, lines)

    def nothing_is_missed(self, steps):
        """Publish 1,000 messages, with a step behind some; each of four clients gets each of them once, in order."""
        options = ["--url", f"wss://localhost:{self.port}/", "--cafile", self.authority]
        clients = [self.run(RELAY / "client.py", *options, "subscribe", "news", "other") for _ in range(4)]
        with Remote(self.url, prefix="relay") as remote:

            def begun():
                remote.Publish("news", "begun")
                return all("news: begun" in client.output for client in clients)

            wait_until(begun)
            for number in range(1000):
                remote.Publish("news", f"number {number}")
                if number in steps:
                    steps[number]()
        for client in clients:
            client.wait_for("^news: number 999$")
            numbers = re.findall(r"^news: number (\d+)$", client.output, re.MULTILINE)
            assert numbers == [str(number) for number in range(1000)]
            assert "lost" not in client.output
        return clients

    def connects(self):
        """One more client comes and goes."""
        tls = ssl.create_default_context(cafile=self.authority)
        with websockets_client(f"wss://localhost:{self.port}/", tls=tls):
            return True

    def nobody_got_a_502(self):
        assert '" 502 ' not in self.access.read_text()
        assert self.access.read_text().count('" 101 ') > 4  # some have come back


@pytest.mark.long
@needs_redis
@pytest.mark.parametrize(
    "front", [pytest.param("nginx", marks=needs_nginx), pytest.param("haproxy", marks=needs_haproxy)]
)
@snippets(DOCUMENT, "relay.cfg")
def test_over_a_rolling_restart_nobody_gets_a_502_or_misses_a_message(deployed, front):
    ports = [free_port(), free_port()]
    options = ["--trusted-proxy", "127.0.0.1", "--proxy-header", "proxy-protocol"] if front == "haproxy" else []
    relays = [deployed.relay(port, *options) for port in ports]

    def ended(number):
        return lambda: relays[number].end()

    def started(number):
        def start():
            relays[number] = deployed.relay(ports[number], *options)
            wait_until(lambda: deployed.connects() and "Connection accepted" in relays[number].output)

        return start

    with getattr(deployed, front)(ports):
        clients = deployed.nothing_is_missed({200: ended(0), 400: started(0), 600: ended(1), 800: started(1)})
        if front == "haproxy":
            assert [
                line
                for client in clients
                for line in client.output.splitlines()
                if re.search(r"\b50[23]\b", line) and "number" not in line
            ] == []
            tls = ssl.create_default_context(cafile=deployed.authority)
            with answered(403):
                urllib.request.urlopen(f"https://localhost:{deployed.port}/metrics", timeout=PATIENCE, context=tls)
            for port in deployed.metrics:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as response:
                    assert b"relay_subscriptions" in response.read()
    if front == "nginx":
        deployed.nobody_got_a_502()


@pytest.mark.long
@needs_redis
@needs_curl
@snippets(DOCUMENT, "restart.sh")
def test_the_loop_over_two_units_waits_for_the_first_before_it_ends_the_second(deployed, tmp_path):
    ports = [free_port(), free_port()]
    asked = tmp_path / "asked"
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    systemctl.chmod(0o700)
    loop = replaced(block("bash"), one=(" 9000 ", f" {ports[0]} "), two=(" 9002;", f" {ports[1]};"))
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", "-c", loop], env=environ) as process:
        for count, port in enumerate(ports, 1):
            wait_until(lambda count=count: asked.exists() and len(asked.read_text().splitlines()) == count)
            time.sleep(1.5)  # in which it asks for /healthz, and nothing more may come
            assert asked.read_text().splitlines()[-1] == f"restart relay@{port}"
            deployed.relay(port)
        assert process.wait(PATIENCE) == 0
    assert asked.read_text() == "".join(f"restart relay@{port}\n" for port in ports)


@pytest.mark.long
@needs_redis
@needs_nginx
def test_three_workers_are_replaced_on_sighup_without_a_502_or_a_missed_message(deployed):
    port = free_port()
    program = deployed.relay(port, "--workers", 3)
    wait_until(lambda: program.output.count("The backplane is there") == 3)

    def replaced_all():
        before = program.output.count("Stopped")
        program.process.send_signal(signal.SIGHUP)
        return lambda: wait_until(lambda: program.output.count("Stopped") == before + 3)

    with deployed.nginx([port, port]):
        waits = []
        deployed.nothing_is_missed(
            {
                200: lambda: waits.append(replaced_all()),
                500: lambda: waits[0](),
                700: lambda: waits.append(replaced_all()),
            }
        )
        waits[1]()
    deployed.nobody_got_a_502()
    assert program.output.count("Listening on") == 9
    assert program.end() == 0


# -- containers ------------------------------------------------------------------------------------------------------

DEPLOY = RELAY / "deploy"
ROOT = RELAY.parent.parent


@pytest.fixture
def services():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.fixture
def steps():
    """The steps of the Containerfile: pairs of an instruction and what it is given."""
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    return [line.split(" ", 1) for line in lines if not line.startswith("#")]


def given(steps, instruction):
    return [rest for name, rest in steps if name == instruction]


@pytest.mark.long
def test_what_the_containerfile_copies_is_enough_to_install(steps, tmp_path):
    for copied in given(steps, "COPY")[:-1]:  # the last one is behind the installation
        *names, to = copied.split()
        for name in names:
            source, target = ROOT / name, tmp_path / "opt" / to / (name if to == "./" else "")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)
    (installing,) = given(steps, "RUN")
    program, action, *options = shlex.split(installing)
    assert (program, action, options[-1]) == ("pip", "install", ".[relay]")
    # The packages that it needs are here, but for those that compile; and where it is installed is not to be changed.
    command = [sys.executable, "-m", "pip", action, *options[:-1], ".", "--no-deps", "--no-build-isolation"]
    command += ["--quiet", "--target", tmp_path / "installed"]
    environ = os.environ | {"GOWSEV_BUILD": "pure"}
    subprocess.run(command, cwd=tmp_path / "opt", env=environ, check=True, timeout=PATIENCE * 4)
    assert (tmp_path / "installed" / "gowsev" / "channels" / "scripts.py").is_file()
    assert given(steps, "COPY")[-1] == "examples/subscribe_publish examples/subscribe_publish"


@needs_redis
def test_the_relays_of_the_compose_file_serve_and_their_health_checks_tell(run, steps, services, redis_server):
    own = services["relay-1"]
    assert services["relay-2"] == own
    assert (ROOT / json.loads(given(steps, "ENTRYPOINT")[0])[1]) == RELAY / "relay.py"
    assert json.loads(given(steps, "CMD")[0]) == own["command"][:2]
    (checked,) = given(steps, "HEALTHCHECK")
    assert json.loads(checked.partition("CMD ")[2]) == own["healthcheck"]["test"][1:]
    where = own["command"].index("redis://redis:6379/0")
    options = [*own["command"][:where], redis_server.url, *own["command"][where + 1 :]]
    port = free_port()
    program = run(RELAY / "relay.py", "--port", port, *options)
    program.wait_for("The backplane is there")
    check = [text.replace(":9000", f":{port}") for text in own["healthcheck"]["test"][1:]]

    def healthy():
        return subprocess.run([sys.executable, *check[1:]], capture_output=True, timeout=PATIENCE).returncode == 0

    wait_until(healthy)
    assert program.end() == 0
    assert not healthy()


@needs_redis
def test_the_redis_of_the_compose_file_starts_and_its_health_check_tells(services, tmp_path):
    port = free_port()
    program, *options = services["redis"]["command"]
    command = [shutil.which(program) or SERVER, *options, "--port", str(port), "--dir", tmp_path]
    _, cli, *asked = services["redis"]["healthcheck"]["test"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        check = [shutil.which(cli) or CLI, "-p", str(port), *asked]
        wait_until(lambda: subprocess.run(check, capture_output=True).returncode == 0)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_nginx_of_the_compose_file_is_configured_as_the_one_that_was_tried(services):
    tried = replaced(
        block("nginx", "relay.conf"),
        one=("127.0.0.1:9000", "relay-1:9000"),
        two=("127.0.0.1:9002", "relay-2:9000"),
        name=("relay.example.com", "_"),
    )
    assert (DEPLOY / "relay.conf").read_text() == tried
    assert {"relay-1", "relay-2"} < services.keys()
    assert all("healthcheck" in service for service in services.values())

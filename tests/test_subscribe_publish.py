"""The relay of examples/subscribe_publish: its grammar in process, and the whole of it as a program of its own.

The clients of the program are other people's: websockets and websocket-client.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys

import localhost_certificate as certificates
import pytest
import relay
from conftest import PATIENCE, RELAY, wait_until
from hypothesis import given
from hypothesis import strategies as st
from programs import outcomes, websocket_client, websockets_client
from websockets.exceptions import ConnectionClosed, InvalidStatus

EXAMPLE = RELAY / "relay.py"
#: What is of the example in its directory: tests of it may have left a certificate.
SOURCES = {path.name for path in EXAMPLE.parent.iterdir() if path.suffix in {".py", ".html", ".css", ".js", ".svg"}}

OK = (2, b"OK")
INVALID = (2, b"Invalid message")


# -- the grammar -----------------------------------------------------------------------------------------------------

# What follows the colon of "subscribe:" and "unsubscribe:", and the channel it names; b"" if the message is invalid.
# Every row was given to Go's fmt.Sscanf(message, "subscribe:%s", &channel) too; it agrees in all but the last group.
CHANNELS = [
    (b"a", b"a"),
    (b"news.today", b"news.today"),
    ("zürich-東京".encode(), "zürich-東京".encode()),
    (b"a:b", b"a:b"),
    (b":", b":"),
    (b"\0a", b"\0a"),
    # an empty name
    (b"", b""),
    (b"   ", b""),
    ("\u2028".encode(), b""),
    # white space before the name is skipped
    (b" a", b"a"),
    (b" \t\v\f a", b"a"),
    (b"\ra", b"a"),
    ("\u00a0a".encode(), b"a"),
    (" \u2003 a".encode(), b"a"),
    ("\u0085a".encode(), b"a"),
    ("\u2029a".encode(), b"a"),
    # but not the end of a line
    (b"\na", b""),
    (b"\r\na", b""),
    (b"\r\r\na", b""),
    (b" \na", b""),
    ("\u00a0\na".encode(), b""),
    # white space ends the name, and what follows is ignored
    (b"a b", b"a"),
    (b"a\nb", b"a"),
    (b"a\r\n", b"a"),
    (b"a:b c:d", b"a:b"),
    ("a\u00a0b".encode(), b"a"),
    ("a\u3000b".encode(), b"a"),
    # what looks like white space, and is none
    ("a\u200bb".encode(), "a\u200bb".encode()),
    ("a\u180eb".encode(), "a\u180eb".encode()),
    ("\ufeffa".encode(), "\ufeffa".encode()),
    (b"\x1ca", b"\x1ca"),
    (b"a\x1cb", b"a\x1cb"),
    # bytes that are no UTF-8 are part of the name (Go makes each U+FFFD)
    (b"\xff\xfe", b"\xff\xfe"),
    (b"a\x85b", b"a\x85b"),
    (b"a\xa0b", b"a\xa0b"),
    (b"a\xe2\x80", b"a\xe2\x80"),
    (b"a\xe2\x80b", b"a\xe2\x80b"),
    (b"\xe2\x80 a", b"\xe2\x80"),
    (b"\xc0\xa0a", b"\xc0\xa0a"),
    (b"\xed\xa0\x80a", b"\xed\xa0\x80a"),
]

# Messages that are neither, or not quite, a command.
INVALID_MESSAGES = [
    b"",
    b"hello",
    b"subscribe",
    b"Subscribe:a",
    b" subscribe:a",
    b"subscribe :a",
    b"\nsubscribe:a",
    b"resubscribe:a",
    b"unsubscribe",
    b"unsubscribe-all:",
    b"unsubscribe-all\n",
    b" unsubscribe-all",
    b"unsubscribe-all:a",
    b"UNSUBSCRIBE-ALL",
    b"publish",
    b"publish:",
    b"publish:a",
    b" publish:a:b",
    b"publish :a:b",
    b"Publish:a:b",
    b"\xff",
    b"\xffpublish:a:b",
]

# "publish" is split as Go's strings.SplitN(message, ":", 3) does it: (message, channel, body).
PUBLISHES = [
    (b"publish:a:hello", b"a", b"hello"),
    (b"publish:a:", b"a", b""),
    (b"publish:a:b:c::", b"a", b"b:c::"),
    (b"publish:a: hello\r\n", b"a", b" hello\r\n"),
    (b"publish:a:\x00\xff\xfe\x80", b"a", b"\x00\xff\xfe\x80"),
    (b"publish:\xff\xfe:\xff", b"\xff\xfe", b"\xff"),
    (b"publish:a:publish:a:b", b"a", b"publish:a:b"),
    (b"publish:a:" + b"\xe2" * 100_000, b"a", b"\xe2" * 100_000),
]

# Valid, and reaching nobody: no message subscribes to such a channel.
PUBLISHES_TO_NOBODY = [
    b"publish::hello",
    b"publish:::",
    b"publish: a:hello",
    b"publish:a b:hello",
    b"publish:a\n:hello",
]


@pytest.fixture
def service(serve):
    return serve(relay.Service())


def ask(client, message):
    """Send a message; return the frame that answers it."""
    client.send_binary(message)
    return client.read_frame()


def subscriptions(server):
    """The pairs of id and channel; checks that both maps say the same, and hold nothing empty."""
    service = server.handler
    pairs = {(id, channel) for id, channels in service.channels_of.items() for channel in channels}
    assert pairs == {(id, channel) for channel, ids in service.ids_of.items() for id in ids}
    assert all(service.channels_of.values())
    assert all(service.ids_of.values())
    return pairs


@pytest.mark.parametrize(("rest", "channel"), CHANNELS)
def test_subscribe_and_unsubscribe_name_a_channel(service, rest, channel):
    client = service.client()
    assert ask(client, b"subscribe:" + rest) == (OK if channel else INVALID)
    assert subscriptions(service) == ({(1, channel)} if channel else set())
    if channel:
        assert ask(client, b"unsubscribe:" + channel + b" ignored") == OK
        assert subscriptions(service) == set()
        assert ask(client, b"subscribe:" + channel) == OK
    assert ask(client, b"unsubscribe:" + rest) == (OK if channel else INVALID)
    assert subscriptions(service) == set()


@pytest.mark.parametrize("message", INVALID_MESSAGES)
def test_anything_else_is_invalid_and_changes_nothing(service, message):
    client = service.client()
    assert ask(client, b"subscribe:a") == OK
    assert ask(client, message) == INVALID
    assert subscriptions(service) == {(1, b"a")}


@pytest.mark.parametrize(("message", "channel", "body"), PUBLISHES)
def test_publish_sends_the_body_alone_to_every_subscriber(service, message, channel, body):
    publisher, both, other, nobody = (service.client() for _ in range(4))
    assert ask(publisher, b"subscribe:" + channel) == OK
    assert ask(both, b"subscribe:" + channel) == OK
    assert ask(both, b"subscribe:other") == OK
    assert ask(other, b"subscribe:other") == OK

    publisher.send_binary(message)
    # The publisher is a subscriber too, and its OK comes first.
    assert [publisher.read_frame(), publisher.read_frame()] == [OK, (2, body)]
    assert both.read_frame() == (2, body)
    for client in (publisher, both, other, nobody):
        # Nothing else came: the next frame is the answer to the next message.
        assert ask(client, b"?") == INVALID


@pytest.mark.parametrize("message", PUBLISHES_TO_NOBODY)
def test_a_publish_to_a_channel_that_nobody_can_have_is_ok(service, message):
    client = service.client()
    for channel in (b"a", b":", b"hello", b"a:hello"):
        assert ask(client, b"subscribe:" + channel) == OK
    assert ask(client, message) == OK
    assert ask(client, b"?") == INVALID


def test_a_publisher_that_is_no_subscriber_gets_its_ok_only(service):
    publisher, subscriber = service.client(), service.client()
    assert ask(subscriber, b"subscribe:a") == OK
    assert ask(publisher, b"publish:a:one") == OK
    assert ask(publisher, b"publish:a:two") == OK
    assert [subscriber.read_frame(), subscriber.read_frame()] == [(2, b"one"), (2, b"two")]
    assert ask(publisher, b"?") == INVALID


def test_text_messages_are_commands_too_and_answers_are_binary(service):
    client = service.client()
    for text in ("subscribe:zürich", "publish:zürich:grüezi"):
        client.send_text(text)
        assert client.read_frame() == OK
    assert client.read_frame() == (2, "grüezi".encode())
    client.send_text("nonsense")
    assert client.read_frame() == INVALID


def test_subscribing_twice_is_once(service):
    client = service.client()
    assert ask(client, b"subscribe:a") == OK
    assert ask(client, b"subscribe:a") == OK
    client.send_binary(b"publish:a:x")
    assert [client.read_frame(), client.read_frame()] == [OK, (2, b"x")]
    assert ask(client, b"unsubscribe:a") == OK
    assert ask(client, b"publish:a:x") == OK
    assert ask(client, b"?") == INVALID


def test_unsubscribing_from_what_one_has_not_is_ok_and_harms_nobody(service):
    one, two = service.client(), service.client()
    assert ask(one, b"subscribe:a") == OK
    for message in (b"unsubscribe:a", b"unsubscribe:b", b"unsubscribe-all"):
        assert ask(two, message) == OK
    assert subscriptions(service) == {(1, b"a")}


def test_unsubscribe_all_ends_ones_own_subscriptions(service):
    one, two = service.client(), service.client()
    for client in (one, two):
        for channel in (b"a", b"b", b"c"):
            assert ask(client, b"subscribe:" + channel) == OK
    assert ask(one, b"unsubscribe-all") == OK
    assert subscriptions(service) == {(2, b"a"), (2, b"b"), (2, b"c")}
    assert ask(two, b"unsubscribe-all") == OK
    assert service.handler.channels_of == service.handler.ids_of == {}


@pytest.mark.parametrize("end", ["send_close", "close", "reset"])
def test_subscriptions_end_with_the_connection(service, end):
    one, two = service.client(), service.client()
    assert ask(one, b"subscribe:a") == OK
    assert ask(one, b"subscribe:b") == OK
    assert ask(two, b"subscribe:b") == OK
    getattr(one, end)()
    wait_until(lambda: service.context.Conn(1) is None)
    assert subscriptions(service) == {(2, b"b")}
    two.send_binary(b"publish:b:still here")
    assert [two.read_frame(), two.read_frame()] == [OK, (2, b"still here")]


def test_white_space_is_exactly_that_of_unicode():
    # `str.isspace` also takes the four information separators, which are no White_Space.
    spaces = {chr(c) for c in range(0x110000) if chr(c).isspace()} - set("\x1c\x1d\x1e\x1f")
    ending = {
        character
        for character in map(chr, range(0x10000))
        if relay.scan_channel(b"subscribe:", f"subscribe:a{character}b".encode("utf-8", "surrogatepass")) == b"a"
    }
    assert ending == spaces


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(1, 3), st.sampled_from([b"a", b"b", b"c"]))))
def test_the_two_maps_always_agree(steps):
    service, expected = relay.Service(), set()
    for step, id, channel in steps:
        if step == "+":
            service.subscribe(id, channel)
            expected.add((id, channel))
        elif step == "-":
            service.unsubscribe(id, channel)
            expected.discard((id, channel))
        else:
            service.unsubscribe_all(id)
            expected = {pair for pair in expected if pair[0] != id}
        assert {(i, c) for i, channels in service.channels_of.items() for c in channels} == expected
        assert {(i, c) for c, ids in service.ids_of.items() for i in ids} == expected
        assert all(service.channels_of.values())
        assert all(service.ids_of.values())


# -- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """The example by itself in a directory of its own, where it may leave its certificate."""
    folder = tmp_path / "example"
    folder.mkdir()
    for name in SOURCES:
        shutil.copy(EXAMPLE.with_name(name), folder)
    return folder / "relay.py"


def files_beside(copy):
    """What is in the example's directory besides its sources."""
    return {path.name for path in copy.parent.iterdir()} - SOURCES - {"__pycache__"}


def trusting(cert):
    """TLS settings of a client that trusts this certificate, checks its names and is strict about its form."""
    context = ssl.create_default_context(cafile=cert)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert context.check_hostname
    return context


def test_clients_of_both_libraries_meet_over_plain_and_tls(run, copy):
    program = run(copy, "--port", 0, "--tls-port", 0)
    tls_url = program.url("wss")
    cert = copy.with_name("localhost-cert.pem")
    with (
        websockets_client(program.url()) as plain,
        websockets_client(tls_url, tls=trusting(cert)) as encrypted,
        websocket_client(program.url()) as other_plain,
        websocket_client(tls_url, tls=trusting(cert)) as other_encrypted,
    ):
        websockets = [plain, encrypted, other_plain, other_encrypted]
        for client in websockets:
            client.send("subscribe:zürich")
            assert client.recv() == b"OK"
        bodies = ["grüezi".encode(), b"", b"a:b", b"\x00\xff", b"x" * 200_000]
        for publisher, body in zip([*websockets, plain], bodies, strict=True):
            message = "publish:zürich:".encode() + body
            if publisher in (plain, encrypted):
                publisher.send(message)
            else:
                publisher.send_binary(message)
            assert publisher.recv() == b"OK"
            assert [client.recv() for client in websockets] == [body] * 4
        other_plain.send("subscribe:")
        assert other_plain.recv() == b"Invalid message"
    program.wait_for("Connection accepted 4")
    for id in (1, 2, 3, 4):
        program.wait_for(f"Connection closed {id}: code ")
    assert program.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(run, copy, number):
    program = run(copy, "--port", 0, "--tls-port", 0)
    cert = copy.with_name("localhost-cert.pem")
    with (
        websockets_client(program.url()) as one,
        websocket_client(program.url("wss"), tls=trusting(cert)) as two,
    ):
        program.process.send_signal(number)
        with pytest.raises(ConnectionClosed) as closed:
            one.recv()
        assert closed.value.rcvd.code == 1001
        opcode, payload = two.recv_data()
        assert (opcode, payload[:2]) == (8, (1001).to_bytes(2, "big"))
    assert program.process.wait(PATIENCE) == 0
    assert "Traceback" not in program.output
    assert program.output.rstrip().endswith("Stopped")


def test_the_certificate_of_the_first_start_is_kept(run, copy):
    cert, key = copy.with_name("localhost-cert.pem"), copy.with_name("localhost-key.pem")
    kept = None
    for start in ("first", "second"):
        program = run(copy, "--port", 0, "--tls-port", 0)
        with websockets_client(program.url("wss"), tls=trusting(cert)) as client:
            client.send("unsubscribe-all")
            assert client.recv() == b"OK"
        assert program.end() == 0
        assert ("Made a self-signed certificate" in program.output) == (start == "first")
        files = cert.read_bytes(), key.read_bytes()
        assert files == (kept or files)
        kept = files
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert files_beside(copy) == {cert.name, key.name}


@pytest.fixture
def without_cryptography(tmp_path):
    """The environment of a program that cannot import `cryptography`."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "cryptography.py").write_text("raise ImportError('not installed')\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
def test_the_command_openssl_makes_the_certificate_too(run, copy, without_cryptography):
    program = run(copy, "--port", 0, "--tls-port", 0, **without_cryptography)
    url = program.url("wss")
    with websockets_client(url, tls=trusting(copy.with_name("localhost-cert.pem"))) as client:
        client.send("unsubscribe-all")
        assert client.recv() == b"OK"
    assert stat.S_IMODE(copy.with_name("localhost-key.pem").stat().st_mode) == 0o600
    assert program.end() == 0


def test_with_neither_it_says_so_in_one_line_and_goes_on_without_tls(run, copy, without_cryptography):
    program = run(copy, "--port", 0, "--tls-port", 0, **without_cryptography, PATH="")
    with websockets_client(program.url()) as client:
        client.send("subscribe:a")
        assert client.recv() == b"OK"
    assert program.end() == 0
    said = [line for line in program.output.splitlines() if "TLS" in line]
    assert len(said) == 1
    assert re.search(r"No TLS: .*cryptography or the command openssl\. .*--cert", said[0])
    assert "wss://" not in program.output
    assert "Traceback" not in program.output
    assert files_beside(copy) == set()


def test_an_openssl_that_fails_is_quoted_and_leaves_nothing_behind(run, copy, without_cryptography, tmp_path):
    broken = tmp_path / "openssl"
    broken.write_text("#!/bin/sh\necho first >&2\necho no entropy today >&2\nexit 1\n")
    broken.chmod(0o700)
    program = run(copy, "--port", 0, "--tls-port", 0, **without_cryptography, PATH=str(tmp_path))
    program.wait_for(r"No TLS: .*no entropy today\.")
    program.url()
    assert program.end() == 0
    assert files_beside(copy) == set()


def test_a_directory_that_takes_no_files_means_no_certificate(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(certificates.NoCertificate, match=r"cannot make a certificate in .*file: "):
        certificates.ensure_certificate(file / "cert.pem", file / "key.pem")


def test_a_certificate_of_ones_own(run, copy, certificate, client_tls):
    cert, key = certificate
    program = run(copy, "--port", 0, "--tls-port", 0, "--cert", cert, "--key", key)
    authority = ssl.create_default_context()
    authority.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(c) for c in client_tls.get_ca_certs(True)))
    with websockets_client(program.url("wss"), tls=authority) as client:
        client.send("unsubscribe-all")
        assert client.recv() == b"OK"
    assert program.end() == 0
    assert files_beside(copy) == set()


@pytest.mark.parametrize("option", ["--port", "--tls-port"])
def test_a_port_in_use_is_one_clear_line_and_exit_code_2(run, copy, certificate, option):
    cert, key = certificate
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        ports = {"--port": 0, "--tls-port": 0} | {option: number}
        arguments = [word for pair in ports.items() for word in pair]
        program = run(copy, "--host", "127.0.0.1", *arguments, "--cert", cert, "--key", key)
        assert program.process.wait(PATIENCE) == 2
    assert program.output == f"relay.py: error: cannot listen on 127.0.0.1:{number}: Address already in use\n"


# What is wrong with the command line, and what the last line says of it.
MISTAKES = [
    (["--port", "http"], r"argument --port: a port is a number from 0 to 65535, not 'http'"),
    (["--port", "65536"], r"argument --port: a port is a number from 0 to 65535, not '65536'"),
    (["--port", "-1"], r"argument --port: .*"),
    (["--tls-port", "no"], r"argument --tls-port: a port is a number from 0 to 65535, not 'no'"),
    (["--cert", "cert.pem"], r"--cert and --key go together"),
    (["--key", "key.pem"], r"--cert and --key go together"),
    (["--port", "0", "--cert", "a", "--key", "b"], r"cannot read the certificate in 'a' and 'b': No such file .*"),
    (["--host", "192.0.2.1"], r"cannot listen on 192\.0\.2\.1:9000: .*"),
    (["--host", "unix:/run/relay"], r"argument --host: expected a name or an address, .* TCP, not 'unix:/run/relay'"),
    (["--allowed-origin", "example.com"], r"argument --allowed-origin: .* origins like .*, not 'example\.com'"),
    (["--allowed-origin", "https://x.com/"], r"argument --allowed-origin: .* origins like .*, not 'https://x\.com/'"),
    (["extra"], r"unrecognized arguments: \.\.\.; see --help"),
]


def test_a_mistake_in_the_command_line_is_one_clear_line_and_exit_code_2(copy, tmp_path):
    ends = outcomes(tmp_path, copy, ["service"], [arguments for arguments, _ in MISTAKES])
    for (code, output), (_, said) in zip(ends, MISTAKES, strict=True):
        assert code == 2
        assert re.fullmatch(rf"relay\.py: error: {said}", output.splitlines()[-1])
        assert "Traceback" not in output


def test_help_lists_the_options(run, copy):
    program = run(copy, "--help", COLUMNS="200", NO_COLOR="1")
    assert program.process.wait(PATIENCE) == 0
    for option in ("--host", "--port", "--tls-port", "--cert", "--key", "--allowed-origin", "--verbose"):
        assert re.search(rf"^  .*{option}\b", program.output, re.MULTILINE)


def test_a_host_limits_where_it_listens(run, copy):
    program = run(copy, "--host", "127.0.0.1", "--port", 0, "--tls-port", "none")
    url = program.url()
    assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/", url)
    with websockets_client(url) as client:
        client.send("subscribe:a")
        assert client.recv() == b"OK"
    assert "wss" not in program.output
    assert program.end() == 0
    assert files_beside(copy) == set()


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        ([], "https://example.com", 403),
        (["https://example.com"], "https://example.com", 101),
        (["https://example.com"], "https://example.org", 403),
        (["https://example.com", "null"], "null", 101),
        (["*"], "https://example.org", 101),
    ],
)
def test_allow_origin_lets_pages_in(run, copy, allowed, origin, status):
    options = [word for one in allowed for word in ("--allowed-origin", one)]
    program = run(copy, "--host", "127.0.0.1", "--port", 0, "--tls-port", "none", *options)
    url = program.url()
    if status == 101:
        with websockets_client(url, origin=origin) as client:
            client.send("subscribe:a")
            assert client.recv() == b"OK"
    else:
        with pytest.raises(InvalidStatus) as refused, websockets_client(url, origin=origin):
            pass
        assert refused.value.response.status_code == status


def test_payloads_are_logged_escaped_and_only_when_asked_for(run, copy):
    for option in ([], ["--verbose"]):
        program = run(copy, "--host", "127.0.0.1", "--port", 0, "--tls-port", "none", *option)
        with websockets_client(program.url()) as client:
            client.send(b"publish:a:\x1b[31msecret\nConnection accepted 99")
            assert client.recv() == b"OK"
        program.wait_for("Connection closed 1: code 1000 after .* s, .* bytes received, .* sent$")
        assert program.end() == 0
        assert ("secret" in program.output) == bool(option)
        assert "\x1b" not in program.output
        assert not re.search("^Connection accepted 99", program.output, re.MULTILINE)
        if option:
            assert r"Connection 1 sent message b'publish:a:\x1b[31msecret\nConnection accepted 99'" in program.output


def test_importing_it_configures_no_logging_and_starts_nothing(tmp_path):
    lines = [
        "import logging, importlib.util, sys, gevent",
        f"sys.path.insert(0, {str(EXAMPLE.parent)!r})",
        f"spec = importlib.util.spec_from_file_location('relay', {str(EXAMPLE)!r})",
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))",
        "assert not logging.getLogger().handlers",
        "assert not logging.getLogger('relay').handlers",
        "print('imported')",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("imported\n", "")

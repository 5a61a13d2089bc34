"""The how-to guides of `docs/`, and its first server: what they show is run, and does what they say."""

import http.cookiejar
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import websocket
from browser import needs_chromium
from conftest import PATIENCE, answered, in_thread, wait_until
from nginx_server import needs_nginx, running_nginx
from programs import read, snippets, websocket_client, websockets_client
from redis_server import free_port
from test_gunicorn import NO_CONTROL_SOCKET, RUN
from test_readme import dial, fetch, receive
from test_relay_deployment import ANALYZE
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidHandshake, InvalidStatus

import gowsev
from gowsev.channels import Status

# -- the first server --------------------------------------------------------------------------------------------------

FIRST = "docs/first-server.md"


@snippets(FIRST, "hello.py")
def test_first_server(page):
    port = page.serve("hello.py")
    with dial(port) as one, dial(port) as two:
        assert receive(one) == "hello, you are number 1"
        assert receive(two) == "hello, you are number 2"


@snippets(FIRST, "poll.py")
def test_changed_server(page):
    port = page.serve("poll.py")
    with dial(port) as ann, dial(port) as bob:
        assert receive(ann) == receive(bob) == "no votes yet"
        ann.send("tea")
        assert receive(ann) == receive(bob) == "tea: 1"
        bob.send("coffee")
        assert receive(ann) == receive(bob) == "coffee: 1, tea: 1"
        ann.close()
        assert receive(bob) == "coffee: 1"


@needs_chromium
@snippets(FIRST, "page.py")
def test_page_of_the_poll(page, browser):
    (page.folder / "poll.py").write_text(re.search(r"```python\n(# poll\.py\n.*?)```", read(FIRST), re.DOTALL)[1])
    port = page.serve("page.py")
    tabs = [browser.open(f"http://127.0.0.1:{port}/") for _ in range(2)]
    for tab in tabs:
        tab.wait_for_text("#count", "no votes yet")
    for tab, button in zip(tabs, ("button", "button + button"), strict=True):
        tab.click(button)
    for tab in tabs:
        tab.wait_for_text("#count", "coffee: 1, tea: 1")
        assert tab.complaints == []
    page.programs[-1].end(signal.SIGKILL)
    tabs[0].wait_for_text("#count", "the server has gone")


@snippets(FIRST, "conftest.py", "test_poll.py")
def test_tests_of_the_poll(page):
    (page.folder / "poll.py").write_text(re.search(r"```python\n(# poll\.py\n.*?)```", read(FIRST), re.DOTALL)[1])
    for name in page.names:
        page.write(name)
    program = page.run("-m", "pytest", "-p", "no:cacheprovider", "test_poll.py")
    assert program.process.wait(PATIENCE * 4) == 0, program.output
    assert "2 passed" in program.output


# -- web frameworks ----------------------------------------------------------------------------------------------------


class Visitor:
    """A browser as far as cookies go."""

    def __init__(self, port):
        self.port = port
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def open(self, path, **form):
        data = urllib.parse.urlencode(form).encode() if form else None
        with self._opener.open(f"http://127.0.0.1:{self.port}{path}", data, PATIENCE) as response:
            return response.read().decode()

    def dial(self, path="/live"):
        cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.cookies)
        return dial(self.port, path, additional_headers={"Cookie": cookie}, origin=f"http://127.0.0.1:{self.port}")


@snippets("docs/flask.md", "app.py")
def test_flask(page):
    port = page.serve("app.py")
    ann, bob = Visitor(port), Visitor(port)
    with pytest.raises(InvalidStatus, match="401"):
        ann.dial()
    assert "login" in ann.open("/")
    assert "<title>Board</title>" in ann.open("/login", user="Ann")
    bob.open("/login", user="Bob")
    with ann.dial() as first:
        assert receive(first) == "Ann has come"
        with bob.dial() as second:
            assert receive(first) == receive(second) == "Bob has come"
            bob.open("/say", text="hello")
            assert receive(first) == receive(second) == "Bob: hello"
        assert receive(first) == "Bob has gone"
        page.programs[-1].process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed, match="1001"):
            receive(first)
        assert page.programs[-1].wait() == 0
    port = page.serve("app.py")
    ann = Visitor(port)
    ann.open("/login", user="Ann")
    with answered(401):
        Visitor(port).open("/say", text="hello")
    with pytest.raises(InvalidStatus, match="403"):
        dial(port, "/live", origin="http://elsewhere.example", additional_headers={"Cookie": cookie_of(ann)})


@pytest.mark.parametrize("patched", [True, False])
@snippets("docs/flask.md", "app.py")
def test_flask_under_its_development_server(page, patched):
    page.write("app.py")
    if not patched:
        app = page.folder / "app.py"
        app.write_text(app.read_text().replace("monkey.patch_all()", ""))
    program = page.run("-m", "flask", "--app", "app", "run", "--port", "0")
    visitor = Visitor(int(program.wait_for(r"Running on http://127\.0\.0\.1:(\d+)")[1]))
    visitor.open("/login", user="Ann")
    if patched:
        with visitor.dial() as client:
            assert receive(client) == "Ann has come"
    else:
        page.expect_traceback()
        with pytest.raises(InvalidStatus, match="500"):
            visitor.dial()
        program.wait_for(r"RuntimeError: ServeHTTP cannot take a connection out of this server \(Werkzeug/.*WSGIServer")


def cookie_of(visitor):
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in visitor.cookies)


LOG_IN = """
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
user = User.objects.create_user("ann", password="sesame")
session = SessionStore()
session[SESSION_KEY] = user.pk
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.create()
print("session", session.session_key)
"""


def make_project(page):
    """Make the project of docs/django.md; return a function that runs its commands."""

    def manage(*command, **environ):
        program = page.run(*command, PYTHONWARNINGS="ignore", **environ)
        assert program.process.wait(PATIENCE * 2) == 0, program.output
        return program.output

    manage("-m", "django", "startproject", "mysite", ".")
    for name in page.names:
        if name.startswith("mysite/"):
            page.write(name)
    manage("manage.py", "migrate")
    return manage


DJANGO = [f"mysite/{name}.py" for name in ("live", "wsgi", "urls")]


@pytest.mark.long
@needs_chromium
@snippets("docs/django.md", *DJANGO, "serve.py", "console.js")
def test_django_in_a_browser(page, browser):
    manage = make_project(page)
    styled = page.folder / "mysite/wsgi.py"
    handled = "StaticFilesHandler(get_wsgi_application())"
    assert f"django_application = {handled}" in read("docs/django.md")
    imported = "from django.contrib.staticfiles.handlers import StaticFilesHandler\n"
    styled.write_text(imported + styled.read_text().replace("= get_wsgi_application()", f"= {handled}"))
    who = {"DJANGO_SUPERUSER_USERNAME": "ann", "DJANGO_SUPERUSER_PASSWORD": "sesame"}
    manage("manage.py", "createsuperuser", "--noinput", "--email", "ann@example.org", **who)
    port = page.serve("serve.py")
    tab = browser.open(f"http://127.0.0.1:{port}/admin/")
    tab.fill("#id_username", "ann")
    tab.fill("#id_password", "sesame")
    tab.click("[type=submit]")
    tab.wait_for_text("h1", "Site administration")
    assert fetch(port, "/static/admin/css/base.css")
    tab.look("var said = []; console.log = (line) => said.push(line)")
    tab.look(page.write("console.js").read_text())
    tab.wait_for("socket.readyState === WebSocket.OPEN")
    assert fetch(port) == b"a page\n"
    tab.wait_for("said.join() === 'AnonymousUser looks at the page'")


@snippets("docs/django.md", *DJANGO, "serve.py")
def test_django(page):
    manage = make_project(page)
    session = re.search(r"session (\w+)", manage("manage.py", "shell", "-c", LOG_IN))[1]
    port = page.serve("serve.py")
    with pytest.raises(InvalidStatus, match="401"):
        dial(port, "/live")
    with dial(port, "/live", additional_headers={"Cookie": f"sessionid={session}"}) as client:
        assert client.ping().wait(PATIENCE)
        assert fetch(port) == b"a page\n"
        assert receive(client) == "AnonymousUser looks at the page"
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Cookie": f"sessionid={session}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            assert response.read() == b"a page\n"
        assert receive(client) == "ann looks at the page"
        page.programs[-1].process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed, match="1001"):
            receive(client)
        assert page.programs[-1].wait() == 0


# -- servers in front --------------------------------------------------------------------------------------------------


@snippets("docs/gunicorn.md", "app.py", "gunicorn.conf.py")
def test_gunicorn(page):
    page.write("app.py")
    page.write("gunicorn.conf.py", replace=[("127.0.0.1:8000", "127.0.0.1:0")])
    (page.folder / "run.py").write_text(RUN)
    server = page.run("run.py", "app:create_app()", *NO_CONTROL_SOCKET, PYTHONPATH=".", PYTHONWARNINGS="ignore")
    port = int(server.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
    server.wait_for(r"Using worker: gowsev\.gunicorn\.Worker")
    server.wait_for(r"(?s)Booting worker.*Booting worker")
    with dial(port, "/live") as client:
        client.send(b"hello")
        assert receive(client) == b"hello"
        # The page comes from either worker; only one that has begun to serve hears a signal.
        seen = set()
        wait_until(lambda: seen.add(fetch(port)) or seen == {b"0 connections\n", b"1 connections\n"})
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(Exception, match="1001"):
            receive(client)
    assert server.wait() == 0


@snippets("docs/gunicorn.md", "beside.py")
def test_connections_beside_the_pages(page):
    port = page.serve("beside.py")
    with dial(port, origin="https://www.example.org") as client:
        client.send(b"hello")
        assert receive(client) == b"hello"
    with pytest.raises(InvalidStatus, match="403"):
        dial(port, origin="https://www.example.com")


class Proxied:
    """The chat of the page behind its nginx, and clients with addresses of their own: 127.0.0.0/8 is this machine."""

    def __init__(self, page, authority, certificate):
        self._page = page
        self.port = free_port()
        self._certificate = certificate
        self.tls = ssl.create_default_context()
        authority.configure_trust(self.tls)

    def nginx(self, upstream):
        cert, key = self._certificate
        snippet = self._page.write(
            "chat.conf",
            replace=[
                ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
                ("chat.example.com", "localhost"),
                ("/etc/ssl/chat.pem", cert),
                ("/etc/ssl/chat.key", key),
                ("127.0.0.1:9000", upstream),
            ],
        )
        return running_nginx(self._page.folder, snippet.read_text())

    def dial(self, source, origin=None, **headers):
        return websockets_client(
            f"wss://localhost:{self.port}/", self.tls, additional_headers=headers,
            source_address=(source, 0), address=("127.0.0.1", self.port),
            origin=origin or f"https://localhost:{self.port}",
        )  # fmt: skip


@needs_nginx
@snippets("docs/nginx.md")
def test_nginx_and_real_addresses(page, authority, certificate):
    upstream = page.serve("chat.py", replace=[("MOST = 20", "MOST = 2")])
    proxied = Proxied(page, authority, certificate)
    forged = {"X-Forwarded-For": "6.6.6.6"}
    with proxied.nginx(f"127.0.0.1:{upstream}"):
        with proxied.dial("127.0.0.5") as client:
            assert receive(client) == "127.0.0.5 has come"
        with proxied.dial("127.0.0.5", **forged) as client:
            assert receive(client) == "127.0.0.5 has come", "what a client sends is not believed"
        with dial(upstream, source_address=("127.0.0.6", 0), additional_headers=forged) as client:
            assert receive(client) == "127.0.0.6 has come", "nor what comes from no proxy of ours"
        with proxied.dial("127.0.0.7") as one, proxied.dial("127.0.0.7"), proxied.dial("127.0.0.8"):
            assert receive(one) == "127.0.0.7 has come"
            with pytest.raises(InvalidStatus, match="429"):
                proxied.dial("127.0.0.7", **forged)
        with pytest.raises(InvalidStatus, match="403"):
            proxied.dial("127.0.0.9", origin="https://elsewhere.example")


@pytest.fixture
def open_folder():
    """A folder that other users may look into, as nginx's workers are where root runs the tests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@needs_nginx
@snippets("docs/nginx.md")
def test_nginx_and_a_unix_socket(page, authority, certificate, open_folder):
    path = open_folder / "socket"
    replaced = [('"127.0.0.1:9000"', f'"unix:{path}"'), ('{"127.0.0.1"}', '{"unix"}')]
    assert page.serve("chat.py", replace=replaced) == 0
    path.chmod(0o666)
    proxied = Proxied(page, authority, certificate)
    with proxied.nginx(f"unix:{path}:"), proxied.dial("127.0.0.5", **{"X-Forwarded-For": "6.6.6.6"}) as client:
        assert receive(client) == "127.0.0.5 has come"


def outcome(port):
    """What becomes of a client of the chat: it stays, or how it is sent away."""
    try:
        with dial(port) as client:
            yield receive(client)  # what it says to those who stay
    except InvalidStatus as refused:
        yield refused.response.status_code
    except ConnectionClosedError as closed:
        yield closed.rcvd.code


@snippets("docs/nginx.md", "chat.py")
def test_a_burst_from_one_address_is_cut_down(page):
    # While the loop is busy, many ask; then all are judged before the first of them is accepted.
    busy = "    def TextReceived(self, context, id, text):\n        gevent.sleep(1)\n\n    def ConnAccepted"
    replaced = [
        ("MOST = 20", "MOST = 2"),
        ("    def ConnAccepted", busy),
        ("import gowsev\n", "import gevent, gowsev\n"),
    ]
    port = page.serve("chat.py", replace=replaced)
    with dial(port, source_address=("127.0.0.5", 0)) as other, ThreadPoolExecutor(6) as pool:
        assert receive(other) == "127.0.0.5 has come"
        other.send("be busy")
        clients = [outcome(port) for _ in range(6)]  # generators, which keep their connections open
        ends = list(pool.map(next, clients))
        for client in clients:
            client.close()
    assert ends.count("127.0.0.1 has come") == 2
    assert set(ends) - {"127.0.0.1 has come"} <= {429, 1008}


# -- TLS ---------------------------------------------------------------------------------------------------------------


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def serial(port, tls):
    """The number of the certificate that a server shows."""

    def look():
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
        with tls.wrap_socket(plain, server_hostname="localhost") as secure:
            return secure.getpeercert()["serialNumber"]

    return in_thread(look)


@needs_openssl
@snippets("docs/tls.md", "secure.py", "client.py", "copy-certificate.sh")
def test_tls_and_a_renewal(page):
    page.shell("openssl req -x509 -out cert.pem")
    port = page.serve("secure.py")
    program = page.start("client.py", replace=[("localhost:9000", f"localhost:{port}")])
    assert program.wait() == 0, program.output
    assert program.output == page.shown(".venv/bin/python client.py")
    tls = ssl.create_default_context(cafile=page.folder / "cert.pem")
    before = serial(port, tls)
    # As certbot does it: new files elsewhere, and a script that copies them.
    lineage = page.folder / "lineage"
    lineage.mkdir()
    command = re.search(r"^(openssl req .*)$", read("docs/tls.md"), re.MULTILINE)[1]
    subprocess.run(command, shell=True, cwd=lineage, capture_output=True, check=True)
    (lineage / "key.pem").rename(lineage / "privkey.pem")
    (lineage / "cert.pem").rename(lineage / "fullchain.pem")
    script = page.write("copy-certificate.sh", replace=[("-g chat", ""), ("/etc/chat", page.folder)])
    subprocess.run(["sh", script], env=os.environ | {"RENEWED_LINEAGE": str(lineage)}, check=True)
    tls = ssl.create_default_context(cafile=page.folder / "cert.pem")
    assert serial(port, tls) != before


@pytest.fixture
def machines(page):
    """A page about machines with certificates: with those of the server, of the authority and of a meter."""
    for name in ("cert", "machines", "meter-7"):
        page.shell(f"openssl req -x509 -out {name}.pem")
    return page


def signed(page, name):
    """The files of another certificate that the page's authority signs."""
    (command,) = re.findall(r"^(openssl req .*meter-7.*)$", read("docs/tls.md"), re.MULTILINE)
    command = command.replace("meter-7", name)
    subprocess.run(command, shell=True, cwd=page.folder, capture_output=True, check=True)
    return page.folder / f"{name}.pem", page.folder / f"{name}.key"


def showing(page, name):
    """A client's TLS context with the certificate of a machine."""
    tls = ssl.create_default_context(cafile=page.folder / "cert.pem")
    tls.load_cert_chain(*signed(page, name))
    return tls


def dial_tls(port, tls, path="/", **headers):
    return websocket_client(f"wss://localhost:{port}{path}", tls, header=headers, suppress_origin=True)


@needs_openssl
@snippets("docs/tls.md", "machines.py", "meter.py")
def test_tls_with_certificates_of_clients(machines):
    page = machines
    program = page.start("machines.py", replace=[("3600", "0.05")])
    port = program.port()
    meter = page.start("meter.py", replace=[("localhost:9000", f"localhost:{port}")])
    assert meter.wait() == 0, meter.output
    assert meter.output == page.shown(".venv/bin/python meter.py")
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        dial_tls(port, showing(page, "toaster")).__enter__()
    tls = showing(page, "meter-8")
    before = serial(port, tls)
    (page.folder / "key.pem").unlink()
    program.wait_for("going on with the last certificate: .*No such file")
    assert serial(port, tls) == before
    page.shell("openssl req -x509 -out cert.pem")
    tls.load_verify_locations(page.folder / "cert.pem")
    wait_until(lambda: serial(port, tls) != before)


@needs_openssl
@snippets("docs/tls.md", "pages.py")
def test_tls_with_certificates_of_clients_under_another_server(machines):
    port = machines.serve("pages.py")
    machines.expect_traceback()  # of gevent's server, for each TLS handshake that fails, as at the end here
    tls = showing(machines, "meter-7")
    with urllib.request.urlopen(f"https://localhost:{port}/", timeout=PATIENCE, context=tls) as answer:
        assert answer.read() == b"hello, meter-7\n"
    with dial_tls(port, tls, "/live") as client:
        client.send("21 kWh")
        assert client.recv() == "meter-7: 21 kWh"


@needs_openssl
@needs_nginx
@snippets("docs/tls.md", "machines.py", "behind_nginx.py", "machines.conf")
def test_tls_with_certificates_of_clients_and_nginx_in_between(machines):
    page = machines
    function = page.write("behind_nginx.py").read_text()
    asked = "name = name_of(request.peer_certificate)"
    upstream = page.serve(
        "machines.py",
        replace=[(asked, "name = client_of(request)"), ("\n\nclass Meters", f"\n\n{function}\n\nclass Meters")],
    )
    certificate, key = signed(page, "nginx")
    port = free_port()
    snippet = page.write(
        "machines.conf",
        replace=[
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("/etc/ssl/meters.pem", page.folder / "cert.pem"),
            ("/etc/ssl/meters.key", page.folder / "key.pem"),
            ("/etc/ssl/machines.pem", page.folder / "machines.pem"),
            ("/etc/ssl/nginx.pem", certificate),
            ("/etc/ssl/nginx.key", key),
            ("/etc/ssl/chat.pem", page.folder / "cert.pem"),
            ("127.0.0.1:9000", f"127.0.0.1:{upstream}"),
        ],
    )
    tls, forged = showing(page, "meter-7"), {"X-Client-Name": "CN=meter-8"}
    with running_nginx(page.folder, snippet.read_text()):
        for where in (port, upstream):
            with dial_tls(where, tls, **forged) as client:
                client.send("21 kWh")
                assert client.recv() == "meter-7: 21 kWh", "what a client says of itself is not believed"
        with pytest.raises(websocket.WebSocketBadStatusException, match="400"):
            dial_tls(port, ssl.create_default_context(cafile=page.folder / "cert.pem")).__enter__()
        with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
            dial_tls(port, showing(page, "toaster"), **forged).__enter__()


# -- scripts -----------------------------------------------------------------------------------------------------------


class Outside(gowsev.Handler):
    """A server to dial: it says where it was dialled, and answers with what it was told, twice."""

    def ConnAccepted(self, context, id):
        if context.Conn(id).path != "/":
            context.WriteText(id, context.Conn(id).path)

    def TextReceived(self, context, id, text):
        context.WriteText(id, text * 2)


@snippets("docs/scripts-and-bridges.md", "ask.py")
def test_script_that_asks(page, gowsev_server):
    port = gowsev_server(Outside()).port
    program = page.start("ask.py", port=port)
    wait_until(lambda: program.process.poll() is not None)
    assert program.output == "oneone\ntwotwo\n"
    program = page.start("ask.py", port=free_port())
    assert program.wait() == 1
    assert program.output.startswith("no answer: dial ws://127.0.0.1:")


@snippets("docs/scripts-and-bridges.md", "collect.py")
def test_script_with_a_loop_of_its_own(page, gowsev_server):
    program = page.start("collect.py", port=gowsev_server(Outside()).port)
    wait_until(lambda: program.process.poll() is not None)
    assert program.process.returncode == 0
    assert program.output == "[b'/north', b'/south']\n"


@snippets("docs/scripts-and-bridges.md", "bridge.py")
def test_bridge_that_reconnects(page, gowsev_server, gowsev_client):
    outside = gowsev_server(Outside())
    sooner = ("opened=opened)", "opened=opened, first_pause=0.05, longest_pause=0.2)")
    program = page.start("bridge.py", port=outside.port, replace=[sooner])
    program.wait_for("connected")
    client = gowsev_client(f"ws://127.0.0.1:{program.port()}/")
    client.send("hello")
    assert client.receive() == "hellohello"
    outside.context.Shutdown()
    outside.loop.join(PATIENCE)
    program.wait_for(r"lost, with 1001\n(.*Connection refused.*; it is dialled again in 0\.\d s\n){2}")
    gowsev_server(Outside(), port=f"127.0.0.1:{outside.port}", reuse_port=True)
    program.wait_for(r"(?s)connected.*connected")
    client.send("again")
    assert client.receive() == "againagain"
    client.send("x" * (1 << 19) + "y")
    program.wait_for(r"message longer than .*; see max_message_bytes of gowsev.Options\nlost, with 1006$")


@snippets("docs/scripts-and-bridges.md", "feeds.py")
def test_bridge_of_two_feeds(page, gowsev_server, gowsev_client):
    outside = gowsev_server(Outside())
    program = page.start("feeds.py", port=outside.port)
    client = gowsev_client(f"ws://127.0.0.1:{program.port()}/")
    for name in ("north", "south"):
        program.wait_for(f"{name} is there")
    wait_until(lambda: outside.context.Stats().messages_sent == 2)  # what each of them says first
    assert outside.context.Broadcast([1, 2], "tick") == []
    heard = []
    while not {"north: tick", "south: tick"} <= set(heard):
        heard.append(client.receive())  # what a feed says first may be heard, too
    outside.context.Shutdown()
    assert sorted(client.receive() for _ in range(2)) == ["north is away", "south is away"]
    program.wait_for(r"dial .*/north: .*; it is dialled again in")


# -- in service --------------------------------------------------------------------------------------------------------


@snippets("docs/monitoring.md", "pinging.py")
def test_a_program_that_pings_its_clients(page):
    port = page.serve("pinging.py", replace=[("EVERY = 10.0", "EVERY = 0.2")])
    with dial(port) as client:
        answers = []

        def known():
            client.send("how far?")
            answers.append(receive(client))
            return answers[-1] != "not known yet"

        wait_until(known)
        assert answers[0] == "not known yet"
        assert re.fullmatch(r"[0-9]+\.[0-9] ms", answers[-1])
        assert float(answers[-1].split()[0]) < PATIENCE * 1000
        client.send("something else")
        assert receive(client) == "something else"


@snippets("docs/monitoring.md", "monitored.py")
def test_monitoring(page):
    port = page.serve("monitored.py")
    assert json.loads(fetch(port, "/healthz"))["ready"]
    with dial(port) as client:
        client.send("hello")
        assert receive(client) == "hello"
        lines = wait_until(lambda: observed(fetch(port, "/metrics").decode()))
        for line in ("gowsev_connections 1.0", "gowsev_messages_received_total 1.0", "gowsev_accepted_total 1.0"):
            assert line in lines
        names = {
            re.match(r"(\w+?)(_total|_bucket|_sum|_count|_created)?[ {]", line)[1] for line in lines if line[0] != "#"
        }
        # Those by reason and by code begin with the first refusal and the first end.
        counted = set(gowsev.Stats.__dataclass_fields__) - {"refusals", "closed_by_code"}
        counted -= {"round_trips", "round_trips_within"}  # parts of the histogram `gowsev_round_trip_seconds`
        assert {f"gowsev_{name}" for name in counted} <= names
        told = set(Status.__dataclass_fields__) - {"reason", "since"}
        assert {f"gowsev_channels_{name}" for name in told} <= names
        assert "gowsev_channels_up 1.0" in lines
        client.send("be slow")
        wait_until(lambda: "gowsev_messages_received_total 2.0" in fetch(port, "/metrics").decode())
        with answered(503):
            fetch(port, "/healthz")
        assert json.loads(fetch(port, "/healthz/alive"))["loop"] == "busy"
        assert receive(client) == "be slow"
    assert json.loads(fetch(port, "/healthz"))["ready"]
    with answered(404):
        fetch(port, "/elsewhere")


def observed(metrics):
    """The lines of the metrics, once the loop's delay has been observed."""
    count = re.search(r"^gowsev_loop_delay_seconds_count (\S+)$", metrics, re.MULTILINE)
    return metrics.splitlines() if float(count[1]) > 0 else None


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze (Debian's package systemd)")
@snippets("docs/deployment.md", "chat.service")
def test_the_unit_is_one_that_systemd_understands(page):
    # The program must exist.
    unit = page.write(
        "chat.service", replace=[("/opt/chat/.venv/bin/python", sys.executable), ("127.0.0.1:9000", "ADDRESS")]
    )
    done = subprocess.run([ANALYZE, "verify", unit], capture_output=True, text=True, timeout=PATIENCE, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "chat.service" in line]
    assert complaints == []


def receive_all(client, messages):
    while True:
        messages.append(receive(client))


def try_again(port):
    """Connect until it works; being refused is no way to begin."""
    while True:
        try:
            with dial(port) as client:
                client.send("hello")
                return receive(client)
        except ConnectionRefusedError:
            raise
        except (OSError, InvalidHandshake, ConnectionClosed):  # met the old process in its last moment
            continue


@snippets("docs/deployment.md", "chat.py")
def test_a_restart_refuses_nobody(page):
    old = page.start("chat.py", "127.0.0.1:0")
    port = old.port()
    with ThreadPoolExecutor(4) as pool, dial(port) as client:
        assert client.ping().wait(PATIENCE)
        new = page.run("chat.py", f"127.0.0.1:{port}")
        assert new.port() == port
        said = pool.map(lambda _: try_again(port), range(200))
        assert next(said) == "hello"
        old.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed, match="1001"):
            receive_all(client, [])
        assert set(said) == {"hello"}
    assert old.wait() == 0
    assert "all connections are closed" in old.output
    assert new.end() == 0


@needs_chromium
@snippets("docs/deployment.md", "reconnect.html")
def test_a_page_that_reconnects(page, browser):
    (page.folder / "chat.py").write_text(
        re.search(r"```python\n(# chat\.py\n.*?)```", read("docs/deployment.md"), re.DOTALL)[1]
        # A file has no origin that could be the server's.
        .replace("reuse_port=True", 'reuse_port=True, allowed_origins=("*",)')
    )
    server = page.run("chat.py", "127.0.0.1:0")
    port = server.port()
    shown = page.write("reconnect.html")
    tab = browser.open(f"file://{shown}#ws://127.0.0.1:{port}/")
    tab.wait_for_text("#state", "connected")
    server.process.send_signal(signal.SIGTERM)
    tab.wait_for("document.getElementById('state').textContent.startsWith('closed with 100')")
    assert server.wait() == 0
    page.run("chat.py", f"127.0.0.1:{port}").port()
    tab.wait_for_text("#state", "connected")


# -- from Go -----------------------------------------------------------------------------------------------------------

#: The interface of the Go library, as its README has it.
GOWSEV = """
package gowsev

import "time"

type Handler interface {
	ConnAccepted(context *Context, id uint64)
	ConnClosed(context *Context, id uint64)
	EventLoopTimeout(context *Context)
	MessageReceived(context *Context, id uint64, message []byte)
}
type Context struct{}

func MakeContext(handler *Handler) Context                          { return Context{} }
func (context *Context) GetTimeout() time.Duration                  { return 0 }
func (context *Context) SetTimeout(timeout time.Duration)           {}
func (context *Context) ListenAndServe(port string)                 {}
func (context *Context) EventLoopIteration()                        {}
func (context *Context) EventLoop()                                 {}
func (context *Context) Write(id uint64, message []byte) error      { return nil }
func (context *Context) Close(id uint64)                            {}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="needs go (Debian's package golang)")
@snippets("docs/moving-from-go.md", "chat.go")
def test_the_go_program_is_one(page):
    program = page.write("chat.go", replace=[('"9000"', '"PORT"')])
    library = page.folder / "src" / "github.com" / "morten-krogh" / "gowsev"
    library.mkdir(parents=True)
    (library / "gowsev.go").write_text(GOWSEV)
    environ = os.environ | {"GO111MODULE": "off", "GOPATH": str(page.folder), "GOFLAGS": "-mod=mod"}
    subprocess.run(["go", "vet", program], env=environ, check=True, timeout=PATIENCE * 4)
    assert subprocess.run(["gofmt", "-l", program], capture_output=True, check=True).stdout == b""


@snippets("docs/moving-from-go.md", "chat.py")
def test_its_translation_does_what_it_does(page):
    port = page.serve("chat.py", replace=[("SetTimeout(10)", "SetTimeout(0.5)")])
    with dial(port) as ann:
        assert receive(ann) == b"1 has come"
        with dial(port) as bob:
            while (said := receive(ann)) == b"it is quiet here":
                pass
            assert said == b"2 has come"
            bob.send("hello")
            while (said := receive(ann)) == b"it is quiet here":
                pass
            assert said == b"2: hello"
        while (said := receive(ann)) == b"it is quiet here":
            pass
        assert said == b"2 has gone"
        assert receive(ann) == b"it is quiet here"

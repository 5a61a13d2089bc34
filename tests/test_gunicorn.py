"""gunicorn: `ServeHTTP` under each of its gevent workers, and the worker of ours."""

import logging
import os
import re
import signal
import ssl
import sys

import gevent
import gevent.pool
import pytest
from conftest import PATIENCE, Recorder, echoes, listening, wait_until
from gunicorn.config import Config
from gunicorn.glogging import Logger
from programs import Program
from raw import RawClient, binary

import gowsev
from gowsev.gunicorn import Worker
from gowsev.loop.shutdown import shut_down_all
from gowsev.testing import Client
from gowsev.wire import frames

WORKERS = ["gevent", "geventwebsocket.gunicorn.workers.GeventWebSocketWorker", "gowsev.gunicorn.Worker"]
EARLY = binary(b"early")

APP = """
import logging
import flask, gevent, gowsev

logging.basicConfig(level=logging.INFO)


class Echo(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, message)

    def ConnClosed(self, context, id):
        print("closed with", context.Conn(id).close_code, flush=True)


context = gowsev.MakeContext(Echo(), gowsev.Options(close_timeout=1))
gevent.spawn(context.EventLoop)
app = flask.Flask("pages")


@app.get("/")
def page():
    return "a page"


@app.route("/live", websocket=True)
def live():
    return context.ServeHTTP
"""

#: Newer versions have a socket to control them, in the home of whoever runs the tests.
NO_CONTROL_SOCKET = ["--no-control-socket"] if "control_socket_disable" in Config().settings else []
RUN = "import sys; from gunicorn.app.wsgiapp import run; sys.exit(run())"


@pytest.fixture
def gunicorn(tmp_path):
    """A factory of gunicorn servers, which are ended after the test."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "run.py").write_text(RUN)
    programs = []

    def start(worker, *options):
        program = Program(
            tmp_path / f"output-{len(programs)}", "run.py", "-k", worker, "-b", "127.0.0.1:0", "app:app",
            *NO_CONTROL_SOCKET, *options, PYTHONWARNINGS="ignore", PYTHONPATH=str(tmp_path),
        )  # fmt: skip
        programs.append(program)
        program.port = int(program.wait_for(r"Listening at: https?://127\.0\.0\.1:(\d+)")[1])
        program.wait_for("Booting worker")
        return program

    yield start
    for program in programs:
        if program.process.poll() is None:
            program.process.send_signal(signal.SIGQUIT)
            program.process.wait(PATIENCE * 2)  # gunicorn kills after 30 s a worker that had only begun and missed it


#: What every monkey-patched process says at its very end, with a gevent before 26.5 and a greenlet of 3.5.1 or newer.
LAST_WORDS = re.compile(
    r"^Exception ignored in: <function _removeHandlerRef .*\nTraceback .*\n(?:  .*\n)*"
    r"RuntimeError: greenlet is being finalized\n",
    re.MULTILINE,
)


def complaints(program):
    output = LAST_WORDS.sub("", program.output)
    return [line for line in output.splitlines() if re.search(r"ERROR|WARN|CRITICAL|Traceback|Exception", line)]


def test_a_context_made_before_the_fork_serves_in_each_worker(gunicorn):
    server = gunicorn("gevent", "--preload", "--workers", "2")
    clients = [RawClient("127.0.0.1", server.port, path="/live") for _ in range(10)]
    assert all(map(echoes, clients))
    for client in clients:
        client.close()
    assert complaints(server) == []
    # Told to quit, gunicorn with --preload may wait 30 s for a worker; without their master, workers end by themselves.
    server.process.kill()
    server.process.wait()


STARTED_IN_THE_WORKER = """
def post_worker_init(worker):
    import gevent
    from app import context

    gevent.spawn(context.EventLoop)
"""


@pytest.mark.parametrize("preload", [["--preload"], []])
def test_an_app_that_patches_itself_starts_its_loop_in_the_worker(gunicorn, tmp_path, preload):
    patched = "from gevent import monkey\nmonkey.patch_all()\n" + APP
    (tmp_path / "app.py").write_text(patched.replace("gevent.spawn(context.EventLoop)\n", ""))
    (tmp_path / "conf.py").write_text(STARTED_IN_THE_WORKER)
    server = gunicorn("gevent", *preload, "-c", "conf.py")
    client = RawClient("127.0.0.1", server.port, path="/live")
    assert echoes(client)
    client.close()
    assert complaints(server) == []
    server.process.kill()
    server.process.wait()


def test_an_app_whose_loop_began_before_the_fork_is_told_so(gunicorn, tmp_path):
    (tmp_path / "app.py").write_text("from gevent import monkey\nmonkey.patch_all()\n" + APP + "gevent.sleep(0)\n")
    server = gunicorn("gevent", "--preload")
    client = RawClient("127.0.0.1", server.port, path="/live", handshake=False)
    client.send(client.request(path="/live"))
    answer = client.read_to_end()
    assert answer.startswith(b"HTTP/1.1 503")
    assert answer.endswith(b"The server forked after its event loop had begun.\n")
    client.close()
    server.wait_for("its loop was driven before this process was forked.*post_worker_init")
    server.process.kill()
    server.process.wait()


# A child inherits gunicorn's handler of SIGTERM, which ends no child, and `multiprocessing` waits for its children in
# the end. Up to Python 3.12 they ended by themselves, since gunicorn's greenlet goes on in them and leaves; from 3.13
# on gevent then waits for the greenlet that has forked.
FORKING_APP = """
import multiprocessing, os, signal
import gevent, gowsev

children = []


def wait_in_child():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gevent.sleep(60)


class Forks(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        if not children:
            child = multiprocessing.get_context("fork").Process(target=wait_in_child, daemon=True)
            child.start()
            children.append(child)
        context.Write(id, str(os.getpid()).encode() + b" " + message)


context = gowsev.MakeContext(Forks())
gevent.spawn(context.EventLoop)
app = context.ServeHTTP
"""


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("worker", ["gevent", "gowsev.gunicorn.Worker"])
def test_a_child_of_a_worker_takes_nothing_from_it(gunicorn, tmp_path, certificate, client_tls, worker, tls):
    (tmp_path / "app.py").write_text(FORKING_APP)
    secure = ["--certfile", certificate[0], "--keyfile", certificate[1]] if tls else []
    server = gunicorn(worker, *secure)
    pid = server.wait_for(r"Booting worker with pid: (\d+)")[1].encode()
    client = RawClient("127.0.0.1", server.port, tls=client_tls if tls else None)
    for number in range(60):
        payload = number.to_bytes(2) + bytes(200_000)
        client.send_binary(payload)
        assert client.read_frame() == (frames.BINARY, pid + b" " + payload)
        gevent.sleep(0.01)
    client.close()
    assert server.end(signal.SIGTERM) == 0
    assert complaints(server) == []


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("worker", WORKERS)
def test_connections_under_gunicorn(gunicorn, certificate, client_tls, worker, tls):
    secure = ["--certfile", certificate[0], "--keyfile", certificate[1]] if tls else []
    # A worker that is silent for so long is killed, and so short a keep-alive would end within the test.
    server = gunicorn(worker, "--keep-alive", "1", "--timeout", "3", *secure)
    client = RawClient("127.0.0.1", server.port, path="/live", behind=EARLY, tls=client_tls if tls else None)
    assert client.read_frame() == (frames.BINARY, b"early")
    gevent.sleep(1.2)  # longer than the keep-alive
    for payload in (b"small", bytes(1 << 19)):
        client.send_binary(payload)
        assert client.read_frame() == (frames.BINARY, payload)
    page = RawClient("127.0.0.1", server.port, handshake=False, tls=client_tls if tls else None)
    page.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert page.read_to_end().endswith(b"a page")
    page.close()
    client.send_close(1000)
    assert client.read_close() == (1000, "")
    assert client.read_to_end() == b""
    client.close()
    server.wait_for("closed with 1000")
    assert complaints(server) == []
    assert server.end(signal.SIGTERM) == 0


CERTIFIED_APP = """
import gevent, gowsev


class Who(gowsev.Handler):
    def ConnAccepted(self, context, id):
        conn = context.MustConn(id)
        context.WriteText(id, f"{conn.data == conn.peer_certificate} {conn.peer_certificate['subjectAltName']}")


def app(environ, start_response):
    known = gowsev.Accept(environ["gunicorn.socket"].getpeercert())
    return context.Upgrade(known)(environ, start_response)


context = gowsev.MakeContext(Who())
gevent.spawn(context.EventLoop)
"""


def test_who_a_client_with_a_certificate_is(gunicorn, tmp_path, authority, certificate):
    (tmp_path / "app.py").write_text(CERTIFIED_APP)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    secure = ["--certfile", certificate[0], "--keyfile", certificate[1], "--ca-certs", str(tmp_path / "authority.pem")]
    server = gunicorn("gowsev.gunicorn.Worker", *secure, "--cert-reqs", "2")
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    authority.issue_cert("meter-7.example").configure_cert(tls)
    with Client(f"wss://localhost:{server.port}/", ssl_context=tls) as client:
        assert client.receive() == "True (('DNS', 'meter-7.example'),)"
    assert complaints(server) == []


def test_a_page_and_then_a_connection_on_the_same_socket(gunicorn):
    server = gunicorn("gevent")
    client = RawClient("127.0.0.1", server.port, handshake=False)
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + RawClient.request("/live") + EARLY)
    assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
    wait_until(lambda: len(client.buffer) >= 6 or client.fill())
    assert client.take(6) == b"a page"
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert client.read_frame() == (frames.BINARY, b"early")
    client.close()
    assert complaints(server) == []


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_a_worker_without_gevent_says_what_to_use(gunicorn, worker):
    server = gunicorn(worker)
    client = RawClient("127.0.0.1", server.port, handshake=False)
    client.send(RawClient.request("/live"))
    assert client.read_head().startswith(b"HTTP/1.1 500 ")
    client.close()
    server.wait_for(r"RuntimeError: ServeHTTP cannot take .* -k gowsev\.gunicorn\.Worker")


def goodbye_to_all_but_one(server, clients):
    """gunicorn ends, having said goodbye to each client; the last of them never answers."""
    for client in clients[:-1]:
        assert client.read_close() == (1001, "shutting down")
        client.send_close(1001)
        assert client.read_to_end() == b""
        client.close()
    assert server.process.wait(PATIENCE) == 0
    assert server.output.count("closed with 1001") == 2


def test_our_worker_closes_connections_before_it_ends(gunicorn):
    server = gunicorn("gowsev.gunicorn.Worker", "--graceful-timeout", "20")
    clients = [RawClient("127.0.0.1", server.port, path="/live") for _ in range(3)]
    assert all(map(echoes, clients))
    server.process.send_signal(signal.SIGTERM)
    goodbye_to_all_but_one(server, clients)
    assert server.output.count("closed with 1006") == 1
    assert complaints(server) == []
    clients[-1].close()


@pytest.mark.parametrize("in_terminal", [False, True])
def test_our_worker_closes_connections_on_ctrl_c(gunicorn, in_terminal):
    server = gunicorn("gowsev.gunicorn.Worker", "--graceful-timeout", "5")
    pid = int(server.wait_for(r"Booting worker with pid: (\d+)")[1])
    clients = [RawClient("127.0.0.1", server.port, path="/live") for _ in range(3)]
    assert all(map(echoes, clients))
    if in_terminal:  # which tells the workers, too; the master tells them then once more
        os.kill(pid, signal.SIGINT)
    server.process.send_signal(signal.SIGINT)
    goodbye_to_all_but_one(server, clients)
    if not in_terminal:  # where a master that is slow warns of a worker that has ended before it was told to
        assert complaints(server) == []
    clients[-1].close()


#: The pages' framework takes half the start of a worker, and these tests replace a dozen.
PLAIN_APP = APP.partition("app = flask")[0].replace("flask, ", "")
PLAIN_APP += "app = context.ServeHTTP\nprint('loaded', flush=True)\n"

#: How many attempts to connect there are in all, and by how many clients. However the clients are spread over three
#: workers, one has at least 17, and so ends by a `--max-requests` of 16.
ATTEMPTS, CLIENTS = 150, 50


def come_back(port, attempts, ends):
    """Connect, and when closed connect again at once, until there were enough attempts."""
    while len(attempts) < ATTEMPTS:
        try:
            client = Client(f"ws://127.0.0.1:{port}/live")
        except gowsev.DialError as refused:
            attempts.append(refused.status)
            continue
        with client:  # else its worker, which is told to quit after the test, waits for it
            attempts.append(101)
            if len(attempts) < ATTEMPTS:
                ends.append(client.wait_closed().code)


@pytest.mark.long
@pytest.mark.parametrize(
    ("reloads", "options"),
    [
        (True, ["--workers", "3"]),
        (False, ["--workers", "3", "--max-requests", "16"]),
        (False, ["--max-requests", "50"]),
    ],
)
def test_who_is_closed_and_comes_back_at_once_meets_a_new_worker(gunicorn, tmp_path, reloads, options):
    (tmp_path / "app.py").write_text(PLAIN_APP)
    server = gunicorn("gowsev.gunicorn.Worker", "--graceful-timeout", "20", *options)
    attempts, ends = [], []
    clients = gevent.pool.Pool()
    for _ in range(CLIENTS):
        clients.spawn(come_back, server.port, attempts, ends)
    while reloads and len(attempts) < ATTEMPTS:
        met = len(attempts)
        wait_until(lambda: len(attempts) - len(ends) >= CLIENTS, PATIENCE * 2)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda met=met: len(attempts) >= min(met + CLIENTS, ATTEMPTS), PATIENCE * 2)
    wait_until(lambda: len(attempts) >= ATTEMPTS, PATIENCE * 4)
    clients.kill()
    # A worker that has just been forked would not hear its master, which would wait the whole `--graceful-timeout`.
    wait_until(lambda: server.output.count("Booting worker") == server.output.count("loaded"))
    assert set(attempts) == {101}
    assert set(ends) == {1001}
    assert complaints(server) == []


# -- the worker by itself, in this process -----------------------------------------------------------------------------


@pytest.fixture
def worker():
    """A factory of workers that run in a greenlet."""
    started = []

    def start(application, graceful_timeout):
        config = Config()
        config.set("graceful_timeout", graceful_timeout)
        logger = Logger(config)
        sock = listening()
        made = Worker(1, os.getppid(), [sock], None, 30, config, logger)
        made.wsgi = application
        made.port = sock.getsockname()[1]
        made.greenlet = gevent.spawn(made.run)
        started.append((made, sock))
        return made

    yield start
    for made, sock in started:
        made.alive = False
        made.greenlet.join(PATIENCE)
        made.tmp.close()
        sock.close()
    for name in ("gunicorn.error", "gunicorn.access"):
        logging.getLogger(name).handlers.clear()


def test_the_worker_waits_for_the_loop_to_end(idle, worker):
    server = idle(listen=False)
    loop = gevent.spawn(server.context.EventLoop)
    running = worker(server.context.ServeHTTP, 20)
    client = RawClient("127.0.0.1", running.port)
    assert echoes(client)
    running.alive = False
    assert client.read_close() == (1001, "shutting down")
    assert not running.greenlet.ready()
    client.send_close(1001)
    client.close()
    running.greenlet.join(PATIENCE)
    assert running.greenlet.successful()
    loop.join(PATIENCE)
    assert server.handler.closed == [("closed", 1, 1001, "")]


def test_the_worker_waits_for_sockets_where_nobody_drives_the_loop(idle, worker):
    server = idle(listen=False)
    running = worker(server.context.ServeHTTP, 20)
    client = RawClient("127.0.0.1", running.port)
    running.alive = False
    assert client.read_close() == (1001, "shutting down")
    assert not running.greenlet.ready()
    client.send_close(1001)
    client.close()
    running.greenlet.join(PATIENCE)
    assert running.greenlet.successful()
    assert server.handler.events == []


def test_the_worker_waits_no_longer_than_it_may(idle, worker):
    stuck = gevent.event.Event()

    class Stuck(Recorder):
        def ConnClosed(self, context, id):
            super().ConnClosed(context, id)
            stuck.wait(PATIENCE)

    server = idle(Stuck(), listen=False)
    loop = gevent.spawn(server.context.EventLoop)
    running = worker(server.context.ServeHTTP, 1)
    client = RawClient("127.0.0.1", running.port)
    wait_until(lambda: server.handler.of("accepted"))
    running.alive = False
    running.greenlet.join(PATIENCE)
    assert running.greenlet.successful()
    assert not loop.ready()
    stuck.set()
    loop.join(PATIENCE)
    client.close()


@pytest.mark.parametrize("asks", [True, False])
def test_who_was_accepted_last_is_waited_for_unless_nothing_comes(idle, worker, asks):
    server = idle(listen=False)
    loop = gevent.spawn(server.context.EventLoop)
    running = worker(server.context.ServeHTTP, 20)
    open_before = RawClient("127.0.0.1", running.port)
    assert echoes(open_before)
    last = RawClient("127.0.0.1", running.port, handshake=False)
    last.send(RawClient.request("/")[:20])
    (listener,) = running.sockets
    running.alive = False
    wait_until(lambda: listener.fileno() == -1)
    gevent.sleep(0.3)  # the worker looks several times
    if asks:
        last.send(RawClient.request("/")[20:])
        assert last.read_head().startswith(b"HTTP/1.1 101 ")
        assert last.read_close() == (1001, "shutting down")
    assert open_before.read_close() == (1001, "shutting down")
    for client in (last, open_before):
        client.close()
    loop.join(PATIENCE)
    assert len(server.handler.closed) == 1 + asks


def test_the_master_hears_of_a_worker_that_waits_for_its_connections(idle, worker):
    server = idle(listen=False)
    gevent.spawn(server.context.EventLoop)
    running = worker(server.context.ServeHTTP, 20)
    client = RawClient("127.0.0.1", running.port)
    running.alive = False
    assert client.read_close() == (1001, "shutting down")
    heard = set()
    wait_until(lambda: heard.add(running.tmp.last_update()) or len(heard) > 2)
    assert not running.greenlet.ready()
    client.close()


def test_contexts_of_other_threads_are_told_too():
    driven, ended = [], []

    def elsewhere():
        context = gowsev.MakeContext(gowsev.Handler())
        context.Post(driven.append)
        context.EventLoop()
        ended.append(True)

    task = gevent.get_hub().threadpool.spawn(elsewhere)
    wait_until(lambda: driven)
    drained = shut_down_all(5)
    task.get(timeout=PATIENCE)
    assert ended == [True]
    assert drained()
    assert shut_down_all(5)(), "those that have ended stay so"


def test_gunicorn_is_imported_by_nobody_else():
    assert "gunicorn" in sys.modules
    assert gowsev.gunicorn is sys.modules["gowsev.gunicorn"]

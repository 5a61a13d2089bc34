"""What the tests share: contexts that run in a greenlet, with clients, and waiting for a condition.

The tests run in one thread, unpatched: a test is the main greenlet, the loops under test are others, and clients
either use gevent's sockets or, where they are another library's, run in a real thread (`in_thread`). What is useful for
testing any program with gowsev is in `gowsev.testing`; here is what tests of gowsev itself need besides.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import urllib.error
from pathlib import Path

import gevent
import gevent.socket
import gevent.ssl
import pytest
import trustme
from gevent import monkey
from gevent.pywsgi import WSGIServer
from gevent.threadpool import ThreadPool
from raw import RawClient

import gowsev
from gowsev import testing
from gowsev.testing import TIMEOUT as PATIENCE
from gowsev.testing import wait_until
from gowsev.wire import frames

#: The example relay. Its modules are scripts of one directory, which comes first on their path.
RELAY = Path(__file__).resolve().parent.parent / "examples" / "subscribe_publish"
sys.path.insert(0, str(RELAY))

__all__ = ["PATIENCE", "in_thread", "wait_until"]

pytest_plugins = ["gowsev.pytest_plugin"]
pytest.register_assert_rewrite("programs")

# Hundreds of programs import the package from the checkout. Where the environment forbids Python to keep what it has
# compiled, as in many containers, each would compile all of it: a seventh of its start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell without job control, and nohup, let what they start ignore these signals, and that what it starts itself.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
# Servers under test are on this machine, whatever proxies its environment names.
os.environ["no_proxy"] = ",".join(
    [*filter(None, (os.environ.get("no_proxy"), os.environ.get("NO_PROXY"))), "localhost", "127.0.0.1", "::1"]
)

#: Whether this process is monkey-patched (tox -e patched).
PATCHED = monkey.is_module_patched("socket")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests that take long")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip what takes long, before its fixtures are made: in one place, which is one line of the summary."""
    if item.get_closest_marker("long") and not item.config.option.long:
        pytest.skip("takes long: --long runs it")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let a process that is done take what others have before them, since single tests take half a minute."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


def pytest_collection_modifyitems(items):
    """Let the modules with a browser come first, so that they are of one process: each starts a Chromium of its own."""
    browsing = {item.path for item in items if "chromium" in item.fixturenames}
    items.sort(key=lambda item: item.path not in browsing)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Let the garbage collector pass over what is made here: modules and thousands of tests, which stay to the end.

    Each process of the tests makes all of it, and each `gc.collect()` of a test would look at it again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def in_thread(function, *args):
    """Run blocking code, such as another library's client, in a real thread; return its result.

    Where the process is monkey-patched, in a greenlet: such code then waits in gevent's way, and can't change threads.
    """
    if PATCHED:
        return gevent.spawn(function, *args).get(timeout=PATIENCE * 2)
    return testing.in_thread(function, *args)


def send_until_full(sock, data):
    """Send to a socket that does not block until the kernel takes no more.

    It refuses for the first time while it still moves what was sent over to the other side, and has room again then.
    """
    refused = 0
    while refused < 50:
        try:
            sock.send(data)
            refused = 0
        except BlockingIOError:
            refused += 1
            gevent.sleep(0.01)


@contextlib.contextmanager
def answered(status):
    """Expect that urllib is answered with an error of this status.

    The error is the response, with its socket: from Python 3.14 on it warns where nobody closes it.
    """
    with pytest.raises(urllib.error.HTTPError) as raised:
        yield
    with raised.value as response:
        assert response.code == status


def listening():
    """A listening socket of gevent's. (`gevent.socket.create_server` makes one of the standard library's.)"""
    sock = gevent.socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@pytest.fixture
def silent_address():
    """A host and a port that answer nothing: the backlog of the socket that listens there is full."""
    with socket.socket() as full, contextlib.ExitStack() as clients:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        yield full.getsockname()


def in_real_thread(function, *args):
    """Run code in a real thread, which has a hub of its own, whether the process is monkey-patched or not.

    The thread ends with it: a worker of gevent's pool would keep the hub, and report on stderr, in the middle of some
    later test, that it was destroyed.
    """
    pool = ThreadPool(1)
    result = pool.spawn(function, *args).get(timeout=PATIENCE * 2)
    pool.kill()
    return result


class Recorder(gowsev.Handler):
    """A handler that notes each callback, and answers as `answer(context, id, message)` does.

    `gowsev.testing.Recorder` wraps a program's handler, and forgets what a test has waited for. This one is the handler
    and forgets nothing: tests here compare all that happened, in its order, and how each connection ended.
    """

    def __init__(self, answer=None):
        self.events = []
        self.answer = answer

    def ConnAccepted(self, context, id):
        self.events.append(("accepted", id))

    def ConnClosed(self, context, id):
        conn = context.Conn(id)
        self.events.append(("closed", id, conn.close_code, conn.close_reason))

    def MessageReceived(self, context, id, message):
        self.events.append(("message", id, message))
        if self.answer is not None:
            self.answer(context, id, message)

    def EventLoopTimeout(self, context):
        self.events.append(("timeout",))

    def of(self, kind):
        return [event for event in self.events if event[0] == kind]

    @property
    def messages(self):
        return [event[2] for event in self.of("message")]

    @property
    def closed(self):
        return self.of("closed")


def echo(context, id, message):
    context.Write(id, message)


class Conns(Recorder):
    """Keeps the `Conn` of each connection accepted."""

    def __init__(self):
        super().__init__(echo)
        self.conns = []

    def ConnAccepted(self, context, id):
        super().ConnAccepted(context, id)
        self.conns.append(context.Conn(id))


class Judge(Conns):
    """Answers each `ConnRequested` with its verdict."""

    def __init__(self, verdict=None):
        super().__init__()
        self.verdict = verdict
        self.requests = []

    def ConnRequested(self, context, request):
        self.requests.append(request)
        return self.verdict


def echoes(client, payload=b"still there"):
    client.send_binary(payload)
    return client.read_frame() == (frames.BINARY, payload)


class RawClients:
    """Raw clients of a server, closed before it ends."""

    def __init__(self):
        self.clients = []

    def client(self, **kwargs):
        """Open a raw client connection, its handshake done."""
        client = RawClient(self.host, self.port, **kwargs)
        self.clients.append(client)
        return client

    def close_clients(self):
        for client in self.clients:
            client.close()


class Server(RawClients, testing.Server):
    """A context whose loop runs in a greenlet of its own."""

    def __init__(self, handler, **kwargs):
        RawClients.__init__(self)
        testing.Server.__init__(self, handler, **kwargs)

    def __exit__(self, *exc_info):
        self.close_clients()
        super().__exit__(*exc_info)


@pytest.fixture
def serve():
    """A factory of running servers: `serve(handler=None, **options)`; all are shut down after the test."""
    with contextlib.ExitStack() as stack:

        def start(handler=None, **kwargs):
            return stack.enter_context(Server(handler if handler is not None else Recorder(echo), **kwargs))

        yield start


@pytest.fixture(scope="session")
def authority():
    """A certificate authority of our own."""
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority, tmp_path_factory):
    """The files of a certificate for localhost and 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return str(cert), str(key)


def accepted(server):
    """Wait for the newest client's `ConnAccepted`, and return its id."""
    wait_until(lambda: len(server.handler.of("accepted")) >= len(server.clients))
    return server.handler.of("accepted")[-1][1]


def over_tls(start, certificate, client_tls):
    """Return `start`, a factory of servers as `serve` is one, with TLS, and clients to match."""

    def start_with_tls(handler=None, **options):
        server = start(handler, certificate=certificate, **options)
        plain = server.client
        server.client = lambda **kwargs: plain(tls=client_tls, **kwargs)
        return server

    return start_with_tls


@pytest.fixture(scope="session")
def client_tls(authority):
    """A client's TLS context that trusts the authority."""
    # gevent's class: `create_default_context` makes the standard library's, whose sockets would block every greenlet.
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@contextlib.contextmanager
def running(folder):
    """A factory of programs that run in a folder, and are killed at the end if nobody has ended them."""
    from programs import Program  # which needs what is above

    programs = []

    def start(script, *args, **environ):
        programs.append(Program(folder / f"output-{len(programs)}", script, *args, **environ))
        return programs[-1]

    try:
        yield start
    finally:
        for program in programs:
            program.process.kill()
            program.process.wait()


@pytest.fixture
def run(tmp_path):
    """A factory of programs, which are killed after the test if it has not ended them."""
    with running(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def run_for_module(tmp_path_factory):
    """The same for programs that several tests share, which leave them as they were; killed after the module."""
    with running(tmp_path_factory.mktemp("programs")) as start:
        yield start


@pytest.fixture
def page(request, tmp_path):
    """The snippets of a document that a test names with `@snippets`."""
    from programs import Page

    document, names = request.function.snippets
    folder = tmp_path / "page"
    folder.mkdir()
    opened = Page(document, names, folder)
    failed = request.session.testsfailed
    yield opened
    try:
        if request.session.testsfailed == failed:
            opened.interrupt()
    finally:
        opened.end()
    if request.session.testsfailed == failed:
        opened.check()


@pytest.fixture
def scripted():
    """A factory of listeners: `scripted(script)`; `script` may be bytes, sent before the connection is closed."""
    from scripted_server import Scripted

    listeners = []

    def start(script):
        if isinstance(script, bytes):
            data = script

            def script(sock, head):
                sock.sendall(data)

        listeners.append(Scripted(script))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


@contextlib.contextmanager
def running_redis(folder):
    from redis_server import RedisServer

    server = RedisServer(folder / "redis")
    yield server
    server.thaw()
    server.kill()


@pytest.fixture
def redis_server(tmp_path):
    """A real Redis."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def redis_for_module(tmp_path_factory):
    """The same for several tests, which leave it running."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def nodes(request):
    """A factory of contexts with channels, all of which share one set of channels; in memory there is only one."""
    from channel_tools import Node
    from redis_server import CLI, SERVER

    url = None
    if request.param == "redis":
        if SERVER is None or CLI is None:
            pytest.skip("needs redis-server and redis-cli")
        url = request.getfixturevalue("redis_server").url
    with contextlib.ExitStack() as stack:
        made = []

        def make(**arguments):
            if url is not None or not made:
                made.append(Node(stack, url, **arguments))
            return made[-1]

        yield make


@pytest.fixture
def redis_nodes(redis_server):
    """A factory of contexts with channels over one Redis."""
    from channel_tools import Node

    with contextlib.ExitStack() as stack:
        yield lambda **arguments: Node(stack, redis_server.url, **arguments)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A headless Chromium, for `profile`."""
    from browser import Browser

    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture
def browser(chromium):
    """A profile of a headless Chromium."""
    with chromium.profile() as profile:
        yield profile


def descriptors():
    """What each of this process's descriptors is: a dict from its number to `socket:[...]`, `pipe:[...]` and so on."""
    links = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor that lists the directory
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return links


def open_sockets():
    return {link for link in descriptors().values() if link.startswith("socket:")}


@contextlib.contextmanager
def held_sockets():
    """Hold a copy of each socket of this process, as a process does that was forked without Python's knowledge."""
    copies = [os.dup(descriptor) for descriptor, link in descriptors().items() if link.startswith("socket:")]
    try:
        yield
    finally:
        for copy in copies:
            os.close(copy)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def greenlets():
    # By `type`, since `isinstance` asks a weak proxy for what it stands for.
    return sum(issubclass(type(item), gevent.Greenlet) and not item.dead for item in gc.get_objects())


@pytest.fixture
def clean(capfd, caplog):
    """What holds for a test that makes no mess; `caplog.clear()` takes out what a test expected in the log."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "gowsev")
    before = open_sockets()
    yield
    wait_until(lambda: open_sockets() <= before)
    assert capfd.readouterr().err == ""
    records = caplog.get_records("call")
    # The first refusal by an option is a warning, since the operator may have set that wrongly.
    louder = [r for r in records if r.levelno > logging.INFO and not r.getMessage().startswith("refused ")]
    assert louder == []
    assert [record for record in records if record.exc_info] == []
    assert [record.getMessage() for record in records if not record.getMessage().isprintable()] == []


@pytest.fixture
def informed(caplog):
    """A function that returns what gowsev logged so far at INFO or above."""
    return lambda: [r.getMessage() for r in caplog.records if r.name == "gowsev" and r.levelno >= logging.INFO]


@pytest.fixture
def quiet_hub(capfd):
    """gevent writes what a greenlet or a callback raised to stderr, and goes on."""
    yield
    assert capfd.readouterr().err == ""


def loop_of(server):
    """The loop of a server's context, for what only a test does to it."""
    return server.context._loop


def sockets_of(server):
    """The connections of a server whose sockets are open, those included whose `ConnClosed` was called."""
    return loop_of(server).connections.open()


def connection_of(server, id):
    """A connection by its id, for what only a test does to it."""
    return loop_of(server).connections.by_id[id]


def sweep(server):
    """Let the connections of a server look at the clock."""
    loop_of(server).connections.keepalive.sweep()


def listeners_of(server):
    return loop_of(server).listeners


class IdleServer(RawClients):
    """A context whose loop runs only where a test drives it."""

    loop = None

    def __init__(self, handler, listen, options):
        super().__init__()
        self.handler = handler
        self.context = gowsev.MakeContext(handler, gowsev.Options(**options))
        self.host, self.port = self.context.ListenAndServe("127.0.0.1:0") if listen else ("", 0)

    def end(self):
        self.close_clients()
        self.context.Shutdown(0)
        self.context.SetTimeout(PATIENCE)
        while self.context.EventLoopIteration():
            pass
        assert self.context.Stats().connections == 0
        assert not sockets_of(self)


@pytest.fixture(params=["listener", "WebSocketHandler"])
def page_server(request, serve):
    """A function that serves a WSGI application by either server that reads requests, and returns how to connect."""
    servers, clients = [], []

    def start(application):
        if request.param == "listener":
            listener = serve(http_app=application)
            return lambda: listener.client(handshake=False)
        server = WSGIServer(
            ("127.0.0.1", 0), application, handler_class=gowsev.WebSocketHandler, log=None, error_log=None
        )
        server.start()
        servers.append(server)

        def connect():
            clients.append(RawClient("127.0.0.1", server.server_port, handshake=False))
            return clients[-1]

        return connect

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.stop()


@pytest.fixture
def idle():
    """A factory of servers whose loop runs only where a test drives it."""
    servers = []

    def start(handler=None, *, listen=True, **options):
        servers.append(IdleServer(handler or Recorder(echo), listen, options))
        return servers[-1]

    yield start
    for server in servers:
        server.end()

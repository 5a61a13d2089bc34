"""What a forked child does with what it has inherited, in programs that fork; and piece by piece, in this process."""

import os
import signal
from collections import Counter

import gevent
import gevent.socket
import pytest
from conftest import PATIENCE, Recorder, descriptors, echo, listening, wait_until
from gevent.pywsgi import WSGIServer
from raw import RawClient

import gowsev
from gowsev.connection.fork import close_descriptor, disown_all
from gowsev.wire import frames

#: A server of each kind, which answers a message with its pid and forks for the first one that it gets.
SERVER = """
import os, sys
server, patched, how, tls = sys.argv[1:5]
if patched == "patched":
    from gevent import monkey
    monkey.patch_all()
import multiprocessing, subprocess, time
import gevent, gevent.os, gevent.pywsgi
import gowsev

children = []


def stay():
    gevent.sleep(60)  # in gevent's way: the child's copy of the hub runs


def fork():
    if how == "multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=stay, daemon=True)
        child.start()
        return child.pid
    if how == "preexec_fn":
        return subprocess.Popen(["sleep", "60"], preexec_fn=lambda: gevent.sleep(0.5)).pid
    if how == "cooperates":  # in the callback, which then returns
        child = os.fork()
        if not child:
            gevent.sleep(0.2)
        return child
    child = {"os.fork": os.fork, "gevent.os.fork": gevent.os.fork, "fork_and_watch": gevent.os.fork_and_watch}[how]()
    if not child:
        try:
            stay()
        finally:
            os._exit(0)
    return child


class Forks(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        if not children:
            children.append(fork())
            print(f"forked {children[0]} in {os.getpid()}", flush=True)
        context.Write(id, str(os.getpid()).encode() + b" " + message)

    def ConnClosed(self, context, id):
        print(f"closed in {os.getpid()}", flush=True)

    def EventLoopTimeout(self, context):
        print(f"timeout in {os.getpid()}", flush=True)


context = gowsev.MakeContext(Forks())
context.SetTimeout(0.3)
if server == "ours":
    if tls:
        host, port = context.ListenAndServeTLS("127.0.0.1:0", *tls.split(","))
    else:
        host, port = context.ListenAndServe("127.0.0.1:0")
    print(f"listening on port {port}", flush=True)
    context.EventLoop()
    print(f"left the loop in {os.getpid()}", flush=True)
else:
    gevent.spawn(context.EventLoop)
    files = dict(zip(("certfile", "keyfile"), tls.split(","))) if tls else {}
    pywsgi = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), context.ServeHTTP, log=None, **files)
    pywsgi.start()
    print(f"listening on port {pywsgi.server_port}", flush=True)
    pywsgi.serve_forever()
"""

LONG = 200_000


def exchange(client, messages=60):
    """Send 200 KB messages, one after the other; return how many of the answers came from which process."""
    pids = Counter()
    for number in range(messages):
        payload = number.to_bytes(2) + bytes(LONG)
        client.send_binary(payload)
        opcode, answer = client.read_frame()
        assert opcode == frames.BINARY
        pid, _, rest = answer.partition(b" ")
        assert rest == payload
        pids[int(pid)] += 1
        gevent.sleep(0.01)
    return pids


@pytest.fixture
def forking(run, tmp_path):
    """A factory of programs that fork; their children are ended after the test."""
    script = tmp_path / "forking.py"
    script.write_text(SERVER)
    programs = []

    def start(server="ours", patched="unpatched", how="multiprocessing", tls=""):
        programs.append(run(script, server, patched, how, tls, PYTHONWARNINGS="ignore"))
        return programs[-1]

    yield start
    for program in programs:
        if "forked" in program.output:
            child = int(program.wait_for(r"^forked (\d+) in")[1])
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass


WAYS = ["multiprocessing", "os.fork", "gevent.os.fork", "fork_and_watch", "preexec_fn", "cooperates"]


@pytest.mark.parametrize("patched", ["unpatched", "patched"])
@pytest.mark.parametrize("how", WAYS)
def test_a_forked_child_takes_nothing_from_its_parent(forking, patched, how):
    program = forking(patched=patched, how=how)
    with_one = RawClient("127.0.0.1", program.port())
    assert exchange(with_one) == {program.process.pid: 60}
    for _ in range(20):  # nor does it accept
        client = RawClient("127.0.0.1", program.port())
        assert exchange(client, 1) == {program.process.pid: 1}
        client.close()
    program.wait_for(f"^timeout in {program.process.pid}")
    with_one.send_close(1000)
    assert with_one.read_close() == (1000, "")
    assert with_one.read_to_end() == b""
    with_one.close()
    child = int(program.wait_for(r"^forked (\d+) in")[1])
    assert f"closed in {child}" not in program.output
    assert f"timeout in {child}" not in program.output
    assert "Traceback" not in program.output


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("server", ["ours", "pywsgi"])
def test_under_each_server_plain_and_tls(forking, certificate, client_tls, server, tls):
    program = forking(server, "patched", tls=",".join(certificate) if tls else "")
    client = RawClient("127.0.0.1", program.port(), tls=client_tls if tls else None)
    assert exchange(client) == {program.process.pid: 60}
    client.close()
    assert "Traceback" not in program.output


LISTENS = """
import os, gevent, gowsev


class Pid(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, str(os.getpid()).encode())


context = gowsev.MakeContext(Pid())
host, port = context.ListenAndServe("127.0.0.1:0")
# Each line in one write: two processes write at the same time.
context.Post(lambda context: os.write(1, f"posted call in {os.getpid()}\\n".encode()))
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        context.EventLoop()
        os._exit(0)
    children.append(child)
os.write(1, f"children {children[0]} {children[1]}\\n".encode())
os.write(1, f"listening on port {port}\\n".encode())
for child in children:
    os.waitpid(child, 0)
"""


def test_children_may_drive_the_loop_of_a_context_that_listened_before(run, tmp_path):
    script = tmp_path / "listens.py"
    script.write_text(LISTENS)
    program = run(script)
    port = program.port()
    children = {int(pid) for pid in program.wait_for(r"^children (\d+) (\d+)$").groups()}
    try:
        clients = [RawClient("127.0.0.1", port) for _ in range(10)]
        for client in clients:
            client.send_binary(b"?")
            assert int(client.read_frame()[1]) in children
            client.close()
        for child in children:
            program.wait_for(f"^posted call in {child}$")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    assert program.wait() == 0


CHILD_SERVES = """
import os, gevent, gowsev


class Pid(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, str(os.getpid()).encode())


def serve():
    context = gowsev.MakeContext(Pid())
    host, port = context.ListenAndServe("127.0.0.1:0")
    print(f"{os.getpid()} listens on {port}", flush=True)
    context.EventLoop()


class Forks(gowsev.Handler):
    def EventLoopTimeout(self, context):
        if not os.fork():
            serve()
        context.SetTimeout(60)


context = gowsev.MakeContext(Forks())
context.SetTimeout(0.01)
context.EventLoop()
"""


def test_a_context_made_in_the_child_works(run, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD_SERVES)
    pid, port = map(int, run(script).wait_for(r"^(\d+) listens on (\d+)$").groups())
    try:
        client = RawClient("127.0.0.1", port)
        client.send_binary(b"?")
        assert client.read_frame() == (frames.BINARY, str(pid).encode())
        client.close()
    finally:
        os.kill(pid, signal.SIGKILL)


# -- piece by piece: `disown_all` does here what it does in a child ----------------------------------------------------


@pytest.fixture
def parent():
    """A function that keeps a copy of every socket's descriptor, as the parent of a forked child has."""
    copies = []

    def keep():
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    copies.append(os.dup(int(name)))
            except OSError:  # the descriptor that lists the directory
                pass

    yield keep
    for copy in copies:
        os.close(copy)


@pytest.fixture
def loops():
    """A list of greenlets, which are ended after the test."""
    greenlets = []
    yield greenlets
    gevent.killall(greenlets)


def hears_nothing(sock):
    sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    return True


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.usefixtures("quiet_hub")
def test_what_was_inherited_is_let_go_of_without_a_word(parent, loops, certificate, client_tls, tmp_path, tls):
    recorder = Recorder(echo)
    context = gowsev.MakeContext(recorder)
    where = ("127.0.0.1:0", *certificate) if tls else ("127.0.0.1:0",)
    host, port = (context.ListenAndServeTLS if tls else context.ListenAndServe)(*where)
    path = tmp_path / "socket"
    context.ListenAndServe(f"unix:{path}")
    loops.append(gevent.spawn(context.EventLoop))
    client, behind = (RawClient(host, port, tls=client_tls if tls else None) for _ in range(2))
    wait_until(lambda: len(recorder.of("accepted")) == 2)
    assert context.Write(2, bytes(1 << 24)) is None  # which the kernel does not take at once
    silent = gevent.socket.create_connection((host, port))
    midway = gevent.socket.create_connection((host, port))
    midway.sendall(b"\x16\x03" if tls else b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / ")
    gevent.sleep(0.1)
    if not tls:
        midway.recv(1 << 16)
    parent()
    disown_all()
    events = len(recorder.events)
    assert context.Stats().connections == 0
    assert isinstance(context.Write(1, b"x"), gowsev.ConnClosing)
    assert context.Broadcast([1, 2], b"x") == [1, 2]
    client.send_binary(b"for the parent")
    assert hears_nothing(client.sock)
    assert hears_nothing(silent)
    assert hears_nothing(midway)
    assert len(recorder.events) == events
    assert not loops[0].dead, "what waited goes on waiting"
    with pytest.raises(RuntimeError, match="forked from"):
        context.Post(echo)
    with pytest.raises(RuntimeError, match="forked from"):
        context.ListenAndServe("127.0.0.1:0")
    loops[0].kill()
    assert context.EventLoopIteration() is False
    context.EventLoop()
    assert path.exists()
    for sock in (client, behind, silent, midway):
        sock.close()


def test_a_loop_that_nobody_has_driven_goes_on_without_the_clients_that_have_come(parent, loops):
    recorder = Recorder(echo)
    context = gowsev.MakeContext(recorder)
    host, port = context.ListenAndServe("127.0.0.1:0")
    early = RawClient(host, port)
    early.send_binary(b"for the parent")
    gevent.sleep(0.05)
    calls = []
    context.Post(lambda context: calls.append("posted"))
    context.AfterFunc(0.01, lambda context: calls.append("timer"))
    parent()
    disown_all()
    loops.append(gevent.spawn(context.EventLoop))
    wait_until(lambda: calls == ["posted", "timer"])
    assert context.Stats().connections == 0
    client = RawClient(host, port)
    client.send_binary(b"for the child")
    assert client.read_frame() == (frames.BINARY, b"for the child")
    assert recorder.messages == [b"for the child"]
    assert hears_nothing(early.sock)
    early.close()
    client.close()
    context.Shutdown(1)
    loops[0].get(timeout=PATIENCE)


def test_a_request_that_nobody_has_judged_takes_no_place_in_the_child(parent, loops):
    class Judge(Recorder):
        def ConnRequested(self, context, request):
            return None

    context = gowsev.MakeContext(Judge(echo), gowsev.Options(max_connections=1))
    host, port = context.ListenAndServe("127.0.0.1:0")
    early = RawClient(host, port, handshake=False)
    early.send(early.request())
    wait_until(lambda: context.Stats().queued_events == 1)
    parent()
    disown_all()
    gevent.sleep(0.05)  # copies of the greenlets that waited end
    loops.append(gevent.spawn(context.EventLoop))
    client = RawClient(host, port)  # is let in
    client.send_binary(b"for the child")
    assert client.read_frame() == (frames.BINARY, b"for the child")
    assert hears_nothing(early.sock)
    early.close()
    client.close()
    context.Shutdown(1)
    loops[0].get(timeout=PATIENCE)


def test_a_dialled_connection_has_ended_in_the_child(loops):
    server = gowsev.MakeContext(Recorder(echo))
    host, port = server.ListenAndServe("127.0.0.1:0")
    loops.append(gevent.spawn(server.EventLoop))
    conn, added, unread = (gowsev.Dial(f"ws://{host}:{port}/") for _ in range(3))
    gowsev.MakeContext(Recorder()).AddConn(added)
    reads = gevent.spawn(conn.ReadMessage)
    loops.append(reads)
    conn.WriteMessage(gowsev.BinaryMessage, b"x")
    reads.get(timeout=PATIENCE)
    loops.append(gevent.spawn(conn.ReadMessage))
    gevent.sleep(0.01)
    disown_all()
    for ended in (conn, unread):
        with pytest.raises(gowsev.ConnectionClosed, match="forked from"):
            ended.ReadMessage()
    with pytest.raises(gowsev.ConnectionClosed, match="forked from"):
        conn.WriteMessage(gowsev.BinaryMessage, b"x")
    conn.Close()
    assert not loops[-1].dead, "what waited goes on waiting"


def test_a_dial_in_progress_fails_in_the_child(parent, loops):
    silent = listening()
    dialling = gevent.spawn(gowsev.Dial, f"ws://127.0.0.1:{silent.getsockname()[1]}/")
    accepted, _ = silent.accept()
    accepted.settimeout(PATIENCE)
    assert accepted.recv(1 << 16).startswith(b"GET ")
    parent()
    disown_all()
    with pytest.raises(gowsev.DialError, match="forked"):
        dialling.get(timeout=PATIENCE)
    assert hears_nothing(accepted)
    accepted.close()
    silent.close()


def test_a_request_that_is_being_judged_is_the_parents_to_answer(parent, loops):
    class Judge(Recorder):
        def ConnRequested(self, context, request):
            self.events.append(("requested",))
            parent()
            disown_all()

    recorder = Judge()
    context = gowsev.MakeContext(recorder, gowsev.Options(handshake_timeout=0.3))
    loops.append(gevent.spawn(context.EventLoop))
    server = WSGIServer(("127.0.0.1", 0), context.ServeHTTP, log=None, error_log=None)
    server.start()
    client = RawClient("127.0.0.1", server.server_port, handshake=False)
    client.send(client.request())
    wait_until(lambda: recorder.of("requested"))
    gevent.sleep(0.5)  # the copy of the server's greenlet has no answer within its time, and cannot send that
    assert hears_nothing(client.sock)
    client.close()
    server.stop()


def test_an_http_app_that_forks_goes_on(parent, loops):
    went_on = []

    def app(environ, start_response):
        parent()
        disown_all()
        gevent.sleep(0.01)
        went_on.append(True)
        start_response("200 OK", [])
        return [b"a page"]

    context = gowsev.MakeContext(Recorder(), gowsev.Options(http_app=app))
    host, port = context.ListenAndServe("127.0.0.1:0")
    loops.append(gevent.spawn(context.EventLoop))
    client = RawClient(host, port, handshake=False)
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_until(lambda: went_on)
    assert hears_nothing(client.sock)
    client.close()


def open_pipes():
    return {link for link in descriptors().values() if link.startswith("pipe:")}


@pytest.mark.parametrize("replaced", [False, True])
def test_the_pipe_for_signals_is_the_parents_and_the_handlers_are_the_programs(replaced):
    own = os.pipe()
    os.set_blocking(own[1], False)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    disown_all()  # what earlier tests have left
    pipes = open_pipes()
    for _ in range(2):
        gowsev.MakeContext(Recorder()).ShutdownOnSignal()
    made = open_pipes() - pipes
    assert len(made) == 1
    try:
        if replaced:
            signal.set_wakeup_fd(own[1])
        disown_all()
        wait_until(lambda: not made & open_pipes())  # gevent closes later, where it has replaced os.close
        assert signal.set_wakeup_fd(-1) == (own[1] if replaced else -1)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
        for descriptor in own:
            os.close(descriptor)


def test_a_loop_that_never_waited_has_ended_too():
    context = gowsev.MakeContext(Recorder())
    context.Post(lambda context: None)
    assert context.EventLoopIteration() is True
    disown_all()
    assert context.EventLoopIteration() is False


def test_who_comes_to_a_loop_that_is_the_parents_is_refused_and_the_log_says_how_to_start_it(caplog):
    context = gowsev.MakeContext(Recorder())
    context.Post(lambda context: None)
    assert context.EventLoopIteration() is True
    disown_all()
    server = WSGIServer(("127.0.0.1", 0), context.ServeHTTP, handler_class=gowsev.WebSocketHandler, log=None)
    server.start()
    for _ in range(2):
        client = RawClient("127.0.0.1", server.server_port, handshake=False)
        client.send(client.request())
        answer = client.read_to_end()
        assert answer.startswith(b"HTTP/1.1 503")
        assert answer.endswith(b"The server forked after its event loop had begun.\n")
        client.close()
    server.stop()
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "driven before this process was forked" in warning.getMessage()


def test_a_socket_that_is_closed_already_is_let_go_of_too():
    sock = gevent.socket.socket()
    sock.close()
    close_descriptor(sock)
    assert sock.fileno() == -1

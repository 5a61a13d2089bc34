"""The servers of the comparison: what each needs, how it is built, started and stopped.

Server and driver are processes of their own, on cores of their own where there are two. None outlives this one,
however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SERVERS = HERE / "servers"
#: What is compiled or installed, but for Python's packages.
BUILD = ROOT / "build" / "benchmarks"
PATIENCE = 20.0
#: Seconds that compiling or installing one peer may take.
PREPARATION = 300
CORES = sorted(os.sched_getaffinity(0))
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Unavailable(Exception):
    """A peer cannot take part; the text says why."""


@dataclass(frozen=True)
class Peer:
    """One of those compared."""

    title: str
    command: tuple[str, ...]
    build: object = None  # a function that makes what the command needs, or raises `Unavailable`
    #: What it takes part in besides what every one does.
    tls: bool = True
    deflate: bool = False
    pings: bool = True
    write_each: bool = False  # publishes by a write for each subscriber as well, besides the way its library has
    leaves_out: frozenset = frozenset()
    environ: dict = field(default_factory=dict)

    def joins(self, name, scenario):
        """Whether it takes part in a scenario."""
        return (
            name not in self.leaves_out
            and (self.tls or not scenario.tls)
            and (self.deflate or "--deflate" not in scenario.server)
            and (self.write_each or "--write-each" not in scenario.server)
        )

    def arguments(self, scenario):
        """What the server is told besides port and mode."""
        return () if "--ping" in scenario.server and not self.pings else scenario.server


def taken_from(tree):
    """Return what makes Python find the package as it lies in a tree, and not the installed one."""
    return {"PYTHONPATH": str(tree)}


def python_server(name):
    return (sys.executable, str(SERVERS / f"{name}_server.py"))


def run(command, **options):
    """Run a command of the preparation; a failure's last line is the reason why a peer cannot take part."""
    if shutil.which(command[0]) is None:
        raise Unavailable(f"there is no {command[0]} here")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PREPARATION, check=False, **options)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} did not end within {PREPARATION} s") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise Unavailable(f"{command[0]}: {next((line for line in lines if 'error' in line.lower()), lines[-1])}")
    return done.stdout


def build_floor():
    run(["gcc", "-O2", "-o", str(BUILD / "floor"), str(SERVERS / "floor.c"), "-lcrypto"])


def build_gorilla():
    packages = Path("/usr/share/gocode")  # where Debian's golang-github-gorilla-websocket-dev puts it
    if not (packages / "src/github.com/gorilla/websocket").is_dir():
        raise Unavailable("there is no github.com/gorilla/websocket (golang-github-gorilla-websocket-dev) here")
    environ = {**os.environ, "GO111MODULE": "off", "GOPATH": str(packages), "GOCACHE": str(BUILD / "go")}
    run(["go", "build", "-o", str(BUILD / "gorilla"), str(SERVERS / "gorilla_server.go")], env=environ)


def check_pure():
    """Check that the checkout's gowsev is pure, and that the installed one is not, with which it is compared.

    Raises:
        Unavailable: it is no other build than the installed one.
    """
    asked = (sys.executable, "-c", "from gowsev.version import build; print(build())")
    installed, ours = (run(asked, env={**os.environ, **more}, cwd="/").strip() for more in ({}, taken_from(ROOT)))
    if (installed, ours) != ("compiled", "pure"):
        raise Unavailable(f"the installed gowsev is {installed}, and that of this tree {ours}")


def install_ws():
    if shutil.which("node") is None:
        raise Unavailable("there is no node here")
    if not (BUILD / "node_modules" / "ws").is_dir():
        run(["npm", "install", "--silent", "--no-save", "--prefix", str(BUILD), "ws"])


PEERS = {
    "gowsev": Peer("gowsev", python_server("gowsev"), deflate=True, write_each=True),
    "gowsev_pure": Peer(
        "gowsev, pure", python_server("gowsev"), check_pure, deflate=True, write_each=True, environ=taken_from(ROOT)
    ),
    "picows": Peer("picows on uvloop", python_server("picows")),
    "socketify": Peer("uWebSockets (socketify)", python_server("socketify")),
    "aiohttp": Peer("aiohttp on uvloop", python_server("aiohttp"), deflate=True),
    "websockets": Peer("websockets on uvloop", python_server("websockets"), deflate=True),
    "gevent_websocket": Peer("gevent-websocket", python_server("gevent_websocket"), pings=False),
    "gorilla": Peer("Go with gorilla", (str(BUILD / "gorilla"),), build_gorilla, tls=False, pings=False),
    "ws": Peer(
        "ws (node)",
        ("node", str(SERVERS / "ws_server.js")),
        install_ws,
        tls=False,
        deflate=True,
        pings=False,
        environ={"NODE_PATH": str(BUILD / "node_modules")},
    ),
    "floor": Peer(
        "C and epoll (the floor)",
        (str(BUILD / "floor"),),
        build_floor,
        tls=False,
        pings=False,
        leaves_out=frozenset({"echo_64k", "churn", "memory_open", "memory_idle", "echo_1m", "echo_16m"}),
    ),
}


def pinning():
    """Say in words which cores are used."""
    if len(CORES) < 2:
        return "server and driver share one core"
    return f"servers pinned to core {CORES[0]}, the driver to core {CORES[-1]}"


def _child(core, mask):
    """Return what a child does before it becomes another program, with this mask of signals."""
    parent = os.getpid()

    def prepare():
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if core is not None:
            os.sched_setaffinity(0, {core})
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)

    return prepare


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def serving(peer, mode="echo", arguments=(), tree=None):
    """Run a server; give its process and its port. gowsev is the installed one, or that of `tree`.

    Raises:
        Unavailable: it does not start; the text is its last output.
    """
    port = free_port()
    environ = {**os.environ, **(taken_from(tree) if tree else {}), **peer.environ}
    # A file, as nobody reads a pipe while it runs, and one that is full would stop it.
    with tempfile.TemporaryFile() as said:
        process = start([*peer.command, str(port), mode, *arguments], stderr=said, env=environ)
        try:
            _wait_until_listening(process, port, said)
            yield process, port
        finally:
            process.kill()
            process.wait()


def start(command, core=CORES[0], **options):
    """Start a process on a core (`None` for any), which does not outlive this one."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    # Python drops what a signal's handler raises in the middle of a fork, and Ctrl-C with it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        # Ctrl-C is for us; we end it.
        return subprocess.Popen(command, start_new_session=True, preexec_fn=_child(core, mask), **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _wait_until_listening(process, port, said):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
            return
        except OSError as error:
            if process.poll() is not None:
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                raise Unavailable(lines[-1] if lines else f"exit code {process.returncode}") from None
            if time.monotonic() > deadline:
                raise Unavailable(f"not listening after {PATIENCE:.0f} s: {error}") from None
            time.sleep(0.02)


def drive(command, process, port, seconds):
    """Run the driver against a server; return its figures, of which `error` is one."""
    words = [*command, "--port", str(port), "--pid", str(process.pid), "--seconds", str(seconds)]
    return figures_of("driver", words, seconds * 2 + 6 * PATIENCE)


def figures_of(program, words, timeout):
    """Run one of the programs that drive, and end with a line of figures; return these, of which `error` is one."""
    command = [sys.executable, str(HERE / f"{program}.py"), *words]
    driver = start(command, CORES[-1], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = driver.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": "the driver did not come to an end"}
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
        driver.stderr.close()
    try:
        return json.loads(output)
    except ValueError:
        return {"error": f"the driver failed: {errors.decode(errors='replace')[-1000:]}"}


def make_certificate(folder):
    """Write an authority's certificate, and a certificate of its for localhost with its key; return the three paths."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    paths = [str(Path(folder) / name) for name in ("authority.pem", "cert.pem", "key.pem")]
    authority.cert_pem.write_to_path(paths[0])
    Path(paths[1]).write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(paths[2])
    return paths


def measure(peer, scenario, seconds, certificate, tree=None):
    """Start a server, drive it through one scenario, stop it; return the driver's figures.

    Raises:
        Unavailable: the server does not start.
    """
    authority, cert, key = certificate
    arguments = [*peer.arguments(scenario), *(("--tls", cert, key) if scenario.tls else ())]
    with serving(peer, scenario.mode, arguments, tree) as (process, port):
        command = [*scenario.driver.split(), *(("--tls", authority) if scenario.tls else ())]
        return drive(command, process, port, scenario.seconds or seconds)


def gather(peers, names, serve=serving):
    """Return those of some peers that can run here, and why others can't; `serve(peer)` runs one for a while."""
    found, skipped = {}, {}
    for name in names:
        try:
            prepare(peers[name], serve)
            found[name] = peers[name]
        except Unavailable as reason:
            skipped[name] = str(reason)
            print(f"left out: {peers[name].title}: {reason}", flush=True)
    return found, skipped


def prepare(peer, serve=serving):
    """Build what a peer needs, and check that it starts.

    Raises:
        Unavailable: it cannot take part; the text says why.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    if peer.build is not None:
        peer.build()
    with serve(peer):
        pass

"""The servers that have channels: how each is started, in several processes over one Redis, and Redis itself.

All of it runs on one core, and the driver on another, where there are two.
"""

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass

import launch
from channel_clients import JsonClient, SocketIoClient
from driver import Server
from launch import BUILD, PATIENCE, SERVERS, Peer, Unavailable

PACKAGES = BUILD / "socketio"  # those of node


@dataclass(frozen=True)
class ChannelPeer(Peer):
    """One of those compared."""

    client: type = JsonClient
    redis: bool = True
    warm_up: float = 0.5  # seconds that are not measured, at least
    rounds: int = 100  # at most, of one that takes long, and is far from the others


def install_socketio():
    if shutil.which("node") is None:
        raise Unavailable("there is no node here")
    if not (PACKAGES / "node_modules" / "socket.io").is_dir():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        names = ("socket.io", "@socket.io/redis-streams-adapter", "redis")
        launch.run(["npm", "install", "--silent", "--no-save", "--prefix", str(PACKAGES), *names])


def django(layer):
    return (sys.executable, str(SERVERS / "django_channels_server.py"), layer)


CHANNEL_PEERS = {
    "gowsev": ChannelPeer("gowsev", launch.python_server("gowsev_channels")),
    "gowsev_memory": ChannelPeer("gowsev in memory", launch.python_server("gowsev_channels"), redis=False),
    "socketio": ChannelPeer(
        "socket.io (node), streams adapter, recovery",
        ("node", str(SERVERS / "socketio_server.js")),
        install_socketio,
        client=SocketIoClient,
        warm_up=3.0,  # node compiles what has run often
        environ={"NODE_PATH": str(PACKAGES / "node_modules")},
    ),
    "python_socketio": ChannelPeer(
        "python-socketio, gevent, RedisManager",
        launch.python_server("python_socketio"),
        client=SocketIoClient,
        rounds=3,
    ),
    "channels_pubsub": ChannelPeer("Django Channels, channels_redis.pubsub", django("pubsub"), rounds=1),
    "channels_core": ChannelPeer("Django Channels, channels_redis.core", django("core"), rounds=1),
}


class Redis:
    """A Redis on a free port, which may be killed and started again.

    Args:
        folder: for its files.
        durable: whether it keeps what it has acknowledged, as docs/scaling-out.md asks of it, or nothing.
        core: where it runs; `None` for any.
    """

    def __init__(self, folder, durable, core=launch.CORES[0]):
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable("there is no redis-server here")
        self.port = launch.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        if durable:
            self.command += ["--appendonly", "yes", "--appendfsync", "always"]
        self.core = core
        self.start()
        self.wait()

    def start(self):
        self.process = launch.start(self.command, core=self.core)

    def wait(self):
        """Wait until it has loaded what it had, and answers."""
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.kill()
                raise Unavailable("redis-server does not answer")
            time.sleep(0.02)

    def answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(100).startswith(b"+PONG")
        except OSError:  # not yet
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()


class Fleet:
    """Processes of one server, and the Redis that joins them, `None` where there is none."""

    def __init__(self, peer, servers, redis):
        self.peer, self.redis = peer, redis
        self.ports = [port for _, port in servers]
        self.clocks = [Server(process.pid) for process, _ in servers]
        self.redis_clock = redis and Server(redis.process.pid)

    def cpu(self):
        """The seconds of processor time of all servers, and of Redis."""
        return sum(clock.cpu() for clock in self.clocks), self.redis_clock.cpu() if self.redis_clock else 0.0

    def client(self, process, earlier=None):
        """Open a client of one of the processes, by its number."""
        return self.peer.client(self.ports[process % len(self.ports)], earlier)


@contextlib.contextmanager
def fleet(peer, processes, durable):
    """Run so many processes of a server; give them as a `Fleet`.

    Raises:
        Unavailable: one does not start; the text says why.
    """
    with contextlib.ExitStack() as stack:
        redis = None
        if peer.redis:
            redis = Redis(stack.enter_context(tempfile.TemporaryDirectory()), durable)
            stack.callback(redis.kill)
        url = redis.url if redis else "memory"
        servers = [stack.enter_context(launch.serving(peer, url)) for _ in range(processes)]
        yield Fleet(peer, servers, redis)

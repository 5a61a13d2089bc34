"""A real Redis, started by the test itself on a free port, to be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess

import pytest
import redis
from conftest import PATIENCE, wait_until
from redis.backoff import NoBackoff
from redis.retry import Retry

#: Another server, such as Valkey's, may be named by the environment; both its programs are in one folder.
SERVER = os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
CLI = SERVER and shutil.which(os.path.basename(SERVER).replace("-server", "-cli"), path=os.path.dirname(SERVER))

needs_redis = pytest.mark.skipif(
    SERVER is None or CLI is None, reason="needs redis-server and redis-cli (Debian's package redis-server)"
)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def shown(answer):
    """A reply as text: the items of lists, of those inside them too, each on a line."""
    if isinstance(answer, list):
        return "\n".join(map(shown, answer))
    return "" if answer is None else answer.decode() if isinstance(answer, bytes) else str(answer)


class RedisServer:
    """A server that loses nothing it has acknowledged, however it ends.

    `options` are added to its command line, and `environ` to its environment.
    """

    def __init__(self, folder, *options, **environ):
        folder.mkdir()
        self.folder = folder
        self.options = options
        self.environ = environ
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = None
        self.start()

    def start(self):
        self.launch()
        wait_until(lambda: self.cli("ping") == "PONG")

    def launch(self):
        """Start it without waiting until it answers."""
        command = [SERVER, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "local", *self.options]
        with (self.folder / "log").open("ab") as log:
            environ = os.environ | self.environ
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def cli(self, *words, db=0):
        """Ask it something; return the answer as redis-cli shows it, which is nothing while there is no server."""
        retry = Retry(NoBackoff(), 0)  # else it would wait for one that loads its data, and every greenlet with it
        connection = redis.Connection("127.0.0.1", self.port, db, socket_timeout=PATIENCE, protocol=2, retry=retry)
        try:
            connection.send_command(*words)
            return shown(connection.read_response()).strip()
        except redis.ConnectionError:
            return ""
        except redis.ResponseError as error:
            return str(error)
        finally:
            connection.disconnect()

    def client(self):
        return redis.Redis.from_url(self.url)

"""Real proxies that lead to servers, started by the test itself: tinyproxy for CONNECT, microsocks for SOCKS5."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager

import gevent.socket
import pytest
from conftest import PATIENCE, wait_until

TINYPROXY = shutil.which("tinyproxy") or shutil.which("/usr/sbin/tinyproxy")
MICROSOCKS = shutil.which("microsocks") or shutil.which("/usr/sbin/microsocks")

needs_tinyproxy = pytest.mark.skipif(TINYPROXY is None, reason="needs tinyproxy (Debian's package tinyproxy)")
needs_microsocks = pytest.mark.skipif(MICROSOCKS is None, reason="needs microsocks (Debian's package microsocks)")


def free_port():
    with gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Running:
    """A proxy that runs: `port`, and `log()`, what it has written so far."""

    def __init__(self, port, path):
        self.port = port
        self._path = path

    def log(self):
        return self._path.read_text()


@contextmanager
def running(command, port, path):
    def up():
        assert process.poll() is None, path.read_text()
        with gevent.socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(up)
        yield Running(port, path)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextmanager
def running_tinyproxy(folder, *lines):
    """Run tinyproxy with more lines of configuration."""
    port = free_port()
    configuration = [f"Port {port}", "Listen 127.0.0.1", "Allow 127.0.0.1", "LogLevel Connect", "MaxClients 20", *lines]
    (folder / "tinyproxy.conf").write_text("\n".join([*configuration, ""]))
    with running([TINYPROXY, "-d", "-c", folder / "tinyproxy.conf"], port, folder / "tinyproxy.log") as proxy:
        yield proxy


@contextmanager
def running_microsocks(folder, *arguments):
    """Run microsocks, which takes a user and password if the arguments have them."""
    port = free_port()
    command = [MICROSOCKS, "-i", "127.0.0.1", "-p", str(port), *arguments]
    with running(command, port, folder / "microsocks.log") as proxy:
        yield proxy

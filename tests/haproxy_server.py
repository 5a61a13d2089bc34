"""A real HAProxy, started by the test itself."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager

import gevent.socket
import pytest
from conftest import PATIENCE, wait_until

HAPROXY = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="needs haproxy (Debian's package haproxy)")


def passing_on(port, upstream, options):
    """Return a configuration that passes TCP connections on from one port to another.

    Args:
        options: of the line `server`, such as `send-proxy`.
    """
    return f"""
defaults
    mode tcp
    timeout connect 30s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{upstream} {options}
"""


@contextmanager
def running_haproxy(folder, port, configuration):
    """Run HAProxy with what a file of configuration has; it is up once something listens on the port."""
    path = folder / "haproxy.cfg"
    path.write_text(configuration)

    def up():
        assert process.poll() is None, "HAProxy has ended"
        with gevent.socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    process = subprocess.Popen([HAPROXY, "-db", "-q", "-f", path])
    try:
        wait_until(up)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)

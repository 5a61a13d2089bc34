"""A real nginx, started by the test itself, with a file of configuration that a document shows."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager

import pytest
from conftest import PATIENCE, wait_until

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian's package nginx-light)")


@contextmanager
def running_nginx(folder, snippet):
    """Run nginx with what belongs into `http { ... }`; all that it writes goes into the folder."""
    log = folder / "log"
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid;\nerror_log {log};\ndaemon off;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{snippet}}}\n"
    )
    process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", log])
    try:
        wait_until(lambda: (folder / "pid").exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)

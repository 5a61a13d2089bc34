"""A real nginx, started by the test itself, with a file of configuration that a document shows."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE, wait_until

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")

#: Debian has this module in a package of its own.
STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian's package nginx-light)")
needs_stream = pytest.mark.skipif(
    NGINX is None or not STREAM.exists(), reason="needs nginx's module stream (Debian's package libnginx-mod-stream)"
)


@contextmanager
def running_nginx(folder, snippet="", stream=""):
    """Run nginx; all that it writes goes into the folder.

    Args:
        snippet: what belongs into `http { ... }`.
        stream: a block `stream { ... }` for beside it.
    """
    log = folder / "log"
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"pid {folder}/pid;\nerror_log {log};\ndaemon off;\nevents {{}}\n"
    if stream:
        main = f"load_module {STREAM};\n{main}{stream}"
    (folder / "nginx.conf").write_text(f"{main}http {{\naccess_log off;\n{paths}{snippet}}}\n")
    process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", log])
    try:
        wait_until(lambda: (folder / "pid").exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)

"""Whether an installed gowsev works: run by `fresh_install.py` in an environment of its own, and knows of no checkout.

It walks through the first program of the README, as the package's metadata bring it along, and talks to servers, plain
and with TLS, through the client of the `websockets` package. With `--extras` everything that an extra brings must be
there and be used. With `--compiled` or `--pure` it must be that build.
"""

import importlib
import importlib.metadata
import os
import pkgutil
import re
import ssl
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import connect

import gowsev
from gowsev.version import build

#: Seconds for each step that waits.
PATIENCE = 30

#: Modules whose other half is an extra, or for tests.
EXTRA = {
    "gowsev.gunicorn": "gunicorn",
    "gowsev.prometheus": "prometheus-client",
    "gowsev.pytest_plugin": "pytest",
}

ECHO = """
import sys
import gowsev

class Echo(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, message)
    def TextReceived(self, context, id, text):
        context.WriteText(id, text)

context = gowsev.MakeContext(Echo(), gowsev.Options(compression="deflate"))
host, port = context.ListenAndServeTLS("127.0.0.1:0", "cert.pem", "key.pem")
print(f"listening on port {port}", flush=True)
context.EventLoop()
"""


def check(condition, complaint):
    if not condition:
        raise SystemExit(f"smoke.py: {complaint}")


def is_installed(package):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def serving(program):
    """Run a program that serves, in an interpreter of its own; give its port."""
    command = [sys.executable, "-W", "error", "-u", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on port (\d+)\n", line)
            check(found, f"{program} said {line!r}")
            yield int(found[1])
        finally:
            process.kill()


def echoes(client):
    for message in ("hello, Ann", b"hello", "x" * 100_000, bytes(300_000)):
        client.send(message)
        yield client.recv(timeout=PATIENCE) == message


def installed_as_a_user_has_it():
    package = Path(gowsev.__file__).parent
    check(package.is_relative_to(sys.prefix), f"{package} is not in the environment")
    check((package / "py.typed").is_file(), "py.typed is missing")
    check(importlib.metadata.version("gowsev") == gowsev.__version__, "the metadata are of another version")
    for module in pkgutil.iter_modules([str(package)], "gowsev."):
        if module.name not in EXTRA or is_installed(EXTRA[module.name]):
            importlib.import_module(module.name)


def first_program_of_the_readme():
    text = importlib.metadata.metadata("gowsev")["Description"]
    for name in ("echo.py", "client.py"):
        (program,) = re.findall(rf"^```python\n(# {name}\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
        Path(name).write_text(program.replace('ListenAndServe("9000")', 'ListenAndServe("127.0.0.1:0")'), "utf-8")
    prompt = re.escape("$ .venv/bin/python client.py\n")
    (expected,) = re.findall(rf"^```console\n{prompt}(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    with serving("echo.py") as port:
        program = Path("client.py").read_text("utf-8").replace("localhost:9000", f"127.0.0.1:{port}")
        command = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        check((done.stdout, done.stderr) == (expected, ""), f"client.py said {done.stdout + done.stderr!r}")
        with connect(f"ws://127.0.0.1:{port}/", open_timeout=PATIENCE) as client:
            client.send(b"hello")
            check(client.recv(timeout=PATIENCE) == b"hello", "there was no echo")


def echo_over_tls():
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make.split(), *names], check=True, capture_output=True, timeout=PATIENCE)
    Path("tls_echo.py").write_text(ECHO, "utf-8")
    trust = ssl.create_default_context(cafile="cert.pem")
    trust.maximum_version = ssl.TLSVersion.TLSv1_2  # the client has two threads: `for_two_threads` in programs.py
    with (
        serving("tls_echo.py") as port,
        connect(f"wss://127.0.0.1:{port}/", ssl=trust, open_timeout=PATIENCE) as client,
    ):
        check(client.protocol.extensions, "compression was not negotiated")
        check(all(echoes(client)), "an echo over TLS was another message")


def what_extras_bring():
    from gunicorn.workers.base import Worker as Base

    from gowsev.gunicorn import Worker
    from gowsev.wire import deflate

    check(issubclass(Worker, Base), "gunicorn would not take the worker")
    from isal import isal_zlib

    check(any(value is isal_zlib for value in vars(deflate).values()), "isal is here and is not used")


def main(arguments):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        installed_as_a_user_has_it()
        for expected in {"compiled", "pure"} & {word.removeprefix("--") for word in arguments}:
            check(build() == expected, f"this build is {build()}, not {expected}")
        first_program_of_the_readme()
        echo_over_tls()
        if "--extras" in arguments:
            what_extras_bring()
        os.chdir("/")
    print("gowsev", gowsev.__version__, "works")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Programs under test that run in processes of their own: the examples, and the snippets of README and `docs/`.

A document's fenced blocks are its snippets. Those in a language that runs have a name of their own, in a comment on
their first line, and a test that runs them, which says so with `@snippets(document, name, ...)` and gets them through
the fixture `page`. `test_documents.py` holds that there is one for each, and that it has looked at what the document
shows as output; so nothing is skipped in silence. What is not meant to run is called `text`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import websocket
from conftest import PATIENCE, wait_until
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect


class Program:
    """A program that runs in a process of its own; what it prints goes to a file."""

    def __init__(self, output, script, *args, **environ):
        self._output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, script, *map(str, args)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=output.parent,
                env=os.environ | environ,
            )

    @property
    def output(self):
        return self._output.read_text()

    def wait_for(self, pattern):
        """Wait until `pattern` is found in the output; return the match."""

        length = None

        def found():
            nonlocal length
            # Looked at before the output is read: what it printed last counts.
            ended = self.process.poll()
            before, length = length, self._output.stat().st_size
            if length == before and ended is None:
                return None
            match = re.search(pattern, self.output, re.MULTILINE)
            assert match or ended is None, f"it ended with {ended} and never printed {pattern!r}:\n{self.output}"
            return match

        return wait_until(found)

    def port(self):
        """Wait until the program has said on which port it listens, as the snippets do."""
        return int(self.wait_for(r"^listening on port (\d+)$")[1])

    def wait(self):
        """Wait until the program has ended by itself; return the exit code."""
        return self.process.wait(PATIENCE)

    def url(self, scheme="ws"):
        return self.wait_for(rf"Listening on .*?({scheme}://\S+:\d+/)$")[1]

    def end(self, number=signal.SIGTERM):
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


#: Runs a script with one list of arguments after another, each time in a child of a process that has imported it all.
_EACH = """
import importlib, json, os, runpy, sys

script, output, modules, rows = json.loads(sys.argv[1])
sys.path[0] = os.path.dirname(script)
for name in modules:
    importlib.import_module(name)
codes = []
for number, arguments in enumerate(rows):
    child = os.fork()
    if not child:
        file = os.open(f"{output}-{number}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def outcomes(folder, script, modules, rows):
    """Run a script that ends by itself, once for each row of arguments; return the exit codes and outputs.

    Most of the time of so short a program is for its imports, which are done once for all rows.

    Args:
        folder: an empty one, in which it runs.
        script: its path.
        modules: what it imports, by name.
        rows: lists of arguments.
    """
    rows = [[str(argument) for argument in row] for row in rows]
    what = json.dumps([str(script), str(folder / "output"), modules, rows])
    done = subprocess.run(
        [sys.executable, "-c", _EACH, what],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder, timeout=PATIENCE * 6, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    return [(code, (folder / f"output-{number}").read_text()) for number, code in enumerate(codes)]


def for_two_threads(tls):
    """Limit a TLS context to TLS 1.2, for the synchronous clients and servers of websockets; return it.

    They read in one thread and write in another, which OpenSSL's connections are not made for. With TLS 1.3 the first
    that is read still belongs to the handshake, and a request that was written meanwhile was lost: on a busy machine,
    one of some hundred connections was never answered.
    """
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    return tls


def websockets_client(url, tls=None, **kwargs):
    return connect(url, ssl=tls and for_two_threads(tls), proxy=None, open_timeout=PATIENCE, **kwargs)


@contextmanager
def websocket_client(url, tls=None, **kwargs):
    """A client of the library websocket-client, which reads and writes in turn."""
    sslopt = {"context": tls} if tls else {}
    client = websocket.create_connection(url, timeout=PATIENCE, sslopt=sslopt, http_no_proxy=["*"], **kwargs)
    try:
        yield client
    finally:
        client.close()
        client.shutdown()  # after a close frame from the other side, `close` leaves the socket open


def visit(port, stack):
    """Connect where the program needs no login and no TLS; else return `None`."""
    for path in ("/", "/live"):
        try:
            return stack.enter_context(websockets_client(f"ws://127.0.0.1:{port}{path}"))
        except (InvalidHandshake, OSError, EOFError):
            continue
    return None


def close_code_of(client):
    """The code that the server closes with, after the messages that it may send before."""
    try:
        while True:
            client.recv(PATIENCE)
    except ConnectionClosed as closed:
        return closed.rcvd and closed.rcvd.code


# -- the snippets of a document ----------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
DOCUMENTS += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "examples").glob("*/README.md"))]

_FENCE = re.compile(r"^( *)(`{3,}|:{3,})(\S*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"(?:#!\S+\n)?(?:#|//|;|<!--) (\S+\.\w+)(?: -->)?\n")

#: The names of the snippets that a test runs, by document.
COVERED = defaultdict(set)


class Fence(NamedTuple):
    language: str
    text: str

    @property
    def name(self):
        match = _NAME.match(self.text)
        return match and match[1]


def read(document):
    return (ROOT / document).read_text("utf-8")


def fences(document):
    """The fenced blocks of a document."""
    return [Fence(language, text) for _, _, language, text in _FENCE.findall(read(document))]


def transcripts(document):
    """What the document shows in its blocks of `console`: (command, output), in their order."""
    shown = []
    for fence in fences(document):
        if fence.language == "console":
            head, *parts = re.split(r"^\$ ", fence.text, flags=re.MULTILINE)
            assert not head, f"{document}: a console that does not begin with a command: {head!r}"
            for part in parts:
                command, _, output = part.partition("\n")
                shown.append((command, output))
    return shown


def snippets(document, *names):
    """Mark a test as the one that runs these snippets of a document, or all that have a name."""
    names = names or tuple(fence.name for fence in fences(document) if fence.name)

    def mark(test):
        COVERED[document].update(names)
        test.snippets = (document, names)
        return test

    return mark


class Page:
    """What a test does with the snippets of a document, in a folder of its own."""

    def __init__(self, document, names, folder):
        self.document = document
        self.names = names
        self.folder = folder
        self.programs = []
        self._servers = []
        self._texts = {fence.name: fence.text for fence in fences(document) if fence.name in names}
        self._written = set()
        self._compared = set()
        self._expect_traceback = False

    def write(self, name, port=None, replace=()):
        """Write a snippet into the folder; what it listens on becomes a port that the system chooses.

        Args:
            port: of the server that it talks to.
            replace: more that must be replaced: pairs.
        """
        text = self._texts[name]
        for old, new in replace:
            assert old in text, old
            text = text.replace(old, str(new))
        text = re.sub(r'"(127\.0\.0\.1:)?900[01]"', '"127.0.0.1:0"', text)
        text = text.replace('("127.0.0.1", 8000)', '("127.0.0.1", 0)')
        if port is not None:
            text = text.replace("localhost:9000", f"127.0.0.1:{port}")
        assert not re.search(r"\b[89]00[01]\b", text), text
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        self._written.add(name)
        return path

    def run(self, script, *arguments, **environ):
        """Start a script or, after `-m`, a module."""
        output = self.folder / f"output-{len(self.programs)}"
        self.programs.append(Program(output, script, *arguments, PYTHONUNBUFFERED="1", **environ))
        return self.programs[-1]

    def start(self, name, *arguments, port=None, replace=()):
        """Start a snippet."""
        program = self.run(self.write(name, port, replace), *arguments)
        if "ShutdownOnSignal" in self._texts[name]:
            # A connection in the hands of gevent-websocket is cut off with its process.
            self._servers.append((program, "geventwebsocket" not in self._texts[name]))
        return program

    def serve(self, name, **arguments):
        """Start a snippet that listens; return its port."""
        return self.start(name, **arguments).port()

    def shell(self, beginning):
        """Run the command of the document that begins so, in the folder."""
        (command,) = (
            line
            for fence in fences(self.document)
            if fence.language == "sh"
            for line in fence.text.splitlines()
            if line.startswith(beginning)
        )
        done = subprocess.run(command, shell=True, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def expect_traceback(self):
        """What the programs print may hold a traceback."""
        self._expect_traceback = True

    def shown(self, command):
        """The output that the document shows for a command."""
        self._compared.add(command)
        return dict(transcripts(self.document))[command]

    def output_of(self, name, port=None):
        """Run a snippet to its end; return what it prints, which must be what the document shows, if it shows that."""
        program = self.start(name, port=port)
        assert program.wait() == 0, program.output
        for command, _ in transcripts(self.document):
            if command in (f".venv/bin/python {name}", f"python {name}"):
                assert program.output == self.shown(command)
        return program.output

    def interrupt(self):
        """End those servers that still run as Ctrl-C does, and hold that it is done in order."""
        for program, all_ours in self._servers:
            if program.process.poll() is not None:
                continue
            with ExitStack() as stack:
                client = visit(program.port(), stack)
                assert program.end(signal.SIGINT) == 0, program.output
                if client is not None and all_ours:
                    assert close_code_of(client) == 1001

    def end(self):
        for program in self.programs:
            program.process.kill()
            program.process.wait()

    def check(self):
        """Hold that nothing was left out, and that nothing went wrong unseen."""
        assert self._written == set(self.names), "snippets that the test claims to run, and does not"
        for command, _ in transcripts(self.document):
            if set(command.split()) & set(self.names):
                assert command in self._compared, f"{command}: nobody has looked at what it shows"
        for program in self.programs:
            assert self._expect_traceback or "Traceback" not in program.output, program.output

"""The README and the other documents are true: their programs run, their commands exist, their tables are complete.

Each program of the README runs as a reader would run it, in an interpreter of its own, on a port that the system
chose; another library's client talks to it.
"""

import ast
import configparser
import importlib.util
import inspect
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE, wait_until
from fresh_install import OURS, floors
from test_layers import FLOORS
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import gowsev

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RELAY = "examples/subscribe_publish/relay.py"

names_of_documents = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def blocks(text, language):
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text, *header):
    """The rows of the table with this header, each a list of cells."""
    lines = text.split("| " + " | ".join(header) + " |\n", 1)[1].splitlines()[1:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table


def code(cell):
    """The first piece of code in a cell."""
    return re.match(r"`([^`]*)`", cell)[1]


#: Each program by the name that its first line gives it.
PROGRAMS = {re.match(r"# (\w+\.py)\n", block)[1]: block for block in blocks(README, "python")}


# -- running programs --------------------------------------------------------------------------------------------------


class Program:
    """A Python program that runs in a process of its own."""

    def __init__(self, folder, arguments):
        self.output, self.errors = folder / "stdout", folder / "stderr"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            command = [sys.executable, "-u", *arguments]
            self.process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=errors)

    @property
    def text(self):
        return self.output.read_text("utf-8") + self.errors.read_text("utf-8")

    def find(self, pattern):
        """Wait until the program has written this; return the match."""

        def found():
            running = self.process.poll() is None
            match = re.search(pattern, self.text)
            assert match or running, self.text
            return match

        return wait_until(found)

    def wait(self):
        return self.process.wait(PATIENCE)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(folder, *arguments):
    program = Program(folder, arguments)
    try:
        yield program
        assert "Traceback" not in program.text, program.text
    finally:
        program.end()


@pytest.fixture
def readme(tmp_path):
    """A function that starts a program of the README, its ports chosen by the system or given."""

    def start(name, port=None):
        folder = tmp_path / name
        folder.mkdir()
        text = PROGRAMS[name].replace('"9000"', '"127.0.0.1:0"').replace('("127.0.0.1", 8000)', '("127.0.0.1", 0)')
        if port is not None:
            text = text.replace("localhost:9000", f"127.0.0.1:{port}")
        assert "9000" not in text
        (folder / name).write_text(text, "utf-8")
        return running(folder, name)

    start.folder = tmp_path
    return start


@contextmanager
def serving_relay(folder):
    """Run the example relay; give its port."""
    options = ["--host", "127.0.0.1", "--port", "0", "--tls-port", "none"]
    with running(folder, str(ROOT / RELAY), *options) as program:
        yield int(program.find(r"Listening on ws://127\.0\.0\.1:(\d+)/")[1])


@contextmanager
def serving(readme, name):
    """Run a program that serves; give its port."""
    with readme(name) as program:
        yield int(program.find(r"listening on port (\d+)\n")[1])


def dial(port, path="/", **arguments):
    return connect(f"ws://127.0.0.1:{port}{path}", open_timeout=PATIENCE, close_timeout=PATIENCE, **arguments)


def receive(client):
    return client.recv(timeout=PATIENCE)


def transcript(name):
    """The output that the README shows for a program."""
    prompt = f"$ .venv/bin/python {name}\n"
    return next(block.removeprefix(prompt) for block in blocks(README, "console") if block.startswith(prompt))


# -- the programs of the README ----------------------------------------------------------------------------------------


def echoes(readme, name):
    with serving(readme, name) as port, dial(port) as client:
        client.send(b"hello")
        assert receive(client) == b"hello"


def runs_against_the_echo(readme, name):
    with serving(readme, "echo.py") as port, readme(name, port) as program:
        assert program.wait() == 0, program.text
        assert program.text == transcript(name)


def runs_alone(readme, name):
    with readme(name) as program:
        assert program.wait() == 0, program.text
        assert program.text == (transcript(name) if f"python {name}" in README else "")


def chats(readme, name):
    with serving(readme, name) as port, dial(port) as ann:
        assert receive(ann) == "1 has come"
        with dial(port) as bob:
            assert receive(ann) == receive(bob) == "2 has come"
            bob.send("hello, Ann")
            assert receive(ann) == receive(bob) == "2: hello, Ann"
        assert receive(ann) == "2 has gone"


def serves_pages_that_write(readme, name):
    with serving(readme, name) as port, dial(port, origin=f"http://127.0.0.1:{port}") as client:
        assert client.ping().wait(PATIENCE)  # the server knows of us
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/shop", timeout=PATIENCE) as response:
            assert response.read() == b"a page\n"
        assert receive(client) == "somebody looks at /shop"


def serves_on_the_port_of_its_pages(readme, name):
    with serving(readme, name) as port, dial(port, "/live") as client:
        client.send(b"hello")
        assert receive(client) == b"hello"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as response:
            assert response.read() == b"1 connections\n"


def serves_beside_pages(readme, name):
    with serving(readme, name) as port:
        with dial(port, origin="https://www.example.org") as client:
            client.send(b"hello")
            assert receive(client) == b"hello"
        with pytest.raises(InvalidStatus, match="403"):
            dial(port, origin="https://www.example.com")


def refuses_and_welcomes(readme, name):
    with serving(readme, name) as port:
        with pytest.raises(InvalidStatus, match="404"):
            dial(port)
        with pytest.raises(InvalidStatus, match="401") as refusal:
            dial(port, "/live")
        assert refusal.value.response.headers["WWW-Authenticate"] == "Bearer"
        with dial(port, "/live", additional_headers={"Authorization": "Bearer sesame"}) as client:
            assert receive(client) == "welcome to /live"


def works_in_threads(readme, name):
    with serving(readme, name) as port, dial(port) as client:
        client.send(b"stressed")
        assert receive(client) == b"desserts"


def stops_on_sigterm(readme, name):
    with readme(name) as program:
        port = int(program.find(r"listening on port (\d+)\n")[1])
        with dial(port) as client:
            assert client.ping().wait(PATIENCE)
            program.process.send_signal(signal.SIGTERM)
            program.find("all connections are closed\n")
        assert client.close_code == 1001
        assert program.wait() == 0, program.text


def runs_against_the_relay(readme, name):
    with serving_relay(readme.folder) as port, readme(name, port) as program:
        assert program.wait() == 0, program.text
        assert program.text == transcript(name)


#: How each program is used; a new one needs its line here.
USES = {
    "echo.py": echoes,
    "client.py": runs_against_the_echo,
    "chat.py": chats,
    "web.py": serves_pages_that_write,
    "live.py": serves_on_the_port_of_its_pages,
    "beside.py": serves_beside_pages,
    "script.py": runs_against_the_echo,
    "door.py": refuses_and_welcomes,
    "errors.py": runs_alone,
    "session.py": runs_against_the_relay,
    "work.py": works_in_threads,
    "options.py": runs_alone,
    "stop.py": stops_on_sigterm,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_of_the_readme_does_what_is_said_of_it(readme, name):
    USES[name](readme, name)


def test_every_program_of_the_readme_has_a_name_of_its_own():
    assert len(PROGRAMS) == len(blocks(README, "python"))


def test_docstring_shown_as_an_example_is_valid_python():
    for block in blocks(CONTRIBUTING, "python"):
        assert ast.get_docstring(ast.parse(block).body[0])


# -- commands ----------------------------------------------------------------------------------------------------------


def commands():
    """Every command that the documents show, as its words."""
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
        lines += [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line[:2] == "$ "]
        for line in lines:
            yield from (shlex.split(command) for command in line.split(" && "))


def setup_cfg():
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    return parser


def tox_ini():
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "tox.ini", "utf-8")
    return parser


def check_pip(arguments):
    assert arguments[0] == "install"
    for target in arguments[1:]:
        extra = re.fullmatch(r"\.\[(\w+)\]", target)
        if extra:
            assert extra[1] in setup_cfg()["options.extras_require"]
        else:
            assert target in {".", "-e", "tox"}


def names_environment(section, name):
    """Whether a section of tox.ini, such as `testenv:py{311,312}`, is of this environment, or of these."""
    several = re.sub(r"\\{(.*?)\\}", lambda found: f"(?:{found[1].replace(',', '|')})", re.escape(section))
    return section == f"testenv:{name}" or re.fullmatch(several, f"testenv:{name}") is not None


def check_python(arguments):
    first, *rest = arguments
    if first == "-m":
        # tox runs the tests, and is not there in the environment that it runs them in.
        assert rest[0] == "tox" or importlib.util.find_spec(rest[0]) is not None
        if rest[1:2] == ["-e"]:
            assert rest[0] == "tox"
            assert rest[3:] in ([], ["--", "--tests"])
            assert any(names_environment(section, rest[2]) for section in tox_ini().sections())
        else:
            assert rest[1:] in ([], [".venv"], ["--module", "pytest"])
    elif first in PROGRAMS:
        assert not rest
    else:
        assert (ROOT / first).is_file()
        shown = subprocess.run(
            [sys.executable, ROOT / first, "--help"], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        for option in rest:
            assert not option.startswith("-") or re.search(rf"^  .*{option}\b", shown.stdout, re.MULTILINE)


def check_git(arguments):
    assert arguments == ["status", "--short"]


def check_websockets(arguments):
    assert (Path(sys.executable).parent / "websockets").is_file()
    assert arguments == ["ws://localhost:9000/"]


CHECKS = {
    "git": check_git,
    "python3": check_python,
    ".venv/bin/python": check_python,
    ".venv/bin/pip": check_pip,
    ".venv/bin/websockets": check_websockets,
}


@pytest.mark.parametrize("command", sorted({tuple(command) for command in commands()}), ids=shlex.join)
def test_command_names_what_exists(command):
    program, *arguments = command
    CHECKS[program](arguments)


# -- tables ------------------------------------------------------------------------------------------------------------

API = [code(name) for name, _ in rows(README, "name", "what it is")]


def methods(kind):
    """The public methods of Go's kind: its names begin with a capital letter."""
    return {name for name, value in vars(kind).items() if name[0].isupper() and callable(value)}


def test_api_table_is_complete():
    listed = sorted(name.partition("(")[0] for name in API)
    public = set(gowsev.__all__) - {"__version__"}
    assert listed == sorted(public | {f"context.{name}" for name in methods(gowsev.Context)})


@pytest.mark.parametrize("signature", [name for name in API if "(" in name])
def test_signature_in_api_table(signature):
    name = signature.partition("(")[0]
    target = vars(gowsev.Context)[name[8:]] if name.startswith("context.") else getattr(gowsev, name)
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(target).parameters.values()]
    if name.startswith("context."):
        parameters = parameters[1:]
    assert signature == f"{name}{inspect.Signature(parameters)}"


def test_callbacks_table_is_complete():
    table = [code(name) for name, _ in rows(README, "callback", "when")]
    for signature in table[:4]:
        name, _, parameters = signature[:-1].partition("(")
        assert ["self", *parameters.split(", ")] == list(inspect.signature(getattr(gowsev.Handler, name)).parameters)
    assert {signature.partition("(")[0] for signature in table[:4]} == methods(gowsev.Handler)
    # The two that are optional are told of in the docstring.
    assert table[4:] == re.findall(r"- `(\w+\([\w, ]+\))`", gowsev.Handler.__doc__)


@pytest.mark.parametrize("kind", [gowsev.Conn, gowsev.Request])
def test_attributes_in_api_table(kind):
    cell = next(text for name, text in rows(README, "name", "what it is") if code(name) == kind.__name__)
    listed = [name for name in re.findall(r"`(\w+)`", cell) if name != "ConnRequested"]
    attributes = [name for name in vars(kind) if not name.startswith("_") and not callable(vars(kind)[name])]
    assert listed == list(getattr(kind, "__dataclass_fields__", attributes))


def test_options_table_is_that_of_the_dataclass():
    table = rows(README, "field", "default", "what it does")
    fields = inspect.signature(gowsev.Options).parameters.values()
    assert [(code(name), code(default)) for name, default, _ in table] == [(f.name, repr(f.default)) for f in fields]


def test_commands_of_the_relay_are_those_it_understands(tmp_path):
    with serving_relay(tmp_path) as port, dial(port) as client:
        for (command,) in ([code(row[0])] for row in rows(README, "command", "what it does")):
            client.send(command)
            assert receive(client) == b"OK", command
        client.send("subscribe")
        assert receive(client) == b"Invalid message"


DEPENDENCIES = (ROOT / "docs" / "dependencies.md").read_text("utf-8")


def names_in(requirements):
    return sorted(re.match(r"[\w-]+", line)[0] for line in requirements.split())


def test_dependencies_are_those_of_setup_cfg():
    table = rows(DEPENDENCIES, "package", "used for", "why this one")
    assert [code(row[0]) for row in table] == names_in(setup_cfg()["options"]["install_requires"])


@pytest.mark.parametrize("extra", setup_cfg()["options.extras_require"])
def test_extras_are_those_of_setup_cfg(extra):
    table = rows(DEPENDENCIES.split(f"the extra `{extra}`\n", 1)[1], "package", "used for")
    requirements = setup_cfg()["options.extras_require"][extra]
    assert sorted(code(row[0]) for row in table) == names_in(requirements)
    if extra not in OURS:
        lowest = floors({extra: requirements.split()})
        assert {code(name): re.search(r"\(([\d.]+) or newer\)", name)[1] for name, _ in table} == lowest


@pytest.mark.parametrize("requirement", setup_cfg()["options"]["install_requires"].split())
def test_oldest_versions_are_those_of_setup_cfg(requirement):
    package, version = requirement.split(">=")
    assert f"{package} {version}" in README
    assert f"`{package}` ({version} or newer)" in DEPENDENCIES


def test_python_versions_are_those_of_setup_cfg_and_tox():
    named = re.findall(r"3\.\d+", re.search(r"^CPython (.*?),? on ", README, re.MULTILINE)[1])
    prefix = "Programming Language :: Python :: "
    listed = [line.removeprefix(prefix) for line in setup_cfg()["metadata"]["classifiers"].strip().splitlines()]
    assert named == [version for version in listed if re.fullmatch(r"3\.\d+", version)]
    assert setup_cfg()["options"]["python_requires"] == f">={named[0]}"
    assert f"Python {named[0]} or newer" in README


def test_tox_environments_are_those_of_tox_ini():
    listed = [
        name for cell, _ in rows(CONTRIBUTING, "environment", "what it does") for name in re.findall("`(.*?)`", cell)
    ]
    assert listed == tox_ini()["tox"]["envlist"].split(", ")


def test_floors_are_those_that_the_layers_are_held_to():
    table = rows(CONTRIBUTING, "floor", "module", "purpose")
    listed = [
        {code(module).removesuffix(".py") for number, module, _ in table if int(number) == floor}
        for floor in range(len(FLOORS))
    ]
    assert listed == FLOORS


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(path):
    """The names of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=names_of_documents)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_changelog_tells_of_this_version():
    assert f"## [{gowsev.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")

"""README, `docs/small-programs.md`, `at-a-glance.md` and `relay.md` are true: programs run, and tables are complete.

Each program runs in an interpreter of its own (see `programs.py`), on a port that the system chose; another library's
client talks to it.
"""

import configparser
import inspect
import re
import signal
import urllib.request

import pytest
from conftest import PATIENCE
from fresh_install import OURS, floors
from programs import ROOT, snippets
from test_layers import FOLDERS, ROOMS
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import gowsev

README = (ROOT / "README.md").read_text("utf-8")
GLANCE = (ROOT / "docs" / "at-a-glance.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SMALL = "docs/small-programs.md"
RELAY = "examples/subscribe_publish/relay.py"


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


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250


# -- programs ----------------------------------------------------------------------------------------------------------


def dial(port, path="/", **arguments):
    return connect(f"ws://127.0.0.1:{port}{path}", open_timeout=PATIENCE, close_timeout=PATIENCE, **arguments)


def receive(client):
    return client.recv(timeout=PATIENCE)


def fetch(port, path="/"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as response:
        return response.read()


@pytest.fixture
def relay(run):
    """The port of a running relay."""
    program = run(ROOT / RELAY, "--host", "127.0.0.1", "--port", 0, "--tls-port", "none")
    return int(program.wait_for(r"Listening on ws://127\.0\.0\.1:(\d+)/")[1])


def check_echo(port):
    with dial(port) as client:
        client.send(b"hello")
        assert receive(client) == b"hello"


@snippets("README.md", "echo.py", "client.py")
def test_the_echo_and_its_client(page):
    port = page.serve("echo.py")
    check_echo(port)
    page.output_of("client.py", port)


@snippets("docs/index.md", "echo.py")
def test_the_server_on_the_first_page_of_the_site_is_that_of_the_readme(page):
    echo = page.write("echo.py").read_text("utf-8").replace("127.0.0.1:0", "9000")
    assert f"```python\n{echo}```\n" in README


@snippets(SMALL, "echo.py", "script.py")
def test_the_echo_and_a_script(page):
    port = page.serve("echo.py")
    check_echo(port)
    page.output_of("script.py", port)


@snippets("docs/at-a-glance.md", "errors.py", "options.py")
def test_programs_that_end_by_themselves(page):
    page.output_of("errors.py")
    assert page.output_of("options.py") == ""


@snippets(SMALL, "chat.py")
def test_the_chat(page):
    port = page.serve("chat.py")
    with dial(port) as ann:
        assert receive(ann) == "1 has come"
        with dial(port) as bob:
            assert receive(ann) == receive(bob) == "2 has come"
            bob.send("hello, Ann")
            assert receive(ann) == receive(bob) == "2: hello, Ann"
        assert receive(ann) == "2 has gone"


@snippets(SMALL, "web.py")
def test_pages_that_write(page):
    port = page.serve("web.py")
    with dial(port, origin=f"http://127.0.0.1:{port}") as client:
        assert client.ping().wait(PATIENCE)  # the server knows of us
        assert fetch(port, "/shop") == b"a page\n"
        assert receive(client) == "somebody looks at /shop"


@snippets(SMALL, "live.py")
def test_connections_on_the_port_of_the_pages(page):
    port = page.serve("live.py")
    with dial(port, "/live") as client:
        client.send(b"hello")
        assert receive(client) == b"hello"
        assert fetch(port) == b"1 connections\n"


@snippets(SMALL, "door.py")
def test_the_door_refuses_and_welcomes(page):
    port = page.serve("door.py")
    with pytest.raises(InvalidStatus, match="404"):
        dial(port)
    with pytest.raises(InvalidStatus, match="401") as refusal:
        dial(port, "/live")
    assert refusal.value.response.headers["WWW-Authenticate"] == "Bearer"
    with dial(port, "/live", additional_headers={"Authorization": "Bearer sesame"}) as client:
        assert receive(client) == "welcome to /live"


@snippets(SMALL, "stop.py")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping(page, number):
    program = page.start("stop.py")
    with dial(program.port()) as client:
        assert client.ping().wait(PATIENCE)
        program.process.send_signal(number)
        program.wait_for("all connections are closed\n")
    assert client.close_code == 1001
    assert program.wait() == 0, program.output


@snippets("docs/relay.md", "session.py")
def test_a_session_with_the_relay(page, relay):
    page.output_of("session.py", relay)


@snippets("examples/subscribe_publish/README.md", "hello.py", "follow.py")
def test_clients_of_the_relay(page, relay):
    page.output_of("hello.py", relay)
    page.output_of("follow.py", relay)


# -- settings ----------------------------------------------------------------------------------------------------------


def parsed(name):
    parser = configparser.RawConfigParser()
    parser.read(ROOT / name, "utf-8")
    return parser


SETUP_CFG, TOX_INI = parsed("setup.cfg"), parsed("tox.ini")


# -- tables ------------------------------------------------------------------------------------------------------------

API = [code(name) for name, _ in rows(GLANCE, "name", "what it is")]


def methods(kind):
    """The public methods of Go's kind: its names begin with a capital letter."""
    return {name for name in dir(kind) if name[0].isupper() and callable(getattr(kind, name))}


def test_api_table_is_complete():
    listed = sorted(name.partition("(")[0] for name in API)
    public = set(gowsev.__all__) - {"__version__"}
    assert listed == sorted(public | {f"context.{name}" for name in methods(gowsev.Context)})


@pytest.mark.parametrize("signature", [name for name in API if "(" in name])
def test_signature_in_api_table(signature):
    name = signature.partition("(")[0]
    target = getattr(gowsev.Context, name[8:]) if name.startswith("context.") else getattr(gowsev, name)
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(target).parameters.values()]
    if name.startswith("context."):
        parameters = parameters[1:]
    assert signature == f"{name}{inspect.Signature(parameters)}"


def test_callbacks_table_is_complete():
    table = [code(name) for name, _ in rows(GLANCE, "callback", "when")]
    for signature in table[:4]:
        name, _, parameters = signature[:-1].partition("(")
        assert ["self", *parameters.split(", ")] == list(inspect.signature(getattr(gowsev.Handler, name)).parameters)
    assert {signature.partition("(")[0] for signature in table[:4]} == methods(gowsev.Handler)
    # The two that are optional are told of in the docstring.
    assert table[4:] == re.findall(r"- `(\w+\([\w, ]+\))`", gowsev.Handler.__doc__)


@pytest.mark.parametrize("kind", [gowsev.Conn, gowsev.Request])
def test_attributes_in_api_table(kind):
    cell = next(text for name, text in rows(GLANCE, "name", "what it is") if code(name) == kind.__name__)
    listed = [name for name in re.findall(r"`(\w+)`", cell) if name != "ConnRequested"]
    attributes = [name for name in vars(kind) if not name.startswith("_") and not callable(vars(kind)[name])]
    assert listed == list(getattr(kind, "__dataclass_fields__", attributes))


def test_options_table_is_that_of_the_dataclass():
    table = rows(GLANCE, "field", "default", "what it does")
    fields = inspect.signature(gowsev.Options).parameters.values()
    assert [(code(name), code(default)) for name, default, _ in table] == [(f.name, repr(f.default)) for f in fields]


def test_commands_of_the_relay_are_those_it_understands(relay):
    page = (ROOT / "docs" / "relay.md").read_text("utf-8")
    with dial(relay) as client:
        for (command,) in ([code(row[0])] for row in rows(page, "command", "what it does")):
            client.send(command)
            assert receive(client) == b"OK", command
        client.send("subscribe")
        assert receive(client) == b"Invalid message"


DEPENDENCIES = (ROOT / "docs" / "dependencies.md").read_text("utf-8")


def names_in(requirements):
    return sorted(re.match(r"[\w-]+", line)[0] for line in requirements.split())


def test_dependencies_are_those_of_setup_cfg():
    table = rows(DEPENDENCIES, "package", "used for", "why this one")
    assert [code(row[0]) for row in table] == names_in(SETUP_CFG["options"]["install_requires"])


@pytest.mark.parametrize("extra", SETUP_CFG["options.extras_require"])
def test_extras_are_those_of_setup_cfg(extra):
    table = rows(DEPENDENCIES.split(f"the extra `{extra}`\n", 1)[1], "package", "used for")
    requirements = SETUP_CFG["options.extras_require"][extra]
    assert sorted(code(row[0]) for row in table) == names_in(requirements)
    if extra not in OURS:
        lowest = floors({extra: requirements.split()})
        assert {code(name): re.search(r"\(([\d.]+) or newer\)", name)[1] for name, _ in table} == lowest


@pytest.mark.parametrize("requirement", SETUP_CFG["options"]["install_requires"].split())
def test_oldest_versions_are_those_of_setup_cfg(requirement):
    package, version = requirement.split(">=")
    assert f"{package} {version}" in README
    assert f"`{package}` ({version} or newer)" in DEPENDENCIES


def test_python_versions_are_those_of_setup_cfg_and_tox():
    named = re.findall(r"3\.\d+", re.search(r"^CPython (.*?),? on ", README, re.MULTILINE)[1])
    prefix = "Programming Language :: Python :: "
    listed = [line.removeprefix(prefix) for line in SETUP_CFG["metadata"]["classifiers"].strip().splitlines()]
    assert named == [version for version in listed if re.fullmatch(r"3\.\d+", version)]
    assert SETUP_CFG["options"]["python_requires"] == f">={named[0]}"
    assert f"Python {named[0]} or newer" in README


def test_tox_environments_are_those_of_tox_ini():
    listed = [
        name for cell, _ in rows(CONTRIBUTING, "environment", "what it does") for name in re.findall("`(.*?)`", cell)
    ]
    assert listed == TOX_INI["tox"]["envlist"].split(", ")


def test_rooms_are_those_that_the_layers_are_held_to():
    listed = {}
    for room, module, _ in rows(CONTRIBUTING, "room", "module", "purpose"):
        listed.setdefault(room, set()).add(code(module).removesuffix(".py").replace("/", "."))
    assert listed == {room: modules - set(FOLDERS) for room, modules in ROOMS.items()}
    assert list(listed) == list(ROOMS)

"""Who may import whom, read from the source; and what importing the package does, which is nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gowsev

PACKAGE = Path(gowsev.__file__).parent

#: The floors of the house: a module imports from lower ones only. A new module must be given its place here.
FLOORS = [
    {"errors", "options", "version", "stats"},
    {"frames"},
    {"deflate", "protocol", "handshake"},
    {"outbox", "mailbox", "keepalive", "timer", "address", "certificate", "tls", "patching", "upgrade"},
    {"connection"},
    {"audience", "conn", "server", "wsgi", "dial", "foreign", "entrance"},
    {"handler"},
    {"context"},
    {"__init__", "gunicorn", "testing"},
    {"pytest_plugin"},
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}

#: What may be imported on the same floor.
BESIDE = {
    ("protocol", "deflate"),
    ("handshake", "deflate"),
    ("dial", "conn"),
    ("server", "wsgi"),
    ("entrance", "foreign"),
}

#: No I/O, no greenlets and no clocks up to here.
PURE = {module for module, number in FLOOR.items() if number <= FLOOR["protocol"]}
OUTSIDE = {
    "gevent",
    "geventwebsocket",
    "greenlet",
    "socket",
    "ssl",
    "select",
    "selectors",
    "threading",
    "asyncio",
    "time",
}

#: The only ones that may log: the loop and, where no connection is there yet, the listeners and their certificates.
LOGGING = {"context", "server", "wsgi", "upgrade", "entrance", "certificate", "patching"}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(source):
    """List what a module imports when it runs, functions included: `a.b` and, for the names it takes, `a.b.name`."""
    found = set()

    def visit(node):
        nodes = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in nodes:
            visit(child)

    visit(ast.parse(source))
    return found


MODULES = {path.stem: imports(path.read_text()) for path in PACKAGE.glob("*.py")}


def importers(*names):
    """Which modules of the package import one of these, or something in them."""
    return {
        module
        for module, imported in MODULES.items()
        if any(name == wanted or name.startswith(wanted + ".") for name in imported for wanted in names)
    }


def inside(module):
    """Which modules of the package a module imports."""
    parts = {name.split(".")[1] for name in MODULES[module] if name.startswith("gowsev.")}
    if "gowsev" in MODULES[module]:
        # `from gowsev import frames` names a module; anything else would be the package itself, on the top floor.
        assert parts <= set(FLOOR), f"{module} imports the package itself"
    return parts & set(FLOOR)


def test_reading_imports():
    source = """
import a, b.c as d
from e.f import g, h
if TYPE_CHECKING:
    import never
    from never import seen
else:
    import i
try:
    import j
except ImportError:
    import k
def function():
    from l import m
"""
    assert imports(source) == {"a", "b.c", "e.f", "e.f.g", "e.f.h", "i", "j", "k", "l", "l.m"}


def test_every_module_has_its_floor():
    assert set(MODULES) == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR), "one is on two floors"
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"], "no longer flat"


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_imports_go_downwards(module):
    wrong = {other for other in inside(module) if not (FLOOR[other] < FLOOR[module] or (module, other) in BESIDE)}
    assert not wrong


def test_the_reader_of_imports_sees_the_package():
    # Lest the test above pass because nothing was found.
    assert inside("connection") == {"errors", "frames", "mailbox", "outbox", "protocol", "tls"}
    assert inside("protocol") == {"deflate", "errors", "frames"}
    assert inside("conn") == set()


def test_what_is_imported_of_a_module_is_what_it_offers():
    wanted = {tuple(name.split(".")) for names in MODULES.values() for name in names if name.startswith("gowsev.")}
    wanted = {tuple(name) for _, *name in wanted if len(name) == 2 and name[1] != "__version__"}
    assert ("outbox", "Batch") in wanted, "seen at all"
    assert not [(module, name) for module, name in wanted if name not in getattr(gowsev, module).__all__]


def test_exceptions_are_needed():
    assert all(other in inside(module) for module, other in BESIDE)


def test_lower_floors_know_no_sockets_no_greenlets_and_no_clocks():
    assert importers(*OUTSIDE) & PURE == set()
    # Lengths of time are no clocks.
    assert {name for module in PURE for name in MODULES[module] if name.startswith("datetime")} <= {
        "datetime",
        "datetime.timedelta",
    }
    assert all("datetime.timedelta" in MODULES[module] for module in PURE & importers("datetime"))


def test_only_the_server_knows_pywsgi_and_gevent_websocket():
    assert importers("gevent.pywsgi") == {"server", "wsgi"}
    assert importers("geventwebsocket") == {"wsgi"}
    assert importers("gunicorn") == {"gunicorn"}
    assert not importers("websocket")


def test_only_the_plugin_knows_pytest():
    assert importers("pytest") == {"pytest_plugin"}
    assert importers("gowsev.testing", "gowsev.pytest_plugin") == {"pytest_plugin"}


def test_only_these_log():
    assert "context" in importers("logging") <= LOGGING
    assert not importers("warnings")


FRESH = """
import json, logging, socket, sys, threading
before = (socket.socket, socket.create_connection, threading.Thread, threading.get_ident, sys.excepthook)
handlers, level = list(logging.root.handlers), logging.root.level

import gowsev

import gevent.monkey
from gevent._hub_local import get_hub_if_exists

ours = logging.getLogger("gowsev")
print(json.dumps({
    "patched": sorted(gevent.monkey.saved),
    "replaced": before
    != (socket.socket, socket.create_connection, threading.Thread, threading.get_ident, sys.excepthook),
    "threads": threading.active_count(),
    "hub": get_hub_if_exists() is not None,
    "root handlers": len(logging.root.handlers) - len(handlers),
    "root level": logging.root.level - level,
    "our handlers": len(ours.handlers),
    "our level": ours.level,
    "our propagation": ours.propagate,
    "version": gowsev.__version__,
}))
"""


def test_importing_does_nothing():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "patched": [],
        "replaced": False,
        "threads": 1,
        "hub": False,
        "root handlers": 0,
        "root level": 0,
        "our handlers": 0,
        "our level": 0,
        "our propagation": True,
        "version": gowsev.__version__,
    }


def test_everything_exported_is_there_and_documented():
    missing = [name for name in gowsev.__all__ if not hasattr(gowsev, name)]
    assert not missing
    assert not [
        name for name in gowsev.__all__ if callable(getattr(gowsev, name)) and not getattr(gowsev, name).__doc__
    ]

"""Who may import whom, read from the source; and what importing the package does, which is nothing."""

import functools
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import circles, imports

import gowsev

PACKAGE = Path(gowsev.__file__).parent

#: The rooms of the house, from the lowest to the top: a module imports from its own room and from lower ones. The words
#: of a program stand in the package itself: on the ground those that need nothing else, on top those that need all.
ROOMS = {
    "ground": {"arguments", "errors", "options", "request", "shell", "stats", "timer", "version"},
    "wire": {"wire", "wire.deflate", "wire.encoder", "wire.frames", "wire.protocol"},
    "connection": {
        "connection",
        "connection.connection",
        "connection.connections",
        "connection.credit",
        "connection.events",
        "connection.fork",
        "connection.gathering",
        "connection.groups",
        "connection.keepalive",
        "connection.liveness",
        "connection.offering",
        "connection.outbox",
        "connection.round_trips",
        "connection.sending",
        "connection.sockets",
        "connection.stream",
        "connection.tls",
    },
    "conn": {"conn"},
    "opening": {
        "opening",
        "opening.address",
        "opening.admission",
        "opening.adoption",
        "opening.attempt",
        "opening.certificate",
        "opening.chunked",
        "opening.client_handshake",
        "opening.connecting",
        "opening.dial",
        "opening.forwarded",
        "opening.framing",
        "opening.handshake",
        "opening.http",
        "opening.listener",
        "opening.proxy_protocol",
        "opening.proxy",
        "opening.redirect",
        "opening.serve_http",
        "opening.tunnel",
        "opening.upgrade",
        "opening.url",
    },
    "loop": {
        "loop",
        "loop.attachments",
        "loop.callbacks",
        "loop.dispatch",
        "loop.loop",
        "loop.patching",
        "loop.queue",
        "loop.row",
        "loop.shutdown",
        "loop.signals",
    },
    "top": {
        "__init__",
        "__main__",
        "bench",
        "context",
        "gunicorn",
        "handler",
        "health",
        "prometheus",
        "pytest_plugin",
        "redial",
        "serving",
        "testing",
    },
    "channels": {
        "channels",
        "channels.__main__",
        "channels.arrivals",
        "channels.backend",
        "channels.bell",
        "channels.channels",
        "channels.cluster",
        "channels.errors",
        "channels.followed",
        "channels.health",
        "channels.in_flight",
        "channels.limits",
        "channels.line",
        "channels.looks",
        "channels.memory",
        "channels.notifications",
        "channels.pipeline",
        "channels.places",
        "channels.presence",
        "channels.publication",
        "channels.reconnecting",
        "channels.redis",
        "channels.remote",
        "channels.replies",
        "channels.routes",
        "channels.script_commands",
        "channels.scripts",
        "channels.server",
        "channels.subscribers",
        "channels.timeline",
        "channels.turns",
        "channels.url",
    },
}
ROOM = {module: room for room, modules in ROOMS.items() for module in modules}
HEIGHT = {room: number for number, room in enumerate(ROOMS)}

#: No I/O, no greenlets and no clocks here.
PURE = (
    {"arguments", "errors", "options", "request", "stats", "version"}
    | ROOMS["wire"]
    | {
        "connection.liveness",
        "connection.round_trips",
        "opening.forwarded",
        "opening.framing",
        "opening.handshake",
        "opening.proxy",
        "opening.redirect",
        "opening.url",
    }
)
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
LOGGING = {
    "channels.arrivals",
    "channels.channels",
    "channels.cluster",
    "channels.health",
    "channels.redis",
    "context",
    "loop.dispatch",
    "loop.loop",
    "loop.patching",
    "opening.certificate",
    "opening.handshake",  # only to silence the library
    "opening.http",
    "opening.listener",
    "opening.upgrade",
    "prometheus",
    "redial",
}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES = {name_of(path): path.read_text() for path in PACKAGE.rglob("*.py")}


@functools.cache
def modules():
    """What each module of the package imports. Read when a test asks: each process of the tests imports this file."""
    return {name: imports(source) for name, source in SOURCES.items()}


def importers(*names):
    """Which modules of the package import one of these, or something in them."""
    return {
        module
        for module, imported in modules().items()
        if any(name == wanted or name.startswith(wanted + ".") for name in imported for wanted in names)
    }


def inside(module, for_types=True):
    """Which modules of the package a module imports; by default also for its types alone."""
    names = imports(SOURCES[module], for_types)
    assert module == "__init__" or "gowsev" not in names or module == "testing", f"{module} imports the package itself"
    parts = {name.removeprefix("gowsev.") for name in names if name.startswith("gowsev.")}
    return {part for part in parts if part in SOURCES and (f"gowsev.{part}" in names)} - set(FOLDERS) - {module}


FOLDERS = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]


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
    found = {"a", "b.c", "e.f", "e.f.g", "e.f.h", "i", "j", "k", "l", "l.m"}
    assert imports(source) == found
    assert imports(source, for_types=True) == found | {"never", "never.seen"}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set()}) == {"a", "b", "c"}


def test_every_module_has_its_room():
    assert set(SOURCES) == set(ROOM)
    assert sum(map(len, ROOMS.values())) == len(ROOM), "one is in two rooms"


@pytest.mark.parametrize("module", sorted(ROOM))
def test_imports_go_to_the_own_room_and_to_lower_ones(module):
    assert not {other for other in inside(module) if HEIGHT[ROOM[other]] > HEIGHT[ROOM[module]]}


def test_no_circles():
    assert circles({module: inside(module) for module in SOURCES}) == set()


def test_the_reader_of_imports_sees_the_package():
    # Lest the test above pass because nothing was found.
    assert inside("wire.protocol") == {"errors", "wire.deflate", "wire.frames"}
    assert "connection.connection" in inside("opening.dial")
    assert "options" in inside("wire.deflate") - inside("wire.deflate", for_types=False)


def test_what_is_imported_of_a_module_is_what_it_offers():
    wanted = {
        (module, name.removeprefix(f"gowsev.{module}."))
        for names in modules().values()
        for name in names
        for module in SOURCES
        if name.startswith(f"gowsev.{module}.") and name.removeprefix("gowsev.") not in SOURCES
    }
    wanted = {(module, name) for module, name in wanted if name != "__version__" and module not in FOLDERS}
    assert ("connection.gathering", "Batch") in wanted, "seen at all"
    assert not [pair for pair in wanted if pair[1] not in importlib.import_module(f"gowsev.{pair[0]}").__all__]


def test_the_wire_knows_no_sockets_no_greenlets_and_no_clocks():
    assert importers(*OUTSIDE) & PURE == set()
    # Lengths of time are no clocks.
    assert {name for module in PURE for name in modules()[module] if name.startswith("datetime")} <= {
        "datetime",
        "datetime.timedelta",
    }
    assert all("datetime.timedelta" in modules()[module] for module in PURE & importers("datetime"))


def test_only_the_server_knows_pywsgi_and_gevent_websocket():
    assert importers("gevent.pywsgi") == {"opening.listener", "opening.http"}
    assert importers("geventwebsocket") == {"opening.http"}
    assert importers("gunicorn") == {"gunicorn"}
    assert importers("prometheus_client") == {"prometheus"}
    assert not importers("websocket")


def test_only_channels_over_redis_know_redis():
    need = importers("redis")
    assert (
        need
        == {
            "channels.bell",
            "channels.health",
            "channels.line",
            "channels.notifications",
            "channels.pipeline",
            "channels.places",
            "channels.remote",
            "channels.replies",
            "channels.routes",
            "channels.server",
            "channels.url",
        }
        & need
    )
    assert "channels.line" in need
    assert not {name for name in imports(SOURCES["channels.channels"]) if name.startswith("redis")}


def test_there_is_one_way_in():
    # Whoever has read a request: the program's view of it is made in one place, and it is judged there.
    assert {module for module, source in SOURCES.items() if re.search(r"\bRequest\(", source)} == {"opening.upgrade"}
    assert {module for module, source in SOURCES.items() if ".negotiate(" in source} == {"opening.upgrade"}


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

"""`Options`: defaults, and what each field takes and refuses."""

import ast
import dataclasses
import inspect
from datetime import timedelta

import pytest

from gowsev import options
from gowsev.arguments import as_seconds, seconds_or_none
from gowsev.options import Options

DEFAULTS = {
    "max_message_bytes": 1 << 20,
    "max_connections": None,
    "handshake_timeout": 10.0,
    "ping_interval": 20.0,
    "ping_timeout": 20.0,
    "close_timeout": 5.0,
    "outbox_bytes": 4 << 20,
    "slow_consumer": "close",
    "inbox_messages": 256,
    "inbox_bytes": 1 << 20,
    "allowed_origins": None,
    "subprotocols": (),
    "compression": None,
    "compression_min_bytes": 128,
    "compression_takeover": False,
    "http_app": None,
    "backlog": 1024,
    "reuse_port": False,
    "proxy_protocol": None,
    "raise_errors": False,
}

LIMITS = ("max_message_bytes", "max_connections", "outbox_bytes", "inbox_messages", "inbox_bytes")
COUNTS = (*LIMITS, "backlog", "compression_min_bytes")
SECONDS = ("handshake_timeout", "ping_interval", "ping_timeout", "close_timeout")
SWITCHES = ("compression_takeover", "reuse_port", "raise_errors")
NAMES = ("allowed_origins", "subprotocols")

ORIGINS = ("https://a.example", "http://[::1]:8000", "http://localhost:8000", "chrome-extension://abcdef")
#: What no browser ever sends: it would allow nobody.
NO_ORIGINS = (
    "a.example",
    "localhost:8000",
    "http://localhost:8000/",
    "http://a.example/page",
    "http:// a",
    "https://A.example",
    "file://",
    "://a",
    "**",
)


def application(environ, start_response):
    return []


def test_defaults():
    assert dataclasses.asdict(Options()) == DEFAULTS


def test_type_checkers_see_the_same_parameters():
    (written,) = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(options)))
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    names = [parameter.arg for parameter in written.args.kwonlyargs]
    assert names == list(DEFAULTS)
    defaults = [eval(ast.unparse(default)) for default in written.args.kw_defaults]
    assert defaults == list(DEFAULTS.values())


ACCEPTED = [
    *((name, value, value) for name in LIMITS for value in (1, 1 << 40)),
    *((name, value, value) for name in ("backlog", "compression_min_bytes") for value in (1, (1 << 31) - 1)),
    *((name, None, None) for name in (*LIMITS, *SECONDS, "allowed_origins", "compression", "http_app")),
    *((name, value, float(value)) for name in SECONDS for value in (1, 0.001, 86400.0)),
    *((name, timedelta(milliseconds=1500), 1.5) for name in SECONDS),
    *((name, value, value) for name in SWITCHES for value in (True, False)),
    *(("subprotocols", value, ("a", "b")) for value in (("a", "b"), ["a", "b"], {"a": 1, "b": 2})),
    *(("allowed_origins", value, ("null", "*")) for value in (("null", "*"), ["null", "*"], {"null": 1, "*": 2})),
    *(("allowed_origins", (value,), (value,)) for value in ORIGINS),
    *((name, value, ()) for name in NAMES for value in ((), [])),
    *(("proxy_protocol", (value,), (value,)) for value in ("unix", "10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::1")),
    ("proxy_protocol", ["::1", "unix"], ("::1", "unix")),
    ("slow_consumer", "close", "close"),
    ("slow_consumer", "drop", "drop"),
    ("compression", "deflate", "deflate"),
    ("allowed_origins", ("*",), ("*",)),
    ("http_app", application, application),
]


@pytest.mark.parametrize(("name", "value", "expected"), ACCEPTED)
def test_accepted(name, value, expected):
    kept = getattr(Options(**{name: value}), name)
    assert kept == expected
    assert type(kept) is type(expected)


def test_an_iterator_of_names_becomes_a_tuple():
    assert Options(subprotocols=iter(["a", "b"])).subprotocols == ("a", "b")


REFUSED = [
    *(("allowed_origins", (value,), ValueError) for value in NO_ORIGINS),
    *((name, value, ValueError) for name in COUNTS for value in (0, -1)),
    *((name, value, TypeError) for name in COUNTS for value in ("1", 1.0, True, b"1", [1])),
    ("backlog", None, TypeError),
    ("compression_min_bytes", None, TypeError),
    ("backlog", 1 << 31, ValueError),
    *((name, value, ValueError) for name in SECONDS for value in (-1, -0.5, float("nan"), float("inf"), 10**400)),
    *((name, timedelta(seconds=-1), ValueError) for name in SECONDS),
    *((name, value, TypeError) for name in SECONDS for value in ("1", True, [1.0], 1j)),
    *((name, value, TypeError) for name in SWITCHES for value in (None, 0, 1, "yes")),
    *((name, value, TypeError) for name in NAMES for value in ("a", b"a", 5, [b"a"], ["a", None], ["a", ""], [5])),
    ("subprotocols", None, TypeError),
    *(("proxy_protocol", (value,), ValueError) for value in ("10.0.0.1/8", "1.2.3", "localhost", "::1%lo", "Unix")),
    ("proxy_protocol", (), ValueError),
    *(("proxy_protocol", value, TypeError) for value in ("10.0.0.1", 5, [5])),
    *(("slow_consumer", value, ValueError) for value in ("Close", "", None, 5)),
    *(("compression", value, ValueError) for value in ("gzip", "", True, 5)),
    *(("http_app", value, TypeError) for value in ("app", 5, ())),
]


@pytest.mark.parametrize(("name", "value", "error"), REFUSED)
def test_refused_with_a_text_that_names_the_field_and_the_value(name, value, error):
    with pytest.raises(error) as caught:
        Options(**{name: value})
    assert type(caught.value) is error
    text = str(caught.value)
    assert text.startswith(f"{name} must ")
    if isinstance(value, timedelta):
        value = value.total_seconds()
    blamed = [value] if isinstance(value, str | bytes) or not hasattr(value, "__iter__") else [value, *value]
    assert any(text.endswith(f"not {item!r}") for item in blamed), text


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, -0.0, timedelta(0)])
def test_no_time_at_all_is_refused_as_it_would_be_mistaken_for_off(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be above 0; None turns it off$"):
        Options(**{name: value})


# What a `Context` is given; 0 has a meaning there.
SECONDS_ACCEPTED = [(None, None), (0, 0.0), (5, 5.0), (0.25, 0.25), (timedelta(minutes=1), 60.0), (timedelta(0), 0.0)]
SECONDS_REFUSED = [
    *((value, ValueError) for value in (-1, -1e-9, float("nan"), float("inf"), -float("inf"), 10**400, -(10**400))),
    (timedelta(days=-1), ValueError),
    *((value, TypeError) for value in ("5", True, False, b"5", [5], 5j)),
]


@pytest.mark.parametrize(("value", "expected"), SECONDS_ACCEPTED)
def test_seconds_or_none(value, expected):
    seconds = seconds_or_none("delay", value)
    assert seconds == expected
    assert type(seconds) is type(expected)


@pytest.mark.parametrize(("value", "error"), SECONDS_REFUSED)
def test_seconds_are_refused(value, error):
    for check in as_seconds, seconds_or_none:
        with pytest.raises(error, match=r"^delay must be a ") as caught:
            check("delay", value)
        assert type(caught.value) is error


def test_seconds_that_must_be_given():
    with pytest.raises(TypeError, match=r"^delay must be a number of seconds or a timedelta, not None$"):
        as_seconds("delay", None)


def test_every_field_has_a_row():
    assert {field.name for field in dataclasses.fields(Options)} == set(DEFAULTS)
    for rows in (ACCEPTED, REFUSED):
        assert {row[0] for row in rows} == set(DEFAULTS)


def test_frozen_keyword_only_and_closed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().backlog = 5
    with pytest.raises(TypeError):
        Options(1 << 20)
    with pytest.raises(TypeError, match="ping_intervall"):
        Options(ping_intervall=5)
    with pytest.raises(ValueError, match="backlog must "):
        dataclasses.replace(Options(), backlog=0)

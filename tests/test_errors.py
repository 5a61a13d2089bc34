"""The exceptions: their texts, what they carry, and whose children they are."""

import copy
import inspect
import pickle

import pytest

from gowsev import errors

# name, the error, its text, its attributes
ERRORS = [
    ("Go's text for an unknown id", errors.IdNotFound(7), "id not found", {"id": 7}),
    ("a closing connection", errors.ConnClosing(7), "connection 7 is closing", {"id": 7}),
    (
        "a slow peer",
        errors.OutboxFull(7, 5000, 4096),
        "connection 7 is too slow: 5000 bytes wait for it and outbox_bytes is 4096",
        {"id": 7, "waiting": 5000, "limit": 4096},
    ),
    (
        "a violation and its close code (RFC 6455 section 7.4.1)",
        errors.ProtocolError(1002, "reserved bit set"),
        "reserved bit set (close code 1002)",
        {"code": 1002, "reason": "reserved bit set"},
    ),
    (
        "an end without a reason",
        errors.ConnectionClosed(1006, ""),
        "connection closed with code 1006",
        {"code": 1006, "reason": ""},
    ),
    (
        "an end with a reason",
        errors.ConnectionClosed(1000, "bye"),
        "connection closed with code 1000: bye",
        {"code": 1000, "reason": "bye"},
    ),
    ("a dial that met no HTTP", errors.DialError("no route to host"), "no route to host", {"status": None}),
    (
        "a dial that was answered",
        errors.DialError("the server answered 403", 403),
        "the server answered 403",
        {"status": 403},
    ),
]


@pytest.mark.parametrize(("error", "text", "attributes"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_error_says_and_carries(error, text, attributes):
    assert str(error) == text
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert isinstance(error, errors.GowsevError)


def test_dial_error_is_an_os_error_as_other_failures_to_connect_are():
    with pytest.raises(OSError, match="no route"):
        raise errors.DialError("no route")
    assert errors.DialError("refused", 403).errno is None


def test_every_exception_of_the_module_is_exported_and_a_gowsev_error():
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)
    for name in defined:
        assert issubclass(getattr(errors, name), errors.GowsevError)
    assert issubclass(errors.GowsevError, Exception)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("error", [row[1] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_errors_can_be_copied_and_pickled(error, again):
    error.add_note("a note")
    copied = again(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert copied.args == error.args
    assert vars(copied) == vars(error)
    assert copied.__notes__[0] == "a note"

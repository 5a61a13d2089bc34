"""`Handler`: four callbacks that do nothing, and nothing more."""

import inspect

import pytest

from gowsev.handler import Handler

CALLBACKS = [
    ("ConnAccepted", ("context", "id"), (None, 1)),
    ("ConnClosed", ("context", "id"), (None, 1)),
    ("EventLoopTimeout", ("context",), (None,)),
    ("MessageReceived", ("context", "id", "message"), (None, 1, b"hello")),
]


@pytest.mark.parametrize(("name", "parameters", "arguments"), CALLBACKS)
def test_callback_takes_the_arguments_of_the_go_library_and_does_nothing(name, parameters, arguments):
    callback = getattr(Handler(), name)
    assert tuple(inspect.signature(callback).parameters) == parameters
    assert callback(*arguments) is None


def test_optional_callbacks_are_absent():
    # A context looks for them: were they here, every program's texts would vanish into a no-op.
    assert {name for name in vars(Handler) if not name.startswith("_")} == {row[0] for row in CALLBACKS}

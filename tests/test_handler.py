"""`Handler`: four callbacks that do nothing, and nothing more."""

import inspect

import pytest

import gowsev
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


def handler_with(*names, base=Handler):
    return type("Program", (base,), {name: lambda *args: None for name in names})()


@pytest.mark.parametrize(
    ("name", "callback"),
    [
        ("MessageRecieved", "MessageReceived"),
        ("message_received", "MessageReceived"),
        ("messageReceived", "MessageReceived"),
        ("ConnAcepted", "ConnAccepted"),
        ("ConnClose", "ConnClosed"),
        ("event_loop_timeout", "EventLoopTimeout"),
        ("text_received", "TextReceived"),
        ("ConnRequest", "ConnRequested"),
    ],
)
def test_a_misspelt_callback_is_named_when_the_context_is_made(caplog, name, callback):
    handler = handler_with(name)
    gowsev.MakeContext(handler)
    said = f"the loop never calls {name} of handler {handler!r}: the callback's name is {callback}"
    assert caplog.record_tuples == [("gowsev", 30, said)]
    caplog.clear()


def test_a_misspelt_optional_callback_of_any_object_is_named(caplog):
    gowsev.MakeContext(handler_with("TextRecieved", *(row[0] for row in CALLBACKS), base=object))
    assert "the callback's name is TextReceived" in caplog.text
    caplog.clear()


def test_methods_of_its_own_are_the_handlers_affair(caplog):
    gowsev.MakeContext(Handler())
    gowsev.MakeContext(handler_with("MessageReceived", "message_received", "TextReceived", "ConnRequested"))
    gowsev.MakeContext(handler_with("conn_rejected", "count", "send", "received", "accept", "close", "on_timeout"))
    handler = handler_with()
    type(handler).conn_close = "no function"
    gowsev.MakeContext(handler)
    assert not caplog.records


@pytest.mark.parametrize("name", [*(row[0] for row in CALLBACKS), "TextReceived", "ConnRequested"])
def test_an_async_callback_is_refused_at_once(name):
    async def callback(self, *args):
        raise AssertionError("nothing can run this")

    handler = handler_with()
    setattr(type(handler), name, callback)
    with pytest.raises(TypeError, match=f"{name} must be an ordinary function, not async"):
        gowsev.MakeContext(handler)

"""What checkers are told that Python does not hold anybody to. The checkers themselves run in `tox -e types`."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import gowsev
from gowsev import testing

PACKAGE = Path(gowsev.__file__).parent

#: Where a public name says `Any`; beside each, the source gives the reason.
ANY = {
    "conn.Conn.data",
    "redial.Redial.__init__",
    "testing.Callback.args",
    "testing.Client.__init__",
    "testing.Recorder.__getattr__",
    "testing.Recorder.wait_for",
    "testing.Server.__init__",
    "testing.Server.dial",
    "testing.Server.handler",
}


def public_places():
    """Yield (module.class.name, its source lines) of everything in the public classes and functions."""
    names = {name for module in (gowsev, testing) for name in module.__all__}
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text("utf-8").splitlines()
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.parse("\n".join(lines)).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name not in names:
                continue
            value = getattr(testing if module == "testing" else gowsev, node.name, None)
            if getattr(value, "__module__", None) != f"gowsev.{module}":
                continue
            for member in node.body if isinstance(node, ast.ClassDef) else [node]:
                yield from annotated(f"{module}.{node.name}", member, lines)


def annotated(owner, node, lines):
    """Yield each name with the lines of its annotations: arguments, results, attributes."""
    if isinstance(node, ast.AnnAssign):
        yield f"{owner}.{ast.unparse(node.target)}", lines[node.lineno - 1 : node.end_lineno]
    if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and not node.name.endswith("__")):
        return
    yield f"{owner}.{node.name}", lines[node.lineno - 1 : node.body[0].lineno - 1] or [lines[node.lineno - 1]]
    for inner in ast.walk(node):
        if isinstance(inner, ast.AnnAssign) and ast.unparse(inner.target).startswith("self."):
            name = ast.unparse(inner.target).removeprefix("self.")
            if not name.startswith("_"):
                yield f"{owner}.{name}", lines[inner.lineno - 1 : inner.end_lineno]


#: What servers and listeners of ours ask of a context, and pywsgi of its handler: not for programs.
INTERNAL = {"context.Context.accept", "opening.http.WebSocketHandler"}


def test_any_is_said_only_with_a_reason():
    found = {}
    for name, lines in public_places():
        said = [line for line in lines if re.search(r"\bAny\b", line.partition("#")[0])]
        if said and not any(name.startswith(internal) for internal in INTERNAL):
            found[name] = said
    assert set(found) == ANY
    assert [line for lines in found.values() for line in lines if "  # " not in line] == []


def test_the_reader_of_annotations_sees_the_public_names():
    # Lest the test above pass because nothing was found.
    names = {name for name, _ in public_places()}
    assert {
        "context.Context.Write",
        "opening.dial.Dial.Dial",
        "options.Options.backlog",
        "testing.Server.context",
    } <= names


def arguments_that_checkers_see():
    """The `Options.__init__` that is there for them alone."""
    (options,) = [
        node
        for node in ast.parse((PACKAGE / "options.py").read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Options"
    ]
    (seen,) = [node for node in ast.walk(options) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    defaults = [eval(ast.unparse(default)) for default in seen.args.kw_defaults]
    return {arg.arg: default for arg, default in zip(seen.args.kwonlyargs, defaults, strict=True)}


def test_checkers_see_the_arguments_that_options_takes():
    real = inspect.signature(gowsev.Options).parameters
    assert list(arguments_that_checkers_see().items()) == [(p.name, p.default) for p in real.values()]


@pytest.mark.parametrize("name", ["TextReceived", "FragmentReceived", "ConnRequested"])
def test_a_handler_has_no_optional_callback_by_inheritance(name):
    # Checkers are told of them, so that they find a wrong signature.
    assert not hasattr(gowsev.Handler(), name)
    assert f"def {name}" in inspect.getsource(gowsev.Handler)

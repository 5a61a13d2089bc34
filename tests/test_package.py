"""The names that the package exports, and whether their docstrings keep to the shape. Its wheel: `test_packaging`."""

import ast
import builtins
import inspect
import re
import textwrap
from dataclasses import is_dataclass

import pytest

import gowsev

# -- the names ---------------------------------------------------------------------------------------------------


def test_the_version_is_one_of_pep_440():
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+((a|b|rc)[0-9]+)?", gowsev.__version__)


def test_all_is_sorted_and_every_name_exists():
    def order(name):  # ruff's: constants, then classes, then the rest
        return (not name.isupper(), not name[:1].isupper(), name)

    assert list(gowsev.__all__) == sorted(set(gowsev.__all__), key=order)
    assert [name for name in gowsev.__all__ if not hasattr(gowsev, name)] == []


def test_nothing_public_is_left_out_of_all():
    public = {name for name, value in vars(gowsev).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public <= set(gowsev.__all__)


# -- docstrings --------------------------------------------------------------------------------------------------


def is_ours(value):
    return getattr(value, "__module__", "").partition(".")[0] == "gowsev"


def made_by(kind):
    """What runs when an object of this class is made, if we wrote it."""
    made = vars(kind).get("__post_init__") or (None if is_dataclass(kind) else vars(kind).get("__init__"))
    return made if inspect.isfunction(made) else None  # what is compiled has no source to be read


def documented():
    """Yield (name, docstring, function or None) of everything public."""
    for name in gowsev.__all__:
        value = getattr(gowsev, name)
        if not is_ours(value):
            continue  # a constant, or another library's class
        if not inspect.isclass(value):
            yield name, value.__doc__, value
            continue
        yield name, value.__doc__, made_by(value)
        for method, member in vars(value).items():
            function = member.fget if isinstance(member, property) else member
            if not method.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{method}", member.__doc__, function


DOCUMENTED = [pytest.param(*row, id=row[0]) for row in documented()]

#: What begins the docstrings of functions, and must not appear as "Sends" or "Returns".
VERBS = """
    Accept Add Adopt Answer Ask Begin Broadcast Call Change Check Close Count Decode Dial Drive Encode Forget Get Give
    Handle Keep Let List Listen Look Make Move Note Offer Open Parse Pick Post Prevent Put Raise Read Receive Refuse
    Remove Return Run Say Send Serve Set Shut Start Stop Take Tell Try Understand Wait Write
""".split()  # noqa: SIM905


@pytest.mark.parametrize(("name", "doc", "function"), DOCUMENTED)
def test_a_docstring_begins_with_an_imperative_or_a_noun_phrase(name, doc, function):
    assert doc, f"{name} has no docstring"
    first_line = doc.splitlines()[0]
    assert re.match(r"[A-Z`]", first_line), first_line
    paragraph = inspect.cleandoc(doc).partition("\n\n")[0]
    assert paragraph.endswith((".", ":")), paragraph
    first_word = first_line.split()[0].rstrip(",.;:")
    third_person = {form for verb in VERBS for form in (f"{verb}s", f"{verb}es", f"{verb[:-1]}ies")}
    assert first_word not in third_person | {"This", "It", "Method", "Function", "Class"}, first_line


class Errors:
    """Finds, by reading its source, what a function may raise: itself, or through what it calls of this package."""

    def __init__(self):
        self.under_way = set()

    def of(self, function, owner):
        if function in self.under_way:
            return set()
        self.under_way.add(function)
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
            return self.block(tree.body, inspect.unwrap(function).__globals__, owner)
        finally:
            self.under_way.discard(function)

    def block(self, nodes, names, owner):
        found = set()
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                continue  # only defined here
            if isinstance(node, ast.Try):
                caught = tuple(self.value(handler.type, names) for handler in node.handlers)
                inside = self.block(node.body, names, owner)
                found |= {error for error in inside if not issubclass(error, caught)}
                found |= self.block([*node.handlers, *node.orelse, *node.finalbody], names, owner)
                continue
            if isinstance(node, ast.With) and ast.unparse(node.items[0].context_expr).startswith("suppress("):
                caught = tuple(self.value(kind, names) for kind in node.items[0].context_expr.args)
                found |= {error for error in self.block(node.body, names, owner) if not issubclass(error, caught)}
                continue
            if isinstance(node, ast.Raise) and node.exc is not None:
                found |= self.raised(node.exc, names, owner)
            if isinstance(node, ast.Call):
                found |= self.called(node, names, owner)
            found |= self.block(ast.iter_child_nodes(node), names, owner)
        return found

    def value(self, node, names):
        return eval(compile(ast.Expression(node), "<test>", "eval"), vars(builtins) | names)

    def raised(self, node, names, owner):
        if isinstance(node, ast.Call) and self.is_method(node.func, owner):
            return {names[getattr(owner, node.func.attr).__annotations__["return"]]}  # `raise self._closed()`
        return {self.value(node.func, names)} if isinstance(node, ast.Call) else set()

    def called(self, call, names, owner):
        if self.is_method(call.func, owner):
            return self.of(getattr(owner, call.func.attr), owner)
        part = self.part_of(owner, call.func)
        if part is not None:
            return self.of(getattr(part, call.func.attr), part)
        function = names.get(call.func.id) if isinstance(call.func, ast.Name) else None
        if inspect.isfunction(function) and is_ours(function):
            return self.of(function, None)
        # Of defaults alone, an object can always be made.
        if inspect.isclass(function) and is_ours(function) and made_by(function) and (call.args or call.keywords):
            return self.of(made_by(function), function)
        return set()

    @staticmethod
    def part_of(owner, node):
        """The class of `self.part` in `self.part.method`, where `__init__` makes one of ours of it."""
        if not (owner and isinstance(node, ast.Attribute) and re.fullmatch(r"self\.\w+", ast.unparse(node.value))):
            return None
        names = inspect.unwrap(owner.__init__).__globals__
        for made in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner.__init__)))):
            if isinstance(made, ast.Assign) and ast.unparse(node.value) in map(ast.unparse, made.targets):
                kind = names.get(ast.unparse(made.value.func)) if isinstance(made.value, ast.Call) else None
                if inspect.isclass(kind) and is_ours(kind) and inspect.isfunction(getattr(kind, node.attr, None)):
                    return kind
        return None

    @staticmethod
    def is_method(node, owner):
        return (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and inspect.isfunction(getattr(owner, node.attr, None))
            and is_ours(getattr(owner, node.attr))
        )


def errors_of(name, function):
    return Errors().of(function, getattr(gowsev, name.partition(".")[0]) if "." in name else None)


def text_of(name, doc):
    """A docstring, and those that it refers to: "otherwise like `Write`"."""
    others = {row.values[0].rpartition(".")[2]: row.values[1] for row in DOCUMENTED}
    return doc + "".join(others.get(other, "") for other in re.findall(r"`(\w+)`", doc))


def test_the_errors_of_a_function_are_found():
    # A check of the check: these are known.
    assert errors_of("Context.Post", gowsev.Context.Post) == {TypeError, RuntimeError}
    assert errors_of("Context.WriteText", gowsev.Context.WriteText) == {TypeError, RuntimeError}
    assert errors_of("Context.GetTimeout", gowsev.Context.GetTimeout) == set()
    assert {OSError, ValueError, TypeError} <= errors_of("Context.ListenAndServe", gowsev.Context.ListenAndServe)
    assert EOFError not in errors_of("Dial", gowsev.Dial)  # which it turns into a DialError
    assert gowsev.DialError in errors_of("Dial", gowsev.Dial)


@pytest.mark.parametrize(("name", "doc", "function"), [row for row in DOCUMENTED if inspect.isfunction(row.values[2])])
def test_a_docstring_tells_the_errors_that_its_function_raises(name, doc, function):
    owner = name if "." in name or inspect.isfunction(getattr(gowsev, name)) else f"{name}.__init__"
    text = text_of(name, doc)
    untold = [
        error.__name__
        for error in errors_of(owner, function)
        if not any(kind.__name__ in text for kind in error.__mro__ if kind not in (Exception, BaseException, object))
    ]
    assert untold == []
    if errors_of(owner, function):
        assert "Raises:" in text


def test_a_docstring_names_every_argument_that_needs_a_word():
    """Where arguments are explained, each is, under the name that it has."""
    wrong = []
    for row in DOCUMENTED:
        name, doc, function = row.values
        section = re.search(r"\n( *)Args:\n(.*?)(?:\n\s*\n|\Z)", doc, re.DOTALL)
        if section is None:
            continue
        inner = section[1] + "    "
        told = re.findall(rf"^{inner}(\w[\w, *]*):", section[2], re.MULTILINE)
        told = {word.strip("* ") for words in told for word in words.split(",")}
        real = set(inspect.signature(function).parameters) - {"self"}
        if not told <= real:
            wrong.append((name, told - real))
    assert wrong == []

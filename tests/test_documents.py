"""README, `docs/` and the other documents are sound: snippets run, commands and links exist, the reference is complete.

What the snippets do is tried in the tests that are marked with `@snippets`; here it is held that none is left out.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE
from programs import COVERED, DOCUMENTS, ROOT, fences, read, transcripts
from test_readme import SETUP_CFG, TOX_INI

import gowsev
from gowsev import channels, pytest_plugin, testing

# -- snippets ----------------------------------------------------------------------------------------------------------

#: What is shown and not run: the words of others, trees of files, drawings.
SHOWN = {"text"}
#: Commands, which are looked at below.
COMMANDS = {"sh", "console"}


@pytest.fixture(scope="module")
def covered():
    """The names of the snippets that some test runs, by document."""
    for path in Path(__file__).parent.rglob("test_*.py"):
        if "\n@snippets(" in path.read_text("utf-8"):
            importlib.import_module(path.stem)
    return COVERED


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_snippet_that_would_run_has_a_test_that_runs_it(covered, document):
    names = []
    for fence in fences(document):
        if fence.language in SHOWN | COMMANDS or fence.language.startswith("{"):
            continue
        if fence.language == "python" and document == "CONTRIBUTING.md":
            # A docstring, to show its shape.
            assert ast.get_docstring(ast.parse(fence.text).body[0])
            continue
        assert fence.name, f"a block of {fence.language!r} without a name: {fence.text[:80]!r}"
        names.append(fence.name)
    assert sorted(names) == sorted(covered[document]), "each has one test, and a name of its own"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_program_that_serves_ends_in_order(document):
    # That it does is tried by `Page.interrupt`, at the end of each test that starts it.
    serving = re.compile(r"^ *(context\.EventLoop\(\)|.*\.serve_forever\(\))$", re.MULTILINE)
    for fence in fences(document):
        if fence.language == "python" and "gowsev" in fence.text and serving.search(fence.text):
            assert ".ShutdownOnSignal(" in fence.text, fence.name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_block_stays_open(document):
    assert len(re.findall(r"^ *```", read(document), re.MULTILINE)) % 2 == 0
    assert len(fences(document)) * 2 == len(re.findall(r"^ *(?:```|:::)", read(document), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_code_stands_outside_of_a_block(document):
    text = re.sub(r"^( *)(```|:::).*?^\1\2$", "", read(document), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\n\n {4}.*", text) == []


def test_output_is_shown_of_programs_that_the_document_has(covered):
    for document in DOCUMENTS:
        for command, output in transcripts(document):
            assert not output or set(command.split()) & covered[document], f"{document}: {command}"


# -- commands ----------------------------------------------------------------------------------------------------------


def commands():
    """Every command that the documents show: the document, and the command's words."""
    for document in DOCUMENTS:
        lines = [command for command, _ in transcripts(document)]
        for fence in fences(document):
            if fence.language == "sh":
                lines += fence.text.replace("\\\n", " ").splitlines()
        for line in lines:
            for command in re.split(r" && | \| ", line):
                yield document, tuple(shlex.split(command, comments=True))


def packages():
    """The names of the packages that the extras bring."""
    named = " ".join(SETUP_CFG["options.extras_require"].values()) + SETUP_CFG["options"]["install_requires"]
    return {re.match(r"[\w-]+", requirement)[0] for requirement in named.split()}


def check_pip(document, arguments):
    assert arguments[0] == "install"
    for target in arguments[1:]:
        extra = re.fullmatch(r"\.\[([\w-]+)\]", target)
        if extra:
            assert extra[1] in SETUP_CFG["options.extras_require"]
        else:
            assert target in {".", "-e", "tox"} | packages()


@pytest.mark.parametrize("document", sorted({*DOCUMENTS} - {"docs/releasing.md"}))
def test_gowsev_is_installed_from_a_clone_until_there_is_a_release(document):
    # The page on releasing is about what comes then.
    assert not re.findall(r"pip install [^`\n]*\bgowsev\b(?!/)", read(document))


def names_environment(section, name):
    """Whether a section of tox.ini, such as `testenv:py{311,312}`, is of this environment, or of these."""
    several = re.sub(r"\\{(.*?)\\}", lambda found: f"(?:{found[1].replace(',', '|')})", re.escape(section))
    return section == f"testenv:{name}" or re.fullmatch(several, f"testenv:{name}") is not None


def check_git(document, arguments):
    assert arguments == ["status", "--short"]


def check_python(document, arguments):
    first, *rest = arguments
    names = {fence.name for fence in fences(document)}
    if first == "-m":
        # tox runs the tests, and is not there in the environment that it runs them in.
        assert rest[0] == "tox" or importlib.util.find_spec(rest[0]) is not None
        if rest[1:2] == ["-e"]:
            assert rest[0] == "tox"
            assert rest[3:] in ([], ["--", "--tests"], ["--", "--channels"], ["--", "--relay"])
            assert any(names_environment(section, rest[2]) for section in TOX_INI.sections())
        elif rest[0] == "pytest":
            assert set(rest[1:]) <= names | {"-W", "error::DeprecationWarning", "-n", "6"}
        else:
            assert rest[1:] in ([], [".venv"], ["--module", "pytest"])
    elif first in names:
        assert all(re.fullmatch(r"[\d.]+:\d+", argument) for argument in rest)  # where to listen
    elif first == "manage.py":  # which the command before it has made
        assert "startproject" in read(document)
        assert rest in (["migrate"], ["createsuperuser"])
    else:
        path = next(path for path in (ROOT / first, (ROOT / document).parent / first) if path.is_file())
        shown = help_of(path)
        for option in rest:
            assert not option.startswith("-") or re.search(rf"^  .*{option}\b", shown, re.MULTILINE)


@functools.cache
def help_of(script):
    """What a script prints for `--help`."""
    command = [sys.executable, script, "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def check_websockets(document, arguments):
    assert (Path(sys.executable).parent / "websockets").is_file()
    (address,) = arguments
    assert re.fullmatch(r"wss?://[\w.]+(:\d+)?/\S*", address)


def check_gunicorn(document, arguments):
    (app,) = arguments
    module, _, call = app.partition(":")
    path = (ROOT / document).parent / f"{module}.py"
    texts = [fence.text for fence in fences(document) if fence.name == path.name]
    (text,) = texts or [path.read_text("utf-8")]
    assert f"def {call}:" in text


def check_openssl(document, arguments):
    # A test runs it: see `Page.shell`.
    assert arguments[0] == "req"


def check_folder(document, arguments):
    (folder,) = arguments
    assert (ROOT / folder).is_dir()


def check_django_admin(document, arguments):
    # A test runs it: `test_django`.
    assert arguments == ["startproject", "mysite", "."]


def check_tail(document, arguments):
    assert arguments == ["-f", "notes.txt"]


CHECKS = {
    "git": check_git,
    "cd": check_folder,
    "tail": check_tail,
    ".venv/bin/django-admin": check_django_admin,
    ".venv/bin/gunicorn": check_gunicorn,
    "openssl": check_openssl,
    "python3": check_python,
    ".venv/bin/python": check_python,
    ".venv/bin/pip": check_pip,
    ".venv/bin/websockets": check_websockets,
    # Behind a `cd` to an example.
    "../../.venv/bin/gunicorn": check_gunicorn,
    "../../.venv/bin/python": check_python,
}


#: What may stand before a command, for `building/gowsev_backend.py`.
BUILDS = ("GOWSEV_BUILD=compiled", "GOWSEV_BUILD=pure")


@pytest.mark.parametrize(("document", "command"), sorted(set(commands())), ids=str)
def test_command_names_what_exists(document, command):
    program, *arguments = command[1:] if command[0] in BUILDS else command
    CHECKS[program](document, arguments)


EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
PROGRAMS = [[str(path)] for path in EXAMPLES if "ArgumentParser" in path.read_text("utf-8")]
PROGRAMS += [["-m", "gowsev"], ["-m", "gowsev.channels"], ["-m", "gowsev.channels", "tail"]]
PROGRAMS += [[str(ROOT / "examples/subscribe_publish/client.py"), command] for command in ("subscribe", "publish")]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: " ".join(program[-2:]).removeprefix(str(ROOT)))
def test_no_program_takes_the_beginning_of_an_option_for_it(program, tmp_path):
    command = [sys.executable, *program, "--hel"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE * 4, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(path):
    """The names of a document's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)]+)\)", read(document)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_each_page_is_in_the_contents():
    folder = ROOT / "docs"
    text = read("docs/index.md")
    entries = []
    for fence in [fence for fence in fences("docs/index.md") if fence.language == "{toctree}"]:
        entries += [re.sub(r".*<(.*)>", r"\1", line) for line in fence.text.splitlines() if line and line[0] != ":"]
    listed = [(folder / f"{entry}.md").resolve() for entry in entries]
    linked = [(folder / target).resolve().with_suffix(".md") for target in re.findall(r"\]\((?!https)([^)]+)\)", text)]
    there = {ROOT / document for document in DOCUMENTS} - {folder / "index.md"} | {folder / "reference.md"}
    assert sorted(listed) == sorted(set(linked)) == sorted(there), "for the site's menu, and for readers on a code host"


def test_changelog_tells_of_this_version():
    assert f"## [{gowsev.__version__}]" in read("CHANGELOG.md")


# -- the reference -----------------------------------------------------------------------------------------------------


def documented():
    """The names that the pages of the reference have an entry for."""
    names = set()
    for path in (ROOT / "docs").glob("reference*.rst"):
        module = ""
        for kind, name in re.findall(
            r"^\.\. (currentmodule|(?:auto|py:)\w+):: ([\w.]+)", path.read_text(), re.MULTILINE
        ):
            if kind == "currentmodule":
                module = name
            elif kind != "automodule":
                names.add(f"{module}.{name}")
    return names


def test_reference_has_every_public_name():
    public = {
        f"{module.__name__}.{name}" for module in (gowsev, channels, testing, pytest_plugin) for name in module.__all__
    }
    assert documented() == public | {"gowsev.gunicorn.Worker", "gowsev.prometheus.Metrics"}


def test_the_landing_page_of_the_reference_has_every_public_name_with_a_sentence():
    public_names = runpy.run_path(str(ROOT / "docs" / "public_names.py"))
    listed = public_names["names"]()
    assert {f"{module}.{name}" for module, name, _ in listed} == documented()
    assert [name for _, name, sentence in listed if not re.fullmatch(r"[A-Z`g].{8,}\.", sentence)] == []
    assert re.findall(r"^\.\. public-names:: (.*)$", read("docs/reference.rst"), re.MULTILINE) == list(
        public_names["MODULES"]
    )


@pytest.mark.parametrize("kind", [gowsev.Context, gowsev.DialledConn, gowsev.Handler, gowsev.Conn, gowsev.Options])
def test_reference_shows_the_members_of_what_has_some(kind):
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("reference*.rst"))
    assert f".. autoclass:: {kind.__name__}\n   :members:\n" in pages
    undocumented = [
        name for name, member in vars(kind).items() if name[0].isupper() and not (inspect.getdoc(member) or "").strip()
    ]
    assert undocumented == []

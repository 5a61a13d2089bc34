"""The documentation site, made by Sphinx: `tox -e docs` builds it into `build/docs`, with warnings as errors.

The source directory is the root of the repository, so that README, changelog, CONTRIBUTING and the examples' READMEs
are pages too, and a link that works on a code host works here, and is checked here. Pages are Markdown that reads well
there. The reference is made of the docstrings, whose form CONTRIBUTING describes: `_rest` makes reStructuredText of it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path

import gowsev
import gowsev.gunicorn
import gowsev.prometheus
import gowsev.pytest_plugin
import gowsev.testing

project = "gowsev"
author = "The gowsev developers"
copyright = "the gowsev developers; MIT licence"
version = release = gowsev.__version__
html_title = f"gowsev {release}"

root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/*.rst", "examples/*/README.md"]
exclude_patterns = [".*", "build", "dist", "**/*.egg-info", "**/__pycache__"]

sys.path.insert(0, str(Path(__file__).resolve().parent))
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "public_names"]
# Prompts and output are not copied.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "tango"
pygments_dark_style = "monokai"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# -- what the reference refers to and does not contain ----------------------------------------------------------------

nitpicky = True
#: Of other libraries, and of the standard one. Their inventories would have to be fetched over the network.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(collections|contextlib|datetime|geventwebsocket|gevent|gunicorn|os|prometheus_client|ssl|typing|websockets|wsgiref)(\..*)?",
    ),
    # Functions of a program, which `gowsev.channels` calls; what they are called with, the texts say.
    (r"py:class", r"(Deliver|Listed|Part|Published|Subscribed)"),
    (r"py:.*", r"(Any|Callable|Iterable|Iterator|Mapping|SSLContext|Self|Unpack|WSGIServer|timedelta)"),
    (r"py:.*", r"(BaseException|Exception|OSError|RuntimeError|TypeError|ValueError|AssertionError|KeyError)"),
    (r"py:.*", r"(bool|bytearray|bytes|dict|float|int|list|memoryview|object|str|tuple|type|None|optional)"),
    (r"py:.*", r"(CollectorRegistry|SupportsRead)"),
    (r"py:.*", r"(Args|Result|HeadersLike|MultipleValuesError|StartResponse|WSGIApplication|WSGIEnvironment)"),
    # Ours, and not public: docs/decisions.md says why.
    (r"py:.*", r"(Callbacks|gowsev\.testing\.Wrapped)"),
]


def _members(owner) -> list[str]:
    """Return the names that are documented with a class: its own, and those of bases of ours that are not public."""
    bases = [base for base in owner.__mro__ if base.__module__.startswith("gowsev")]
    return [name for base in bases if base is owner or base.__name__ not in gowsev.__all__ for name in vars(base)]


#: Every public name with its methods and attributes, by the name under which docstrings speak of it.
PUBLIC: dict[str, str] = {}
for _module, _prefix in ((gowsev, "gowsev"), (gowsev.testing, "gowsev.testing")):
    for _name in _module.__all__:
        PUBLIC.setdefault(_name, f"{_prefix}.{_name}")
        _value = getattr(_module, _name)
        if inspect.isclass(_value) and _value.__module__.startswith("gowsev"):
            for _member in _members(_value):
                if not _member.startswith("_"):
                    PUBLIC.setdefault(f"{_name}.{_member}", f"{_prefix}.{_name}.{_member}")
#: Docstrings of `Context` and its friends name each other's methods alone.
for _owner in ("Context", "Handler", "DialledConn"):
    for _member in _members(getattr(gowsev, _owner)):
        if _member[0].isupper():
            PUBLIC.setdefault(_member, f"gowsev.{_owner}.{_member}")
PUBLIC |= {f"gowsev.{name}": path for name, path in PUBLIC.items() if path == f"gowsev.{name}"}
PUBLIC |= {path: path for path in PUBLIC.values()}
PUBLIC |= {name: f"gowsev.pytest_plugin.{name}" for name in gowsev.pytest_plugin.__all__}
PUBLIC["TextReceived"] = PUBLIC["ConnRequested"] = "gowsev.Handler"

#: Methods that other modules of the package call. They are no part of the interface.
INTERNAL = {
    "gowsev.Context": {"attach", "disown"},
    "gowsev.DialledConn": {"disown"},
    "gowsev.Redial": {"disown", "end", "lost"},
    "gowsev.Timer": {"run"},
    "gowsev.WebSocketHandler": {
        "MessageClass",
        "finalize_headers",
        "get_environ",
        "handle_error",
        "handle_one_response",
        "read_request",
        "read_requestline",
        "write",
    },
}
INTERNAL_NAMES = set().union(*INTERNAL.values())


def _linked(match: re.Match[str]) -> str:
    """Make a link of what stands between backticks, if it is a public name; else code."""
    text = match[1]
    name, call = (text[:-2], "()") if text.endswith("()") else (text, "")
    path = PUBLIC.get(name)
    return f":py:obj:`{name}{call} <{path}>`" if path else f"``{text}``"


def _rest(app, what, name, obj, options, lines) -> None:
    """Make reStructuredText of a docstring: names between backticks become links, indented paragraphs code."""
    if name.startswith("gowsev.Headers"):  # it is another library's, and reStructuredText already
        return
    if lines and lines[0].startswith("Alias for field number"):  # what Python says of a NamedTuple's fields
        lines.clear()
    made: list[str] = []
    for line in lines:
        before = made[-2] if len(made) > 1 and not made[-1] else ""
        if line.startswith("    ") and before and not before.startswith((" ", "- ")):
            made += ["::", ""]
        made.append(re.sub(r"(?<![`:\w])`([^`]+)`(?!`)", _linked, line))
    if what == "attribute" and name.startswith("gowsev.Options."):
        (field,) = (field for field in dataclasses.fields(gowsev.Options) if field.name == name.rpartition(".")[2])
        made += ["", f"Default: ``{field.default!r}``."]
    if what in {"attribute", "property"}:
        made = ["..", "", *made]  # a comment: else napoleon takes what stands before a colon for a type
    lines[:] = made


def _signature(app, what, name, obj, options, signature, returns):
    """Leave out signatures of what a program does not make itself, and of what has its fields listed below."""
    if what == "class" and name.partition(".")[2] in {
        "Conn", "Context", "DialledConn", "Options", "Stats", "Timer", "Request", "WebSocketHandler", "gunicorn.Worker",
    }:  # fmt: skip
        return "", None
    return signature, returns


def _skip(app, what, name, obj, skip, options):
    return True if name in INTERNAL_NAMES else None


def _undo_fixtures() -> None:
    """Show pytest's fixtures as the functions that they are made of."""
    for name in gowsev.pytest_plugin.__all__:
        fixture = getattr(gowsev.pytest_plugin, name)
        setattr(gowsev.pytest_plugin, name, fixture.__wrapped__)


def _where_it_is_public(app, env, node, content):
    """Find a name where it is documented, which is not where it is defined: `gowsev.context.Context`."""
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    path = PUBLIC.get(name)
    if node.get("refdomain") != "py" or path in (None, target) or not (target == name or target.startswith("gowsev.")):
        return None
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", path, node, content)


def _check_complete(app, env) -> None:
    """Complain about public names that the reference lacks."""
    from sphinx.util import logging

    documented = set(env.get_domain("py").objects)
    wanted = {path for path in PUBLIC.values() if path.rpartition(".")[2] not in INTERNAL_NAMES}
    for path in sorted((wanted | {"gowsev.gunicorn.Worker", "gowsev.prometheus.Metrics"}) - documented):
        logging.getLogger(__name__).warning("the reference lacks %s", path)


def _lead_to_index(app, error) -> None:
    """The root of the site is a page that leads to the index."""
    if error is None and app.builder.format == "html":
        page = '<!doctype html><meta charset="utf-8"><title>gowsev</title>'
        page += '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">gowsev</a>\n'
        Path(app.outdir, "index.html").write_text(page, "utf-8")


def _give_the_index_its_width(app, page, template, context, doctree) -> None:
    """Show no contents beside the index: its first screen has two columns."""
    if page == root_doc:
        context["furo_hide_toc"] = True


def setup(app) -> None:
    from pygments.lexers.special import TextLexer

    _undo_fixtures()
    app.add_lexer("haproxy", TextLexer)  # of which Pygments knows nothing
    app.connect("autodoc-process-docstring", _rest, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _where_it_is_public)
    app.connect("env-check-consistency", _check_complete)
    app.connect("html-page-context", _give_the_index_its_width, priority=900)  # behind the theme
    app.connect("build-finished", _lead_to_index)

"""All public names with a sentence each, for the landing page of the reference: the directive `public-names`.

They are taken from each module's `__all__`, and the sentences from the docstrings, so none can be missing. Without
Sphinx `names` can be called all the same; `tests/test_documents.py` holds that each has its sentence.
"""

from __future__ import annotations

import importlib
import inspect
import re

#: The public modules, and what of each is public where it has no `__all__`.
MODULES = {
    "gowsev": None,
    "gowsev.channels": None,
    "gowsev.testing": None,
    "gowsev.pytest_plugin": None,
    "gowsev.gunicorn": ["Worker"],
    "gowsev.prometheus": ["Metrics"],
}

#: Of what has no docstring of its own: numbers and texts, and a class of another library.
SENTENCES = {
    "gowsev.TextMessage": "The type of a text message.",
    "gowsev.BinaryMessage": "The type of a binary message.",
    "gowsev.__version__": "The version.",
    "gowsev.Headers": "The headers of a handshake: a mapping whose keys ignore case.",
    "gowsev.testing.TIMEOUT": "Seconds that a wait may take, unless it is told otherwise.",
}


def sentence(path, value):
    """Return the first sentence about a name."""
    if path in SENTENCES:
        return SENTENCES[path]
    paragraph = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) ", paragraph)[0].rstrip(":.") + "."


def names():
    """Return (module, name, sentence) for every public name, in the order of the modules."""
    found = []
    for module, listed in MODULES.items():
        loaded = importlib.import_module(module)
        for name in listed or loaded.__all__:
            found.append((module, name, sentence(f"{module}.{name}", getattr(loaded, name))))
    return found


def setup(app):
    from sphinx.util.docutils import SphinxDirective

    class PublicNames(SphinxDirective):
        """The table of one module's names, each a link."""

        required_arguments = 1

        def run(self):
            lines = [".. list-table::", "   :widths: 30 70", ""]
            for module, name, text in names():
                if module == self.arguments[0]:
                    text = re.sub(r"`([^`]+)`", r"``\1``", text).replace("*", r"\*")
                    lines += [f"   * - :py:obj:`{name} <{module}.{name}>`", f"     - {text}"]
            return self.parse_text_to_nodes("\n".join(lines))

    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True}

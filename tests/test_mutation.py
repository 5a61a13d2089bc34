"""The survivors in docs/mutation.md are those of the code as it stands: a line that has changed needs a new look."""

import pytest
from mutation import DOCUMENT, MODULES, Mutant, as_rows, explained, lines_of


def test_rows_are_read_as_they_are_written():
    mutants = [Mutant("f", "return a | b", instead) for instead in ("return a & b", "return None")]
    mutants += [Mutant("C.f", "x = (a or b) | c", "x = None")]
    rows = as_rows(mutants)
    assert len(rows) == 2, "one for each line"
    head = ["| where | line | instead | why |", "|---|---|---|---|"]
    document = "\n".join(["# Title", "", "## `one.py`", "", *head, *rows, "", "## `two.py`", "", *head, rows[1]])
    assert explained("one", document) == mutants
    assert explained("two", document) == mutants[2:]
    assert explained("three", document) == []


def test_lines_are_found_by_function():
    lines = lines_of("wire/frames")
    assert lines["encode_frame"][-1] == "return header + mask + apply_mask(payload, mask)"
    assert "self.state = DONE" in lines_of("wire/protocol")["Protocol._fail"]


@pytest.mark.parametrize("module", MODULES)
def test_what_is_excused_is_still_there(module):
    """Where this fails, delete the row; `tox -e mutation` tells whether it needs another one."""
    lines = lines_of(module)
    gone = [
        mutant
        for mutant in explained(module, DOCUMENT.read_text())
        if mutant.line not in " ".join(lines.get(mutant.where, []))
    ]
    assert not gone

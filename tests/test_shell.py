"""Commands of the shell whose output nobody reads any more."""

import os
import subprocess
import sys

import pytest
from conftest import PATIENCE
from shell_output import reader_that_leaves, without_reader

import gowsev
from gowsev.shell import NOBODY_READS, ending_with_its_reader


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        (["gowsev"], ""),
        (["gowsev"], "1"),
        (["gowsev", "--help"], ""),  # unbuffered, argparse itself passes over it
        (["gowsev.channels", "--help"], ""),
    ],
)
def test_a_command_ends_quietly_where_nobody_reads_it(words, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    assert without_reader([sys.executable, "-m", *words], env=environment) == (NOBODY_READS, "")


def test_a_command_without_any_output_is_no_failure(monkeypatch):
    line = f"exec {sys.executable} -m gowsev >&-"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, timeout=PATIENCE * 2)
    assert (done.returncode, done.stderr) == (0, b"")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with ending_with_its_reader():
            print("unheard")


def test_what_is_printed_until_the_reader_goes_is_read(monkeypatch):
    with reader_that_leaves() as (output, leave):
        monkeypatch.setattr(sys, "stdout", output)

        @ending_with_its_reader()
        def command():
            print("first", flush=True)
            assert leave() == b"first\n"
            print("second")

        with pytest.raises(SystemExit) as left:
            command()
        assert left.value.code == NOBODY_READS
        print("third", flush=True)  # as Python does when it ends
        monkeypatch.undo()


def test_what_is_printed_last_is_flushed(monkeypatch):
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as read, open(writing, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with ending_with_its_reader():
            print(gowsev.__version__)
        assert read.readline() == f"{gowsev.__version__}\n"
        monkeypatch.undo()


@pytest.mark.parametrize("closed", [False, True])
def test_another_broken_pipe_is_an_error(closed, monkeypatch):
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8"), open(writing, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", None if closed else output)
        with pytest.raises(BrokenPipeError, match="a socket"), ending_with_its_reader():
            raise BrokenPipeError("a socket")
        monkeypatch.undo()

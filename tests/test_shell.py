"""Commands of the shell that end before they are done: by Ctrl-C, or because nobody reads their output any more."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import PATIENCE
from shell_output import reader_that_leaves, without_reader

import gowsev
from gowsev.shell import NOBODY_READS, end_by_interrupt, ending_with_its_reader


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


@pytest.fixture
def interrupt_handler():
    """Gives SIGINT a handler, until the end of the test."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_a_command_before_it_is_done():
    """Quietly, and not with the exit code of what is done: here nothing was published."""
    command = [sys.executable, "-m", "gowsev.channels", "publish", "--url", "redis://127.0.0.1:1", "news", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdin.write(bytes(1 << 17))  # more than a pipe holds: it has begun to read
        program.send_signal(signal.SIGINT)
        try:
            assert program.wait(PATIENCE) == -signal.SIGINT
        finally:
            program.kill()
        assert program.stderr.read() == b""


def test_an_interrupt_that_does_something_else_already_is_left_to_it(interrupt_handler):
    """As the shell has it ignored by what a script runs in the background."""
    for handler in (signal.SIG_IGN, lambda number, frame: None):
        interrupt_handler(handler)
        end_by_interrupt()
        assert signal.getsignal(signal.SIGINT) is handler
    interrupt_handler(signal.default_int_handler)
    end_by_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


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

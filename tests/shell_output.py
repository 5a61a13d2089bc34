"""Standard outputs that nobody reads any more."""

import os
import subprocess
from contextlib import contextmanager

import gevent.os
from conftest import PATIENCE, in_thread


def without_reader(command, **options):
    """Run a command whose output had a reader once: its exit code, and what it complained about."""
    reading, writing = os.pipe()
    open(reading, "rb").close()  # at once, as gevent's os.close does not
    try:
        done = in_thread(
            lambda: subprocess.run(
                command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=PATIENCE * 2, **options
            )
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@contextmanager
def reader_that_leaves():
    """A text file to print to, and a function that waits for the first of it, returns it, and reads no more."""
    reading, writing = os.pipe()

    def leave():
        first = gevent.os.tp_read(reading, 1024)  # in a thread of its own, patched or not
        open(reading, "rb").close()
        return first

    with open(writing, "w", encoding="utf-8") as output:
        yield output, leave

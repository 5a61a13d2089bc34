"""How a command of the shell ends before it is done: by Ctrl-C, or because nobody reads what it prints any more.

Most programs are ended by a signal then, SIGINT or SIGPIPE. Python makes the first an exception, which can be lost. The
second it ignores, and a program with sockets must: it would be ended by a peer that goes away. So the command ends by
itself, as if it had been that signal. Of commands it knows nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gevent import monkey

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["NOBODY_READS", "end_by_interrupt", "ending_with_its_reader"]

#: The exit code: what a shell tells of a program that SIGPIPE has ended.
NOBODY_READS = 141


def end_by_interrupt() -> None:
    """Let Ctrl-C end this process at once, without a traceback, unless it is ignored or handled by the program.

    Python's `KeyboardInterrupt` is lost where an object is being finalized, and late where a pipe is read to its end:
    `tail` and `publish` went on after a Ctrl-C.

    Raises:
        ValueError: this is not the main thread, the only one that Python lets handle signals.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _nobody_reads() -> bool:
    # Asked for no event, poll tells of errors alone; gevent's own, where it is patched in, cannot be asked that.
    poll = monkey.get_original("select", "poll")()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


@contextmanager
def ending_with_its_reader() -> Generator[None, None, None]:
    """Run a command; when what reads its standard output has gone, end the process without a word.

    What is printed is flushed at the end, which may block as any output does.

    Raises:
        SystemExit: nobody reads the standard output; the code is `NOBODY_READS`.
        BrokenPipeError: from something else than the standard output.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # it is None where the shell has closed it
                sys.stdout.flush()
    except BrokenPipeError:
        if sys.stdout is None or not _nobody_reads():
            raise
        # What is still buffered is flushed when Python ends, which would complain once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        sys.exit(NOBODY_READS)

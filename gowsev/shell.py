"""What becomes of a command of the shell when nobody reads what it prints any more: `python -m gowsev | head -1`.

Most programs are then ended by SIGPIPE. Python ignores this signal, and a program with sockets must: it would be ended
by a peer that goes away. So the command ends by itself, as if it had been that signal. Of commands it knows nothing.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gevent import monkey

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["NOBODY_READS", "ending_with_its_reader"]

#: The exit code: what a shell tells of a program that SIGPIPE has ended.
NOBODY_READS = 141


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

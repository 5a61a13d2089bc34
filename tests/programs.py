"""Programs under test that run in processes of their own, such as the examples, and a client to talk to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

from conftest import PATIENCE, wait_until
from websockets.sync.client import connect


class Program:
    """A program that runs in a process of its own; what it prints goes to a file."""

    def __init__(self, output, script, *args, **environ):
        self._output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, script, *map(str, args)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=output.parent,
                env=os.environ | environ,
            )

    @property
    def output(self):
        return self._output.read_text()

    def wait_for(self, pattern):
        """Wait until `pattern` is found in the output; return the match."""

        def found():
            # Looked at before the output is read: what it printed last counts.
            ended = self.process.poll()
            match = re.search(pattern, self.output, re.MULTILINE)
            assert match or ended is None, f"it ended with {ended} and never printed {pattern!r}:\n{self.output}"
            return match

        return wait_until(found)

    def url(self, scheme="ws"):
        return self.wait_for(rf"Listening on .*?({scheme}://\S+:\d+/)$")[1]

    def end(self, number=signal.SIGTERM):
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def websockets_client(url, **kwargs):
    return connect(url, proxy=None, open_timeout=PATIENCE, **kwargs)

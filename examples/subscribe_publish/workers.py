"""Several processes on one port: a parent that starts them, replaces those that die, and ends them in order.

On SIGHUP it replaces all, one after the other: each is ended when its successor has said that it is ready, so that
there is always one that listens. A successor that cannot start, as with a broken file, leaves the old ones as they are.

The kernel deals new connections out among the processes that listen with SO_REUSEPORT. The parent serves nobody; it
runs no loop, and only waits for signals. A worker sees at the end of its standard input that the parent is gone, and
then ends too.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("relay")

#: A worker that lived so many seconds did not die of its start.
SETTLED = 10.0
#: Seconds before a worker that died of its start is replaced, at first and at most.
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
#: Seconds that a worker has for its end.
DRAINING = 15.0
#: What a worker sends its parent when it serves.
READY = signal.SIGUSR1
ENDS = {signal.SIGTERM, signal.SIGINT}
WATCHED = ENDS | {signal.SIGCHLD, signal.SIGHUP, READY}

#: The exit code of a configuration error.
MISCONFIGURED = 2


def reserve(host: str, port: int) -> socket.socket:
    """Take a port for the workers, so that nobody else can; return a socket that holds it and never listens.

    Raises:
        OSError: it is taken; the text names it.
    """
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # as the library has it  # noqa: S104
    try:
        family, _, _, _, where = socket.getaddrinfo(host or everywhere, port, type=socket.SOCK_STREAM)[0]
        holder = socket.socket(family)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host else 0)
            holder.bind(where)
            # Only now: another relay that shares its port with its own workers does not share it with this one.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except BaseException:
            holder.close()
            raise
    except OSError as error:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise OSError(error.errno, f"cannot listen on {shown}: {error.strerror or error}") from error
    return holder


@dataclass(eq=False)
class Worker:
    """One place for a worker, and the process that fills it at the moment."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    delay: float = 0.0
    """Seconds waited before its last start, or before the next one while there is no process."""


class Workers:
    """A number of processes that do the same.

    Args:
        command: what to run; the worker's number is added behind `--worker`.
        number: how many.
        folder: where they leave their counters.
        delays: seconds before a worker that died of its start is replaced, at first and at most.
    """

    def __init__(
        self, command: list[str], number: int, folder: Path, delays: tuple[float, float] = (FIRST_DELAY, LAST_DELAY)
    ) -> None:
        self._command = command
        self._folder = folder
        self._delays = delays
        self._workers = [Worker(i + 1) for i in range(number)]
        self._settled = False
        self._replaced: list[Worker] = []
        """Those that are still to be replaced; only the first has a successor."""
        self._successor: subprocess.Popen[bytes] | None = None
        self._leaving: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        """Run until a SIGTERM or SIGINT, or until it turns out that they cannot be; return the exit code.

        SIGHUP replaces the workers, unless it says that the terminal is gone.
        """
        terminal = has_terminal()
        # Waited for in one place, instead of handled in between: nothing happens behind our back.
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        try:
            while True:
                self._start_due()
                received = signal.sigtimedwait(WATCHED, self._until_next())
                number = received.si_signo if received else 0
                if number in ENDS or (number == signal.SIGHUP and terminal and not has_terminal()):
                    logger.info("Stopping %d workers", len(self._workers))
                    return self._end(0)
                if number == signal.SIGHUP:
                    logger.info("SIGHUP: replacing %d workers", len(self._workers))
                    begun = self._replaced[:1]
                    self._replaced = begun + [worker for worker in self._workers if worker not in begun]
                self._replace(received.si_pid if received and number == READY else None)
                if self._reap() == MISCONFIGURED and not self._settled:
                    return self._end(MISCONFIGURED)  # it has said why
        except BaseException:
            for process in self._running():
                process.kill()
            raise

    def _replace(self, ready: int | None) -> None:
        """Go on replacing workers; `ready` is the process that has just said that it serves."""
        if not self._replaced:
            return
        worker = self._replaced[0]
        if self._successor is None:
            try:
                self._successor = self._start(worker)
            except OSError as error:
                self._give_up_replacing(str(error))
        elif self._successor.pid == ready:
            if worker.process is not None:
                worker.process.terminate()
                self._leaving.append(worker.process)
            worker.process, worker.started, self._successor = self._successor, time.monotonic(), None
            del self._replaced[0]
            self._replace(None)
        elif (code := self._successor.poll()) is not None:
            self._successor = None
            self._give_up_replacing(f"its successor {_how(code)}")

    def _give_up_replacing(self, why: str) -> None:
        logger.error("Worker %d goes on, and so do those behind it: %s", self._replaced[0].number, why)
        self._replaced = []

    def _running(self) -> list[subprocess.Popen[bytes]]:
        processes = [worker.process for worker in self._workers] + [self._successor, *self._leaving]
        return [process for process in processes if process is not None]

    def _start(self, worker: Worker) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  # our own command line
            [*self._command, "--worker", str(worker.number)],
            stdin=subprocess.PIPE,
            preexec_fn=_let_signals_through,  # safe: there are no threads here
        )

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is None and now >= worker.due:
                worker.started = now
                try:
                    worker.process = self._start(worker)
                except OSError as error:  # no memory, or Python is just being replaced: the others serve on
                    self._postpone(worker, now)
                    text = "Worker %d cannot be started: %s; the next attempt is in %.1f s"
                    logger.error(text, worker.number, error, worker.delay)

    def _postpone(self, worker: Worker, now: float) -> None:
        """Put the next start off, twice as long as the last one was."""
        worker.delay = next_delay(worker.delay, *self._delays)
        worker.due = now + worker.delay

    def _until_next(self) -> float:
        """Seconds until there is something to do besides signals."""
        due = [worker.due for worker in self._workers if worker.process is None]
        return max(0.0, min(due) - time.monotonic()) if due else SETTLED

    def _reap(self) -> int:
        """Take note of workers that have ended; return the exit code of the last one, or 0."""
        now, last = time.monotonic(), 0
        self._leaving = [process for process in self._leaving if process.poll() is None]
        for worker in self._workers:
            if worker.process is None:
                continue
            lived = now - worker.started
            self._settled = self._settled or lived >= SETTLED
            code = worker.process.poll()
            if code is None:
                continue
            last = code
            worker.process = None
            (self._folder / f"{worker.number}.json").unlink(missing_ok=True)
            if lived < SETTLED:
                self._postpone(worker, now)
            else:
                worker.delay, worker.due = 0.0, now
            if code != MISCONFIGURED or self._settled:
                text = "Worker %d %s after %.1f s; a new one starts in %.1f s"
                logger.error(text, worker.number, _how(code), lived, worker.delay)
        return last

    def _end(self, code: int) -> int:
        """Let all workers end; return the exit code."""
        running = self._running()
        for process in running:
            process.terminate()
        deadline = time.monotonic() + DRAINING
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("Process %d did not end within %g s, and is killed", process.pid, DRAINING)
                process.kill()
                process.wait()
                code = code or 1
        return code


def next_delay(delay: float, first: float, last: float) -> float:
    """Return how long to wait after a start that failed: twice as long as before it, at first and at most as told.

    Args:
        delay: seconds waited before that start, or 0 for the first one.
        first: seconds after the first failure.
        last: seconds at most.
    """
    return min(delay * 2 or first, last)


def _let_signals_through() -> None:
    # SIGHUP would end a worker that has just begun: it lets it through itself, once it knows what to do then.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED - {signal.SIGHUP})


def has_terminal() -> bool:
    """Tell whether this process belongs to a terminal whose end is to end it: not as a service, nor with `nohup`."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:  # there is none, or none any more
        return False
    return True


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    names = {one.value: one.name for one in signal.Signals}  # most real-time signals have none
    return f"was killed by {names.get(-code, f'signal {-code}')}"

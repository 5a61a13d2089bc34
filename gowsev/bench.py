"""What a message costs on this machine: `python -m gowsev --bench`, for a line or two in a report.

A server in a process of its own, with the defaults, and clients in this one, over loopback. What counts is the
processor time that the server takes for a message, which says more than messages a second: those are bounded by the
clients too. For a comparison with other libraries there is `benchmarks/` in the source.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, cast

import gevent

from gowsev.context import Context, MakeContext
from gowsev.handler import Handler
from gowsev.wire import frames
from gowsev.wire.frames import BINARY, FIN, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Scenario", "measure", "run", "serve"]

#: Seconds after which a server that does not answer is given up.
_PATIENCE = 20.0
#: Medians are taken of this many runs of each scenario, all of them in turn.
_ROUNDS = 3
#: Bytes of a payload, and of a server's frame with it.
_SIZE = 64
_FRAME_SIZE = _SIZE + 2
_TO_ALL = b"to all"


#: The server's process ends when its standard input is closed, by the end of this one if not before.
_SERVER = """
import gevent.os
from gowsev.bench import serve
from gowsev.shell import end_by_interrupt

end_by_interrupt()
serve(lambda port: print(port, flush=True), lambda: gevent.os.tp_read(0, 1))
"""


class Scenario(NamedTuple):
    """What is measured: every message comes back to who sent it, or to all."""

    title: str
    connections: int
    in_flight: int
    to_all: bool = False


_SCENARIOS = (
    Scenario("echo, 50 connections, 1 in flight", 50, 1),
    Scenario("echo, 50 connections, 16 in flight", 50, 16),
    Scenario("broadcast to 100, 1 in flight", 100, 1, to_all=True),
    Scenario("broadcast to 100, 8 in flight", 100, 8, to_all=True),
)


# -- the server --------------------------------------------------------------------------------------------------


class _Server(Handler):
    """Sends a binary message back, or to all; answers a text with its processor time in seconds."""

    def __init__(self) -> None:
        self.ids: set[int] = set()

    def ConnAccepted(self, context: Context, id: int) -> None:
        self.ids.add(id)

    def ConnClosed(self, context: Context, id: int) -> None:
        self.ids.discard(id)

    def MessageReceived(self, context: Context, id: int, message: bytes) -> None:
        if message.startswith(_TO_ALL):
            context.Broadcast(self.ids, message)
        else:
            context.Write(id, message)

    def TextReceived(self, context: Context, id: int, text: str) -> None:
        self.ids.discard(id)  # it asks, and is no client
        context.WriteText(id, f"{time.process_time():.6f}")


def serve(tell: Callable[[int], object], until: Callable[[], object]) -> None:
    """Serve on a port of the system's choice, until `until` returns.

    Blocks the calling greenlet.

    Args:
        tell: is given the port.
        until: may block its greenlet.
    """
    context = MakeContext(_Server())
    tell(context.ListenAndServe("127.0.0.1:0")[1])

    def end() -> None:
        until()
        context.Shutdown(0)

    gevent.spawn(end)
    context.EventLoop()


# -- the clients -------------------------------------------------------------------------------------------------


def _frame(opcode: int, payload: bytes) -> bytes:
    return frames.encode_frame(FIN | opcode, payload, masked=True)


def _connect(port: int, patience: float) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=patience)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    response = b""
    while not response.endswith(b"\r\n\r\n"):
        response += _received(sock, 1)
    return sock


def _received(sock: socket.socket, most: int) -> bytes:
    data = sock.recv(most)
    if not data:
        raise ConnectionError("the server has closed a connection")
    return data


def _processor_time(control: socket.socket) -> float:
    """Ask the server for its processor time, in seconds."""
    control.sendall(_frame(TEXT, b"?"))
    header = _received(control, 2)
    text = b""
    while len(text) < header[1]:
        text += _received(control, header[1] - len(text))
    return float(text)


def run(scenario: Scenario, port: int, seconds: float, patience: float = _PATIENCE) -> tuple[float, float]:
    """Keep messages in flight to a server that `serve` runs.

    Blocks the calling thread.

    Args:
        scenario: how many there are, and where they go.
        port: the server's, on loopback.
        seconds: for how long.
        patience: seconds without any message after which this gives up.

    Returns:
        The microseconds of the server's processor time for one message, and the messages a second.

    Raises:
        OSError: the server does not answer, or breaks off; `TimeoutError` after `patience`.
    """
    message = _frame(BINARY, (_TO_ALL if scenario.to_all else b"").ljust(_SIZE, b"."))
    with ExitStack() as stack:
        control = stack.enter_context(_connect(port, patience))
        clients = [stack.enter_context(_connect(port, patience)) for _ in range(scenario.connections)]
        selector = stack.enter_context(selectors.DefaultSelector())
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        senders = clients[:1] if scenario.to_all else clients
        fan = len(clients) if scenario.to_all else 1
        in_flight = len(senders) * scenario.in_flight * fan
        came = dict.fromkeys(clients, 0)  # the bytes behind the last whole frame
        _processor_time(control)  # whose answer says that it is no client
        count = 0
        before, began = _processor_time(control), time.monotonic()
        end = began + seconds
        for sender in senders:
            sender.sendall(message * scenario.in_flight)
        while in_flight:
            ready = selector.select(patience)
            if not ready:
                raise TimeoutError(f"no message for {patience} s")
            for key, _ in ready:
                client = cast("socket.socket", key.fileobj)
                whole, came[client] = divmod(came[client] + len(_received(client, 1 << 16)), _FRAME_SIZE)
                count += whole
                in_flight -= whole
                if whole and (not scenario.to_all or client is senders[0]) and time.monotonic() < end:
                    client.sendall(message * whole)
                    in_flight += whole * fan
        rate = count / (time.monotonic() - began)
        return (_processor_time(control) - before) / count * 1e6, rate


def measure(seconds: float, scenarios: Sequence[Scenario] = _SCENARIOS) -> Iterator[str]:
    """Measure for about this many seconds, and yield a line for each scenario.

    Blocks the calling greenlet, and its thread where the process is not patched. The server is a process of its own,
    which ends with this one.

    Raises:
        OSError: the server does not start, does not answer, or breaks off.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                raise ConnectionError("the server has not started")
            each = seconds / _ROUNDS / len(scenarios)
            rounds = [[run(scenario, int(line), each) for scenario in scenarios] for _ in range(_ROUNDS)]
        finally:
            server.stdin.close()
    for i, scenario in enumerate(scenarios):
        cost, rate = (statistics.median(one[i][j] for one in rounds) for j in (0, 1))
        yield f"{scenario.title:35} {cost:6.2f} us of the server's processor a message, {rate:9,.0f} messages/s"

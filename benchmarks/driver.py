"""Drive one WebSocket server on loopback, and print one line of JSON with figures of its processor time and memory.

usage: driver.py echo|fanout|memory|churn --port PORT --pid PID [options]

- echo: each connection has --depth messages in flight; when all are back it sends the next. With --rate, messages leave
  at that rate instead, without waiting for replies, and the times count from when each was due.
- fanout: --depth publishes are in flight to --connections subscribers; the next follow when all deliveries have come.
- memory: how much the server has grown with --connections open ones, --seconds after the last was opened.
- churn: --connections at a time connect, upgrade, close with a close frame, and wait for the end of the stream.

The figure of merit is the server's own processor time, not throughput: user and system time of all its threads, from
the kernel's clock of the process, to the nanosecond. The driver keeps every server busy all the same (`busy` says how
much), since one that falls asleep between two messages also pays for being woken: for each receive it makes one
comparison with what must come, and little else. A reply that is wrong or out of order, missing or too much, ends it
with an `error` in the line and exit code 1.
"""

import argparse
import ctypes
import itertools
import json
import os
import resource
import select
import sys
import time

import wire
from raw_client import Client, read_head
from wire import WireError

#: Seconds without a byte after which the missing replies count as lost.
STALL = 20.0
#: The share of the time that is not measured, before.
WARM_UP = 0.25


class Server:
    """What the kernel says of the process that is driven."""

    def __init__(self, pid):
        clock = ctypes.c_int()
        if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
            raise OSError(error, os.strerror(error), f"process {pid}")
        self.clock, self.statm = clock.value, f"/proc/{pid}/statm"

    def cpu(self):
        """The seconds of processor time, user and system, that it has used, threads that have ended included."""
        return time.clock_gettime(self.clock)

    def memory(self):
        """The bytes that are resident."""
        with open(self.statm) as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Load:
    """Connections under a load that keeps itself going: what comes back sets off what is sent next."""

    def __init__(self):
        self.epoll = select.epoll()
        self.connections = {}
        # One buffer for all: to allocate one for each receive costs eight times what the rest of it does.
        self.buffer = memoryview(bytearray(wire.RECEIVE))
        self.sending = True
        self.stall = STALL
        self.completed = 0  # replies, or deliveries
        self.times = []  # seconds from a message, or a batch of them, to its last reply

    def add(self, connection):
        self.connections[connection.sock.fileno()] = connection
        self.epoll.register(connection.sock, select.EPOLLIN)

    def send(self, connection, data):
        if not connection.send(data):
            self.epoll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)

    def received(self, connection, number):
        """Count the replies that have come for this connection; send what is next, if it is time."""
        raise NotImplementedError

    def missing(self):
        """How many replies, or deliveries, have not come."""
        raise NotImplementedError

    def pump(self, seconds):
        """Let the load run for this many seconds, and then until a batch is complete."""
        deadline = time.perf_counter() + seconds
        while True:
            batches = len(self.times)
            self.turn(self.stall)
            if len(self.times) > batches and time.perf_counter() >= deadline:
                return

    def turn(self, wait):
        """Handle what has come; wait for it for at most this many seconds."""
        ready = self.epoll.poll(wait)
        if not ready and wait == self.stall:
            self.stalled()
        for fd, event in ready:
            connection = self.connections[fd]
            if event & select.EPOLLOUT and connection.send_rest():
                self.epoll.modify(fd, select.EPOLLIN)
            if event & ~select.EPOLLOUT:
                size = connection.receive(self.buffer)
                if size:
                    self.received(connection, connection.reader.take(self.buffer[:size]))
                elif size is not None:
                    self.closed(connection)

    def stalled(self):
        """Nothing has come for too long."""
        raise WireError(f"lost: {self.missing()} replies have not come for {self.stall} s")

    def closed(self, connection):
        """The server has closed a connection."""
        raise WireError(f"the server closed a connection; {self.missing()} replies are missing")

    def finish(self):
        """Send no more; everything that is under way must come, and nothing else."""
        self.sending = False
        while self.missing() > 0:
            self.turn(self.stall)
        self.turn(0.05)
        if self.missing():
            raise WireError(f"{-self.missing()} replies too much")


class Echo(Load):
    """Each connection has a batch in flight, and sends the next when it is back."""

    def __init__(self, client, arguments):
        super().__init__()
        messages = choose_messages(arguments)
        self.depth = arguments.depth
        frames = client.requests(messages)
        # Long enough for any place in the cycle to have a whole batch behind it.
        frames = list(itertools.islice(itertools.cycle(frames), len(frames) * self.depth))
        self.batches = [b"".join(frames[i : i + self.depth]) for i in range(0, len(frames), self.depth)]
        for i, connection in enumerate(client.open(arguments.connections, client.replies(messages), self.depth)):
            connection.next = i % len(self.batches)
            self.add(connection)

    def start(self):
        for connection in self.connections.values():
            self.send_batch(connection, time.perf_counter())

    def send_batch(self, connection, begin):
        connection.begins.append(begin)
        connection.missing += self.depth
        batch = self.batches[connection.next]
        connection.next = (connection.next + 1) % len(self.batches)
        self.send(connection, batch)

    def received(self, connection, number):
        connection.missing -= number
        self.completed += number
        if number and not connection.missing:
            now = time.perf_counter()
            self.times.append(now - connection.begins.popleft())
            if self.sending:
                self.send_batch(connection, now)

    def missing(self):
        return sum(connection.missing for connection in self.connections.values())


class PacedEcho(Echo):
    """Messages leave at a fixed rate, from one connection after the other, without waiting for replies.

    It asks for what has come without waiting, as waiting is exact to the millisecond only.
    """

    def __init__(self, client, arguments):
        super().__init__(client, arguments)
        self.interval = 1 / arguments.rate
        self.turns = itertools.cycle(self.connections.values())

    def start(self):
        self.due = self.heard = time.perf_counter()

    def turn(self, wait):
        now = time.perf_counter()
        if now > self.heard + self.stall:
            self.stalled()
        while self.sending and self.due <= now:
            # The time counts from when it was due: a driver that is held up by the server must not hide that.
            self.send_batch(next(self.turns), self.due)
            self.due += self.interval
        super().turn(0 if self.sending else wait)

    def received(self, connection, number):
        connection.missing -= number
        self.completed += number
        now = self.heard = time.perf_counter()
        for _ in range(number):
            self.times.append(now - connection.begins.popleft())


class FanOut(Load):
    """One connection publishes a batch, which all the others get, and then the next."""

    def __init__(self, client, arguments):
        super().__init__()
        bodies = choose_messages(arguments)
        self.depth, self.sender = arguments.depth, None
        subscribe, *frames = client.requests([b"subscribe:bench", *(b"publish:bench:" + body for body in bodies)])
        frames = list(itertools.islice(itertools.cycle(frames), len(frames) * self.depth))
        batches = [b"".join(frames[i : i + self.depth]) for i in range(0, len(frames), self.depth)]
        self.batches = itertools.cycle(batches)
        oks, replies = client.replies([b"OK"]), client.replies(bodies)
        self.late = 0  # deliveries, and the publisher's OKs
        for connection in client.open(arguments.connections, oks):
            self.add(connection)
            self.send(connection, subscribe)
            self.late += 1
        while self.late:
            self.turn(self.stall)
        for connection in self.connections.values():
            connection.reader = connection.reader.then(replies)
        self.completed = 0
        (self.sender,) = client.open(1, oks)
        self.subscribers = arguments.connections
        self.add(self.sender)

    def start(self):
        self.begin = time.perf_counter()
        self.late = self.depth * (self.subscribers + 1)
        self.send(self.sender, next(self.batches))

    def received(self, connection, number):
        self.late -= number
        if connection is not self.sender:
            self.completed += number
        if number and not self.late and self.sender is not None:
            self.times.append(time.perf_counter() - self.begin)
            if self.sending:
                self.start()

    def missing(self):
        return self.late


def choose_messages(arguments):
    if arguments.deflate:
        return wire.documents(16, arguments.size)
    return wire.messages(2 if arguments.size >= 1 << 20 else 8 if arguments.size > 4096 else 64, arguments.size)


def percentile(times, share):
    """Return the microseconds below which this share of the times is."""
    return sorted(times)[int((len(times) - 1) * share)] * 1e6


def drive(load, server, seconds):
    """Measure one load; return its figures."""
    load.start()
    load.pump(seconds * WARM_UP)
    load.times.clear()
    completed, cpu, begin = load.completed, server.cpu(), time.perf_counter()
    load.pump(seconds)
    took, cpu, completed = time.perf_counter() - begin, server.cpu() - cpu, load.completed - completed
    times = list(load.times)
    load.finish()
    return {
        "us": cpu * 1e6 / completed,
        "per_second": completed / took,
        "busy": cpu / took,
        "p50_us": percentile(times, 0.5),
        "p99_us": percentile(times, 0.99),
    }


def echo(client, server, arguments):
    return drive((PacedEcho if arguments.rate else Echo)(client, arguments), server, arguments.seconds)


def fanout(client, server, arguments):
    return drive(FanOut(client, arguments), server, arguments.seconds)


def memory(client, server, arguments):
    """Open connections and hold them, answering pings; where they are compressed, each has had one message."""
    messages = choose_messages(arguments)
    replies = client.replies(messages)
    load = Echo(client, argparse.Namespace(**{**vars(arguments), "connections": 50, "depth": 1}))
    before = server.memory()
    load.sending = False
    for i, connection in enumerate(client.open(arguments.connections, replies, 1)):
        connection.next = i % len(load.batches)
        load.add(connection)
    if arguments.deflate:
        load.start()
        load.finish()
    end = time.perf_counter() + arguments.seconds
    while (left := end - time.perf_counter()) > 0:
        load.turn(left)
    return {"kb": (server.memory() - before) / 1024 / arguments.connections}


def churn(client, server, arguments):
    """Connections that come and go."""
    number, close = 0, wire.frame((1000).to_bytes(2), wire.CLOSE)

    def generation():
        socks = [client.connect() for _ in range(arguments.connections)]
        for sock in socks:
            head, _ = read_head(sock)  # with this scenario no server sends anything by itself
            wire.check_response(head, client.deflate)
            sock.sendall(close)
        for sock in socks:
            reply = b""
            while data := sock.recv(4096):
                reply += data
            if reply[:1] != bytes((wire.CLOSE,)) or len(reply) != 2 + reply[1]:
                raise WireError(f"not one close frame in answer to one, but {reply!r}")
            client.abort(sock)
        return len(socks)

    end = time.perf_counter() + arguments.seconds * WARM_UP
    while time.perf_counter() < end:
        generation()
    cpu, begin = server.cpu(), time.perf_counter()
    while time.perf_counter() < begin + arguments.seconds:
        number += generation()
    took = time.perf_counter() - begin
    return {"us": (server.cpu() - cpu) * 1e6 / number, "per_second": number / took}


KINDS = {"echo": echo, "fanout": fanout, "memory": memory, "churn": churn}


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True, help="of the server, on 127.0.0.1")
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--depth", type=int, default=1, help="messages in flight, of a connection or of the publisher")
    parser.add_argument("--size", type=int, default=64, help="bytes of a message, at least 8")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, help="messages a second, for echo")
    parser.add_argument("--tls", metavar="CA", help="use TLS, and trust this authority")
    parser.add_argument("--deflate", action="store_true", help="compressed JSON documents")
    arguments = parser.parse_args(words)
    # Shorter messages could not all differ from each other.
    for name, least in {"connections": 1, "depth": 1, "size": 8}.items():
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(arguments, name)}")
    if arguments.rate is not None and not 0 < arguments.rate <= 1e6:
        parser.error(f"--rate must be above 0 and at most a million, not {arguments.rate}")
    return arguments


def run(words):
    """Do what these arguments say; return the figures.

    Raises:
        WireError: the server did not do what it should.
        OSError: a connection, or the process, is not there.
    """
    arguments = parse(words)
    server = Server(arguments.pid)
    with Client(arguments) as client:
        return KINDS[arguments.kind](client, server, arguments)


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        figures = run(sys.argv[1:])
    except (WireError, OSError) as error:
        figures = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(figures))
    return "error" in figures


if __name__ == "__main__":
    sys.exit(main())

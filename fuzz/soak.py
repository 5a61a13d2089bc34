"""A soak: everything at once for a while, after which nothing may have grown.

usage: soak.py [--minutes 10]

The server of `fuzz_server.py`, in its own process, under a mix of clients: rogues with garbage, cut handshakes and
resets; well-behaved ones that echo; churn that connects, says one thing and leaves; stalls that send and never read.
After the first minute, and at the end, the load pauses, and the server's memory, file descriptors, greenlets and
connections are counted. It fails when one of them has grown; memory by more than a tenth.
"""

import argparse
import random
import sys
import tempfile
import time

import gevent
import gevent.pool
import gevent.socket
from fuzz_server import PATIENCE, Rogue, ServerProcess, open_raw, well_behaved

import gowsev
from gowsev.wire import frames

ECHOERS, ROGUES, CHURNERS, STALLS = 8, 20, 6, 4


def churn(address, deadline, counts):
    """Connect, send, get the answer, close; again and again."""
    url = f"ws://{address[0]}:{address[1]}/"
    while time.monotonic() < deadline:
        with gevent.Timeout(PATIENCE), gowsev.Dial(url, proxy=None) as conn:
            conn.WriteMessage(gowsev.TextMessage, "hello")
            assert conn.ReadMessage() == (gowsev.BinaryMessage, b"hello")
        counts["churned"] += 1


def rogues(address, deadline, counts):
    while time.monotonic() < deadline:
        Rogue(random.SystemRandom().randrange(1 << 40), address, None)()
        counts["rogues"] += 1


def stalls(address, deadline, counts):
    """Send what is echoed, and never read: the server has to close the connection."""
    message = frames.encode_frame(0x82, b"x" * 9_000, masked=True)
    while time.monotonic() < deadline:
        try:
            with gevent.Timeout(PATIENCE), open_raw(address) as sock:
                while time.monotonic() < deadline:
                    sock.sendall(message)
                    gevent.sleep(0)  # with a server that reads fast, `send` would never wait
        except OSError:
            counts["stalled"] += 1  # it did


def load(address, seconds, counts):
    deadline = time.monotonic() + seconds
    group = gevent.pool.Group()
    for _ in range(ECHOERS):
        group.spawn(well_behaved, f"ws://{address[0]}:{address[1]}/", None, seconds, counts)
    for kind, number in ((rogues, ROGUES), (churn, CHURNERS), (stalls, STALLS)):
        for _ in range(number):
            group.spawn(kind, address, deadline, counts)
    greenlets = list(group)
    group.join(seconds + 4 * PATIENCE)
    return [f"a client failed: {greenlet.exception!r}" for greenlet in greenlets if not greenlet.successful()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    counts = {"echoes": 0, "longest": 0.0, "churned": 0, "rogues": 0, "stalled": 0}
    with tempfile.TemporaryFile() as errors:
        server = ServerProcess([], errors)
        address = ("127.0.0.1", server.port)
        faults = load(address, 60.0, counts)
        before = server.census()
        print(f"after a minute: {before}", flush=True)
        done = 1.0
        while done < minutes and not faults:
            step = min(1.0, minutes - done)
            faults += load(address, step * 60.0, counts)
            done += step
            print(f"after {done:.1f} minutes: {counts}", flush=True)
        after = server.census()
        print(f"at the end: {after}")
        report, more = server.end()
    faults += more
    faults += [f"{what} has grown" for what in ("fds", "greenlets", "connections") if after[what] > before[what]]
    if after["resident_kb"] > before["resident_kb"] * 1.1:
        faults.append("memory has grown")
    print(f"server: {report}")
    print("\n".join(faults) or "passed")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

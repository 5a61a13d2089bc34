"""Measure what one subscriber that never reads costs the others of a broadcast.

usage: slow_consumer.py [--subscribers 1000] [--rounds 5]

The server broadcasts in its own process; this one reads, checks every byte, and takes the time from the first broadcast
to the last delivery. Rounds with and without the one that stalls alternate; the ratio of the medians is printed, and
how much the server's memory grew. The one that stalls must have been closed with 1013.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import gevent
import gevent.pool
from fuzz_server import open_raw

import gowsev
from gowsev.wire import frames

BROADCASTS, SIZE = 1000, 4000


class Broadcaster(gowsev.Handler):
    """Sends all that it has to everyone, when one of them asks for it."""

    def __init__(self):
        self.ids = set()

    def ConnAccepted(self, context, id):
        self.ids.add(id)

    def ConnClosed(self, context, id):
        self.ids.discard(id)

    def MessageReceived(self, context, id, message):
        for i in range(BROADCASTS):
            context.Post(lambda context, i=i: context.Broadcast(self.ids, payload(i)))


def payload(i):
    return b"%06d" % i + b"m" * SIZE


STREAM = b"".join(frames.encode_frame(0x82, payload(i)) for i in range(BROADCASTS))


def serve():
    context = gowsev.MakeContext(Broadcaster(), gowsev.Options(outbox_bytes=1_000_000))
    print(context.ListenAndServe("127.0.0.1:0")[1], flush=True)
    context.EventLoop()


def read_stream(sock):
    position = 0
    while position < len(STREAM):
        data = sock.recv(1 << 16)
        if not data or not STREAM.startswith(data, position):
            raise AssertionError(f"a delivery is missing or wrong at {position}")
        position += len(data)


def check_closed_as_slow(sock):
    sock.settimeout(30)
    data = b""
    close = frames.encode_frame(0x88, frames.encode_close_payload(frames.TRY_AGAIN_LATER, "reading too slowly"))
    while not data.endswith(close):
        part = sock.recv(1 << 16)
        if not part:
            raise AssertionError("not closed with 1013")
        data = data[-len(close) :] + part


def one_round(subscribers, stalled):
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        address = ("127.0.0.1", int(server.stdout.readline()))
        stalls = [open_raw(address, receive_buffer=4096) for _ in range(stalled)]
        socks = gevent.pool.Pool(100).map(open_raw, [address] * (subscribers - stalled))
        before = memory(server.pid)
        begin = time.monotonic()
        socks[0].sendall(frames.encode_frame(0x82, b"go", masked=True))
        readers = [gevent.spawn(read_stream, sock) for sock in socks]
        gevent.joinall(readers, 120, raise_error=True)
        took = time.monotonic() - begin
        grown = memory(server.pid) - before
        for sock in stalls:
            check_closed_as_slow(sock)
        for sock in stalls + socks:
            sock.close()
        return took, grown
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def memory(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.serve:
        return serve()
    without, with_one = [], []
    for _ in range(arguments.rounds):
        without.append(one_round(arguments.subscribers, 0))
        with_one.append(one_round(arguments.subscribers, 1))
    medians = [statistics.median(took for took, _ in rounds) for rounds in (without, with_one)]
    print(f"{BROADCASTS} broadcasts of {SIZE + 6} bytes to {arguments.subscribers}: {medians[0]:.2f} s")
    print(f"with one that never reads: {medians[1]:.2f} s, ratio {medians[1] / medians[0]:.2f}")
    grown = [statistics.median(mb for _, mb in rounds) for rounds in (without, with_one)]
    print(f"memory grew by {grown[0]:.1f} MB, and with it by {grown[1]:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())

"""Structured fuzzing of a live server: many clients at once that each do something wrong, or right, over loopback.

usage: fuzz_server.py [--seconds 60] [--seed N] [--tls]

The server runs in a process of its own, with small limits. Each client makes up a conversation: a handshake that is
whole, cut, garbled or dribbled, then frames that are valid, cut, fragmented, oversized, interleaved with pings and
closes, then an end: a close frame, EOF, a reset, silence. Beside them, one well-behaved client echoes messages all the
time. What must hold:

1. The well-behaved client gets every echo, each within its patience.
2. The server process lives, and prints nothing to its standard error.
3. When all clients have gone, it has no connection, and as many file descriptors and greenlets as at its beginning.
4. Each ConnAccepted had exactly one ConnClosed, with messages between the two only.
"""

import argparse
import base64
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gevent
import gevent.os
import gevent.pool
import gevent.socket
import gevent.ssl

import gowsev
from gowsev.wire import frames

PATIENCE = 30.0
CLIENTS_AT_ONCE = 40


# -- the server's process --------------------------------------------------------------------------------------------


class Echo(gowsev.Handler):
    def __init__(self):
        self.open = set()
        self.faults = []

    def ConnAccepted(self, context, id):
        if id in self.open:
            self.faults.append(f"{id} accepted twice")
        self.open.add(id)

    def ConnClosed(self, context, id):
        if id not in self.open:
            self.faults.append(f"{id} closed without being open")
        self.open.discard(id)

    def MessageReceived(self, context, id, message):
        if id not in self.open:
            self.faults.append(f"message for {id}, which is not open")
        context.Write(id, message)


def census(context):
    """Count what a server could leave behind; connections still closing are waited for."""
    deadline = time.monotonic() + PATIENCE
    while context.Stats().connections and time.monotonic() < deadline:
        gevent.sleep(0.05)
    gevent.sleep(1.0)  # longer than any timeout of this server's
    gc.collect()
    live = [thing for thing in gc.get_objects() if type(thing) is gevent.Greenlet and not thing.dead]
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "greenlets": len(live),
        "connections": context.Stats().connections,
        "resident_kb": resident,
    }


def serve(cert, key):
    """Serve; for each line on standard input print a census, and at its end what went wrong.

    Compression keeps its contexts where there is TLS, so that either way has its run.
    """
    handler = Echo()
    options = gowsev.Options(
        max_message_bytes=10_000, handshake_timeout=0.8, ping_interval=0.4, ping_timeout=2.0, close_timeout=0.4,
        inbox_messages=16, inbox_bytes=20_000, outbox_bytes=50_000, compression="deflate",
        compression_min_bytes=16, compression_takeover=bool(cert),
    )  # fmt: skip
    context = gowsev.MakeContext(handler, options)
    if cert:
        _, port = context.ListenAndServeTLS("127.0.0.1:0", cert, key)
    else:
        _, port = context.ListenAndServe("127.0.0.1:0")
    loop = gevent.spawn(context.EventLoop)
    print(port, flush=True)
    while gevent.os.tp_read(0, 1):
        print(json.dumps(census(context)), flush=True)
    stats = context.Stats()
    report = {"accepted": stats.accepted, "rejected": stats.rejected, "messages": stats.messages_received}
    faults = handler.faults + [f"connection {id} never closed" for id in handler.open]
    if stats.callback_errors:
        faults.append(f"{stats.callback_errors} callbacks raised")
    print(json.dumps({"report": report, "faults": faults}), flush=True)
    context.Shutdown(5)
    loop.join()


class ServerProcess:
    """The server, seen from the driver."""

    def __init__(self, files, errors):
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", *files],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        self.port = int(self._line() or 0)

    def _line(self):
        return gevent.get_hub().threadpool.spawn(self.process.stdout.readline).get(timeout=4 * PATIENCE)

    def census(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self._line() or "{}")

    def end(self):
        """Stop it; return its report and everything that went wrong."""
        self.process.stdin.close()
        last = json.loads(self._line() or '{"report": null, "faults": ["the server said nothing at its end"]}')
        status = self.process.wait(PATIENCE)
        self.errors.seek(0)
        # The first refusal by an option is a warning, which Python prints where no logging is set up; it is no fault.
        lines = self.errors.read().decode(errors="replace").splitlines(keepends=True)
        printed = "".join(line for line in lines if not line.startswith("refused "))
        if status or printed:
            last["faults"].append(f"the server ended with {status}, and printed: {printed[-3000:]!r}")
        return last["report"], last["faults"]


# -- the clients -----------------------------------------------------------------------------------------------------


def open_raw(address, receive_buffer=None):
    """Open a plain connection, its handshake done; return its socket."""
    sock = gevent.socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_RCVBUF, receive_buffer)
    sock.connect(address)
    key = base64.b64encode(os.urandom(16))
    sock.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return sock


class Rogue:
    """One client's conversation, made up from its own random source."""

    def __init__(self, seed, address, tls):
        self.random = random.Random(seed)
        self.address = address
        self.tls = tls

    def __call__(self):
        try:
            with gevent.Timeout(PATIENCE, False):
                self.sock = gevent.socket.create_connection(self.address)
                if self.chance(0.05):
                    return self.end()
                if self.tls is not None:
                    if self.chance(0.1):
                        self.sock.sendall(self.random.randbytes(200))
                        return self.end()
                    self.sock = self.tls.wrap_socket(self.sock, server_hostname="localhost")
                if self.handshake():
                    for _ in range(self.random.randrange(12)):
                        self.send(self.something())
                        if self.chance(0.1):
                            gevent.sleep(self.random.random() * 0.05)
                self.end()
        except OSError:
            return None  # the server may close the connection of such a client
        finally:
            if hasattr(self, "sock"):
                self.sock.close()

    def chance(self, probability):
        return self.random.random() < probability

    def send(self, data):
        if self.chance(0.1):  # dribble
            for i in range(min(len(data), 50)):
                self.sock.sendall(data[i : i + 1])
                gevent.sleep(0)
            data = data[50:]
        self.sock.sendall(data)

    def handshake(self):
        lines = [
            "GET /x?y HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + base64.b64encode(self.random.randbytes(16)).decode(),
        ]  # fmt: skip
        if self.chance(0.3):
            lines.append("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
        kind = self.random.randrange(10)
        if kind == 0:
            lines.pop(self.random.randrange(len(lines)))
        elif kind == 1:
            lines.insert(self.random.randrange(1, len(lines)), self.random.choice(
                ["X: " + "y" * 70_000, " folded", "no colon", "Sec-WebSocket-Key: x", "Content-Length: 5", "\x01: \x02"]
            ))  # fmt: skip
        data = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if kind == 2:
            data = self.garble(data)
        elif kind == 3:
            data = data[: self.random.randrange(len(data))]
        if self.chance(0.3):
            data += self.something()  # in the same segment
        self.send(data)
        return kind > 3 or self.chance(0.5)

    def garble(self, data):
        data = bytearray(data)
        for _ in range(self.random.randrange(1, 5)):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        return bytes(data)

    def frame(self, first, payload, masked=True):
        return frames.encode_frame(first, payload, masked)

    def something(self):
        r = self.random
        size = r.choice([0, 1, 5, 125, 126, 127, 1000, 9_999, 10_000, 10_001, 65_536])
        payload = r.randbytes(size) if self.chance(0.5) else b"x" * size
        first = r.choice([0x81, 0x82, 0x82, 0x82, 0x01, 0x02, 0x80, 0x00, 0x88, 0x89, 0x8A, 0xC2, 0xC1, 0x83, 0xF2])
        if first in (0x88, 0x89, 0x8A) and self.chance(0.9):
            payload = payload[:125]
        if first == 0x88 and self.chance(0.7):
            payload = frames.encode_close_payload(r.choice([1000, 1001, 3000, 4999]), "r" * r.randrange(130))
        data = self.frame(first, payload, masked=self.chance(0.95))
        if self.chance(0.1):
            data = self.garble(data)
        if self.chance(0.05):
            data = data[: r.randrange(len(data))]
        if self.chance(0.05):
            data = self.frame(0x89, b"") * r.randrange(5000)
        if self.chance(0.05):
            data = self.frame(0x02, b"") + self.frame(0x00, b"z") * r.randrange(3000) + self.frame(0x80, b"")
        if self.chance(0.02):
            data = b"\x82\xff" + (1 << r.choice([20, 32, 62, 63])).to_bytes(8, "big") + b"mask"
        return data

    def end(self):
        kind = self.random.randrange(5)
        if kind == 0:
            self.sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif kind == 1:
            self.sock.sendall(self.frame(0x88, b"\x03\xe8"))
            while self.sock.recv(65536):
                pass
        elif kind == 2:
            gevent.socket.socket.shutdown(self.sock, gevent.socket.SHUT_WR)
            while self.sock.recv(65536):
                pass
        elif kind == 3:  # silence: the server has to give up
            gevent.sleep(self.random.random() * 2)


def well_behaved(url, tls, seconds, result):
    """Echo messages; note how many, and the longest wait."""
    deadline = time.monotonic() + seconds
    with gowsev.Dial(url, ssl_context=tls, proxy=None) as conn:
        while time.monotonic() < deadline:
            message = b"%d" % result["echoes"]
            begin = time.monotonic()
            with gevent.Timeout(PATIENCE):
                conn.WriteMessage(gowsev.BinaryMessage, message)
                assert conn.ReadMessage() == (gowsev.BinaryMessage, message)
            result["longest"] = max(result["longest"], time.monotonic() - begin)
            result["echoes"] += 1
            gevent.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--serve", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        return serve(*(arguments.serve or (None, None)))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files, tls = certificate(Path(folder)) if arguments.tls else ([], None)
        return attack(arguments.seconds, seed, files, tls)


def certificate(folder):
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return [str(cert), str(key)], context


def attack(seconds, seed, files, tls):
    with tempfile.TemporaryFile() as errors:
        server = ServerProcess(files, errors)
        before = server.census()
        result = {"echoes": 0, "longest": 0.0}
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{server.port}/"
        good = gevent.spawn(well_behaved, url, tls, seconds, result)
        pool = gevent.pool.Pool(CLIENTS_AT_ONCE)
        deadline = time.monotonic() + seconds
        conversations = 0
        while time.monotonic() < deadline and not good.ready():
            pool.spawn(Rogue(seed + conversations, ("127.0.0.1", server.port), tls))
            conversations += 1
        pool.join(PATIENCE)
        good.join(PATIENCE)
        after = server.census()
        report, faults = server.end()
    if not good.successful():
        faults.append(f"the well-behaved client failed: {good.exception!r}")
    for what in ("fds", "greenlets", "connections"):
        if before[what] != after[what]:
            faults.append(f"{what}: {before[what]} before, {after[what]} after")
    print(f"{conversations} conversations; {result['echoes']} echoes, the slowest in {result['longest'] * 1000:.0f} ms")
    print(f"server: {report}, {after}")
    print("\n".join(faults) or "passed")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

"""What a message to many costs the server, in each of the chats here: run by hand, for the page "Which one?".

A hundred clients are in the room. One says something, and says the next when all of them have it. The figure is the
processor time of the server's process (user and system, as the kernel counts it) by the number of deliveries, the
median of three runs in turn. Any Python that has the packages will do:

    python docs/chats/chat_load.py chat_gowsev.py chat_websockets.py ...
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from websockets.asyncio.client import connect

CLIENTS, MESSAGES, RUNS = 100, 100, 3
HERE = Path(__file__).resolve().parent


def program(name, folder):
    """Write a chat with a port that the system chooses into a folder; return its path."""
    text = (HERE / name).read_text("utf-8")
    assert "8000" in text
    path = Path(folder, name)
    path.write_text(text.replace("8000", "0"), "utf-8")
    return path


class Plain:
    """A client of the chats that speak plain WebSocket."""

    path = "/chat"

    async def open(self, port):
        self._connection = await connect(f"ws://127.0.0.1:{port}{self.path}", proxy=None, compression=None)

    async def close(self):
        await self._connection.close()

    async def say(self, text):
        await self._connection.send(text)

    async def hear(self):
        return await self._connection.recv()


class SocketIO(Plain):
    """A client of Socket.IO, version 5 of its protocol, over a WebSocket from the start."""

    path = "/socket.io/?EIO=4&transport=websocket"

    async def open(self, port):
        await super().open(port)
        assert (await self._connection.recv()).startswith("0")  # open
        await self._connection.send("40")  # connect to the namespace /
        self._early = []
        # What the handler of `connect` emits comes before the answer.
        while not (answer := await self._connection.recv()).startswith("40"):
            self._early.append(answer)

    async def say(self, text):
        await self.emit("say", text)

    async def emit(self, event, *arguments):
        await self._connection.send("42" + json.dumps([event, *arguments]))

    async def hear(self):
        while True:
            packet = self._early.pop(0) if self._early else await self._connection.recv()
            if packet == "2":  # ping
                await self._connection.send("3")
            elif packet.startswith("42"):
                return json.loads(packet[2:])[1]


def client(name):
    """Return a client, not open yet, for a chat."""
    return SocketIO() if "socketio" in name else Plain()


def seconds(process):
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def hear_last(one, text):
    while await one.hear() != text:
        pass


async def talk(name, port, process):
    """Return the microseconds of the server's time for each delivery."""
    clients = [client(name) for _ in range(CLIENTS)]
    for one in clients:
        await one.open(port)
    await clients[0].say("begin")
    await asyncio.gather(*(hear_last(one, "begin") for one in clients))
    before = seconds(process)
    for number in range(MESSAGES):
        await clients[0].say(f"message {number}")
        await asyncio.gather(*(hear_last(one, f"message {number}") for one in clients))
    used = seconds(process) - before
    await asyncio.gather(*(one.close() for one in clients))
    return used / (CLIENTS * MESSAGES) * 1e6


def measure(name, folder):
    with subprocess.Popen([sys.executable, program(name, folder)], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline().rsplit(" ", 1)[1])
            return asyncio.run(talk(name, port, server.pid))
        finally:
            server.kill()


def main(names):
    figures = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(RUNS):
            for name in names:
                figures[name].append(measure(name, folder))
    for name, values in figures.items():
        print(f"{name:28} {statistics.median(values):7.1f} us a delivery ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main(sys.argv[1:])

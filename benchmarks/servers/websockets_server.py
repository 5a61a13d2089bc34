"""websockets on uvloop."""

import asyncio
from collections import defaultdict

import uvloop
from arguments import MOST_BYTES, parse, tls_context
from websockets.asyncio.server import broadcast, serve

subscribers = defaultdict(set)


async def echo(ws):
    async for message in ws:
        await ws.send(message)


async def relay(ws):
    try:
        async for message in ws:
            command, channel, *body = message.split(b":", 2)
            await ws.send(b"OK")
            if command == b"subscribe":
                subscribers[channel].add(ws)
            else:
                broadcast(subscribers[channel], body[0])
    finally:
        for several in subscribers.values():
            several.discard(ws)


async def main():
    arguments = parse()
    async with serve(
        echo if arguments.mode == "echo" else relay,
        "127.0.0.1",
        arguments.port,
        ssl=tls_context(arguments),
        max_size=MOST_BYTES,
        compression="deflate" if arguments.deflate else None,
        ping_interval=arguments.ping or 20,
        backlog=1024,
    ):
        await asyncio.Future()


uvloop.run(main())

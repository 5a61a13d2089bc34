"""aiohttp on uvloop."""

from collections import defaultdict

import uvloop
from aiohttp import web
from arguments import MOST_BYTES, parse, tls_context

subscribers = defaultdict(set)


async def accept(request):
    ws = web.WebSocketResponse(max_msg_size=MOST_BYTES, compress=arguments.deflate, heartbeat=arguments.ping)
    await ws.prepare(request)
    return ws


async def echo(request):
    ws = await accept(request)
    async for message in ws:
        await ws.send_bytes(message.data)
    return ws


async def relay(request):
    ws = await accept(request)
    try:
        async for message in ws:
            command, channel, *body = message.data.split(b":", 2)
            await ws.send_bytes(b"OK")
            if command == b"subscribe":
                subscribers[channel].add(ws)
            else:
                for subscriber in list(subscribers[channel]):
                    await subscriber.send_bytes(body[0])
    finally:
        for several in subscribers.values():
            several.discard(ws)
    return ws


arguments = parse()
app = web.Application()
app.router.add_get("/", echo if arguments.mode == "echo" else relay)
web.run_app(
    app,
    host="127.0.0.1",
    port=arguments.port,
    ssl_context=tls_context(arguments),
    backlog=1024,
    print=None,
    access_log=None,
    loop=uvloop.new_event_loop(),
)

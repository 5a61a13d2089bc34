import asyncio

from websockets.asyncio.server import broadcast, serve

room = set()


async def chat(client):
    room.add(client)
    broadcast(room, f"{len(room)} here")
    try:
        async for text in client:
            broadcast(room, text)
    finally:
        room.discard(client)
        broadcast(room, f"{len(room)} here")


async def main():
    async with serve(chat, "127.0.0.1", 8000) as server:
        print("listening on port", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())

import asyncio

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for a try",
    ALLOWED_HOSTS=["*"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
)
django.setup()

import uvicorn
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

here = 0


class Chat(AsyncWebsocketConsumer):
    async def connect(self):
        global here
        here += 1
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()
        await self.broadcast(f"{here} here")

    async def receive(self, text_data):
        await self.broadcast(text_data)

    async def disconnect(self, code):
        global here
        here -= 1
        await self.channel_layer.group_discard("room", self.channel_name)
        await self.broadcast(f"{here} here")

    async def broadcast(self, text):
        await self.channel_layer.group_send("room", {"type": "said", "text": text})

    async def said(self, event):
        await self.send(event["text"])


websocket = URLRouter([path("chat", Chat.as_asgi())])
app = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": websocket})


async def main():
    config = uvicorn.Config(app, port=8000, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print("listening on port", server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


asyncio.run(main())

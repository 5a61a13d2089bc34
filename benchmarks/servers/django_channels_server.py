"""Django Channels with channels_redis under daphne, as their documentation has it. usage: core|pubsub PORT URL"""

import json
import sys

import django
from django.conf import settings

layer, port, url = sys.argv[1:]
classes = {"core": "channels_redis.core.RedisChannelLayer", "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer"}
host = {"address": url}
if layer == "core":
    # Without these, WebSockets are lost: idle ones, as its blocking pop waits for 5 s, and redis-py 8 no longer for any
    # answer; others, as each of several hundred consumers may want one of the 100 connections that redis-py 8 opens.
    host.update(socket_timeout=30, max_connections=1000)
settings.configure(
    SECRET_KEY="benchmark",
    CHANNEL_LAYERS={"default": {"BACKEND": classes[layer], "CONFIG": {"hosts": [host]}}},
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 - needs the settings


class Live(AsyncWebsocketConsumer):
    async def connect(self):
        self.channels = set()
        await self.accept()

    async def disconnect(self, code):
        for channel in self.channels:
            await self.channel_layer.group_discard(channel, self.channel_name)

    async def receive(self, text_data=None, bytes_data=None):
        words = json.loads(text_data)
        if "publish" in words:
            event = {"type": "channel.message", "text": words["text"]}
            await self.channel_layer.group_send(words["publish"], event)
            await self.send(text_data=json.dumps({"published": words["number"]}))
        else:
            channel = words["subscribe"]
            await self.channel_layer.group_add(channel, self.channel_name)
            self.channels.add(channel)
            await self.send(text_data=json.dumps({"subscribed": channel}))

    async def channel_message(self, event):
        await self.send(text_data=json.dumps({"text": event["text"]}))


application = Live.as_asgi()

if __name__ == "__main__":
    from daphne.cli import CommandLineInterface

    # daphne imports the application by its name.
    sys.modules["django_channels_server"] = sys.modules["__main__"]
    CommandLineInterface().run(["-b", "127.0.0.1", "-p", port, "django_channels_server:application"])

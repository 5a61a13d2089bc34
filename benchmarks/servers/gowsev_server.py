"""gowsev, with its defaults but for the limits that the longest messages need."""

from collections import defaultdict

from arguments import MOST_BYTES, parse

import gowsev


class Echo(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, message)


class Relay(gowsev.Handler):
    def __init__(self):
        self.subscribers = defaultdict(set)

    def ConnClosed(self, context, id):
        for ids in self.subscribers.values():
            ids.discard(id)

    def MessageReceived(self, context, id, message):
        command, channel, *body = message.split(b":", 2)
        context.Write(id, b"OK")
        if command == b"subscribe":
            self.subscribers[channel].add(id)
        else:
            self.publish(context, self.subscribers[channel], body[0])

    def publish(self, context, ids, message):
        context.Broadcast(ids, message)


class WritingRelay(Relay):
    """Publishes as a program for the Go library does, which has no Broadcast."""

    def publish(self, context, ids, message):
        for id in ids:
            context.Write(id, message)


arguments = parse()
options = gowsev.Options(
    max_message_bytes=MOST_BYTES,
    outbox_bytes=MOST_BYTES,
    compression="deflate" if arguments.deflate else None,
    ping_interval=arguments.ping or 20.0,
)
handler = Echo() if arguments.mode == "echo" else WritingRelay() if arguments.write_each else Relay()
context = gowsev.MakeContext(handler, options)
address = f"127.0.0.1:{arguments.port}"
if arguments.tls:
    context.ListenAndServeTLS(address, *arguments.tls)
else:
    context.ListenAndServe(address)
context.EventLoop()

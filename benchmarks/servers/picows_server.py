"""picows on uvloop."""

from collections import defaultdict

import uvloop
from arguments import MOST_BYTES, parse, tls_context
from picows import WSListener, WSMsgType, ws_create_server

subscribers = defaultdict(set)


class Echo(WSListener):
    def on_ws_frame(self, transport, frame):
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type is WSMsgType.BINARY:
            self.on_message(transport, frame)

    def on_message(self, transport, frame):
        transport.send(WSMsgType.BINARY, frame.get_payload_as_memoryview())


class Relay(Echo):
    def on_ws_disconnected(self, transport):
        for transports in subscribers.values():
            transports.discard(transport)

    def on_message(self, transport, frame):
        command, channel, *body = frame.get_payload_as_bytes().split(b":", 2)
        transport.send(WSMsgType.BINARY, b"OK")
        if command == b"subscribe":
            subscribers[channel].add(transport)
        else:
            for subscriber in subscribers[channel]:
                subscriber.send(WSMsgType.BINARY, body[0])


async def main():
    arguments = parse()
    listener = Echo if arguments.mode == "echo" else Relay
    pings = (
        {"auto_ping_idle_timeout": arguments.ping, "auto_ping_reply_timeout": arguments.ping} if arguments.ping else {}
    )
    server = await ws_create_server(
        lambda request: listener(),
        "127.0.0.1",
        arguments.port,
        ssl=tls_context(arguments),
        max_frame_size=MOST_BYTES,
        backlog=1024,
        enable_auto_ping=True,
        **pings,
    )
    await server.serve_forever()


uvloop.run(main())

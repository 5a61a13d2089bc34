"""socketify: uWebSockets, in C++, under Python."""

from arguments import MOST_BYTES, parse
from socketify import App, AppOptions, CompressOptions, OpCode


def echo(ws, message, opcode):
    ws.send(message, opcode)


def relay(ws, message, opcode):
    command, channel, *body = message.split(b":", 2)
    ws.send(b"OK", OpCode.BINARY)
    if command == b"subscribe":
        ws.subscribe(channel.decode())
    else:
        app.publish(channel.decode(), body[0], OpCode.BINARY)


arguments = parse()
options = AppOptions(key_file_name=arguments.tls[1], cert_file_name=arguments.tls[0]) if arguments.tls else None
app = App(options)
app.ws(
    "/*",
    {
        "compression": CompressOptions.SHARED_COMPRESSOR if arguments.deflate else CompressOptions.DISABLED,
        "max_payload_length": MOST_BYTES,
        "max_backpressure": MOST_BYTES,
        "idle_timeout": 8 if arguments.ping else 120,  # it pings by itself; 8 is the shortest that it takes
        "message": echo if arguments.mode == "echo" else relay,
    },
)
app.listen({"port": arguments.port, "host": "127.0.0.1"}, lambda listening: None)
app.run()

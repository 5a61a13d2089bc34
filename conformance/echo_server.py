"""The server under test: echoes text as text and binary as binary, on ports of the system's choice.

usage: echo_server.py CERT KEY    prints its URLs, and serves until it is terminated

The ports are a plain one, one with TLS, and a plain one whose connections keep their compression contexts.
"""

import dataclasses
import signal
import sys

import gevent

import gowsev


class Echo(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, message)

    def TextReceived(self, context, id, text):
        context.WriteText(id, text)


def main(cert, key):
    # Case 9 sends messages of up to 16 MiB, and reads the echo only when it has sent them.
    options = gowsev.Options(max_message_bytes=64 << 20, outbox_bytes=64 << 20, compression="deflate")
    context = gowsev.MakeContext(Echo(), options)
    _, plain = context.ListenAndServe("127.0.0.1:0")
    _, tls = context.ListenAndServeTLS("127.0.0.1:0", cert, key)
    keeping = gowsev.MakeContext(Echo(), dataclasses.replace(options, compression_takeover=True))
    _, takeover = keeping.ListenAndServe("127.0.0.1:0")
    for one in (context, keeping):
        gevent.signal_handler(signal.SIGTERM, one.Shutdown)
    print(f"ws://127.0.0.1:{plain}/ wss://127.0.0.1:{tls}/ ws://127.0.0.1:{takeover}/", flush=True)
    gevent.joinall([gevent.spawn(context.EventLoop), gevent.spawn(keeping.EventLoop)])


if __name__ == "__main__":
    main(*sys.argv[1:])

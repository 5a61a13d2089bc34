"""The server under test: echoes text as text and binary as binary, on ports of the system's choice.

usage: echo_server.py CERT KEY    prints its URLs, and serves until it is terminated

The ports are a plain one, one with TLS, a plain one whose connections keep their compression contexts, and a plain one
that gets messages in several frames as they come, and writes them back in pieces.
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


class EchoInPieces(Echo):
    def FragmentReceived(self, context, id, fragment, final):
        conn = context.MustConn(id)
        conn.data = [*(conn.data or []), fragment]
        if final:
            write = context.WriteTextStream if isinstance(fragment, str) else context.WriteStream
            write(id, conn.data)
            conn.data = None


def main(cert, key):
    # Case 9 sends messages of up to 16 MiB, and reads the echo only when it has sent them.
    options = gowsev.Options(max_message_bytes=64 << 20, outbox_bytes=64 << 20, compression="deflate")
    context = gowsev.MakeContext(Echo(), options)
    _, plain = context.ListenAndServe("127.0.0.1:0")
    _, tls = context.ListenAndServeTLS("127.0.0.1:0", cert, key)
    keeping = gowsev.MakeContext(Echo(), dataclasses.replace(options, compression_takeover=True))
    _, takeover = keeping.ListenAndServe("127.0.0.1:0")
    piecewise = gowsev.MakeContext(EchoInPieces(), options)
    _, pieces = piecewise.ListenAndServe("127.0.0.1:0")
    contexts = (context, keeping, piecewise)
    for one in contexts:
        gevent.signal_handler(signal.SIGTERM, one.Shutdown)
    plain_ones = (f"ws://127.0.0.1:{port}/" for port in (plain, takeover, pieces))
    print(next(plain_ones), f"wss://127.0.0.1:{tls}/", *plain_ones, flush=True)
    gevent.joinall([gevent.spawn(one.EventLoop) for one in contexts])


if __name__ == "__main__":
    main(*sys.argv[1:])

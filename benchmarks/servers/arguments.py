"""The command line that all servers of the comparison understand: `PORT echo|relay [--deflate] [--tls CERT KEY]`."""

import argparse
import ssl

#: No scenario sends a longer message.
MOST_BYTES = 64 << 20


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("mode", choices=("echo", "relay"))
    parser.add_argument("--deflate", action="store_true", help="negotiate permessage-deflate")
    parser.add_argument("--write-each", action="store_true", help="gowsev: publish by a Write for each subscriber")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--ping", type=float, metavar="SECONDS", help="ping peers that are silent for so long")
    return parser.parse_args()


def tls_context(arguments):
    """Return the TLS context asked for, or `None`."""
    if arguments.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*arguments.tls)
    return context

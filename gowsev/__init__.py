"""gowsev: an event loop for WebSocket servers, with a Go-like, synchronous interface on gevent.

A program implements a handler with four callbacks and drives one loop:

    class Echo(gowsev.Handler):
        def MessageReceived(self, context, id, message):
            context.Write(id, message)

    context = gowsev.MakeContext(Echo())
    context.ListenAndServe("9000")
    context.EventLoop()

Importing it patches nothing, starts nothing and configures no logging.
"""

from gowsev.conn import Conn
from gowsev.context import Context, MakeContext
from gowsev.errors import (
    ConnClosing,
    ConnectionClosed,
    DialError,
    GowsevError,
    IdNotFound,
    OutboxFull,
    ProtocolError,
)
from gowsev.handler import Handler
from gowsev.health import Health
from gowsev.opening.dial import BinaryMessage, Dial, DialledConn, TextMessage
from gowsev.opening.forwarded import TrustedProxies
from gowsev.opening.http import WebSocketHandler
from gowsev.options import Options
from gowsev.redial import Redial
from gowsev.request import Accept, Headers, PeerCertificate, Reject, Request
from gowsev.stats import Stats
from gowsev.timer import Timer
from gowsev.version import __version__

__all__ = [
    "Accept",
    "BinaryMessage",
    "Conn",
    "ConnClosing",
    "ConnectionClosed",
    "Context",
    "Dial",
    "DialError",
    "DialledConn",
    "GowsevError",
    "Handler",
    "Headers",
    "Health",
    "IdNotFound",
    "MakeContext",
    "Options",
    "OutboxFull",
    "PeerCertificate",
    "ProtocolError",
    "Redial",
    "Reject",
    "Request",
    "Stats",
    "TextMessage",
    "Timer",
    "TrustedProxies",
    "WebSocketHandler",
    "__version__",
]

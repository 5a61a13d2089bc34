"""gevent-websocket as it is: a greenlet a connection, one queue, and one greenlet that owns all state."""

from collections import defaultdict

from arguments import parse
from gevent.pywsgi import WSGIServer
from gevent.queue import Queue
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler

queue = Queue()
subscribers = defaultdict(set)


def receive(environ, start_response):
    ws = environ["wsgi.websocket"]
    message = b""
    while message is not None:
        try:
            message = ws.receive()
        except WebSocketError:
            message = None  # its word for a peer that is gone
        queue.put((ws, message))
    return []


def echo(ws, message):
    ws.send(message)


def relay(ws, message):
    command, channel, *body = bytes(message).split(b":", 2)
    ws.send(b"OK")
    if command == b"subscribe":
        subscribers[channel].add(ws)
    else:
        for subscriber in subscribers[channel]:
            subscriber.send(body[0])


arguments = parse()
handle = echo if arguments.mode == "echo" else relay
tls = {"certfile": arguments.tls[0], "keyfile": arguments.tls[1]} if arguments.tls else {}
WSGIServer(
    ("127.0.0.1", arguments.port), receive, handler_class=WebSocketHandler, log=None, backlog=1024, **tls
).start()
while True:
    ws, message = queue.get()
    if message is None:
        for several in subscribers.values():
            several.discard(ws)
    else:
        try:
            handle(ws, message)
        except WebSocketError:
            pass  # a peer that is gone; its reader says so in turn

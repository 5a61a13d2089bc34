"""python-socketio under gevent with its `RedisManager`, as its documentation has it. usage: PORT URL

The handler class is that of gevent-websocket, which python-socketio uses if it is installed; gowsev brings it.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402 - what is imported must be patched

import socketio  # noqa: E402
from gevent import pywsgi  # noqa: E402
from geventwebsocket.handler import WebSocketHandler  # noqa: E402

port, url = sys.argv[1:]
server = socketio.Server(async_mode="gevent", client_manager=socketio.RedisManager(url))


@server.event
def subscribe(sid, channel):
    server.enter_room(sid, channel)
    return True


@server.event
def publish(sid, channel, text):
    server.emit("text", text, room=channel)
    return True


app = socketio.WSGIApp(server)
pywsgi.WSGIServer(("127.0.0.1", int(port)), app, handler_class=WebSocketHandler, log=None).serve_forever()

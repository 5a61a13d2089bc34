from gevent import monkey

monkey.patch_all()

import flask
from flask_socketio import SocketIO
from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler

app = flask.Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")
room = set()


@socketio.on("connect")
def connected():
    room.add(flask.request.sid)
    socketio.emit("said", f"{len(room)} here")


@socketio.on("say")
def say(text):
    socketio.emit("said", text)


@socketio.on("disconnect")
def disconnected():
    room.discard(flask.request.sid)
    socketio.emit("said", f"{len(room)} here")


server = WSGIServer(("127.0.0.1", 8000), app, handler_class=WebSocketHandler)
server.start()
print("listening on port", server.server_port, flush=True)
server.serve_forever()

import threading

import flask
from flask_sock import Sock
from simple_websocket import ConnectionClosed
from werkzeug.serving import make_server

app = flask.Flask(__name__)
sock = Sock(app)
room = set()
lock = threading.Lock()


def broadcast(text):
    with lock:  # also while sending: two threads must not send to one client at a time
        for client in room:
            try:
                client.send(text)
            except ConnectionClosed:
                pass  # its own thread takes it out


@sock.route("/chat")
def chat(client):
    with lock:
        room.add(client)
    broadcast(f"{len(room)} here")
    try:
        while True:
            broadcast(client.receive())
    finally:
        with lock:
            room.discard(client)
        broadcast(f"{len(room)} here")


server = make_server("127.0.0.1", 8000, app, threaded=True)
print("listening on port", server.port, flush=True)
server.serve_forever()

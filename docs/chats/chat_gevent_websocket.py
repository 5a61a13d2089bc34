from gevent import monkey

monkey.patch_all()

import flask
from gevent.pywsgi import WSGIServer
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler

app = flask.Flask(__name__)
room = set()


def broadcast(text):
    for client in list(room):
        try:
            client.send(text)
        except WebSocketError:
            pass  # its own greenlet takes it out


@app.route("/chat", websocket=True)
def chat():
    client = flask.request.environ["wsgi.websocket"]
    room.add(client)
    broadcast(f"{len(room)} here")
    try:
        while (text := client.receive()) is not None:
            broadcast(text)
    except WebSocketError:
        pass  # it has gone
    finally:
        room.discard(client)
        broadcast(f"{len(room)} here")
    return ""


server = WSGIServer(("127.0.0.1", 8000), app, handler_class=WebSocketHandler)
server.start()
print("listening on port", server.server_port, flush=True)
server.serve_forever()

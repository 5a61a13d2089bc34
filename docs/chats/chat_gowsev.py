from gevent import monkey

monkey.patch_all()

import flask
import gevent
from gevent.pywsgi import WSGIServer

import gowsev


class Chat(gowsev.Handler):
    def __init__(self):
        self.room = set()

    def ConnAccepted(self, context, id):
        self.room.add(id)
        context.Broadcast(self.room, f"{len(self.room)} here")

    def TextReceived(self, context, id, text):
        context.Broadcast(self.room, text)

    def ConnClosed(self, context, id):
        self.room.discard(id)
        context.Broadcast(self.room, f"{len(self.room)} here")


context = gowsev.MakeContext(Chat())
gevent.spawn(context.EventLoop)
app = flask.Flask(__name__)


@app.route("/chat", websocket=True)
def chat():
    return context.ServeHTTP


server = WSGIServer(("127.0.0.1", 8000), app, handler_class=gowsev.WebSocketHandler)
server.start()
context.ShutdownOnSignal(server)
print("listening on port", server.server_port, flush=True)
server.serve_forever()

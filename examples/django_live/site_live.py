"""The smallest Django project with a live page: it counts the visits to its page, and tells all who look at it.

python site_live.py                                                   # one process
gunicorn -k gowsev.gunicorn.Worker "site_live:make_application()"     # in this folder
"""

from gevent import monkey

monkey.patch_all()

import argparse
import os
import secrets

import django
import gevent
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from gevent.pywsgi import WSGIServer

import gowsev

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Visits</title><link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; }
  body { box-sizing: border-box; margin: 0; min-height: 100vh; display: grid; place-content: center;
         justify-items: center; padding: 1rem; font: 1.1rem/1.5 system-ui, sans-serif; text-align: center; }
  output { font-size: clamp(4rem, 25vw, 9rem); line-height: 1.1; font-weight: 700; font-variant-numeric: tabular-nums; }
  p { margin: 0; }
</style>
<output id="visits" aria-live="polite">…</output>
<p>visits since this process began.</p>
<p>Open this page in a second window, and watch the first.</p>
<script>
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/live");
  socket.onmessage = (event) => { document.getElementById("visits").textContent = event.data; };
  socket.onclose = () => { document.title = "Visits (reload)"; };
</script>
</html>
"""


class Live(gowsev.Handler):
    def __init__(self):
        self.visits = 0
        self.ids = set()

    def ConnAccepted(self, context, id):
        self.ids.add(id)
        context.WriteText(id, str(self.visits))

    def ConnClosed(self, context, id):
        self.ids.discard(id)


live = Live()


def page(request):
    live.visits += 1
    live.context.Broadcast(live.ids, str(live.visits))
    return HttpResponse(PAGE)


urlpatterns = [path("", page)]


def make_application():
    """Make the WSGI application: Django's, but for the path of the WebSockets."""
    settings.configure(
        ALLOWED_HOSTS=["localhost", "127.0.0.1", "[::1]"],
        ROOT_URLCONF=__name__,
        SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_hex(),
    )
    django.setup()
    pages = get_wsgi_application()
    live.context = gowsev.MakeContext(live)
    gevent.spawn(live.context.EventLoop)

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/live":
            return live.context.ServeHTTP(environ, start_response)
        return pages(environ, start_response)

    return application


def main():
    parser = argparse.ArgumentParser(description="A Django page that counts its visits, live.", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port (default: %(default)s; 0: any free)")
    args = parser.parse_args()
    application = make_application()
    server = WSGIServer((args.host, args.port), application, handler_class=gowsev.WebSocketHandler, log=None)
    server.start()
    live.context.ShutdownOnSignal(server)
    print(f"Listening on http://{args.host}:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

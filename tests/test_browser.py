"""A browser against pages that are served here: its WebSockets to the relay, and the cookies of an upgrade in it.

Debian's package `chromium`; skipped where it is missing.
"""

from __future__ import annotations

import json

import relay
from browser import needs_chromium
from conftest import in_thread, wait_until

import gowsev

pytestmark = needs_chromium

#: Two connections of one page: one subscribes, the other publishes; what they saw is posted back.
PAGE = b"""<!doctype html><meta charset="utf-8"><title>relay</title><script>
const saw = [];
function open(name) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket("ws://" + location.host + "/");
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(new Error(name + " could not connect"));
  });
}
function next(socket) {
  return new Promise((resolve) => {
    socket.onmessage = async (event) => resolve(await event.data.text());
  });
}
async function main() {
  const subscriber = await open("subscriber"), publisher = await open("publisher");
  let answer = next(subscriber);
  subscriber.send("subscribe:news");
  saw.push(await answer);
  const delivery = next(subscriber);
  answer = next(publisher);
  publisher.send(new TextEncoder().encode("publish:news:gr\\u00fc\\u00dfe: \\u{1F600}"));
  saw.push(await answer, await delivery);
  answer = next(publisher);
  publisher.send("nonsense");
  saw.push(await answer);
  const closed = new Promise((resolve) => { subscriber.onclose = resolve; });
  subscriber.close(3001, "done");
  const event = await closed;
  saw.push([event.code, event.reason, event.wasClean]);
  publisher.close();
}
main().catch((error) => saw.push(String(error))).finally(() =>
  fetch("/report", {method: "POST", body: JSON.stringify(saw)}));
</script>"""


def opened(page, handler, serve, browser):
    """Serve a page and a handler on one port, and open the page; return what it posts to /report, and the server."""
    reports = []

    def pages(environ, start_response):
        if environ["PATH_INFO"] == "/report":
            reports.append(json.loads(environ["wsgi.input"].read()))
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [page]

    server = serve(handler, http_app=pages)
    # In a thread: this one serves the page that the browser loads.
    in_thread(browser.open, f"http://{server.host}:{server.port}/")
    wait_until(lambda: reports, 120)
    return reports[0], server


def test_a_page_subscribes_publishes_and_closes(serve, browser):
    service = relay.Service()
    report, server = opened(PAGE, service, serve, browser)
    assert report == ["OK", "OK", "gr\u00fc\u00dfe: \U0001f600", "Invalid message", [3001, "", True]]
    wait_until(lambda: not server.context.Stats().connections)
    assert not service.channels_of
    assert not service.ids_of


#: A page that opens one connection after another, and reports its cookies in between.
COOKIES = b"""<!doctype html><meta charset="utf-8"><title>cookies</title><script>
function open() {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket("ws://" + location.host + "/");
    socket.onopen = () => resolve(document.cookie);
    socket.onerror = () => reject(new Error("could not connect"));
  });
}
async function main() {
  return [document.cookie, await open(), await open()];
}
main().catch(String).then((saw) => fetch("/report", {method: "POST", body: JSON.stringify(saw)}));
</script>"""


class Visits(gowsev.Handler):
    """Counts a browser's visits in its cookies, one that its scripts see and one that they don't."""

    def __init__(self):
        self.came_with = []

    def ConnRequested(self, context, request):
        self.came_with.append(request.headers.get("Cookie", ""))
        visit = len(self.came_with)
        headers = [("Set-Cookie", f"visit={visit}"), ("Set-Cookie", f"secret={visit}; HttpOnly")]
        return gowsev.Accept(headers=headers)


def test_a_browser_keeps_the_cookies_of_an_upgrade(serve, browser):
    handler = Visits()
    report, _ = opened(COOKIES, handler, serve, browser)
    assert report == ["", "visit=1", "visit=2"]
    assert [sorted(cookies.split("; ")) for cookies in handler.came_with] == [[""], ["secret=1", "visit=1"]]

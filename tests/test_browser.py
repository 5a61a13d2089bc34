"""A browser's own WebSocket against the relay: headless Chromium opens a page that the relay's port serves.

Debian's package `chromium`; skipped where it is missing.
"""

from __future__ import annotations

import json

import relay
from browser import needs_chromium
from conftest import in_thread, wait_until

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


def test_a_page_subscribes_publishes_and_closes(serve, browser):
    reports = []

    def pages(environ, start_response):
        if environ["PATH_INFO"] == "/report":
            reports.append(json.loads(environ["wsgi.input"].read()))
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [PAGE]

    service = relay.Service()
    server = serve(service, http_app=pages)
    # In a thread: this one serves the page that the browser loads.
    in_thread(browser.open, f"http://{server.host}:{server.port}/")
    wait_until(lambda: reports, 120)
    assert reports[0] == ["OK", "OK", "gr\u00fc\u00dfe: \U0001f600", "Invalid message", [3001, "", True]]
    wait_until(lambda: not server.context.Stats().connections)
    assert not service.channels_of
    assert not service.ids_of

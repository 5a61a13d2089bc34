"""A browser's own WebSocket against the relay: headless Chromium opens a page that the relay's port serves.

Debian's package `chromium`; skipped where it is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import relay
from conftest import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")

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


def test_a_page_subscribes_publishes_and_closes(serve, tmp_path):
    reports = []

    def pages(environ, start_response):
        if environ["PATH_INFO"] == "/report":
            reports.append(json.loads(environ["wsgi.input"].read()))
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [PAGE]

    service = relay.Service()
    server = serve(service, http_app=pages)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", f"http://{server.host}:{server.port}/"]
    with (tmp_path / "chromium.log").open("wb") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: reports or browser.poll() is not None, 120)
    finally:
        browser.terminate()
        browser.wait(30)
    assert reports, (tmp_path / "chromium.log").read_text(errors="replace")[-3000:]
    assert reports[0] == ["OK", "OK", "gr\u00fc\u00dfe: \U0001f600", "Invalid message", [3001, "", True]]
    wait_until(lambda: not server.context.Stats().connections)
    assert not service.channels_of
    assert not service.ids_of

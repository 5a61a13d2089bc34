"""Headless Chromium, driven as a person would drive it: keys, clicks and looking, through its debugging port."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess

import pytest
import websocket
from conftest import PATIENCE, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")


class Browser:
    """A running browser, which begins one profile after another."""

    def __init__(self, folder):
        self.log = folder / "chromium.log"
        with self.log.open("wb") as log:
            command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        ports = folder / "profile" / "DevToolsActivePort"
        wait_until(lambda: self.process.poll() is not None or (ports.exists() and "\n" in ports.read_text()), 120)
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        port, self._path = ports.read_text().split()
        self._host = f"ws://127.0.0.1:{port}"

    def profile(self):
        """Begin a profile, which shares no cookie, storage or cache with others. A context manager."""
        return Profile(self._host, self._path)

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE)


class Debugger:
    """A connection to the debugging port."""

    def __init__(self, address):
        self._connection = websocket.create_connection(
            address, timeout=PATIENCE, suppress_origin=True, http_no_proxy=["*"]
        )
        self._numbers = itertools.count(1)
        self.complaints = []

    def call(self, method, **parameters):
        answer = self._ask(method, parameters)
        assert "error" not in answer, answer
        return answer["result"]

    def _ask(self, method, parameters):
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv())
            if answer.get("method") == "Log.entryAdded":
                self.complaints.append(answer["params"]["entry"]["text"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(answer["params"]["exceptionDetails"]))
            elif answer.get("id") == number:
                return answer

    def close(self):
        self._connection.close()


class Profile:
    """What a person has open; each tab is a page of its own."""

    def __init__(self, host, path):
        self._host = host
        self._browser = Debugger(host + path)
        self._id = self._browser.call("Target.createBrowserContext")["browserContextId"]
        self._tabs = []

    def open(self, url, width=1280, height=800):
        target = self._browser.call("Target.createTarget", url="about:blank", browserContextId=self._id)["targetId"]
        tab = Tab(f"{self._host}/devtools/page/{target}", url, width, height)
        self._tabs.append(tab)
        return tab

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for tab in self._tabs:
            tab.close()
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._id)
        self._browser.close()


class Tab(Debugger):
    def __init__(self, address, url, width, height):
        super().__init__(address)
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.go(url)

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def look(self, expression):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression):
        return wait_until(lambda: self.look(expression))

    def wait_for_text(self, selector, text):
        """Wait until the first such element shows this text; meanwhile another page may take the place of this one."""

        def shows():
            asked = {"expression": f"document.querySelector({selector!r})?.innerText", "returnByValue": True}
            answer = self._ask("Runtime.evaluate", asked)  # an error while one page gives way to another
            return answer.get("result", {}).get("result", {}).get("value") == text

        wait_until(shows, PATIENCE * 2)

    def fill(self, selector, text):
        self.look(f"document.querySelector({selector!r}).value = {text!r}")

    def text(self, selector):
        return self.look(f"document.querySelector({selector!r}).textContent")

    def texts(self, selector):
        return self.look(f"[...document.querySelectorAll({selector!r})].map((item) => item.textContent)")

    def click(self, selector):
        """Click on the element once it stands still, in the tab that is then in front."""
        self.call("Page.bringToFront")
        where = f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())"
        drawn = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
        box = json.loads(self.wait_for(f"(async (old) => (await {drawn}, {where}) === old && old)({where})"))
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    def type(self, text):
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key):
        """Press Tab, Enter or the like."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")}[key]
        name = " " if key == "Space" else key
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=key, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=key, windowsVirtualKeyCode=code)

    def focus(self):
        return self.look("document.activeElement.id")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

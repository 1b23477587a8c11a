"""One tab of a headless Chromium without any network, steered by the DevTools protocol."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request

import pytest
import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-sync --disable-component-update
    --disable-dev-shm-usage --remote-debugging-port=0""".split()
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
PHONE, DESKTOP = (375, 812), (1280, 900)  # pixels


class Browser:
    """A tab. `complaints` collects errors of the console and requests that failed.

    folder: an empty one for the browser's profile.
    """

    def __init__(self, folder):
        command = [CHROMIUM, *FLAGS, NO_NETWORK, f"--user-data-dir={folder}", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        port_file = folder / "DevToolsActivePort"
        lines = wait_for(lambda: port_file.exists() and port_file.read_text().split())
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        tabs = json.load(direct.open(f"http://127.0.0.1:{lines[0]}/json/list"))
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self.socket = websocket.create_connection(
            address, suppress_origin=True, timeout=60, http_no_proxy=["127.0.0.1"]
        )
        self.numbers, self.complaints, self.loaded = itertools.count(), [], False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        """The result of a method of the protocol."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        answer = self.hear()
        while answer.get("id") != number:
            answer = self.hear()
        assert "error" not in answer, answer
        return answer["result"]

    def hear(self):
        """The next message. Notes whether it says that the page is loaded, or complains."""
        message = json.loads(self.socket.recv())
        self.loaded |= message.get("method") == "Page.loadEventFired"
        if is_complaint(message.get("method"), message.get("params", {})):
            self.complaints.append(json.dumps(message["params"]))
        return message

    def open(self, address, width, height):
        """Load a page in a window of this size in pixels."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.loaded = False
        assert "errorText" not in self.ask("Page.navigate", url=address), address
        while not self.loaded:
            self.hear()

    def evaluate(self, expression):
        """The value of a JavaScript expression, once it is resolved."""
        result = self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        return result["result"]["value"]

    def close(self):
        self.process.kill()
        self.process.wait()


def is_complaint(kind, said):
    """Whether a message of the protocol is an error of the console or a failed request."""
    if kind == "Runtime.consoleAPICalled":
        return said["type"] in ("error", "assert")
    if kind == "Log.entryAdded":
        return said["entry"]["level"] == "error"
    if kind == "Network.loadingFailed":
        return not said.get("canceled")
    if kind == "Network.responseReceived":
        return said["response"]["status"] >= 400
    return kind == "Runtime.exceptionThrown"


def wait_for(get, seconds=60):
    """What `get` returns, as soon as that is true. Fails after so many seconds."""
    for _ in range(10 * seconds):
        if found := get():
            return found
        time.sleep(0.1)
    pytest.fail(f"nothing came in {seconds} seconds")

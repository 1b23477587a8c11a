"""The web site as a reader gets it: built with warnings as errors, then every page opened in a headless Chromium without any network.

    make test ARGS='-m site'

Needs Chromium for the tests of what is shown (Debian: apt-get install chromium); without it those are skipped. With a folder in the
variable SCREENSHOTS, what they see of each page is kept there, to be looked at.
"""

import base64
import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import websocket

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync
    --disable-component-update --disable-dev-shm-usage --remote-debugging-port=0""".split()
PHONE, DESKTOP = (375, 812), (1280, 900)  # pixels
pytestmark = pytest.mark.site

# Asked of a page once its equations are set. overflow: pixels that it is wider than the window. unset: equations not set, or wrongly.
# broken, nameless: pictures that do not load, or have no alternative text. (complaints: errors of the console, requests that failed.)
PROBE = r"""(async () => {
  if (window.MathJax) await MathJax.startup.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
  const boxes = [...document.querySelectorAll("html, .content")], maths = [...document.querySelectorAll(".math")];
  return JSON.stringify({
    overflow: Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth)),
    unset: maths.filter(node => !node.querySelector("mjx-container") || node.querySelector("mjx-merror")).map(node => node.textContent),
    equations: maths.length,
    broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
    nameless: [...document.images].filter(image => !image.alt.trim()).map(image => image.src),
  });
})()"""


class Page(HTMLParser):
    """links: what <a> points to; parts: what the browser fetches to show the page; ids: where a link may point."""

    def __init__(self, text):
        super().__init__()
        self.links, self.parts, self.ids = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id") or "")
        link = tag == "a" or (
            tag == "link" and attributes.get("rel") in ("index", "search", "next", "prev")
        )
        (self.links if link else self.parts).extend(
            filter(None, map(attributes.get, ("href", "src", "srcset", "data")))
        )


class Browser:
    """One tab of Chromium, steered by the DevTools protocol; `complaints` gathers console errors and requests that failed."""

    def __init__(self, folder):
        command = [
            CHROMIUM,
            *FLAGS,
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={folder}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = wait_for(
            lambda: next(
                (
                    line
                    for file in folder.glob("DevToolsActivePort")
                    for line in file.read_text().split()
                ),
                "",
            )
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        tabs = json.load(direct.open(f"http://127.0.0.1:{port}/json/list"))
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self.socket = websocket.create_connection(
            address, suppress_origin=True, timeout=60, http_no_proxy=["127.0.0.1"]
        )
        self.numbers, self.complaints, self.loaded = itertools.count(), [], False
        for domain in ("Page", "Runtime", "Log", "Network"):  # from now on they tell
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := self.hear()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def hear(self):
        message = json.loads(self.socket.recv())
        kind, said = message.get("method"), message.get("params", {})
        self.loaded |= kind == "Page.loadEventFired"
        if (
            kind == "Runtime.exceptionThrown"
            or (kind == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"))
            or (kind == "Log.entryAdded" and said["entry"]["level"] == "error")
            or (kind == "Network.loadingFailed" and not said.get("canceled"))
            or (kind == "Network.responseReceived" and said["response"]["status"] >= 400)
        ):
            self.complaints.append(json.dumps(said))
        return message

    def open(self, address, width, height):
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
        return self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )["result"]["value"]


def wait_for(get, seconds=60):
    """What `get` returns, once that is something, within this time."""
    for _ in range(10 * seconds):
        if found := get():
            return found
        time.sleep(0.1)
    pytest.fail("nothing came")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a freshly built site."""
    output = tmp_path_factory.mktemp("site") / "html"
    done = subprocess.run(
        [sys.executable, ROOT / "reproduce" / "site" / "conf.py", output],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    """A tab of Chromium, and `home`, where it finds the site."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab = Browser(tmp_path_factory.mktemp("chromium"))
    tab.home = f"http://127.0.0.1:{server.server_port}"
    yield tab
    tab.process.terminate()
    tab.process.wait()
    server.shutdown()


def test_it_holds_every_notebook_page_and_module(pages):
    notebooks = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    written = {f"{path.stem}.html" for path in (ROOT / "reproduce" / "site").glob("*.md")}
    assert notebooks | written | {"index.html", "api/bpgo.html", "search.html"} <= set(pages)
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "bpgo").rglob("*.py")
        if path.name[0] != "_"
    }
    assert modules <= {name.removeprefix("module-") for page in pages.values() for name in page.ids}


def test_a_page_loads_nothing_from_elsewhere(pages, site):
    outside = [
        (name, part)
        for name, page in pages.items()
        for part in page.parts
        if re.match(r"(https?:)?//", part)
    ]
    assert outside == []
    for style in site.rglob("*.css"):
        assert not re.search(
            r"url\(\s*[\"']?(https?:)?//|@import", style.read_text(encoding="utf-8")
        ), style


def test_no_link_is_broken(pages, site):
    broken = []
    for name, page in pages.items():
        for link in {*page.links, *page.parts}:
            if re.match(r"(https?|mailto|data):", link):
                continue
            path, _, anchor = link.partition("#")
            target = (
                (site / name).parent.joinpath(path.partition("?")[0]).resolve()
                if path
                else site / name
            )
            known = pages.get(os.path.relpath(target, site))
            if not target.is_file() or (known and anchor not in known.ids):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_every_page_is_shown_without_fault(browser, pages):
    faults, equations = {}, 0
    for page, (width, height) in itertools.product(pages, (PHONE, DESKTOP)):
        browser.complaints = []
        browser.open(f"{browser.home}/{page}", width, height)
        seen = json.loads(browser.evaluate(PROBE)) | {"complaints": browser.complaints}
        equations += seen.pop("equations")
        if any(seen.values()):
            faults[page, width] = {fault: what for fault, what in seen.items() if what}
        if "SCREENSHOTS" in os.environ:
            picture = browser.ask("Page.captureScreenshot", format="png")["data"]
            Path(os.environ["SCREENSHOTS"], f"{page.replace('/', '-')}-{width}.png").write_bytes(
                base64.b64decode(picture)
            )
    assert faults == {}
    assert equations > 20  # otherwise the probe sees none


def test_search_finds_a_word(browser):
    browser.open(f"{browser.home}/search.html?q=ambiguous", *DESKTOP)
    found = "document.querySelectorAll('.search li').length"
    assert wait_for(lambda: browser.evaluate(found))

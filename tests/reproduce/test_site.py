"""The web site as a reader gets it.

    make test ARGS='-m site'

It is built with warnings as errors; then every page is opened in a headless Chromium without any
network. Without Chromium (Debian: apt-get install chromium) the tests of what is shown are skipped.
If the variable SCREENSHOTS names a folder, an image of each page is kept there.
"""

import base64
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.reproduce.browser import CHROMIUM, DESKTOP, PHONE, Browser, wait_for
from tests.reproduce.driver import ROOT

pytestmark = pytest.mark.site

# What is asked of a page once its equations are set.
#   overflow: pixels that it is wider than the window
#   unset: equations that are not set, or wrongly
#   broken, nameless: images that do not load, or have no alternative text
PROBE = r"""(async () => {
  if (window.MathJax) await MathJax.startup.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
  const boxes = [...document.querySelectorAll("html, .content")];
  const maths = [...document.querySelectorAll(".math")];
  const isUnset = node =>
    !node.querySelector("mjx-container") || node.querySelector("mjx-merror");
  return JSON.stringify({
    overflow: Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth)),
    unset: maths.filter(isUnset).map(node => node.textContent),
    equations: maths.length,
    broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
    nameless: [...document.images].filter(image => !image.alt.trim()).map(image => image.src),
  });
})()"""


class Page(HTMLParser):
    """links: what <a> points to. parts: what a browser fetches to show the page. ids: targets."""

    def __init__(self, text):
        super().__init__()
        self.links, self.parts, self.ids = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id") or "")
        related = attributes.get("rel") in ("index", "search", "next", "prev")
        is_link = tag == "a" or (tag == "link" and related)
        targets = filter(None, map(attributes.get, ("href", "src", "srcset", "data")))
        (self.links if is_link else self.parts).extend(targets)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a freshly built site."""
    output = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, ROOT / "reproduce" / "site" / "conf.py", output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def pages(site):
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path.relative_to(site).as_posix()] = Page(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    """A tab of Chromium. Its attribute `home` is the address of the site."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=site)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab = Browser(tmp_path_factory.mktemp("chromium"))
    tab.home = f"http://127.0.0.1:{server.server_port}"
    yield tab
    tab.close()
    server.shutdown()


def test_it_contains_every_notebook_page_and_module(pages):
    notebooks = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    written = {f"{path.stem}.html" for path in (ROOT / "reproduce" / "site").glob("*.md")}
    assert notebooks and written
    assert notebooks | written | {"index.html", "api/bpgo.html", "search.html"} <= set(pages)
    modules = set()
    for path in (ROOT / "bpgo").rglob("*.py"):
        if path.name[0] != "_":
            modules.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert modules
    ids = {name.removeprefix("module-") for page in pages.values() for name in page.ids}
    assert modules <= ids


def test_a_page_loads_nothing_from_elsewhere(pages, site):
    outside = []
    for name, page in pages.items():
        outside += [(name, part) for part in page.parts if re.match(r"(https?:)?//", part)]
    assert outside == []
    styles = list(site.rglob("*.css"))
    assert styles
    for style in styles:
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", text), style


def test_no_link_is_broken(pages, site):
    checked, broken = 0, []
    for name, page in pages.items():
        for link in {*page.links, *page.parts}:
            if re.match(r"(https?|mailto|data):", link):
                continue
            checked += 1
            path, _, anchor = link.partition("#")
            target = site / name
            if path:
                target = target.parent.joinpath(path.partition("?")[0]).resolve()
            known = pages.get(os.path.relpath(target, site))
            if not target.is_file() or (known and anchor not in known.ids):
                broken.append(f"{name}: {link}")
    assert checked > 100 and broken == []


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
            image = browser.ask("Page.captureScreenshot", format="png")["data"]
            file = Path(os.environ["SCREENSHOTS"], f"{page.replace('/', '-')}-{width}.png")
            file.write_bytes(base64.b64decode(image))
    assert faults == {}
    assert equations > 20  # otherwise the probe sees none


def test_search_finds_a_word(browser):
    browser.open(f"{browser.home}/search.html?q=ambiguous", *DESKTOP)
    found = "document.querySelectorAll('.search li').length"
    assert wait_for(lambda: browser.evaluate(found))

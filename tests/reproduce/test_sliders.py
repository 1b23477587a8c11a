"""The sliders of notebook 11 in a live kernel: a slider is moved in JupyterLab, the figure changes.

make test ARGS='-m site'
"""

import base64
import os
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from reproduce import notebook_source
from tests.reproduce.browser import CHROMIUM, DESKTOP, Browser, wait_for

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
]
NAME = "11_inside_an_iteration"

# The images of the panel, by the length and the end of their data, once its six sliders are there.
IMAGES = """(() => {
  const isShown = document.querySelectorAll(".jp-OutputArea-output img").length &&
    document.querySelectorAll(".widget-slider").length >= 6;
  const images = document.querySelectorAll(
    ".widget-output img, .jp-LinkedOutputView img, .widget-interact img");
  return isShown ? [...images].map(image => image.src.length + image.src.slice(-400)) : [];
})()"""
OPENED = """(async () => {
  if (!window.jupyterapp) return false;
  await jupyterapp.restored;
  const panel = [...jupyterapp.shell.widgets("main")].find(widget => widget.sessionContext);
  if (!panel) return false;
  jupyterapp.shell.activateById(panel.id);
  await panel.sessionContext.ready;
  return true;
})()"""
RUN = "jupyterapp.commands.execute('notebook:run-all-cells'), true"
TAKE = """(() => {
  const handle = document.querySelector(".widget-slider .noUi-handle");
  handle.scrollIntoView({block: "center"});
  handle.focus();
  return document.activeElement === handle;
})()"""


@pytest.fixture
def lab(tmp_path):
    """The address of the notebook, with its sliders on, in a JupyterLab."""
    notebook = notebook_source.read(notebook_source.source(NAME))
    off, on = "interactive: bool = False", "interactive: bool = True"
    for cell in notebook.cells:
        if "parameters" in notebook_source.tags(cell):
            assert off in cell.source
            cell.source = cell.source.replace(off, on)
    nbformat.write(notebook, tmp_path / f"{NAME}.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--port={port}",
        "--ServerApp.token=",
        "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={tmp_path}",
    ]
    settings = {
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    log = tmp_path / "lab.log"
    with log.open("w") as stream:
        environment = os.environ | settings
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    wait_for(lambda: "is running at" in log.read_text())
    yield f"http://127.0.0.1:{port}/lab/tree/{NAME}.ipynb"
    process.terminate()
    process.wait()


@pytest.fixture
def browser(tmp_path):
    (tmp_path / "profile").mkdir()
    tab = Browser(tmp_path / "profile")
    yield tab
    tab.close()


def press_right(browser):
    for kind in ("keyDown", "keyUp"):
        browser.ask(
            "Input.dispatchKeyEvent",
            type=kind,
            key="ArrowRight",
            code="ArrowRight",
            windowsVirtualKeyCode=39,
        )


def test_a_slider_that_is_moved_changes_the_figure(lab, browser):
    browser.open(lab, *DESKTOP)
    wait_for(lambda: browser.evaluate(OPENED))
    browser.evaluate(RUN)
    before = wait_for(lambda: browser.evaluate(IMAGES), 180)
    assert browser.evaluate(TAKE), "the keyboard does not reach the first slider, alpha"
    for _ in range(5):
        press_right(browser)

    def has_changed():
        now = browser.evaluate(IMAGES)
        return now and now[0] != before[0]

    wait_for(has_changed)
    if folder := os.environ.get("SCREENSHOTS"):
        image = browser.ask("Page.captureScreenshot")["data"]
        Path(folder, "sliders.png").write_bytes(base64.b64decode(image))

"""The sliders of notebook 11 in a live kernel: JupyterLab in a headless Chromium, a slider moved, the figure changed.

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

from reproduce import notebooks
from tests.test_site import CHROMIUM, DESKTOP, Browser, wait_for

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
]
NAME = "11_inside_an_iteration"

# The panel's pictures, by length and end of what they are made of, once its six sliders are there.
PICTURES = """[...document.querySelectorAll(".jp-OutputArea-output img")].length && document.querySelectorAll(".widget-slider").length >= 6
  ? [...document.querySelectorAll(".widget-output img, .jp-LinkedOutputView img, .widget-interact img")].map(
      image => image.src.length + image.src.slice(-400)) : []"""
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
    """The address of a JupyterLab that has the notebook, with its sliders on."""
    notebook = notebooks.read(notebooks.source(NAME))
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = cell.source.replace(
                "interactive: bool = False", "interactive: bool = True"
            )
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
    with (tmp_path / "lab.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    wait_for(lambda: "is running at" in (tmp_path / "lab.log").read_text())
    yield f"http://127.0.0.1:{port}/lab/tree/{NAME}.ipynb"
    process.terminate()
    process.wait()


def test_a_slider_that_is_moved_changes_the_figure(lab, tmp_path):
    (tmp_path / "profile").mkdir()
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(lab, *DESKTOP)
        wait_for(lambda: browser.evaluate(OPENED))
        browser.evaluate(RUN)
        before = wait_for(lambda: browser.evaluate(PICTURES), 180)
        assert browser.evaluate(TAKE), "the first slider, alpha, cannot be reached by the keyboard"
        for _ in range(5):
            for kind in ("keyDown", "keyUp"):
                browser.ask(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key="ArrowRight",
                    code="ArrowRight",
                    windowsVirtualKeyCode=39,
                )
        wait_for(lambda: (now := browser.evaluate(PICTURES)) and now[0] != before[0])
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder, "sliders.png").write_bytes(
                base64.b64decode(browser.ask("Page.captureScreenshot")["data"])
            )
    finally:
        browser.process.kill()
        browser.process.wait()

"""Helpers for the tests that start `reproduce/run.py` in another process."""

import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "reproduce" / "run.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
PATIENCE = 600  # seconds that a busy machine may need; a minute is plenty otherwise
NOTEBOOK = """\
# ---
# jupyter:
#   kernelspec: {display_name: Python 3 (ipykernel), language: python, name: python3}
# ---

# %% tags=["parameters"]
seeds: list = [0]  # one
objectives: list = ["grpo"]  # rows of the table
output: str = ""  # folder of the record

# %%
import os, time
from bpgo.records import record

(seed,) = seeds
with open("ran", "a") as log:
    log.write(f"{seed} {os.environ['OMP_NUM_THREADS']}\\n")
while os.path.exists(f"wait{seed}"):
    time.sleep(0.1)
if os.path.exists(f"fail{seed}"):
    raise ValueError(f"seed {seed} was asked to fail")

# %%
values = {row: {"reward": seed + i, "held_out": None}
          for i, row in enumerate(["before", *objectives])}
whole = record("text_to_image", values, output=output)
"""
PROFILE = (
    "t2i: {notebook: 02_train, record: text_to_image, "
    "parameters: {objectives: [grpo, bpgo]}, seeds: SEEDS}\n"
)


def make_root(folder, seeds=(0, 1, 2)):
    """Fill a folder with a profile of one notebook.

    The notebook waits while the file `wait<seed>` exists and fails if `fail<seed>` exists. It adds
    a line to the file `ran` when it starts.
    """
    for name in ("notebooks", "reproduce", "bpgo"):
        (folder / name).mkdir()
    (folder / "notebooks" / "02_train.py").write_text(NOTEBOOK)
    set_seeds(folder, seeds)
    return folder


def set_seeds(root, seeds):
    (root / "reproduce" / "quick.yaml").write_text(PROFILE.replace("SEEDS", str(list(seeds))))


@contextlib.contextmanager
def processes():
    """Yields a function that starts `run.py` in a folder. Kills what is left of them in the end."""
    started = []

    def start(root):
        process = subprocess.Popen(
            [sys.executable, RUN, "--root", root],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def end(process):
    """Exit code, output and errors of a process, once it has ended."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_until(condition, process):
    """Wait for a condition while the process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, "nothing happened"
        time.sleep(0.1)


def ran(root):
    """The seeds whose notebook was started, in order, as text."""
    log = root / "ran"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def unfinished(root):
    """The output files that Snakemake has not noted as complete. Their names are in base64."""
    names = [path.name for path in (root / ".snakemake" / "incomplete").glob("*")]
    return [base64.b64decode(name).decode() for name in names]


def record_of(root, seed):
    return root / "reproduce" / "results" / "quick" / f"t2i-seed{seed}" / "text_to_image.json"


def stamp_of(root, seed):
    return root / "runs" / "quick" / f"t2i-seed{seed}" / "text_to_image.made"

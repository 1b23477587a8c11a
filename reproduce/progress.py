"""How far the jobs of a profile are: runs done of how many, and the time left."""

import contextlib
import os
import threading
from pathlib import Path

from tqdm import tqdm

from reproduce.notebook_source import parameters, read, source

SECONDS = 2.0  # between two looks at the folders
FORM = "{desc}, {percentage:.0f} % of the work; elapsed {elapsed}, left {remaining}"


def runs_of(job):
    """The folders of a job's training runs, {folder: iterations}. Empty if it trains nothing."""
    given = parameters(read(source(job["notebook"], "."))) | job["given"]
    if not {"objectives", "seeds", "iterations"} <= given.keys():
        return {}
    folder = Path(job["record"]).parent / "runs"
    names = [f"{objective}-{seed}" for objective in given["objectives"] for seed in given["seeds"]]
    return {folder / name: given["iterations"] for name in names}


def share(folder, iterations):
    """How much of a run is done, from 0 to 1. It is 1 only if its model is exported."""
    if (folder / "final").is_dir():
        return 1.0
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().count(b"\n") if log.is_file() else 0
    return min(lines / max(1, iterations), 0.99)


def shares(jobs):
    """The share of every run. A job that trains nothing counts as one run.

    jobs: [(record, stamp, runs)] with the result of `runs_of`.
    """
    found = []
    for record, stamp, runs in jobs:
        if os.path.exists(record) and os.path.exists(stamp):
            found += [1.0] * max(1, len(runs))
        else:
            found += [share(*run) for run in runs.items()] or [0.0]
    return found


@contextlib.contextmanager
def shown(jobs):
    """Show a line with the progress of these jobs, as `shares` takes them, in this context."""
    first = shares(jobs)
    ended = threading.Event()
    with tqdm(total=len(first), initial=sum(first), bar_format=FORM, leave=True) as bar:

        def look():
            while True:
                last = ended.wait(SECONDS)
                now = shares(jobs)
                done = sum(one == 1.0 for one in now)
                bar.set_description_str(f"{done} of {len(now)} runs are complete", refresh=False)
                bar.n = sum(now)
                bar.refresh()
                if last:
                    return

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

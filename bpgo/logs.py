"""The logs of a run: one file per kind, one JSON object per line."""

from __future__ import annotations

import json
import math
from pathlib import Path

from bpgo.evaluation import Scores
from bpgo.files import write_atomic

FILES = ("metrics", "timing", "evaluations", "warnings")


def append_row(run: Path, name: str, row: dict) -> None:
    """Append a row to the log of this name."""
    with (run / f"{name}.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def drop_rows_after(run: Path, iteration: int) -> None:
    """Remove what was logged after a checkpoint, because the resumed run logs it again.

    An evaluation precedes the updates of its iteration, so the one at the checkpoint's iteration is
    repeated too. An incomplete last line, left by a kill, is also removed.
    """
    for name in FILES:
        file = run / f"{name}.jsonl"
        if not file.exists():
            continue
        last = iteration - 1 if name == "evaluations" else iteration
        lines = [line for line in file.read_text().splitlines(True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["iteration"] <= last]
        write_atomic(file, "".join(kept))


def evaluation_row(iteration: int, found: Scores) -> dict:
    """A row of evaluations.jsonl: the mean of each metric and, under `scores`, all its values."""
    row = {"iteration": iteration}
    for name, mean in found.means().items():
        row[name] = _or_none(mean)
    row["scores"] = {
        name: [[_or_none(value) for value in samples] for samples in values.tolist()]
        for name, values in found.scores.items()
    }
    return row


def _or_none(value: float) -> float | None:
    """The value, or None if it is NaN, which JSON cannot represent."""
    return None if math.isnan(value) else value

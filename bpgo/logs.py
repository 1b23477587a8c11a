"""The logs of a run: one file per kind, one JSON object per line."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

from bpgo.evaluation import Scores
from bpgo.files import write_atomic

FILES = ("metrics", "timing", "evaluations", "warnings")


def append_row(run: Path, name: str, row: dict) -> None:
    """Append a row to the log of this name."""
    with (run / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def has_rows(run: Path, name: str) -> bool:
    """Whether the log of this name has a complete line."""
    file = run / f"{name}.jsonl"
    return file.is_file() and b"\n" in file.read_bytes()


def drop_rows_after(run: Path, iteration: int) -> None:
    """Remove what was logged after a checkpoint, because the resumed run logs it again.

    An evaluation precedes the updates of its iteration, so the one at the checkpoint's iteration is
    repeated too. An incomplete last line, left by a kill, is also removed. Damaged lines are moved
    to `{name}.jsonl.damaged`, with a warning.
    """
    for name in FILES:
        file = run / f"{name}.jsonl"
        if not file.exists():
            continue
        last = iteration - 1 if name == "evaluations" else iteration
        lines = [line for line in file.read_bytes().splitlines(True) if line.endswith(b"\n")]
        numbers = [_iteration(line) for line in lines]
        kept = [line for line, n in zip(lines, numbers, strict=True) if n is not None and n <= last]
        damaged = [line for line, n in zip(lines, numbers, strict=True) if n is None]
        if damaged:
            aside = run / f"{name}.jsonl.damaged"
            with aside.open("ab") as stream:
                stream.writelines(damaged)
            where = ", ".join(str(i) for i, n in enumerate(numbers, 1) if n is None)
            warnings.warn(
                f"{file} was damaged in line {where}: moved to {aside.name}. The run continues",
                stacklevel=2,
            )
        write_atomic(file, b"".join(kept))


def _iteration(line: bytes) -> int | None:
    """The iteration of a row; None if the line is damaged."""
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, TypeError, KeyError):
        return None
    return iteration if isinstance(iteration, int) else None


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

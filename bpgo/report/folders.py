"""What a report reads from a run's folder. Damaged files are noted as problems, never raised."""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bpgo.checkpoint import checkpoints, iteration_of
from bpgo.config import Config
from bpgo.run_folder import changes_nothing
from bpgo.settings import Setting, as_text, flatten, list_settings

KNOWN = {setting.name: setting for setting in list_settings(Config)}


@dataclass
class RunFolder:
    """One run. settings: text by dotted name. The logs are rows, in order of their iterations."""

    path: Path
    settings: dict[str, str]
    metrics: list[dict]
    timing: list[dict]
    evaluations: list[dict]
    warnings: list[dict]
    ancestry: dict
    checkpoints: list[int]
    state: str
    problems: list[str]
    group: str = ""  # the label of its group

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def iteration(self) -> int:
        return self.metrics[-1]["iteration"] if self.metrics else 0

    def setting(self, name: str, otherwise: str = "") -> str:
        """The value of a setting, or its default."""
        default = KNOWN[name].default if name in KNOWN else otherwise
        return self.settings.get(name, default)


def read_folder(path: Path) -> RunFolder:
    """The run in a folder, complete or not. Raises FileNotFoundError if the folder has no run."""
    if not any((path / name).is_file() for name in ("config.json", "metrics.jsonl")):
        raise FileNotFoundError(
            f"{path} is not the folder of a run: it has neither config.json nor metrics.jsonl"
        )
    problems: list[str] = []
    logs = {name: _rows(path, name, problems) for name in ("metrics", "timing", "evaluations")}
    warnings = _rows(path, "warnings", problems, repeated=True)
    settings = flatten(_object(path / "config.json", problems, needed=True))
    ancestry = _object(path / "ancestry.json", problems)
    run = RunFolder(
        path=path,
        settings={name: as_text(value) for name, value in settings.items()},
        **logs,
        warnings=warnings,
        ancestry=ancestry,
        checkpoints=[iteration_of(place) for place in checkpoints(path)],
        state="",
        problems=problems,
    )
    run.state = _state(run)
    return run


def known_setting(name: str) -> Setting | None:
    """The setting of this name, which may contain the number of an entry of a list."""
    return KNOWN.get(re.sub(r"\.\d+(?=\.)", "", name))


def is_default(name: str, value: str) -> bool:
    setting = known_setting(name)
    return setting is not None and setting.default == value


def label_groups(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Runs that differ only in their seed, by a label that says how the groups differ."""
    keys: dict[tuple, list[RunFolder]] = {}
    for run in runs:
        # Runs of earlier versions lack some settings, which then have their defaults.
        given = [(n, v) for n, v in run.settings.items() if not is_default(n, v)]
        kept = sorted((n, v) for n, v in given if n != "seed" and not changes_nothing(n))
        keys.setdefault(tuple(kept) or (("folder", str(run.path)),), []).append(run)
    varying = differing([dict(key) for key in keys])
    groups: dict[str, list[RunFolder]] = {}
    for key, members in keys.items():
        label = _label(dict(key), varying, members[0])
        if label in groups:
            label += f" ({members[0].name})"
        while label in groups:
            label += "'"
        groups[label] = members
        for run in members:
            run.group = label
    return groups


def differing(tables: Sequence[dict]) -> list[str]:
    """The names whose values are not the same in all tables, in order of their first appearance."""
    names = dict.fromkeys(name for table in tables for name in table)
    return [name for name in names if len({value_of(table, name) for table in tables}) > 1]


def value_of(table: dict[str, str], name: str) -> str:
    """A value in a table of settings, or the default of that setting."""
    setting = known_setting(name)
    default = "required" if setting is None else setting.default
    return table.get(name, "not set" if default == "required" else default)


def _label(settings: dict, varying: list[str], run: RunFolder) -> str:
    """One or two settings that differ from other groups; the name of a run if there are more."""
    if not run.settings:
        return f"{run.name} (settings unknown)"
    if not varying:
        return run.setting("objective.name")
    if len(varying) > 2:
        return run.name
    values = [value_of(settings, key) for key in varying]
    if len(varying) == 1:
        return values[0]
    pairs = zip(varying, values, strict=True)
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in pairs)


# ---------------------------------------------------------------------------------------- reading


def _rows(path: Path, name: str, problems: list[str], repeated: bool = False) -> list[dict]:
    """The rows of a log that can be read. Of rows of the same iteration, the last one counts."""
    file = path / f"{name}.jsonl"
    if not file.is_file():
        return []
    lines, rows, damaged = file.read_bytes().split(b"\n"), [], []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number == len(lines):
            problems.append(f"The last line of {file.name} is incomplete and is not shown.")
        elif line.strip():
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:10])) + (" and others" if len(damaged) > 10 else "")
        problems.append(f"{file.name} is damaged in line {shown}: these are not shown.")
    if repeated:
        return rows
    by_iteration = {row["iteration"]: row for row in rows}
    if len(by_iteration) < len(rows):
        count = len(rows) - len(by_iteration)
        problems.append(
            f"{file.name} has several rows for {count} iterations: the last of each is shown."
        )
    return [by_iteration[i] for i in sorted(by_iteration)]


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    valid = isinstance(row, dict) and type(row.get("iteration")) is int
    return row if valid else None


def _object(file: Path, problems: list[str], needed: bool = False) -> dict:
    """A JSON file. An empty dict if it is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            problems.append(f"{file.name} is missing, so the settings are not known.")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} cannot be read ({error}).")
        return {}
    if isinstance(found, dict):
        return found
    problems.append(f"{file.name} is damaged: it has no settings.")
    return {}


def _state(run: RunFolder) -> str:
    """Whether the run is complete, in progress, or stopped."""
    wanted = run.setting("iterations")
    if (run.path / "final").is_dir() and not wanted.isdigit():
        return "complete"
    if (run.path / "final").is_dir() and run.iteration >= int(wanted):
        return "complete"
    owner = _object(run.path / ".lock-owner", [])
    if owner.get("host") == socket.gethostname() and _alive(owner.get("pid")):
        return f"in progress (process {owner['pid']})"
    files = [run.path / name for name in ("metrics.jsonl", "config.json")]
    last = max(file.stat().st_mtime for file in files if file.is_file())
    return f"not complete; last written on {datetime.fromtimestamp(last):%Y-%m-%d at %H:%M}"


def _alive(pid) -> bool:
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def number(value) -> float:
    """A logged value as a float, NaN if it is not a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else math.nan
    return math.nan

"""Records of a notebook's numbers: text for people, a MIME bundle and a JSON file for machines.

A record is a dict with `name`, `values` (nested dicts and lists of numbers, strings and None), the
tolerances `rtol` and `atol` of its numbers, and `uncompared`, the keys whose values depend on the
machine, such as seconds. Its file also has `context`, the settings it was made with, and `code`,
the version of the code that made it.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from bpgo.files import expand, write_atomic

MIME = "application/vnd.bpgo.record+json"
CHECKOUT = Path(__file__).resolve().parent.parent


def record(
    name: str,
    values: dict,
    output: str | Path | None = None,
    rtol: float = 1e-2,
    atol: float = 1e-6,
    context: dict | None = None,
    uncompared: Iterable[str] = (),
) -> dict:
    """Show `values`, and write them to `<output>/<name>.json` if a folder `output` is given.

    Two runs agree if |actual - expected| <= atol + rtol * |expected|; integers, strings and
    booleans must be equal. Returns the record with its context and code. Raises ValueError for a
    name that cannot be a file name and for a number that is not finite, TypeError for a value that
    JSON cannot hold; the message names the key.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f"record name {name!r} becomes a file name: use only letters, digits, '-' and '_'"
        )
    if not isinstance(values, dict):
        raise TypeError(
            f"record {name!r} takes a dict of named values, not a {type(values).__name__}"
        )
    shown = {"name": name, "values": _plain(values, name), "rtol": rtol, "atol": atol}
    shown["uncompared"] = sorted(uncompared)
    complete = shown | {"context": _plain(context or {}, f"{name}.context"), "code": code_version()}
    _show(_table(shown["values"]), shown)
    if output:
        folder = expand(output)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(complete, indent=1, allow_nan=False) + "\n"
        write_atomic(folder / f"{name}.json", text)
    return complete


def read_record(path: str | Path) -> dict:
    """The record in a JSON file. Raises ValueError, naming the path, if the file has no record."""
    try:
        found = json.loads(expand(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}): delete it and rerun its notebook"
        ) from error
    if not isinstance(found, dict) or not {"name", "values", "rtol", "atol"} <= found.keys():
        raise ValueError(
            f"{path} is not a record of bpgo.records.record: keep other JSON in another folder"
        )
    return found


def read_records(folder: str | Path) -> list[dict]:
    """The records in a folder, ordered by file name.

    Raises FileNotFoundError if there is no such folder.
    """
    folder = expand(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder} to read records from: run a notebook with output={folder}"
        )
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def agree(expected: dict, actual: dict) -> list[str]:
    """How the record `actual` differs from `expected`, one line per difference.

    The tolerances are those of `expected`.
    """
    known, found = dict(_leaves(expected["values"])), dict(_leaves(actual["values"]))
    uncompared = set(expected["uncompared"])
    lines = []
    for path, value in known.items():
        if path not in found:
            lines.append(f"{_key(path)} is missing")
        elif uncompared.isdisjoint(path) and not _close(value, found[path], expected):
            lines.append(f"{_key(path)} is {found[path]!r}, expected {value!r}")
    for path in found:
        if path not in known:
            lines.append(f"{_key(path)} was not expected")
    bounds = f"(rtol {expected['rtol']:g}, atol {expected['atol']:g})"
    return [f"{expected['name']}.{line} {bounds}" for line in sorted(lines)]


def code_version() -> dict:
    """The package version, the git commit, and whether the code differs from that commit.

    Anything that cannot be determined is "unknown".
    """
    try:
        package = importlib.metadata.version("bpgo")
    except importlib.metadata.PackageNotFoundError:
        package = "unknown"
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", "bpgo", "notebooks/*.py")
    if commit is None or changes is None:
        return {"package": package, "commit": "unknown", "dirty": "unknown"}
    return {"package": package, "commit": commit, "dirty": changes != ""}


def aligned(rows: list[list[str]]) -> str:
    """Rows of equal length as text: the first column to the left, the others to the right."""
    widths = []
    for column in zip(*rows, strict=True):
        widths.append(max(len(cell) for cell in column))
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _git(*arguments: str) -> str | None:
    # Only the package's own checkout counts, not a repository that contains the environment.
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", CHECKOUT, *arguments], capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _plain(value, key: str):
    """`value` in the types of JSON; NumPy and torch scalars and arrays become numbers and lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {str(name): _plain(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{key}.{index}") for index, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{key} is {value}: fix how it is computed, or record None if there is no such number"
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{key} is a {type(value).__name__}: record numbers, strings, None, or lists and dicts"
    )


def _leaves(values: dict | list, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """(path, leaf) pairs of nested dicts and lists."""
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _key(path: tuple) -> str:
    return ".".join(map(str, path))


def _close(expected, actual, tolerances: dict) -> bool:
    if isinstance(expected, float) and type(actual) in (int, float):
        return abs(actual - expected) <= tolerances["atol"] + tolerances["rtol"] * abs(expected)
    return type(expected) is type(actual) and expected == actual


def _table(values: dict) -> str:
    """Aligned text: if all values are flat dicts, one row per value and one column per key.

    Otherwise one line per leaf.
    """
    leaves = dict(_leaves(values))
    are_dicts = all(isinstance(row, dict) for row in values.values())
    if not are_dicts or any(len(path) != 2 for path in leaves):
        return aligned([[_key(path), _rounded(value)] for path, value in leaves.items()])
    columns = list(dict.fromkeys(column for _, column in leaves))
    rows = [["", *columns]]
    for name in values:
        rows.append([name, *(_rounded(leaves.get((name, column))) for column in columns)])
    return aligned(rows)


def _rounded(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(text: str, bundle: dict) -> None:
    # If this runs in IPython, IPython has already been imported.
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        print(text)
    else:
        ipython.display.display({"text/plain": text, MIME: bundle}, raw=True)

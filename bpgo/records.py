"""How numbers leave a notebook: rounded text for people, a MIME bundle and a JSON file for machines.

A record is a dict with `name`, `values` (nested dicts and lists of numbers, strings and None), its own
tolerances `rtol` and `atol`, and `uncompared`: the keys whose values depend on the machine, such as seconds.
Its file also has `context`, what it was run with, and `code`, which version of the code ran.
"""

import importlib.metadata
import json
import math
import re
import subprocess
import sys
from pathlib import Path

from bpgo.files import write_atomic

MIME = "application/vnd.bpgo.record+json"
CHECKOUT = Path(__file__).resolve().parent.parent


def record(name, values, output=None, rtol=1e-2, atol=1e-6, context=None, uncompared=()):
    """Show `values` and, where a folder `output` is given, write them to `<output>/<name>.json` in one step.

    Two runs agree where |actual - expected| <= atol + rtol * |expected|; integers, strings and booleans must
    be equal. Returns the whole record. Raises ValueError for a name that is no file name and for a number
    that is not finite, TypeError for a value that JSON has no word for; both name the key.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f"record name {name!r} becomes a file name: use letters, digits, '-' and '_' only"
        )
    if not isinstance(values, dict):
        raise TypeError(
            f"record {name!r} takes a dict of named values, not a {type(values).__name__}"
        )
    shown = {"name": name, "values": _plain(values, name), "rtol": rtol, "atol": atol}
    shown["uncompared"] = sorted(uncompared)
    whole = shown | {"context": _plain(context or {}, f"{name}.context"), "code": code_version()}
    _show(_table(shown["values"]), shown)
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_atomic(
            Path(output) / f"{name}.json", json.dumps(whole, indent=1, allow_nan=False) + "\n"
        )
    return whole


def read_record(path):
    """The record in one JSON file. Raises ValueError, with the path, for a file that is not a record."""
    try:
        found = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}): delete it and run its notebook again"
        ) from error
    if not isinstance(found, dict) or not {"name", "values", "rtol", "atol"} <= found.keys():
        raise ValueError(
            f"{path} is not a record of bpgo.records.record: keep other JSON in another folder"
        )
    return found


def read_records(folder):
    """The records in `folder`, by file name. Raises FileNotFoundError where there is no such folder."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"no folder {folder} to read records from: give a notebook output={folder}"
        )
    return [read_record(path) for path in sorted(Path(folder).glob("*.json"))]


def agree(expected, actual):
    """How record `actual` differs from `expected`, a line each, by the tolerances of `expected`."""
    known, found = dict(_leaves(expected["values"])), dict(_leaves(actual["values"]))
    lines = [f"{_key(path)} is missing" for path in known if path not in found]
    lines += [f"{_key(path)} was not expected" for path in found if path not in known]
    for path in known.keys() & found.keys():
        value, came = known[path], found[path]
        if not set(path) & set(expected["uncompared"]) and not _close(value, came, expected):
            lines.append(f"{_key(path)} is {came!r}, expected {value!r}")
    bounds = f"(rtol {expected['rtol']:g}, atol {expected['atol']:g})"
    return [f"{expected['name']}.{line} {bounds}" for line in sorted(lines)]


def code_version():
    """Package version, git commit, and whether the code differs from that commit; "unknown" where it is."""
    try:
        package = importlib.metadata.version("bpgo")
    except importlib.metadata.PackageNotFoundError:
        package = "unknown"
    commit, changes = (
        _git("rev-parse", "HEAD"),
        _git("status", "--porcelain", "--", "bpgo", "notebooks/*.py"),
    )
    if commit is None or changes is None:
        return {"package": package, "commit": "unknown", "dirty": "unknown"}
    return {"package": package, "commit": commit, "dirty": changes != ""}


def _git(*arguments):
    # Only the package's own checkout counts, not a repository that happens to hold the environment.
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", CHECKOUT, *arguments], capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _plain(value, key):
    """`value` in JSON's own types; NumPy and torch scalars and arrays become numbers and lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {str(name): _plain(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{key}.{index}") for index, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{key} is {value}: mend what made it, or record None where there is no such number"
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{key} is a {type(value).__name__}: record numbers, strings, None, or lists and dicts"
    )


def _leaves(values, path=()):
    """(path, leaf) pairs of nested dicts and lists."""
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _key(path):
    return ".".join(map(str, path))


def _close(expected, actual, tolerances):
    if isinstance(expected, float) and type(actual) in (int, float):
        return abs(actual - expected) <= tolerances["atol"] + tolerances["rtol"] * abs(expected)
    return type(expected) is type(actual) and expected == actual


def _table(values):
    """Aligned text: a row a value and a column a key where the values are flat dicts, else a line a leaf."""
    leaves = dict(_leaves(values))
    if all(isinstance(row, dict) for row in values.values()) and all(
        len(path) == 2 for path in leaves
    ):
        columns = list(dict.fromkeys(column for _, column in leaves))
        lines = [["", *columns]]
        lines += [
            [row, *(_rounded(leaves.get((row, column))) for column in columns)] for row in values
        ]
    else:
        lines = [[_key(path), _rounded(value)] for path, value in leaves.items()]
    return aligned(lines)


def aligned(lines):
    """Lists of strings of one length, as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(row).rstrip() for row in rows)


def _rounded(value):
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(text, bundle):
    ipython = sys.modules.get("IPython")  # nobody is in IPython who has not imported it
    if ipython is None or ipython.get_ipython() is None:
        print(text)
    else:
        ipython.display.display({"text/plain": text, MIME: bundle}, raw=True)

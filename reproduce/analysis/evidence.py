"""The study's records as tables: which runs there are, what they measured, and how arms compare, paired by seed.

Records are made by `make study` from the table of runs in reproduce/study.yaml and lie in reproduce/results/study. What is missing is left
out and counted: every table says from how many seeds a number is.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from bpgo.analysis.runs import first_reaching, oscillation, smooth
from bpgo.analysis.statistics import bootstrap_mean, holm, level_with_best, paired
from bpgo.records import CHECKOUT

PRIMARY = "accuracy_specified"  # the measure of the plan
RESULTS = CHECKOUT / "reproduce" / "results" / "study"
# Parts of the package that move no number of a run.
APART = {
    "analysis",
    "preflight.py",
    "memory.py",
    "published.py",
    "card.py",
    "bench.py",
    "records.py",
    "guards.py",
    "__main__.py",
}

UNITS = {
    "accuracy": "share of samples",
    "accuracy_specified": "share of samples",
    "truth": "share of attributes",
    "diversity": "1: the world's own",
}


def read(folder: str | Path = "") -> tuple[pd.DataFrame, dict[str, dict]]:
    """The plan (a row a planned run: experiment, task, arm, seed, run) and the records there are, by run. folder: another place of results.

    Raises FileNotFoundError where nothing was ever run.
    """
    folder = Path(folder or RESULTS)
    if not (folder / "runs.csv").is_file():
        raise FileNotFoundError(f"{folder} holds no results of the study: run `make study`")
    plan = pd.read_csv(folder / "runs.csv")
    places = {run: folder / "runs" / f"{run}.json" for run in plan["run"].unique()}
    return plan, {
        run: json.loads(place.read_text()) for run, place in places.items() if place.is_file()
    }


def state(plan: pd.DataFrame, records: dict[str, dict]) -> str:
    """One line: how many of the planned runs are recorded, and how many of those were made by other code than this."""
    now = code_digest()
    other = sum(record["code"]["digest"] != now for record in records.values())
    told = f"{len(records)} of {plan['run'].nunique()} planned runs are recorded"
    return told + (
        f"; {other} of them by other code than this: `make study ARGS=--renew` runs them again"
        if other
        else ""
    )


def final(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, measure: str
) -> pd.DataFrame:
    """A measure at the end of training: a row a seed, a column an arm, NaN where there is no record (or no such measure).

    Raises ValueError where the plan has no such experiment and task, or none of its runs is recorded.
    """
    table = so_far(plan, records, experiment, task, measure)
    if (
        not set(plan["run"][(plan["experiment"] == experiment) & (plan["task"] == task)])
        & records.keys()
    ):
        raise ValueError(
            f"no run of {experiment} on {task} is recorded yet: `make study ARGS='all {experiment}'`"
        )
    return table


def so_far(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, measure: str
) -> pd.DataFrame:
    """As `final`, but all NaN where nothing is recorded yet. Raises ValueError where the plan has no such experiment and task."""
    rows = plan[(plan["experiment"] == experiment) & (plan["task"] == task)]
    if rows.empty:
        raise ValueError(f"no run of {experiment} on {task} is planned: see reproduce/study.yaml")
    values = [
        records[run]["evaluations"][-1].get(measure) if run in records else None
        for run in rows["run"]
    ]
    table = rows.assign(value=pd.to_numeric(values)).pivot(
        index="seed", columns="arm", values="value"
    )
    return table[list(dict.fromkeys(rows["arm"]))]


def grid(ended: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Arms named "a=1 b=2", of `final`, as a table: a in rows, b in columns. Mean over seeds, and whether a cell is level with the best.

    Cells without a run are NaN, and not level. See `statistics.level_with_best`. Raises ValueError for other names.
    """
    named = [[part.partition("=") for part in arm.split()] for arm in ended]
    if any(len(parts) != 2 or not all(equals for _, equals, _ in parts) for parts in named):
        raise ValueError(
            f"a grid has two settings an arm, such as 'alpha=0.5 kappa=1.0', not {next(iter(ended))!r}"
        )
    (rows, _, _), (columns, _, _) = named[0]
    level = (
        level_with_best(ended.to_numpy(float).T)
        if ended.notna().any(axis=None)
        else np.zeros(ended.shape[1], bool)
    )
    places = {rows: [a for (_, _, a), _ in named], columns: [b for _, (_, _, b) in named]}
    cells = pd.DataFrame({**places, "mean": ended.mean().to_numpy(), "level": level})
    orders = [list(dict.fromkeys(cells[name])) for name in (rows, columns)]
    return tuple(
        cells.pivot(index=rows, columns=columns, values=name).loc[*orders]
        for name in ("mean", "level")
    )


def curves(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, name: str
) -> dict[str, np.ndarray]:
    """What each iteration of training logged: arm -> (seeds, iterations), of the seeds there are."""
    rows = plan[(plan["experiment"] == experiment) & (plan["task"] == task)]
    found: dict[str, list] = {}
    for arm, run in zip(rows["arm"], rows["run"], strict=True):
        if run in records:
            found.setdefault(arm, []).append(records[run]["curves"][name])
    return {arm: np.array(values, dtype=float) for arm, values in found.items()}


def less(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, name: str, arm: str, base: str
) -> np.ndarray:
    """What each iteration of training logged under a name, of an arm less `base`: (seeds that both have, iterations); (0,) if none."""
    rows = plan[(plan["experiment"] == experiment) & (plan["task"] == task)].pivot(
        index="seed", columns="arm", values="run"
    )
    pairs = [
        (records[a], records[b])
        for a, b in zip(rows[arm], rows[base], strict=True)
        if a in records and b in records
    ]
    return np.array(
        [np.subtract(*(run["curves"][name] for run in pair)) for pair in pairs], dtype=float
    )


def pace(
    plan: pd.DataFrame, records: dict, experiment: str, task: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How fast and how restless the training reward of each arm is: arm -> (early, oscillation), each (seeds,), no unit.

    Both over the rise that GRPO's runs make on average, of means over a tenth of a run. early: how much of it is made in the first half;
    oscillation: see `runs`. Empty where GRPO is not recorded, or does not rise.
    """
    logged = curves(plan, records, experiment, task, "reward")
    if "grpo" not in logged:
        return {}
    width = max(1, logged["grpo"].shape[1] // 10)
    soft = {
        arm: smooth(np.arange(values.shape[1]), values, width)[1] for arm, values in logged.items()
    }
    rise = np.mean(soft["grpo"][:, -1] - soft["grpo"][:, 0])
    if rise <= 0:
        return {}
    return {
        arm: ((runs[:, runs.shape[1] // 2] - runs[:, 0]) / rise, oscillation(logged[arm], rise))
        for arm, runs in soft.items()
    }


def reaching(plan: pd.DataFrame, records: dict, experiment: str, task: str) -> pd.DataFrame:
    """Iterations until the training reward, as a mean over a tenth of a run, is where GRPO's run of the same seed ends: (seeds, arms).

    NaN where a run never gets there, or either is not recorded.
    """
    rows, found = plan[(plan["experiment"] == experiment) & (plan["task"] == task)], {}
    for seed, part in rows.groupby("seed"):
        own = {
            arm: np.array(records[run]["curves"]["reward"])
            for arm, run in zip(part["arm"], part["run"], strict=True)
            if run in records
        }
        if "grpo" in own:
            width = max(1, len(own["grpo"]) // 10)
            target, at = own["grpo"][-width:].mean(), np.arange(1, len(own["grpo"]) + 1)
            found[seed] = {
                arm: first_reaching(at, curve, target, width) for arm, curve in own.items()
            }
    return pd.DataFrame.from_dict(
        found, orient="index", columns=list(dict.fromkeys(rows["arm"])), dtype=float
    )


def axis(measure: str) -> str:
    """A measure with its unit, to label an axis."""
    return f"{measure}\n({UNITS.get(measure, 'no unit')})"


def before(records: dict, task: str, measure: str) -> float:
    """A measure of the untrained model, which all runs of a task start from; NaN without records."""
    return next(
        (r["evaluations"][0].get(measure, np.nan) for r in records.values() if r["task"] == task),
        np.nan,
    )


def compare(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """A row an arm: n, mean with its 95 % interval, and the difference from the arm `base` over the seeds that both have.

    p is of the paired t test, corrected by Holm over all arms. See `statistics` for the intervals.
    """
    rows, p = [], []
    for arm in table:
        own = bootstrap_mean(table[arm].to_numpy(float))
        gain = paired(table[arm].to_numpy(float), table[base].to_numpy(float))
        rows.append(
            {
                "n": own.n,
                "mean": own.mean,
                "low": own.low,
                "high": own.high,
                f"- {base}": gain.difference.mean,
                "from": gain.difference.low,
                "to": gain.difference.high,
            }
        )
        p.append(np.nan if arm == base else gain.p)
    return pd.DataFrame(rows, index=list(table)).assign(p=holm(p))


def code_digest(root: Path = CHECKOUT) -> str:
    """A digest of what a run's numbers depend on: code without comments and docstrings, presets of shipped models, checkpoints."""
    digest = hashlib.sha256()
    files = [
        p
        for p in sorted((root / "bpgo").rglob("*"))
        if p.is_file() and not APART & set(p.relative_to(root / "bpgo").parts)
    ]
    presets = [
        p
        for pattern in ("*-tiny.yaml", "*-digits.yaml")
        for p in sorted((root / "reproduce" / "presets").glob(pattern))
    ]
    for path in [*files, *presets, root / "reproduce" / "study_trainer.py"]:
        if path.suffix == ".py":
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(getattr(node, "body", None), list):
                    node.body = [
                        n
                        for n in node.body
                        if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
                    ]
            digest.update(ast.dump(tree).encode())
        elif path.suffix in (".safetensors", ".jsonl", ".yaml"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]

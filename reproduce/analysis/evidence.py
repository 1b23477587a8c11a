"""The study's records as tables: what the runs measured, and how arms compare, paired by seed.

`make study` makes the records from the table of runs in reproduce/study.yaml and writes them to
reproduce/results/study. Runs that are missing are left out and counted: every table says how many
seeds a number comes from. In all functions, plan and records are those that `read` returns.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from bpgo.analysis.runs import first_reaching, oscillation, smooth
from bpgo.analysis.statistics import bootstrap_mean, holm, level_with_best, paired
from bpgo.records import CHECKOUT
from reproduce.code_digest import code_digest

PRIMARY = "accuracy_specified"  # the plan's primary metric
RESULTS = CHECKOUT / "reproduce" / "results" / "study"
UNITS = {
    "accuracy": "share of samples",
    "accuracy_specified": "share of samples",
    "truth": "share of attributes",
    "diversity": "1: the world's own",
}
# What older records call an objective, and its present name.
RENAMED_OBJECTIVES = {"bgpo": "teleboost"}


# ------------------------------------------------------------------------------------------ reading


def read(folder: str | Path = "") -> tuple[pd.DataFrame, dict[str, dict]]:
    """The plan and the existing records, all under present names.

    The plan has one row per planned run: experiment, task, arm, seed, run. The records are keyed by
    run. folder: another folder of results. Raises FileNotFoundError if it has no results.
    """
    folder = Path(folder or RESULTS)
    if not (folder / "runs.csv").is_file():
        raise FileNotFoundError(f"{folder} contains no results of the study: run `make study`")
    plan = pd.read_csv(folder / "runs.csv")
    plan["arm"] = plan["arm"].replace(RENAMED_OBJECTIVES)
    records = {}
    for run in plan["run"].unique():
        place = folder / "runs" / f"{run}.json"
        if place.is_file():
            records[run] = read_run(place)
    return plan, records


def read_run(place: Path) -> dict:
    """A record, with the present names of its settings."""
    record = json.loads(place.read_text(encoding="utf-8"))
    record["settings"] = present_names(record.get("settings", {}))
    return record


def present_names(settings: dict) -> dict:
    """Settings of an older record, {key: value}, under their present names."""
    settings = dict(settings)
    objective = settings.get("objective.name")
    if objective in RENAMED_OBJECTIVES:
        settings["objective.name"] = RENAMED_OBJECTIVES[objective]
    if "kind" in settings.get("prior", {}):
        prior = dict(settings["prior"])
        settings["prior"] = {"name": prior.pop("kind"), **prior}
    return settings


def state(plan: pd.DataFrame, records: dict[str, dict]) -> str:
    """One line: how many planned runs are recorded, and how many of those by older code."""
    digest = code_digest()
    older = sum(record["code"]["digest"] != digest for record in records.values())
    line = f"{len(records)} of {plan['run'].nunique()} planned runs are recorded"
    if older:
        line += f", {older} of them by older code (`make study ARGS=--renew` repeats those)"
    return line


# ----------------------------------------------------------------------------------- after training


def final(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, metric: str
) -> pd.DataFrame:
    """A metric after training: one row per seed, one column per arm, NaN where it is missing.

    Raises ValueError if the plan has no such experiment and task, or if none of its runs is
    recorded.
    """
    table = so_far(plan, records, experiment, task, metric)
    if not set(_planned(plan, experiment, task)["run"]) & records.keys():
        raise ValueError(
            f"no run of {experiment} on {task} is recorded yet: "
            f"`make study ARGS='all {experiment}'`"
        )
    return table


def so_far(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, metric: str
) -> pd.DataFrame:
    """The same as `final`, but all NaN if nothing is recorded yet."""
    rows = _planned(plan, experiment, task)
    if rows.empty:
        raise ValueError(f"no run of {experiment} on {task} is planned: see reproduce/study.yaml")
    values = [
        records[run]["evaluations"][-1].get(metric) if run in records else None
        for run in rows["run"]
    ]
    table = rows.assign(value=pd.to_numeric(values))
    table = table.pivot(index="seed", columns="arm", values="value")
    return table[list(dict.fromkeys(rows["arm"]))]


def before(records: dict, task: str, metric: str) -> float:
    """A metric of the untrained model, from which all runs of a task start. NaN without records."""
    for record in records.values():
        if record["task"] == task:
            return record["evaluations"][0].get(metric, np.nan)
    return np.nan


def compare(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """One row per arm: n, mean with its 95 % interval, and the difference from the arm `base`.

    The difference is over the seeds that both arms have. p is that of the paired t test, corrected
    by Holm's method over all arms.
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


def grid(ended: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Arms of `final` named "a=1 b=2" as two tables with a in rows and b in columns.

    Returns the mean over seeds, and whether a cell is level with the best
    (`statistics.level_with_best`). Cells without a run are NaN and not level. Raises ValueError for
    other names.
    """
    named = [[part.partition("=") for part in arm.split()] for arm in ended]
    if any(len(parts) != 2 or not all(equals for _, equals, _ in parts) for parts in named):
        raise ValueError(
            f"a grid has two settings per arm, such as 'alpha=0.5 kappa=1.0', "
            f"not {next(iter(ended))!r}"
        )
    (rows, _, _), (columns, _, _) = named[0]
    level = np.zeros(ended.shape[1], bool)
    if ended.notna().any(axis=None):
        level = level_with_best(ended.to_numpy(float).T)
    cells = pd.DataFrame(
        {
            rows: [value for (_, _, value), _ in named],
            columns: [value for _, (_, _, value) in named],
            "mean": ended.mean().to_numpy(),
            "level": level,
        }
    )
    order = [list(dict.fromkeys(cells[name])) for name in (rows, columns)]
    mean = cells.pivot(index=rows, columns=columns, values="mean").loc[*order]
    return mean, cells.pivot(index=rows, columns=columns, values="level").loc[*order]


# ---------------------------------------------------------------------------------- during training


def curves(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, name: str
) -> dict[str, np.ndarray]:
    """What every iteration logged under a name: {arm: (seeds, iterations)} of the existing runs."""
    rows = _planned(plan, experiment, task)
    found: dict[str, list] = {}
    for arm, run in zip(rows["arm"], rows["run"], strict=True):
        if run in records:
            found.setdefault(arm, []).append(records[run]["curves"][name])
    return {arm: np.array(values, dtype=float) for arm, values in found.items()}


def less(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, name: str, arm: str, base: str
) -> np.ndarray:
    """What every iteration of `arm` logged under a name, minus the same of `base`.

    (seeds that both have, iterations), or (0,) if there are none.
    """
    found = [
        np.subtract(first["curves"][name], second["curves"][name])
        for first, second in pairs(plan, records, experiment, task, arm, base)
    ]
    return np.array(found, dtype=float)


def pairs(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, arm: str, base: str
) -> list[tuple[dict, dict]]:
    """The records of `arm` and `base` for each seed that both have."""
    rows = _planned(plan, experiment, task).pivot(index="seed", columns="arm", values="run")
    both = zip(rows[arm], rows[base], strict=True)
    return [(records[a], records[b]) for a, b in both if a in records and b in records]


def pace(
    plan: pd.DataFrame, records: dict, experiment: str, task: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How fast and how unsteady the training reward of each arm is: {arm: (early, oscillation)}.

    Both are (seeds,) and relative to the rise of GRPO's runs on average, measured on means over a
    tenth of a run. early: the part of that rise that is made in the first half. oscillation: see
    `runs.oscillation`. Empty if GRPO is not recorded or does not rise.
    """
    logged = curves(plan, records, experiment, task, "reward")
    if "grpo" not in logged:
        return {}
    length = logged["grpo"].shape[1]
    width, steps = max(1, length // 10), np.arange(length)
    soft = {arm: smooth(steps, values, width)[1] for arm, values in logged.items()}
    rise = np.mean(soft["grpo"][:, -1] - soft["grpo"][:, 0])
    if rise <= 0:
        return {}
    found = {}
    for arm, runs in soft.items():
        early = (runs[:, runs.shape[1] // 2] - runs[:, 0]) / rise
        found[arm] = early, oscillation(logged[arm], rise)
    return found


def reaching(plan: pd.DataFrame, records: dict, experiment: str, task: str) -> pd.DataFrame:
    """Iterations until the training reward is as high as at the end of GRPO's run: (seeds, arms).

    GRPO's run has the same seed, and rewards are means over a tenth of a run. NaN if a run never
    gets there, or if either is not recorded.
    """
    rows, found = _planned(plan, experiment, task), {}
    for seed, part in rows.groupby("seed"):
        logged = {
            arm: np.array(records[run]["curves"]["reward"])
            for arm, run in zip(part["arm"], part["run"], strict=True)
            if run in records
        }
        if "grpo" not in logged:
            continue
        length = len(logged["grpo"])
        width, iterations = max(1, length // 10), np.arange(1, length + 1)
        target = logged["grpo"][-width:].mean()
        found[seed] = {
            arm: first_reaching(iterations, curve, target, width) for arm, curve in logged.items()
        }
    arms = list(dict.fromkeys(rows["arm"]))
    return pd.DataFrame.from_dict(found, orient="index", columns=arms, dtype=float)


def axis(metric: str) -> str:
    """The label of an axis: a metric with its unit."""
    return f"{metric}\n({UNITS.get(metric, 'no unit')})"


def _planned(plan: pd.DataFrame, experiment: str, task: str) -> pd.DataFrame:
    """The rows of an experiment on a task."""
    return plan[(plan["experiment"] == experiment) & (plan["task"] == task)]

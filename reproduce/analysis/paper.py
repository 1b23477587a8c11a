"""The paper's tables beside ours: its published numbers, the study's, and those of real runs.

Real runs are runs of the published models. Published numbers (reproduce/paper) come from one
training run each and are never mixed with ours: `beside` has them in a separate column. Models,
rewards and lengths differ, and so do the scales. What can be compared is the sign and the order of
differences.

A *table of seeds* is (seeds, methods) of one metric, NaN where there is no run. `base` is the model
before training, the same in every row.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bpgo.analysis.statistics import Interval, bootstrap_mean
from bpgo.records import CHECKOUT, aligned
from reproduce.analysis import evidence
from reproduce.analysis.real_runs import METRICS, PRESETS, RUNS, TRAINED, over_seeds, real_runs

PUBLISHED = CHECKOUT / "reproduce" / "paper"
# What we put beside a metric of the paper: the training reward, another learnt judge, or the
# oracle's mean of accuracy, motion and visual quality.
MEASURES = {
    "VideoCLIP-XL": "reward",
    "HPSv2": "reward",
    "VideoAlign-TA": "held_out",
    "ImageReward": "held_out",
    "VideoAlign-overall": "overall",
}
# The experiment of the study for each published table.
EXPERIMENTS = {"main": "trust", "ablation": "ablation", "alpha": "alpha_video"}
# What `beside` shows: methods, and differences of two.
LINES = {
    "main": ("base", "grpo", "bpgo", "grpo - base", "bpgo - base", "bpgo - grpo"),
    "ablation": ("ras", "crt", "bpgo", "bpgo - ras", "bpgo - crt"),
    "alpha": (
        "alpha=0.1",
        "alpha=0.5",
        "alpha=0.7",
        "alpha=0.9",
        "alpha=0.5 - alpha=0.1",
        "alpha=0.5 - alpha=0.7",
        "alpha=0.5 - alpha=0.9",
    ),
}
NOT_RUN = Interval(np.nan, np.nan, np.nan, 0)


def published(name: str) -> pd.DataFrame:
    """A published table (main, ablation or alpha), with one row per number.

    Columns: task, method, metric, and value in the metric's unit, higher is better. Raises
    FileNotFoundError for another name, and outside a clone of the repository.
    """
    place = PUBLISHED / f"{name}.csv"
    if not place.is_file():
        raise FileNotFoundError(
            f"no published table {name!r} in {PUBLISHED}: there are {', '.join(LINES)}, "
            f"in a clone of the repository"
        )
    return pd.read_csv(place)


def of_study(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, measure: str
) -> pd.DataFrame:
    """The table of seeds of an experiment's records after training.

    measure: our metric. Empty if nothing is recorded, and for the measure "".
    """
    rows = plan[(plan["experiment"] == experiment) & (plan["task"] == task)]
    own = {run: records[run] for run in rows["run"] if run in records}
    if not own or not measure:
        return pd.DataFrame()
    table = evidence.final(plan, own, experiment, task, measure)
    table.insert(0, "base", evidence.before(own, task, measure))
    return table


def of_real(runs: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """The table of seeds of `real_runs` in the setting with the most runs of the task.

    Empty if there are none.
    """
    runs = runs[runs["task"] == task]
    trained = runs[(runs["metric"] == TRAINED[task]) & (runs["seed"] >= 0)]
    if trained.empty:
        return pd.DataFrame()
    setting = trained["setting"].value_counts().idxmax()
    rows = runs[(runs["setting"] == setting) & (runs["metric"] == metric)]
    table = rows.pivot(index="seed", columns="method", values="value")
    if "base" not in table:
        return table
    return table.assign(base=table["base"].get(-1)).drop(index=-1)


def estimate(table: pd.DataFrame, line: str) -> Interval:
    """Mean over seeds with its 95 % interval, of a method or of the paired difference "a - b".

    n is 0 if there are no values, and 1 for the model before training, which has no seeds.
    """
    first, _, second = line.partition(" - ")
    if not {first, second or first} <= set(table):
        return NOT_RUN
    values = table[first] - (table[second] if second else 0)
    return bootstrap_mean(values[:1] if line == "base" else values)


def beside(name: str, plan: pd.DataFrame, records: dict, runs: pd.DataFrame) -> pd.DataFrame:
    """A published table beside ours: one row per task, metric and line of `LINES`.

    plan, records: of `evidence.read`. runs: of `real_runs`. Columns: task, metric, measure (ours,
    or "" if there is no counterpart), line, published (a number, or the difference of two), ours
    and real (an Interval each, with n = 0 if not run).
    """
    own = published(name)
    known = pd.concat([published("main"), own]).drop_duplicates()
    rows = []
    for task, metric in own[["task", "metric"]].drop_duplicates().itertuples(index=False):
        of_metric = known[(known["task"] == task) & (known["metric"] == metric)]
        numbers = of_metric.set_index("method")["value"].to_frame().T
        measure = MEASURES.get(metric, "")
        ours = of_study(plan, records, EXPERIMENTS[name], task, measure)
        real = of_real(runs, task, metric)
        if name == "alpha":  # the paper's numbers are of RAS
            real = real.rename(columns=_alpha_of_ras)
        for line in LINES[name]:
            said = estimate(numbers, line).mean
            found = estimate(ours, line), estimate(real, line)
            rows.append((task, metric, measure, line, said, *found))
    columns = ["task", "metric", "measure", "line", "published", "ours", "real"]
    return pd.DataFrame(rows, columns=columns)


def _alpha_of_ras(method: str) -> str:
    return "alpha=0.5" if method == "ras" else method.removeprefix("ras ")


def told(interval: Interval, sign: str = "") -> str:
    """An interval as text: "0.612 (0.590 to 0.634, n = 5)". sign: "+" shows all signs."""
    if not interval.n:
        return "not run"
    bounds = ""
    if not np.isnan(interval.low):
        bounds = f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}, "
    return f"{interval.mean:{sign}.3f} ({bounds}n = {interval.n})"


def text(rows: pd.DataFrame, names: dict[str, str]) -> str:
    """Rows of `beside` as aligned text, one block per metric. names: labels of the methods."""
    lines = [["", "published, n = 1", "ours, tiny", "paper scale"]]
    for (task, metric), block in rows.groupby(["task", "metric"], sort=False):
        title = f"{task} {metric}" + (" (trained on)" if metric == TRAINED[task] else "")
        measure = block["measure"].iloc[0] or "no counterpart"
        lines.append([title, "", f"[{measure}]", ""])
        for row in block.itertuples():
            sign = "+" if " - " in row.line else ""
            label = " - ".join(names.get(method, method) for method in row.line.split(" - "))
            ours = told(row.ours, sign) if row.measure else ""
            lines.append([f"  {label}", f"{row.published:{sign}.4f}", ours, told(row.real, sign)])
    return aligned(lines)


__all__ = [
    "EXPERIMENTS",
    "LINES",
    "MEASURES",
    "METRICS",
    "PRESETS",
    "RUNS",
    "TRAINED",
    "beside",
    "estimate",
    "of_real",
    "of_study",
    "over_seeds",
    "published",
    "real_runs",
    "text",
    "told",
]

"""The paper's tables beside ours: its published numbers, those of the study's records, and those of real runs of the published models.

Published numbers (reproduce/paper) are of one training run each. They are never mixed with ours: a line of `beside` has them in a column
of their own. Models, rewards and lengths differ, and with them the scales: what can be compared is the sign and the order of differences.

A *table of seeds* here is (seeds, methods) of one measure, NaN where there is no run; `base` is the model before training, in every row.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from bpgo.analysis.statistics import Interval, bootstrap_mean
from bpgo.config import RewardConfig, build_config, differences, read_config, to_dict
from bpgo.files import read_log
from bpgo.records import CHECKOUT, aligned
from bpgo.rewards import REWARDS
from reproduce.analysis import evidence

PUBLISHED = CHECKOUT / "reproduce" / "paper"
METRICS = {  # the paper's name: ours, in bpgo.rewards
    "VideoCLIP-XL": "video_clip_xl",
    "VideoAlign-TA": "video_align_ta",
    "VideoAlign-overall": "video_align",
    "Qwen3-VL-Embedding": "qwen3_vl_embedding",
    "HPSv2": "hpsv2",
    "PickScore": "pickscore",
    "ImageReward": "image_reward",
}
# What of ours stands beside it: the training reward, another learnt judge, or the oracle's mean of accuracy, motion and visual quality.
MEASURES = {
    "VideoCLIP-XL": "reward",
    "HPSv2": "reward",
    "VideoAlign-TA": "held_out",
    "ImageReward": "held_out",
    "VideoAlign-overall": "overall",
}
TRAINED = {"t2v": "VideoCLIP-XL", "i2v": "VideoCLIP-XL", "t2i": "HPSv2"}
PRESETS = {
    "t2v": ("t2v-wan2.1-1.3b", "t2v-wan2.1-1.3b-lowmem"),
    "i2v": ("i2v-wan2.2-a14b", "i2v-wan2.2-a14b-lowmem"),
    "t2i": ("t2i-flux", "t2i-flux-lowmem"),
}
EXPERIMENTS = {
    "main": "trust",
    "ablation": "ablation",
    "alpha": "alpha_video",
}  # of the study, for each published table
LINES = {  # what `beside` shows: methods, and differences of two
    "main": ("base", "grpo", "bpgo", "grpo - base", "bpgo - base", "bpgo - grpo"),
    "ablation": ("ras", "crt", "bpgo", "bpgo - ras", "bpgo - crt"),
    "alpha": (
        "alpha=0.1",
        "alpha=0.5",
        "alpha=0.7",
        "alpha=0.9",
        *(f"alpha=0.5 - alpha={a}" for a in (0.1, 0.7, 0.9)),
    ),
}
# Settings in which runs may differ and still be of one setting; rewards are compared by name, weights and scale instead.
APART = (
    "seed:",
    "objective.name:",
    "objective.alpha:",
    "generator.path:",
    "reward:",
    "evaluation.held_out:",
    "evaluation.every:",
    "checkpoint_every:",
    "tracker:",
    "guards:",
)
RUNS = ["task", "setting", "method", "seed", "metric", "value"]


def published(name: str) -> pd.DataFrame:
    """A published table (main, ablation or alpha), a row a number: task, method, metric, and value in the metric's unit (more is better).

    Raises FileNotFoundError for another name, and where the package was installed without the repository.
    """
    if not (place := PUBLISHED / f"{name}.csv").is_file():
        raise FileNotFoundError(
            f"no published table {name!r} in {PUBLISHED}: there are {', '.join(LINES)}, in a clone of the repository"
        )
    return pd.read_csv(place)


def of_study(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, measure: str
) -> pd.DataFrame:
    """The table of seeds of an experiment's records at the end of training, in the measure's unit. Empty where nothing is recorded, and for
    the measure ""."""
    rows = plan[(plan["experiment"] == experiment) & (plan["task"] == task)]
    own = {run: records[run] for run in rows["run"] if run in records}
    if not own or not measure:
        return pd.DataFrame()
    table = evidence.final(plan, own, experiment, task, measure)
    table.insert(0, "base", evidence.before(own, task, measure))
    return table


def real_runs(folder: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Finished runs of the published models at or below a folder, and a line for each that was left out, with its reason.

    A run counts for a task if its generator and training reward are those of the task's real presets, and with the held-out metrics that
    are the presets' too (name, weights and scale; a local folder goes by its name). Runs of other models are passed over; of two runs of
    one method, setting and seed the first by name counts. A row a number at the end of training: task, setting (the nearest preset, and
    how it was changed), method, seed, metric (the paper's name), value (in the preset's scale). `base` has seed -1. The folder "" holds
    no runs; another that does not exist raises FileNotFoundError.
    """
    rows, left_out = [], []
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: give one that holds run folders of `python -m bpgo train`, or none"
        )
    for place in sorted(Path(folder).rglob("evaluations.jsonl")) if folder else ():
        try:
            rows += _rows(place.parent)
        except ValueError as error:
            left_out.append(f"{place.parent.relative_to(folder)}: {error}")
    return pd.DataFrame(rows, columns=RUNS).drop_duplicates(RUNS[:-1]).astype(
        {"value": float}
    ), left_out


def _rows(folder: Path) -> list[tuple]:
    """The rows of one run, none if it is of another model. ValueError for a run that does not count."""
    try:
        config, log = (
            build_config(json.loads((folder / "config.json").read_text())),
            read_log(folder / "evaluations.jsonl"),
        )
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"its config.json or evaluations.jsonl is not whole ({error}): run the same command again"
        ) from error
    task = next(
        (
            t
            for t, (preset, _) in PRESETS.items()
            if _same(config.generator.path, read_config(preset).generator.path)
        ),
        None,
    )
    if task is None:
        return []
    model = read_config(PRESETS[task][0])
    if list(map(_identity, config.reward)) != list(map(_identity, model.reward)):
        raise ValueError(f"it is not trained on the paper's {TRAINED[task]} in the preset's scale")
    if not log or log[-1]["iteration"] < config.iterations:
        raise ValueError(
            f"not finished: the same command goes on, up to iteration {config.iterations}"
        )
    changed = [
        [
            d
            for d in differences(to_dict(read_config(p)), to_dict(config))
            if not d.startswith(APART)
        ]
        for p in PRESETS[task]
    ]
    nearest = min(range(len(changed)), key=lambda i: len(changed[i]))
    setting = "; ".join([PRESETS[task][nearest], *changed[nearest]])
    held_out = {
        _identity(r): "held_out" if len(config.evaluation.held_out) == 1 else r.name
        for r in config.evaluation.held_out
    }
    theirs = {
        metric: _identity(r)
        for metric, name in METRICS.items()
        for r in model.evaluation.held_out
        if r.name == name
    }
    keys = {TRAINED[task]: "reward"} | {
        metric: held_out[r] for metric, r in theirs.items() if r in held_out
    }
    o = config.objective
    method = (
        o.name
        if o.alpha == model.objective.alpha or o.name in ("grpo", "crt")
        else f"{o.name} alpha={o.alpha:g}"
    )
    ends = [("base", -1, log[0])] * (log[0]["iteration"] == 0) + [(method, config.seed, log[-1])]
    return [
        (task, setting, name, seed, metric, row.get(key))
        for name, seed, row in ends
        for metric, key in keys.items()
    ]


def _same(path: str, hub_id: str | None) -> bool:
    return Path(path).name == Path(hub_id or "").name


def _identity(reward: RewardConfig) -> tuple[str, bool, float]:
    """Name, whether the weights are the published ones, and scale."""
    theirs = REWARDS[reward.name][2] if reward.name in REWARDS else None
    return reward.name, reward.path is None or _same(reward.path, theirs), reward.scale


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of `real_runs` as a row a task, setting, method and metric: mean over seeds, its 95 % interval (low, high), and n."""
    by = ["task", "setting", "method", "metric"]
    found = [
        dict(zip(by, key, strict=True)) | bootstrap_mean(rows["value"])._asdict()
        for key, rows in runs.groupby(by, sort=False)
    ]
    return pd.DataFrame(found, columns=[*by, *Interval._fields])


def of_real(runs: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """The table of seeds of `real_runs`, of the setting that has the most runs in the task. Empty where there is none."""
    runs = runs[runs["task"] == task]
    trained = runs[(runs["metric"] == TRAINED[task]) & (runs["seed"] >= 0)]
    if trained.empty:
        return pd.DataFrame()
    rows = runs[
        (runs["setting"] == trained["setting"].value_counts().idxmax()) & (runs["metric"] == metric)
    ]
    table = rows.pivot(index="seed", columns="method", values="value")
    return table.assign(base=table["base"].get(-1)).drop(index=-1) if "base" in table else table


def estimate(table: pd.DataFrame, line: str) -> Interval:
    """Mean over seeds, with its 95 % interval, of a method, or of the paired difference "a - b" of two. n is 0 where there is none, and 1
    for the model before training, which has no seeds."""
    first, _, second = line.partition(" - ")
    if not {first, second or first} <= set(table):
        return Interval(np.nan, np.nan, np.nan, 0)
    values = table[first] - (table[second] if second else 0)
    return bootstrap_mean(values[:1] if line == "base" else values)


def beside(name: str, plan: pd.DataFrame, records: dict, runs: pd.DataFrame) -> pd.DataFrame:
    """A published table beside ours: a row a task, metric and line of `LINES`, with the number published and what we have for it.

    plan, records: of `evidence.read`; runs: of `real_runs`. Columns: task, metric, measure (ours; "" without counterpart), line,
    published (a difference is of two numbers there), ours and real (an Interval each, n = 0: not run).
    """
    known, rows = pd.concat([published("main"), published(name)]).drop_duplicates(), []
    for task, metric in (
        published(name)[["task", "metric"]].drop_duplicates().itertuples(index=False)
    ):
        numbers = (
            known[(known["task"] == task) & (known["metric"] == metric)]
            .set_index("method")["value"]
            .to_frame()
            .T
        )
        ours = of_study(plan, records, EXPERIMENTS[name], task, measure := MEASURES.get(metric, ""))
        real = of_real(runs, task, metric)
        if name == "alpha":  # the paper's are of RAS
            real = real.rename(
                columns=lambda m: "alpha=0.5" if m == "ras" else m.removeprefix("ras ")
            )
        for line in LINES[name]:
            rows.append(
                (
                    task,
                    metric,
                    measure,
                    line,
                    estimate(numbers, line).mean,
                    estimate(ours, line),
                    estimate(real, line),
                )
            )
    return pd.DataFrame(
        rows, columns=["task", "metric", "measure", "line", "published", "ours", "real"]
    )


def told(i: Interval, sign: str = "") -> str:
    """An Interval in words: "0.612 (0.590 to 0.634, n = 5)"; sign "+" writes both signs."""
    if not i.n:
        return "not run"
    around = "" if np.isnan(i.low) else f"{i.low:{sign}.3f} to {i.high:{sign}.3f}, "
    return f"{i.mean:{sign}.3f} ({around}n = {i.n})"


def text(rows: pd.DataFrame, names: dict[str, str]) -> str:
    """Rows of `beside` as aligned text, a block a metric; names: how methods are called."""
    lines = [["", "published, n = 1", "ours, tiny", "paper scale"]]
    for (task, metric), block in rows.groupby(["task", "metric"], sort=False):
        measure = block["measure"].iloc[0]
        lines.append(
            [
                f"{task} {metric}" + " (trained on)" * (metric == TRAINED[task]),
                "",
                f"[{measure or 'no counterpart'}]",
                "",
            ]
        )
        for row in block.itertuples():
            sign = "+" if " - " in row.line else ""
            line = " - ".join(names.get(method, method) for method in row.line.split(" - "))
            ours = told(row.ours, sign) if row.measure else ""
            lines.append([f"  {line}", f"{row.published:{sign}.4f}", ours, told(row.real, sign)])
    return aligned(lines)

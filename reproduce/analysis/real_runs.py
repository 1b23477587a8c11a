"""Runs of the published models, as `bpgo train` leaves them, under the paper's names of metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from bpgo.analysis.statistics import Interval, bootstrap_mean
from bpgo.config import Config, RewardConfig, build_config, differences, read_config, to_dict
from bpgo.files import read_log
from bpgo.rewards import published_weights

# The paper's name of a metric, and our name of the reward.
METRICS = {
    "VideoCLIP-XL": "video_clip_xl",
    "VideoAlign-TA": "video_align_ta",
    "VideoAlign-overall": "video_align",
    "Qwen3-VL-Embedding": "qwen3_vl_embedding",
    "HPSv2": "hpsv2",
    "PickScore": "pickscore",
    "ImageReward": "image_reward",
}
TRAINED = {"t2v": "VideoCLIP-XL", "i2v": "VideoCLIP-XL", "t2i": "HPSv2"}
PRESETS = {
    "t2v": ("t2v-wan2.1-1.3b", "t2v-wan2.1-1.3b-lowmem"),
    "i2v": ("i2v-wan2.2-a14b", "i2v-wan2.2-a14b-lowmem"),
    "t2i": ("t2i-flux", "t2i-flux-lowmem"),
}
# Runs of one setting may differ in these. Rewards are compared by name, weights and scale instead.
MAY_DIFFER = (
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


def real_runs(folder: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Finished runs of the published models below a folder, and why others were left out.

    A run counts for a task if its generator and its training reward are those of the task's
    presets. Its held-out metrics count if they are those of the presets too, by name, weights and
    scale; a local folder counts by its name. Runs of other models are skipped. Of two runs with the
    same method, setting and seed the first by name counts.

    The table has one row per number after training: task, setting (the nearest preset, and how it
    was changed), method, seed, metric (the paper's name) and value (in the preset's scale). `base`
    has the seed -1. The list has one line for each run that was left out. The folder "" contains no
    runs. Raises FileNotFoundError for any other folder that does not exist.
    """
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: give one that contains run folders of `bpgo train`, or none"
        )
    rows, left_out = [], []
    for place in sorted(Path(folder).rglob("evaluations.jsonl")) if folder else ():
        try:
            rows += _rows(place.parent)
        except ValueError as error:
            left_out.append(f"{place.parent.relative_to(folder)}: {error}")
    table = pd.DataFrame(rows, columns=RUNS).drop_duplicates(RUNS[:-1])
    return table.astype({"value": float}), left_out


def _rows(folder: Path) -> list[tuple]:
    """The rows of one run, none for another model. Raises ValueError if the run does not count."""
    try:
        config = build_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        log = read_log(folder / "evaluations.jsonl")
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"its config.json or evaluations.jsonl is incomplete ({error}): "
            f"run the same command again"
        ) from error
    task = _task_of(config)
    if task is None:
        return []
    preset = read_config(PRESETS[task][0])
    if [_identity(reward) for reward in config.reward] != [_identity(r) for r in preset.reward]:
        raise ValueError(f"it is not trained on the paper's {TRAINED[task]} in the preset's scale")
    if not log or log[-1]["iteration"] < config.iterations:
        raise ValueError(
            f"not finished: the same command resumes it, up to iteration {config.iterations}"
        )
    setting, method = _setting(task, config), _method(config, preset)
    ends = [(method, config.seed, log[-1])]
    if log[0]["iteration"] == 0:
        ends.insert(0, ("base", -1, log[0]))
    rows = []
    for name, seed, row in ends:
        for metric, key in _logged_names(task, config, preset).items():
            rows.append((task, setting, name, seed, metric, row.get(key)))
    return rows


def _task_of(config: Config) -> str | None:
    """The task whose published model this is, or None."""
    for task, (preset, _) in PRESETS.items():
        if _same(config.generator.path, read_config(preset).generator.path):
            return task
    return None


def _setting(task: str, config: Config) -> str:
    """The preset of the task that is nearest to the config, and how the config differs from it."""
    described = []
    for name in PRESETS[task]:
        changes = differences(to_dict(read_config(name)), to_dict(config))
        described.append([name, *(c for c in changes if not c.startswith(MAY_DIFFER))])
    return "; ".join(min(described, key=len))


def _method(config: Config, preset: Config) -> str:
    """The objective, with its alpha if that matters and is not the preset's."""
    objective = config.objective
    if objective.alpha == preset.objective.alpha or objective.name in ("grpo", "crt"):
        return objective.name
    return f"{objective.name} alpha={objective.alpha:g}"


def _logged_names(task: str, config: Config, preset: Config) -> dict[str, str]:
    """{the paper's metric: the name under which the run logs it}, of the metrics that count."""
    held_out = config.evaluation.held_out
    logged = {}
    for reward in held_out:
        logged[_identity(reward)] = "held_out" if len(held_out) == 1 else reward.name
    names = {TRAINED[task]: "reward"}
    for metric, name in METRICS.items():
        for reward in preset.evaluation.held_out:
            if reward.name == name and _identity(reward) in logged:
                names[metric] = logged[_identity(reward)]
    return names


def _same(path: str, hub_id: str | None) -> bool:
    return Path(path).name == Path(hub_id or "").name


def _identity(reward: RewardConfig) -> tuple[str, bool, float]:
    """Name, whether the weights are the published ones, and scale."""
    is_published = reward.path is None or _same(reward.path, published_weights(reward.name))
    return reward.name, is_published, reward.scale


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """`real_runs` as one row per task, setting, method and metric.

    Columns: these, the mean over seeds, its 95 % interval (low, high) and n.
    """
    by = ["task", "setting", "method", "metric"]
    rows = []
    for key, group in runs.groupby(by, sort=False):
        rows.append((*key, *bootstrap_mean(group["value"])))
    return pd.DataFrame(rows, columns=[*by, *Interval._fields])

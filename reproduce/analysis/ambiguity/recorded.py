"""The groups of samples in the study's `ambiguity` runs, and how well priors rank them.

A group is reliable if its rewards agree with the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd

from bpgo.analysis.runs import prompt_facts
from bpgo.analysis.statistics import auroc, rank_correlation
from bpgo.config import read_config
from bpgo.prompt_files import read_prompts
from bpgo.prompts import images_of, key_of
from bpgo.reference import first_frame_rewards
from reproduce.analysis.ambiguity.drawings import rewards_of, synonyms, world

STAGES = ("before training", "half-way", "after training")
# Deviations of the group's mean reward from these priors.
DEVIATIONS = ("mean reward", "SFT per prompt", "first frame")
# Also known without the truth, but neither deviations from a prior nor planned.
OTHERS = ("spread", "two rewards agree")
COLUMNS = [
    "task",
    "seed",
    "stage",
    "iteration",
    "prompt",
    "level",
    "bits",
    "synonyms",
    "reward_mean",
    "reward_std",
    "truth_mean",
    "agreement",
    "signal",
    "flat",
    *DEVIATIONS,
    *OTHERS,
]


def groups(plan: pd.DataFrame, records: dict[str, dict]) -> pd.DataFrame:
    """Every group of the recorded `ambiguity` runs.

    One row per task, seed, stage (0 before training, 1, 2 after it) and evaluation prompt:

    - prompt: its key. level: share of the attributes that it names. bits: what it leaves open.
      synonyms: see `drawings`.
    - agreement: the true reliability, in [-1, 1]. flat: all samples are equally true, which makes
      the agreement 0 by definition.
    - DEVIATIONS and OTHERS: what may show the reliability, higher for more; NaN where there is no
      such prior. "mean reward" is the mean minus a number that all groups of an iteration share
      (constant, SFT mean, running mean, hierarchy), so it ranks groups as the mean itself does.
      "SFT per prompt" is the mean minus that at stage 0, from the same noise. "spread" is the
      standard deviation of the rewards.
    """
    rows = plan[(plan["experiment"] == "ambiguity") & plan["run"].isin(list(records))]
    tables = [_groups(row.task, row.seed, records[row.run]) for row in rows.itertuples()]
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def _groups(task: str, seed: int, record: dict) -> pd.DataFrame:
    config = read_config(f"{task}-tiny")
    file = record["settings"].get("evaluation.prompts", config.evaluation.prompts)
    facts, first_frame = _facts(task, file)
    prompts = facts["prompt"]
    parts: list[pd.DataFrame] = []
    for stage, iteration in enumerate(sorted(record["groups"], key=int)):
        found = pd.DataFrame(record["groups"][iteration], dtype=float)
        if len(found) != len(prompts):
            raise ValueError(
                f"{record['run']} has {len(found)} groups, but {file} {len(prompts)} prompts: "
                f"run it again with these"
            )
        mean = found["reward_mean"]
        signals = {
            "mean reward": mean,
            "SFT per prompt": mean - parts[0]["reward_mean"] if parts else np.nan,
            "first frame": mean - first_frame,
            "spread": found["reward_std"],
            "two rewards agree": found.get("judges_agree", np.nan),
        }
        place = {"seed": seed, "stage": stage, "iteration": int(iteration)}
        flat = found["signal"] == 0
        parts.append(found.assign(**facts, **place, flat=flat, **signals))
    return pd.concat(parts)


@cache
def _facts(task: str, file: str) -> tuple[dict, np.ndarray | float]:
    """Columns that describe the prompts of a file, and the first-frame prior of each prompt.

    The latter is NaN if the prompts have no images.
    """
    prompts, captions = read_prompts(file), world(task).captions
    facts = {
        "task": task,
        "prompt": [key_of(prompt) for prompt in prompts],
        "synonyms": [synonyms(prompt, captions) for prompt in prompts],
        **prompt_facts(file, prompts),
    }
    if images_of(prompts) is None:
        return facts, np.nan
    frames = read_config(f"{task}-tiny").generator.frames
    still = SimpleNamespace(frames=frames, device="cpu")  # a still video needs no generator
    table = first_frame_rewards(still, rewards_of(task)[0], prompts)
    return facts, np.array([table[key] for key in facts["prompt"]])


def reliability(
    found: pd.DataFrame,
    signals: Iterable[str] = (*DEVIATIONS, *OTHERS),
    kinds: Iterable[str] = ("all", "not flat"),
) -> pd.DataFrame:
    """How well each signal ranks `groups` by true reliability: one row per task, stage and signal.

    kinds: for all groups, and for those that are not flat. rho, low, high: rank correlation with
    the agreement. auroc, auroc_low, auroc_high: probability that a group whose agreement is above
    the median has the higher signal than one whose agreement is not. Intervals (95 %) resample
    prompts: the runs of all seeds sample the same prompts from the same noise, so the n prompts are
    what is independent. seed_low, seed_high: lowest and highest rho of a seed.
    """
    rows = []
    for (task, stage), part in found.groupby(["task", "stage"], sort=False):
        for name in signals:
            for kind in kinds:
                kept = part if kind == "all" else part[~part["flat"].astype(bool)]
                kept = kept.dropna(subset=[name])
                if len(kept) > 2:
                    row = {"task": task, "stage": stage, "signal": name, "groups": kind}
                    rows.append(row | _ranks(kept, name))
    columns = ["task", "stage", "signal", "groups", "rho", "low", "high"]
    columns += ["auroc", "auroc_low", "auroc_high", "n", "seeds", "seed_low", "seed_high"]
    return pd.DataFrame(rows, columns=columns)


def _ranks(kept: pd.DataFrame, name: str) -> dict:
    """How well one signal ranks these groups."""
    score, truth = kept[name].to_numpy(), kept["agreement"].to_numpy()
    prompts = kept["prompt"].to_numpy()
    rank = rank_correlation(score, truth, prompts)
    area = auroc(score, truth > np.median(truth), prompts)
    by_seed = [
        rank_correlation(of_seed[name], of_seed["agreement"], resamples=1).mean
        for _, of_seed in kept.groupby("seed")
    ]
    return {
        "rho": rank.mean,
        "low": rank.low,
        "high": rank.high,
        "auroc": area.mean,
        "auroc_low": area.low,
        "auroc_high": area.high,
        "n": rank.n,
        "seeds": len(by_seed),
        "seed_low": min(by_seed),
        "seed_high": max(by_seed),
    }

"""Warnings from a run's logs: it stagnates, follows single samples, or over-optimises its reward.

Each guard is a function of log rows. It returns a message (what it sees, since when, and what to
do) or None. Guards change nothing in a run, and `guards: false` in the config turns them off.
Notebook 09 measures how often they are right on runs whose failures are known.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bpgo.config import Config
from bpgo.files import read_log

WINDOW = 10  # iterations that a guard looks back on, and between two checks
WEAK = 0.9  # the mean weight below which down-weighting all groups is reported


class TrainingWarning(UserWarning):
    """The message of a guard."""


def look(output: Path, config: Config) -> dict[str, str]:
    """The messages of all guards about a run's folder, by guard.

    Guards that are already in the run's warnings.jsonl are left out. Logs that cannot be read are
    reported like a guard, because no guard may end a run.
    """
    try:
        return _look(output, config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"logs": f"the guards could not read the logs ({type(error).__name__}: {error})"}


def _look(output: Path, config: Config) -> dict[str, str]:
    metrics = _read(output / "metrics.jsonl")
    evaluations = _read(output / "evaluations.jsonl")
    reported = {row["guard"] for row in _read(output / "warnings.jsonl")}
    held_out = [reward.name for reward in config.evaluation.held_out]
    if len(held_out) == 1:
        held_out = ["held_out"]  # the name of a single one in the logs
    found = {
        "stagnation": stagnation(metrics),
        "concentration": concentration(metrics, config.group_size),
        "over-optimisation": over_optimisation(evaluations, held_out),
    }
    return {guard: text for guard, text in found.items() if text and guard not in reported}


def stagnation(metrics: list[dict]) -> str | None:
    """For WINDOW iterations, all groups were weighted down, or most groups had equal rewards."""
    recent = metrics[-WINDOW:]
    if len(recent) < WINDOW:
        return None
    prior, reward = _mean(recent, "prior"), _mean(recent, "reward")
    weight, flat = _mean(recent, "weight_mean"), _mean(recent, "zero_variance_groups")
    if weight < WEAK and all(row["weight_max"] < 1 for row in recent):
        return (
            f"RAS has weighted down every group of the last {WINDOW} iterations, by "
            f"{1 - weight:.0%}, because the prior ({prior:.4g}) is above all of them (mean reward "
            f"{reward:.4g}). Lower it, or set prior.name=running_mean, which follows the reward"
        )
    if flat > 0.5:
        return (
            f"in {flat:.0%} of the groups of the last {WINDOW} iterations, all samples had the "
            f"same reward and nothing could be learned. Use prompts that the model gets neither "
            f"always right nor always wrong, a finer reward, or more noise in sampling"
        )
    return None


def concentration(metrics: list[dict], group_size: int) -> str | None:
    """For WINDOW iterations, few samples carried the gradient of each group.

    The advantages of a group of G samples sum to 0. One sample against all others therefore has an
    effective sample size of 4 (G - 1) / G, and normally distributed rewards have 2 G / pi. The
    limit is halfway between the two, which cannot be distinguished below six samples. Groups with
    equal rewards are not counted.
    """
    recent = metrics[-WINDOW:]
    if group_size < 6 or len(recent) < WINDOW:
        return None
    if any(row["zero_variance_groups"] == 1 for row in recent):
        return None
    single, usual = 4 * (group_size - 1) / group_size, 2 * group_size / math.pi
    sizes = []
    for row in recent:
        # In the logged mean, a group with equal rewards counts as 0.
        sizes.append(row["effective_sample_size"] / (1 - row["zero_variance_groups"]))
    if max(sizes) >= (single + usual) / 2:
        return None
    return (
        f"few samples have carried the gradient of the last {WINDOW} iterations: an effective "
        f"number of {sum(sizes) / len(sizes):.2g} of {group_size}, where {usual:.2g} is usual "
        f"and {single:.2g} means one sample against the rest. Look for outliers of the reward, or "
        f"lower objective.lam or objective.beta"
    )


def over_optimisation(evaluations: list[dict], held_out: list[str]) -> str | None:
    """A held-out reward has fallen since an earlier evaluation, while the trained one has risen.

    The fall must be above three standard errors over the prompts. evaluations: rows of
    evaluations.jsonl, whose scores are lists of one row per prompt. held_out: names of metrics.
    """
    for name in held_out:
        best, last = max(evaluations, key=lambda row: row[name]), evaluations[-1]
        fall = np.mean(best["scores"][name], axis=1) - np.mean(last["scores"][name], axis=1)
        if len(fall) <= 2 or last["reward"] <= best["reward"]:
            continue
        if fall.mean() > 3 * fall.std(ddof=1) / math.sqrt(len(fall)):
            return (
                f"since iteration {best['iteration']}, the reward has risen from "
                f"{best['reward']:.4g} to {last['reward']:.4g}, while {name} has fallen from "
                f"{best[name]:.4g} to {last[name]:.4g}: the policy exploits its reward. Stop "
                f"at that iteration, train on a sum of rewards, or lower optimiser.learning_rate"
            )
    return None


def _mean(rows: list[dict], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _read(file: Path) -> list[dict]:
    return read_log(file) if file.exists() else []

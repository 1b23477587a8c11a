"""What a run's own logs say against it: that it stagnates, follows single samples, or games its reward.

Each guard is a function of log lines that returns a sentence (what, since when, what to do) or None. They change nothing in a run;
the config's `guards: false` silences them. How often they are right and wrong on runs of known truth: notebook 09.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bpgo.config import Config
from bpgo.files import read_log

WINDOW = 10  # iterations that a guard looks back on, and after which it looks again
WEAK = 0.9  # a mean weight below which groups that are all weighted down are worth a word


class TrainingWarning(UserWarning):
    """Something that a guard saw."""


def look(output: Path, config: Config) -> dict[str, str]:
    """{guard: what it sees} in the logs of a run's folder, without what its warnings.jsonl has already."""
    metrics, evaluations, told = (
        _log(output / f"{name}.jsonl") for name in ("metrics", "evaluations", "warnings")
    )
    held_out = [reward.name for reward in config.evaluation.held_out]
    found = {
        "stagnation": stagnation(metrics),
        "concentration": concentration(metrics, config.group_size),
        "over-optimisation": over_optimisation(
            evaluations, held_out if len(held_out) > 1 else ["held_out"] * len(held_out)
        ),
    }
    return {
        name: words
        for name, words in found.items()
        if words and name not in {line["guard"] for line in told}
    }


def stagnation(metrics: list[dict]) -> str | None:
    """Every group has been weighted down, or most had no two different rewards, for WINDOW iterations."""
    recent = metrics[-WINDOW:]
    if len(recent) < WINDOW:
        return None
    prior, reward, weight, flat = (
        _mean(recent, name) for name in ("prior", "reward", "weight_mean", "zero_variance_groups")
    )
    if weight < WEAK and all(line["weight_max"] < 1 for line in recent):
        return (
            f"RAS has weighted down every group of the last {WINDOW} iterations, by {1 - weight:.0%}, because the prior ({prior:.4g}) "
            f"lies above all of them (mean reward {reward:.4g}). Lower it: prior.name=running_mean follows the reward"
        )
    if flat > 0.5:
        return (
            f"in {flat:.0%} of the groups of the last {WINDOW} iterations all samples had the same reward, and taught nothing. Take "
            "prompts that the model gets neither always right nor always wrong, a finer reward, or more noise in sampling"
        )
    return None


def concentration(metrics: list[dict], group_size: int) -> str | None:
    """Few samples have carried each group's gradient for WINDOW iterations.

    Advantages of a group sum to 0, so one sample against all others has an effective sample size of 4 (G - 1) / G, and normal rewards
    have 2 G / pi; the line is drawn half-way. Below six samples the two cannot be told apart. Groups of equal rewards do not count.
    """
    one, usual = 4 * (group_size - 1) / group_size, 2 * group_size / math.pi
    recent = metrics[-WINDOW:]
    if (
        group_size < 6
        or len(recent) < WINDOW
        or any(line["zero_variance_groups"] == 1 for line in recent)
    ):
        return None
    sizes = [
        line["effective_sample_size"] / (1 - line["zero_variance_groups"]) for line in recent
    ]  # logged, a flat group has 0
    if max(sizes) >= (one + usual) / 2:
        return None
    size = sum(sizes) / len(sizes)
    return (
        f"few samples have carried the gradient of the last {WINDOW} iterations: an effective {size:.2g} of {group_size}, where "
        f"{usual:.2g} is usual and {one:.2g} is a single one against the rest. Look for outliers of the reward; a smaller objective.lam or "
        "objective.beta follows them less"
    )


def over_optimisation(evaluations: list[dict], held_out: list[str]) -> str | None:
    """A held-out reward is lower than at an earlier evaluation, by three standard errors over prompts, while the trained one is higher.

    evaluations: lines of evaluations.jsonl, with their scores: metric -> rows of a prompt's samples. held_out: names of metrics.
    """
    for name in held_out:
        best, last = max(evaluations, key=lambda line: line[name]), evaluations[-1]
        fall = np.mean(best["scores"][name], axis=1) - np.mean(last["scores"][name], axis=1)
        if (
            len(fall) > 2
            and last["reward"] > best["reward"]
            and fall.mean() > 3 * fall.std(ddof=1) / math.sqrt(len(fall))
        ):
            return (
                f"the reward has risen from {best['reward']:.4g} to {last['reward']:.4g} since iteration {best['iteration']}, while "
                f"{name} fell from {best[name]:.4g} to {last[name]:.4g}: the policy learns what only this reward likes. Stop there, "
                "train on a sum of rewards, or lower optimiser.learning_rate"
            )
    return None


def _mean(lines: list[dict], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def _log(file: Path) -> list[dict]:
    return read_log(file) if file.exists() else []

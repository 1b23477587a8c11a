"""What the study's records say about gains in accuracy: the answers to H1, H9-H11, H15 and H16.

Every function here asks one question. Called with the plan and the records (see `evidence`), it
returns what `answers.Asked` describes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from bpgo.analysis.statistics import Interval, format_interval, paired
from reproduce.analysis import evidence
from reproduce.analysis.answers import (
    Answer,
    Asked,
    difference,
    found_above,
    in_each_task,
    tasks_of,
)
from reproduce.analysis.evidence import PRIMARY

OWN_PRIOR = {"t2i": "running_mean", "t2v": "sft", "i2v": "first_frame"}


def over_grpo(plan: pd.DataFrame, records: dict) -> Asked:
    """H1: does BPGO beat GRPO?"""

    def answer(experiment: str, task: str) -> Answer:
        ended = evidence.final(plan, records, experiment, task, PRIMARY)
        gain, p = difference(ended, "bpgo", "grpo")
        return (
            gain.n,
            f"accuracy, BPGO minus GRPO {format_interval(gain)}",
            found_above(gain, p),
        )

    asked = []
    for experiment in ("ablation", "digits"):
        for task in tasks_of(plan, experiment):
            asked.append((task, [experiment], lambda given=(experiment, task): answer(*given)))
    return asked


def with_ten_seeds(arm: str, earlier: str) -> Callable[[pd.DataFrame, dict], Asked]:
    """H15, H16: does an arm of `trust` beat GRPO?

    earlier: the experiment that asked the same. The seeds that are new are also reported alone.
    """

    def answer(plan: pd.DataFrame, records: dict, task: str) -> Answer:
        ended = evidence.final(plan, records, "trust", task, PRIMARY)
        gain, p = difference(ended, arm, "grpo")
        is_earlier = (plan["experiment"] == earlier.format(task=task)) & (plan["task"] == task)
        new_seeds = ended[~ended.index.isin(plan["seed"][is_earlier])]
        new, _ = difference(new_seeds, arm, "grpo")
        finding = f"accuracy, minus GRPO {format_interval(gain)}"
        if new.n:
            finding += f"; the {new.n} new seeds alone {format_interval(new)}"
        return gain.n, finding, found_above(gain, p)

    return in_each_task("trust", answer)


def of_prior(
    arm: str,
    base: str | None,
    holds: Callable[[Interval, float], bool],
    what: str,
    other: Callable[[pd.DataFrame, str], tuple[str, pd.Series]] | None = None,
) -> Callable[[pd.DataFrame, dict], Asked]:
    """H9 to H11: how does an arm of priors_* compare with the arm `base`?

    base: None is the task's own prior. holds: whether the claim holds, by the gain and its p-value
    corrected over all arms. what: the metric, and what is subtracted. other: returns, from the
    table of runs and the task, a second comparison (its label and base), which is only reported.
    """

    def answer(plan: pd.DataFrame, records: dict, task: str) -> Answer:
        ended = evidence.final(plan, records, f"priors_{task}", task, PRIMARY)
        ablation = evidence.so_far(plan, records, "ablation", task, PRIMARY)
        ended = ended.assign(grpo=ablation["grpo"])
        gain, p = difference(ended, arm, base or OWN_PRIOR[task])
        finding = f"{what} {format_interval(gain)}"
        if other:
            label, column = other(ended, task)
            second = paired(ended[arm].to_numpy(float), column.to_numpy(float))
            finding += f"; {label} {format_interval(second.difference)}"
        return gain.n, finding, None if np.isnan(p) else bool(holds(gain, p))

    def asked(plan: pd.DataFrame, records: dict) -> Asked:
        found = []
        for experiment in dict.fromkeys(plan["experiment"]):
            if experiment.startswith("priors_"):
                found += in_each_task(experiment, answer)(plan, records)
        return found

    return asked


def minus_own_prior(ended: pd.DataFrame, task: str) -> tuple[str, pd.Series]:
    """A second comparison for `of_prior`: with the task's own prior."""
    return "minus the task's own prior", ended[OWN_PRIOR[task]]


def minus_others(ended: pd.DataFrame, task: str) -> tuple[str, pd.Series]:
    """A second comparison for `of_prior`: with the mean of the priors that are not too high."""
    others = ended.drop(columns=["grpo", "ceiling", "too_high"])
    return "minus the mean of the other priors", others.mean(axis=1, skipna=False)

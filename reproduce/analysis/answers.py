"""How the question of a claim is asked and answered."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from bpgo.analysis.statistics import Interval
from reproduce.analysis import evidence

# n (independent units behind the finding), the finding in words, and whether the claim holds.
# None: too little is recorded to say.
Answer = tuple[int, str, bool | None]
# For each task: the experiments that are read, and the function that answers.
Asked = list[tuple[str, list[str], Callable[[], Answer]]]
UNKNOWN: Answer = (0, "", None)


def tasks_of(plan: pd.DataFrame, experiment: str) -> list[str]:
    """The tasks of an experiment, in the plan's order."""
    return list(dict.fromkeys(plan["task"][plan["experiment"] == experiment]))


def in_each_task(
    experiment: str, answer: Callable[[pd.DataFrame, dict, str], Answer]
) -> Callable[[pd.DataFrame, dict], Asked]:
    """Asks a question in every task of an experiment. answer: (plan, records, task) -> Answer."""

    def asked(plan: pd.DataFrame, records: dict) -> Asked:
        return [
            (task, [experiment], lambda task=task: answer(plan, records, task))
            for task in tasks_of(plan, experiment)
        ]

    return asked


def on_text_to_image(
    experiment: str, answer: Callable[[pd.DataFrame, dict], Answer]
) -> Callable[[pd.DataFrame, dict], Asked]:
    """Asks a question on text-to-image only."""
    return lambda plan, records: [("t2i", [experiment], lambda: answer(plan, records))]


def difference(ended: pd.DataFrame, arm: str, base: str) -> tuple[Interval, float]:
    """The difference of two arms of `evidence.final` over the seeds that both have.

    Returns its interval, and its p-value corrected over all arms.
    """
    row = evidence.compare(ended, base).loc[arm]
    seeds = int((ended[arm] - ended[base]).count())
    return Interval(row[f"- {base}"], row["from"], row["to"], seeds), row["p"]


def found_above(gain: Interval, p: float) -> bool | None:
    """Whether a gain is found: its interval lies above 0 and its corrected p-value is below .05."""
    return None if pd.isna(p) else bool(gain.low > 0 and p < 0.05)

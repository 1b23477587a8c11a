"""What the study's records say about settings: the answers to H6, H7 and H8 of reproduce/PLAN.md.

Every function takes the plan and the records (see `evidence`) and returns an `answers.Answer`.
"Level with the best" is Tukey's test, `statistics.level_with_best`.
"""

from __future__ import annotations

import pandas as pd

from bpgo.analysis.statistics import level_with_best
from reproduce.analysis import evidence
from reproduce.analysis.answers import UNKNOWN, Answer, Asked, tasks_of
from reproduce.analysis.evidence import PRIMARY


def alpha(plan: pd.DataFrame, records: dict) -> Asked:
    """H6: is alpha = .5 level with the best alpha?"""

    def answer(experiment: str, task: str, default: str) -> Answer:
        ended = evidence.final(plan, records, experiment, task, PRIMARY)
        seeds = _complete_seeds(ended)
        if seeds < 2:
            return UNKNOWN
        level = dict(zip(ended, level_with_best(ended.to_numpy(float).T), strict=True))
        best = ended.mean().idxmax()
        finding = f"alpha = .5 {ended[default].mean():.3f}, best {best} {ended[best].mean():.3f}"
        return seeds, finding, bool(level[default])

    image = "alpha_kappa", "t2i", "alpha=0.5 kappa=1.0"
    video = [("alpha_video", task, "alpha=0.5") for task in tasks_of(plan, "alpha_video")]
    return [
        (task, [experiment], lambda given=(experiment, task, arm): answer(*given))
        for experiment, task, arm in [image, *video]
    ]


def lambda_beta(plan: pd.DataFrame, records: dict) -> Answer:
    """H7: are at least half of the cells of lambda and beta level with the best?"""
    ended = evidence.final(plan, records, "lambda_beta", "t2i", PRIMARY)
    seeds = _complete_seeds(ended)
    if seeds < 2:
        return UNKNOWN
    level = level_with_best(ended.to_numpy(float).T)
    finding = f"{level.sum()} of {len(level)} cells level with the best"
    return seeds, finding, bool(level.sum() >= len(level) / 2)


def size_alpha(plan: pd.DataFrame, records: dict) -> Answer:
    """H8: is the best alpha at G = 4 smaller than at G = 16?"""
    ended = evidence.final(plan, records, "size_alpha", "t2i", PRIMARY)
    mean, _ = evidence.grid(ended)
    if mean.isna().any(axis=None):
        return UNKNOWN
    best = [float(value) for value in mean.idxmax(axis=1)]
    finding = ", ".join(
        f"G = {size}: {value:g}" for size, value in zip(mean.index, best, strict=True)
    )
    return _complete_seeds(ended), f"best alpha by mean: {finding}", best[0] < best[-1]


def _complete_seeds(ended: pd.DataFrame) -> int:
    """The number of seeds that the arm with the fewest has."""
    return int(ended.notna().sum().min())

"""What the study's records say of settings: the answers to H6, H7 and H8 of reproduce/PLAN.md.

Each takes the plan and the records (see `evidence`) and returns n (seeds), a finding in words, and whether the claim holds, None where
too little is recorded to say. "Level with the best" is Tukey's test: `statistics.level_with_best`.
"""

from __future__ import annotations

import pandas as pd

from bpgo.analysis.statistics import level_with_best
from reproduce.analysis import evidence
from reproduce.analysis.evidence import PRIMARY


def alpha(
    plan: pd.DataFrame, records: dict, experiment: str, task: str, default: str
) -> tuple[int, str, bool | None]:
    """Is the arm `default`, which has alpha = .5, level with the best of the experiment?"""
    ended = evidence.final(plan, records, experiment, task, PRIMARY)
    if (n := int(ended.notna().sum().min())) < 2:
        return 0, "", None
    level, best = (
        dict(zip(ended, level_with_best(ended.to_numpy(float).T), strict=True)),
        ended.mean().idxmax(),
    )
    return (
        n,
        f"alpha = .5 {ended[default].mean():.3f}, best {best} {ended[best].mean():.3f}",
        bool(level[default]),
    )


def lambda_beta(plan: pd.DataFrame, records: dict) -> tuple[int, str, bool | None]:
    """Are at least half of the cells of lambda and beta level with the best?"""
    ended = evidence.final(plan, records, "lambda_beta", "t2i", PRIMARY)
    if (n := int(ended.notna().sum().min())) < 2:
        return 0, "", None
    level = level_with_best(ended.to_numpy(float).T)
    return (
        n,
        f"{level.sum()} of {len(level)} cells level with the best",
        bool(level.sum() >= len(level) / 2),
    )


def size_alpha(plan: pd.DataFrame, records: dict) -> tuple[int, str, bool | None]:
    """Is the best alpha at G = 4 smaller than at G = 16?"""
    ended = evidence.final(plan, records, "size_alpha", "t2i", PRIMARY)
    mean, _ = evidence.grid(ended)
    if mean.isna().any(axis=None):
        return 0, "", None
    best = [float(x) for x in mean.idxmax(axis=1)]
    told = ", ".join(f"G = {size}: {x:g}" for size, x in zip(mean.index, best, strict=True))
    return int(ended.notna().sum().min()), f"best alpha by mean: {told}", best[0] < best[-1]

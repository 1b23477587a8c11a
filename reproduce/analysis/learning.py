"""What the study's records say about how runs learn: the answers to H2, H3, H4 and H5.

Every function takes the plan and the records (see `evidence`) and returns an `answers.Answer`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bpgo.analysis.statistics import Interval, bootstrap_mean, format_interval, holm, paired
from reproduce.analysis import ambiguity, evidence
from reproduce.analysis.answers import UNKNOWN, Answer
from reproduce.analysis.evidence import PRIMARY

OBJECTIVES = ("grpo", "ras", "crt", "bpgo")


def pace(plan: pd.DataFrame, records: dict, task: str) -> Answer:
    """H2: is RAS slow and steady, CRT fast and unsteady, and BPGO fast and steady?"""
    found = evidence.pace(plan, records, "ablation", task)
    if not set(OBJECTIVES) <= found.keys():
        return UNKNOWN
    early = {arm: values[0].mean() for arm, values in found.items()}
    unsteady = {arm: values[1].mean() for arm, values in found.items()}
    finding = ", ".join(
        f"{arm.upper()} {early[arm]:.2f} / {unsteady[arm]:.2f}" for arm in OBJECTIVES
    )
    crt_is_unsteady = unsteady["crt"] > max(unsteady["bpgo"], unsteady["ras"])
    ras_is_slow = early["ras"] < min(early["crt"], early["bpgo"])
    seeds = min(len(values[0]) for values in found.values())
    holds = bool(crt_is_unsteady and ras_is_slow)
    return seeds, f"means, early rise / oscillation: {finding}", holds


def gaming(plan: pd.DataFrame, records: dict, task: str) -> Answer:
    """H3: where BPGO has GRPO's last reward, are its held-out reward or its accuracy higher?"""
    both = evidence.pairs(plan, records, "ablation", task, "bpgo", "grpo")
    gains = {}
    for metric in ("held_out", "accuracy"):
        bpgo_values, grpo_values = [], []
        for bpgo, grpo in both:
            end = grpo["evaluations"][-1]
            bpgo_values.append(_at_reward(bpgo, end["reward"], metric))
            grpo_values.append(end[metric])
        gains[metric] = paired(np.array(bpgo_values, float), np.array(grpo_values, float))
    reached = 0
    for bpgo, grpo in both:
        highest = max(evaluation["reward"] for evaluation in bpgo["evaluations"])
        reached += highest >= grpo["evaluations"][-1]["reward"]
    corrected = holm(np.array([gain.p for gain in gains.values()]))
    holds = None
    if not np.isnan(corrected).any():
        holds = any(
            gain.difference.low > 0 and p < 0.05
            for gain, p in zip(gains.values(), corrected, strict=True)
        )
    finding = (
        f"BPGO minus GRPO at GRPO's last reward: "
        f"held-out reward {format_interval(gains['held_out'].difference)}, "
        f"accuracy {format_interval(gains['accuracy'].difference)}; BPGO reaches that reward "
        f"in {reached} of {len(both)} pairs, in the others its end is taken"
    )
    return len(both), finding, holds


def _at_reward(run: dict, level: float, metric: str) -> float:
    """A metric where the line through a run's evaluations first meets a reward, or at its end."""
    reward = np.array([evaluation["reward"] for evaluation in run["evaluations"]])
    value = np.array([evaluation[metric] for evaluation in run["evaluations"]])
    low, high = np.minimum(reward[:-1], reward[1:]), np.maximum(reward[:-1], reward[1:])
    meets = np.flatnonzero((low <= level) & (level <= high))
    if not meets.size:
        return float(value[-1])
    i = meets[0]
    fraction = (level - reward[i]) / ((reward[i + 1] - reward[i]) or 1.0)
    return float(value[i] + (value[i + 1] - value[i]) * fraction)


def mix(plan: pd.DataFrame, records: dict) -> Answer:
    """H4: does BPGO's gain over GRPO grow with the share of ambiguous prompts?"""
    ended = evidence.final(plan, records, "mix", "t2i", PRIMARY)
    shares = [float(arm.rpartition("=")[2]) for arm in ended if "name=bpgo" in arm]
    gains = [ended[f"name=bpgo mix={share}"] - ended[f"name=grpo mix={share}"] for share in shares]
    slopes = []
    for of_seed in np.array(gains).T:
        if np.isfinite(of_seed).all():
            slopes.append(np.polyfit(shares, of_seed, 1)[0])
    slope = bootstrap_mean(np.array(slopes))
    holds = None if np.isnan(slope.low) else slope.low > 0
    return slope.n, f"slope of the gain over the share {format_interval(slope)}", holds


def reliability(plan: pd.DataFrame, records: dict, task: str) -> Answer:
    """H5: is a group's deviation from the prior a sign of how reliable the group is?"""
    groups = ambiguity.groups(plan[plan["task"] == task], records)
    found = ambiguity.reliability(groups, ambiguity.DEVIATIONS, ("all",)).sort_values("rho")
    ends = []
    for row in found.iloc[[0, -1]].itertuples():
        interval = Interval(row.rho, row.low, row.high, row.n)
        name = f"{row.signal}, {ambiguity.STAGES[row.stage]}"
        ends.append(f"{format_interval(interval, '+.2f')} ({name})")
    clear = (found["low"] > 0) & (found["auroc_low"] > 0.5)
    finding = (
        f"rank correlation with true reliability from {ends[0]} to {ends[1]}; above 0, and AUROC "
        f"above .5, in {clear.sum()} of {len(found)} cases of a prior and a stage"
    )
    return int(found["n"].min()), finding, bool(clear.all())

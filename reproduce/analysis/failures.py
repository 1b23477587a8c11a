"""What the study's records say about corrupted rewards and provoked failures.

The answers to H12, H13 and H14 of reproduce/PLAN.md. Every function takes the plan and the records
(see `evidence`) and returns an `answers.Answer`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bpgo import guards
from bpgo.analysis.runs import oscillation
from bpgo.analysis.statistics import format_interval, holm, paired
from reproduce.analysis import evidence
from reproduce.analysis.answers import UNKNOWN, Answer
from reproduce.analysis.evidence import PRIMARY

NOISES = ("noise_ambiguous", "noise")
# Logged numbers that show whether CRT follows single samples.
CONCENTRATION = {
    "effective_sample_size": "effective samples of 12",
    "grad_norm": "variation of the gradient's norm",
}


def noise(plan: pd.DataFrame, records: dict) -> Answer:
    """H12: does RAS lose less accuracy under noise than GRPO, CRT more, and BPGO less than CRT?

    Losses are paired by seed.
    """
    ended = evidence.final(plan, records, "failure_noise", "t2i", PRIMARY)
    clean = evidence.so_far(plan, records, "ablation", "t2i", PRIMARY).reindex(ended.index)
    lost = {}
    for arm in ("grpo", "ras", "crt", "bpgo"):
        for kind in NOISES:
            lost[arm, kind] = clean[arm] - ended[f"name={arm} corruption={kind}"]
    mean = {}  # over both kinds of noise, for each seed
    for arm in ("grpo", "crt", "bpgo"):
        mean[arm] = sum(lost[arm, kind] for kind in NOISES) / len(NOISES)
    on_ambiguous = NOISES[0]
    # The sign that the claim expects, and the two losses.
    comparisons = {
        "RAS minus GRPO, noise on ambiguous prompts": (
            -1,
            lost["ras", on_ambiguous],
            lost["grpo", on_ambiguous],
        ),
        "CRT minus GRPO": (1, mean["crt"], mean["grpo"]),
        "BPGO minus CRT": (-1, mean["bpgo"], mean["crt"]),
    }
    signs = [sign for sign, _, _ in comparisons.values()]
    gaps = [paired(a.to_numpy(float), b.to_numpy(float)) for _, a, b in comparisons.values()]
    corrected = holm(np.array([gap.p for gap in gaps]))
    as_claimed = [
        sign * gap.difference.mean > 0 and p < 0.05
        for sign, gap, p in zip(signs, gaps, corrected, strict=True)
    ]
    finding = "; ".join(
        f"{name} {format_interval(gap.difference)}"
        for name, gap in zip(comparisons, gaps, strict=True)
    )
    holds = None if np.isnan(corrected).any() else all(as_claimed)
    return min(gap.n for gap in gaps), f"accuracy lost: {finding}", holds


def normalisation(plan: pd.DataFrame, records: dict) -> Answer:
    """H13: does CRT without group normalisation follow fewer samples, or vary its gradient more?

    One of the two must be so in every run, with the clean and with the corrupted reward.
    """
    done = plan[plan["run"].isin(list(records))]
    seeds = done["seed"][done["experiment"] == "failure_normalisation"]
    done = done[done["seed"].isin(seeds)]  # other experiments may have more seeds
    parts, apart = [], dict.fromkeys(CONCENTRATION, True)
    for name, label in CONCENTRATION.items():
        without, clean, corrupted = (
            evidence.curves(done, records, experiment, "t2i", name)
            for experiment in ("failure_normalisation", "ablation", "failure_noise")
        )
        usual = {
            "none": clean.get("crt"),
            "heavy_tails": corrupted.get("name=crt corruption=heavy_tails"),
        }
        for corruption, runs_with in usual.items():
            runs_without = without.get(f"name=crt rule=raw corruption={corruption}")
            if runs_without is None or runs_with is None:
                return UNKNOWN
            a, b = _per_run(name, runs_without), _per_run(name, runs_with)
            parts.append(
                f"{label}, {corruption.replace('_', ' ')}: "
                f"{a.mean():.2f} without, {b.mean():.2f} with"
            )
            fewer = name == "effective_sample_size"
            apart[name] &= bool(a.max() < b.min() if fewer else a.min() > b.max())
    return len(runs_without), "; ".join(parts), any(apart.values())


def _per_run(name: str, values: np.ndarray) -> np.ndarray:
    """(runs,): the mean effective sample size, or the coefficient of variation of the norm."""
    if name == "grad_norm":
        return values.std(1) / values.mean(1)
    return values.mean(1)


def signs(plan: pd.DataFrame, records: dict) -> Answer:
    """H14: does each of the paper's failures, when provoked, show in a guard or a logged number?

    It must do so in every run, and no guard may warn in a healthy run. Only seeds that all four
    arms have count.
    """
    rows = plan[(plan["experiment"] == "signatures") & plan["run"].isin(list(records))]
    rows = rows[rows.groupby("seed")["arm"].transform("nunique") == 4]
    runs = {arm: [records[run] for run in part["run"]] for arm, part in rows.groupby("arm")}
    if len(runs) < 4:
        return UNKNOWN
    unsteady, stalled, gamed = {}, {}, {}
    for arm, part in runs.items():
        unsteady[arm] = [oscillation(run["curves"]["reward"], 1.0) for run in part]
        stalled[arm] = sum(_stalls(run) for run in part)
        gamed[arm] = sum(_games(run) for run in part)
    n = min(map(len, runs.values()))
    finding = (
        f"of {n} runs each: guard of stagnation, {stalled['stagnation']} stagnating and "
        f"{stalled['healthy']} healthy; trained reward up and held-out reward down, "
        f"{gamed['misalignment']} misaligned and {gamed['healthy']} healthy; second differences "
        f"of the reward {np.mean(unsteady['oscillation']):.3f} oscillating, "
        f"{np.mean(unsteady['healthy']):.3f} healthy"
    )
    shown = (
        stalled["stagnation"] == n
        and gamed["misalignment"] == n
        and min(unsteady["oscillation"]) > max(unsteady["healthy"])
    )
    return n, finding, bool(shown and not stalled["healthy"])


def _stalls(run: dict) -> bool:
    """Whether the guard of stagnation would have warned at any time, by the recorded curves."""
    names = ("weight_max", "weight_mean", "prior", "reward", "zero_variance_groups")
    columns = [run["curves"][name] for name in names]
    lines = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return any(guards.stagnation(lines[:end]) for end in range(guards.WINDOW, len(lines) + 1))


def _games(run: dict) -> bool:
    """Whether the training reward, as corrupted, rises and the held-out reward ends below its peak.

    The rise is from the first fifth of the run to the last.
    """
    reward = np.array(run["curves"]["reward"])
    held_out = [evaluation["held_out"] for evaluation in run["evaluations"]]
    fifth = max(1, len(reward) // 5)
    rises = reward[-fifth:].mean() > reward[:fifth].mean()
    return bool(rises and held_out[-1] < max(held_out[:-1]))

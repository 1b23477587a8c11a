"""What the study's records say of rewards made wrong and of failures provoked: the answers to H12, H13 and H14 of reproduce/PLAN.md.

Each takes the plan and the records (see `evidence`) and returns n (seeds), a finding in words, and whether the claim holds, None where
too little is recorded to say.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bpgo import guards
from bpgo.analysis.runs import oscillation
from bpgo.analysis.statistics import holm, paired, said
from reproduce.analysis import evidence
from reproduce.analysis.evidence import PRIMARY

NOISES = ("noise_ambiguous", "noise")


def noise(plan: pd.DataFrame, records: dict) -> tuple[int, str, bool | None]:
    """Accuracy lost under noise, paired by seed: does RAS lose less than GRPO, CRT more, and BPGO less than CRT?"""
    ended = evidence.final(plan, records, "failure_noise", "t2i", PRIMARY)
    clean = evidence.so_far(plan, records, "ablation", "t2i", PRIMARY).reindex(ended.index)
    lost = {
        (arm, c): clean[arm] - ended[f"name={arm} corruption={c}"]
        for arm in ("grpo", "ras", "crt", "bpgo")
        for c in NOISES
    }
    means = {
        arm: sum(lost[arm, c] for c in NOISES) / len(NOISES) for arm in ("grpo", "crt", "bpgo")
    }  # a seed's mean over both kinds
    asked = {
        "RAS less GRPO, noise on ambiguous prompts": (
            -1,
            lost["ras", NOISES[0]],
            lost["grpo", NOISES[0]],
        ),
        "CRT less GRPO": (1, means["crt"], means["grpo"]),
        "BPGO less CRT": (-1, means["bpgo"], means["crt"]),
    }
    gaps = {
        name: (sign, paired(a.to_numpy(float), b.to_numpy(float)))
        for name, (sign, a, b) in asked.items()
    }
    p = holm(np.array([gap.p for _, gap in gaps.values()]))
    found = [
        sign * gap.difference.mean > 0 and at < 0.05
        for (sign, gap), at in zip(gaps.values(), p, strict=True)
    ]
    told = "; ".join(f"{name} {said(gap.difference)}" for name, (_, gap) in gaps.items())
    return (
        min(gap.n for _, gap in gaps.values()),
        f"accuracy lost: {told}",
        None if np.isnan(p).any() else all(found),
    )


def normalisation(plan: pd.DataFrame, records: dict) -> tuple[int, str, bool | None]:
    """Does CRT without group normalisation follow fewer samples, or does its gradient vary more, in every run?"""
    parts, apart = (
        [],
        {"effective_sample_size": True, "grad_norm": True},
    )  # in every run, with the clean reward and with the wrong one
    done = plan[plan["run"].isin(list(records))]
    seeds = done["seed"][done["experiment"] == "failure_normalisation"]  # others may have more
    done = done[done["seed"].isin(seeds)]
    for name, form in (
        ("effective_sample_size", "effective samples of 12"),
        ("grad_norm", "variation of the gradient's norm"),
    ):
        places = ("failure_normalisation", "ablation", "failure_noise")
        raw, clean, wrong = (evidence.curves(done, records, place, "t2i", name) for place in places)
        for corruption, usual in (
            ("none", clean.get("crt")),
            ("heavy_tails", wrong.get("name=crt corruption=heavy_tails")),
        ):
            without = raw.get(f"name=crt rule=raw corruption={corruption}")
            if without is None or usual is None:
                return 0, "", None
            a, b = (
                (run.std(1) / run.mean(1) if name == "grad_norm" else run.mean(1))
                for run in (without, usual)
            )
            parts.append(
                f"{form}, {corruption.replace('_', ' ')}: {a.mean():.2f} without, {b.mean():.2f} with"
            )
            apart[name] &= bool(
                a.max() < b.min() if name == "effective_sample_size" else a.min() > b.max()
            )
    return len(without), "; ".join(parts), any(apart.values())


def signs(plan: pd.DataFrame, records: dict) -> tuple[int, str, bool | None]:
    """Does each of the paper's three failures, provoked, show in a guard or a logged number, and in no healthy run?"""
    rows = plan[(plan["experiment"] == "signatures") & plan["run"].isin(list(records))]
    rows = rows[rows.groupby("seed")["arm"].transform("nunique") == 4]  # seeds that all arms have
    runs = {arm: [records[run] for run in part["run"]] for arm, part in rows.groupby("arm")}
    if len(runs) < 4:
        return 0, "", None
    jerk = {
        arm: [oscillation(run["curves"]["reward"], 1.0) for run in part]
        for arm, part in runs.items()
    }  # in the reward's unit
    stalled = {arm: sum(_stalls(run) for run in part) for arm, part in runs.items()}
    gamed = {arm: sum(map(_games, part)) for arm, part in runs.items()}
    n = min(map(len, runs.values()))
    told = f"of {n} runs each: guard of stagnation, {stalled['stagnation']} stagnating and {stalled['healthy']} healthy; "
    told += f"trained reward up and held-out reward down, {gamed['misalignment']} misaligned and {gamed['healthy']} healthy; "
    told += f"second differences of the reward {np.mean(jerk['oscillation']):.3f} oscillating, {np.mean(jerk['healthy']):.3f} healthy"
    shown = stalled["stagnation"] == gamed["misalignment"] == n and min(jerk["oscillation"]) > max(
        jerk["healthy"]
    )
    return n, told, bool(shown and not stalled["healthy"])


def _stalls(run: dict) -> bool:
    """Whether the guard of stagnation speaks at any time, from the recorded curves."""
    names = ("weight_max", "weight_mean", "prior", "reward", "zero_variance_groups")
    lines = [
        dict(zip(names, values, strict=True))
        for values in zip(*(run["curves"][name] for name in names), strict=True)
    ]
    return any(guards.stagnation(lines[:end]) for end in range(guards.WINDOW, len(lines) + 1))


def _games(run: dict) -> bool:
    """Whether the reward of training (as it was made wrong) rises by the last fifth, and the held-out one ends below an earlier one."""
    reward, held_out = (
        np.array(run["curves"]["reward"]),
        [e["held_out"] for e in run["evaluations"]],
    )
    fifth = max(1, len(reward) // 5)
    return bool(
        reward[-fifth:].mean() > reward[:fifth].mean() and held_out[-1] < max(held_out[:-1])
    )

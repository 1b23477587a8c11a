"""Simulated records of the study's plan, in which the effects are known."""

import zlib

import numpy as np
import pandas as pd

from reproduce import study_plan

PLAN = pd.DataFrame(study_plan.table())[["experiment", "task", "arm", "seed", "run"]]
LENGTH = 50  # iterations


def simulated(effects, drop=(), experiments=None):
    """Records of the plan without the runs `drop`, or of these experiments only.

    The final accuracy of a run is .5, plus its seed's luck, a little noise and what `effects(row)`
    adds.
    """
    records = {}
    for row in PLAN.itertuples():
        wanted = experiments is None or row.experiment in experiments
        if wanted and row.run not in records and row.run not in drop:
            records[row.run] = simulated_run(row, effects(row))
    return records


def simulated_run(row, extra):
    """The record of a run. Its noise depends on what the run is, not on its name."""
    identity = f"{row.experiment} {row.task} {row.arm} {row.seed}"
    random = np.random.default_rng([zlib.crc32(identity.encode()), 1])
    luck = 0.03 * np.sin(row.seed)
    gain = 0.1 + extra.get("accuracy", 0.0) + luck + 0.0002 * random.standard_normal()
    rise = (np.arange(1, LENGTH + 1) / LENGTH) ** extra.get("pace", 1.0)
    reward = 0.5 + 0.1 * rise + extra.get("jerk", 0.001) * random.standard_normal(LENGTH)
    size = extra.get("size", 8.0) + 0.01 * random.standard_normal(LENGTH)
    norm = 0.1 + extra.get("norm", 0.01) * random.standard_normal(LENGTH)
    held_out, weight = 0.3 + extra.get("held_out", 0.0) + luck, extra.get("weight", 1.1)
    evaluations = [
        evaluation(0, 0.4, 0.5, 0.1),
        evaluation(LENGTH // 2, 0.4, 0.55, (0.1 + held_out) / 2),
        evaluation(LENGTH, 0.4 + gain, 0.6, held_out - extra.get("fall", 0.0)),
    ]
    curves = {
        "reward": reward.tolist(),
        "effective_sample_size": size.tolist(),
        "grad_norm": norm.tolist(),
        "weight_max": [weight] * LENGTH,
        "weight_mean": [weight - 0.1] * LENGTH,
        "prior": [0.5] * LENGTH,
        "zero_variance_groups": [0.0] * LENGTH,
    }
    return {
        "run": row.run,
        "task": row.task,
        "seed": row.seed,
        "evaluations": evaluations,
        "groups": {},
        "curves": curves,
    }


def evaluation(iteration, accuracy, reward, held_out):
    return {
        "iteration": iteration,
        "accuracy_specified": accuracy,
        "accuracy": accuracy,
        "reward": reward,
        "held_out": held_out,
    }


def planned(experiment, **columns):
    """The runs of an experiment whose columns have one of these values."""
    chosen = PLAN["experiment"] == experiment
    for name, values in columns.items():
        chosen &= PLAN[name].isin(values)
    return set(PLAN["run"][chosen])


def where(condition, **effect):
    """Effects for `simulated`: this one in the rows that meet a condition, none in the others."""
    return lambda row: effect if condition(row) else {}


def in_arm(*arms, **effect):
    """Effects for `simulated`: this one in these arms, none in the others."""
    return where(lambda row: row.arm in arms, **effect)


def no_effect(row):
    """Effects for `simulated`: none."""
    return {}

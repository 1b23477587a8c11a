"""Verdicts on simulated studies whose truth is known: what is there is found, what is not is not, and what is missing is said."""

import numpy as np
import pandas as pd
import pytest

from reproduce import study
from reproduce.analysis import claims

PLAN = pd.DataFrame(study.table())[["experiment", "task", "arm", "seed", "run"]]
LENGTH = 50


def simulated(effects, drop=(), experiments=None):
    """Records of the whole plan: a run's final accuracy is .5, its seed's luck, a little noise, and what `effects(row)` adds."""
    records = {}
    for row in PLAN.itertuples():
        if (
            row.run in records
            or row.run in drop
            or (experiments and row.experiment not in experiments)
        ):
            continue
        random = np.random.default_rng([int.from_bytes(row.run.encode()[-12:], "big") % 2**32, 1])
        extra, luck = effects(row), 0.03 * np.sin(row.seed)
        gain = 0.1 + extra.get("accuracy", 0.0) + luck + 0.0002 * random.standard_normal()
        at = np.arange(1, LENGTH + 1) / LENGTH
        rise = at ** extra.get("pace", 1.0)
        reward = 0.5 + 0.1 * rise + extra.get("jerk", 0.001) * random.standard_normal(LENGTH)
        held_out = 0.3 + extra.get("held_out", 0.0) + luck
        start = {"accuracy_specified": 0.4, "accuracy": 0.4, "reward": 0.5, "held_out": 0.1}
        end = {
            "accuracy_specified": 0.4 + gain,
            "accuracy": 0.4 + gain,
            "reward": 0.6,
            "held_out": held_out - extra.get("fall", 0.0),
        }
        middle = {
            "accuracy_specified": 0.4,
            "accuracy": 0.4,
            "reward": 0.55,
            "held_out": (0.1 + held_out) / 2,
        }
        evaluations = [
            {"iteration": i} | e for i, e in ((0, start), (LENGTH // 2, middle), (LENGTH, end))
        ]
        size = extra.get("size", 8.0) + 0.01 * random.standard_normal(LENGTH)
        norm = 0.1 + extra.get("norm", 0.01) * random.standard_normal(LENGTH)
        weight = extra.get("weight", 1.1)
        records[row.run] = {
            "run": row.run,
            "task": row.task,
            "seed": row.seed,
            "evaluations": evaluations,
            "groups": {},
            "curves": {
                "reward": reward.tolist(),
                "effective_sample_size": size.tolist(),
                "grad_norm": norm.tolist(),
                "weight_max": [weight] * LENGTH,
                "weight_mean": [weight - 0.1] * LENGTH,
                "prior": [0.5] * LENGTH,
                "zero_variance_groups": [0.0] * LENGTH,
            },
        }
    return records


def found(records, name, task="t2i"):
    return claims.verdicts(PLAN, records, [name]).set_index(["claim", "task"]).loc[(name, task)]


@pytest.fixture(autouse=True)
def signals(monkeypatch):
    """A table of `ambiguity.reliability` in which every case is clear, in place of one made of groups."""
    table = pd.DataFrame(
        {
            "signal": "mean reward",
            "stage": [0, 1, 2],
            "groups": "all",
            "rho": 0.4,
            "low": [0.1, 0.2, 0.3],
            "high": 0.6,
            "auroc_low": 0.55,
            "n": 82,
        }
    )
    monkeypatch.setattr(claims.ambiguity, "groups", lambda plan, records: None)
    monkeypatch.setattr(claims.ambiguity, "reliability", lambda groups, kinds: table.copy())
    return table


@pytest.mark.parametrize(
    ("column", "stage", "value"), [("low", 0, 0.0), ("low", 2, -0.1), ("auroc_low", 1, 0.49)]
)
def test_deviation_is_a_signal_only_if_every_prior_and_stage_says_so(signals, column, stage, value):
    records = simulated(lambda row: {}, experiments={"ambiguity"})
    row = found(records, "H5")
    assert (row["verdict"], row["n"]) == ("holds", 82) and "in 3 of 3 cases" in row["finding"]
    signals.loc[stage, column] = value
    row = found(records, "H5")
    assert row["verdict"] == "does not hold" and "in 2 of 3 cases" in row["finding"]


def test_a_study_without_effects_confirms_nothing_but_what_is_level():
    """All arms alike: no gain, slope or protection is found, and everything is level. (H8 goes by means, which noise orders.)"""
    table = claims.verdicts(PLAN, simulated(lambda row: {})).set_index("claim")["verdict"]
    for name in ("H1", "H3", "H4", "H10", "H11", "H12", "H13", "H14", "H15", "H16"):
        assert set(table.loc[[name]]) == {"does not hold"}, name
    for name in ("H6", "H7", "H9"):
        assert set(table.loc[[name]]) == {"not refuted"}, name


def bpgo(row):
    return row.arm == "bpgo" or "name=bpgo" in row.arm


EFFECTS = {
    "H1": lambda row: {"accuracy": 0.1} if row.arm == "bpgo" else {},
    "H2": lambda row: {
        "ras": {"pace": 2.0, "jerk": 0.001},
        "crt": {"pace": 0.5, "jerk": 0.02},
        "bpgo": {"pace": 0.5, "jerk": 0.002},
    }.get(row.arm, {}),
    "H3": lambda row: {"held_out": 0.1} if row.arm == "bpgo" else {},
    "H4": lambda row: (
        {"accuracy": 0.2 * float(row.arm.rpartition("=")[2])}
        if row.experiment == "mix" and bpgo(row)
        else {}
    ),
    "H8": lambda row: (
        {"accuracy": 0.1} if row.arm in ("G=4 alpha=0.1", "G=8 alpha=0.5", "G=16 alpha=0.9") else {}
    ),
    "H10": lambda row: {"accuracy": 0.1} if row.arm == "ceiling" else {},
    "H11": lambda row: {"accuracy": -0.1} if row.arm == "too_high" else {},
    "H12": lambda row: (
        {"accuracy": -0.1 + 0.05 * ("name=ras" in row.arm) - 0.05 * ("name=crt" in row.arm)}
        if "corruption=noise" in row.arm
        else {}
    ),
    "H13": lambda row: {"norm": 0.05} if "rule=raw" in row.arm else {},
    "H14": lambda row: {
        "oscillation": {"jerk": 0.1},
        "stagnation": {"weight": 0.6},
        "misalignment": {"fall": 0.2},
    }.get(row.arm, {}),
    "H15": lambda row: {"accuracy": 0.1} if row.arm == "bpgo" else {},
    "H16": lambda row: {"accuracy": 0.1} if row.arm == "ceiling" else {},
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_that_is_there_is_found(name):
    row = found(simulated(EFFECTS[name]), name)
    assert row["verdict"] == "holds", row["finding"]
    assert row["n"] > 1 and row["says"] == claims.CLAIMS[name]


REVERSED = {
    "H6": lambda row: {"accuracy": 0.5} if row.arm == "alpha=0.9 kappa=3.0" else {},
    "H7": lambda row: {"accuracy": 0.5} if row.arm == "lam=20.0 beta=1.0" else {},
    "H9": lambda row: {"accuracy": -0.1} if row.arm == "empirical_bayes" else {},
}


@pytest.mark.parametrize("name", REVERSED)
def test_what_is_not_level_is_refuted(name):
    assert found(simulated(REVERSED[name]), name)["verdict"] == "does not hold"


def test_the_gain_is_the_paired_difference_that_was_put_in():
    row = found(simulated(EFFECTS["H1"]), "H1")
    value = float(row["finding"].split("GRPO ")[1].split(" ")[0])
    assert value == pytest.approx(0.1, abs=0.001) and row["n"] == 5


@pytest.mark.parametrize(
    ("rewards", "gain", "reached"), [((0.5, 0.7, 0.65), 0.05, 5), ((0.5, 0.58, 0.55), 0.75, 0)]
)
def test_equal_reward_is_where_training_first_meets_it_and_else_the_end(rewards, gain, reached):
    """GRPO ends at a reward of .6 and a held-out one of .15. BPGO passes .6 half-way to its second evaluation, at .2; or never."""
    records = simulated(lambda row: {}, experiments={"ablation"})
    for row in PLAN[(PLAN["experiment"] == "ablation") & (PLAN["task"] == "t2i")].itertuples():
        evaluations = records[row.run]["evaluations"]
        if row.arm == "grpo":
            evaluations[-1]["held_out"] = 0.15
        for evaluation, reward, held_out in (
            zip(evaluations, rewards, (0.1, 0.3, 0.9), strict=True) if row.arm == "bpgo" else ()
        ):
            evaluation |= {"reward": reward, "held_out": held_out}
    finding = found(records, "H3")["finding"]
    assert f"held-out reward {gain:+.3f}" in finding and f"in {reached} of 5 pairs" in finding


def test_a_second_comparison_of_priors_is_told_beside_the_deciding_one():
    row = found(simulated(EFFECTS["H10"]), "H10", "i2v")
    assert (
        "less GRPO +0.10" in row["finding"] and "less the task's own prior +0.10" in row["finding"]
    )
    row = found(
        simulated(lambda row: {"accuracy": -0.1} if row.arm in ("too_high", "ceiling") else {}),
        "H11",
        "i2v",
    )
    assert (
        "the running mean -0.10" in row["finding"]
        and "the mean of the other priors -0.10" in row["finding"]
    )  # the ceiling is no prior


NEW = [("H15", "bpgo", "t2i", 5), ("H16", "ceiling", "t2i", 5), ("H16", "ceiling", "i2v", 3)]


@pytest.mark.parametrize(("name", "arm", "task", "old"), NEW)
def test_seeds_that_were_new_are_told_alone(name, arm, task, old):
    """Ten seeds, of which an earlier experiment had the first: a gain in those alone is half a gain, and none in the new ones."""
    row = found(
        simulated(lambda row: {"accuracy": 0.1} if row.arm == arm and row.seed < old else {}),
        name,
        task,
    )
    total, new = (
        float(part.split(" (")[0].rpartition(" ")[2]) for part in row["finding"].split("; ")
    )
    assert (
        row["n"] == 10
        and total == pytest.approx(0.01 * old, abs=0.001)
        and new == pytest.approx(0, abs=0.001)
    )
    assert f"the {10 - old} new seeds alone" in row["finding"]


def test_normalisation_is_compared_over_the_same_seeds():
    """Where clean runs with normalisation have five seeds, and those without two, what the other three did must not count."""
    more = {
        row.run
        for row in PLAN.itertuples()
        if row.experiment in ("failure_normalisation", "failure_noise") and row.seed > 1
    }
    records = simulated(
        lambda row: {"size": 2.0} if row.experiment == "ablation" and row.seed > 1 else {},
        drop=more,
    )
    finding = found(records, "H13")["finding"]
    assert "none: 8.00 without, 8.00 with" in finding


def test_signs_are_counted_over_the_seeds_that_all_arms_have():
    """Three seeds of the stagnating arm are missing: healthy runs of those seeds, though they look stagnating, do not count."""
    missing = set(
        PLAN["run"][
            (PLAN["experiment"] == "signatures")
            & (PLAN["arm"] == "stagnation")
            & (PLAN["seed"] > 1)
        ]
    )
    records = simulated(
        lambda row: (
            {"weight": 0.6} if row.task == "t2i" and row.arm == "bpgo" and row.seed > 1 else {}
        ),
        drop=missing,
    )
    row = found(records, "H14")
    assert (
        row["n"] == 2
        and "of 2 runs each: guard of stagnation, 0 stagnating and 0 healthy" in row["finding"]
    )


def test_missing_runs_are_said_and_none_is_not_run():
    dropped = set(
        PLAN["run"][
            (PLAN["experiment"] == "ablation")
            & (PLAN["seed"] == 4)
            & (PLAN["arm"].isin(["grpo", "bpgo"]))
        ]
    )
    row = found(simulated(EFFECTS["H1"], dropped), "H1")
    assert row["verdict"] == "so far: holds (23 of 25 runs)" and row["n"] == 4
    table = claims.verdicts(PLAN, {})
    assert (
        claims.verdicts(PLAN, simulated(lambda row: {}, experiments={"ablation"}), ["H6"])[
            "verdict"
        ][0]
        == "too few yet (2 of 30 runs)"
    )
    assert (
        set(table["verdict"]) == {"not run"}
        and set(table["n"]) == {0}
        and set(table["finding"]) == {""}
    )
    some = claims.verdicts(PLAN, simulated(lambda row: {}, experiments={"ablation"})).set_index(
        ["claim", "task"]
    )
    assert (
        some.loc[("H4", "t2i"), "verdict"] == "not run"
        and some.loc[("H1", "t2i"), "verdict"] == "does not hold"
    )


def test_every_claim_of_the_plan_is_asked():
    said = (study.HERE / "PLAN.md").read_text()
    named = {line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| H")}
    assert named == set(claims.CLAIMS) == set(claims.ASKED)


def test_the_list_for_the_notebooks():
    lines = claims.told(
        claims.verdicts(PLAN, simulated(EFFECTS["H1"], experiments={"ablation"}))
    ).splitlines()
    assert len(lines) == len(claims.ASKED) and [line.split(",")[0][2:] for line in lines] == list(
        claims.ASKED
    )
    assert lines[0].startswith(
        "- H1, *BPGO beats GRPO*. t2i: **holds** (accuracy, BPGO less GRPO +0.1"
    )
    assert "n = 5); t2v: **holds**" in lines[0] and lines[0].endswith("; not run: digits.")
    assert lines[3] == "- H4, *BPGO gains more, the more prompts are ambiguous*. not run: t2i."

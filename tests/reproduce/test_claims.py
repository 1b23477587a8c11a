"""Verdicts on simulated studies whose truth is known.

What is there is found, what is not is not, and what is missing is said.
"""

import pandas as pd
import pytest

from reproduce import study_plan
from reproduce.analysis import claims, learning
from tests.reproduce.simulation import PLAN, in_arm, no_effect, planned, simulated, where


def found(records, name, task="t2i"):
    return claims.verdicts(PLAN, records, [name]).set_index(["claim", "task"]).loc[(name, task)]


@pytest.fixture(autouse=True)
def signals(monkeypatch):
    """A table of `ambiguity.reliability` in which every case is clear, in place of a real one."""
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
    monkeypatch.setattr(learning.ambiguity, "groups", lambda plan, records: None)
    monkeypatch.setattr(learning.ambiguity, "reliability", lambda *given: table.copy())
    return table


# ------------------------------------------------------------------------------------ what is there


def pace_as_claimed(row):
    effects = {
        "ras": {"pace": 2.0, "jerk": 0.001},
        "crt": {"pace": 0.5, "jerk": 0.02},
        "bpgo": {"pace": 0.5, "jerk": 0.002},
    }
    return effects.get(row.arm, {})


def gain_with_the_mix(row):
    if row.experiment != "mix" or "name=bpgo" not in row.arm:
        return {}
    return {"accuracy": 0.2 * float(row.arm.rpartition("=")[2])}


def losses_to_noise(row):
    if "corruption=noise" not in row.arm:
        return {}
    objective = {"name=ras": 0.05, "name=crt": -0.05}
    return {"accuracy": -0.1 + objective.get(row.arm.partition(" ")[0], 0.0)}


def signatures(row):
    effects = {
        "oscillation": {"jerk": 0.1},
        "stagnation": {"weight": 0.6},
        "misalignment": {"fall": 0.2},
    }
    return effects.get(row.arm, {})


EFFECTS = {
    "H1": in_arm("bpgo", accuracy=0.1),
    "H2": pace_as_claimed,
    "H3": in_arm("bpgo", held_out=0.1),
    "H4": gain_with_the_mix,
    "H8": in_arm("G=4 alpha=0.1", "G=8 alpha=0.5", "G=16 alpha=0.9", accuracy=0.1),
    "H10": in_arm("ceiling", accuracy=0.1),
    "H11": in_arm("too_high", accuracy=-0.1),
    "H12": losses_to_noise,
    "H13": where(lambda row: "rule=raw" in row.arm, norm=0.05),
    "H14": signatures,
    "H15": in_arm("bpgo", accuracy=0.1),
    "H16": in_arm("ceiling", accuracy=0.1),
}
REVERSED = {
    "H6": in_arm("alpha=0.9 kappa=3.0", accuracy=0.5),
    "H7": in_arm("lam=20.0 beta=1.0", accuracy=0.5),
    "H9": in_arm("empirical_bayes", accuracy=-0.1),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_that_is_there_is_found(name):
    row = found(simulated(EFFECTS[name]), name)
    assert row["verdict"] == "holds", row["finding"]
    assert row["n"] > 1 and row["says"] == claims.CLAIMS[name]


@pytest.mark.parametrize("name", REVERSED)
def test_what_is_not_level_is_refuted(name):
    assert found(simulated(REVERSED[name]), name)["verdict"] == "does not hold"


def test_a_study_without_effects_confirms_nothing_but_what_is_level():
    """All arms are alike. H8 is left out, because it goes by means, which noise orders."""
    table = claims.verdicts(PLAN, simulated(no_effect)).set_index("claim")["verdict"]
    for name in ("H1", "H3", "H4", "H10", "H11", "H12", "H13", "H14", "H15", "H16"):
        assert set(table.loc[[name]]) == {"does not hold"}, name
    for name in ("H6", "H7", "H9"):
        assert set(table.loc[[name]]) == {"not refuted"}, name


@pytest.mark.parametrize(
    ("column", "stage", "value"), [("low", 0, 0.0), ("low", 2, -0.1), ("auroc_low", 1, 0.49)]
)
def test_deviation_is_a_signal_only_if_every_prior_and_stage_says_so(signals, column, stage, value):
    records = simulated(no_effect, experiments={"ambiguity"})
    row = found(records, "H5")
    assert (row["verdict"], row["n"]) == ("holds", 82) and "in 3 of 3 cases" in row["finding"]
    signals.loc[stage, column] = value
    row = found(records, "H5")
    assert row["verdict"] == "does not hold" and "in 2 of 3 cases" in row["finding"]


# ------------------------------------------------------------------------------ what a finding says


def test_the_gain_is_the_paired_difference_that_was_put_in():
    row = found(simulated(EFFECTS["H1"]), "H1")
    value = float(row["finding"].split("GRPO ")[1].split(" ")[0])
    assert value == pytest.approx(0.1, abs=0.001) and row["n"] == 5


@pytest.mark.parametrize(
    ("rewards", "gain", "reached"), [((0.5, 0.7, 0.65), 0.05, 5), ((0.5, 0.58, 0.55), 0.75, 0)]
)
def test_equal_reward_is_where_training_first_meets_it_or_else_the_end(rewards, gain, reached):
    """GRPO ends at a reward of .6 and a held-out reward of .15.

    BPGO passes .6 half-way to its second evaluation, where its held-out reward is .2, or never.
    """
    records = simulated(no_effect, experiments={"ablation"})
    for run in planned("ablation", task=["t2i"], arm=["grpo"]):
        records[run]["evaluations"][-1]["held_out"] = 0.15
    for run in planned("ablation", task=["t2i"], arm=["bpgo"]):
        evaluations = records[run]["evaluations"]
        for entry, reward, held_out in zip(evaluations, rewards, (0.1, 0.3, 0.9), strict=True):
            entry |= {"reward": reward, "held_out": held_out}
    finding = found(records, "H3")["finding"]
    assert f"held-out reward {gain:+.3f}" in finding and f"in {reached} of 5 pairs" in finding


def test_a_second_comparison_of_priors_is_told_beside_the_deciding_one():
    finding = found(simulated(EFFECTS["H10"]), "H10", "i2v")["finding"]
    assert "minus GRPO +0.10" in finding and "minus the task's own prior +0.10" in finding
    # The ceiling is not a prior, so it is not one of the others.
    records = simulated(in_arm("too_high", "ceiling", accuracy=-0.1))
    finding = found(records, "H11", "i2v")["finding"]
    assert "minus the running mean -0.10" in finding
    assert "minus the mean of the other priors -0.10" in finding


@pytest.mark.parametrize(
    ("name", "arm", "task", "old"),
    [("H15", "bpgo", "t2i", 5), ("H16", "ceiling", "t2i", 5), ("H16", "ceiling", "i2v", 3)],
)
def test_seeds_that_were_new_are_told_alone(name, arm, task, old):
    """A gain in the seeds of the earlier experiment alone: none in the new ones."""
    gains = where(lambda row: row.arm == arm and row.seed < old, accuracy=0.1)
    row = found(simulated(gains), name, task)
    values = [part.split(" (")[0].rpartition(" ")[2] for part in row["finding"].split("; ")]
    total, new = map(float, values)
    assert row["n"] == 10 and total == pytest.approx(0.01 * old, abs=0.001)
    assert new == pytest.approx(0, abs=0.001)
    assert f"the {10 - old} new seeds alone" in row["finding"]


# ---------------------------------------------------------------------------------- what is missing


def test_normalisation_is_compared_over_the_same_seeds():
    """The clean runs with normalisation have five seeds, the others two: three must not count."""
    more = planned("failure_normalisation", seed=[2, 3, 4])
    more |= planned("failure_noise", seed=[2, 3, 4])
    odd = where(lambda row: row.experiment == "ablation" and row.seed > 1, size=2.0)
    assert "none: 8.00 without, 8.00 with" in found(simulated(odd, drop=more), "H13")["finding"]


def test_signs_are_counted_over_the_seeds_that_all_arms_have():
    """Three seeds of one arm are missing: healthy runs of those, which look odd, do not count."""
    missing = planned("signatures", arm=["stagnation"], seed=[2, 3, 4])
    odd = planned("signatures", arm=["healthy"], seed=[2, 3, 4])
    records = simulated(where(lambda row: row.run in odd, weight=0.6), drop=missing)
    row = found(records, "H14")
    expected = "of 2 runs each: guard of stagnation, 0 stagnating and 0 healthy"
    assert row["n"] == 2 and expected in row["finding"]


def test_missing_runs_are_said():
    dropped = planned("ablation", seed=[4], arm=["grpo", "bpgo"])
    row = found(simulated(EFFECTS["H1"], dropped), "H1")
    assert row["verdict"] == "so far: holds (23 of 25 runs)" and row["n"] == 4


def test_too_few_runs_and_none_are_said():
    records = simulated(no_effect, experiments={"ablation"})
    table = claims.verdicts(PLAN, records).set_index(["claim", "task"])
    assert table.loc[("H6", "t2i"), "verdict"] == "too few yet (2 of 30 runs)"
    assert table.loc[("H4", "t2i"), "verdict"] == "not run"
    assert table.loc[("H1", "t2i"), "verdict"] == "does not hold"
    empty = claims.verdicts(PLAN, {})
    assert set(empty["verdict"]) == {"not run"}
    assert set(empty["n"]) == {0} and set(empty["finding"]) == {""}


# --------------------------------------------------------------------------------------- the claims


def test_every_claim_of_the_plan_is_asked():
    plan = (study_plan.HERE / "PLAN.md").read_text()
    named = {line.split("|")[1].strip() for line in plan.splitlines() if line.startswith("| H")}
    assert named == set(claims.CLAIMS) == set(claims.ASKED)


def test_the_list_for_the_notebooks():
    records = simulated(EFFECTS["H1"], experiments={"ablation"})
    lines = claims.told(claims.verdicts(PLAN, records)).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"- {name}" for name in claims.ASKED]
    first = "- H1, *BPGO beats GRPO*. t2i: **holds** (accuracy, BPGO minus GRPO +0.1"
    assert lines[0].startswith(first) and lines[0].endswith("; not run: digits.")
    assert "n = 5); t2v: **holds**" in lines[0]
    assert lines[3] == "- H4, *BPGO gains more, the more prompts are ambiguous*. not run: t2i."

"""Guards: silent on healthy logs, a message for each failure, and no effect on a run."""

import warnings

import pytest
import torch

from bpgo import guards
from bpgo.diagnostics import group_diagnostics
from bpgo.files import read_log
from bpgo.registry import TABLES, arguments, find
from tests.small_trainers import all_equal

G = 12
HYPERPARAMETERS = {"alpha": 0.5, "k": 2.0, "lam": 5.0, "beta": 0.5}


def rows(rewards, prior=0.0, name="bpgo"):
    """Log rows that an objective makes of the rewards of iterations, (iterations, N, G)."""
    objective = find("objective", name)
    fixed = arguments(objective, HYPERPARAMETERS, {}, name, passed=2)
    made = []
    for batch in rewards:
        row = {"reward": batch.mean().item(), "prior": prior}
        made.append(row | group_diagnostics(batch, objective(batch, prior, **fixed)))
    return made


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def evaluation(iteration, reward, held_out):
    """A row of evaluations.jsonl: 24 prompts with 4 samples each, around these means."""
    scores = {
        "reward": reward + 0.05 * normal(24, 4),
        "held_out": held_out + 0.05 * normal(24, 4, seed=iteration),
    }
    row = {"iteration": iteration, "scores": {}}
    for name, values in scores.items():
        row[name] = values.mean().item()
        row["scores"][name] = values.tolist()
    return row


# ------------------------------------------------------------------------------- stagnation


@pytest.mark.parametrize("name", TABLES["objective"])
def test_healthy_rewards_raise_no_warning(name):
    """1,000 iterations of normal rewards around the prior, and every window of them."""
    log = rows(0.5 * normal(1000, 8, G), name=name)
    for end in range(len(log)):
        assert guards.stagnation(log[:end]) is None
        assert guards.concentration(log[:end], G) is None


def test_weights_a_little_below_one_are_not_stagnation():
    log = rows(0.01 * normal(guards.WINDOW, 8, G), prior=0.05, name="ras")
    assert guards.stagnation(log) is None


def test_a_prior_above_all_groups_is_stagnation():
    log = rows(normal(guards.WINDOW, 8, G), prior=50.0, name="ras")
    message = guards.stagnation(log)
    assert "by 50%" in message
    assert "the prior (50)" in message
    assert "running_mean" in message


def test_a_prior_above_all_groups_is_not_stagnation_too_early_or_for_an_objective_without_weights():
    log = rows(normal(guards.WINDOW, 8, G), prior=50.0, name="ras")
    assert guards.stagnation(log[1:]) is None
    with_a_trusted_group = rows(normal(1, 8, G), name="ras") + log[1:]
    assert guards.stagnation(with_a_trusted_group) is None
    unweighted = rows(normal(guards.WINDOW, 8, G), prior=50.0, name="grpo")
    assert guards.stagnation(unweighted) is None


def test_groups_of_equal_rewards_are_stagnation_if_they_are_most():
    rewards = normal(guards.WINDOW, 8, G)
    rewards[:, :5] = 1.0
    assert "62% of the groups" in guards.stagnation(rows(rewards, name="grpo"))
    rewards[:, 4] = normal(G)  # half of them is not most
    assert guards.stagnation(rows(rewards, name="grpo")) is None


# --------------------------------------------------------------------------- concentration


@pytest.mark.parametrize(("size", "flat"), [(6, 2), (8, 3), (12, 3), (12, 7)])
def test_groups_of_equal_rewards_are_not_concentration(size, flat):
    rewards = normal(300, 8, size)
    rewards[:, :flat] = 1.0
    log = rows(rewards, name="grpo")
    for end in range(len(log)):
        assert guards.concentration(log[:end], size) is None


def test_one_sample_against_the_rest_is_concentration():
    rewards = torch.zeros(guards.WINDOW, 8, G, dtype=torch.float64)
    rewards[..., 3] = 1.0
    log = rows(rewards, name="grpo")
    message = guards.concentration(log, G)
    assert "an effective number of 3.7 of 12" in message
    assert "3.7 means one sample against the rest" in message
    assert guards.concentration(log[1:], G) is None  # too early


def test_small_groups_cannot_be_concentrated():
    rewards = torch.zeros(guards.WINDOW, 8, 4, dtype=torch.float64)
    rewards[..., 3] = 1.0
    assert guards.concentration(rows(rewards, name="grpo"), 4) is None


# ----------------------------------------------------------------------- over-optimisation


def test_a_reward_that_rises_while_the_held_out_one_falls_is_over_optimisation():
    good = [evaluation(0, 0.5, 0.30), evaluation(25, 0.6, 0.50)]
    assert guards.over_optimisation(good, ["held_out"]) is None
    message = guards.over_optimisation([*good, evaluation(50, 0.7, 0.35)], ["held_out"])
    assert "since iteration 25" in message
    assert "held_out has fallen from 0.5" in message


def test_two_rewards_that_fall_are_another_failure_and_one_alone_has_no_comparison():
    good = [evaluation(0, 0.5, 0.30), evaluation(25, 0.6, 0.50)]
    assert guards.over_optimisation([*good, evaluation(50, 0.55, 0.35)], ["held_out"]) is None
    assert guards.over_optimisation([*good, evaluation(50, 0.7, 0.35)], []) is None


def test_a_fall_within_the_noise_is_not_over_optimisation():
    """Three standard errors, one-sided, with 23 degrees of freedom: .3% of 300."""
    alarms = 0
    for seed in range(300):
        log = [evaluation(seed, 0.5, 0.5), evaluation(seed + 1000, 0.6, 0.5)]
        alarms += guards.over_optimisation(log, ["held_out"]) is not None
    assert alarms <= 3


# ------------------------------------------------------------------------------------ runs


@pytest.fixture
def stagnating(make, tmp_path):
    """A trainer in a folder of this name, whose prior is above all rewards."""

    def stagnating(name, iterations=2 * guards.WINDOW, **changes):
        return make(
            output=tmp_path / name,
            iterations=iterations,
            group_size=2,
            prior={"name": "constant", "value": 100.0},
            generator={"height": 16, "width": 16},
            sampling={"steps": 2},
            evaluation={"samples": 1},
            **changes,
        )

    return stagnating


def test_a_run_warns_once_and_continues(stagnating):
    trainer = stagnating("run")
    message = "stagnation, at iteration 10: RAS has weighted down every group"
    with pytest.warns(guards.TrainingWarning, match=message) as seen:
        trainer.train()
    assert len([w for w in seen if w.category is guards.TrainingWarning]) == 1
    (row,) = read_log(trainer.output / "warnings.jsonl")
    assert (row["iteration"], row["guard"]) == (10, "stagnation")
    assert trainer.complete


def test_one_setting_turns_them_off_and_changes_nothing_else(stagnating, one_thread):
    loud, silent = stagnating("loud"), stagnating("silent", guards=False)
    with pytest.warns(guards.TrainingWarning):
        loud.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", guards.TrainingWarning)
        silent.train()
    assert not (silent.output / "warnings.jsonl").exists()
    expected = (loud.output / "metrics.jsonl").read_text()
    assert (silent.output / "metrics.jsonl").read_text() == expected
    assert all_equal(loud.parameters, silent.parameters)


def test_a_resumed_run_does_not_warn_again_and_may_turn_them_off(stagnating):
    with pytest.warns(guards.TrainingWarning):
        stagnating("run", iterations=guards.WINDOW).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", guards.TrainingWarning)
        longer = stagnating("run")
        longer.train()
        stagnating("run", iterations=2 * guards.WINDOW + 1, guards=False).train()
    assert len(read_log(longer.output / "warnings.jsonl")) == 1

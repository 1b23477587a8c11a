"""Guards: quiet on healthy logs, loud on each failure, and without effect on a run."""

import warnings

import pytest
import torch

from bpgo import guards, objective
from bpgo.config import build_config
from bpgo.trainer import Trainer, read_log

G = 12


def lines(rewards, prior=0.0, name="bpgo"):
    """Log lines of what an objective makes of iterations of rewards (iterations, N, G)."""
    made = []
    for batch in rewards:
        advantages = objective.OBJECTIVES[name](batch, prior, alpha=0.5, k=2.0, lam=5.0, beta=0.5)
        made.append(
            {"reward": batch.mean().item(), "prior": prior}
            | objective.group_diagnostics(batch, advantages)
        )
    return made


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluation(iteration, reward, held_out):
    """A line of evaluations.jsonl: 24 prompts of 4 samples around these means."""
    scores = {
        "reward": reward + 0.05 * normal(24, 4),
        "held_out": held_out + 0.05 * normal(24, 4, seed=iteration),
    }
    return {"iteration": iteration, "scores": {k: v.tolist() for k, v in scores.items()}} | {
        k: v.mean().item() for k, v in scores.items()
    }


@pytest.mark.parametrize("name", list(objective.OBJECTIVES))
def test_healthy_rewards_are_left_in_peace(name):
    """1 000 iterations of normal rewards around the prior, every window of them."""
    log = lines(0.5 * normal(1000, 8, G), name=name)
    for end in range(len(log)):
        assert guards.stagnation(log[:end]) is None
        assert guards.concentration(log[:end], G) is None


@pytest.mark.parametrize(("size", "flat"), [(6, 2), (8, 3), (12, 3), (12, 7)])
def test_groups_without_differences_are_no_concentration(size, flat):
    rewards = normal(300, 8, size)
    rewards[:, :flat] = 1.0
    log = lines(rewards, name="grpo")
    assert not any(guards.concentration(log[:end], size) for end in range(len(log)))


def test_weights_a_hair_below_one_are_no_stagnation():
    assert (
        guards.stagnation(lines(0.01 * normal(guards.WINDOW, 8, G), prior=0.05, name="ras")) is None
    )


def test_a_prior_above_all_groups_is_stagnation():
    log = lines(normal(guards.WINDOW, 8, G), prior=50.0, name="ras")
    words = guards.stagnation(log)
    assert "by 50%" in words and "the prior (50)" in words and "running_mean" in words
    assert guards.stagnation(log[1:]) is None, "not yet"
    assert guards.stagnation(lines(normal(1, 8, G), name="ras") + log[1:]) is None, (
        "one iteration had a trusted group"
    )
    assert guards.stagnation(lines(normal(guards.WINDOW, 8, G), prior=50.0, name="grpo")) is None, (
        "GRPO weighs nothing"
    )


def test_groups_of_equal_rewards_are_stagnation():
    rewards = normal(guards.WINDOW, 8, G)
    rewards[:, :5] = 1.0
    assert "62% of the groups" in guards.stagnation(lines(rewards, name="grpo"))
    rewards[:, 4] = normal(G)
    assert guards.stagnation(lines(rewards, name="grpo")) is None, "half of them is not most"


def test_one_sample_against_the_rest_is_concentration():
    rewards = torch.zeros(guards.WINDOW, 8, G, dtype=torch.float64)
    rewards[..., 3] = 1.0
    words = guards.concentration(lines(rewards, name="grpo"), G)
    assert "an effective 3.7 of 12" in words and "3.7 is a single one" in words
    assert guards.concentration(lines(rewards, name="grpo")[1:], G) is None, "not yet"


def test_small_groups_cannot_be_concentrated():
    rewards = torch.zeros(guards.WINDOW, 8, 4, dtype=torch.float64)
    rewards[..., 3] = 1.0
    assert guards.concentration(lines(rewards, name="grpo"), 4) is None


def test_a_reward_that_rises_while_the_held_out_one_falls_is_over_optimisation():
    good = [evaluation(0, 0.5, 0.30), evaluation(25, 0.6, 0.50)]
    assert guards.over_optimisation(good, ["held_out"]) is None
    words = guards.over_optimisation([*good, evaluation(50, 0.7, 0.35)], ["held_out"])
    assert "since iteration 25" in words and "held_out fell from 0.5" in words
    assert guards.over_optimisation([*good, evaluation(50, 0.55, 0.35)], ["held_out"]) is None, (
        "both fell: another failure"
    )
    assert guards.over_optimisation([*good, evaluation(50, 0.7, 0.35)], []) is None, (
        "nothing to compare with"
    )


def test_a_fall_within_the_noise_is_none():
    alarms = sum(
        guards.over_optimisation(
            [evaluation(s, 0.5, 0.5), evaluation(s + 1000, 0.6, 0.5)], ["held_out"]
        )
        is not None
        for s in range(300)
    )
    assert alarms <= 3, "three standard errors, one-sided, with 23 degrees of freedom: .3 % of 300"


@pytest.fixture
def make(tiny_folder, tmp_path):
    def make(name, **changes):
        tree = {
            "generator": {"path": str(tiny_folder), "height": 16, "width": 16},
            "reward": {"name": "redness"},
            "prompts": "given",
            "groups": 2,
            "group_size": 2,
            "iterations": 2 * guards.WINDOW,
            "prior": {"name": "constant", "value": 100.0},
            "sampling": {"steps": 2, "shift": 1.0, "noise_level": 0.7},
            "evaluation": {"samples": 1, "steps": 2},
        }
        red = lambda pixels, prompts: pixels[:, 0].mean((1, 2))
        return Trainer(
            build_config(tree | changes),
            tmp_path / name,
            reward=red,
            prompts=["a shape", "a red circle"],
            progress=False,
        )

    return make


def test_a_run_warns_once_and_goes_on(make):
    trainer = make("run")
    with pytest.warns(
        guards.TrainingWarning,
        match="stagnation, at iteration 10: RAS has weighted down every group",
    ) as seen:
        trainer.train()
    assert len([w for w in seen if w.category is guards.TrainingWarning]) == 1
    (line,) = read_log(trainer.output / "warnings.jsonl")
    assert (line["iteration"], line["guard"]) == (10, "stagnation")
    assert trainer.finished


def test_one_setting_silences_them_and_moves_nothing_else(make):
    with pytest.warns(guards.TrainingWarning):
        (loud := make("loud")).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", guards.TrainingWarning)
        (silent := make("silent", guards=False)).train()
    assert not (silent.output / "warnings.jsonl").exists()
    assert (loud.output / "metrics.jsonl").read_text() == (
        silent.output / "metrics.jsonl"
    ).read_text()
    for name, p in loud.parameters.items():
        assert torch.equal(p, silent.parameters[name])


def test_a_resumed_run_does_not_say_it_again_and_may_be_silenced(make):
    with pytest.warns(guards.TrainingWarning):
        make("run", iterations=guards.WINDOW).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", guards.TrainingWarning)
        (longer := make("run")).train()
        make("run", iterations=2 * guards.WINDOW + 1, guards=False).train()
    assert len(read_log(longer.output / "warnings.jsonl")) == 1

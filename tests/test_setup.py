"""From a config to the parts of a run, and what is checked before training."""

import pytest
import torch

from bpgo.config import build_config
from bpgo.objective import Advantages, bpgo, grpo, ras
from bpgo.priors import Constant, RunningMean
from bpgo.setup import (
    load_prompts,
    make_metrics,
    make_objective,
    make_optimiser,
    make_prior,
    try_metrics,
    with_names,
)
from tests.small_trainers import PROMPTS, merged, redness

REWARDS = torch.tensor([[0.1, 0.4, 0.2], [0.9, 0.3, 0.5]])


@pytest.fixture
def config_of(trees):
    """A config with sections as keywords."""

    def config_of(**changes):
        return build_config(merged(trees["t2i"], changes))

    return config_of


# ------------------------------------------------------------------------------------ the parts


def test_the_names_of_given_objects_are_recorded(config_of):
    config = config_of(objective={"alpha": 0.25}, prior={"name": "sft", "samples": 2})
    assert with_names(config, None, None, None, None) == config
    named = with_names(config, Noise(), ras, Constant(1.0), redness)
    assert named.generator.policy == "tests.test_setup:Noise"
    assert (named.objective.name, named.objective.alpha) == ("bpgo.objective:ras", 0.25)
    assert named.prior.name == "bpgo.priors:Constant"
    assert [reward.name for reward in named.reward] == ["tests.small_trainers:redness"]
    assert config.objective.name == "bpgo", "the config that was given is not changed"


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_an_objective_gets_its_hyperparameters_and_no_others(config_of):
    settings = {"alpha": 0.2, "lam": 3.0, "beta": 0.7}
    made = make_objective(config_of(objective={"name": "bpgo"} | settings))
    assert_same(made(REWARDS, 0.3, 5.0), bpgo(REWARDS, 0.3, k=5.0, **settings))
    made = make_objective(config_of(objective={"name": "ras"} | settings))
    assert_same(made(REWARDS, 0.3, 5.0), ras(REWARDS, 0.3, alpha=0.2, k=5.0))
    made = make_objective(config_of(objective={"name": "grpo"} | settings))
    assert_same(made(REWARDS, 0.3, 5.0), grpo(REWARDS, 0.3))


def scaled(rewards, prior, *, alpha, scale=1.0):
    """An objective of one's own with an option."""
    advantages = grpo(rewards, prior)
    return advantages._replace(main=alpha * scale * advantages.main)


def test_an_objective_of_ones_own_gets_settings_and_options(config_of):
    name = "tests.test_setup:scaled"
    config = config_of(objective={"name": name, "alpha": 0.5, "options": {"scale": 4.0}})
    expected = 2 * grpo(REWARDS, 0.0).main
    assert torch.equal(make_objective(config)(REWARDS, 0.0, 1.0).main, expected)
    # An object in its place is used instead of the name.
    other = make_objective(config_of(objective={"alpha": 0.5}), scaled)
    assert torch.equal(other(REWARDS, 0.0, 1.0).main, 0.5 * grpo(REWARDS, 0.0).main)


def test_an_objective_that_does_not_fit_is_refused_when_it_is_made(config_of):
    def transposed(rewards, prior):
        advantages = grpo(rewards, prior)
        return Advantages(advantages.main.T, None, advantages.weights, rewards)

    with pytest.raises(ValueError, match=r"main of the objective must be \(2, 3\), not \(3, 2\)"):
        make_objective(config_of(), transposed)
    with pytest.raises(TypeError, match="an objective returns Advantages, not Tensor"):
        make_objective(config_of(), lambda rewards, prior: rewards)
    with pytest.raises(ValueError, match="objective 'grpo' has no option 'scale'"):
        make_objective(config_of(objective={"name": "grpo", "options": {"scale": 2.0}}))


def not_a_prior(momentum):
    return momentum


def test_a_prior_gets_its_settings_and_must_be_one(config_of):
    prior = make_prior(config_of(prior={"momentum": 0.75}), None, redness, PROMPTS)
    assert isinstance(prior, RunningMean)
    assert prior.momentum == 0.75
    constant = {"name": "constant", "value": 0.5}
    assert make_prior(config_of(prior=constant), None, redness, PROMPTS).value == 0.5
    wrong = config_of(prior={"name": "tests.test_setup:not_a_prior"})
    with pytest.raises(TypeError, match=r"is a float: subclass bpgo\.priors\.Prior"):
        make_prior(wrong, None, redness, PROMPTS)


def test_metrics_are_the_reward_the_held_out_ones_and_all_others(config_of, clip_folder):
    held_out = {"name": "clip", "path": str(clip_folder)}
    one = config_of(evaluation={"held_out": held_out, "metrics": ["shapes"]})
    found = make_metrics(one, redness, {"mine": redness}, "cpu")
    assert list(found) == ["reward", "held_out", "shapes", "mine"]
    assert found["reward"] is found["mine"] is redness
    two = config_of(evaluation={"held_out": [held_out, held_out]})
    assert list(make_metrics(two, redness, {}, "cpu")) == ["reward", "clip", "clip-2"]


class Noise:
    """A policy with images of 4 x 4 pixels."""

    device = "cpu"

    def latent_shape(self):
        return 3, 4, 4

    def decode(self, x):
        return x


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (lambda pixels, prompts: torch.zeros(2), r"metric 'mine' returned .*2.* for one sample"),
        (lambda pixels, prompts: 0.5, "metric 'mine' returned float for one sample"),
        (
            lambda pixels, prompts: {"a": torch.zeros(1), "b": torch.zeros(())},
            "metric 'b' returned",
        ),
    ],
)
def test_a_metric_with_other_than_one_value_per_sample_is_refused(metric, says):
    good = {"good": lambda pixels, prompts: torch.zeros(len(prompts))}
    try_metrics(Noise(), "a", good)
    with pytest.raises(ValueError, match=says):
        try_metrics(Noise(), "a", good | {"mine": metric})


def test_the_optimiser_has_its_settings_and_one_group_per_module(config_of):
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
    first.bias.requires_grad_(False)
    settings = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2}
    optimiser = make_optimiser(config_of(optimiser=settings), {"a": first, "b": second})
    groups = [group["params"] for group in optimiser.param_groups]
    assert [[id(p) for p in group] for group in groups] == [
        [id(first.weight)],
        [id(second.weight), id(second.bias)],
    ]
    for group in optimiser.param_groups:
        assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.8, 0.95), 0.2)


def test_prompts_are_read_or_given_and_those_of_evaluation_may_differ(config_of, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "other.txt").write_text("a shape")
    config = config_of(prompts=str(tmp_path / "train.txt"))
    assert load_prompts(config) == (PROMPTS, PROMPTS)
    assert load_prompts(config, PROMPTS[:2]) == (PROMPTS[:2], PROMPTS[:2])
    config.evaluation.prompts = str(tmp_path / "other.txt")
    assert load_prompts(config) == (PROMPTS, ["a shape"])

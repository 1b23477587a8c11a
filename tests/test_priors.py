"""Each prior against its formula, and what it keeps in a checkpoint."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bpgo.objective import bpgo, ras_weights
from bpgo.priors import (
    Constant,
    EmpiricalBayes,
    PerPrompt,
    Prior,
    RunningMean,
    group_moments,
    posterior_sharpness,
)

REWARDS = [
    torch.tensor([[0.1, 0.4], [0.2, 0.9]]),
    torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    torch.tensor([[-1.0, 0.0], [0.5, 0.5]]),
]
PROMPTS = ["a shape", "a red circle"]


def restored(prior, fresh):
    """A fresh prior with the state of another, as a checkpoint keeps it."""
    fresh.restore(json.loads(json.dumps(prior.state())))
    return fresh


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_the_running_mean_in_closed_form(momentum):
    prior = RunningMean(momentum)
    means = [rewards.double().mean().item() for rewards in REWARDS]
    for n, rewards in enumerate(REWARDS):
        # The first batch gives its own mean. After that the value is
        # m^(n-1) r_0 + (1 - m) sum_i m^(n-1-i) r_i over the batches before.
        past = means[0]
        if n:
            recent = [(1 - momentum) * momentum ** (n - 1 - i) for i in range(1, n)]
            shares = [momentum ** (n - 1), *recent]
            assert sum(shares) == pytest.approx(1)
            past = sum(share * mean for share, mean in zip(shares, means[:n], strict=True))
        for _ in range(2):  # a call changes nothing
            assert prior(PROMPTS, rewards) == pytest.approx(past, rel=1e-6)
        prior.update(rewards)


def test_a_restored_running_mean_is_exactly_the_saved_one():
    prior = RunningMean(0.9)
    for rewards in REWARDS:
        again = restored(prior, RunningMean(0.9))
        assert again(PROMPTS, rewards) == prior(PROMPTS, rewards)  # to the last bit
        prior.update(rewards)
    assert restored(RunningMean(0.9), RunningMean(0.9))(PROMPTS, REWARDS[1]) == 2.5


@pytest.mark.parametrize("kind", [RunningMean, EmpiricalBayes])
@pytest.mark.parametrize("momentum", [1.0, -0.1, math.nan])
def test_a_momentum_out_of_range_is_refused(kind, momentum):
    with pytest.raises(ValueError, match=rf"momentum must be in \[0, 1\), not {momentum}"):
        kind(momentum)


def test_a_constant_does_not_depend_on_rewards():
    prior = Constant(3)
    for rewards in REWARDS:
        assert prior(PROMPTS, rewards) == 3.0
        prior.update(rewards)
    assert restored(prior, Constant(0))(PROMPTS, REWARDS[0]) == 3.0


def test_a_table_gives_values_in_the_order_of_the_prompts():
    prior = PerPrompt({"a shape": 0.25, "a red circle": 0.75})
    assert prior(PROMPTS, REWARDS[0]).tolist() == [0.25, 0.75]
    assert prior(PROMPTS[::-1], REWARDS[0]).tolist() == [0.75, 0.25]
    assert prior(PROMPTS, REWARDS[0].double()).dtype == torch.float64
    prior.update(REWARDS[0])
    assert restored(prior, PerPrompt(prior.table))(PROMPTS, REWARDS[0]).tolist() == [0.25, 0.75]


def test_a_prompt_that_is_not_in_the_table_is_named():
    expected = r"no reference reward for prompt 'a blue box' \(1 prompts are missing\)"
    with pytest.raises(KeyError, match=expected):
        PerPrompt({"a shape": 0.25})(["a shape", "a blue box"], REWARDS[0])


@pytest.mark.parametrize(
    "prior",
    [
        Constant(0.3),
        RunningMean(0.9),
        PerPrompt({"a shape": 0.25, "a red circle": 0.75}),
        EmpiricalBayes(),
    ],
)
def test_the_objectives_accept_the_value_of_every_prior(prior):
    value = prior(PROMPTS, REWARDS[0])
    expected = torch.as_tensor(value).expand(2)
    weights = ras_weights(REWARDS[0], value, alpha=0.5, k=2.0)
    deviation = REWARDS[0].mean(1) - expected
    # 2 sigmoid(2 d) - 1 = tanh(d)
    torch.testing.assert_close(weights, 1 + 0.5 * torch.tanh(deviation))
    assert bpgo(REWARDS[0], value, alpha=0.5, k=2.0, lam=1.0, beta=0.5).main.shape == (2, 2)


def test_the_base_class_says_what_a_prior_needs():
    class Mine(Prior):
        pass

    with pytest.raises(TypeError, match="Mine defines no __call__: return the expected reward"):
        Mine()(PROMPTS, REWARDS[0])
    prior = Mine()
    prior.update(REWARDS[0])
    assert (prior.sharpness(REWARDS[0]), prior.state()) == (None, {})
    assert restored(prior, Mine()).state() == {}


# ---------------------------------------------------------------------------------- empirical Bayes


def groups(n, size, mean, tau, sigma, seed=0):
    """(n, size) rewards drawn from the hierarchy."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, 1 + size, dtype=torch.float64, generator=generator)
    return mean + tau * normal[:, :1] + sigma * normal[:, 1:]


def posterior(rewards):
    """P(theta_i > mu | rewards) of the normal hierarchy, by numerical integration."""
    found, size = rewards.numpy(), rewards.shape[1]
    within = np.mean([np.var(group, ddof=1) for group in found])
    between = np.var(found.mean(1), ddof=1) - within / size
    mu = found.mean()
    grid = np.linspace(mu - 12 * between**0.5, mu + 12 * between**0.5, 40001)
    density = stats.norm.pdf(grid, mu, between**0.5)[None] * stats.norm.pdf(
        found.mean(1)[:, None], grid[None], (within / size) ** 0.5
    )
    return torch.from_numpy((density * (grid > mu)).sum(1) / density.sum(1))


def weights_of(prior, rewards, alpha=0.5):
    return ras_weights(rewards, prior(PROMPTS, rewards), alpha, prior.sharpness(rewards))


def test_the_moments_of_a_batch_are_those_of_numpy():
    rewards = groups(6, 4, 0.3, 1.0, 0.5)
    table = rewards.numpy()
    expected = table.mean(), table.mean(1).var(ddof=1), table.var(1, ddof=1).mean()
    assert group_moments(rewards) == pytest.approx(expected, rel=1e-12)
    assert group_moments(rewards[:1])[1] == 0.0


def test_the_sharpness_is_its_formula():
    between, within, size = 0.7, 0.3, 5
    shrinkage = between / (between + within / size)
    expected = math.pi * math.sqrt(shrinkage * size / 3) / math.sqrt(within)
    assert posterior_sharpness(between, within, size) == pytest.approx(expected, rel=1e-12)
    assert posterior_sharpness(0.0, within, size) == posterior_sharpness(-0.1, within, size) == 0.0
    assert math.isfinite(posterior_sharpness(between, 0.0, size))


@pytest.mark.parametrize("tau, sigma, size", [(1.0, 1.0, 4), (0.05, 0.3, 12), (2.0, 0.5, 8)])
def test_the_weight_is_the_posterior_probability_of_a_group_above_the_population(tau, sigma, size):
    """The logistic distribution in place of the normal one is off by at most 0.023."""
    rewards = groups(64, size, 0.3, tau, sigma)
    probability = (weights_of(EmpiricalBayes(), rewards, alpha=1.0)) / 2
    torch.testing.assert_close(probability, posterior(rewards), atol=0.023, rtol=0)


def test_the_estimated_moments_are_those_of_the_population():
    prior = EmpiricalBayes(momentum=0.98)
    for seed in range(400):
        prior.update(groups(8, 6, 0.4, 0.2, 0.5, seed))
    mean, variance_of_means, within = prior.moments
    assert mean == pytest.approx(0.4, abs=0.05)
    assert within == pytest.approx(0.25, rel=0.1)
    assert variance_of_means - within / 6 == pytest.approx(0.04, rel=0.25)


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scale_and_shift_of_the_reward_leave_the_weights_unchanged(scale, shift, seed):
    plain, moved = EmpiricalBayes(), EmpiricalBayes()
    for i in range(3):
        rewards = groups(8, 4, 0.0, 1.0, 1.0, 100 * seed + i)
        torch.testing.assert_close(
            weights_of(moved, scale * rewards + shift),
            weights_of(plain, rewards),
            atol=1e-6,
            rtol=0,
        )
        plain.update(rewards)
        moved.update(scale * rewards + shift)


@given(seed=st.integers(0, 200))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_groups_that_differ_by_less_than_chance_have_weight_one(seed):
    rewards = groups(6, 8, 0.0, 0.0, 1.0, seed)
    rewards = rewards - rewards.mean(1, keepdim=True) + 0.01 * rewards.mean(1, keepdim=True)
    assert torch.equal(weights_of(EmpiricalBayes(), rewards), torch.ones(6, dtype=torch.float64))


def test_with_many_samples_every_weight_is_at_an_end_of_its_range():
    rewards = groups(16, 20000, 0.0, 1.0, 1.0)
    means = rewards.mean(1)
    clear = (means - means.mean()).abs() > 0.1
    expected = 1 + 0.5 * (means - means.mean()).sign()
    torch.testing.assert_close(
        weights_of(EmpiricalBayes(), rewards)[clear], expected[clear], atol=1e-3, rtol=0
    )
    sharp = [posterior_sharpness(1.0, 1.0, size) for size in (2, 8, 32, 10**6)]
    assert sharp == sorted(set(sharp))
    assert sharp[-1] == pytest.approx(math.pi * math.sqrt(1e6 / 3), rel=1e-5)  # B -> 1


def test_noiseless_groups_and_a_single_group_have_finite_weights():
    apart = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(weights_of(EmpiricalBayes(), apart), torch.tensor([0.5, 1.5]))
    assert weights_of(EmpiricalBayes(), torch.tensor([[0.0, 1.0]])).tolist() == [1.0]


def test_a_restored_empirical_bayes_is_exactly_the_saved_one():
    prior = EmpiricalBayes()
    for rewards in REWARDS:
        again = restored(prior, EmpiricalBayes())
        assert (again(PROMPTS, rewards), again.sharpness(rewards)) == (
            prior(PROMPTS, rewards),
            prior.sharpness(rewards),
        )
        prior.update(rewards)

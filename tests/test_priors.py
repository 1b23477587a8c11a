"""Where the prior comes from: each kind against its formula, and what it keeps over a restart."""

import json
import math

import pytest
import torch

from bpgo.objective import bpgo, ras_weights
from bpgo.priors import Constant, PerPrompt, RunningMean

REWARDS = [torch.tensor([[0.1, 0.4], [0.2, 0.9]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[-1.0, 0.0], [0.5, 0.5]])]
PROMPTS = ["a shape", "a red circle"]


def restarted(prior, fresh):
    """Another prior, given the first one's state as a checkpoint keeps it."""
    fresh.restore(json.loads(json.dumps(prior.state())))
    return fresh


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_the_running_mean_in_closed_form(momentum):
    prior = RunningMean(momentum)
    means = [rewards.double().mean().item() for rewards in REWARDS]
    for n, rewards in enumerate(REWARDS):
        past = means[0]  # of the first batch itself, then m^(n-1) r_0 + (1 - m) sum_i m^(n-1-i) r_i over the batches before
        if n:
            shares = [momentum ** (n - 1)] + [(1 - momentum) * momentum ** (n - 1 - i) for i in range(1, n)]
            assert sum(shares) == pytest.approx(1)
            past = sum(share * mean for share, mean in zip(shares, means, strict=False))
        assert prior(PROMPTS, rewards) == pytest.approx(past, rel=1e-6)
        assert prior(PROMPTS, rewards) == pytest.approx(past, rel=1e-6)  # asking changes nothing
        prior.update(rewards)


def test_the_running_mean_goes_on_exactly_after_a_restart():
    prior = RunningMean(0.9)
    for rewards in REWARDS:
        again = restarted(prior, RunningMean(0.9))
        assert again(PROMPTS, rewards) == prior(PROMPTS, rewards)  # to the last bit
        prior.update(rewards)
    assert restarted(RunningMean(0.9), RunningMean(0.9))(PROMPTS, REWARDS[1]) == 2.5


@pytest.mark.parametrize("momentum", [1.0, -0.1, math.nan])
def test_a_momentum_that_is_none_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        RunningMean(momentum)


def test_a_constant_is_itself_whatever_it_sees():
    prior = Constant(3)
    for rewards in REWARDS:
        assert prior(PROMPTS, rewards) == 3.0
        prior.update(rewards)
    assert restarted(prior, Constant(0))(PROMPTS, REWARDS[0]) == 3.0


def test_a_table_answers_by_prompt_in_the_order_asked():
    prior = PerPrompt({"a shape": 0.25, "a red circle": 0.75})
    assert prior(PROMPTS, REWARDS[0]).tolist() == [0.25, 0.75]
    assert prior(PROMPTS[::-1], REWARDS[0]).tolist() == [0.75, 0.25]
    assert prior(PROMPTS, REWARDS[0].double()).dtype == torch.float64
    prior.update(REWARDS[0])
    assert restarted(prior, PerPrompt(prior.table))(PROMPTS, REWARDS[0]).tolist() == [0.25, 0.75]


def test_a_prompt_that_the_table_lacks_is_named():
    with pytest.raises(KeyError, match="no reference reward for prompt 'a blue box' \\(1 missing\\)"):
        PerPrompt({"a shape": 0.25})(["a shape", "a blue box"], REWARDS[0])


@pytest.mark.parametrize("prior", [Constant(0.3), RunningMean(0.9), PerPrompt({"a shape": 0.25, "a red circle": 0.75})])
def test_every_prior_is_what_the_objectives_take(prior):
    value = prior(PROMPTS, REWARDS[0])
    expected = torch.as_tensor(value).expand(2)
    weights = ras_weights(REWARDS[0], value, alpha=0.5, k=2.0)
    deviation = REWARDS[0].mean(1) - expected
    torch.testing.assert_close(weights, 1 + 0.5 * torch.tanh(deviation))  # 2 sigmoid(2 d) - 1 = tanh(d)
    assert bpgo(REWARDS[0], value, alpha=0.5, k=2.0, lam=1.0, beta=0.5).main.shape == (2, 2)

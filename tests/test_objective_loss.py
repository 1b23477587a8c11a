"""The clipped surrogate loss, and the gradients that the objectives have through it."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bpgo.objective import clipped_surrogate, surrogate_loss
from tests.equations import (
    OBJECTIVES,
    SETTINGS,
    advantages_of,
    assert_equal_to,
    examples,
    rewards_of,
    transformed_of,
    weights_of,
    zscore,
)


@examples
@given(
    hnp.arrays(np.float64, (4, 6), elements=st.floats(-2, 2)),
    hnp.arrays(np.float64, (4, 6), elements=st.floats(-3, 3)),
    st.sampled_from([0.0, 1e-4, 0.2, 1.5]),
)
def test_clipped_surrogate_is_ppos(log_ratio, advantages, c):
    ratio = np.exp(log_ratio)
    expected = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 1 - c, 1 + c))
    assert_equal_to(
        clipped_surrogate(torch.tensor(log_ratio), torch.tensor(advantages), c), expected
    )


@pytest.mark.parametrize("advantage", [-2.0, 2.0])
@pytest.mark.parametrize("log_ratio", [-0.5, -0.05, 0.0, 0.05, 0.5])
def test_the_gradient_stops_only_where_the_ratio_is_too_far_in_the_advantages_direction(
    log_ratio, advantage
):
    x = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    clipped_surrogate(x, torch.tensor(advantage, dtype=torch.float64), 0.1).backward()
    too_far = log_ratio > math.log(1.1) if advantage > 0 else log_ratio < math.log(0.9)
    assert x.grad.item() == pytest.approx(0.0 if too_far else -advantage * math.exp(log_ratio))


def test_advantages_apply_to_every_trained_step():
    log_ratio, advantages = torch.zeros(3, 5), torch.arange(5.0)
    assert torch.equal(clipped_surrogate(log_ratio, advantages, 0.1), -advantages.expand(3, 5))


@pytest.mark.parametrize("shape", [(6, 1), (2, 6), (5,)])
def test_advantages_that_would_change_the_shape_are_refused(shape):
    expected = f"advantages {shape} do not fit log-ratios (6,)"
    with pytest.raises(ValueError, match=re.escape(expected)):
        clipped_surrogate(torch.zeros(6), torch.ones(shape), 0.1)


def policy_toy(seed=0, rows=24, steps=3, width=4):
    """Features (steps, rows, width) and parameters of linear log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(steps, rows, width, generator=generator, dtype=torch.float64)
    theta = torch.randn(width, generator=generator, dtype=torch.float64)
    return features, theta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moved", [0.0, 0.01, 0.5], ids=["ratio 1", "near", "clipped"])
def test_alpha_and_beta_zero_are_grpo_bit_for_bit(dtype, moved):  # invariant 5
    features, theta = policy_toy()
    features, theta = features.to(dtype), theta.to(dtype)
    rewards = torch.tensor(rewards_of(11, 3, 8), dtype=dtype)
    made = {
        "grpo": advantages_of("grpo", rewards, 0.4),
        "ras": advantages_of("ras", rewards, 0.4, alpha=0.0),
        "crt": advantages_of("crt", rewards, 0.4, beta=0.0),
        "bpgo": advantages_of("bpgo", rewards, 0.4, alpha=0.0, beta=0.0),
    }
    losses, gradients = {}, {}
    for name, advantages in made.items():
        new = (theta + moved).requires_grad_(True)
        auxiliary = None if advantages.auxiliary is None else advantages.auxiliary.flatten()
        loss = surrogate_loss(
            features @ new - features @ theta, advantages.main.flatten(), auxiliary, 0.1
        )
        loss.backward()
        losses[name], gradients[name] = loss.detach(), new.grad
        assert torch.equal(advantages.effective, made["grpo"].main), name
    for name in made:
        assert torch.equal(losses[name], losses["grpo"]) and torch.equal(
            gradients[name], gradients["grpo"]
        ), name
    assert gradients["grpo"].abs().min() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_at_ratio_one_the_gradient_is_grpos_with_the_effective_advantages(name):
    """At r = 1, d/dtheta of -mean(A r) is -mean(A d log r) with the effective advantages A."""
    features, theta = policy_toy()
    r = rewards_of(12, 3, 8)
    advantages = advantages_of(name, torch.tensor(r), 0.4)
    new = theta.clone().requires_grad_(True)
    auxiliary = None if advantages.auxiliary is None else advantages.auxiliary.flatten()
    surrogate_loss(
        features @ new - features @ theta, advantages.main.flatten(), auxiliary, 1e-4
    ).backward()
    effective = advantages.effective.flatten().numpy()
    expected = -np.einsum("r,srw->w", effective, features.numpy()) / features[..., 0].numel()
    np.testing.assert_allclose(new.grad.numpy(), expected, rtol=1e-12)
    if name == "bpgo":
        w = weights_of(r, 0.4, SETTINGS["alpha"], SETTINGS["k"])[:, None]
        by_hand = w * zscore(r) + SETTINGS["beta"] * zscore(transformed_of(r, 0.4, SETTINGS["lam"]))
        np.testing.assert_allclose(effective, by_hand.flatten(), rtol=1e-9, atol=1e-9)

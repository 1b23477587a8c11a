"""Invariant 4: the policy gradient matches a closed form.

The velocity of the toy policy is theta, one number per dimension, at its two noisy steps, and a
constant at the last step, which is not trained. The sample y is then normal with mean B theta + b
and a known variance, and the reward -|y - target|^2 has a known expectation and standard deviation.
"""

import math

import numpy as np
import pytest
import torch

from bpgo.objective import group_advantages, surrogate_loss
from bpgo.registry import TABLES, find
from bpgo.sde import noise_levels, sde_step


class Toy:
    def __init__(self, schedule, level=0.6, sigmas=(1.0, 0.7, 0.4, 0.0)):
        self.name, self.schedule, self.sigmas = schedule, find("schedule", schedule), sigmas
        grid = torch.tensor(sigmas, dtype=torch.float64)
        self.levels = noise_levels(self.schedule, grid, level, {0, 1})
        self.theta = torch.tensor([0.4, -0.8, 1.3], dtype=torch.float64)
        self.target = torch.tensor([0.1, 0.7, -0.5], dtype=torch.float64)
        self.last = -0.3

    def coefficients(self):
        """a, b, rest and the variance of y = start * a + theta * b + rest + noise.

        They follow from the published formulas.
        """
        a, b, variance = 1.0, 0.0, 0.0
        for i in (0, 1):
            sigma, after, s = self.sigmas[i], self.sigmas[i + 1], self.levels[i]
            if self.name == "cps":
                kept, added = math.sqrt(after**2 - s**2), s**2
                on_x, on_v = (1 - after) + kept, -(1 - after) * sigma + kept * (1 - sigma)
            else:
                dt = after - sigma
                added = s**2 * -dt
                on_x, on_v = 1 + s**2 / (2 * sigma) * dt, dt + s**2 / (2 * sigma) * (1 - sigma) * dt
            a, b, variance = on_x * a, on_x * b + on_v, on_x**2 * variance + added
        return a, b, self.last * (self.sigmas[3] - self.sigmas[2]), variance + a**2

    def expectation(self):
        """Gradient of E[reward] in theta, and the reward's standard deviation."""
        _, b, rest, variance = self.coefficients()
        away = b * self.theta.numpy() + rest - self.target.numpy()
        return -2 * away * b, math.sqrt((2 * variance**2 + 4 * variance * away**2).sum())

    def sample(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        steps = []
        for i in (0, 1):
            noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
            made = self.step(i, x, self.theta.expand(n, 3), noise=noise)
            steps.append((i, x, made.x_next, made.log_prob))
            x = made.x_next
        y = sde_step(x, torch.full_like(x, self.last), self.sigmas[2], self.sigmas[3], 0.0).x_next
        return steps, -((y - self.target) ** 2).sum(1)

    def step(self, i, x, velocity, **given):
        levels = self.sigmas[i], self.sigmas[i + 1], self.levels[i]
        return self.schedule.step(x, velocity, *levels, **given)

    def gradients(self, steps, advantages):
        """(n, 3): the contribution of each sample. Their mean is the gradient of the loss."""
        theta = self.theta.repeat(len(advantages), 1).requires_grad_(True)
        new = torch.stack(
            [self.step(i, x, theta, x_next=x_next).log_prob for i, x, x_next, _ in steps]
        )
        old = torch.stack([log_prob for *_, log_prob in steps])
        assert torch.equal(new, old), "on-policy the ratio is exactly 1"
        surrogate_loss(new - old, advantages, None, 1e-4).backward()
        return theta.grad * len(advantages)


@pytest.mark.parametrize("schedule", TABLES["schedule"])
def test_the_policy_gradient_is_that_of_the_expected_reward(schedule):  # invariant 4
    """The loss averages log_prob over 3 dimensions and 2 steps, so it has -1/6 of the gradient.

    The estimate is within 4 standard errors, which are a small part of it.
    """
    toy = Toy(schedule)
    steps, rewards = toy.sample(200_000, seed=3)
    rows = toy.gradients(steps, rewards - rewards.mean()).numpy()
    expected = -toy.expectation()[0] / (3 * 2)
    error = rows.std(0) / math.sqrt(len(rows))
    assert (np.abs(rows.mean(0) - expected) < 4 * error).all()
    assert (error < 0.1 * np.abs(expected)).all()


@pytest.mark.parametrize("schedule", TABLES["schedule"])
def test_the_gradient_of_grpo_is_the_policy_gradient_per_standard_deviation(schedule):
    """With one large group the advantages are (R - E[R]) / sd[R]."""
    toy = Toy(schedule)
    steps, rewards = toy.sample(200_000, seed=4)
    rows = toy.gradients(steps, group_advantages(rewards[None])[0]).numpy()
    gradient, deviation = toy.expectation()
    expected = -gradient / deviation / (3 * 2)
    error = rows.std(0) / math.sqrt(len(rows))
    assert (np.abs(rows.mean(0) - expected) < 4 * error).all()
    assert (error < 0.1 * np.abs(expected)).all()
    assert rewards.std().item() == pytest.approx(deviation, rel=0.02)


def test_a_group_mean_that_includes_the_sample_shrinks_the_gradient_by_one_over_g():
    """The baseline depends on its sample, so centred rewards give (G - 1) / G of the gradient."""
    toy, g = Toy("dance-grpo"), 4
    steps, rewards = toy.sample(200_000, seed=5)
    centred = rewards.view(-1, g) - rewards.view(-1, g).mean(1, keepdim=True)
    rows = toy.gradients(steps, centred.flatten()).view(-1, g, 3).mean(1).numpy()
    expected = -toy.expectation()[0] / (3 * 2) * (g - 1) / g
    error = rows.std(0) / math.sqrt(len(rows))
    assert (np.abs(rows.mean(0) - expected) < 4 * error).all()

"""Priors: R_prior is the expected reward of a semantically clear, typical prompt.

In every iteration the trainer calls `prior(prompts, rewards)` for the prior of these prompts, and
then `prior.update(rewards)`. Except in the first iteration, a prior therefore never depends on the
rewards that it is compared with. What a prior has learnt is saved with each checkpoint. Priors that
need the starting model are made in `bpgo.reference`. See arXiv 2511.18919, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bpgo.devices import as_float64


class Prior:
    """Base class of all priors. A subclass defines at least `__call__`.

    prompts: the N prompts of this process. rewards: (N, G), the rewards of this iteration from all
    processes, so with several processes there are more groups than prompts.
    """

    def __call__(self, prompts: list[str], rewards: Tensor) -> Tensor | float:
        """R_prior, in units of the reward: a number, or (N,) with one value per prompt."""
        raise TypeError(
            f"{type(self).__name__} defines no __call__: return the expected reward of the prompts"
        )

    def sharpness(self, rewards: Tensor) -> float | None:
        """The k of RAS (equation 2) per unit of reward if the prior implies one, else None."""
        return None

    def update(self, rewards: Tensor) -> None:
        """Learn from the rewards of an iteration."""

    def state(self) -> dict:
        """What the prior has learnt, as values that JSON can represent."""
        return {}

    def restore(self, state: dict) -> None:
        """Restore what `state` returned."""


class Constant(Prior):
    """One value for every prompt."""

    def __init__(self, value: float):
        self.value = float(value)

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        return self.value

    def state(self) -> dict:
        return {"value": self.value}

    def restore(self, state: dict) -> None:
        self.value = state["value"]


class PerPrompt(Prior):
    """One value per prompt, from a table of prompt to reward."""

    def __init__(self, table: dict[str, float]):
        self.table = table

    def __call__(self, prompts: list[str], rewards: Tensor) -> Tensor:
        missing = [prompt for prompt in prompts if prompt not in self.table]
        if missing:
            raise KeyError(
                f"no reference reward for prompt {missing[0]!r} ({len(missing)} prompts are "
                f"missing): compute the table for all prompts"
            )
        values = [self.table[prompt] for prompt in prompts]
        return torch.tensor(values, dtype=rewards.dtype)


class RunningMean(Prior):
    """Exponential moving average of the mean reward (the paper's choice for text-to-image).

    momentum: weight of the past, in [0, 1). In the first iteration the value is the mean of that
    iteration's own rewards.
    """

    def __init__(self, momentum: float = 0.9):
        self.momentum = _check_momentum(momentum)
        self.mean: float | None = None

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        return rewards.mean().item() if self.mean is None else self.mean

    def update(self, rewards: Tensor) -> None:
        new = rewards.mean().item()
        if self.mean is None:
            self.mean = new
        else:
            self.mean = self.momentum * self.mean + (1 - self.momentum) * new

    def state(self) -> dict:
        return {} if self.mean is None else {"mean": self.mean}

    def restore(self, state: dict) -> None:
        self.mean = state.get("mean")


class EmpiricalBayes(Prior):
    """Prior and sharpness from a normal hierarchy, estimated during training (not in the paper).

    The model: the true mean of a group is theta_i ~ N(mu, tau^2), and its rewards are
    R_ij ~ N(theta_i, sigma^2). Given the observed mean of the group, theta_i is normal with mean
    mu + B (mean R_i - mu) and variance B sigma^2 / G, where B = tau^2 / (tau^2 + sigma^2 / G).

    The weight of a group should say how probable it is that the group lies above the population:
    w = 1 + alpha (2 P(theta_i > mu) - 1). If a logistic distribution with the same mean and
    variance replaces the normal one (the two differ by less than 0.023), this is equation 2 with
    R_prior = mu and k = `posterior_sharpness`. Neither k nor the prior needs to be chosen, and a
    change of scale or origin of the reward leaves the weights unchanged.

    momentum: weight of the past, in [0, 1), for all three moments. In the first iteration the
    moments are those of that iteration's own rewards.
    """

    def __init__(self, momentum: float = 0.9):
        self.momentum = _check_momentum(momentum)
        self.moments: tuple[float, float, float] | None = None

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        mean, _, _ = self.moments or group_moments(rewards)
        return mean

    def sharpness(self, rewards: Tensor) -> float:
        group_size = rewards.shape[1]
        _, variance_of_means, within = self.moments or group_moments(rewards)
        return posterior_sharpness(variance_of_means - within / group_size, within, group_size)

    def update(self, rewards: Tensor) -> None:
        new = group_moments(rewards)
        old = self.moments or new
        m = self.momentum if self.moments else 0.0
        self.moments = tuple(m * a + (1 - m) * b for a, b in zip(old, new, strict=True))

    def state(self) -> dict:
        names = ("mean", "spread", "within")  # the names in existing checkpoints
        return dict(zip(names, self.moments, strict=True)) if self.moments else {}

    def restore(self, state: dict) -> None:
        self.moments = (state["mean"], state["spread"], state["within"]) if state else None


def group_moments(rewards: Tensor) -> tuple[float, float, float]:
    """Moments of rewards (N, G): their mean, the variance of the group means, the mean variance
    within a group. Both variances are unbiased.

    The variance between the true means of the groups is the second minus the third divided by G
    (one-way analysis of variance). With a single group the variance of the means is 0.
    """
    rewards = as_float64(rewards)
    means = rewards.mean(1)
    variance_of_means = means.var().item() if len(means) > 1 else 0.0
    return means.mean().item(), variance_of_means, rewards.var(1).mean().item()


def posterior_sharpness(between: float, within: float, group_size: int) -> float:
    """k = pi sqrt(B G / 3) / sigma of `EmpiricalBayes`, per unit of reward.

    between: tau^2. within: sigma^2. Both are in squared units of the reward. Without variance
    between groups nothing distinguishes them, so k is 0 and every weight is 1. k grows with
    sqrt(G), and without bound as sigma tends to 0, so sigma^2 is taken to be at least 1e-12 tau^2.
    """
    if between <= 0:
        return 0.0
    error = max(within, 1e-12 * between) / group_size
    shrinkage = between / (between + error)
    return math.pi / math.sqrt(3) * math.sqrt(shrinkage / error)


def _check_momentum(momentum: float) -> float:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), not {momentum}")
    return momentum

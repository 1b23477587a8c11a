"""Where R_prior comes from: the reward to expect of a semantically clear, typical prompt (arXiv 2511.18919, section 3).

A prior is asked for its value before each update, `prior(prompts, rewards)`, then shown the rewards, `prior.update(rewards)`; what it
has learnt is saved with each checkpoint. It knows tensors only: tables of rewards are handed to it ready.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Prior:
    """prompts: N; rewards: (N, G) of this iteration over all processes."""

    def __call__(self, prompts: list[str], rewards: Tensor) -> Tensor | float:
        """A number or (N,), in units of the reward."""
        raise TypeError(
            f"{type(self).__name__} has no value: a prior says what reward to expect of prompts"
        )

    def sharpness(self, rewards: Tensor) -> float | None:
        """The k of RAS (equation 2), per unit of reward, where the prior itself implies it; None leaves it to the objective's settings."""
        return None

    def update(self, rewards: Tensor) -> None:
        """Learn from the rewards of an iteration."""

    def state(self) -> dict[str, float]:
        """What it has learnt, as JSON can write it."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Take up what `state` gave."""


class Constant(Prior):
    """One number for every prompt: given by hand, or the mean reward of the SFT model's samples (`sft`)."""

    def __init__(self, value: float):
        self.value = float(value)

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        return self.value

    def state(self) -> dict[str, float]:
        return {"value": self.value}

    def restore(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class PerPrompt(Prior):
    """For each prompt the mean reward of the SFT model's own samples of it. table: prompt -> reward."""

    def __init__(self, table: dict[str, float]):
        self.table = table

    def __call__(self, prompts: list[str], rewards: Tensor) -> Tensor:
        missing = [p for p in prompts if p not in self.table]
        if missing:
            raise KeyError(
                f"no reference reward for prompt {missing[0]!r} ({len(missing)} missing): compute the table for all prompts"
            )
        return torch.tensor([self.table[p] for p in prompts], dtype=rewards.dtype)


class RunningMean(Prior):
    """Exponential mean of the group rewards seen so far (the paper's choice for text-to-image).

    momentum in [0, 1): weight of the past at each iteration. Before any iteration it is the first batch's own mean.
    """

    def __init__(self, momentum: float = 0.9):
        self.momentum, self.mean = _checked(momentum), None

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        return rewards.mean().item() if self.mean is None else self.mean

    def update(self, rewards: Tensor) -> None:
        new = rewards.mean().item()
        self.mean = (
            new if self.mean is None else self.momentum * self.mean + (1 - self.momentum) * new
        )

    def state(self) -> dict[str, float]:
        return {} if self.mean is None else {"mean": self.mean}

    def restore(self, state: dict[str, float]) -> None:
        self.mean = state.get("mean")


class EmpiricalBayes(Prior):
    """One prior for every task: a normal hierarchy whose moments are estimated from the groups as training goes (ours, not the paper's).

    A group's true mean is theta_i ~ N(mu, tau^2), its rewards are R_ij ~ N(theta_i, sigma^2). Given its observed mean, theta_i is normal
    with mean mu + B (Rbar_i - mu) and variance B sigma^2 / G, where B = tau^2 / (tau^2 + sigma^2 / G). The weight is to say how probable
    it is that the group is above the population, w = 1 + alpha (2 P(theta_i > mu) - 1); with a logistic law of that mean and variance in
    place of the normal one (they differ by less than .023) this is equation 2 with R_prior = mu and k = `posterior_sharpness`. So neither
    k nor the prior is chosen by hand, and a change of the reward's scale or origin leaves the weights as they are.

    momentum in [0, 1): weight of the past at each iteration, of the three moments alike. Before any they are the first batch's own.
    """

    def __init__(self, momentum: float = 0.9):
        self.momentum, self.moments = _checked(momentum), None

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        return (self.moments or group_moments(rewards))[0]

    def sharpness(self, rewards: Tensor) -> float:
        _, spread, within = self.moments or group_moments(rewards)
        return posterior_sharpness(spread - within / rewards.shape[1], within, rewards.shape[1])

    def update(self, rewards: Tensor) -> None:
        new = group_moments(rewards)
        m = self.momentum if self.moments else 0.0
        self.moments = tuple(
            m * old + (1 - m) * now for old, now in zip(self.moments or new, new, strict=True)
        )

    def state(self) -> dict[str, float]:
        return (
            dict(zip(("mean", "spread", "within"), self.moments, strict=True))
            if self.moments
            else {}
        )

    def restore(self, state: dict[str, float]) -> None:
        self.moments = (state["mean"], state["spread"], state["within"]) if state else None


def group_moments(rewards: Tensor) -> tuple[float, float, float]:
    """Of rewards (N, G): their mean, the variance of the group means, and the mean variance within a group, both unbiased.

    The variance between the groups' true means is the second less the third over G (one-way analysis of variance). A single group has
    no variance of means: 0.
    """
    rewards = rewards.double()
    means = rewards.mean(1)
    spread = means.var().item() if len(means) > 1 else 0.0
    return means.mean().item(), spread, rewards.var(1).mean().item()


def posterior_sharpness(between: float, within: float, group_size: int) -> float:
    """k = pi sqrt(B G / 3) / sigma of `EmpiricalBayes`: between = tau^2, within = sigma^2, in squared units of the reward.

    Without variance between groups there is nothing to tell apart: k = 0, every weight is 1. It grows with sqrt(G), and without
    bound as sigma -> 0 (held at the sigma that is a millionth of tau).
    """
    if between <= 0:
        return 0.0
    error = max(within, 1e-12 * between) / group_size
    shrinkage = between / (between + error)
    return math.pi / math.sqrt(3) * math.sqrt(shrinkage / error)


def _checked(momentum: float) -> float:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), not {momentum}")
    return momentum

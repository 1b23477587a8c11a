"""The paper on one page: from rewards to advantages, and from advantages to a loss.

Notation of arXiv 2511.18919: there are N prompts with G samples each, a prompt's samples are its
group, R[i, j] is the reward of sample j of prompt i, and the prior is the expected reward of a
clear, typical prompt. An objective is a function

    objective(rewards, prior, *, hyperparameters) -> Advantages

with keyword-only hyperparameters, and `surrogate_loss` turns its result into the loss. Everything
here is a pure function of tensors: rewards are (N, G), and a prior is a number, (N,) or (N, G).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# --------------------------------------------------------------------------- the paper's equations


def group_advantages(rewards: Tensor, eps: float = 1e-8) -> Tensor:
    """Equation 1: (R - mean) / (unbiased std + eps) within each group.

    Returns (N, G). A group of equal rewards gives zeros. No clamp is needed, because
    |A| <= (G - 1) / sqrt(G). Raises ValueError as `check_rewards` does.
    """
    rewards = check_rewards(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    # The first mean is rounded, which matters where rewards differ only in their last digits.
    centred = centred - centred.mean(1, keepdim=True)
    advantages = centred / (centred.std(1, keepdim=True) + eps)
    return torch.where(all_equal(rewards)[:, None], torch.zeros_like(advantages), advantages)


def ras_weights(
    rewards: Tensor, prior: Tensor | float, alpha: float = 0.5, k: float = 1.0
) -> Tensor:
    """Equation 2, reliability-adaptive scaling: w = 1 + alpha (2 sigmoid(k (mean R - prior)) - 1).

    Returns (N,), with values in (1 - alpha, 1 + alpha). alpha is in [0, 1]; k is per unit of reward
    (see `sharpness`). A prior (N, G) is averaged over each group. Raises ValueError for alpha out
    of range and for wrong shapes.
    """
    rewards = check_rewards(rewards)
    _check_range("alpha", alpha, 0, 1)
    deviation = rewards.mean(1) - check_prior(prior, rewards).mean(1)
    return 1 + alpha * (2 * torch.sigmoid(k * deviation) - 1)


def crt_rewards(rewards: Tensor, prior: Tensor | float, lam: float = 1.0) -> Tensor:
    """Equation 4, contrastive reward transformation: (lam (R - prior) + 1{R > prior}) exp(R).

    Returns (N, G). The transformation preserves the order of rewards above the prior, but inverts
    it for strongly negative ones (see `diagnostics.rank_inversions`). Raises ValueError if exp(R)
    overflows.
    """
    rewards = check_rewards(rewards)
    deviation = rewards - check_prior(prior, rewards)
    transformed = (lam * deviation + (deviation > 0)) * rewards.exp()
    if not transformed.isfinite().all():
        raise ValueError(
            f"exp(R) overflows in CRT for a reward of {rewards.max().item():.4g}: "
            f"scale the reward down (reward.scale)"
        )
    return transformed


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """max(-A r, -A clip(r, 1 - c, 1 + c)) with r = exp(log_ratio) (PPO, arXiv 1707.06347).

    The result has the shape of log_ratio, whose last dimensions must be those of the advantages.
    Raises ValueError for other shapes and for a negative clip_range.
    """
    _check_range("clip_range", clip_range, 0, math.inf)
    if advantages.shape != log_ratio.shape[log_ratio.ndim - advantages.ndim :]:
        raise ValueError(
            f"advantages {tuple(advantages.shape)} do not fit log-ratios {tuple(log_ratio.shape)}"
        )
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def k_from_kappa(kappa: float, rewards: Tensor) -> float:
    """k = kappa / std, with the standard deviation of all rewards of the batch.

    One kappa therefore means the same on every reward scale. If all rewards are equal, k is 0 and
    every weight of RAS is 1.
    """
    rewards = check_rewards(rewards)
    if rewards.max() == rewards.min():
        return 0.0
    return kappa / float(rewards.std())


def sharpness(
    rewards: Tensor,
    k: float | None = None,
    kappa: float | None = None,
    implied: float | None = None,
) -> float:
    """The k of RAS, per unit of reward, from the first of k, implied and kappa that is given.

    implied: the k that follows from the prior (`Prior.sharpness`). If nothing is given, kappa is 1.
    """
    if k is not None:
        return k
    if implied is not None:
        return implied
    return k_from_kappa(1.0 if kappa is None else kappa, rewards)


# --------------------------------------------------------------------------------- the objectives


class Advantages(NamedTuple):
    """The result of an objective for the rewards of a batch.

    main: (N, G), weights times group advantages. auxiliary: (N, G), beta times the group advantages
    of the transformed rewards, or None without CRT. weights: (N,), one per group. transformed:
    (N, G), the rewards after CRT, or the rewards themselves without it.
    """

    main: Tensor
    auxiliary: Tensor | None
    weights: Tensor
    transformed: Tensor

    @property
    def effective(self) -> Tensor:
        """(N, G): main + auxiliary. At ratio 1 the gradient is GRPO's with these advantages."""
        return self.main if self.auxiliary is None else self.main + self.auxiliary


def grpo(rewards: Tensor, prior: Tensor | float) -> Advantages:
    """GRPO (equation 1): the group advantages. The prior is not used."""
    rewards = check_rewards(rewards)
    return Advantages(group_advantages(rewards), None, rewards.new_ones(len(rewards)), rewards)


def ras(
    rewards: Tensor, prior: Tensor | float, *, alpha: float = 0.5, k: float = 1.0
) -> Advantages:
    """RAS alone (equations 2 and 3): the advantages of each group times its weight."""
    rewards = check_rewards(rewards)
    weights = ras_weights(rewards, prior, alpha, k)
    return Advantages(weights[:, None] * group_advantages(rewards), None, weights, rewards)


def crt(
    rewards: Tensor, prior: Tensor | float, *, lam: float = 1.0, beta: float = 0.5
) -> Advantages:
    """CRT alone (equation 5 with all weights 1): GRPO plus beta times CRT's loss."""
    rewards = check_rewards(rewards)
    transformed = crt_rewards(rewards, prior, lam)
    weights = rewards.new_ones(len(rewards))
    auxiliary = beta * group_advantages(transformed)
    return Advantages(group_advantages(rewards), auxiliary, weights, transformed)


def bpgo(
    rewards: Tensor,
    prior: Tensor | float,
    *,
    alpha: float = 0.5,
    k: float = 1.0,
    lam: float = 1.0,
    beta: float = 0.5,
) -> Advantages:
    """BPGO (equation 5): L_RAS + beta L_CRT. The weights do not multiply the CRT term."""
    weighted = ras(rewards, prior, alpha=alpha, k=k)
    sharpened = crt(rewards, prior, lam=lam, beta=beta)
    return weighted._replace(auxiliary=sharpened.auxiliary, transformed=sharpened.transformed)


def teleboost(rewards: Tensor, prior: Tensor | float, *, alpha: float = 0.5) -> Advantages:
    """The variant that the authors' institute published (TeleBoost), which differs from the paper.

    CRT, (50 (R - p) + 1{R > p}) R / (1 + exp(-R / 5)), *replaces* the rewards. RAS is
    w = 1 + alpha (P - 1/2), where P is the probability that the group's mean lies above the prior
    under a normal posterior with prior variance 1. Both use the replaced rewards. The replacement
    does not preserve the order of the rewards.
    """
    rewards = check_rewards(rewards)
    _check_range("alpha", alpha, 0, 1)
    prior = check_prior(prior, rewards)
    deviation = rewards - prior
    replaced = (50 * deviation + (deviation > 0)) * torch.sigmoid(rewards / 5) * rewards
    precision = rewards.shape[1] / (replaced.var(1) + 1e-8)
    variance = 1 / (precision + 1)
    anchor = prior.mean(1)
    mean = variance * (precision * replaced.mean(1) + anchor)
    probability = torch.special.ndtr((mean - anchor) / variance.sqrt())
    weights = 1 + alpha * (probability - 0.5)
    return Advantages(weights[:, None] * group_advantages(replaced), None, weights, replaced)


def surrogate_loss(
    log_ratio: Tensor, main: Tensor, auxiliary: Tensor | None, clip_range: float
) -> Tensor:
    """Equation 5: the mean clipped surrogate of `main` plus, if given, that of `auxiliary`."""
    loss = clipped_surrogate(log_ratio, main, clip_range).mean()
    if auxiliary is None:
        return loss
    return loss + clipped_surrogate(log_ratio, auxiliary, clip_range).mean()


def kl_divergence(mean: Tensor, reference_mean: Tensor, std: float) -> Tensor:
    """KL(N(mean, std^2) || N(reference_mean, std^2)) = (mean - reference_mean)^2 / (2 std^2).

    Returns (B,), averaged over all dimensions but the first. The means are (B, ...). Raises
    ValueError for means of different shapes and for std = 0, where there is no density.
    """
    if mean.shape != reference_mean.shape:
        raise ValueError(
            f"means {tuple(mean.shape)} and {tuple(reference_mean.shape)} must have one shape"
        )
    if not std > 0:
        raise ValueError(f"a step with std = {std} has no density, and so no KL divergence")
    return ((mean - reference_mean) ** 2).flatten(1).mean(1) / (2 * std**2)


# ------------------------------------------------------------------------------------------- checks


def check_rewards(rewards: Tensor) -> Tensor:
    """The rewards as a floating-point (N, G) tensor.

    Raises ValueError for another shape, for N = 0, for G < 2 and for a value that is not finite.
    """
    rewards = torch.as_tensor(rewards)
    if not rewards.is_floating_point():
        rewards = rewards.to(torch.get_default_dtype())
    shape = tuple(rewards.shape)
    if rewards.ndim != 2 or rewards.shape[0] == 0:
        raise ValueError(f"rewards must be (N, G), N groups of G samples, not {shape}")
    if rewards.shape[1] < 2:
        raise ValueError(
            f"a group needs at least 2 samples to compare: rewards {shape} have G = {shape[1]}"
        )
    if not rewards.isfinite().all():
        index, value = _first_not_finite(rewards)
        raise ValueError(f"rewards{index} is {value}: every reward must be finite")
    return rewards


def check_prior(prior: Tensor | float, rewards: Tensor) -> Tensor:
    """The prior as (N, 1) or (N, G).

    Raises ValueError unless it is finite and a number, (N,) or (N, G).
    """
    prior = torch.as_tensor(prior, dtype=rewards.dtype, device=rewards.device)
    n, g = rewards.shape
    if prior.shape not in ((), (n,), (n, g)):
        raise ValueError(
            f"the prior must be a number, ({n},) or ({n}, {g}), not {tuple(prior.shape)}"
        )
    if not prior.isfinite().all():
        index, value = _first_not_finite(prior)
        raise ValueError(f"prior{index or ''} is {value}: it must be finite")
    return prior if prior.ndim == 2 else prior.expand(n)[:, None]


def check_advantages(advantages: Advantages, rewards: Tensor) -> Advantages:
    """Check that advantages have the shapes stated in `Advantages` and are finite.

    Raises TypeError for anything but `Advantages`, and ValueError for a wrong shape or value.
    """
    if not isinstance(advantages, Advantages):
        raise TypeError(f"an objective returns Advantages, not {type(advantages).__name__}")
    for name, value in advantages._asdict().items():
        if value is None and name == "auxiliary":
            continue
        shape = rewards.shape[:1] if name == "weights" else rewards.shape
        if value is None or value.shape != shape:
            found = None if value is None else tuple(value.shape)
            raise ValueError(f"{name} of the objective must be {tuple(shape)}, not {found}")
        if not value.isfinite().all():
            index, number = _first_not_finite(value)
            raise ValueError(f"{name}{index} of the objective is {number}: it must be finite")
    return advantages


def all_equal(rewards: Tensor) -> Tensor:
    """(N,): whether all rewards of a group are equal, which their rounded mean may not show."""
    return rewards.amax(1) == rewards.amin(1)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], not {value}")


def _first_not_finite(tensor: Tensor) -> tuple[list[int], float]:
    index = tuple((~tensor.isfinite()).nonzero()[0].tolist())
    return list(index), tensor[index].item()

"""The paper on one page: from rewards (N, G) to advantages, and from advantages to a loss (arXiv 2511.18919).

N prompt groups, G samples each; R[i, j] is the reward of sample j of prompt i, and the prior is the reward expected of a clear, typical
prompt. An objective is a function `(rewards, prior, *, alpha, k, lam, beta) -> Advantages`; `surrogate_loss` turns
these and one forward pass of the policy into the loss. Everything here is a pure function of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# ----------------------------------------------------------------------------------------------- the paper's equations


def group_advantages(rewards: Tensor, eps: float = 1e-8) -> Tensor:
    """Equation 1: (R - mean) / (unbiased std + eps) within each group, (N, G). A group of equal rewards gives zeros.

    |A| <= (G - 1) / sqrt(G), so no clamp is needed. Raises ValueError as `check_rewards`.
    """
    rewards = check_rewards(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    centred = centred - centred.mean(
        1, keepdim=True
    )  # the first mean is rounded, which matters where rewards differ by their last digits
    advantages = centred / (centred.std(1, keepdim=True) + eps)
    return torch.where(_flat(rewards)[:, None], torch.zeros_like(advantages), advantages)


def ras_weights(
    rewards: Tensor, prior: Tensor | float, alpha: float = 0.5, k: float = 1.0
) -> Tensor:
    """Equation 2, reliability-adaptive scaling: w = 1 + alpha (2 sigmoid(k (Rbar - prior)) - 1), (N,) in (1 - alpha, 1 + alpha).

    prior: a number, (N,) or (N, G) (its group mean is taken). alpha in [0, 1]; k per unit of reward, see `k_from_kappa`.
    """
    rewards = check_rewards(rewards)
    _check_range("alpha", alpha, 0, 1)
    deviation = rewards.mean(1) - check_prior(prior, rewards).mean(1)
    return 1 + alpha * (2 * torch.sigmoid(k * deviation) - 1)


def crt_rewards(rewards: Tensor, prior: Tensor | float, lam: float = 1.0) -> Tensor:
    """Equation 4, contrastive reward transformation: (lam (R - prior) + 1{R > prior}) exp(R), (N, G).

    Order-preserving above the prior; strongly negative rewards are rank-inverted (`rank_inversions` counts them).
    Raises ValueError where exp(R) overflows: rescale the reward.
    """
    rewards = check_rewards(rewards)
    deviation = rewards - check_prior(prior, rewards)
    transformed = (lam * deviation + (deviation > 0)) * rewards.exp()
    return _refuse_overflow(transformed, rewards)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """max(-A r, -A clip(r, 1 - c, 1 + c)) with r = exp(log_ratio), same shape as log_ratio (PPO, arXiv 1707.06347)."""
    _check_range("clip_range", clip_range, 0, math.inf)
    if advantages.shape != log_ratio.shape[log_ratio.ndim - advantages.ndim :]:
        raise ValueError(
            f"advantages {tuple(advantages.shape)} do not fit log-ratios {tuple(log_ratio.shape)}"
        )
    ratio = log_ratio.exp()
    return torch.maximum(
        -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    )


def k_from_kappa(kappa: float, rewards: Tensor) -> float:
    """k = kappa / sd: the sharpness of RAS in units of the rewards' standard deviation over the whole batch.

    So one kappa is the same method on every reward scale. 0 if all rewards are equal (every weight is then 1).
    """
    rewards = check_rewards(rewards)
    if rewards.max() == rewards.min():
        return 0.0
    return kappa / float(rewards.std())


def sharpness(k: float | None, kappa: float | None, rewards: Tensor) -> float:
    """The k of RAS for these rewards: k itself if given, else from kappa, 1 if neither is given."""
    return k if k is not None else k_from_kappa(1.0 if kappa is None else kappa, rewards)


# ------------------------------------------------------------------------------------------------------- the objectives


class Advantages(NamedTuple):
    """main: (N, G), w A. auxiliary: (N, G), beta times the advantages of the transformed rewards, or None without CRT.
    weights: (N,). transformed: (N, G) rewards after CRT (the rewards themselves without it)."""

    main: Tensor
    auxiliary: Tensor | None
    weights: Tensor
    transformed: Tensor

    @property
    def effective(self) -> Tensor:
        """(N, G): at ratio 1 the gradient is that of GRPO with these advantages, main + auxiliary."""
        return self.main if self.auxiliary is None else self.main + self.auxiliary


def grpo(
    rewards: Tensor, prior: Tensor | float, *, alpha: float, k: float, lam: float, beta: float
) -> Advantages:
    """GRPO (equation 1): the group advantages as they are. The prior and the four settings are not used."""
    rewards = check_rewards(rewards)
    return Advantages(group_advantages(rewards), None, rewards.new_ones(len(rewards)), rewards)


def ras(
    rewards: Tensor, prior: Tensor | float, *, alpha: float, k: float, lam: float, beta: float
) -> Advantages:
    """RAS alone (equations 2, 3): each group's advantages times its weight."""
    rewards = check_rewards(rewards)
    weights = ras_weights(rewards, prior, alpha, k)
    return Advantages(weights[:, None] * group_advantages(rewards), None, weights, rewards)


def crt(
    rewards: Tensor, prior: Tensor | float, *, alpha: float, k: float, lam: float, beta: float
) -> Advantages:
    """CRT alone (equation 5 with every weight 1): GRPO plus beta times the loss on transformed rewards."""
    rewards = check_rewards(rewards)
    transformed = crt_rewards(rewards, prior, lam)
    weights = rewards.new_ones(len(rewards))
    return Advantages(
        group_advantages(rewards), beta * group_advantages(transformed), weights, transformed
    )


def bpgo(
    rewards: Tensor, prior: Tensor | float, *, alpha: float, k: float, lam: float, beta: float
) -> Advantages:
    """BPGO (equation 5): L_RAS + beta L_CRT. The weights do not multiply the auxiliary term."""
    weighted = ras(rewards, prior, alpha=alpha, k=k, lam=lam, beta=beta)
    sharpened = crt(rewards, prior, alpha=alpha, k=k, lam=lam, beta=beta)
    return weighted._replace(auxiliary=sharpened.auxiliary, transformed=sharpened.transformed)


def teleboost(
    rewards: Tensor, prior: Tensor | float, *, alpha: float, k: float, lam: float, beta: float
) -> Advantages:
    """The institute's published variant, which differs from the paper: for comparison, never the default.

    CRT, (50 (R - p) + 1{R > p}) / (1 + exp(-R / 5)) R, *replaces* the rewards. RAS is w = 1 + alpha (P - 1/2), P the probability that
    the prior is below the group's mean under a Normal posterior with prior variance 1, both on the replaced rewards. k, lam and
    beta are not used. The replacement is not order-preserving.
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


OBJECTIVES: dict[str, Callable[..., Advantages]] = {
    "grpo": grpo,
    "ras": ras,
    "crt": crt,
    "bpgo": bpgo,
    "teleboost": teleboost,
}


def surrogate_loss(
    log_ratio: Tensor, main: Tensor, auxiliary: Tensor | None, clip_range: float
) -> Tensor:
    """Both terms of equation 5 from one log-ratio: the mean of the clipped surrogates of main and of auxiliary."""
    loss = clipped_surrogate(log_ratio, main, clip_range).mean()
    return (
        loss
        if auxiliary is None
        else loss + clipped_surrogate(log_ratio, auxiliary, clip_range).mean()
    )


# -------------------------------------------------------------------------------------------------------- diagnostics


def rank_inversions(rewards: Tensor, transformed: Tensor) -> Tensor:
    """(N,) share of a group's pairs of samples whose order the transformation turns round, in [0, 1]."""
    before, after = (r[:, :, None] - r[:, None, :] for r in (rewards, transformed))
    pairs = rewards.shape[1] * (rewards.shape[1] - 1)
    return (before.sign() * after.sign() < 0).to(rewards.dtype).sum((1, 2)) / pairs


def effective_sample_size(advantages: Tensor) -> Tensor:
    """(N,) samples that carry a group's gradient, (sum |A|)^2 / sum A^2: G when all pull alike, 1 when one does, 0 for none."""
    size = advantages.abs()
    return size.sum(1) ** 2 / (size**2).sum(1).clamp_min(torch.finfo(size.dtype).tiny)


def group_diagnostics(rewards: Tensor, advantages: Advantages) -> dict[str, float]:
    """What an objective made of a batch: weights, rank inversions, groups without signal, concentration."""
    w = advantages.weights
    return {
        "weight_mean": w.mean().item(),
        "weight_min": w.min().item(),
        "weight_max": w.max().item(),
        "rank_inversions": rank_inversions(rewards, advantages.transformed).mean().item(),
        "zero_variance_groups": _flat(rewards).to(w.dtype).mean().item(),
        "effective_sample_size": effective_sample_size(advantages.effective).mean().item(),
    }


def ratio_diagnostics(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """(3,) clip fraction up (A > 0, ratio above), clip fraction down (A < 0, ratio below), approximate KL r - 1 - log r."""
    log_ratio = log_ratio.detach()
    ratio = log_ratio.exp()
    up = (ratio > 1 + clip_range) & (advantages > 0)
    down = (ratio < 1 - clip_range) & (advantages < 0)
    return torch.stack(
        [
            up.to(ratio.dtype).mean(),
            down.to(ratio.dtype).mean(),
            (torch.expm1(log_ratio) - log_ratio).mean(),
        ]
    )


# -------------------------------------------------------------------------------------------------------------- guards


def check_rewards(rewards: Tensor) -> Tensor:
    """Rewards as a floating (N, G) tensor. ValueError for another shape, no group, G < 2, or a value that is not finite."""
    rewards = torch.as_tensor(rewards)
    if not rewards.is_floating_point():
        rewards = rewards.to(torch.get_default_dtype())
    if rewards.ndim != 2 or rewards.shape[0] == 0:
        raise ValueError(
            f"rewards must be (N, G), N groups of G samples, not {tuple(rewards.shape)}"
        )
    if rewards.shape[1] < 2:
        raise ValueError(
            f"a group needs at least 2 samples to compare: rewards {tuple(rewards.shape)} have G = {rewards.shape[1]}"
        )
    if not rewards.isfinite().all():
        index = tuple((~rewards.isfinite()).nonzero()[0].tolist())
        raise ValueError(
            f"rewards{list(index)} is {rewards[index].item()}: every reward must be finite"
        )
    return rewards


def check_prior(prior: Tensor | float, rewards: Tensor) -> Tensor:
    """The prior as (N, 1) or (N, G). ValueError unless it is finite and a number, (N,) or (N, G)."""
    prior = torch.as_tensor(prior, dtype=rewards.dtype, device=rewards.device)
    if prior.shape not in ((), rewards.shape[:1], rewards.shape):
        n, g = rewards.shape
        raise ValueError(
            f"the prior must be a number, ({n},) or ({n}, {g}), not {tuple(prior.shape)}"
        )
    if not prior.isfinite().all():
        index = tuple((~prior.isfinite()).nonzero()[0].tolist())
        raise ValueError(f"prior{list(index) or ''} is {prior[index].item()}: it must be finite")
    return prior if prior.ndim == 2 else prior.expand(len(rewards))[:, None]


def _flat(rewards: Tensor) -> Tensor:
    """(N,) whether all rewards of a group are equal; their float mean need not be, so the z-score alone would not see it."""
    return rewards.amax(1) == rewards.amin(1)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], not {value}")


def _refuse_overflow(transformed: Tensor, rewards: Tensor) -> Tensor:
    if not transformed.isfinite().all():
        raise ValueError(
            f"exp(R) overflows in CRT for a reward of {rewards.max().item():.4g}: divide the reward by its usual size"
        )
    return transformed

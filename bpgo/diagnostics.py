"""What a run logs about its objective and its importance ratios, and what it can say of NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from bpgo.objective import Advantages, all_equal


def rank_inversions(rewards: Tensor, transformed: Tensor) -> Tensor:
    """(N,): the fraction of a group's pairs of samples whose order the transformation reverses."""
    before = rewards[:, :, None] - rewards[:, None, :]
    after = transformed[:, :, None] - transformed[:, None, :]
    pairs = rewards.shape[1] * (rewards.shape[1] - 1)
    return (before.sign() * after.sign() < 0).to(rewards.dtype).sum((1, 2)) / pairs


def effective_sample_size(advantages: Tensor) -> Tensor:
    """(N,): (sum |A|)^2 / sum A^2, how many samples of a group carry its gradient.

    It is G if all |A| are equal, 1 if only one differs from 0, and 0 if all are 0.
    """
    size = advantages.abs()
    return size.sum(1) ** 2 / (size**2).sum(1).clamp_min(torch.finfo(size.dtype).tiny)


def non_finite(latents: Tensor, pixels: Tensor) -> str | None:
    """What is wrong with samples that are not finite, and the likely cause; None if all are.

    latents, pixels: (b, ...), before and after decoding. On a GPU this waits for the pixels.
    """
    bad = ~pixels.isfinite().flatten(1).all(1)
    count = int(bad.sum())
    if not count:
        return None
    of_them = f"{count} of {len(bad)} samples"
    if latents.isfinite().all():
        return (
            f"the autoencoder decoded {of_them} to pixels that are not finite, although their "
            f"latents are. It probably overflows in float16: set generator.dtype=bfloat16"
        )
    return (
        f"the policy produced {of_them} that are not finite. Its weights have probably diverged, "
        f"because the learning rate is too high"
    )


def group_diagnostics(rewards: Tensor, advantages: Advantages) -> dict[str, float]:
    """Means over a batch to log: weights, rank inversions, groups without signal, concentration."""
    weights = advantages.weights
    return {
        "weight_mean": weights.mean().item(),
        "weight_min": weights.min().item(),
        "weight_max": weights.max().item(),
        "rank_inversions": rank_inversions(rewards, advantages.transformed).mean().item(),
        "zero_variance_groups": all_equal(rewards).to(weights.dtype).mean().item(),
        "effective_sample_size": effective_sample_size(advantages.effective).mean().item(),
    }


def ratio_diagnostics(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """(3,): fraction clipped upwards, fraction clipped downwards, approximate KL.

    A ratio is clipped upwards where it exceeds 1 + c and A > 0, and downwards where it is below
    1 - c and A < 0. The approximate KL divergence is the mean of r - 1 - log r.
    """
    log_ratio = log_ratio.detach()
    ratio = log_ratio.exp()
    up = (ratio > 1 + clip_range) & (advantages > 0)
    down = (ratio < 1 - clip_range) & (advantages < 0)
    kl = (torch.expm1(log_ratio) - log_ratio).mean()
    return torch.stack([up.to(ratio.dtype).mean(), down.to(ratio.dtype).mean(), kl])

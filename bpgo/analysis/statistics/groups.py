"""How well the rewards of a group of samples follow the truth."""

from __future__ import annotations

import numpy as np
from numpy import ndarray


def variance_share(rewards: ndarray, truth: ndarray) -> ndarray:
    """(N,) share in [0, 1] of each group's reward variance that is signal.

    This is the squared correlation of rewards (N, G) with the truth (N, G). It is 0 if the truth
    is constant within the group, and NaN if the reward is, because there is no variance to share.
    A reward that is independent of a varying truth still has a share of 1 / (G - 1) on average:
    report this floor with the result. Raises ValueError for unequal shapes, for G < 2 and for
    values that are not finite.
    """
    share = agreement(rewards, truth) ** 2
    return np.where(np.ptp(np.asarray(rewards), axis=1) == 0, np.nan, share)


def agreement(rewards: ndarray, truth: ndarray) -> ndarray:
    """(N,) agreement in [-1, 1] of a group's advantages (equation 1) with those of the truth.

    It is the sum over samples of the products of both advantages, divided by G - 1, which is the
    correlation of rewards (N, G) and truth (N, G). It is 0 if one of them is constant within the
    group, because then no sample is preferred. Raises ValueError as `variance_share` does.
    """
    rewards, truth = np.asarray(rewards, dtype=float), np.asarray(truth, dtype=float)
    if rewards.ndim != 2 or rewards.shape != truth.shape or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards and truth must both be (N, G) with G >= 2, "
            f"got {rewards.shape} and {truth.shape}"
        )
    not_finite = np.argwhere(~(np.isfinite(rewards) & np.isfinite(truth)))
    if not_finite.size:
        raise ValueError(f"rewards and truth must be finite: group {not_finite[0, 0]} is not")
    a = rewards - rewards.mean(1, keepdims=True)
    b = truth - truth.mean(1, keepdims=True)
    constant = (np.ptp(rewards, axis=1) == 0) | (np.ptp(truth, axis=1) == 0)
    norms = np.where(constant, 1.0, np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.where(constant, 0.0, np.clip((a * b).sum(1) / norms, -1, 1))

"""Rank statistics with intervals that resample clusters.

`clusters` (n,) labels what is independent, such as the seed or the prompt of each point. Whole
clusters are resampled, and the n of an interval counts clusters. Without `clusters`, all points
count as independent. The interval is then too narrow if they are not, and unreliable below 20
points. Resamples for which the statistic is not defined are left out. Below 10 clusters the bounds
are NaN if the statistic is not defined without one of them. In simulations with 5 to 30 clusters,
95 % intervals covered 94-97 %, and 93-95 % for `auroc`.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from bpgo.analysis.statistics.intervals import Interval, complete_cases, interval_of


def rank_correlation(
    x: ndarray, y: ndarray, clusters: ndarray | None = None, confidence=0.95, resamples=2000, seed=0
) -> Interval:
    """Spearman's correlation in [-1, 1] of x and y (n,). Ties get their mean rank.

    NaN if x or y is constant.
    """
    unit, x, y = complete_cases(clusters, x=x, y=y)

    def correlation(weights: ndarray) -> ndarray:
        return _spearman(x, y, weights)

    return interval_of(correlation, unit, confidence, resamples, seed, limits=(-1, 1))


def rank_correlation_gain(
    x: ndarray, other: ndarray, y: ndarray, clusters: ndarray | None = None, resamples=2000, seed=0
) -> Interval:
    """Spearman's correlation of x and y (n,) minus that of `other` (n,) and y, in [-2, 2].

    Both correlations use the same points and the same resamples.
    """
    unit, x, other, y = complete_cases(clusters, x=x, other=other, y=y)

    def gain(weights: ndarray) -> ndarray:
        return _spearman(x, y, weights) - _spearman(other, y, weights)

    return interval_of(gain, unit, 0.95, resamples, seed, limits=(-2, 2))


def partial_rank_correlation(
    x: ndarray, y: ndarray, given: ndarray, clusters: ndarray | None = None, resamples=2000, seed=0
) -> Interval:
    """Spearman's correlation in [-1, 1] of x and y (n,) with `given` (n,) held fixed.

    It is the correlation of the residuals after a linear regression of the ranks of x and y on the
    ranks of `given`. NaN if one of the three is constant, or if x or y has the order of `given` or
    its reverse.
    """
    unit, x, y, given = complete_cases(clusters, x=x, y=y, given=given)

    def partial(weights: ndarray) -> ndarray:
        xy = _spearman(x, y, weights)
        xz = _spearman(x, given, weights)
        yz = _spearman(y, given, weights)
        left = (1 - xz**2) * (1 - yz**2)
        return (xy - xz * yz) / np.sqrt(np.where(left > 1e-12, left, np.nan))

    return interval_of(partial, unit, 0.95, resamples, seed, limits=(-1, 1))


def auroc(
    score: ndarray,
    positive: ndarray,
    clusters: ndarray | None = None,
    confidence=0.95,
    resamples=2000,
    seed=0,
) -> Interval:
    """Probability in [0, 1] that a positive has a higher score than a negative; ties count 1/2.

    This is the Mann-Whitney U divided by the product of the two counts. score: (n,). positive:
    (n,) of bool, or of 0 and 1. NaN if one class is missing. If the score separates the classes
    completely, the interval has no width, because resampling cannot show what the sample does not
    contain. Raises ValueError if `positive` has other values.
    """
    unit, score, positive = complete_cases(clusters, score=score, positive=positive)
    if not np.isin(positive, (0, 1)).all():
        other = np.setdiff1d(positive, (0, 1))[0]
        raise ValueError(f"positive must be True or False (1 or 0), got {other:g}")

    def area(weights: ndarray) -> ndarray:
        above, below = weights * positive, weights * (1 - positive)
        return (above * _weight_below(score, below)).sum(1) / (above.sum(1) * below.sum(1))

    return interval_of(area, unit, confidence, resamples, seed, limits=(0, 1))


def _spearman(x: ndarray, y: ndarray, weights: ndarray) -> ndarray:
    """(B,) Spearman's correlation of x and y (n,) under each row of weights (B, n)."""
    total = weights.sum(1, keepdims=True)
    a, b = _weight_below(x, weights), _weight_below(y, weights)
    a = a - (weights * a).sum(1, keepdims=True) / total
    b = b - (weights * b).sum(1, keepdims=True) / total
    return (weights * a * b).sum(1) / np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))


def _weight_below(values: ndarray, weights: ndarray) -> ndarray:
    """(B, n) ranks, up to a constant, of values (n,) under weights (B, n).

    The rank of a value is the total weight of smaller values plus half the weight of equal ones.
    """
    distinct, at = np.unique(values, return_inverse=True)
    order = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[order], np.arange(len(distinct)))
    mass = np.add.reduceat(weights[:, order], starts, axis=1)
    return (mass.cumsum(1) - mass / 2)[:, at]

"""Confidence intervals, paired comparisons, and their correction for multiple testing.

With at least `SMALL` independent units (seeds or clusters), an interval is the expanded percentile
bootstrap (Hesterberg 2015, The American Statistician 69:371). Its bounds are the quantiles of the
resamples at Phi(-sqrt(n / (n - 1)) t), where t is Student's quantile.

With fewer units the bootstrap cannot reach the nominal coverage. A resample never leaves the range
of the n values, and for normal data this range misses the mean with probability 2 / 2^n. In
simulations, nominal 95 % bootstrap intervals covered 75, 88 and 92 % for n = 3, 4 and 5. There the
interval is the estimate +- t times the delete-one jackknife error (Efron 1982). For a mean this is
Student's interval, which is exact for normal data. For n = 3 to 6 it covered 92-94 % with data of
skewness 1, and 88 % with data of skewness 2 (exponential).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.special import ndtr, stdtr, stdtrit

SMALL = 10  # with fewer independent units, intervals are t intervals


class Interval(NamedTuple):
    """An estimate (a mean or another statistic), its confidence bounds, and the number of units."""

    mean: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """A paired difference, the two-sided p-value of the paired t test, and the number of pairs."""

    difference: Interval
    p: float
    n: int


def format_interval(interval: Interval, form: str = "+.3f") -> str:
    """The interval as text, such as "+0.012 (-0.031 to +0.037)"."""
    return f"{interval.mean:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def bootstrap_mean(
    values: ndarray, confidence: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Interval:
    """Mean of values (n,) with its interval: bootstrap for n >= 10, Student's for n < 10.

    The bounds are NaN for n = 1. The mean is NaN too for n = 0.
    """
    unit, values = complete_cases(None, values=values)

    def mean(weights: ndarray) -> ndarray:
        return weights @ values / weights.sum(1)

    return interval_of(mean, unit, confidence, resamples, seed)


def paired(
    a: ndarray, b: ndarray, confidence: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Comparison:
    """a - b over pairs (n,), such as two objectives trained with the same seeds.

    For n < 10 the interval excludes 0 exactly if p < 1 - confidence. p is 1 if all pairs are
    equal, and NaN for n < 2.
    """
    _, a, b = complete_cases(None, a=a, b=b)
    return Comparison(bootstrap_mean(a - b, confidence, resamples, seed), _t_test(a - b), len(a))


def holm(p: ndarray) -> ndarray:
    """p-values (m,) adjusted for their number (Holm 1979, Scand. J. Statist. 6:65).

    Rejecting every adjusted value below alpha gives a probability of at most alpha for one or more
    false rejections, whatever the dependence between the tests. NaN stays NaN and is not counted.
    Raises ValueError for values outside [0, 1].
    """
    p = np.asarray(p, dtype=float)
    if p.ndim != 1:
        raise ValueError(f"p-values must have shape (m,), got {p.shape}")
    outside = p[(p < 0) | (p > 1)]
    if outside.size:
        raise ValueError(f"p-values must be in [0, 1] or NaN, got {outside[0]}")
    tests = np.count_nonzero(~np.isnan(p))
    order = np.argsort(p)[:tests]  # NaN sort last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(tests, 0, -1)), 1)
    return adjusted


# ----------------------------------------------------------- shared with the other modules here


def complete_cases(clusters: ndarray | None, **named: ndarray) -> tuple[ndarray, ...]:
    """The cluster of each point and the named values (n,), restricted to points without NaN.

    Clusters are numbered 0, 1, ...; without `clusters` each point is its own cluster. Raises
    ValueError for infinite values, wrong shapes and unequal lengths.
    """
    vectors = [np.asarray(values, dtype=float) for values in named.values()]
    clusters = np.arange(vectors[0].size) if clusters is None else np.asarray(clusters)
    one_shape = {v.shape for v in vectors} == {(clusters.size,)} and clusters.ndim == 1
    if not one_shape or any(np.isinf(v).any() for v in vectors):
        found = ", ".join(
            f"{name} {v.shape} with {np.isinf(v).sum()} infinite"
            for name, v in zip(named, vectors, strict=True)
        )
        raise ValueError(
            f"expected values (n,) of one length, finite or NaN, got {found}; "
            f"{clusters.shape} clusters"
        )
    kept = ~np.isnan(vectors).any(0)
    numbers = np.unique(clusters[kept], return_inverse=True)[1]
    return numbers, *(values[kept] for values in vectors)


def interval_of(
    statistic: Callable[[ndarray], ndarray],
    unit: ndarray,
    confidence: float,
    resamples: int,
    seed: int,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """The interval of a statistic, clipped to `limits`.

    statistic: maps weights (B, points), which say how often each point counts, to values (B,).
    unit: (points,) the independent unit of each point, numbered 0 to n - 1. Raises ValueError for
    a confidence outside (0, 1) and for fewer than one resample.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence must be between 0 and 1 and resamples at least 1, "
            f"got {confidence} and {resamples}"
        )
    n = len(np.unique(unit))
    with np.errstate(invalid="ignore"):  # 0 / 0 where the statistic is not defined
        estimate = statistic(np.ones((1, len(unit))))[0].item() if n else np.nan
        quantile = stdtrit(n - 1, (1 + confidence) / 2)  # Student's t
        if n < SMALL:
            left_out = statistic((1 - np.eye(n))[:, unit]) if n > 1 else np.nan
            jackknife_error = np.sqrt((n - 1) * np.var(left_out))
            bounds = estimate + np.array([-1, 1]) * quantile * jackknife_error
        else:
            drawn = _bootstrap(statistic, unit, n, resamples, np.random.default_rng(seed))
            level = ndtr(-np.sqrt(n / (n - 1)) * quantile)
            defined = drawn[~np.isnan(drawn)]
            bounds = np.full(2, np.nan)
            if defined.size:
                bounds = np.quantile(defined, [level, 1 - level])
    return Interval(estimate, *np.clip(bounds, *limits).tolist(), n)


def _bootstrap(
    statistic: Callable[[ndarray], ndarray],
    unit: ndarray,
    n: int,
    resamples: int,
    random: np.random.Generator,
) -> ndarray:
    """(resamples,) the statistic over resampled units, computed in blocks to bound the memory."""
    block = max(1, 2**20 // len(unit))
    found = []
    for done in range(0, resamples, block):
        size = min(block, resamples - done)
        drawn = random.integers(n, size=(size, n))
        cells = drawn + n * np.arange(size)[:, None]  # one bin per resample and unit
        counts = np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape)
        found.append(statistic(counts[:, unit]))
    return np.concatenate(found)


def _t_test(difference: ndarray) -> float:
    """Two-sided p-value of Student's test that differences (n,) without NaN have mean 0.

    It is 1 if all differences are 0, and NaN for n < 2.
    """
    n = len(difference)
    if n < 2:
        return np.nan
    if not difference.any():
        return 1.0
    with np.errstate(divide="ignore"):
        t = np.sqrt(n) * difference.mean() / difference.std(ddof=1)
        return float(2 * stdtr(n - 1, -abs(t)))

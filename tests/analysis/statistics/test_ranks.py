"""Rank measures with clustered intervals, against scipy and simulated data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from bpgo.analysis.statistics import (
    auroc,
    partial_rank_correlation,
    rank_correlation,
    rank_correlation_gain,
)
from tests.analysis.statistics.simulation import QUICK, WHOLE, coverage, simulation_error


def mann_whitney_area(score, positive):
    """The area under the ROC curve by scipy."""
    statistic = stats.mannwhitneyu(score[positive], score[~positive])[0]
    return statistic / (positive.sum() * (~positive).sum())


@QUICK
@given(arrays(float, (2, 12), elements=st.integers(0, 6).map(float)))
def test_rank_correlation_is_scipys(points):
    x, y = points
    found = rank_correlation(x, y, resamples=50)
    if np.ptp(x) and np.ptp(y):
        assert found.mean == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
        turned = rank_correlation(np.exp(x), -y, resamples=50)
        expected = (-found.mean, -found.high, -found.low)
        assert turned[:3] == pytest.approx(expected, nan_ok=True)
    else:
        assert np.isnan(found[:3]).all()


@QUICK
@given(arrays(float, (2, 12), elements=st.integers(0, 6).map(float)))
def test_auroc_is_scipys(points):
    x, positive = points[0], points[1] > 3
    area = auroc(x, positive, resamples=50)
    if positive.any() and not positive.all():
        assert area.mean == pytest.approx(mann_whitney_area(x, positive), abs=1e-12)
        turned = auroc(-x, positive, resamples=50)
        assert turned[:3] == pytest.approx((1 - area.mean, 1 - area.high, 1 - area.low))
        assert auroc(x, ~positive, resamples=50).mean == pytest.approx(1 - area.mean)
    else:
        assert np.isnan(area[:3]).all()


def test_a_resample_counts_whole_clusters():
    """The interval of weighted ranks is that of repeated points, which scipy ranks anew."""
    random = np.random.default_rng(6)
    clusters = np.array([f"seed {c}" for c in random.permutation(np.repeat(np.arange(12), 5))])
    x = random.integers(0, 8, 60).astype(float)
    y, positive = x + random.integers(0, 12, 60), random.random(60) < 0.4
    members = {cluster: np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)}
    correlations, areas = [], []
    for _ in range(1000):
        chosen = random.choice(list(members), 12)
        i = np.concatenate([members[cluster] for cluster in chosen])
        correlations.append(stats.spearmanr(x[i], y[i])[0])
        areas.append(mann_whitney_area(x[i], positive[i]))
    level = stats.norm.cdf(-np.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    for measure, other, drawn in (
        (rank_correlation, y, correlations),
        (auroc, positive, areas),
    ):
        found = measure(x, other, clusters)
        assert found.n == 12
        bounds = np.quantile(drawn, [level, 1 - level])
        assert (found.low, found.high) == pytest.approx(bounds, abs=0.04)
        assert found == measure(x, other, clusters) != measure(x, other)


@pytest.mark.parametrize(("clusters", "size"), [(5, 20), (12, 10)])
def test_clustered_rank_measures_cover_a_known_value(clusters, size):
    """Clusters share part of both x and y, and each has its own effect.

    If the points are taken as independent, their intervals are too narrow. The clustered intervals
    are approximate: in 1500 simulations with 5, 10, 12, 20 and 30 clusters they covered 94.8-96.7 %
    (Spearman) and 93.0-94.9 % (AUROC).
    """
    random, times, r = np.random.default_rng(clusters), 300, 0.5
    label = np.repeat(np.arange(clusters), size)
    positive = np.arange(len(label)) % 2 == 0
    mix = np.array([[1, 0], [r, np.sqrt(1 - r * r)]])
    found = {name: [] for name in ("spearman", "spearman of points", "auroc", "auroc of points")}
    for seed in range(times):
        shared = (mix @ random.normal(size=(2, clusters)))[:, label]
        x, y = 0.6 * shared + 0.8 * mix @ random.normal(size=(2, len(label)))
        effect = 1 + 0.7 * random.normal(size=clusters)
        score = random.normal(size=len(label)) + positive * effect[label]
        for name, of in (("", label), (" of points", None)) if seed < 100 else (("", label),):
            found["spearman" + name].append(rank_correlation(x, y, of, resamples=500, seed=seed))
            found["auroc" + name].append(auroc(score, positive, of, resamples=500, seed=seed))
    truths = {
        "spearman": 6 / np.pi * np.arcsin(r / 2),
        "auroc": stats.norm.cdf(1 / np.sqrt(2 + 0.7**2)),
    }
    allowed = 0.02 + simulation_error(0.95, times)
    for name, truth in truths.items():
        assert coverage(found[name], truth) == pytest.approx(0.95, abs=allowed)
        assert coverage(found[name + " of points"], truth) < 0.9


def test_the_edges_of_rank_measures():
    x, positive = np.arange(12.0), np.arange(12) > 10
    assert auroc(x, positive) == (1, 1, 1, 12) and rank_correlation(x, x) == (1, 1, 1, 12)
    assert rank_correlation([1, 2, np.nan, 4], [1, np.nan, 3, 4]).n == 2
    assert np.isnan(auroc(x, np.ones(12))[:3]).all()
    assert np.isnan(rank_correlation([], [])[:3]).all()
    # Without the last cluster there is no positive.
    one_has_all = auroc(x, positive, np.arange(12) // 3)
    assert one_has_all.mean == 1 and np.isnan(one_has_all[1:3]).all() and one_has_all.n == 4
    few = rank_correlation(x, x + 9 * np.sin(x), np.arange(12) // 4)
    assert -1 <= few.low <= few.mean <= few.high <= 1
    with pytest.raises(ValueError, match="positive must be"):
        auroc(x, x)
    with pytest.raises(ValueError, match="clusters"):
        rank_correlation(x, x, clusters=np.arange(3))
    with pytest.raises(ValueError, match=r"x \(12,\).*y \(11,\)"):
        rank_correlation(x, x[1:])


@QUICK
@given(st.lists(st.tuples(WHOLE, WHOLE, WHOLE), min_size=4, max_size=12))
def test_gain_and_partial_correlation_are_those_of_ranks(points):
    """By scipy: a difference of correlations, and a correlation of least-squares residuals."""
    x, y, z = np.array(points).T
    if min(map(np.ptp, (x, y, z))) == 0:
        return
    gain = rank_correlation_gain(x, z, y, resamples=20).mean
    assert gain == pytest.approx(stats.spearmanr(x, y)[0] - stats.spearmanr(z, y)[0], abs=1e-9)
    ranks = stats.rankdata([x, y], axis=1).T
    line = np.stack([np.ones(len(z)), stats.rankdata(z)], 1)
    rest = ranks - line @ np.linalg.lstsq(line, ranks, rcond=None)[0]
    found = partial_rank_correlation(x, y, z, resamples=20).mean
    if np.abs(rest).max(0).min() > 1e-6:
        assert found == pytest.approx(np.corrcoef(rest.T)[0, 1], abs=1e-6)
    else:
        assert np.isnan(found)


def test_intervals_of_gain_and_partial_correlation_cover():
    """200 samples of 40 normal points, in which x and y are related only by way of z.

    The other signal is as good as x, so the true gain is 0, and so is the partial correlation.
    """
    random, gains, partials = np.random.default_rng(0), [], []
    for seed in range(200):
        z, noise = random.normal(size=40), random.normal(size=(3, 40))
        x, other, y = z + noise
        gains.append(rank_correlation_gain(x, other, y, resamples=400, seed=seed))
        partials.append(partial_rank_correlation(x, y, z, resamples=400, seed=seed))
    assert 0.91 < coverage(gains, 0) < 0.99
    assert 0.91 < coverage(partials, 0) < 0.99

"""Intervals, paired comparisons and Holm's correction, against scipy and simulated data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bpgo.analysis.statistics import SMALL, bootstrap_mean, format_interval, holm, paired
from tests.analysis.statistics.simulation import (
    QUICK,
    SCALE,
    SHIFT,
    WHOLE,
    coverage,
    simulation_error,
)

# ------------------------------------------------------------------------------------------- means


@pytest.mark.parametrize("n", [3, 5, 10, 30])
@pytest.mark.parametrize(("skewness", "shortfall"), [(0, 0), (0.5, 0.01), (1, 0.03)])
def test_intervals_of_a_mean_cover_at_their_nominal_rate(n, skewness, shortfall):
    """With normal data, and with gamma data, for which few values give a little less coverage."""
    times, shape = 2000 if n < SMALL else 600, (2 / skewness) ** 2 if skewness else 1
    random = np.random.default_rng(n)
    values = random.gamma(shape, size=(times, n)) if skewness else random.normal(1, 1, (times, n))
    intervals = [bootstrap_mean(row, resamples=800, seed=seed) for seed, row in enumerate(values)]
    found, error = coverage(intervals, shape), simulation_error(0.95, times)
    assert 0.95 - shortfall - error <= found <= 0.95 + error


def test_resamples_of_few_values_cannot_cover():
    """Why the bootstrap is not used below 10 values.

    No mean of a resample leaves the range of the values, and the range misses the true mean too
    often.
    """
    values = np.random.default_rng(0).normal(size=(20000, 5))
    for n in (3, 4, 5):
        inside = (values[:, :n].min(1) < 0) & (values[:, :n].max(1) > 0)
        assert inside.mean() == pytest.approx(1 - 2 / 2**n, abs=0.01)


def test_few_values_have_students_interval():
    values = np.array([0.2, np.nan, 0.5, 0.1, 0.9, 0.4])
    found = bootstrap_mean(values, confidence=0.9)
    assert found.n == 5 and found.mean == pytest.approx(0.42)
    expected = stats.ttest_1samp(values, 0, nan_policy="omit").confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_many_values_have_the_expanded_percentile_bootstrap():
    values = np.random.default_rng(1).gamma(2, size=12)
    level = stats.norm.cdf(-np.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    drawn = np.random.default_rng(2).choice(values, (200000, 12)).mean(1)
    expected = np.quantile(drawn, [level, 1 - level])
    found = bootstrap_mean(values, resamples=200000)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.015)
    plain = stats.bootstrap([values], np.mean, method="percentile", random_state=0)
    plain = plain.confidence_interval
    assert found.low < plain.low - 0.05 and found.high > plain.high + 0.05


def test_the_edges_of_a_mean():
    one = bootstrap_mean([3.0])
    assert (one.mean, one.n) == (3, 1) and np.isnan([one.low, one.high]).all()
    none = bootstrap_mean([np.nan])
    assert np.isnan(none[:3]).all() and none.n == 0
    assert bootstrap_mean([2.0] * 12) == (2, 2, 2, 12)
    values = np.random.default_rng(3).normal(size=15)
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, 0.99).low < bootstrap_mean(values, 0.95).low
    for wrong in ([[1.0, 2.0]], [1.0, np.inf]):
        with pytest.raises(ValueError, match="values"):
            bootstrap_mean(wrong)
    for wrong in ({"confidence": 95}, {"resamples": 0}):
        with pytest.raises(ValueError, match="confidence"):
            bootstrap_mean(values, **wrong)


@QUICK
@given(st.lists(WHOLE, min_size=2, max_size=14), SCALE, SHIFT)
def test_intervals_of_a_mean_follow_shift_and_scale(values, scale, shift):
    before = bootstrap_mean(values, resamples=200)
    after = bootstrap_mean(scale * np.array(values) + shift, resamples=200)
    assert after[:3] == pytest.approx(scale * np.array(before[:3]) + shift, abs=1e-9)
    assert before.low <= before.mean + 1e-9 and before.mean <= before.high + 1e-9


def test_an_interval_as_text():
    assert format_interval(bootstrap_mean([0.0, 1.0, 2.0]), "+.1f") == "+1.0 (-1.5 to +3.5)"


# ------------------------------------------------------------------------------------- comparisons


def test_paired_is_the_paired_t_test():
    a, b = np.random.default_rng(4).normal(size=(2, 8))
    b[0] = np.nan
    found, expected = paired(a, b), stats.ttest_rel(a[1:], b[1:])
    assert found.p == pytest.approx(expected.pvalue) and found.n == found.difference.n == 7
    interval = expected.confidence_interval()
    assert found.difference[:3] == pytest.approx(((a - b)[1:].mean(), interval.low, interval.high))
    assert paired(a, a).p == 1 and paired(a, a).difference[:3] == (0, 0, 0)
    assert paired(a + 1, a).p == pytest.approx(0, abs=1e-6) and np.isnan(paired([1.0], [2.0]).p)
    with pytest.raises(ValueError, match=r"a \(8,\).*b \(7,\)"):
        paired(a, b[1:])


@pytest.mark.parametrize("seeds", [5, 12])
def test_arms_that_differ_only_by_chance_give_no_findings(seeds):
    """With all 6 pairs of 4 arms, at most 5 % of the studies find anything, and not far fewer."""
    random, studies, wrong, outside = np.random.default_rng(seeds), 400, 0, []
    pairs = list(zip(*np.triu_indices(4, 1), strict=True))
    for study in range(studies):
        luck = random.normal(size=seeds)  # what the arms share in a seed
        arms = random.normal(size=(4, seeds)) + 2 * luck
        found = [paired(arms[i], arms[j], resamples=200, seed=study) for i, j in pairs]
        wrong += (holm([one.p for one in found]) < 0.05).any()
        outside += [one.difference.low > 0 or one.difference.high < 0 for one in found]
    assert 0.01 <= wrong / studies <= 0.05 + simulation_error(0.05, studies)
    assert np.mean(outside) == pytest.approx(0.05, abs=0.02)  # uncorrected


def test_holm_by_hand():
    found = holm([0.01, 0.04, np.nan, 0.03, 0.005])
    assert found == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([]).size == 0
    assert np.isnan(holm([np.nan])).all()
    for wrong in ([0.5, 1.1], [-0.1], [[0.5]]):
        with pytest.raises(ValueError, match="p-values"):
            holm(wrong)


@QUICK
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_step_by_step(p, alpha):
    rejected, left = set(), sorted(range(len(p)), key=p.__getitem__)
    while left and p[left[0]] * len(left) < alpha:
        rejected.add(left.pop(0))
    assert set(np.flatnonzero(holm(p) < alpha)) == rejected
    assert (holm(p) >= p).all()

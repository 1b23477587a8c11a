"""The study's statistics against scipy, closed forms, and simulated data whose truth is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from bpgo.analysis import statistics
from bpgo.analysis.runs import first_reaching, oscillation
from bpgo.analysis.statistics import (
    agreement,
    auroc,
    bootstrap_mean,
    holm,
    least_lead_seen,
    level_with_best,
    paired,
    partial_rank_correlation,
    rank_correlation,
    rank_correlation_gain,
    variance_share,
)
from bpgo.objective import group_advantages

WHOLE = st.integers(-50, 50).map(
    float
)  # whole numbers: shifts and scales lose no digit, and there are ties
SCALE, SHIFT = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]), st.integers(-100, 100)
QUICK = settings(max_examples=30, deadline=None, derandomize=True)


def covers(intervals, truth) -> float:
    return float(np.mean([found.low <= truth <= found.high for found in intervals]))


def simulation_error(probability: float, times: int) -> float:
    """Three standard errors of a frequency."""
    return 3 * (probability * (1 - probability) / times) ** 0.5


# ------------------------------------------------------------------------------------------------------------------ means


@pytest.mark.parametrize("n", [3, 5, 10, 30])
@pytest.mark.parametrize(("skewness", "shortfall"), [(0, 0), (0.5, 0.01), (1, 0.03)])
def test_intervals_of_a_mean_cover_at_their_nominal_rate(n, skewness, shortfall):
    """Of normal data and of gamma data of that skewness, for which an interval of so few values falls a little short."""
    times, shape = 2000 if n < statistics.SMALL else 600, (2 / skewness) ** 2 if skewness else 1
    random = np.random.default_rng(n)
    values = random.gamma(shape, size=(times, n)) if skewness else random.normal(1, 1, (times, n))
    found = covers(
        [bootstrap_mean(row, resamples=800, seed=seed) for seed, row in enumerate(values)], shape
    )
    assert (
        0.95 - shortfall - simulation_error(0.95, times)
        <= found
        <= 0.95 + simulation_error(0.95, times)
    )


def test_resamples_of_few_values_can_not_cover():
    """Why the bootstrap is not used below 10: no resample's mean leaves the range of the values, which misses the mean too often."""
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
    found = bootstrap_mean(values, resamples=200000)
    assert (found.low, found.high) == pytest.approx(
        np.quantile(drawn, [level, 1 - level]), abs=0.015
    )
    plain = stats.bootstrap([values], np.mean, method="percentile", random_state=0)
    plain = plain.confidence_interval
    assert found.low < plain.low - 0.05 and found.high > plain.high + 0.05


def test_the_edges_of_a_mean():
    assert bootstrap_mean([3.0])[0::3] == (3, 1) and np.isnan(bootstrap_mean([3.0])[1:3]).all()
    assert np.isnan(bootstrap_mean([np.nan])[:3]).all() and bootstrap_mean([np.nan]).n == 0
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


# ------------------------------------------------------------------------------------------------------------ comparisons


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
def test_identical_arms_give_no_findings(seeds):
    """Of 4 arms that differ by chance only, all 6 pairs: any finding at all in 5 % of the studies at most, and none too seldom."""
    random, studies, pairs, wrong, outside = (
        np.random.default_rng(seeds),
        400,
        list(zip(*np.triu_indices(4, 1), strict=True)),
        0,
        [],
    )
    for study in range(studies):
        arms = random.normal(size=(4, seeds)) + 2 * random.normal(
            size=seeds
        )  # what the arms share is the seed's luck
        found = [paired(arms[i], arms[j], resamples=200, seed=study) for i, j in pairs]
        wrong += (holm([one.p for one in found]) < 0.05).any()
        outside += [one.difference.low > 0 or one.difference.high < 0 for one in found]
    assert 0.01 <= wrong / studies <= 0.05 + simulation_error(0.05, studies)
    assert np.mean(outside) == pytest.approx(0.05, abs=0.02)  # uncorrected


def test_holm_by_hand():
    assert holm([0.01, 0.04, np.nan, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True
    )
    assert (
        holm([0.6, 0.7]).tolist() == [1, 1]
        and holm([]).size == 0
        and np.isnan(holm([np.nan])).all()
    )
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


def test_the_cells_level_with_the_best():
    random = np.random.default_rng(5)
    luck, effect = random.normal(size=6), np.array([0.0, 3.0, 3.0, 1.0])
    values = effect[:, None] + luck + 0.1 * random.normal(size=(4, 6))
    assert level_with_best(values).tolist() == [False, True, True, False]
    assert level_with_best(values, higher_is_better=False).tolist() == [True, False, False, False]
    noisy = effect[:, None] + 2 * random.normal(size=(4, 6))
    assert level_with_best(noisy).sum() > 2 and level_with_best(noisy, alpha=1e-9).all()
    missing = np.vstack([values, np.full(6, np.nan), np.full(6, np.nan)])
    missing[5, 0] = 9.0  # one lucky seed is not the best, nor told from it
    missing[0, :3] = np.nan
    assert level_with_best(missing).tolist() == [False, True, True, False, False, True]
    for wrong in (values[0], np.zeros((0, 3)), [[1.0, np.inf]]):
        with pytest.raises(ValueError, match="cells, seeds"):
            level_with_best(wrong)


def test_two_cells_are_level_as_by_a_paired_t_test():
    random = np.random.default_rng(6)
    for values in random.normal(size=(50, 2, 4)) + np.array([0.0, 1.5])[:, None]:
        assert level_with_best(values).all() == (stats.ttest_rel(*values).pvalue >= 0.05)


def test_cells_are_level_within_tukeys_distance_of_the_best():
    """By the sums of squares of a two-way table, which the function does not use."""
    random = np.random.default_rng(7)
    distance = stats.studentized_range.ppf(0.9, 5, 4 * 2)
    for values in random.normal(size=(50, 5, 3)) + random.normal(size=3) + np.arange(5)[:, None]:
        cells, seeds = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
        noise = ((values - cells - seeds + values.mean()) ** 2).sum() / (4 * 2)
        assert (
            level_with_best(values, alpha=0.1)
            == (cells.max() - cells[:, 0] <= distance * np.sqrt(noise / 3))
        ).all()
        assert least_lead_seen(values, alpha=0.1) == pytest.approx(distance * np.sqrt(noise / 3))
    assert np.isnan(least_lead_seen(values[:, :1])) and np.isnan(least_lead_seen(values[:1]))


def test_two_seeds_of_many_cells_see_a_large_lead():
    random = np.random.default_rng(8)
    left_out = [
        15 - level_with_best(random.normal(size=(15, 2)) + 5 * (np.arange(15) == 7)[:, None]).sum()
        for _ in range(100)
    ]
    assert np.mean(left_out) > 0.7 * 14


@pytest.mark.parametrize(("cells", "seeds"), [(2, 5), (4, 5), (9, 5), (15, 2)])
def test_identical_cells_are_all_level(cells, seeds):
    """In 95 % of the studies."""
    random, studies = np.random.default_rng(cells), 2000
    wrong = [
        not level_with_best(random.normal(size=(cells, seeds)) + random.normal(size=seeds)).all()
        for _ in range(studies)
    ]
    assert abs(np.mean(wrong) - 0.05) <= simulation_error(0.05, studies)


def test_missing_values_make_level_cells_no_less_level():
    random, studies, wrong = np.random.default_rng(9), 400, 0
    for _ in range(studies):
        values = random.normal(size=(6, 4)) + random.normal(size=4)
        values[random.random((6, 4)) < 0.25] = np.nan
        wrong += (level_with_best(values) != (~np.isnan(values)).any(1)).any()
    assert wrong / studies <= 0.05 + simulation_error(0.05, studies)
    for values in (
        random.normal(size=(50, 2, 6)) + np.array([0.0, 2.0])[:, None]
    ):  # of two cells, an unpaired value says nothing
        values[0, :2] = np.nan
        found = stats.ttest_rel(*values[:, 2:])
        assert level_with_best(values).tolist() == [
            not (found.pvalue < 0.05 and found.statistic < 0),
            True,
        ]
    apart = np.full((4, 4), np.nan)
    apart[:2, :2], apart[2:, 2:] = (
        [[1.0, 1.1], [0.9, 1.3]],
        [[-5.0, -5.1], [-4.9, -5.2]],
    )  # no seed in common, nor a way between them
    assert level_with_best(apart).all()


@QUICK
@given(arrays(float, (4, 5), elements=WHOLE), SCALE, SHIFT)
def test_level_with_best_ignores_shift_and_scale(values, scale, shift):
    assert (level_with_best(scale * values + shift) == level_with_best(values)).all()
    assert level_with_best(values)[values.mean(1).argmax()]


# ------------------------------------------------------------------------------------------------------------------ ranks


@QUICK
@given(arrays(float, (2, 12), elements=st.integers(0, 6).map(float)))
def test_rank_measures_are_scipys(points):
    x, y = points
    found = rank_correlation(x, y, resamples=50)
    if np.ptp(x) and np.ptp(y):
        assert found.mean == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
        assert rank_correlation(np.exp(x), -y, resamples=50)[:3] == pytest.approx(
            (-found.mean, -found.high, -found.low), nan_ok=True
        )
    else:
        assert np.isnan(found[:3]).all()
    positive = y > 3
    area = auroc(x, positive, resamples=50)
    if positive.any() and not positive.all():
        expected = stats.mannwhitneyu(x[positive], x[~positive])[0] / (
            positive.sum() * (~positive).sum()
        )
        assert area.mean == pytest.approx(expected, abs=1e-12)
        assert auroc(-x, positive, resamples=50)[:3] == pytest.approx(
            (1 - area.mean, 1 - area.high, 1 - area.low)
        )
        assert auroc(x, ~positive, resamples=50).mean == pytest.approx(1 - area.mean)
    else:
        assert np.isnan(area[:3]).all()


def test_a_resample_counts_whole_clusters():
    """The interval of weighted ranks is that of points which are really repeated, their ranks taken anew by scipy."""
    random = np.random.default_rng(6)
    clusters = np.array([f"seed {c}" for c in random.permutation(np.repeat(np.arange(12), 5))])
    x = random.integers(0, 8, 60).astype(float)
    y, positive = x + random.integers(0, 12, 60), random.random(60) < 0.4
    labels = np.unique(clusters)
    drawn = [
        np.concatenate([np.flatnonzero(clusters == c) for c in random.choice(labels, 12)])
        for _ in range(1000)
    ]
    level = stats.norm.cdf(-np.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    expected = {
        rank_correlation: [stats.spearmanr(x[i], y[i])[0] for i in drawn],
        auroc: [
            stats.mannwhitneyu(x[i][positive[i]], x[i][~positive[i]])[0]
            / positive[i].sum()
            / (~positive[i]).sum()
            for i in drawn
        ],
    }
    for measure, other in ((rank_correlation, y), (auroc, positive)):
        found = measure(x, other, clusters)
        assert found.n == 12 and (found.low, found.high) == pytest.approx(
            np.quantile(expected[measure], [level, 1 - level]), abs=0.04
        )
        assert found == measure(x, other, clusters) != measure(x, other)


@pytest.mark.parametrize(("clusters", "size"), [(5, 20), (12, 10)])
def test_clustered_rank_measures_cover_a_known_value(clusters, size):
    """Clusters share part of both x and y, and have an effect of their own: taken for independent, the points promise too much. The
    intervals are approximate: 1500 simulations of 5, 10, 12, 20 and 30 clusters found 94.8-96.7 % (Spearman) and 93.0-94.9 % (AUROC)."""
    random, times, r = np.random.default_rng(clusters), 300, 0.5
    label = np.repeat(np.arange(clusters), size)
    positive = np.arange(len(label)) % 2 == 0
    mix = np.array([[1, 0], [r, np.sqrt(1 - r * r)]])
    found = {name: [] for name in ("spearman", "spearman of points", "auroc", "auroc of points")}
    for seed in range(times):
        x, y = 0.6 * (mix @ random.normal(size=(2, clusters)))[
            :, label
        ] + 0.8 * mix @ random.normal(size=(2, len(label)))
        effect = 1 + 0.7 * random.normal(size=clusters)
        score = random.normal(size=len(label)) + positive * effect[label]
        for name, of in (("", label), (" of points", None)) if seed < 100 else (("", label),):
            found["spearman" + name].append(rank_correlation(x, y, of, resamples=500, seed=seed))
            found["auroc" + name].append(auroc(score, positive, of, resamples=500, seed=seed))
    truths = {
        "spearman": 6 / np.pi * np.arcsin(r / 2),
        "auroc": stats.norm.cdf(1 / np.sqrt(2 + 0.7**2)),
    }
    for name, truth in truths.items():
        assert covers(found[name], truth) == pytest.approx(
            0.95, abs=0.02 + simulation_error(0.95, times)
        )
        assert covers(found[name + " of points"], truth) < 0.9


def test_the_edges_of_rank_measures():
    x, positive = np.arange(12.0), np.arange(12) > 10
    assert auroc(x, positive) == (1, 1, 1, 12) and rank_correlation(x, x) == (1, 1, 1, 12)
    assert rank_correlation([1, 2, np.nan, 4], [1, np.nan, 3, 4]).n == 2
    assert (
        np.isnan(auroc(x, np.ones(12))[:3]).all() and np.isnan(rank_correlation([], [])[:3]).all()
    )
    one_has_all = auroc(
        x, positive, np.arange(12) // 3
    )  # without the last cluster there is no positive
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
    """Against scipy: a difference of two correlations, and the correlation of what least squares leaves of the ranks."""
    x, y, z = np.array(points).T
    if min(map(np.ptp, (x, y, z))) == 0:
        return
    first, second = stats.spearmanr(x, y)[0], stats.spearmanr(z, y)[0]
    assert rank_correlation_gain(x, z, y, resamples=20).mean == pytest.approx(
        first - second, abs=1e-9
    )
    ranks, line = stats.rankdata([x, y], axis=1), np.stack([np.ones(len(z)), stats.rankdata(z)], 1)
    rest = ranks.T - line @ np.linalg.lstsq(line, ranks.T, rcond=None)[0]
    found = partial_rank_correlation(x, y, z, resamples=20).mean
    if np.abs(rest).max(0).min() > 1e-6:
        assert found == pytest.approx(np.corrcoef(rest.T)[0, 1], abs=1e-6)
    else:
        assert np.isnan(found)


def test_intervals_of_gain_and_partial_correlation_cover():
    """200 samples of 40 normal points, in which y goes with z, and x with y by way of z alone; another signal is as good as x."""
    random, held = np.random.default_rng(0), []
    for seed in range(200):
        z, noise = random.normal(size=40), random.normal(size=(3, 40))
        x, other, y = z + noise
        gain = rank_correlation_gain(x, other, y, resamples=400, seed=seed)
        rest = partial_rank_correlation(x, y, z, resamples=400, seed=seed)
        held.append([i.low <= 0 <= i.high for i in (gain, rest)])
    covered = np.mean(held, 0)
    assert ((0.91 < covered) & (covered < 0.99)).all(), covered


# ----------------------------------------------------------------------------------------------------------------- curves


def test_oscillation_in_closed_form():
    t = np.arange(2000)
    rise = 1600 * 0.001  # between the middles of the first and the last fifth
    noise = 0.01 * np.random.default_rng(7).normal(size=(3, 2000))
    assert oscillation(0.001 * t) == pytest.approx(0, abs=1e-9)
    assert oscillation(0.001 * t + noise) == pytest.approx([6**0.5 * 0.01 / rise] * 3, rel=0.05)
    wave = 0.1 * np.cos(2 * np.pi * t / 20)  # its second difference is -2 (1 - cos w) times itself
    assert oscillation(0.001 * t + wave) == pytest.approx(
        2 * (1 - np.cos(2 * np.pi / 20)) * 0.1 / 2**0.5 / rise, rel=1e-3
    )
    assert oscillation(wave, rise=2.0) == pytest.approx(oscillation(wave, rise=1.0) / 2)
    assert oscillation([0.0, 1.0, 0.0]) == np.inf and np.isnan(oscillation(np.ones(9)))
    assert oscillation(noise.reshape(3, 4, -1)).shape == (3, 4)
    for wrong in ([1.0, 2.0], 1.0):
        with pytest.raises(ValueError, match="3 points"):
            oscillation(wrong)


@QUICK
@given(st.lists(WHOLE, min_size=3, max_size=12), SCALE, SHIFT)
def test_oscillation_ignores_shift_and_scale(curve, scale, shift):
    curve = np.array(curve)
    for same in (scale * curve + shift, -curve, curve[::-1]):
        assert oscillation(same) == pytest.approx(
            oscillation(curve), nan_ok=True, rel=1e-6, abs=1e-9
        )


def test_the_first_iteration_that_reaches_a_target():
    iterations, curve = np.arange(10, 20), np.array([0, 0, 9, 0, 1, 2, 3, 4, 3, 2.0])
    assert first_reaching(iterations, curve, 3, width=1) == 12
    assert first_reaching(iterations, curve, 3, width=3) == 12  # (0 + 0 + 9) / 3
    assert first_reaching(iterations, curve, 3.2, width=3) == 14
    assert np.isnan(first_reaching(iterations, curve, 10, width=1))
    curve[2] = np.nan
    assert first_reaching(iterations, curve, 3, width=3) == 17
    for steps, width in (
        (iterations, 11),
        (iterations, 0),
        (iterations[1:], 2),
        (iterations[None], 1),
    ):
        with pytest.raises(ValueError, match="width"):
            first_reaching(steps, curve, 0, width)


# ----------------------------------------------------------------------------------------------------------------- groups


def test_agreement_is_the_product_of_advantages():
    rewards, truth = np.random.default_rng(8).normal(size=(2, 5, 6))
    a, b = (group_advantages(torch.tensor(values), eps=0.0).numpy() for values in (rewards, truth))
    assert agreement(rewards, truth) == pytest.approx((a * b).sum(1) / 5)
    expected = [stats.pearsonr(x, y)[0] for x, y in zip(rewards, truth, strict=True)]
    assert agreement(rewards, truth) == pytest.approx(expected)
    assert variance_share(rewards, truth) == pytest.approx(np.square(expected))


def test_flat_groups():
    flat, varied = [0.1, 0.1, 0.1], [0.1, 0.2, 0.4]
    rewards, truth = np.array([flat, varied, flat, varied]), np.array([varied, flat, flat, varied])
    assert agreement(rewards, truth) == pytest.approx([0, 0, 0, 1])
    assert variance_share(rewards, truth) == pytest.approx([np.nan, 0, np.nan, 1], nan_ok=True)
    for wrong in (([1.0], [1.0]), (rewards, truth[1:]), (rewards[:, :1], truth[:, :1])):
        with pytest.raises(ValueError, match=r"\(N, G\)"):
            agreement(*wrong)
    truth[2, 1] = np.inf
    with pytest.raises(ValueError, match="group 2"):
        agreement(rewards, truth)


def test_the_share_of_signal_and_its_floor():
    """Large groups have the share that the noise was given; small ones that know nothing have 1 / (G - 1), as the docstring warns."""
    random = np.random.default_rng(9)
    truth = random.normal(size=(20, 4000))
    assert variance_share(
        truth + 2 * random.normal(size=truth.shape), truth
    ).mean() == pytest.approx(1 / 5, abs=0.01)
    nothing = variance_share(*random.normal(size=(2, 4000, 8)))
    assert nothing.mean() == pytest.approx(1 / 7, abs=0.01)
    assert agreement(*random.normal(size=(2, 4000, 8))).mean() == pytest.approx(0, abs=0.02)


@QUICK
@given(arrays(float, (2, 3, 4), elements=WHOLE), SCALE, SHIFT)
def test_groups_ignore_shift_and_scale(pair, scale, shift):
    rewards, truth = pair
    for measure in (agreement, variance_share):
        assert measure(scale * rewards + shift, scale * truth - shift) == pytest.approx(
            measure(rewards, truth), nan_ok=True, abs=1e-9
        )
    assert agreement(-rewards, truth) == pytest.approx(-agreement(rewards, truth))
    assert agreement(truth, rewards) == pytest.approx(agreement(rewards, truth))

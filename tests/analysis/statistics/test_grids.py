"""Tukey's test for the cells that are level with the best, against scipy and simulated grids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from scipy import stats

from bpgo.analysis.statistics import least_lead_seen, level_with_best
from tests.analysis.statistics.simulation import QUICK, SCALE, SHIFT, WHOLE, simulation_error


def test_the_cells_level_with_the_best():
    random = np.random.default_rng(5)
    luck, effect = random.normal(size=6), np.array([0.0, 3.0, 3.0, 1.0])
    values = effect[:, None] + luck + 0.1 * random.normal(size=(4, 6))
    assert level_with_best(values).tolist() == [False, True, True, False]
    assert level_with_best(values, higher_is_better=False).tolist() == [True, False, False, False]
    noisy = effect[:, None] + 2 * random.normal(size=(4, 6))
    assert level_with_best(noisy).sum() > 2 and level_with_best(noisy, alpha=1e-9).all()
    for wrong in (values[0], np.zeros((0, 3)), [[1.0, np.inf]]):
        with pytest.raises(ValueError, match="cells, seeds"):
            level_with_best(wrong)


def test_a_cell_of_one_lucky_seed_is_not_the_best():
    random = np.random.default_rng(5)
    luck, effect = random.normal(size=6), np.array([0.0, 3.0, 3.0, 1.0])
    values = effect[:, None] + luck + 0.1 * random.normal(size=(4, 6))
    missing = np.vstack([values, np.full((2, 6), np.nan)])
    missing[5, 0] = 9.0  # cannot be distinguished from the best either
    missing[0, :3] = np.nan
    assert level_with_best(missing).tolist() == [False, True, True, False, False, True]


def test_two_cells_are_level_as_by_a_paired_t_test():
    random = np.random.default_rng(6)
    shifts = np.array([0.0, 1.5])[:, None]
    outcomes = set()
    for values in random.normal(size=(50, 2, 4)) + shifts:
        level = stats.ttest_rel(*values).pvalue >= 0.05
        assert level_with_best(values).all() == level
        outcomes.add(bool(level))
    assert outcomes == {True, False}


def test_cells_are_level_within_tukeys_distance_of_the_best():
    """By the sums of squares of a two-way table, which the function does not use."""
    random = np.random.default_rng(7)
    quantile = stats.studentized_range.ppf(0.9, 5, 4 * 2)
    for values in random.normal(size=(50, 5, 3)) + random.normal(size=3) + np.arange(5)[:, None]:
        cells, seeds = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
        noise = ((values - cells - seeds + values.mean()) ** 2).sum() / (4 * 2)
        distance = quantile * np.sqrt(noise / 3)
        expected = cells.max() - cells[:, 0] <= distance
        assert level_with_best(values, alpha=0.1).tolist() == expected.tolist()
        assert least_lead_seen(values, alpha=0.1) == pytest.approx(distance)


def test_nothing_is_seen_with_one_seed_or_one_cell():
    values = np.random.default_rng(7).normal(size=(5, 3))
    assert np.isnan(least_lead_seen(values[:, :1])) and np.isnan(least_lead_seen(values[:1]))


def test_two_seeds_of_many_cells_see_a_large_lead():
    random, lead = np.random.default_rng(8), 5 * (np.arange(15) == 7)[:, None]
    grids = [random.normal(size=(15, 2)) + lead for _ in range(100)]
    assert np.mean([15 - level_with_best(grid).sum() for grid in grids]) > 0.7 * 14


@pytest.mark.parametrize(("cells", "seeds"), [(2, 5), (4, 5), (9, 5), (15, 2)])
def test_identical_cells_are_all_level_in_95_percent_of_studies(cells, seeds):
    random, studies, wrong = np.random.default_rng(cells), 2000, 0
    for _ in range(studies):
        values = random.normal(size=(cells, seeds)) + random.normal(size=seeds)
        wrong += not level_with_best(values).all()
    assert abs(wrong / studies - 0.05) <= simulation_error(0.05, studies)


def test_missing_values_make_level_cells_no_less_level():
    random, studies, wrong = np.random.default_rng(9), 400, 0
    for _ in range(studies):
        values = random.normal(size=(6, 4)) + random.normal(size=4)
        values[random.random((6, 4)) < 0.25] = np.nan
        known = (~np.isnan(values)).any(1)
        wrong += (level_with_best(values) != known).any()
    assert wrong / studies <= 0.05 + simulation_error(0.05, studies)


def test_an_unpaired_value_of_two_cells_says_nothing():
    random = np.random.default_rng(9)
    for values in random.normal(size=(50, 2, 6)) + np.array([0.0, 2.0])[:, None]:
        values[0, :2] = np.nan
        found = stats.ttest_rel(*values[:, 2:])
        worse = found.pvalue < 0.05 and found.statistic < 0
        assert level_with_best(values).tolist() == [not worse, True]


def test_cells_that_share_no_seed_are_level():
    """There is no seed in common, nor a way between them by other cells."""
    apart = np.full((4, 4), np.nan)
    apart[:2, :2] = [[1.0, 1.1], [0.9, 1.3]]
    apart[2:, 2:] = [[-5.0, -5.1], [-4.9, -5.2]]
    assert level_with_best(apart).all()


@QUICK
@given(arrays(float, (4, 5), elements=WHOLE), SCALE, SHIFT)
def test_level_with_best_ignores_shift_and_scale(values, scale, shift):
    assert (level_with_best(scale * values + shift) == level_with_best(values)).all()
    assert level_with_best(values)[values.mean(1).argmax()]

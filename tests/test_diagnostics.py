"""What is logged about an objective and its importance ratios."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from bpgo.diagnostics import (
    effective_sample_size,
    group_diagnostics,
    rank_inversions,
    ratio_diagnostics,
)
from bpgo.objective import crt_rewards
from tests.equations import (
    OBJECTIVES,
    advantages_of,
    assert_equal_to,
    examples,
    rewards_of,
    shapes,
    tables,
)


def discordant(before, after):
    """The fraction of pairs whose order is reversed."""
    pairs = list(combinations(range(len(before)), 2))
    return sum((before[i] - before[j]) * (after[i] - after[j]) < 0 for i, j in pairs) / len(pairs)


@examples
@given(
    shapes.flatmap(
        lambda s: hnp.arrays(np.float64, (2, *s), elements=st.integers(-4, 4).map(float))
    )
)
def test_rank_inversions_are_the_fraction_of_discordant_pairs_without_ties(both):
    before, after = both
    expected = [discordant(a, b) for a, b in zip(before, after, strict=True)]
    assert_equal_to(rank_inversions(torch.tensor(before), torch.tensor(after)), expected)


def test_rank_inversions_are_kendalls():
    """Without ties, tau = (concordant - discordant) / pairs = 1 - 2 (fraction of inversions)."""
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 6, 9))
    expected = [
        (1 - stats.kendalltau(a, b).statistic) / 2 for a, b in zip(before, after, strict=True)
    ]
    assert_equal_to(rank_inversions(torch.tensor(before), torch.tensor(after)), expected)


def test_rank_inversions_of_crt_below_the_prior():
    r = torch.tensor([[-1.0, -3.0, -2.0], [1.0, 2.0, 3.0], [-1.0, -3.0, 1.0]], dtype=torch.float64)
    assert_equal_to(rank_inversions(r, crt_rewards(r, 0.0)), [1.0, 0.0, 1 / 3])


@examples
@given(tables)
def test_the_effective_sample_size_is_its_formula(a):
    size = effective_sample_size(torch.tensor(a)).numpy()
    for found, row in zip(size, np.abs(a), strict=True):
        if row.max() == 0:
            assert found == 0
        else:
            assert found == pytest.approx(row.sum() ** 2 / (row**2).sum())
            assert 1 - 1e-9 <= found <= len(row) * (1 + 1e-9)


def test_the_extremes_of_the_effective_sample_size():
    a = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert effective_sample_size(a).tolist() == [4.0, 1.0, 0.0]


@examples
@given(
    hnp.arrays(np.float64, (3, 8), elements=st.floats(-1, 1)),
    hnp.arrays(np.float64, 8, elements=st.floats(-2, 2)),
)
def test_the_ratio_diagnostics_are_their_formulas(log_ratio, advantages):
    ratio = np.exp(log_ratio)
    up = np.mean((ratio > 1.2) & (advantages > 0))
    down = np.mean((ratio < 0.8) & (advantages < 0))
    kl = np.mean(ratio - 1 - log_ratio)
    found = ratio_diagnostics(
        torch.tensor(log_ratio).requires_grad_(True), torch.tensor(advantages), 0.2
    )
    assert not found.requires_grad
    assert_equal_to(found, [up, down, kl], atol=1e-14)


def test_the_approximate_kl_is_accurate_in_float32_at_the_ratios_of_training():
    """At ratios of 1 +- 1e-4, r - 1 - log r in float32 is mostly rounding error.

    The true value is about (log r)^2 / 2.
    """
    log_ratio = np.linspace(-1e-4, 1e-4, 50, dtype=np.float32)
    exact = np.mean(np.expm1(log_ratio.astype(np.float64)) - log_ratio.astype(np.float64))
    found = ratio_diagnostics(torch.tensor(log_ratio), torch.ones(50), 1e-4)[2].item()
    assert found == pytest.approx(exact, rel=0.05)
    assert exact == pytest.approx(np.mean(log_ratio.astype(np.float64) ** 2) / 2, rel=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_group_diagnostics_describe_what_an_objective_made_of_a_batch(name):
    r = rewards_of(13, 6, 8)
    r[2], r[4] = 0.1, 1 / 3
    made = advantages_of(name, torch.tensor(r), 0.4)
    found = group_diagnostics(torch.tensor(r), made)
    w, effective = made.weights.numpy(), np.abs(made.effective.numpy())
    carried = [e.sum() ** 2 / (e**2).sum() if e.any() else 0.0 for e in effective]
    inversions = [discordant(a, b) for a, b in zip(r, made.transformed.numpy(), strict=True)]
    assert found == {
        "weight_mean": pytest.approx(w.mean()),
        "weight_min": pytest.approx(w.min()),
        "weight_max": pytest.approx(w.max()),
        "rank_inversions": pytest.approx(np.mean(inversions)),
        "zero_variance_groups": pytest.approx(2 / 6),
        "effective_sample_size": pytest.approx(np.mean(carried)),
    }
    assert all(type(value) is float for value in found.values())

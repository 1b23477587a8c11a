"""The equations and objectives of the paper against numpy float64, scipy and published numbers."""

import inspect
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special, stats

from bpgo import objective
from bpgo.config import ObjectiveConfig
from bpgo.objective import crt_rewards, group_advantages, k_from_kappa, ras_weights, sharpness
from bpgo.registry import TABLES, find
from tests.equations import (
    HYPERPARAMETERS,
    OBJECTIVES,
    SETTINGS,
    advantages_of,
    as_table,
    assert_equal_to,
    examples,
    rewards_of,
    tables,
    thousandths,
    transformed_of,
    weights_of,
    zscore,
)

KINDS = ["scalar", "per prompt", "per sample"]


def priors_for(r, seed=1):
    """One prior of each kind that the package takes."""
    rng = np.random.default_rng(seed)
    return {
        "scalar": 0.4,
        "per prompt": rng.normal(0.5, 0.3, len(r)),
        "per sample": rng.normal(0.5, 0.3, r.shape),
    }


def given_as_tensor(prior):
    return prior if np.isscalar(prior) else torch.tensor(prior)


# --------------------------------------------------------------------------------------- equation 1


@examples
@given(tables)
def test_group_advantages_are_equation_1(r):
    assert_equal_to(group_advantages(torch.tensor(r)), zscore(r), atol=1e-9)


def test_group_advantages_are_scipys_zscore_with_the_unbiased_deviation():
    r = rewards_of(0)
    assert_equal_to(group_advantages(torch.tensor(r), eps=0.0), stats.zscore(r, axis=1, ddof=1))


def test_eps_damps_a_group_whose_rewards_differ_by_rounding():
    r = np.array([[1e-9, -1e-9, 0.0]])
    assert_equal_to(group_advantages(torch.tensor(r), eps=1e-6), zscore(r, 1e-6))
    assert group_advantages(torch.tensor(r), eps=1e-6).abs().max() < 0.01


@examples
@given(tables, st.floats(-100, 100), st.floats(0.01, 100))
def test_advantages_do_not_change_when_the_reward_is_shifted_or_scaled(r, shift, scale):
    before = group_advantages(torch.tensor(r), eps=0.0)
    after = group_advantages(torch.tensor(scale * r + shift), eps=0.0)
    # Rounding may separate the shifted rewards of a group that was constant.
    distinct = torch.tensor(np.ptp(r, axis=1) > 0)
    torch.testing.assert_close(after[distinct], before[distinct], rtol=1e-6, atol=1e-6)


@examples
@given(tables, st.integers(0, 2**32 - 1))
def test_advantages_follow_their_samples_and_their_groups(r, seed):
    rng = np.random.default_rng(seed)
    samples, groups = rng.permutation(r.shape[1]), rng.permutation(r.shape[0])
    whole = group_advantages(torch.tensor(r))
    assert_equal_to(
        group_advantages(torch.tensor(r[:, samples])), whole.numpy()[:, samples], atol=1e-9
    )
    assert_equal_to(
        group_advantages(torch.tensor(r[groups])), whole.numpy()[groups], rtol=0, atol=0
    )


@examples
@given(tables)
def test_advantages_are_bounded_centred_and_in_the_order_of_the_rewards(r):
    a = group_advantages(torch.tensor(r)).numpy()
    g = r.shape[1]
    assert np.abs(a).max() <= (g - 1) / math.sqrt(g) * (1 + 1e-9)
    np.testing.assert_allclose(a.sum(1), 0, atol=1e-9)
    for rewards, advantages in zip(r, a, strict=True):
        assert (np.diff(advantages[np.argsort(rewards, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("g", [2, 3, 8, 24])
def test_the_bound_is_reached_by_one_sample_against_the_rest(g):
    one = np.zeros((1, g))
    one[0, 0] = 1
    assert group_advantages(torch.tensor(one), eps=0.0)[0, 0].item() == pytest.approx(
        (g - 1) / math.sqrt(g)
    )


def test_the_bound_holds_where_the_rewards_differ_by_their_last_bit():
    rng = np.random.default_rng(0)
    for _ in range(300):
        g = int(rng.integers(2, 25))
        base = np.float32(rng.uniform(0.1, 300))
        r = base + np.spacing(base) * rng.integers(0, 3, (1, g)).astype(np.float32)
        assert group_advantages(torch.tensor(r)).abs().max() <= (g - 1) / math.sqrt(g) * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 123.456, -1e-3, 0.0, 1e20])
@pytest.mark.parametrize("g", [2, 3, 7, 12])
def test_equal_rewards_give_exact_zeros(value, g, dtype):
    r = torch.full((2, g), value, dtype=dtype)
    r[1] = torch.linspace(0, 1, g, dtype=dtype)
    a = group_advantages(r)
    assert torch.equal(a[0], torch.zeros(g, dtype=dtype)) and a[1].abs().max() > 0.5
    for name in OBJECTIVES:
        # exp(R) overflows in CRT for the larger values.
        if name in ("grpo", "ras") or abs(value) < 10:
            effective = advantages_of(name, r, 0.05).effective
            assert torch.equal(effective[0], torch.zeros(g, dtype=dtype)), name


def test_equal_rewards_give_zeros_although_their_mean_is_rounded():
    tenths = np.full((1, 12), 0.1)
    assert np.abs(zscore(tenths, eps=0.0)).max() > 0.5  # what equation 1 alone gives
    assert torch.equal(
        group_advantages(torch.tensor(tenths), eps=0.0), torch.zeros(1, 12, dtype=torch.float64)
    )


# --------------------------------------------------------------------------------------- equation 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha,k", [(0.5, 1.0), (0.1, 50.0), (1.0, 3.0), (0.0, 7.0), (0.9, 0.0)])
def test_ras_weights_are_equation_2(kind, alpha, k):  # invariant 5
    r = rewards_of(2)
    prior = priors_for(r)[kind]
    found = ras_weights(torch.tensor(r), given_as_tensor(prior), alpha, k)
    assert found.shape == (len(r),)
    assert_equal_to(found, weights_of(r, prior, alpha, k))


@examples
@given(tables, st.floats(-5, 5), st.floats(0.01, 1), st.floats(0.001, 2))
def test_weights_lie_between_1_minus_and_1_plus_alpha_and_grow_with_the_group_mean(
    r, prior, alpha, k
):
    w = ras_weights(torch.tensor(r), prior, alpha, k).numpy()
    assert (1 - alpha < w).all() and (w < 1 + alpha).all()
    deviation = r.mean(1) - prior
    for i, j in combinations(range(len(r)), 2):
        if abs(deviation[i] - deviation[j]) > 1e-6:
            assert (w[i] < w[j]) == (deviation[i] < deviation[j])
    assert ((w > 1) == (deviation > 0))[np.abs(deviation) > 1e-6].all()


@examples
@given(tables, st.floats(-5, 5), st.floats(0, 1), st.floats(0, 1e6))
def test_no_sharpness_moves_a_weight_out_of_its_range(r, prior, alpha, k):
    w = ras_weights(torch.tensor(r, dtype=torch.float32), prior, alpha, k).double()
    assert ((w - 1).abs() <= alpha + 2e-7).all()  # the sigmoid reaches its ends in float32


def test_the_sigmoid_of_the_weights_is_scipys():
    deviation = torch.linspace(-30, 30, 61, dtype=torch.float64)
    r = deviation[:, None].expand(-1, 2)
    assert_equal_to(ras_weights(r, 0.0, 1.0, 1.0), 2 * special.expit(deviation.numpy()), atol=1e-15)


def test_a_group_at_the_prior_has_weight_one():
    r = torch.tensor([[0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    assert torch.equal(ras_weights(r, 0.5, 0.5, 100.0), torch.ones(2, dtype=torch.float64))


def test_ras_uses_the_group_mean_of_a_prior_per_sample_and_crt_each_value():
    r = rewards_of(3)
    prior = priors_for(r)["per sample"]
    mean = torch.tensor(prior.mean(1))
    torch.testing.assert_close(
        ras_weights(torch.tensor(r), torch.tensor(prior)), ras_weights(torch.tensor(r), mean)
    )
    assert not torch.allclose(
        crt_rewards(torch.tensor(r), torch.tensor(prior)), crt_rewards(torch.tensor(r), mean)
    )


# --------------------------------------------------------------------------------------- equation 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 20.0])
def test_crt_rewards_are_equation_4(kind, lam):  # invariant 5
    r = rewards_of(4)
    prior = priors_for(r)[kind]
    found = crt_rewards(torch.tensor(r), given_as_tensor(prior), lam)
    assert_equal_to(found, transformed_of(r, prior, lam))


def test_a_reward_at_the_prior_is_not_above_it():
    assert crt_rewards(torch.tensor([[0.5, 0.7]], dtype=torch.float64), 0.5)[0, 0].item() == 0.0


@examples
@given(st.lists(thousandths, min_size=2, max_size=10, unique=True), thousandths)
def test_crt_keeps_the_order_of_rewards_above_prior_minus_one_and_inverts_it_below(values, prior):
    """d/dR [lam (R - p) exp(R)] = lam (R - p + 1) exp(R), which is positive above p - 1."""
    r = np.sort(values)
    t = crt_rewards(torch.tensor(r)[None], prior)[0].numpy()
    for i, j in combinations(range(len(r)), 2):
        if r[i] >= prior - 1:
            assert t[i] < t[j]
        elif r[j] <= prior - 1:
            assert t[i] > t[j]


# -------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize("k,weight", [(1, 1.005), (50, 1.23), (100, 1.38)])
def test_published_weights_at_a_deviation_of_two_hundredths(k, weight):
    w = ras_weights(torch.tensor([[0.26, 0.28]], dtype=torch.float64), 0.25, alpha=0.5, k=k).item()
    assert round(w, 3 if k == 1 else 2) == weight


def test_published_crt_inversions():
    t = crt_rewards(torch.tensor([[-1.0, -3.0]], dtype=torch.float64), 0.0)[0].tolist()
    assert [round(v, 2) for v in t] == [-0.37, -0.15]


def test_published_crt_is_almost_binary_on_the_scale_of_clip_rewards():
    r = torch.tensor([[0.60, 0.62, 0.63, 0.64, 0.66, 0.67, 0.69, 0.72]], dtype=torch.float64)
    z = group_advantages(crt_rewards(r, 0.65))[0]
    below, above = z[:4], z[4:]
    found = [below.min(), below.max(), above.min(), above.max()]
    assert [round(v.item(), 2) for v in found] == [-0.97, -0.91, 0.84, 1.06]


def test_published_values_of_teleboost():
    made = objective.teleboost(torch.tensor([[0.1, 0.3, 0.5]], dtype=torch.float64), 0.65)
    assert [round(v, 2) for v in made.transformed[0].tolist()] == [-1.39, -2.70, -1.97]
    made = objective.teleboost(torch.tensor([[-3.0, 0.0]], dtype=torch.float64), 0.0)
    assert round(made.transformed[0, 0].item(), 1) == 159.5


# ---------------------------------------------------------------------------------------- sharpness


def test_the_sharpness_is_the_first_that_is_given():
    r = torch.tensor(rewards_of(5))
    assert sharpness(r, k=40.0) == 40.0
    assert sharpness(r, k=40.0, kappa=2.0, implied=7.0) == 40.0
    assert sharpness(r, kappa=2.0, implied=7.0) == 7.0
    assert sharpness(r, kappa=2.0) == k_from_kappa(2.0, r)
    assert sharpness(r) == k_from_kappa(1.0, r)
    assert sharpness(r, k=0.0) == sharpness(r, implied=0.0) == sharpness(r, kappa=0.0) == 0.0


def test_k_from_kappa_divides_by_the_unbiased_deviation_of_the_whole_batch():
    r = rewards_of(5)
    assert k_from_kappa(2.0, torch.tensor(r)) == pytest.approx(2.0 / r.std(ddof=1), rel=1e-12)


@examples
@given(tables, st.floats(-5, 5), st.floats(1e-3, 1e3), st.floats(0.1, 5))
def test_one_kappa_gives_the_same_weights_on_every_reward_scale(r, prior, scale, kappa):
    assume(np.ptp(r) > 0)
    small, large = torch.tensor(r), torch.tensor(scale * r)
    before = ras_weights(small, prior, 0.5, k_from_kappa(kappa, small))
    after = ras_weights(large, scale * prior, 0.5, k_from_kappa(kappa, large))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2), (1, 12), (8, 12), (3, 7), (24, 24)])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 123.456, 0.0])
def test_equal_rewards_give_k_zero_and_weights_of_one(value, shape, dtype):
    r = torch.full(shape, value, dtype=dtype)
    assert k_from_kappa(1.0, r) == 0.0
    assert torch.equal(
        ras_weights(r, 10.0, 0.5, k_from_kappa(1.0, r)), torch.ones(shape[0], dtype=dtype)
    )


# ----------------------------------------------------------------------------------- the objectives


def test_each_objective_accepts_the_hyperparameters_that_it_uses_and_no_others():
    assert HYPERPARAMETERS.keys() == TABLES["objective"].keys()
    for name, expected in HYPERPARAMETERS.items():
        parameters = inspect.signature(getattr(objective, name)).parameters
        keywords = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert tuple(keywords) == expected
        assert list(parameters)[:2] == ["rewards", "prior"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_objective_is_its_equations(kind):
    r = rewards_of(6)
    prior = priors_for(r)[kind]
    alpha, k, lam, beta = SETTINGS.values()
    a, w = zscore(r), weights_of(r, prior, alpha, k)[:, None]
    t = transformed_of(r, prior, lam)
    expected = {
        "grpo": (a, None, np.ones(len(r)), r),
        "ras": (w * a, None, w[:, 0], r),
        "crt": (a, beta * zscore(t), np.ones(len(r)), t),
        "bpgo": (w * a, beta * zscore(t), w[:, 0], t),
    }
    for name, (main, auxiliary, weights, transformed) in expected.items():
        made = advantages_of(name, torch.tensor(r), given_as_tensor(prior))
        assert_equal_to(made.main, main)
        assert_equal_to(made.weights, weights)
        assert_equal_to(made.transformed, transformed)
        if auxiliary is None:
            assert made.auxiliary is None
            assert_equal_to(made.effective, main)
        else:
            assert_equal_to(made.auxiliary, auxiliary)
            assert_equal_to(made.effective, main + auxiliary)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_teleboost_is_the_posterior_of_a_normal_mean(kind, alpha):
    """Mean and variance of the posterior come from Bayes' rule on a grid, not in closed form."""
    r = rewards_of(7) * 0.1
    prior = priors_for(r)[kind]
    made = objective.teleboost(torch.tensor(r), given_as_tensor(prior), alpha=alpha)
    p = as_table(prior, r)
    t = (50 * (r - p) + (r > p)) / (1 + np.exp(-r / 5)) * r
    assert_equal_to(made.transformed, t)
    for i, row in enumerate(t):
        anchor, error = p[i].mean(), row.std(ddof=1) / math.sqrt(len(row))
        lo, hi = min(anchor - 8, row.mean() - 12 * error), max(anchor + 8, row.mean() + 12 * error)
        theta = np.linspace(lo, hi, 40_001)
        log_density = stats.norm.logpdf(theta, anchor, 1) + stats.norm.logpdf(
            row.mean(), theta, error
        )
        density = np.exp(log_density - log_density.max())
        mean = (theta * density).sum() / density.sum()
        deviation = math.sqrt(((theta - mean) ** 2 * density).sum() / density.sum())
        weight = 1 + alpha * (stats.norm.cdf((mean - anchor) / deviation) - 0.5)
        assert made.weights[i].item() == pytest.approx(weight, rel=1e-6)
        assert_equal_to(made.main[i], weight * zscore(row[None])[0], rtol=1e-6)
    assert made.auxiliary is None


def test_the_weights_do_not_multiply_the_auxiliary_term():
    r = torch.tensor(rewards_of(8))
    weak, strong = (advantages_of("bpgo", r, 0.4, alpha=alpha) for alpha in (0.1, 0.9))
    assert torch.equal(weak.auxiliary, strong.auxiliary) and not torch.equal(weak.main, strong.main)
    assert torch.equal(weak.auxiliary, advantages_of("crt", r, 0.4).auxiliary)
    assert torch.equal(weak.main, advantages_of("ras", r, 0.4, alpha=0.1).main)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_grpo_does_not_read_the_prior_and_the_others_do(name):
    r = torch.tensor(rewards_of(9))
    low, high = (advantages_of(name, r, prior).effective for prior in (-0.3, 0.9))
    assert torch.equal(low, high) == (name == "grpo")


def test_the_objectives_do_not_change_their_input():
    r, prior = torch.tensor(rewards_of(10)), torch.tensor(priors_for(rewards_of(10))["per prompt"])
    kept = r.clone(), prior.clone()
    for name in OBJECTIVES:
        advantages_of(name, r, prior)
    assert torch.equal(r, kept[0]) and torch.equal(prior, kept[1])


@pytest.mark.parametrize("name", TABLES["objective"])
def test_the_defaults_of_an_objective_are_those_of_the_settings(name):
    defaults = ObjectiveConfig()
    parameters = inspect.signature(find("objective", name)).parameters.values()
    hyperparameters = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert hyperparameters.pop("k", 1.0) == 1.0  # the settings have kappa = 1 in its place
    assert hyperparameters == {key: getattr(defaults, key) for key in hyperparameters}
    assert set(hyperparameters) <= {"alpha", "lam", "beta"}

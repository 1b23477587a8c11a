"""Equations 1-5 against the published text, rewritten here in numpy float64, and against scipy; then what must not change."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from bpgo import objective
from bpgo.objective import (
    clipped_surrogate,
    crt_rewards,
    effective_sample_size,
    group_advantages,
    group_diagnostics,
    k_from_kappa,
    rank_inversions,
    ras_weights,
    ratio_diagnostics,
    surrogate_loss,
)

examples = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SETTINGS = dict(alpha=0.5, k=3.0, lam=0.7, beta=0.4)


# ------------------------------------------------------------------------------------ the equations, in numpy


def zscore(r, eps=1e-8):
    """Equation 1."""
    return (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + eps)


def as_table(prior, r):
    """A prior of any of the three kinds as (N, G)."""
    prior = np.asarray(prior, dtype=float)
    return np.broadcast_to(prior[:, None] if prior.ndim == 1 else prior, r.shape)


def weights_of(r, prior, alpha, k):
    """Equation 2."""
    return 1 + alpha * (2 / (1 + np.exp(-k * (r.mean(1) - as_table(prior, r).mean(1)))) - 1)


def transformed_of(r, prior, lam):
    """Equation 4."""
    p = as_table(prior, r)
    return (lam * (r - p) + np.where(r > p, 1.0, 0.0)) * np.exp(r)


def rewards_of(seed, n=5, g=8):
    return np.random.default_rng(seed).normal(0.5, 0.6, (n, g))


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


def assert_equal_to(found, expected, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=atol)


shapes = st.tuples(st.integers(1, 5), st.integers(2, 10))
# Thousandths, as reward models print them: a group's spread is then far above the rounding of its mean.
thousandths = st.integers(-5000, 5000).map(lambda i: i / 1000)
tables = shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=thousandths))
KINDS = ["scalar", "per prompt", "per sample"]


# ------------------------------------------------------------------------------------ equation 1


@examples
@given(tables)
def test_group_advantages_are_equation_1(r):
    assert_equal_to(group_advantages(torch.tensor(r)), zscore(r), atol=1e-9)


def test_group_advantages_are_scipys_zscore_with_the_unbiased_deviation():
    r = rewards_of(0)
    assert_equal_to(group_advantages(torch.tensor(r), eps=0.0), stats.zscore(r, axis=1, ddof=1))


def test_eps_damps_a_group_whose_spread_is_rounding():
    r = np.array([[1e-9, -1e-9, 0.0]])
    assert_equal_to(group_advantages(torch.tensor(r), eps=1e-6), zscore(r, 1e-6))
    assert group_advantages(torch.tensor(r), eps=1e-6).abs().max() < 0.01


@examples
@given(tables, st.floats(-100, 100), st.floats(0.01, 100))
def test_advantages_do_not_change_when_the_reward_is_shifted_or_scaled(r, shift, scale):
    before = group_advantages(torch.tensor(r), eps=0.0)
    after = group_advantages(torch.tensor(scale * r + shift), eps=0.0)
    distinct = torch.tensor(
        np.ptp(r, axis=1) > 0
    )  # a flat group: rounding may part its shifted rewards
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
    for name, make in objective.OBJECTIVES.items():
        if (
            name in ("grpo", "ras") or abs(value) < 10
        ):  # exp(R) overflows in CRT for the larger ones
            assert torch.equal(
                make(r, 0.05, **SETTINGS).effective[0], torch.zeros(g, dtype=dtype)
            ), name


def test_equal_rewards_whose_float_mean_is_another_number_need_a_rule_of_their_own():
    tenths = np.full((1, 12), 0.1)
    assert np.abs(zscore(tenths, eps=0.0)).max() > 0.5  # what equation 1 alone makes of them
    assert torch.equal(
        group_advantages(torch.tensor(tenths), eps=0.0), torch.zeros(1, 12, dtype=torch.float64)
    )


# ------------------------------------------------------------------------------------ equation 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha,k", [(0.5, 1.0), (0.1, 50.0), (1.0, 3.0), (0.0, 7.0), (0.9, 0.0)])
def test_ras_weights_are_equation_2(kind, alpha, k):
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
def test_no_sharpness_takes_a_weight_beyond_its_range(r, prior, alpha, k):
    w = ras_weights(torch.tensor(r, dtype=torch.float32), prior, alpha, k).double()
    assert ((w - 1).abs() <= alpha + 2e-7).all()  # the sigmoid reaches its ends in float32


def test_a_group_at_the_prior_has_weight_one():
    r = torch.tensor([[0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    assert torch.equal(ras_weights(r, 0.5, 0.5, 100.0), torch.ones(2, dtype=torch.float64))


def test_a_prior_per_sample_counts_by_its_group_mean_in_ras_and_by_sample_in_crt():
    r = rewards_of(3)
    prior = priors_for(r)["per sample"]
    mean = torch.tensor(prior.mean(1))
    torch.testing.assert_close(
        ras_weights(torch.tensor(r), torch.tensor(prior)), ras_weights(torch.tensor(r), mean)
    )
    assert not torch.allclose(
        crt_rewards(torch.tensor(r), torch.tensor(prior)), crt_rewards(torch.tensor(r), mean)
    )


# ------------------------------------------------------------------------------------ equation 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 20.0])
def test_crt_rewards_are_equation_4(kind, lam):
    r = rewards_of(4)
    prior = priors_for(r)[kind]
    found = crt_rewards(torch.tensor(r), given_as_tensor(prior), lam)
    assert_equal_to(found, transformed_of(r, prior, lam))


def test_a_reward_at_the_prior_is_not_above_it():
    assert crt_rewards(torch.tensor([[0.5, 0.7]], dtype=torch.float64), 0.5)[0, 0].item() == 0.0


@examples
@given(st.lists(thousandths, min_size=2, max_size=10, unique=True), thousandths)
def test_crt_keeps_the_order_of_rewards_down_to_one_below_the_prior_and_turns_it_round_further_down(
    values, prior
):
    """d/dR [lam (R - p) exp(R)] = lam (R - p + 1) exp(R): with the step at p upwards, increasing from p - 1 on."""
    r = np.sort(values)
    t = crt_rewards(torch.tensor(r)[None], prior)[0].numpy()
    for i, j in combinations(range(len(r)), 2):
        if r[i] >= prior - 1:
            assert t[i] < t[j]
        elif r[j] <= prior - 1:
            assert t[i] > t[j]


# ------------------------------------------------------------------------------------ the numbers of the digest


@pytest.mark.parametrize("k,weight", [(1, 1.005), (50, 1.23), (100, 1.38)])
def test_published_weights_at_a_deviation_of_two_hundredths(k, weight):
    w = ras_weights(torch.tensor([[0.26, 0.28]], dtype=torch.float64), 0.25, alpha=0.5, k=k).item()
    assert round(w, 3 if k == 1 else 2) == weight


def test_published_crt_inversions():
    t = crt_rewards(torch.tensor([[-1.0, -3.0]], dtype=torch.float64), 0.0)[0].tolist()
    assert [round(v, 2) for v in t] == [-0.37, -0.15]


def test_published_crt_is_almost_a_binary_label_at_the_scale_of_clip_rewards():
    r = torch.tensor([[0.60, 0.62, 0.63, 0.64, 0.66, 0.67, 0.69, 0.72]], dtype=torch.float64)
    z = group_advantages(crt_rewards(r, 0.65))[0]
    below, above = z[:4], z[4:]
    found = [below.min(), below.max(), above.min(), above.max()]
    assert [round(v.item(), 2) for v in found] == [-0.97, -0.91, 0.84, 1.06]


def test_published_values_of_the_institutes_variant():
    made = objective.teleboost(torch.tensor([[0.1, 0.3, 0.5]], dtype=torch.float64), 0.65, **SETTINGS)
    assert [round(v, 2) for v in made.transformed[0].tolist()] == [-1.39, -2.70, -1.97]
    made = objective.teleboost(torch.tensor([[-3.0, 0.0]], dtype=torch.float64), 0.0, **SETTINGS)
    assert round(made.transformed[0, 0].item(), 1) == 159.5


# ------------------------------------------------------------------------------------ sharpness in units of the spread


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


# ------------------------------------------------------------------------------------ the objectives


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
        made = objective.OBJECTIVES[name](torch.tensor(r), given_as_tensor(prior), **SETTINGS)
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
def test_the_institutes_variant_is_the_posterior_of_a_normal_mean(kind, alpha):
    """Mean and variance of the posterior from Bayes' rule on a grid of values, not from the conjugate formula."""
    r = rewards_of(7) * 0.1
    prior = priors_for(r)[kind]
    made = objective.teleboost(torch.tensor(r), given_as_tensor(prior), **{**SETTINGS, "alpha": alpha})
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


def test_the_weights_do_not_multiply_the_auxiliary_loss():
    r = torch.tensor(rewards_of(8))
    weak, strong = (objective.bpgo(r, 0.4, **{**SETTINGS, "alpha": alpha}) for alpha in (0.1, 0.9))
    assert torch.equal(weak.auxiliary, strong.auxiliary) and not torch.equal(weak.main, strong.main)
    assert torch.equal(weak.auxiliary, objective.crt(r, 0.4, **SETTINGS).auxiliary)
    assert torch.equal(weak.main, objective.ras(r, 0.4, **{**SETTINGS, "alpha": 0.1}).main)


@pytest.mark.parametrize("name", list(objective.OBJECTIVES))
def test_grpo_does_not_read_the_prior_and_the_others_do(name):
    r = torch.tensor(rewards_of(9))
    same = [objective.OBJECTIVES[name](r, prior, **SETTINGS).effective for prior in (-0.3, 0.9)]
    assert torch.equal(*same) == (name == "grpo")


def test_the_objectives_leave_their_input_alone():
    r, prior = torch.tensor(rewards_of(10)), torch.tensor(priors_for(rewards_of(10))["per prompt"])
    kept = r.clone(), prior.clone()
    for make in objective.OBJECTIVES.values():
        make(r, prior, **SETTINGS)
    assert torch.equal(r, kept[0]) and torch.equal(prior, kept[1])


# ------------------------------------------------------------------------------------ the loss


@examples
@given(
    hnp.arrays(np.float64, (4, 6), elements=st.floats(-2, 2)),
    hnp.arrays(np.float64, (4, 6), elements=st.floats(-3, 3)),
    st.sampled_from([0.0, 1e-4, 0.2, 1.5]),
)
def test_clipped_surrogate_is_ppos(log_ratio, advantages, c):
    ratio = np.exp(log_ratio)
    expected = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 1 - c, 1 + c))
    assert_equal_to(
        clipped_surrogate(torch.tensor(log_ratio), torch.tensor(advantages), c), expected
    )


@pytest.mark.parametrize("advantage", [-2.0, 2.0])
@pytest.mark.parametrize("log_ratio", [-0.5, -0.05, 0.0, 0.05, 0.5])
def test_the_gradient_stops_only_where_the_ratio_has_gone_too_far_the_right_way(
    log_ratio, advantage
):
    x = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    clipped_surrogate(x, torch.tensor(advantage, dtype=torch.float64), 0.1).backward()
    too_far = log_ratio > math.log(1.1) if advantage > 0 else log_ratio < math.log(0.9)
    assert x.grad.item() == pytest.approx(0.0 if too_far else -advantage * math.exp(log_ratio))


def test_advantages_stretch_over_the_trained_steps():
    log_ratio, advantages = torch.zeros(3, 5), torch.arange(5.0)
    assert torch.equal(clipped_surrogate(log_ratio, advantages, 0.1), -advantages.expand(3, 5))


@pytest.mark.parametrize("shape", [(6, 1), (2, 6), (5,)])
def test_clipped_surrogate_refuses_advantages_that_would_change_its_shape(shape):
    with pytest.raises(ValueError, match=r"6.*|shape"):
        clipped_surrogate(torch.zeros(6), torch.ones(shape), 0.1)


def policy_toy(seed=0, rows=24, steps=3, width=4):
    """log-ratios (steps, rows) of a policy linear in its parameters, all zero at the parameters where it was sampled."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(steps, rows, width, generator=generator, dtype=torch.float64)
    theta = torch.randn(width, generator=generator, dtype=torch.float64)
    return features, theta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moved", [0.0, 0.01, 0.5], ids=["ratio 1", "near", "clipped"])
def test_alpha_and_beta_zero_are_grpo_bit_for_bit(dtype, moved):
    features, theta = policy_toy()
    features, theta = features.to(dtype), theta.to(dtype)
    rewards = torch.tensor(rewards_of(11, 3, 8), dtype=dtype)
    made = {
        "grpo": objective.grpo(rewards, 0.4, **SETTINGS),
        "ras": objective.ras(rewards, 0.4, **{**SETTINGS, "alpha": 0.0}),
        "crt": objective.crt(rewards, 0.4, **{**SETTINGS, "beta": 0.0}),
        "bpgo": objective.bpgo(rewards, 0.4, **{**SETTINGS, "alpha": 0.0, "beta": 0.0}),
    }
    losses, gradients = {}, {}
    for name, advantages in made.items():
        new = (theta + moved).requires_grad_(True)
        auxiliary = None if advantages.auxiliary is None else advantages.auxiliary.flatten()
        loss = surrogate_loss(
            features @ new - features @ theta, advantages.main.flatten(), auxiliary, 0.1
        )
        loss.backward()
        losses[name], gradients[name] = loss.detach(), new.grad
        assert torch.equal(advantages.effective, made["grpo"].main), name
    for name in made:
        assert torch.equal(losses[name], losses["grpo"]) and torch.equal(
            gradients[name], gradients["grpo"]
        ), name
    assert gradients["grpo"].abs().min() > 0


@pytest.mark.parametrize("name", list(objective.OBJECTIVES))
def test_at_ratio_one_the_gradient_is_grpos_with_the_effective_advantages(name):
    """d/dtheta of -mean(A r) at r = 1 is -mean(A d log r): in closed form with A = w A + beta At."""
    features, theta = policy_toy()
    r = rewards_of(12, 3, 8)
    advantages = objective.OBJECTIVES[name](torch.tensor(r), 0.4, **SETTINGS)
    new = theta.clone().requires_grad_(True)
    auxiliary = None if advantages.auxiliary is None else advantages.auxiliary.flatten()
    surrogate_loss(
        features @ new - features @ theta, advantages.main.flatten(), auxiliary, 1e-4
    ).backward()
    effective = advantages.effective.flatten().numpy()
    expected = -np.einsum("r,srw->w", effective, features.numpy()) / features[..., 0].numel()
    np.testing.assert_allclose(new.grad.numpy(), expected, rtol=1e-12)
    if name == "bpgo":
        w = weights_of(r, 0.4, SETTINGS["alpha"], SETTINGS["k"])[:, None]
        by_hand = w * zscore(r) + SETTINGS["beta"] * zscore(transformed_of(r, 0.4, SETTINGS["lam"]))
        np.testing.assert_allclose(effective, by_hand.flatten(), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------ diagnostics


def discordant(before, after):
    """Share of pairs that are in one order before and in the other after."""
    pairs = list(combinations(range(len(before)), 2))
    return sum((before[i] - before[j]) * (after[i] - after[j]) < 0 for i, j in pairs) / len(pairs)


@examples
@given(
    shapes.flatmap(
        lambda s: hnp.arrays(np.float64, (2, *s), elements=st.integers(-4, 4).map(float))
    )
)
def test_rank_inversions_count_discordant_pairs_and_no_ties(both):
    before, after = both
    expected = [discordant(a, b) for a, b in zip(before, after, strict=True)]
    assert_equal_to(rank_inversions(torch.tensor(before), torch.tensor(after)), expected)


def test_rank_inversions_are_kendalls():
    """Without ties tau = (concordant - discordant) / pairs = 1 - 2 (share of inversions)."""
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
def test_effective_sample_size(a):
    size = effective_sample_size(torch.tensor(a)).numpy()
    for found, row in zip(size, np.abs(a), strict=True):
        if row.max() == 0:
            assert found == 0
        else:
            assert found == pytest.approx(row.sum() ** 2 / (row**2).sum())
            assert 1 - 1e-9 <= found <= len(row) * (1 + 1e-9)


def test_effective_sample_size_at_its_ends():
    a = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert effective_sample_size(a).tolist() == [4.0, 1.0, 0.0]


@examples
@given(
    hnp.arrays(np.float64, (3, 8), elements=st.floats(-1, 1)),
    hnp.arrays(np.float64, 8, elements=st.floats(-2, 2)),
)
def test_ratio_diagnostics(log_ratio, advantages):
    ratio = np.exp(log_ratio)
    up = np.mean((ratio > 1.2) & (advantages > 0))
    down = np.mean((ratio < 0.8) & (advantages < 0))
    kl = np.mean(ratio - 1 - log_ratio)
    found = ratio_diagnostics(
        torch.tensor(log_ratio).requires_grad_(True), torch.tensor(advantages), 0.2
    )
    assert not found.requires_grad
    assert_equal_to(found, [up, down, kl], atol=1e-14)


def test_approximate_kl_at_the_ratios_of_training_survives_float32():
    """At ratios of 1 +- 1e-4 the naive r - 1 - log r is rounding error; the true value is about (log r)^2 / 2."""
    log_ratio = np.linspace(-1e-4, 1e-4, 50, dtype=np.float32)
    exact = np.mean(np.expm1(log_ratio.astype(np.float64)) - log_ratio.astype(np.float64))
    found = ratio_diagnostics(torch.tensor(log_ratio), torch.ones(50), 1e-4)[2].item()
    assert found == pytest.approx(exact, rel=0.05)
    assert exact == pytest.approx(np.mean(log_ratio.astype(np.float64) ** 2) / 2, rel=1e-3)


@pytest.mark.parametrize("name", list(objective.OBJECTIVES))
def test_group_diagnostics_tell_what_the_objective_made_of_a_batch(name):
    r = rewards_of(13, 6, 8)
    r[2], r[4] = 0.1, 1 / 3
    made = objective.OBJECTIVES[name](torch.tensor(r), 0.4, **SETTINGS)
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


# ------------------------------------------------------------------------------------ precision and refusals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_the_rewards_is_kept(dtype):
    r = torch.tensor(rewards_of(14), dtype=dtype)
    for prior in (
        0.4,
        torch.tensor(0.4, dtype=torch.float64),
        torch.zeros(5),
        torch.zeros(5, 8, dtype=torch.float64),
    ):
        assert (
            group_advantages(r).dtype
            == ras_weights(r, prior).dtype
            == crt_rewards(r, prior).dtype
            == dtype
        )
        for make in objective.OBJECTIVES.values():
            made = make(r, prior, **SETTINGS)
            assert {
                made.main.dtype,
                made.effective.dtype,
                made.weights.dtype,
                made.transformed.dtype,
            } == {dtype}
    assert clipped_surrogate(r, r, 0.1).dtype == surrogate_loss(r, r, r, 0.1).dtype == dtype
    assert effective_sample_size(r).dtype == rank_inversions(r, r).dtype == dtype


def test_float32_is_float64_to_its_precision():
    r = rewards_of(15)
    for make in objective.OBJECTIVES.values():
        single = make(torch.tensor(r, dtype=torch.float32), 0.4, **SETTINGS).effective
        double = make(torch.tensor(r), 0.4, **SETTINGS).effective
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_whole_numbers_are_rewards_too():
    expected = zscore(np.array([[0.0, 1.0, 1.0]]))
    assert_equal_to(group_advantages(torch.tensor([[0, 1, 1]])), expected, rtol=1e-6)


ON_REWARDS = [
    pytest.param(group_advantages, id="group_advantages"),
    pytest.param(lambda r: ras_weights(r, 0.5), id="ras_weights"),
    pytest.param(lambda r: crt_rewards(r, 0.5), id="crt_rewards"),
    pytest.param(lambda r: k_from_kappa(1.0, r), id="k_from_kappa"),
    *(
        pytest.param(lambda r, f=f: f(r, 0.5, **SETTINGS), id=name)
        for name, f in objective.OBJECTIVES.items()
    ),
]
WITH_PRIOR = [
    pytest.param(ras_weights, id="ras_weights"),
    pytest.param(crt_rewards, id="crt_rewards"),
    *(
        pytest.param(lambda r, p, f=f: f(r, p, **SETTINGS), id=n)
        for n, f in objective.OBJECTIVES.items()
        if n != "grpo"
    ),
]


@pytest.mark.parametrize("function", ON_REWARDS)
@pytest.mark.parametrize("shape", [(), (8,), (2, 3, 4), (0, 8)])
def test_rewards_of_another_shape_are_refused_and_the_shape_named(function, shape):
    with pytest.raises(ValueError) as refusal:
        function(torch.rand(shape))
    assert str(tuple(shape)) in str(refusal.value)


@pytest.mark.parametrize("function", ON_REWARDS)
@pytest.mark.parametrize("g", [0, 1])
def test_a_group_of_one_is_refused(function, g):
    with pytest.raises(ValueError, match=rf"at least 2 samples.*\(3, {g}\)"):
        function(torch.rand(3, g))


@pytest.mark.parametrize("function", ON_REWARDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_and_named(function, value):
    r = torch.rand(4, 6)
    r[2, 5] = value
    with pytest.raises(ValueError, match=rf"\[2, 5\].*{value}"):
        function(r)


@pytest.mark.parametrize("function", WITH_PRIOR)
@pytest.mark.parametrize("shape", [(1,), (6,), (4, 1), (1, 6), (6, 4), (4, 6, 1)])
def test_a_prior_of_another_shape_is_refused_and_the_shape_named(function, shape):
    with pytest.raises(ValueError) as refusal:
        function(torch.rand(4, 6), torch.rand(shape))
    assert str(tuple(shape)) in str(refusal.value) and "(4, 6)" in str(refusal.value)


@pytest.mark.parametrize("function", WITH_PRIOR)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prior_that_is_not_finite_is_refused_and_named(function, value):
    with pytest.raises(ValueError, match=f"prior.*{value}"):
        function(torch.rand(4, 6), value)
    prior = torch.rand(4)
    prior[3] = value
    with pytest.raises(ValueError, match=rf"prior.*\[3\].*{value}"):
        function(torch.rand(4, 6), prior)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_outside_0_to_1_is_refused(alpha):
    r = torch.rand(2, 4)
    for function in (
        lambda: ras_weights(r, 0.5, alpha),
        lambda: objective.bpgo(r, 0.5, **{**SETTINGS, "alpha": alpha}),
        lambda: objective.teleboost(r, 0.5, **{**SETTINGS, "alpha": alpha}),
    ):
        with pytest.raises(ValueError, match=f"alpha.*{alpha}"):
            function()


@pytest.mark.parametrize("clip_range", [-0.1, math.nan])
def test_a_clip_range_below_0_is_refused(clip_range):
    with pytest.raises(ValueError, match=f"clip_range.*{clip_range}"):
        clipped_surrogate(torch.zeros(3), torch.ones(3), clip_range)


@pytest.mark.parametrize(
    "dtype,fits,overflows", [(torch.float32, 80.0, 89.0), (torch.float64, 700.0, 710.0)]
)
def test_a_reward_whose_exponential_overflows_is_refused_in_crt_alone(dtype, fits, overflows):
    for make in (crt_rewards, lambda r, p: objective.bpgo(r, p, **SETTINGS)):
        make(torch.tensor([[0.0, fits]], dtype=dtype), 0.5)
        with pytest.raises(ValueError, match=f"overflow.*{overflows:g}"):
            make(torch.tensor([[0.0, overflows]], dtype=dtype), 0.5)
    objective.ras(torch.tensor([[0.0, overflows]], dtype=dtype), 0.5, **SETTINGS)


def test_the_sigmoid_of_the_weights_is_scipys():
    deviation = torch.linspace(-30, 30, 61, dtype=torch.float64)
    r = deviation[:, None].expand(-1, 2)
    assert_equal_to(ras_weights(r, 0.0, 1.0, 1.0), 2 * special.expit(deviation.numpy()), atol=1e-15)

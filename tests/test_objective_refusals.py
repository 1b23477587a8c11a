"""Precision of the objectives, and the input that they refuse (invariant 5)."""

import math

import numpy as np
import pytest
import torch

from bpgo.diagnostics import effective_sample_size, rank_inversions
from bpgo.objective import (
    Advantages,
    check_advantages,
    clipped_surrogate,
    crt_rewards,
    group_advantages,
    k_from_kappa,
    ras_weights,
    surrogate_loss,
)
from tests.equations import OBJECTIVES, advantages_of, assert_equal_to, rewards_of, zscore


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
        for name in OBJECTIVES:
            made = advantages_of(name, r, prior)
            assert {
                made.main.dtype,
                made.effective.dtype,
                made.weights.dtype,
                made.transformed.dtype,
            } == {dtype}
    assert clipped_surrogate(r, r, 0.1).dtype == surrogate_loss(r, r, r, 0.1).dtype == dtype
    assert effective_sample_size(r).dtype == rank_inversions(r, r).dtype == dtype


def test_float32_and_float64_agree():
    r = rewards_of(15)
    for name in OBJECTIVES:
        single = advantages_of(name, torch.tensor(r, dtype=torch.float32), 0.4).effective
        double = advantages_of(name, torch.tensor(r), 0.4).effective
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_integers_are_accepted_as_rewards():
    expected = zscore(np.array([[0.0, 1.0, 1.0]]))
    assert_equal_to(group_advantages(torch.tensor([[0, 1, 1]])), expected, rtol=1e-6)


ON_REWARDS = [
    pytest.param(group_advantages, id="group_advantages"),
    pytest.param(lambda r: ras_weights(r, 0.5), id="ras_weights"),
    pytest.param(lambda r: crt_rewards(r, 0.5), id="crt_rewards"),
    pytest.param(lambda r: k_from_kappa(1.0, r), id="k_from_kappa"),
    *(pytest.param(lambda r, n=name: advantages_of(n, r, 0.5), id=name) for name in OBJECTIVES),
]
WITH_PRIOR = [
    pytest.param(ras_weights, id="ras_weights"),
    pytest.param(crt_rewards, id="crt_rewards"),
    *(
        pytest.param(lambda r, p, n=name: advantages_of(n, r, p), id=name)
        for name in OBJECTIVES
        if name != "grpo"
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
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], not {alpha}"):
        ras_weights(r, 0.5, alpha)
    for name in ("ras", "bpgo", "teleboost"):
        with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], not {alpha}"):
            advantages_of(name, r, 0.5, alpha=alpha)


@pytest.mark.parametrize("clip_range", [-0.1, math.nan])
def test_a_clip_range_below_0_is_refused(clip_range):
    with pytest.raises(ValueError, match=f"clip_range.*{clip_range}"):
        clipped_surrogate(torch.zeros(3), torch.ones(3), clip_range)


@pytest.mark.parametrize(
    "dtype,fits,overflows", [(torch.float32, 80.0, 89.0), (torch.float64, 700.0, 710.0)]
)
def test_a_reward_whose_exponential_overflows_is_refused_in_crt_alone(dtype, fits, overflows):
    for make in (crt_rewards, lambda r, p: advantages_of("bpgo", r, p)):
        make(torch.tensor([[0.0, fits]], dtype=dtype), 0.5)
        with pytest.raises(ValueError, match=f"overflow.*{overflows:g}"):
            make(torch.tensor([[0.0, overflows]], dtype=dtype), 0.5)
    large = torch.tensor([[0.0, overflows]], dtype=dtype)
    assert advantages_of("ras", large, 0.5).main.isfinite().all()


def good_advantages():
    return Advantages(torch.rand(4, 6), None, torch.rand(4), torch.rand(4, 6))


def test_advantages_of_the_stated_shapes_are_returned():
    good = good_advantages()
    assert check_advantages(good, torch.rand(4, 6)) is good
    with_auxiliary = good._replace(auxiliary=torch.rand(4, 6))
    assert check_advantages(with_auxiliary, torch.rand(4, 6)) is with_auxiliary


@pytest.mark.parametrize("name", Advantages._fields)
def test_advantages_of_another_shape_are_refused_by_name(name):
    wrong = good_advantages()._replace(**{name: torch.rand(6)})
    shape = r"\(4,\)" if name == "weights" else r"\(4, 6\)"
    with pytest.raises(ValueError, match=rf"^{name} of the objective must be {shape}, not \(6,\)$"):
        check_advantages(wrong, torch.rand(4, 6))


@pytest.mark.parametrize("name", ["main", "weights", "transformed"])
def test_missing_advantages_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"^{name} of the objective must be .*, not None$"):
        check_advantages(good_advantages()._replace(**{name: None}), torch.rand(4, 6))


def test_advantages_that_are_not_finite_are_refused_by_name():
    main = torch.zeros(4, 6)
    main[2, 5] = math.nan
    with pytest.raises(ValueError, match=r"^main\[2, 5\] of the objective is nan"):
        check_advantages(good_advantages()._replace(main=main), torch.rand(4, 6))


def test_what_is_not_advantages_is_refused():
    with pytest.raises(TypeError, match="an objective returns Advantages, not Tensor"):
        check_advantages(torch.rand(4, 6), torch.rand(4, 6))

"""Agreement of rewards with the truth within groups, against scipy and simulated groups."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from scipy import stats

from bpgo.analysis.statistics import agreement, variance_share
from bpgo.objective import group_advantages
from tests.analysis.statistics.simulation import QUICK, SCALE, SHIFT, WHOLE


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


def test_large_groups_have_the_share_of_signal_that_the_noise_leaves():
    random = np.random.default_rng(9)
    truth = random.normal(size=(20, 4000))
    share = variance_share(truth + 2 * random.normal(size=truth.shape), truth)
    assert share.mean() == pytest.approx(1 / 5, abs=0.01)


def test_rewards_that_know_nothing_have_the_floor_of_the_docstring():
    random = np.random.default_rng(10)
    nothing = variance_share(*random.normal(size=(2, 4000, 8)))
    assert nothing.mean() == pytest.approx(1 / 7, abs=0.01)
    assert agreement(*random.normal(size=(2, 4000, 8))).mean() == pytest.approx(0, abs=0.02)


@QUICK
@given(arrays(float, (2, 3, 4), elements=WHOLE), SCALE, SHIFT)
def test_groups_ignore_shift_and_scale(pair, scale, shift):
    rewards, truth = pair
    for measure in (agreement, variance_share):
        changed = measure(scale * rewards + shift, scale * truth - shift)
        assert changed == pytest.approx(measure(rewards, truth), nan_ok=True, abs=1e-9)
    assert agreement(-rewards, truth) == pytest.approx(-agreement(rewards, truth))
    assert agreement(truth, rewards) == pytest.approx(agreement(rewards, truth))

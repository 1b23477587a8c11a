"""Numbers of runs: learning curves, examples among prompts, and differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bpgo.analysis import runs
from bpgo.analysis.runs import first_reaching, oscillation
from tests.analysis.statistics.simulation import QUICK, SCALE, SHIFT, WHOLE

# ------------------------------------------------------------------------------------------ curves


def test_oscillation_in_closed_form():
    t = np.arange(2000)
    rise = 1600 * 0.001  # between the middles of the first and the last fifth
    noise = 0.01 * np.random.default_rng(7).normal(size=(3, 2000))
    assert oscillation(0.001 * t) == pytest.approx(0, abs=1e-9)
    assert oscillation(0.001 * t + noise) == pytest.approx([6**0.5 * 0.01 / rise] * 3, rel=0.05)
    # The second difference of a wave is -2 (1 - cos w) times the wave.
    wave = 0.1 * np.cos(2 * np.pi * t / 20)
    expected = 2 * (1 - np.cos(2 * np.pi / 20)) * 0.1 / 2**0.5 / rise
    assert oscillation(0.001 * t + wave) == pytest.approx(expected, rel=1e-3)
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
    expected = pytest.approx(oscillation(curve), nan_ok=True, rel=1e-6, abs=1e-9)
    for same in (scale * curve + shift, -curve, curve[::-1]):
        assert oscillation(same) == expected


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


# ----------------------------------------------------------------------------------------- prompts


def start_of(level, rewards):
    level = np.array(level)
    clear, vague = runs.clear_and_vague(level, torch.tensor(rewards))
    order = np.argsort(-level, kind="stable")
    return runs.Start(None, [], level, np.zeros(len(level)), order, clear, vague)


def test_examples_are_a_clear_prompt_and_the_first_of_the_ambiguous_levels():
    level = [0.5, 1.0, 0.0, 1.0, 0.25, 0.0, 1.0, 0.25]
    rewards = [[0.5, 0.5]] * 8
    rewards[3] = [0.1, 0.9]  # right once, and not always
    rewards[2] = [0.5, 0.6]
    start = start_of(level, rewards)
    assert (
        start.clear == 3 and start.vague == 5
    )  # of the two at level 0, the one that differs least
    assert start.examples(2) == [3, 4, 2]
    assert start.examples(4) == [3, 1, 0, 4, 2]


def test_examples_of_prompts_without_a_level_are_the_last_ones():
    rewards = [[0.1, 0.1], [0.1, 0.9], [0.2, 0.3], [0.0, 1.0]]
    assert start_of([np.nan] * 4, rewards).examples(2) == [1, 2, 3]


# ------------------------------------------------------------------------------------- differences


def test_outcomes_leave_out_what_is_nowhere_defined_and_add_accuracy_on_specified_prompts():
    scores = {
        "accuracy": [[1.0, 0.0], [1.0, 1.0]],
        "first_frame": [[None, None]] * 2,
        "diversity": [[None, None], [0.5, 0.5]],
    }
    logs = {"grpo": [runs.Run([], [], [{"scores": scores}, {"scores": scores}])]}
    first, parts = runs.outcome(logs, bits=np.array([0.0, 3.0]))
    assert list(first) == list(parts["grpo"]) == ["accuracy", "diversity", "accuracy_specified"]
    assert first["accuracy_specified"][0, 0] == 0.5 and np.isnan(first["accuracy_specified"][0, 1])
    row = runs.contrasts(parts, first, "before").splitlines()[1]
    assert row.split() == ["accuracy", "+0.000", "±", "0.000"]


def test_a_contrast_is_over_seeds_if_there_are_several_and_else_over_prompts():
    before = np.array([[0.0, 0.0, np.nan]])
    middle, half = runs.contrast(np.array([[1.0, 3.0, 5.0]]), before)
    assert (middle, half) == pytest.approx((2.0, 12.706), abs=1e-3)  # t of two prompts
    middle, half = runs.contrast(np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 5.0]]), before)
    assert (middle, half) == pytest.approx((2.0, 0.0))  # both seeds gain 2 on average


def test_correlations_of_weights_leave_out_what_is_not_known():
    weights, level = np.array([0.5, 1.0, 1.5]), np.array([1.0, 0.5, 0.0])
    text = runs.weight_correlations(weights, level=level, accuracy=None)
    assert text == "rank correlation of the weight with level: -1.00"

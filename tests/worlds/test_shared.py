"""What the worlds have in common: entropies, distances and diversity, by brute force."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bpgo.prompts import Prompt
from bpgo.worlds import shared
from bpgo.worlds.forms import SHAPES, cover
from tests.worlds.common import entropy, examples, generator


def test_entropy_in_bits():
    assert shared.entropy([1.0] * 8) == pytest.approx(3)
    assert shared.entropy([0.5, 0.25, 0.25]) == pytest.approx(1.5)
    assert shared.entropy([2, 1, 1, 0]) == pytest.approx(1.5)  # need not sum to 1
    assert math.copysign(1, shared.entropy([3.0])) == 1  # 0, not -0
    weights = torch.rand(50, generator=generator()).tolist()
    assert shared.entropy(weights) == pytest.approx(entropy(weights))


def test_choices_have_their_probabilities():
    rng = random.Random(0)
    drawn = Counter(shared.choose({"a": 0.7, "b": 0.2, "c": 0.1}, rng) for _ in range(10000))
    assert drawn["a"] / 10000 == pytest.approx(0.7, abs=0.025)
    assert drawn["c"] / 10000 == pytest.approx(0.1, abs=0.015)


def test_probabilities_of_captions_are_those_of_all_their_descriptions():
    wordings = {1: {"one": 0.5, "digit": 0.5}, 2: {"digit": 1.0}}
    found = shared.caption_probabilities({1: 0.4, 2: 0.6}, wordings.__getitem__)
    assert found == pytest.approx({"one": 0.2, "digit": 0.8})


def test_the_nearest_image_is_found():
    pixels = torch.rand(20, 50, generator=generator())
    bank = torch.rand(30, 50, generator=generator(1))
    distances = (pixels[:, None] - bank).square().sum(2).sqrt()
    distance, index = shared.nearest(pixels, bank)
    torch.testing.assert_close(distance, distances.min(1).values, atol=1e-4, rtol=0)
    assert torch.equal(index, distances.argmin(1))


@examples
@given(values=st.lists(st.integers(0, 3), min_size=2, max_size=8), possible=st.integers(2, 9))
def test_diversity_is_that_of_all_ordered_pairs(values, possible):
    n = len(values)
    differ = [values[i] != values[j] for i in range(n) for j in range(n) if i != j]
    expected = sum(differ) / len(differ) / (1 - 1 / possible)
    assert shared.relative_diversity(values, possible) == pytest.approx(expected)


def test_a_group_has_one_text_and_one_image():
    def size(scenes, prompt):
        return None if prompt == "none" else float(len(scenes)) + scenes[0]

    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    prompts = [Prompt("it", red), Prompt("it", red), Prompt("it", blue), "it", "none", "it", "it"]
    found = shared.diversity_by_group(size, [0, 1, 2, 3, 4, 5, 6], prompts)
    assert found[:4].tolist() == [2, 2, 3, 4]
    assert found[4].isnan()
    assert found[5:].tolist() == [7, 7]


def test_error_rates_count_what_is_not_recognised_as_misread():
    assert shared.error_rate([1, 2, None, 4], [1, 3, 3, 4]) == {
        "misread": 0.5,
        "unrecognised": 0.25,
    }
    with pytest.raises(ValueError):
        shared.error_rate([1], [1, 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_cover_is_anti_aliased(shape):
    """Sixteen times as many pixels give the same area, and only the outline has grey pixels."""
    areas = []
    for step in (1.0, 0.25):
        axis = torch.arange(-16, 16, step) + step / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        covered = cover(shape, x / step, y / step, 8.0 / step)
        assert covered.min() == 0
        assert covered.max() == 1
        grey = ((covered > 0) & (covered < 1)).float().mean()
        assert 0 < grey < 0.12
        areas.append(covered.sum().item() * step**2)
    assert areas[0] == pytest.approx(areas[1], rel=0.02)

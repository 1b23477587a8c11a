"""The images of the digits world: splits that share nothing, and varied samples of them."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.worlds.digits.oracle import Judge
from bpgo.worlds.digits.scenes import (
    SPLITS,
    describes,
    enlarge,
    handwriting,
    rows_of,
    sample_pixels,
    sample_scenes,
)
from tests.worlds.common import generator


def test_the_splits_share_no_image_and_leave_none_out():
    rows = [set(rows_of(split).tolist()) for split in SPLITS]
    assert [len(r) for r in rows] == list(SPLITS.values())
    assert set().union(*rows) == set(range(1797))
    # Nor do two rows of different splits look alike.
    looks = [{tuple(image.flatten().tolist()) for image in handwriting(s)[0]} for s in SPLITS]
    assert sum(map(len, looks)) == len(set().union(*looks)) == 1797


@pytest.mark.parametrize("split", SPLITS)
def test_every_digit_is_about_as_frequent(split):
    expected = SPLITS[split] / 10
    counts = handwriting(split)[1].bincount(minlength=10)
    assert (counts - expected).abs().max() < 4 * math.sqrt(expected)


def test_images_are_those_of_scikit_learn_in_grey():
    from sklearn.datasets import load_digits

    found, (levels, digits) = load_digits(), handwriting("judge_test")
    rows = rows_of("judge_test")
    assert (found.images[rows] == levels.numpy()).all()
    assert (found.target[rows] == digits.numpy()).all()
    images = enlarge(levels)
    assert images.shape == (300, 3, 32, 32)
    assert images.min() == 0
    assert images.max() == 1
    assert torch.equal(images[:, 0], images[:, 2])
    small = Image.fromarray(found.images[rows[0]].astype(np.float32) / 16)
    expected = torch.from_numpy(np.array(small.resize((32, 32), Image.Resampling.BILINEAR)))
    torch.testing.assert_close(images[0, 0], expected, atol=1e-5, rtol=0)


def test_samples_show_their_digits_and_are_of_their_split():
    digits = sample_scenes(400, generator())
    varied = sample_pixels(digits, generator(1), "generator")
    levels, shown = handwriting("generator")
    distances = torch.cdist(varied[:, 0].flatten(1), enlarge(levels)[:, 0].flatten(1))
    nearest = shown[distances.argmin(1)]
    assert (nearest == torch.tensor(digits)).float().mean() > 0.95
    assert torch.tensor(digits).bincount(minlength=10).min() > 20
    assert not torch.equal(varied, sample_pixels(digits, generator(1), "reward"))


def test_a_description_is_the_set_of_digits_that_it_fits():
    assert describes(frozenset({4, 9}), 9)
    assert not describes(frozenset({4, 9}), 5)


def test_only_training_needs_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    handwriting.cache_clear()
    with pytest.raises(FileNotFoundError, match="pip install scikit-learn"):
        handwriting("reward")
    assert Judge().read(torch.zeros(1, 3, 32, 32)).distance.item() > 0.1

"""Pixels and prompts that no reward can score are refused with their likely cause."""

import numpy as np
import pytest
import torch

from bpgo.rewards import RewardError, checked
from bpgo.rewards.checks import check_samples
from tests.rewards.layouts import noisy_images

PROMPTS = ["a", "b", "c"]
IMAGES = noisy_images(8, 10)
VIDEOS = IMAGES[:, None].repeat(1, 5, 1, 1, 1)


def refuse(pixels, prompts, message):
    def never(pixels, prompts):
        raise AssertionError("the reward was called")

    with pytest.raises(RewardError, match=f"^reward 'mine': {message}") as refused:
        checked(never, "mine", pixels, prompts)
    return str(refused.value)


def remedied(pixels, message):
    """The pixels after the remedy that the message names, which must make them acceptable."""
    expression = message.rpartition("use ")[2] if "use " in message else "pixels / 255"
    return eval(expression, {"pixels": pixels, "x": pixels})


def test_images_and_videos_in_0_to_1_are_accepted():
    for pixels in (IMAGES, VIDEOS, IMAGES.half(), IMAGES.bfloat16(), IMAGES.double()):
        check_samples(pixels, PROMPTS, "reward 'mine'")
        check_samples(pixels, tuple(PROMPTS), "reward 'mine'")
    check_samples(torch.zeros(3, 3, 1, 1), PROMPTS, "reward 'mine'")  # black is black
    check_samples(torch.ones(3, 3, 1, 1) + 1e-4, PROMPTS, "reward 'mine'")  # half precision


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (255 * x).byte(), r"pixels must be floating-point .*, not torch.uint8: divide"),
        (lambda x: (255 * x).long(), r"pixels must be floating-point .* torch.int64: if they are"),
        (lambda x: x > 0.5, r"pixels must be floating-point .*, not torch.bool: use pixels.float"),
        (lambda x: 2 * x - 1, r"pixels must be in \[0, 1\], but they are from -1 to 1: if they"),
        (lambda x: 255 * x, r"pixels must be in \[0, 1\], but they are from 0 to 255: if they are"),
        (
            lambda x: 5 * x - 2,
            r"pixels must be in \[0, 1\], but they are from -2 to 3: undo a norm",
        ),
        (lambda x: x.movedim(-3, -1), "pixels must be .*, not .*: the colours come last, so use"),
    ],
)
@pytest.mark.parametrize("pixels", [IMAGES, VIDEOS], ids=["images", "videos"])
def test_the_remedy_makes_pixels_acceptable(make, message, pixels):
    pixels = pixels.clone()
    pixels[0, ..., 0, 0], pixels[0, ..., 0, 1] = 0, 1
    made = make(pixels)
    told = refuse(made, PROMPTS, message)
    if "undo a normalisation" in told:
        return
    right = remedied(made, told)
    check_samples(right, PROMPTS, "reward 'mine'")
    if "torch.bool" not in told:
        torch.testing.assert_close(right.float(), pixels, atol=1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("pixels", "count"),
    [
        (VIDEOS.transpose(1, 2), 3),
        (IMAGES[0], 1),
        (IMAGES[0].permute(1, 2, 0), 1),
        (IMAGES[:, :1], 3),
        (VIDEOS[:, :, :1], 3),
        (torch.cat([IMAGES, IMAGES[:, :1]], 1), 3),
    ],
)
def test_the_remedy_of_a_wrong_shape_makes_pixels_acceptable(pixels, count):
    message = refuse(pixels, PROMPTS[:count], r"pixels must be \(B, 3, H, W\) images or .*, not \(")
    check_samples(remedied(pixels, message), PROMPTS[:count], "reward 'mine'")


@pytest.mark.parametrize(
    "shape", [(), (3,), (3, 8), (3, 2, 8, 8), (3, 5, 3, 3, 8, 8), (0, 3, 8, 8)]
)
def test_other_shapes_are_refused(shape):
    refuse(torch.zeros(shape), PROMPTS, r"pixels must be \(B, 3, H, W\) images or \(B, F, 3")


def test_what_is_no_tensor_is_refused():
    for pixels in (IMAGES.numpy(), list(IMAGES), None):
        refuse(pixels, PROMPTS, f"pixels must be a tensor, .*, not {type(pixels).__name__} ")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_pixels_that_are_not_finite_are_not_the_fault_of_the_reward(value):
    for pixels in (IMAGES.clone(), VIDEOS.clone()):
        pixels[1, ..., 2, 3] = -float(value)
        pixels[2, ..., 0, 0] = float(value)
        told = refuse(pixels, PROMPTS, "the pixels that it was given are not finite: sample 1")
        assert f"for prompt 'b', contains {value} (2 of 3 samples)" in told
        assert "returned" not in told


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("abc", r"prompts must be a list of strings, not str: pass \[prompt\]"),
        (
            np.array(["a", "b", "c"]),
            r"prompts must be a list of strings, not ndarray: pass list\(pr",
        ),
        (
            iter(PROMPTS),
            r"prompts must be a list of strings, not list_iterator: pass list\(prompts\)",
        ),
        (["a", None, "c"], r"prompts must be strings, but prompts\[1\] is NoneType: None"),
        (["a", "b", {"prompt": "c"}], r"prompts must be strings, but prompts\[2\] is dict"),
        (["a", "b"], "3 images for 2 prompts"),
        ([], "3 images for 0 prompts"),
    ],
)
def test_what_is_no_list_of_as_many_strings_is_refused(prompts, message):
    refuse(IMAGES, prompts, message)

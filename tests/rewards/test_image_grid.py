"""The grid that makes an image of a video, and ImageReward on it."""

import pytest
import torch

from bpgo.rewards import RewardError, load_reward
from bpgo.rewards.image_grid import grid, square
from tests.rewards.video_clip_layout import PROMPTS, noisy_videos

SHAPES = {  # rows and columns
    1: (1, 1),
    2: (1, 2),
    3: (2, 2),
    5: (2, 3),
    7: (3, 3),
    9: (3, 3),
    10: (3, 4),
    13: (4, 4),
    81: (9, 9),
}


@pytest.mark.parametrize(("count", "shape"), SHAPES.items())
def test_the_grid_is_read_row_by_row(count, shape):
    rows, columns = shape
    pixels = noisy_videos(count, 4, 6, batch=2)
    image = grid(pixels)
    assert image.shape == (2, 3, rows * 4, columns * 6)
    for place in range(rows * columns):
        y, x = place // columns * 4, place % columns * 6
        cell = image[:, :, y : y + 4, x : x + 6]
        assert torch.equal(cell, pixels[:, place] if place < count else torch.zeros_like(cell))


@pytest.mark.parametrize(("height", "width"), [(4, 7), (7, 4), (5, 5)])
def test_a_grid_is_made_square_with_black(height, width):
    image = torch.rand(2, 3, height, width)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    expected = torch.zeros(2, 3, side, side)
    expected[..., top : top + height, left : left + width] = image
    assert torch.equal(square(image), expected)


@pytest.mark.parametrize(("count", "across"), [(9, 3), (1, 1)])
def test_image_grid_is_image_reward_of_the_grid(image_reward_folder, count, across):
    reward = load_reward("image_grid", image_reward_folder)
    on_images = load_reward("image_reward", image_reward_folder)
    pixels = noisy_videos(count)
    rows = []
    for first in range(0, count, across):
        rows.append(torch.cat(pixels[:, first : first + across].unbind(1), dim=-1))
    expected = on_images(torch.cat(rows, dim=-2), PROMPTS)
    torch.testing.assert_close(reward(pixels, PROMPTS), expected, atol=1e-5, rtol=0)
    assert reward(pixels.bfloat16(), PROMPTS).dtype == torch.float32


def test_no_frame_is_cropped(image_reward_folder):
    """Five frames make 2 x 3, of which a centre crop would cut off half of the outer columns."""
    reward = load_reward("image_grid", image_reward_folder)
    pixels = noisy_videos(5)
    changed = pixels.clone()
    changed[:, 3, :, :, :8] = 1 - changed[:, 3, :, :, :8]
    assert (reward(pixels, PROMPTS) - reward(changed, PROMPTS)).abs().min() > 1e-3


def test_images_are_refused(image_reward_folder):
    reward = load_reward("image_grid", image_reward_folder)
    message = r"image_grid takes videos \(batch, frames, 3, height, width\)"
    with pytest.raises(RewardError, match=message):
        reward(torch.zeros(3, 3, 32, 32), PROMPTS)
    for shape in ((3, 3, 9, 32, 32), (3, 0, 3, 32, 32)):
        with pytest.raises(ValueError, match=message):
            grid(torch.zeros(shape))

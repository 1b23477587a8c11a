"""An image reward on a video: its frames arranged as one image, row by row.

The idea is that of IG-VLM (Kim et al. 2024, arXiv 2403.18406). The image reward is an ImageReward
folder (image_reward.py), best trained on such grids. The score is on the scale of that folder, and
there are no published weights.
"""

from __future__ import annotations

from math import ceil, isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from bpgo.rewards import image_reward


def load(path: str | Path):
    """`(model, reward)` of an ImageReward folder.

    `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32. Raises errors as
    `image_reward.load` does.
    """
    model, score_images = image_reward.load(path)  # its messages say "image_reward"

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        return score_images(square(grid(pixels.to(torch.float32))), prompts)

    score.check_prompts = score_images.check_prompts
    return model, score


def grid(videos: Tensor) -> Tensor:
    """Arrange frames in a grid: (B, F, 3, H, W) -> (B, 3, r H, c W).

    There are c = ceil(sqrt(F)) columns and r = ceil(F / c) rows. Frame i is at row i // c, column
    i % c; cells that are left over are 0 (black). 9 frames make 3 x 3, 5 make 2 x 3, 81 make 9 x 9.
    Raises ValueError for another shape, and for videos without frames.
    """
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.shape[1]:
        raise ValueError(
            f"image_grid takes videos (batch, frames, 3, height, width) in [0, 1], "
            f"not {tuple(videos.shape)}"
        )
    batch, frames, channels, height, width = videos.shape
    columns = isqrt(frames - 1) + 1
    rows = ceil(frames / columns)
    padded = pad(videos, (0, 0, 0, 0, 0, 0, 0, rows * columns - frames))
    cells = padded.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(batch, channels, rows * height, columns * width)


def square(images: Tensor) -> Tensor:
    """Pad with black on both sides: (B, 3, H, W) -> (B, 3, S, S) with S = max(H, W).

    A centre crop then cuts off no frame.
    """
    height, width = images.shape[-2:]
    down, right = max(width - height, 0), max(height - width, 0)
    return pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))

"""A reward of pictures on a video: its frames as one picture, read row by row (the idea of IG-VLM, Kim et al. 2024, arXiv 2403.18406).

The picture reward is an ImageReward folder (image_reward.py), best trained on such grids; the score is on that folder's own scale.
"""

from __future__ import annotations

from math import ceil, isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from bpgo.rewards import image_reward


def grid(videos: Tensor) -> Tensor:
    """(B, F, 3, H, W) -> (B, 3, r H, c W), with c = ceil(sqrt(F)) columns and r = ceil(F / c) rows; places left over are 0 (black).

    Frame i is at row i // c, column i % c: 9 frames make 3 x 3, 5 make 2 x 3, 81 make 9 x 9.
    """
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.shape[1]:
        raise ValueError(
            f"image_grid takes videos (batch, frames, 3, height, width) in [0, 1], not {tuple(videos.shape)}"
        )
    batch, frames, channels, height, width = videos.shape
    columns = isqrt(frames - 1) + 1
    rows = ceil(frames / columns)
    full = pad(videos, (0, 0, 0, 0, 0, 0, 0, rows * columns - frames)).unflatten(1, (rows, columns))
    return full.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * height, columns * width)


def square(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, S, S), S = max(H, W), with black at both sides: a centre crop then cuts no frame away."""
    height, width = pictures.shape[-2:]
    down, right = max(width - height, 0), max(height - width, 0)
    return pad(pictures, (right // 2, right - right // 2, down // 2, down - down // 2))


def load(path: str | Path):
    """`(model, reward)` of an ImageReward folder: `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32."""
    model, score_pictures = image_reward.load(path)

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        return score_pictures(square(grid(pixels.to(torch.float32))), prompts)

    return model, score

"""The images of the digits world: handwriting from scikit-learn, shown at 32 x 32 pixels.

A scene is a digit, 0 to 9, and a description is the set of digits that it fits. The 1797 images of
8 x 8 grey levels (optical recognition of handwritten digits, UCI, CC BY 4.0) are divided by a fixed
permutation into splits that share no image: one for the generator, one for the rewards, one to
train the oracle, and one to measure its error.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

Scene = int
SIDE = 32  # pixels
LEVELS = 16  # of grey, above black
SPLITS = {"generator": 600, "reward": 500, "judge_train": 397, "judge_test": 300}


def all_scenes() -> tuple[int, ...]:
    """The ten digits, each equally likely in the world."""
    return tuple(range(10))


def describes(description: frozenset[int], scene: int) -> bool:
    """Whether the description fits the digit."""
    return scene in description


def rows_of(split: str) -> Tensor:
    """Rows of scikit-learn's `load_digits()` that belong to a split."""
    order = torch.randperm(sum(SPLITS.values()), generator=torch.Generator().manual_seed(30))
    return dict(zip(SPLITS, order.split(list(SPLITS.values())), strict=True))[split]


@cache
def handwriting(split: str) -> tuple[Tensor, Tensor]:
    """(N, 8, 8) uint8 grey levels in 0-16, and the (N,) digits that they show.

    Raises FileNotFoundError if scikit-learn, which has the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise FileNotFoundError(
            "the images of the digits world come with scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from None
    found, rows = load_digits(), rows_of(split)
    levels, digits = torch.from_numpy(found.images)[rows], torch.from_numpy(found.target)[rows]
    return levels.to(torch.uint8), digits.long()


def enlarge(levels: Tensor) -> Tensor:
    """(N, 8, 8) grey levels as (N, 3, 32, 32) images in [0, 1], by bilinear interpolation."""
    grey = levels[:, None].float() / LEVELS
    grey = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return grey.expand(-1, 3, -1, -1)


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, each turned by up to 8 degrees, scaled by up to 8 % and moved by 1.5 pixels."""
    limits = torch.tensor([math.radians(8), 0.08, 3 / SIDE, 3 / SIDE])[:, None]
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    turn, scale, right, down = draws * limits
    cos, sin = turn.cos() * (1 + scale), turn.sin() * (1 + scale)
    maps = torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def sample_scenes(n: int, generator: torch.Generator) -> list[int]:
    """n digits, drawn uniformly."""
    return torch.randint(10, (n,), generator=generator).tolist()


def sample_pixels(
    scenes: list[int], generator: torch.Generator, split: str = "generator"
) -> Tensor:
    """(B, 3, 32, 32) varied images of the digits, from random images of a split."""
    levels, shown = handwriting(split)
    wanted = torch.tensor(scenes)
    rows = torch.empty(len(scenes), dtype=torch.long)
    for digit in all_scenes():
        places = (wanted == digit).nonzero().flatten()
        candidates = (shown == digit).nonzero().flatten()
        chosen = torch.randint(len(candidates), (len(places),), generator=generator)
        rows[places] = candidates[chosen]
    return vary(enlarge(levels)[rows], generator)

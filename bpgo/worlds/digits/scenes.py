"""The pictures of the digits world: scikit-learn's handwriting, 8 x 8 grey levels of 0-16, shown at 32 x 32 pixels.

The 1797 pictures (optical recognition of handwritten digits, UCI, CC BY 4.0) fall into splits that share none, by a fixed permutation:
one for the generator, one for the rewards, one for the judge, of which a part is kept to measure the judge's error.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32
LEVELS = 16  # of grey, above black
SPLITS = {"generator": 600, "reward": 500, "judge_train": 397, "judge_test": 300}


def rows_of(split: str) -> Tensor:
    """Rows of scikit-learn's `load_digits()` that belong to a split."""
    order = torch.randperm(sum(SPLITS.values()), generator=torch.Generator().manual_seed(30))
    return dict(zip(SPLITS, order.split(list(SPLITS.values())), strict=True))[split]


@cache
def handwriting(split: str) -> tuple[Tensor, Tensor]:
    """(N, 8, 8) uint8 grey levels in 0-16 and the (N,) digits they show. Raises FileNotFoundError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise FileNotFoundError(
            "the handwriting comes with scikit-learn, which is not here: pip install scikit-learn"
        ) from None
    found, rows = load_digits(), rows_of(split)
    return torch.from_numpy(found.images)[rows].to(torch.uint8), torch.from_numpy(found.target)[
        rows
    ].long()


def show(levels: Tensor) -> Tensor:
    """(N, 8, 8) grey levels as (N, 3, 32, 32) pictures in [0, 1], bilinear."""
    grey = F.interpolate(
        levels[:, None].float() / LEVELS, size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
    return grey.expand(-1, 3, -1, -1)


def vary(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures each turned by up to 8 degrees, scaled by up to 8 % and moved by up to 1.5 pixels."""
    turn, scale, right, down = (
        torch.rand(4, len(pictures), generator=generator) * 2 - 1
    ) * torch.tensor([math.radians(8), 0.08, 3 / SIDE, 3 / SIDE])[:, None]
    cos, sin = turn.cos() * (1 + scale), turn.sin() * (1 + scale)
    maps = torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)
    return F.grid_sample(
        pictures,
        F.affine_grid(maps, list(pictures.shape), align_corners=False),
        align_corners=False,
    )


def sample_pictures(split: str, n: int, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """n varied pictures of a split and the digits they show: each digit as often as any, then one of its pictures."""
    levels, shown = handwriting(split)
    digits = torch.randint(10, (n,), generator=generator)
    rows = torch.empty(n, dtype=torch.long)
    for digit in range(10):
        mine = (digits == digit).nonzero().flatten()
        theirs = (shown == digit).nonzero().flatten()
        rows[mine] = theirs[torch.randint(len(theirs), (len(mine),), generator=generator)]
    return vary(show(levels)[rows], generator), digits.tolist()

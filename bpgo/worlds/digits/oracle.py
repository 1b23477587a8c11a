"""The judge: reads a picture back into a digit, and from that, whether it shows what its prompt says.

Three small convolutional networks, trained on pictures that neither generator nor rewards have seen; their mean probabilities over the
ten digits and NOTHING (noise, collages, two digits on top of each other, negatives) are the reading. It errs, unlike the shapes world's
oracle: its card states how often, on its test split. Needs no scikit-learn: the pictures that it compares with lie beside its weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bpgo.files import check_safetensors, resolve
from bpgo.worlds.digits.captions import parse
from bpgo.worlds.digits.scenes import SIDE, show
from bpgo.worlds.shapes.oracle import of_groups

NOTHING = 10  # the class after the ten digits
CONFIDENT = 0.6  # probability below which a picture shows no digit
MEMBERS = 3


def judge_network() -> nn.ModuleList:
    """The members, of random weights: (B, 1, 32, 32) grey in [0, 1] -> (B, 11) logits."""
    return nn.ModuleList(
        nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(512, 11),
        )
        for _ in range(MEMBERS)
    )


class Judge:
    """A judge from a folder with model.safetensors and pictures.safetensors (`levels` (N, 8, 8) uint8, `digits` (N,) uint8).

    Raises FileNotFoundError or ValueError for missing or damaged files.
    """

    def __init__(self, path: str | Path = "tiny-digits-judge") -> None:
        folder = Path(resolve(path))
        check_safetensors(folder)
        self.members = judge_network()
        self.members.load_state_dict(
            {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
        )
        self.members.eval().requires_grad_(False)
        kept = load_file(folder / "pictures.safetensors")
        self.levels, self.digits = kept["levels"], kept["digits"].long()
        self.world = show(self.levels)

    def probabilities(self, pictures: Tensor) -> Tensor:
        """(B, 11) for (B, 3, 32, 32) pictures in [0, 1]: the ten digits, and NOTHING."""
        grey = _checked(pictures).mean(1, keepdim=True)
        return torch.stack([member(grey).softmax(1) for member in self.members]).mean(0)

    def read(self, pictures: Tensor) -> list[int | None]:
        """The digit that each picture shows, None where none has a probability above CONFIDENT."""
        top, digit = self.probabilities(pictures).max(1)
        seen = (top > CONFIDENT) & (digit != NOTHING)
        return [d if s else None for d, s in zip(digit.tolist(), seen.tolist(), strict=True)]

    def distances(self, pictures: Tensor) -> Tensor:
        """(B,) RMS pixel distance to the nearest of the judge's pictures, in [0, 1]."""
        nearest = torch.cdist(_checked(pictures).flatten(1), self.world.flatten(1)).min(1).values
        return nearest / self.world[0].numel() ** 0.5


def _checked(pictures: Tensor) -> Tensor:
    if pictures.ndim != 4 or pictures.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(
            f"the judge reads (B, 3, {SIDE}, {SIDE}) pictures of the digits world, not {tuple(pictures.shape)}"
        )
    return pictures.detach().float().cpu()


shipped = cache(Judge)


def share_right(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) graded truth in [0, 1]: the judge's probability that a picture shows one of the digits that its prompt fits."""
    fits = torch.tensor([[d in fitting for d in range(11)] for fitting in map(parse, prompts)])
    return (shipped().probabilities(pictures) * fits).sum(1)


def accuracy(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) 1.0 where the picture shows a digit that its prompt fits, else 0.0. Same call as a reward."""
    return torch.tensor(
        [float(d in parse(p)) for d, p in zip(shipped().read(pictures), prompts, strict=True)]
    )


def distance(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) RMS pixel distance to the nearest real picture, in [0, 1]; lower is better. Prompts are not used."""
    return shipped().distances(pictures)


def diversity(digits: list[int | None], prompt: str) -> float | None:
    """Diversity of a group's readings among the digits that the prompt fits: 1 as in the world, 0 when all are alike.

    The chance that two pictures of the group differ (Simpson's index, unbiased), divided by the same chance in the world, 1 - 1/digits.
    Pictures that show no digit or a wrong one are left out. None if the prompt names its digit, or fewer than two pictures are left.
    """
    fitting = parse(prompt)
    seen = [d for d in digits if d in fitting]
    if len(fitting) == 1 or len(seen) < 2:
        return None
    same = sum(seen.count(d) * (seen.count(d) - 1) for d in set(seen)) / (
        len(seen) * (len(seen) - 1)
    )
    return (1 - same) / (1 - 1 / len(fitting))


def group_diversity(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) `diversity` of the group each picture belongs to, NaN where not defined. The pictures of a prompt stand together."""
    return of_groups(diversity, shipped().read(pictures), prompts)


METRICS = {"accuracy": accuracy, "distance": distance, "diversity": group_diversity}

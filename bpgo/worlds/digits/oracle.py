"""The oracle of digits: a learned judge, with a measured error, that reads the digit of an image.

Handwriting cannot be read by an exact rule. Three small convolutional networks, trained on images
that neither the generator nor the rewards have seen, give the probabilities of the ten digits and
of NOTHING (noise, collages, two digits on top of each other, negatives); their mean is the reading.
Unlike the oracles of the other worlds, it makes errors, and its card states their rate on its test
split. It does not need scikit-learn, because its comparison images are stored with its weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bpgo.files import check_safetensors, resolve
from bpgo.worlds import shared
from bpgo.worlds.digits.captions import parse
from bpgo.worlds.digits.scenes import SIDE, enlarge

NOTHING = 10  # the class after the ten digits
CONFIDENT = 0.6  # probability below which an image shows no digit
MEMBERS = 3


class Reading(NamedTuple):
    """What the judge reads in B images.

    scenes: B digits, None where no digit has a probability above CONFIDENT. distance: (B,) RMS
    pixel distance to the nearest of the judge's images, in [0, 1]. probabilities: (B, 11), of the
    ten digits and NOTHING.
    """

    scenes: list[int | None]
    distance: Tensor
    probabilities: Tensor


def judge_network() -> nn.ModuleList:
    """The members, with random weights: (B, 1, 32, 32) grey in [0, 1] -> (B, 11) logits."""
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
    """The judge in a folder with model.safetensors and pictures.safetensors.

    The latter has `levels` (N, 8, 8) uint8 and `digits` (N,) uint8. Raises FileNotFoundError or
    ValueError for missing or damaged files.
    """

    def __init__(self, path: str | Path = "tiny-digits-judge") -> None:
        folder = Path(resolve(path))
        check_safetensors(folder)
        weights = load_file(folder / "model.safetensors")
        self.members = judge_network()
        self.members.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        self.members.eval().requires_grad_(False)
        self.images = enlarge(load_file(folder / "pictures.safetensors")["levels"])

    def read(self, pixels: Tensor) -> Reading:
        """Read (B, 3, 32, 32) images in [0, 1]. Raises ValueError for other shapes."""
        pixels = shared.check_pixels(pixels, (3, SIDE, SIDE), "digits")
        grey = pixels.mean(1, keepdim=True)
        probabilities = torch.stack([member(grey).softmax(1) for member in self.members]).mean(0)
        highest, digits = probabilities.max(1)
        recognised = (highest > CONFIDENT) & (digits != NOTHING)
        found = zip(digits.tolist(), recognised.tolist(), strict=True)
        scenes = [digit if shown else None for digit, shown in found]
        distance, _ = shared.nearest(pixels.flatten(1), self.images.flatten(1))
        return Reading(scenes, distance / pixels[0].numel() ** 0.5, probabilities)


shipped = cache(Judge)


def read(pixels: Tensor) -> Reading:
    """Read (B, 3, 32, 32) images in [0, 1] with the shipped judge. ValueError for other shapes."""
    return shipped().read(pixels)


def measure(pixels: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """(B,) values of each metric. Samples of one prompt must be adjacent.

    accuracy: 1.0 where the image shows a digit that its prompt fits, else 0.0. distance: RMS pixel
    distance to the nearest real image, in [0, 1]; lower is better. diversity: `diversity` of the
    images of the prompt, NaN where it is not defined.
    """
    digits, distance, _ = read(pixels)
    accurate = [digit in parse(prompt) for digit, prompt in zip(digits, prompts, strict=True)]
    return {
        "accuracy": torch.tensor(accurate, dtype=torch.float32),
        "distance": distance,
        "diversity": shared.diversity_by_group(diversity, digits, prompts),
    }


def share_right(pixels: Tensor, prompts: list[str]) -> Tensor:
    """(B,) probability, in [0, 1], that an image shows one of the digits that its prompt fits."""
    fits = torch.tensor([[digit in parse(prompt) for digit in range(11)] for prompt in prompts])
    return (read(pixels).probabilities * fits).sum(1)


def diversity(scenes: list[int | None], prompt: str) -> float | None:
    """Diversity of a group in what the prompt leaves open: 1 as in the world, 0 if all are alike.

    `shared.relative_diversity` among the digits that the prompt fits. Images that show no digit or
    another one are left out. None if the prompt names its digit, or if fewer than two images are
    left.
    """
    fitting = parse(prompt)
    seen = [digit for digit in scenes if digit in fitting]
    if len(fitting) == 1 or len(seen) < 2:
        return None
    return shared.relative_diversity(seen, len(fitting))


def error_rate(pixels: Tensor, scenes: list[int]) -> dict[str, float]:
    """How often the shipped judge misreads images of known digits: {misread, unrecognised}."""
    return shared.error_rate(read(pixels).scenes, scenes)

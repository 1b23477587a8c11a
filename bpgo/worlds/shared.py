"""What the worlds have in common: probabilities of captions, and what their oracles compute."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from bpgo.prompts import key_of

Item = TypeVar("Item", bound=Hashable)

# ---------------------------------------------------------------------------------------- captions


def entropy(weights: Collection[float]) -> float:
    """Entropy, in bits, of a distribution with these weights, which need not sum to 1."""
    total = sum(weights)
    return -sum(w / total * math.log2(w / total) for w in weights if w) + 0.0


def choose(probabilities: Mapping[Item, float], rng: random.Random) -> Item:
    """Draw one key of a distribution."""
    return rng.choices(list(probabilities), weights=probabilities.values())[0]


def caption_probabilities(
    descriptions: Mapping[Item, float], wordings: Callable[[Item], Mapping[str, float]]
) -> Counter[str]:
    """p(caption | scene), from p(description | scene) and p(caption | description)."""
    captions: Counter[str] = Counter()
    for description, probability in descriptions.items():
        for caption, share in wordings(description).items():
            captions[caption] += probability * share
    return captions


# ----------------------------------------------------------------------------------------- oracles


def check_pixels(pixels: Tensor, shape: tuple[int, ...], world: str) -> Tensor:
    """The pixels as float32 on the CPU, detached. Raises ValueError if they are not (B, *shape)."""
    if tuple(pixels.shape[1:]) != shape:
        expected = ", ".join(["B", *map(str, shape)])
        raise ValueError(
            f"the oracle of the {world} world reads pixels of shape ({expected}), not "
            f"{tuple(pixels.shape)}: evaluation.metrics must name the world the generator shows"
        )
    return pixels.detach().float().cpu()


def nearest(pixels: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) Euclidean distances of (B, D) pixels to the nearest of (M, D) images, and its index."""
    return torch.cdist(pixels, bank, compute_mode="use_mm_for_euclid_dist").min(1)


def relative_diversity(values: Sequence[Hashable], possible: int) -> float:
    """Diversity of two or more values: 1 for uniform draws from `possible` values, 0 if all agree.

    This is the probability that two of the values differ (Simpson's index, unbiased), divided by
    the same probability for uniform draws, 1 - 1 / possible.
    """
    pairs = len(values) * (len(values) - 1)
    same = sum(count * (count - 1) for count in Counter(values).values()) / pairs
    return (1 - same) / (1 - 1 / possible)


def diversity_by_group(
    diversity: Callable[[list, str], float | None], scenes: list, prompts: list[str]
) -> Tensor:
    """(B,) diversity of the group that each sample belongs to, NaN where `diversity` is None.

    A group is a run of adjacent samples with the same prompt: the same text and the same image.
    """
    values: list[float] = []
    for _, group in itertools.groupby(range(len(prompts)), key=lambda i: key_of(prompts[i])):
        rows = list(group)
        value = diversity([scenes[i] for i in rows], prompts[rows[0]])
        values += [math.nan if value is None else value] * len(rows)
    return torch.tensor(values)


def error_rate(read: list, scenes: list) -> dict[str, float]:
    """Shares of the readings that are wrong.

    misread: read as another scene or not recognised. unrecognised: not recognised (None).
    """
    wrong = sum(a != b for a, b in zip(read, scenes, strict=True))
    return {
        "misread": wrong / len(scenes),
        "unrecognised": sum(scene is None for scene in read) / len(scenes),
    }

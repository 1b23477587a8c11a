"""The oracle: reads a picture back into a scene, and from that, whether it shows what its prompt says.

The picture is compared with a bank of drawn ones (every thing, moved by whole pixels); the nearest names its attributes, and how far
that nearest one is (root mean square over pixels) is the picture's distance to the world. A picture too far from
any scene, or nearer to the empty background, shows nothing: a reward cannot be gamed past the oracle with a blur or a pile of
shapes. The error rate of the oracle, on clean drawings and on autoencoded ones, is measured by `error_rate` and stands in the
checkpoints' cards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from bpgo.worlds.shapes.captions import leave_out, parse
from bpgo.worlds.shapes.scenes import (
    BACKGROUND,
    PAIR_CENTRES,
    SIDE,
    VALUES,
    Scene,
    Thing,
    all_scenes,
    draw,
    says,
)

RECOGNISED = 0.10  # RMS pixel distance beyond which a picture shows no scene; 99.9 % of autoencoded drawings are within 0.076
SHIFTS = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2)  # (9, 2) pixels
LOOKS = [Thing(shape, colour) for shape in VALUES["shape"] for colour in VALUES["colour"]]


@dataclass(frozen=True)
class Reading:
    """What the oracle sees: B scenes, None where nothing is recognised, and (B,) RMS distances to the nearest drawing."""

    scenes: list[Scene | None]
    distance: Tensor


def _halves(relation: str) -> list[tuple[slice, slice]]:
    """Rows and columns of the half picture that each thing of a pair lies in."""
    whole, low, high = slice(0, SIDE), slice(0, SIDE // 2), slice(SIDE // 2, SIDE)
    return [(whole, low), (whole, high)] if relation == "left" else [(low, whole), (high, whole)]


@cache
def _bank() -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Drawings to compare with: single things (240 * 9, 3072), and for each relation its two halves (24 * 9, 1536)."""
    singles = [scene for scene in all_scenes(1) for _ in SHIFTS]
    shifts = SHIFTS.repeat(len(all_scenes(1)), 1)[:, None].expand(-1, 2, -1)
    pairs = {}
    for relation in PAIR_CENTRES:
        scenes = [Scene((look, look), relation) for look in LOOKS for _ in SHIFTS]
        pictures = draw(scenes, SHIFTS.repeat(len(LOOKS), 1)[:, None].expand(-1, 2, -1))
        pairs[relation] = [
            pictures[:, :, rows, columns].flatten(1) for rows, columns in _halves(relation)
        ]
    return draw(singles, shifts).flatten(1), pairs


def _nearest(pictures: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) smallest squared distance to a bank of (M, D) drawings, and (B,) index of the thing there (9 shifts each)."""
    squared, index = (
        torch.cdist(pictures, bank, compute_mode="use_mm_for_euclid_dist").square().min(1)
    )
    return squared, index // len(SHIFTS)


def read(pictures: Tensor) -> Reading:
    """Read (B, 3, 32, 32) pictures in [0, 1] back into scenes."""
    if pictures.ndim != 4 or pictures.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(
            f"the oracle reads (B, 3, {SIDE}, {SIDE}) pictures of the shapes world, not {tuple(pictures.shape)}"
        )
    pictures = pictures.detach().float().cpu()
    singles, pairs = _bank()
    squared, things = _nearest(pictures.flatten(1), singles)
    scenes = [all_scenes(1)[i] for i in things.tolist()]
    for relation, banks in pairs.items():
        halves = [pictures[:, :, rows, columns].flatten(1) for rows, columns in _halves(relation)]
        (first, a), (second, b) = (
            _nearest(half, bank) for half, bank in zip(halves, banks, strict=True)
        )
        for i in (first + second < squared).nonzero().flatten().tolist():
            scenes[i] = Scene((LOOKS[a[i]], LOOKS[b[i]]), relation)
        squared = torch.minimum(squared, first + second)
    distance = (squared / pictures[0].numel()).sqrt()
    empty = (pictures - BACKGROUND).square().flatten(1).sum(1)
    seen = (distance <= RECOGNISED) & (squared < empty)
    return Reading(
        [s if shown else None for s, shown in zip(scenes, seen.tolist(), strict=True)], distance
    )


def accuracy(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) 1.0 where the picture shows all that its prompt says, else 0.0. Same call as a reward."""
    scenes = read(pictures).scenes
    return torch.tensor(
        [float(s is not None and says(parse(p), s)) for s, p in zip(scenes, prompts, strict=True)]
    )


def share_right(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) share of the attributes named by its prompt that the picture shows, in [0, 1]: a finer truth than `accuracy`.

    A prompt that names none asks for its number of things alone: 1 or 0.
    """
    return torch.tensor(
        [_share(parse(p), s) for s, p in zip(read(pictures).scenes, prompts, strict=True)]
    )


def _share(description: Scene, scene: Scene | None) -> float:
    names = {name for name, value in description.attributes.items() if value is not None}
    alone = [leave_out(description, names - {name}) for name in names] or [description]
    return sum(scene is not None and says(each, scene) for each in alone) / len(alone)


def distance(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) RMS pixel distance to the nearest scene of the world, in [0, 1]; lower is better. Prompts are not used."""
    return read(pictures).distance


def diversity(scenes: list[Scene | None], prompt: str) -> float | None:
    """Diversity of a group's pictures in what the prompt leaves open: 1 as in the world, 0 when all are alike.

    For each open attribute, the chance that two pictures of the group differ in it (Simpson's index, unbiased), divided by
    the same chance in the world, 1 - 1/values; averaged over the attributes. Pictures in which nothing is recognised are left out.
    None if the prompt leaves nothing open, or fewer than two pictures are recognised with the prompt's number of things.
    """
    description = parse(prompt)
    seen = [
        _as_said(description, s).attributes
        for s in scenes
        if s is not None and len(s.things) == len(description.things)
    ]
    open_names = [name for name, value in description.attributes.items() if value is None]
    if not open_names or len(seen) < 2:
        return None
    ratios = []
    for name in open_names:
        values = [attributes[name] for attributes in seen]
        same = sum(values.count(v) * (values.count(v) - 1) for v in set(values)) / (
            len(values) * (len(values) - 1)
        )
        possible = 2 if name == "relation" else len(VALUES[name.split()[0]])
        ratios.append((1 - same) / (1 - 1 / possible))
    return sum(ratios) / len(ratios)


def _as_said(description: Scene, scene: Scene) -> Scene:
    """The scene with its things in the order of a description that leaves the relation open, where only the other order fits it."""
    as_ordered = says(replace(description, relation=scene.relation), scene)
    return (
        scene
        if as_ordered or not says(description, scene)
        else replace(scene, things=scene.things[::-1])
    )


def group_diversity(pictures: Tensor, prompts: list[str]) -> Tensor:
    """(B,) `diversity` of the group each picture belongs to, NaN where not defined. The pictures of a prompt stand together."""
    return of_groups(diversity, read(pictures).scenes, prompts)


def of_groups(
    measure: Callable[[list, str], float | None], seen: list, prompts: list[str]
) -> Tensor:
    """(B,) of a measure of each group of what was seen, NaN where it is None. What was seen for a prompt stands together."""
    values, start = [], 0
    for prompt, group in itertools.groupby(prompts):
        n = len(list(group))
        value = measure(seen[start : start + n], prompt)
        values += [float("nan") if value is None else value] * n
        start += n
    return torch.tensor(values)


METRICS = {"accuracy": accuracy, "distance": distance, "diversity": group_diversity}


def error_rate(pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How often the oracle misreads pictures of known scenes: any attribute wrong (unrecognised counts), and unrecognised."""
    seen = read(pictures).scenes
    n = len(scenes)
    return {
        "misread": sum(a != b for a, b in zip(seen, scenes, strict=True)) / n,
        "unrecognised": sum(a is None for a in seen) / n,
    }

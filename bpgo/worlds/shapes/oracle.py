"""The oracle of drawings: reads the scene of an image, and checks whether it fits the prompt.

The image is compared with a bank of drawings, with each thing moved by whole pixels. The nearest
drawing gives the attributes, and its root mean square distance over pixels is the distance of the
image to the world. An image that is too far from any drawing, or nearer to the empty background,
counts as empty, so a blur or a pile of shapes cannot score. The cards of the checkpoints state how
often the oracle errs (`error_rate`) on clean drawings and on autoencoded ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bpgo.worlds import shared
from bpgo.worlds.forms import BACKGROUND, SIDE
from bpgo.worlds.shapes.captions import leave_out, parse
from bpgo.worlds.shapes.scenes import (
    PAIR_CENTRES,
    RELATIONS,
    VALUES,
    Scene,
    Thing,
    all_scenes,
    describes,
    draw,
)

# RMS pixel distance beyond which an image shows no scene. 99.9 % of autoencoded drawings are within
# 0.076.
RECOGNISED = 0.10
SHIFTS = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2)  # (9, 2) pixels
LOOKS = [Thing(shape, colour) for shape in VALUES["shape"] for colour in VALUES["colour"]]


class Reading(NamedTuple):
    """What the oracle reads in B images.

    scenes: B scenes, None where nothing is recognised. distance: (B,) RMS distance over pixels to
    the nearest drawing.
    """

    scenes: list[Scene | None]
    distance: Tensor


def _halves(relation: str) -> list[tuple[slice, slice]]:
    """Rows and columns of the half of the image in which each thing of a pair lies."""
    everything, low, high = slice(0, SIDE), slice(0, SIDE // 2), slice(SIDE // 2, SIDE)
    if relation == "left":
        return [(everything, low), (everything, high)]
    return [(low, everything), (high, everything)]


def _shifted(scenes: list[Scene]) -> Tensor:
    """Drawings of each scene at all SHIFTS, those of one scene adjacent to each other."""
    repeated = [scene for scene in scenes for _ in SHIFTS]
    offsets = SHIFTS.repeat(len(scenes), 1)[:, None].expand(-1, 2, -1)
    return draw(repeated, offsets)


@cache
def _bank() -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Drawings to compare with, flattened.

    Single things (240 * 9, 3072), and the two halves of pairs for each relation (24 * 9, 1536).
    """
    pairs = {}
    for relation in PAIR_CENTRES:
        drawings = _shifted([Scene((look, look), relation) for look in LOOKS])
        pairs[relation] = [drawings[:, :, r, c].flatten(1) for r, c in _halves(relation)]
    return _shifted(list(all_scenes(1))).flatten(1), pairs


def _nearest(pixels: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) squared distance to the nearest drawing of a bank, and the index of its thing."""
    distance, index = shared.nearest(pixels, bank)
    return distance.square(), index // len(SHIFTS)


def read(pixels: Tensor) -> Reading:
    """Read (B, 3, 32, 32) images in [0, 1] back into scenes. Raises ValueError for other shapes."""
    pixels = shared.check_pixels(pixels, (3, SIDE, SIDE), "shapes")
    singles, pairs = _bank()
    squared, things = _nearest(pixels.flatten(1), singles)
    scenes = [all_scenes(1)[i] for i in things.tolist()]
    for relation, (first_bank, second_bank) in pairs.items():
        first_half, second_half = (pixels[:, :, r, c].flatten(1) for r, c in _halves(relation))
        first_squared, first = _nearest(first_half, first_bank)
        second_squared, second = _nearest(second_half, second_bank)
        pair_squared = first_squared + second_squared
        for i in (pair_squared < squared).nonzero().flatten().tolist():
            scenes[i] = Scene((LOOKS[first[i]], LOOKS[second[i]]), relation)
        squared = torch.minimum(squared, pair_squared)
    distance = (squared / pixels[0].numel()).sqrt()
    to_background = (pixels - BACKGROUND).square().flatten(1).sum(1)
    recognised = (distance <= RECOGNISED) & (squared < to_background)
    found = zip(scenes, recognised.tolist(), strict=True)
    return Reading([scene if shown else None for scene, shown in found], distance)


def measure(pixels: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """(B,) values of each metric. Samples of one prompt must be adjacent.

    accuracy: 1.0 where the image shows all that its prompt names, else 0.0. distance: RMS distance
    over pixels to the nearest drawing of the world, in [0, 1]; lower is better. diversity:
    `diversity` of the images of the prompt, NaN where it is not defined.
    """
    scenes, distance = read(pixels)
    found = zip(scenes, prompts, strict=True)
    accurate = [scene is not None and describes(parse(prompt), scene) for scene, prompt in found]
    return {
        "accuracy": torch.tensor(accurate, dtype=torch.float32),
        "distance": distance,
        "diversity": shared.diversity_by_group(diversity, scenes, prompts),
    }


def share_right(pixels: Tensor, prompts: list[str]) -> Tensor:
    """(B,) share of the attributes named by its prompt that an image shows, in [0, 1].

    Each attribute counts on its own, in either order of a pair whose relation is open. For a prompt
    that names no attribute it is 1 if the number of things is right, else 0.
    """
    found = zip(prompts, read(pixels).scenes, strict=True)
    return torch.tensor([_share(parse(prompt), scene) for prompt, scene in found])


def _share(description: Scene, scene: Scene | None) -> float:
    if scene is None:
        return 0.0
    names = {name for name, value in description.attributes.items() if value is not None}
    parts = [leave_out(description, names - {name}) for name in names] or [description]
    return sum(describes(part, scene) for part in parts) / len(parts)


def diversity(scenes: list[Scene | None], prompt: str) -> float | None:
    """Diversity of a group in what the prompt leaves open: 1 as in the world, 0 if all are alike.

    The mean of `shared.relative_diversity` over the open attributes. Images in which nothing is
    recognised are left out. None if the prompt leaves nothing open, or if fewer than two images
    show the number of things that the prompt names.
    """
    description = parse(prompt)
    seen = []
    for scene in scenes:
        if scene is not None and len(scene.things) == len(description.things):
            seen.append(_in_order_of(description, scene).attributes)
    left_open = [name for name, value in description.attributes.items() if value is None]
    if not left_open or len(seen) < 2:
        return None
    ratios = []
    for name in left_open:
        possible = len(RELATIONS) if name == "relation" else len(VALUES[name.split()[0]])
        ratios.append(shared.relative_diversity([values[name] for values in seen], possible))
    return sum(ratios) / len(ratios)


def _in_order_of(description: Scene, scene: Scene) -> Scene:
    """The scene with its things in the order in which the description names them."""
    in_order = describes(replace(description, relation=scene.relation), scene)
    if in_order or not describes(description, scene):
        return scene
    return replace(scene, things=scene.things[::-1])


def error_rate(pixels: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How often the oracle misreads images of known scenes: {misread, unrecognised}."""
    return shared.error_rate(read(pixels).scenes, scenes)

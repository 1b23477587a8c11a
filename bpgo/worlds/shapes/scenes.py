"""Scenes: what a drawing can show, how many scenes there are, and how they are drawn.

A scene has one thing (shape, colour, size, position) or two (a shape and a colour each, one to the
left of the other or above it). A description is a scene in which attributes may be None, "left
open".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from bpgo.worlds.forms import BACKGROUND, COLOURS, SHAPES, SIDE, cover

VALUES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": ("small", "large"),
    "position": ("left", "right", "top", "bottom", "middle"),
}
# From the first thing to the second. "right" and "below" are these with the things swapped.
RELATIONS = ("left", "above")
# Pixels. A thing of a pair has no size, and its radius is that of None.
RADIUS = {"small": 4.0, "large": 7.0, None: 5.0}
# (x, y) pixels.
CENTRE = {
    "left": (9, 16),
    "right": (23, 16),
    "top": (16, 9),
    "bottom": (16, 23),
    "middle": (16, 16),
}
PAIR_CENTRES = {"left": ((8, 16), (24, 16)), "above": ((16, 8), (16, 24))}
JITTER = 1.0  # pixels: random offset of a centre in x and in y, which no caption mentions


@dataclass(frozen=True)
class Thing:
    """One object. None leaves an attribute open. The things of a pair have no size or position."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Scene:
    """One thing, or two with a relation: "left" or "above", from the first thing to the second.

    A relation of None leaves it open.
    """

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def attributes(self) -> dict[str, str | None]:
        """The attributes that a caption can name: `shape`, or `shape 1` and `shape 2` of a pair."""
        if len(self.things) == 1:
            return dict(vars(self.things[0]))
        named = {}
        for number, thing in enumerate(self.things, 1):
            named[f"shape {number}"] = thing.shape
            named[f"colour {number}"] = thing.colour
        return named | {"relation": self.relation}


@cache
def all_scenes(things: int | None = None) -> tuple[Scene, ...]:
    """Every scene of one thing (240), of two (1 152) or, without an argument, all of them.

    Scenes with the same number of things are equally likely in the world.
    """
    if things is None:
        return all_scenes(1) + all_scenes(2)
    if things == 1:
        return tuple(Scene((Thing(*values),)) for values in itertools.product(*VALUES.values()))
    looks = [Thing(*look) for look in itertools.product(VALUES["shape"], VALUES["colour"])]
    pairs = itertools.product(looks, looks, RELATIONS)
    return tuple(Scene((first, second), relation) for first, second, relation in pairs)


def readings(description: Scene) -> list[Scene]:
    """The description and, if the relation of a pair is open, the pair in the other order."""
    if len(description.things) == 1 or description.relation is not None:
        return [description]
    return [description, replace(description, things=description.things[::-1])]


def describes(description: Scene, scene: Scene) -> bool:
    """Whether the scene has every attribute that the description names, in one of its readings."""
    return any(_agrees(reading, scene) for reading in readings(description))


def _agrees(description: Scene, scene: Scene) -> bool:
    if len(description.things) != len(scene.things):
        return False
    actual = scene.attributes
    named = {k: v for k, v in description.attributes.items() if v is not None}
    return all(actual[name] == value for name, value in named.items())


def draw(scenes: list[Scene], offsets: Tensor) -> Tensor:
    """(B, 3, 32, 32) drawings of scenes that leave nothing open, in [0, 1], anti-aliased.

    offsets: (B, 2, 2) pixels, how far the centre of each thing is moved in x and y.
    """
    axis = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    drawings = torch.full((len(scenes), 3, SIDE, SIDE), BACKGROUND)
    for drawing, scene, offset in zip(drawings, scenes, offsets.tolist(), strict=True):
        pair = len(scene.things) == 2
        centres = PAIR_CENTRES[scene.relation] if pair else (CENTRE[scene.things[0].position],)
        # A scene of one thing uses the first of its two offsets.
        for thing, (cx, cy), (dx, dy) in zip(scene.things, centres, offset, strict=False):
            covered = cover(thing.shape, x - cx - dx, y - cy - dy, RADIUS[thing.size])
            colour = torch.tensor(COLOURS[thing.colour])[:, None, None]
            drawing.copy_(drawing * (1 - covered) + colour * covered)
    return drawings


def sample_scenes(n: int, generator: torch.Generator, pairs: float = 0.3) -> list[Scene]:
    """n scenes drawn uniformly; a share `pairs` of them, in [0, 1], has two things."""
    two = (torch.rand(n, generator=generator) < pairs).tolist()
    draws = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
    scenes = []
    for is_pair, u in zip(two, draws, strict=True):
        choices = all_scenes(2 if is_pair else 1)
        scenes.append(choices[int(u * len(choices))])
    return scenes


def sample_pixels(scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """(B, 3, 32, 32) drawings of the scenes, each thing at a random offset of up to JITTER."""
    offsets = (2 * torch.rand(len(scenes), 2, 2, generator=generator) - 1) * JITTER
    return draw(scenes, offsets)

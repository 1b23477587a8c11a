"""Scenes: what can be in a picture, how many such pictures there are, and how one is drawn.

A scene holds one thing (shape, colour, size, position) or two (shape and colour each, one left of or above the other).
A *description* is a scene in which attributes may be None, "left open": captions say descriptions, the oracle reads scenes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache

import torch

SIDE = 32  # pixels
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.70, 0.25),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.65, 0.20, 0.75),
    "white": (0.95, 0.95, 0.95),
}
BACKGROUND = 0.10
VALUES = {
    "shape": ("circle", "square", "triangle", "cross"),
    "colour": tuple(COLOURS),
    "size": ("small", "large"),
    "position": ("left", "right", "top", "bottom", "middle"),
}
RELATIONS = (
    "left",
    "above",
)  # of the first thing to the second; "right" and "below" are these with the things swapped
RADIUS = {
    "small": 4.0,
    "large": 7.0,
    None: 5.0,
}  # pixels; None: a thing of a pair, which has no size of its own
CENTRE = {
    "left": (9, 16),
    "right": (23, 16),
    "top": (16, 9),
    "bottom": (16, 23),
    "middle": (16, 16),
}  # (x, y) pixels
PAIR_CENTRES = {"left": ((8, 16), (24, 16)), "above": ((16, 8), (16, 24))}
JITTER = 1.0  # a centre is moved by up to this many pixels in x and in y; no caption speaks of it


@dataclass(frozen=True)
class Thing:
    """One object. None leaves an attribute open; the things of a pair have neither size nor position of their own."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Scene:
    """One thing, or two with a relation ("left" or "above", of the first to the second; None leaves it open)."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def attributes(self) -> dict[str, str | None]:
        """The attributes a caption of this scene can name, by name: `shape`, or `shape 1` and `shape 2` in a pair."""
        if len(self.things) == 1:
            return dict(vars(self.things[0]))
        named = {
            f"{k} {i}": getattr(t, k)
            for i, t in enumerate(self.things, 1)
            for k in ("shape", "colour")
        }
        return named | {"relation": self.relation}


@cache
def all_scenes(things: int) -> tuple[Scene, ...]:
    """Every scene of one thing (240) or of two (1 152), each equally likely in the world."""
    if things == 1:
        return tuple(Scene((Thing(*values),)) for values in itertools.product(*VALUES.values()))
    looks = [Thing(s, c) for s in VALUES["shape"] for c in VALUES["colour"]]
    return tuple(Scene((a, b), r) for a, b in itertools.product(looks, looks) for r in RELATIONS)


def readings(description: Scene) -> list[Scene]:
    """The description itself and, where a pair's relation is left open, the same pair said in the other order."""
    if len(description.things) == 1 or description.relation is not None:
        return [description]
    return [description, replace(description, things=description.things[::-1])]


def says(description: Scene, scene: Scene) -> bool:
    """Whether every attribute that the description names is so in the scene (in one of its readings)."""
    return any(_agrees(reading, scene) for reading in readings(description))


def _agrees(description: Scene, scene: Scene) -> bool:
    if len(description.things) != len(scene.things):
        return False
    theirs = scene.attributes
    return all(
        value is None or value == theirs[name] for name, value in description.attributes.items()
    )


# ---------------------------------------------------------------------------------------------------------- drawing


def _distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    """Distance in pixels to the outline of a shape centred at the origin, negative inside (y points down)."""
    if shape == "circle":
        return (x**2 + y**2).sqrt() - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if shape == "triangle":
        slope = 0.8660 * x.abs() - 0.5 * y - 0.55 * radius
        return torch.maximum(slope, y - 0.80 * radius)
    bars = [torch.maximum(a.abs() - radius, b.abs() - 0.34 * radius) for a, b in ((x, y), (y, x))]
    return torch.minimum(*bars)


def draw(scenes: list[Scene], offsets: torch.Tensor) -> torch.Tensor:
    """Pictures of scenes, anti-aliased.

    scenes: B scenes with nothing left open; offsets: (B, 2, 2) pixels, the (x, y) shift of each thing.
    Returns (B, 3, 32, 32) in [0, 1].
    """
    axis = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pictures = torch.full((len(scenes), 3, SIDE, SIDE), BACKGROUND)
    for picture, scene, shift in zip(pictures, scenes, offsets.tolist(), strict=True):
        pair = len(scene.things) == 2
        centres = PAIR_CENTRES[scene.relation] if pair else (CENTRE[scene.things[0].position],)
        for thing, (cx, cy), (dx, dy) in zip(scene.things, centres, shift, strict=False):
            outline = _distance(thing.shape, x - cx - dx, y - cy - dy, RADIUS[thing.size])
            cover = (0.5 - outline).clamp(0, 1)
            colour = torch.tensor(COLOURS[thing.colour])[:, None, None]
            picture.copy_(picture * (1 - cover) + colour * cover)
    return pictures


def sample_scenes(n: int, generator: torch.Generator, pairs: float = 0.3) -> list[Scene]:
    """n scenes drawn uniformly, a share `pairs` of them (in [0, 1]) with two things."""
    two = (torch.rand(n, generator=generator) < pairs).tolist()
    draws = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
    worlds = {flag: all_scenes(1 + flag) for flag in (False, True)}
    return [worlds[flag][int(u * len(worlds[flag]))] for flag, u in zip(two, draws, strict=True)]


def sample_pictures(scenes: list[Scene], generator: torch.Generator) -> torch.Tensor:
    """(B, 3, 32, 32) pictures of the scenes with their things shifted at random by up to JITTER pixels."""
    return draw(scenes, (2 * torch.rand(len(scenes), 2, 2, generator=generator) - 1) * JITTER)

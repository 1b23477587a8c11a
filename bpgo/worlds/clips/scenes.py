"""Scenes of one thing in motion, nine frames long, and how they are drawn.

A shape of some colour stays still, moves in one of four directions, bounces or grows, slowly or
fast. Where it starts does not depend on what it will do, so a first frame tells nothing about the
motion. A description is a scene in which attributes may be None, "left open", and in which the
motion may be MOVING, "anything but still".
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bpgo.worlds.forms import BACKGROUND, COLOURS, SHAPES, SIDE, cover

FRAMES = 9
RADIUS = 4.5  # pixels, in the first frame
START = 2.0  # pixels: the first centre lies this far from the middle at most, in x and in y
VALUES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "motion": ("still", "left", "right", "up", "down", "bounce", "grow"),
    "speed": ("slow", "fast"),
}
# Every motion with its speed. What is still has no speed.
WAYS = (("still", None), *itertools.product(VALUES["motion"][1:], VALUES["speed"]))
MOVING = "moving"
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # y points down
PATH = {"slow": 4.0, "fast": 9.0}  # pixels from the first frame to the last
BOUNCES = {"slow": (1, 8.0), "fast": (2, 8.0)}  # how often, and how high in pixels
GROWTH = {"slow": 1.4, "fast": 2.0}  # radius in the last frame divided by that in the first


@dataclass(frozen=True)
class Scene:
    """One thing in motion. None leaves an attribute open. What is still has no speed."""

    shape: str | None = None
    colour: str | None = None
    motion: str | None = None
    speed: str | None = None

    @property
    def attributes(self) -> dict[str, str | None]:
        """The attributes that a caption can name."""
        named = dict(vars(self))
        if self.motion == "still":
            del named["speed"]
        return named


@cache
def all_scenes() -> tuple[Scene, ...]:
    """Every scene (312), each equally likely in the world."""
    looks = itertools.product(VALUES["shape"], VALUES["colour"], WAYS)
    return tuple(Scene(shape, colour, *way) for shape, colour, way in looks)


def describes(description: Scene, scene: Scene) -> bool:
    """Whether the scene has every attribute that the description names."""
    for name, value in vars(description).items():
        actual = getattr(scene, name)
        if value == MOVING:
            if actual == "still":
                return False
        elif value is not None and value != actual:
            return False
    return True


@cache
def track(motion: str, speed: str | None) -> Tensor:
    """(9, 3) pixels, frame by frame: x and y of the centre from its start, and the radius."""
    time = torch.linspace(0, 1, FRAMES)
    path = torch.stack([torch.zeros(FRAMES), torch.zeros(FRAMES), torch.full((FRAMES,), RADIUS)], 1)
    if motion in DIRECTIONS:
        dx, dy = DIRECTIONS[motion]
        path[:, 0 if dx else 1] = time * PATH[speed] * (dx or dy)
    elif motion == "bounce":
        times, height = BOUNCES[speed]
        path[:, 1] = -height * (math.pi * times * time).sin().abs()
    elif motion == "grow":
        path[:, 2] = RADIUS * (1 + (GROWTH[speed] - 1) * time)
    return path


def cover_frames(shape: str, path: Tensor) -> Tensor:
    """(T, 32, 32) share of each pixel that a thing covers, in [0, 1].

    path: (T, 3) pixels, the centre x and y and the radius.
    """
    axis = torch.arange(SIDE) + 0.5
    cx, cy, radius = (column[:, None, None] for column in path.unbind(1))
    return cover(shape, axis[None, None, :] - cx, axis[None, :, None] - cy, radius)


def draw_frames(shape: str, colour: str, path: Tensor) -> Tensor:
    """(T, 3, 32, 32) frames of one thing on a path as in `cover_frames`, in [0, 1]."""
    covered = cover_frames(shape, path)[:, None]
    return BACKGROUND * (1 - covered) + torch.tensor(COLOURS[colour])[:, None, None] * covered


def draw(scenes: list[Scene], offsets: Tensor) -> Tensor:
    """(B, 9, 3, 32, 32) videos of scenes that leave nothing open, in [0, 1].

    offsets: (B, 2) pixels, x and y of the first centre relative to the middle of the image.
    """
    videos = []
    for scene, offset in zip(scenes, offsets, strict=True):
        path = track(scene.motion, scene.speed).clone()
        path[:, :2] += SIDE / 2 + offset
        videos.append(draw_frames(scene.shape, scene.colour, path))
    return torch.stack(videos)


def sample_scenes(n: int, generator: torch.Generator) -> list[Scene]:
    """n scenes, drawn uniformly."""
    rows = torch.randint(len(all_scenes()), (n,), generator=generator)
    return [all_scenes()[i] for i in rows.tolist()]


def sample_pixels(scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """(B, 9, 3, 32, 32) videos of the scenes, each from a random start."""
    return draw(scenes, (2 * torch.rand(len(scenes), 2, generator=generator) - 1) * START)

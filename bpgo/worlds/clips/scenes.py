"""Clips: scenes of one thing in motion, nine frames long, and how one is drawn.

A clip holds a shape of a colour that stays still, moves in one of four directions, bounces or grows, slowly or fast. Where it starts
is the same whatever it will do, so a first frame says nothing of the motion. In a *description* attributes may be None, "left open",
and the motion may be MOVING, "anything but still".
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bpgo.worlds.shapes.scenes import BACKGROUND, COLOURS, SIDE, VALUES, _distance

FRAMES = 9
RADIUS = 4.5  # pixels, at the first frame
START = 2.0  # pixels: the first centre lies up to this far from the middle in x and in y; no caption speaks of it
MOTIONS = ("still", "left", "right", "up", "down", "bounce", "grow")
SPEEDS = ("slow", "fast")
MOVING = "moving"
PATH = {"slow": 4.0, "fast": 9.0}  # pixels from the first frame to the last
BOUNCES = {"slow": (1, 8.0), "fast": (2, 8.0)}  # how often, and how high in pixels
GROWTH = {"slow": 1.4, "fast": 2.0}  # radius of the last frame over that of the first


@dataclass(frozen=True)
class Clip:
    """One thing in motion. None leaves an attribute open; what is still has no speed."""

    shape: str | None = None
    colour: str | None = None
    motion: str | None = None
    speed: str | None = None

    @property
    def attributes(self) -> dict[str, str | None]:
        """The attributes a caption of this clip can name."""
        return {
            k: v for k, v in vars(self).items() if not (k == "speed" and self.motion == "still")
        }


@cache
def all_clips() -> tuple[Clip, ...]:
    """Every clip (312), each equally likely in the world."""
    ways = [("still", None), *itertools.product(MOTIONS[1:], SPEEDS)]
    return tuple(
        Clip(s, c, *way) for s, c, way in itertools.product(VALUES["shape"], VALUES["colour"], ways)
    )


def says(description: Clip, clip: Clip) -> bool:
    """Whether every attribute that the description names is so in the clip."""
    theirs = vars(clip)
    named = {k: v for k, v in vars(description).items() if v is not None and v != MOVING}
    return all(theirs[k] == v for k, v in named.items()) and not (
        description.motion == MOVING and clip.motion == "still"
    )


@cache
def track(motion: str, speed: str | None) -> Tensor:
    """(9, 3): how far the centre is from where it began, in x and y (down) pixels, and the radius in pixels, frame by frame."""
    time = torch.linspace(0, 1, FRAMES)
    path = torch.stack([torch.zeros(FRAMES), torch.zeros(FRAMES), torch.full((FRAMES,), RADIUS)], 1)
    if motion in ("left", "right", "up", "down"):
        path[:, 0 if motion in ("left", "right") else 1] = (
            time * PATH[speed] * (-1 if motion in ("left", "up") else 1)
        )
    elif motion == "bounce":
        times, height = BOUNCES[speed]
        path[:, 1] = -height * (math.pi * times * time).sin().abs()
    elif motion == "grow":
        path[:, 2] = RADIUS * (1 + (GROWTH[speed] - 1) * time)
    return path


def cover_frames(shape: str, path: Tensor) -> Tensor:
    """(T, 32, 32) how much of each pixel, in [0, 1], a thing covers whose centre (x, y) and radius are path (T, 3), in pixels."""
    axis = torch.arange(SIDE) + 0.5
    cx, cy, radius = (column[:, None, None] for column in path.unbind(1))
    return (
        0.5 - _distance(shape, axis[None, None, :] - cx, axis[None, :, None] - cy, radius)
    ).clamp(0, 1)


def draw_frames(shape: str, colour: str, path: Tensor) -> Tensor:
    """(T, 3, 32, 32) pictures in [0, 1] of one thing whose centre (x, y) and radius are path (T, 3), in pixels; anti-aliased."""
    cover = cover_frames(shape, path)[:, None]
    return BACKGROUND * (1 - cover) + torch.tensor(COLOURS[colour])[:, None, None] * cover


def draw_clips(clips: list[Clip], starts: Tensor) -> Tensor:
    """(B, 9, 3, 32, 32) clips in [0, 1]; starts: (B, 2), the first centre from the middle of the picture, (x, y) pixels."""
    frames = []
    for clip, start in zip(clips, starts, strict=True):
        path = track(clip.motion, clip.speed).clone()
        path[:, :2] += SIDE / 2 + start
        frames.append(draw_frames(clip.shape, clip.colour, path))
    return torch.stack(frames)


def sample_clips(n: int, generator: torch.Generator) -> list[Clip]:
    """n clips, drawn uniformly."""
    return [
        all_clips()[i] for i in torch.randint(len(all_clips()), (n,), generator=generator).tolist()
    ]


def sample_videos(clips: list[Clip], generator: torch.Generator) -> Tensor:
    """(B, 9, 3, 32, 32) drawings of the clips, each from a random start."""
    return draw_clips(clips, (2 * torch.rand(len(clips), 2, generator=generator) - 1) * START)

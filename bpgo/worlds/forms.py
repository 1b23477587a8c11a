"""How the coloured shapes of the worlds `shapes` and `clips` are drawn and named."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 32  # pixels
BACKGROUND = 0.10
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.70, 0.25),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.65, 0.20, 0.75),
    "white": (0.95, 0.95, 0.95),
}

MENTION = 0.75  # probability that a caption names an attribute
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus"),
}
COLOUR_WORDS = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "white": ("white", "ivory"),
}
ANY_SHAPE = ("shape", "thing")


def cover(shape: str, x: Tensor, y: Tensor, radius: float | Tensor) -> Tensor:
    """Share of each pixel, in [0, 1], that a shape covers, with anti-aliasing.

    x, y: pixel centres relative to the centre of the shape, in pixels, y pointing down.
    """
    return (0.5 - _signed_distance(shape, x, y, radius)).clamp(0, 1)


def _signed_distance(shape: str, x: Tensor, y: Tensor, radius: float | Tensor) -> Tensor:
    """Distance in pixels to the outline of a shape, negative inside."""
    if shape == "circle":
        return (x**2 + y**2).sqrt() - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if shape == "triangle":
        slope = 0.8660 * x.abs() - 0.5 * y - 0.55 * radius
        return torch.maximum(slope, y - 0.80 * radius)
    horizontal = torch.maximum(x.abs() - radius, y.abs() - 0.34 * radius)
    vertical = torch.maximum(y.abs() - radius, x.abs() - 0.34 * radius)
    return torch.minimum(horizontal, vertical)

"""The oracle of clips: reads from a video what moves and how, and measures its quality.

In each frame, the colour whose mixture with the background explains the pixels best gives a cover
map. Its centre of mass and its area give the place and the size, for each shape that it could be.
The shape with the nearest drawing is read. The path over the nine frames is then compared
with the thirteen paths of the world. The card of the autoencoder states the error rates, on
drawings and on autoencoded videos.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, threshold

from bpgo.prompts import pixels_of
from bpgo.worlds import shared
from bpgo.worlds.clips.captions import parse
from bpgo.worlds.clips.scenes import (
    FRAMES,
    VALUES,
    WAYS,
    Scene,
    cover_frames,
    describes,
    track,
)
from bpgo.worlds.forms import BACKGROUND, COLOURS, SHAPES, SIDE

RECOGNISED = 0.10  # RMS pixel distance beyond which a video shows no scene
# Mean over frames of the RMS distance of the worst 4 x 4 pixels, beyond which a video shows
# something else as well.
SPOT = 0.25
ASTRAY = 2.0  # RMS pixels from the nearest path beyond which a motion is none of the world's
# RMS change of place and radius, in pixels, below which nothing moves: half the change of slow
# growth. Without it, a large shape that stays still would be read as growing.
STILL = 0.29
FAINT = 0.08  # cover below which a pixel is noise, which would shift the centre
# Largest radius that is read, in pixels (the world's largest is 9). Without it a white video would
# be read as a large shape.
LARGEST = 10.0
PALETTE = torch.tensor(list(COLOURS.values()))


class Reading(NamedTuple):
    """What the oracle reads in B videos.

    scenes: B scenes, None where nothing, or no motion of the world, is recognised. distance: (B,)
    RMS pixel distance to the drawing. path: (B, 9, 3) centre x and y and radius in pixels. astray:
    (B,) RMS pixels between the path and the nearest of the world. same: (B,) share of frames that,
    read alone, show what the whole video shows. drawing: (B, 9, 3, 32, 32) what was read, drawn
    where it was seen.
    """

    scenes: list[Scene | None]
    distance: Tensor
    path: Tensor
    astray: Tensor
    same: Tensor
    drawing: Tensor


def read(pixels: Tensor) -> Reading:
    """Read (B, 9, 3, 32, 32) videos in [0, 1] back into scenes. ValueError for other shapes."""
    videos = shared.check_pixels(pixels, (FRAMES, 3, SIDE, SIDE), "clips")
    colour, frame_colour, fit, cover = _read_colour(videos)
    shape, frame_shape, path, drawn = _read_shape(fit, cover)
    drawn = drawn[:, :, None]
    drawing = BACKGROUND * (1 - drawn) + PALETTE[colour][:, None, :, None, None] * drawn
    squared = (videos - drawing).square().mean((2, 3, 4))  # (B, 9)
    empty = (videos - BACKGROUND).square().mean((2, 3, 4))
    same = (
        (frame_colour == colour[:, None]) & (frame_shape == shape[:, None]) & (squared < empty)
    ).float()
    way, astray = _nearest_way(path)
    distance = squared.mean(1).sqrt()
    recognised = (
        (distance <= RECOGNISED)
        & (_worst_spots(videos - drawing) <= SPOT)
        & (squared.mean(1) < empty.mean(1))
        & (astray <= ASTRAY)
    )
    scenes: list[Scene | None] = []
    colours = VALUES["colour"]
    for i, is_scene in enumerate(recognised.tolist()):
        scene = Scene(SHAPES[shape[i]], colours[colour[i]], *WAYS[way[i]])
        scenes.append(scene if is_scene else None)
    return Reading(scenes, distance, path, astray, same.mean(1), drawing)


def _read_colour(videos: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The colour of B videos, (B,) and frame by frame (B, 9), with its fit and its cover.

    fit: (B, 9, 32, 32) share of the colour in each pixel, by least squares on the line from
    background to colour. cover: the same, within [0, 1] and without what is FAINT.
    """
    rows = torch.arange(len(videos))
    lines = PALETTE - BACKGROUND
    squares = lines.square().sum(1)  # (colours,)
    fit = (lines @ (videos - BACKGROUND).flatten(3) / squares[:, None]).unflatten(3, (SIDE, SIDE))
    cover = threshold(fit, FAINT, 0.0).clamp_max_(1)
    # The squared error of each colour, up to a constant.
    error = (cover * (cover - 2 * fit)).sum((3, 4)) * squares
    colour = error.sum(1).argmin(1)
    return colour, error.argmin(2), fit[rows, :, colour], cover[rows, :, colour]


def _read_shape(fit: Tensor, cover: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The shape of B videos, (B,) and frame by frame (B, 9), with its path and its own cover map.

    fit, cover: as from `_read_colour`. Returns the path (B, 9, 3) and the cover (B, 9, 32, 32) of
    the shape drawn on it.
    """
    rows = torch.arange(len(cover))
    paths = torch.stack([_path(cover, s) for s in range(len(SHAPES))])
    drawn = torch.stack(
        [
            cover_frames(shape, path.flatten(0, 1)).view_as(cover)
            for shape, path in zip(SHAPES, paths, strict=True)
        ]
    )
    # The squared error of each shape, up to a constant: (B, 9, shapes).
    error = torch.stack([(d * (d - 2 * fit)).sum((2, 3)) for d in drawn], 2)
    shape = error.sum(1).argmin(1)
    return shape, error.argmin(2), paths[shape, rows], drawn[shape, rows]


def _path(cover: Tensor, shape: int) -> Tensor:
    """(B, 9, 3) centre and radius of a shape with these cover maps (B, 9, 32, 32)."""
    dx, dy, area_of_one = _forms()[shape]
    x, y, area = _moments(cover)
    radius = (area / area_of_one).sqrt().clamp(1, LARGEST)
    return torch.stack([x - dx * radius, y - dy * radius, radius], -1)


@cache
def _forms() -> Tensor:
    """(shapes, 3): x and y of the centre of mass, and the area, of each shape of radius 1."""
    at = torch.tensor([[SIDE / 2, SIDE / 2, 8.0]])
    x, y, area = _moments(torch.cat([cover_frames(shape, at) for shape in SHAPES]))
    return torch.stack([(x - SIDE / 2) / 8, (y - SIDE / 2) / 8, area / 64], 1)


def _moments(cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of mass x and y, and area, in pixels, of cover maps (..., 32, 32)."""
    axis = torch.arange(SIDE) + 0.5
    area = cover.sum((-2, -1)).clamp_min(1e-6)
    return (cover.sum(-2) * axis).sum(-1) / area, (cover.sum(-1) * axis).sum(-1) / area, area


def _nearest_way(path: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) index of the nearest of WAYS to paths (B, 9, 3), and the RMS pixels between them.

    The start of a path does not count. A path that changes less than STILL is still.
    """
    ways = torch.stack([track(*way) for way in WAYS])
    offset = path[:, None] - ways  # (B, ways, 9, 3)
    start = offset[..., :2].mean(2, keepdim=True)
    squared = ((offset[..., :2] - start).square().sum(-1) + offset[..., 2].square()).mean(2)
    change = (path - path.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    way = torch.where(change < STILL, WAYS.index(("still", None)), squared.argmin(1))
    return way, squared.gather(1, way[:, None])[:, 0].sqrt()


def _worst_spots(rest: Tensor) -> Tensor:
    """(B,) RMS of the worst 4 x 4 pixels of each frame, averaged over the frames of (B, 9, ...)."""
    spots = avg_pool2d(rest.flatten(0, 1), 4, 2).square().mean(1)
    return spots.amax((1, 2)).sqrt().view(rest.shape[:2]).mean(1)


# ---------------------------------------------------------------------------------------- metrics


def measure(pixels: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """(B,) values of each metric. Samples of one prompt must be adjacent.

    accuracy: 1.0 where the video shows all that its prompt names, else 0.0. motion: quality of
    motion in [0, 1], the share of frames that show the same thing, times exp(-astray / 1 pixel).
    visual: visual quality in [0, 1], the mean over frames of 1 minus the ratio of the squared
    residual to the squared drawing, at least 0 in every frame. overall: mean of these three.

    flicker: RMS change between frames of what the drawing does not explain. first_frame: RMS
    distance of the first frame to the image of the prompt, NaN without one. Both are in pixel
    units of [0, 1], and lower is better. diversity: `diversity` of the videos of the prompt, NaN
    where it is not defined.
    """
    seen, videos = read(pixels), pixels.detach().float().cpu()
    rest, drawn = videos - seen.drawing, seen.drawing - BACKGROUND
    found = zip(seen.scenes, prompts, strict=True)
    accurate = [scene is not None and describes(parse(prompt), scene) for scene, prompt in found]
    accuracy = torch.tensor(accurate, dtype=torch.float32)
    motion = seen.same * (-seen.astray).exp()
    unexplained = rest.square().sum((2, 3, 4)) / drawn.square().sum((2, 3, 4)).clamp_min(1e-6)
    visual = (1 - unexplained).clamp_min(0).mean(1)
    return {
        "accuracy": accuracy,
        "motion": motion,
        "visual": visual,
        "overall": (accuracy + motion + visual) / 3,
        "flicker": rest.diff(dim=1).square().flatten(1).mean(1).sqrt(),
        "first_frame": _first_frame(videos[:, 0], prompts),
        "diversity": shared.diversity_by_group(diversity, seen.scenes, prompts),
    }


def share_right(pixels: Tensor, prompts: list[str]) -> Tensor:
    """(B,) share of the attributes named by its prompt that a video shows, in [0, 1].

    For a prompt that names no attribute it is 1 if anything is recognised, else 0.
    """
    shares = []
    for prompt, scene in zip(prompts, read(pixels).scenes, strict=True):
        named = {name: value for name, value in vars(parse(prompt)).items() if value is not None}
        parts = [Scene(**{name: value}) for name, value in named.items()] or [Scene()]
        right = [scene is not None and describes(part, scene) for part in parts]
        shares.append(sum(right) / len(parts))
    return torch.tensor(shares)


def _first_frame(frames: Tensor, prompts: list[str]) -> Tensor:
    """(B,) RMS distance of frames (B, 3, 32, 32) to the images of their prompts, NaN without."""
    distances = torch.full((len(frames),), torch.nan)
    for i, prompt in enumerate(prompts):
        image = getattr(prompt, "image", None)
        if image is not None:
            distances[i] = (frames[i] - pixels_of([image])[0]).square().mean().sqrt()
    return distances


def diversity(scenes: list[Scene | None], prompt: str) -> float | None:
    """Diversity of a group in what the prompt leaves open: 1 as in the world, 0 if all are alike.

    The mean of `shared.relative_diversity` over the open attributes, with motion and speed as one
    attribute. Motions that the prompt rules out do not count. A prompt with an image leaves only
    the motion open. None if no open attribute was recognised in two videos.
    """
    description = parse(prompt)
    pictured = getattr(prompt, "image", None) is not None
    seen = [scene for scene in scenes if scene is not None]
    columns = []  # values of each attribute, and the number of values in the world
    for name in ("shape", "colour"):
        if getattr(description, name) is None and not pictured:
            columns.append(([getattr(scene, name) for scene in seen], len(VALUES[name])))
    asked = Scene(motion=description.motion, speed=description.speed)
    ways = [way for way in WAYS if describes(asked, Scene(None, None, *way))]
    shown = [(scene.motion, scene.speed) for scene in seen]
    columns.append(([way for way in shown if way in ways], len(ways)))
    ratios = [
        shared.relative_diversity(values, possible)
        for values, possible in columns
        if possible > 1 and len(values) > 1
    ]
    return sum(ratios) / len(ratios) if ratios else None


def error_rate(pixels: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How often the oracle misreads videos of known scenes: {misread, unrecognised}."""
    return shared.error_rate(read(pixels).scenes, scenes)

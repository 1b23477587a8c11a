"""The oracle of clips: reads a video back into what moves and how, and measures how well it moves and how well it is drawn.

Frame by frame, the colour whose mixture with the background explains the pixels best gives a cover map; its centre of mass and its area
give where the thing is and how large, for each shape it might be; the shape whose drawing there is nearest is what is seen. The path of
the nine frames is then compared with the world's thirteen. Error rates, on drawings and on autoencoded ones, stand in the checkpoints' cards.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..prompts import key_of, pixels_of
from .clip_captions import parse
from .clips import FRAMES, MOTIONS, SPEEDS, Clip, draw_frames, says, track
from .scenes import BACKGROUND, COLOURS, SIDE, VALUES

RECOGNISED = 0.10  # RMS pixel distance beyond which a video shows no clip
ASTRAY = 2.0  # pixels of RMS distance from the nearest of the world's paths beyond which a motion is none of them
SHAPES = VALUES["shape"]
WAYS = [("still", None), *itertools.product(MOTIONS[1:], SPEEDS)]


class Reading(NamedTuple):
    """What the oracle sees in B videos.

    clips: B clips, None where nothing, or no motion of the world, is recognised; path: (B, 9, 3) centre x, y and radius in pixels;
    astray: (B,) RMS pixels between the path and the nearest of the world's; same: (B,) share of frames that, read alone, show what the whole
    video shows; drawing: (B, 9, 3, 32, 32) what was read, drawn where it was seen; distance: (B,) RMS pixel distance to it.
    """

    clips: list[Clip | None]
    path: Tensor
    astray: Tensor
    same: Tensor
    drawing: Tensor
    distance: Tensor


@cache
def _forms() -> Tensor:
    """(shapes, 3): x and y of the centre of mass over the radius, and the area over its square, of each shape."""
    at = torch.tensor([[SIDE / 2, SIDE / 2, 8.0]])
    covers = torch.cat([(draw_frames(shape, "white", at)[:, 0] - BACKGROUND) / (COLOURS["white"][0] - BACKGROUND) for shape in SHAPES])
    x, y, area = _moments(covers)
    return torch.stack([(x - SIDE / 2) / 8, (y - SIDE / 2) / 8, area / 64], 1)


def _moments(cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of mass x and y, and area, in pixels, of cover maps (..., 32, 32)."""
    axis = torch.arange(SIDE) + 0.5
    area = cover.sum((-2, -1)).clamp_min(1e-6)
    return (cover.sum(-2) * axis).sum(-1) / area, (cover.sum(-1) * axis).sum(-1) / area, area


def _draw(shapes: Tensor, colours: Tensor, path: Tensor) -> Tensor:
    """Drawings (M, 3, 32, 32) of M frames: indices of shape and colour, and path (M, 3)."""
    pictures = path.new_empty(len(path), 3, SIDE, SIDE)
    for s, c in itertools.product(range(len(SHAPES)), range(len(COLOURS))):
        rows = (shapes == s) & (colours == c)
        if rows.any():
            pictures[rows] = draw_frames(SHAPES[s], list(COLOURS)[c], path[rows])
    return pictures


def read(videos: Tensor) -> Reading:
    """Read (B, 9, 3, 32, 32) videos in [0, 1] back into clips."""
    if videos.ndim != 5 or videos.shape[1:] != (FRAMES, 3, SIDE, SIDE):
        raise ValueError(f"the oracle reads (B, {FRAMES}, 3, {SIDE}, {SIDE}) videos of the shapes world, not {tuple(videos.shape)}")
    videos = videos.detach().float().cpu()
    batch = len(videos)
    covers, left = [], []
    for value in COLOURS.values():  # least squares of each pixel on the line from background to colour
        colour = (torch.tensor(value) - BACKGROUND)[:, None, None]
        cover = ((videos - BACKGROUND) * colour).sum(2) / colour.square().sum()
        cover = torch.where(cover > 0.08, cover, 0).clamp(0, 1)  # what is fainter is noise, and would draw the centre inwards
        covers.append(cover)
        left.append((videos - BACKGROUND - cover[:, :, None] * colour).square().sum((2, 3, 4)))
    covers, left = torch.stack(covers, 2), torch.stack(left, 2)  # (B, 9, colours, 32, 32), (B, 9, colours)
    colour = left.sum(1).argmin(1)
    own_colour = left.argmin(2)
    errors, paths = [], []
    for s in range(len(SHAPES)):
        path = _path(covers[torch.arange(batch), :, colour], s)
        drawn = _draw(torch.full((batch * FRAMES,), s), colour.repeat_interleave(FRAMES), path.flatten(0, 1)).view_as(videos)
        errors.append((videos - drawn).square().sum((2, 3, 4)))
        paths.append(path)
    errors = torch.stack(errors, 2)  # (B, 9, shapes)
    shape = errors.sum(1).argmin(1)
    path = torch.stack(paths, 1)[torch.arange(batch), shape]
    drawing = _draw(shape.repeat_interleave(FRAMES), colour.repeat_interleave(FRAMES), path.flatten(0, 1)).view_as(videos)
    squared = (videos - drawing).square().mean((2, 3, 4))
    empty = (videos - BACKGROUND).square().mean((2, 3, 4))
    same = ((own_colour == colour[:, None]) & (errors.argmin(2) == shape[:, None]) & (squared < empty)).float().mean(1)
    way, astray = _nearest_way(path)
    distance = squared.mean(1).sqrt()
    seen = (distance <= RECOGNISED) & (squared.mean(1) < empty.mean(1)) & (astray <= ASTRAY)
    clips = [Clip(SHAPES[s], list(COLOURS)[c], *WAYS[w]) if ok else None
             for s, c, w, ok in zip(shape.tolist(), colour.tolist(), way.tolist(), seen.tolist(), strict=True)]  # fmt: skip
    return Reading(clips, path, astray, same, drawing, distance)


def _path(cover: Tensor, shape: int) -> Tensor:
    """(B, 9, 3) centre and radius of a shape with these cover maps (B, 9, 32, 32)."""
    dx, dy, per_square = _forms()[shape]
    x, y, area = _moments(cover)
    radius = (area / per_square).sqrt().clamp(1, SIDE / 2)
    return torch.stack([x - dx * radius, y - dy * radius, radius], -1)


def _nearest_way(path: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) index of the world's motion nearest to paths (B, 9, 3), and the RMS pixels between them, wherever they begin."""
    ways = torch.stack([track(*way) for way in WAYS])
    offset = path[:, None] - ways  # (B, ways, 9, 3)
    start = offset[..., :2].mean(2, keepdim=True)
    squared = (offset[..., :2] - start).square().sum(-1) + offset[..., 2].square()
    least, way = squared.mean(2).min(1)
    return way, least.sqrt()


# --------------------------------------------------------------------------------------------------------------- measures


def measure(videos: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """(B,) of each measure, from one reading; the videos of a prompt stand together.

    accuracy: text alignment, 1.0 where the video shows all that its prompt says, else 0.0. motion: quality of motion in [0, 1], the share of
    frames that show one and the same thing times exp(-astray / 1 pixel). visual: visual quality, at most 1, the share of the video's
    variation that a drawing of the world explains (R squared). overall: the mean of these three (visual not less than 0).
    flicker: RMS change between frames of what the drawing does not explain; first_frame: RMS distance of the first frame to
    the picture a prompt carries, NaN without; both in pixel units of [0, 1], lower is better. diversity: `diversity` of the prompt's
    videos, NaN where not defined.
    """
    seen, videos = read(videos), videos.detach().float().cpu()
    rest = videos - seen.drawing
    accuracy = torch.tensor([float(c is not None and says(parse(p), c)) for c, p in zip(seen.clips, prompts, strict=True)])
    motion = seen.same * (-seen.astray).exp()
    variation = (seen.drawing - BACKGROUND).square().flatten(1).sum(1).clamp_min(1e-6)
    visual = 1 - rest.square().flatten(1).sum(1) / variation
    return {
        "accuracy": accuracy,
        "motion": motion,
        "visual": visual,
        "overall": (accuracy + motion + visual.clamp_min(0)) / 3,
        "flicker": rest.diff(dim=1).square().flatten(1).mean(1).sqrt(),
        "first_frame": _first_frame(videos[:, 0], prompts),
        "diversity": _group_diversity(seen.clips, prompts),
    }


def _first_frame(frames: Tensor, prompts: list[str]) -> Tensor:
    given = [getattr(p, "image", None) for p in prompts]
    rows = [torch.tensor(float("nan")) if image is None else (frame - pixels_of([image])[0]).square().mean().sqrt()
            for frame, image in zip(frames, given, strict=True)]  # fmt: skip
    return torch.stack(rows)


def diversity(clips: list[Clip | None], prompt: str, pictured: bool = False) -> float | None:
    """Diversity of a group's videos in what the prompt leaves open: 1 as in the world, 0 when all are alike.

    For each open attribute, the chance that two recognised videos differ in it (Simpson's index, unbiased) over the same
    chance in the world; averaged over the attributes. pictured: what it looks like is given by a picture, only the motion can be open.
    None if nothing is open or fewer than two are recognised.
    """
    description = parse(prompt)
    looked = [(k, len(VALUES[k])) for k in ("shape", "colour") if getattr(description, k) is None and not pictured]
    ways = [way for way in WAYS if says(Clip(motion=description.motion, speed=description.speed), Clip(None, None, *way))]
    seen = [c for c in clips if c is not None]
    pairs = len(seen) * (len(seen) - 1)
    if pairs == 0 or not (looked or len(ways) > 1):
        return None
    columns = [([getattr(c, k) for c in seen], n) for k, n in looked]
    columns += [([(c.motion, c.speed) for c in seen], len(ways))] if len(ways) > 1 else []
    ratios = [(1 - sum(v.count(x) * (v.count(x) - 1) for x in set(v)) / pairs) / (1 - 1 / n) for v, n in columns]
    return sum(ratios) / len(ratios)


def _group_diversity(clips: list[Clip | None], prompts: list[str]) -> Tensor:
    values = []
    for _, group in itertools.groupby(range(len(prompts)), key=lambda i: key_of(prompts[i])):
        rows = list(group)
        value = diversity([clips[i] for i in rows], prompts[rows[0]], getattr(prompts[rows[0]], "image", None) is not None)
        values += [float("nan") if value is None else value] * len(rows)
    return torch.tensor(values)


METRICS = {"oracle": measure}


def error_rate(videos: Tensor, clips: list[Clip]) -> dict[str, float]:
    """How often the oracle misreads videos of known clips: any attribute wrong (unrecognised counts), and unrecognised."""
    seen, n = read(videos).clips, len(clips)
    wrong = sum(a != b for a, b in zip(seen, clips, strict=True)) / n
    return {"misread": wrong, "unrecognised": sum(a is None for a in seen) / n}

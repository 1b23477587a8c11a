"""The oracle of clips: reads a video back into what moves and how, and measures how well it moves and how well it is drawn.

Frame by frame, the colour whose mixture with the background explains the pixels best gives a cover map; its centre of mass and its area
give where the thing is and how large, for each shape it might be; the shape whose drawing there is nearest is what is seen. The path of
the nine frames is then compared with the world's thirteen. Error rates, on drawings and autoencoded, stand in the autoencoder's card.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, threshold

from bpgo.prompts import key_of, pixels_of
from bpgo.worlds.clips.captions import parse
from bpgo.worlds.clips.scenes import FRAMES, MOTIONS, SPEEDS, Clip, cover_frames, says, track
from bpgo.worlds.shapes.scenes import BACKGROUND, COLOURS, SIDE, VALUES

RECOGNISED = 0.10  # RMS pixel distance beyond which a video shows no clip
SPOT = 0.25  # RMS distance of the worst 4 x 4 pixels of a frame beyond which, in the frames' mean, it shows something else too
ASTRAY = 2.0  # pixels of RMS distance from the nearest of the world's paths beyond which a motion is none of them
STILL = 0.29  # pixels of RMS change of place and radius below which nothing moves, of whatever size: half of what slow growth changes
LARGEST = 10.0  # pixels: no radius is read beyond it (the world's end at 9), or a white video would be a thing well drawn
SHAPES = VALUES["shape"]
PALETTE = torch.tensor(list(COLOURS.values()))
WAYS = [("still", None), *itertools.product(MOTIONS[1:], SPEEDS)]


class Reading(NamedTuple):
    """What the oracle sees in B videos.

    clips: B clips, None where nothing, or no motion of the world, is recognised; path: (B, 9, 3) centre x, y and radius in pixels;
    astray: (B,) RMS pixels between the path and the nearest of the world's; same: (B,) share of frames that, read alone, show what the
    whole video shows; drawing: (B, 9, 3, 32, 32) what was read, drawn where it was seen; distance: (B,) RMS pixel distance to it.
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
    x, y, area = _moments(torch.cat([cover_frames(shape, at) for shape in SHAPES]))
    return torch.stack([(x - SIDE / 2) / 8, (y - SIDE / 2) / 8, area / 64], 1)


def _moments(cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of mass x and y, and area, in pixels, of cover maps (..., 32, 32)."""
    axis = torch.arange(SIDE) + 0.5
    area = cover.sum((-2, -1)).clamp_min(1e-6)
    return (cover.sum(-2) * axis).sum(-1) / area, (cover.sum(-1) * axis).sum(-1) / area, area


def read(videos: Tensor) -> Reading:
    """Read (B, 9, 3, 32, 32) videos in [0, 1] back into clips."""
    if videos.ndim != 5 or videos.shape[1:] != (FRAMES, 3, SIDE, SIDE):
        raise ValueError(
            f"the oracle reads (B, {FRAMES}, 3, {SIDE}, {SIDE}) videos of the shapes world, not {tuple(videos.shape)}"
        )
    videos = videos.detach().float().cpu()
    rows, lines = torch.arange(len(videos)), PALETTE - BACKGROUND
    squares = lines.square().sum(1)  # (colours,)
    # least squares of each pixel on the line from background to colour, (B, 9, colours, 32, 32); below is the error less a constant
    fit = (lines @ (videos - BACKGROUND).flatten(3) / squares[:, None]).unflatten(3, (SIDE, SIDE))
    cover = threshold(fit, 0.08, 0.0).clamp_max_(
        1
    )  # what is fainter is noise, and would draw the centre inwards
    left = (cover * (cover - 2 * fit)).sum((3, 4)) * squares
    colour, own_colour = left.sum(1).argmin(1), left.argmin(2)
    fit, cover = fit[rows, :, colour], cover[rows, :, colour]  # (B, 9, 32, 32)
    paths = torch.stack([_path(cover, s) for s in range(len(SHAPES))])
    drawn = [
        cover_frames(shape, path.flatten(0, 1)).view_as(cover)
        for shape, path in zip(SHAPES, paths, strict=True)
    ]
    left = torch.stack([(d * (d - 2 * fit)).sum((2, 3)) for d in drawn], 2)  # (B, 9, shapes)
    shape = left.sum(1).argmin(1)
    path, drawn = paths[shape, rows], torch.stack(drawn)[shape, rows][:, :, None]
    drawing = BACKGROUND * (1 - drawn) + PALETTE[colour][:, None, :, None, None] * drawn
    squared = (videos - drawing).square().mean((2, 3, 4))
    empty = (videos - BACKGROUND).square().mean((2, 3, 4))
    same = (
        ((own_colour == colour[:, None]) & (left.argmin(2) == shape[:, None]) & (squared < empty))
        .float()
        .mean(1)
    )
    way, astray = _nearest_way(path)
    distance = squared.mean(1).sqrt()
    spots = (
        avg_pool2d((videos - drawing).flatten(0, 1), 4, 2)
        .square()
        .mean(1)
        .amax((1, 2))
        .sqrt()
        .view_as(squared)
        .mean(1)
    )
    seen = (
        (distance <= RECOGNISED)
        & (spots <= SPOT)
        & (squared.mean(1) < empty.mean(1))
        & (astray <= ASTRAY)
    )
    clips = [
        Clip(SHAPES[s], list(COLOURS)[c], *WAYS[w]) if ok else None
        for s, c, w, ok in zip(
            shape.tolist(), colour.tolist(), way.tolist(), seen.tolist(), strict=True
        )
    ]
    return Reading(clips, path, astray, same, drawing, distance)


def _path(cover: Tensor, shape: int) -> Tensor:
    """(B, 9, 3) centre and radius of a shape with these cover maps (B, 9, 32, 32)."""
    dx, dy, per_square = _forms()[shape]
    x, y, area = _moments(cover)
    radius = (area / per_square).sqrt().clamp(1, LARGEST)
    return torch.stack([x - dx * radius, y - dy * radius, radius], -1)


def _nearest_way(path: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) index of the world's motion nearest to paths (B, 9, 3), and the RMS pixels between them, wherever they begin.

    What hardly changes (STILL) is still: a large thing that stays is nearer to the middle of a growth, and does not grow.
    """
    ways = torch.stack([track(*way) for way in WAYS])
    offset = path[:, None] - ways  # (B, ways, 9, 3)
    start = offset[..., :2].mean(2, keepdim=True)
    squared = ((offset[..., :2] - start).square().sum(-1) + offset[..., 2].square()).mean(2)
    change = (path - path.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    way = torch.where(change < STILL, WAYS.index(("still", None)), squared.argmin(1))
    return way, squared.gather(1, way[:, None])[:, 0].sqrt()


# --------------------------------------------------------------------------------------------------------------- measures


def measure(videos: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """(B,) of each measure, from one reading; the videos of a prompt stand together.

    accuracy: text alignment, 1.0 where the video shows all that its prompt says, else 0.0. motion: quality of motion in [0, 1], the
    share of frames that show one and the same thing times exp(-astray / 1 pixel). visual: visual quality in [0, 1], mean over frames of
    1 less the squares that the drawing leaves over those that it draws, not less than 0 in any frame. overall: the mean of these three.
    flicker: RMS change between frames of what the drawing does not explain; first_frame: RMS distance of the first frame to
    the picture a prompt carries, NaN without; both in pixel units of [0, 1], lower is better. diversity: `diversity` of the prompt's
    videos, NaN where not defined.
    """
    seen, videos = read(videos), videos.detach().float().cpu()
    rest, drawn = videos - seen.drawing, seen.drawing - BACKGROUND
    accuracy = torch.tensor(
        [
            float(c is not None and says(parse(p), c))
            for c, p in zip(seen.clips, prompts, strict=True)
        ]
    )
    motion = seen.same * (-seen.astray).exp()
    visual = (
        (1 - rest.square().sum((2, 3, 4)) / drawn.square().sum((2, 3, 4)).clamp_min(1e-6))
        .clamp_min(0)
        .mean(1)
    )
    return {
        "accuracy": accuracy,
        "motion": motion,
        "visual": visual,
        "overall": (accuracy + motion + visual) / 3,
        "flicker": rest.diff(dim=1).square().flatten(1).mean(1).sqrt(),
        "first_frame": _first_frame(videos[:, 0], prompts),
        "diversity": _group_diversity(seen.clips, prompts),
    }


def share_right(videos: Tensor, prompts: list[str]) -> Tensor:
    """(B,) share of the attributes named by its prompt that the video shows, in [0, 1]; 1 or 0 for a prompt that names none."""
    shares = []
    for prompt, clip in zip(prompts, read(videos).clips, strict=True):
        named = [
            Clip(**{name: value})
            for name, value in vars(parse(prompt)).items()
            if value is not None
        ] or [Clip()]
        shares.append(sum(clip is not None and says(each, clip) for each in named) / len(named))
    return torch.tensor(shares)


def _first_frame(frames: Tensor, prompts: list[str]) -> Tensor:
    given = [getattr(p, "image", None) for p in prompts]
    rows = [
        torch.tensor(float("nan"))
        if image is None
        else (frame - pixels_of([image])[0]).square().mean().sqrt()
        for frame, image in zip(frames, given, strict=True)
    ]
    return torch.stack(rows)


def diversity(clips: list[Clip | None], prompt: str, pictured: bool = False) -> float | None:
    """Diversity of a group's videos in what the prompt leaves open: 1 as in the world, 0 when all are alike.

    For each open attribute (speed and motion are one), the chance that two recognised videos differ in it (Simpson's index, unbiased)
    over the same chance in the world; averaged over the attributes. A motion that the prompt rules out is left out of the motions.
    pictured: what it looks like is given by a picture, only the motion can be open. None if fewer than two are left in every attribute.
    """
    description = parse(prompt)
    looked = [
        (k, len(VALUES[k]))
        for k in ("shape", "colour")
        if getattr(description, k) is None and not pictured
    ]
    ways = [
        way
        for way in WAYS
        if says(Clip(motion=description.motion, speed=description.speed), Clip(None, None, *way))
    ]
    seen = [c for c in clips if c is not None]
    columns = [([getattr(c, k) for c in seen], n) for k, n in looked]
    columns.append(([(c.motion, c.speed) for c in seen if (c.motion, c.speed) in ways], len(ways)))
    ratios = [
        (1 - sum(v.count(x) * (v.count(x) - 1) for x in set(v)) / (len(v) * (len(v) - 1)))
        / (1 - 1 / n)
        for v, n in columns
        if n > 1 and len(v) > 1
    ]
    return sum(ratios) / len(ratios) if ratios else None


def _group_diversity(clips: list[Clip | None], prompts: list[str]) -> Tensor:
    values = []
    for _, group in itertools.groupby(range(len(prompts)), key=lambda i: key_of(prompts[i])):
        rows = list(group)
        value = diversity(
            [clips[i] for i in rows],
            prompts[rows[0]],
            getattr(prompts[rows[0]], "image", None) is not None,
        )
        values += [float("nan") if value is None else value] * len(rows)
    return torch.tensor(values)


METRICS = {"oracle": measure}


def error_rate(videos: Tensor, clips: list[Clip]) -> dict[str, float]:
    """How often the oracle misreads videos of known clips: any attribute wrong (unrecognised counts), and unrecognised."""
    seen, n = read(videos).clips, len(clips)
    wrong = sum(a != b for a, b in zip(seen, clips, strict=True)) / n
    return {"misread": wrong, "unrecognised": sum(a is None for a in seen) / n}

"""The metrics of clips, each against the corruptions that it is there to see."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d, pad

from bpgo.prompts import Prompt
from bpgo.worlds.clips.captions import wordings
from bpgo.worlds.clips.oracle import measure, read
from bpgo.worlds.clips.scenes import (
    DIRECTIONS,
    START,
    VALUES,
    Scene,
    draw,
    draw_frames,
    sample_pixels,
    sample_scenes,
)
from bpgo.worlds.forms import BACKGROUND
from tests.worlds.clips.helpers import EVERY, LOOKS, image_of, path_of
from tests.worlds.common import examples, generator

N = 64
LESS_IS_BETTER = {"flicker", "first_frame"}


def better(name, first, second):
    """(N,) where the first scores better than the second."""
    if name in LESS_IS_BETTER:
        return first[name] < second[name]
    return first[name] > second[name]


@pytest.fixture(scope="module")
def moving():
    """64 moving scenes, their starts, videos, prompts that name everything, and their metrics."""
    rng = random.Random(0)
    scenes = rng.sample([scene for scene in EVERY if scene.motion != "still"], N)
    starts = (2 * torch.rand(N, 2, generator=generator()) - 1) * START
    videos = draw(scenes, starts)
    prompts = []
    for scene, video in zip(scenes, videos, strict=True):
        prompts.append(Prompt(next(iter(wordings(scene))), image_of(video[0])))
    return scenes, starts, videos, prompts, measure(videos, prompts)


@examples
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["uniform", "flat", "clip", "mix"]),
    scale=st.floats(0, 1),
)
def test_metrics_keep_to_their_ranges(seed, kind, scale):
    g = generator(seed)
    clip = sample_pixels(sample_scenes(2, g), g)
    noise = torch.rand(2, 9, 3, 32, 32, generator=g)
    videos = {
        "uniform": noise * scale,
        "flat": torch.full_like(noise, scale),
        "clip": clip * scale,
        "mix": clip * scale + (1 - scale) * noise,
    }[kind]
    scores = measure(videos, ["a shape", "a thing"])
    for name in ("accuracy", "motion", "visual", "overall"):
        assert scores[name].isfinite().all()
        assert ((scores[name] >= 0) & (scores[name] <= 1)).all(), name
    assert scores["flicker"].isfinite().all()
    mean = (scores["accuracy"] + scores["motion"] + scores["visual"]) / 3
    torch.testing.assert_close(scores["overall"], mean)


# ------------------------------------------------------------------------------------- corruptions
# Each takes the scenes, their starts, their videos and a strength, and returns videos.


def normal(*shape):
    return torch.randn(shape, generator=generator(7))


def blurred(videos, width):
    axis = torch.arange(-6, 7.0)
    kernel = (-((axis / width) ** 2) / 2).exp()
    kernel = kernel / kernel.sum()
    rows = pad(videos.flatten(0, 2)[:, None], (6, 6, 6, 6), mode="replicate")
    return conv2d(conv2d(rows, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(videos)


def redrawn(scenes, starts, change):
    """The scenes drawn again; change(i, scene, path) gives a changed path (9, 3) or frames."""
    videos = []
    for i, (scene, start) in enumerate(zip(scenes, starts, strict=True)):
        made = change(i, scene, path_of(scene, 16 + start))
        if made.ndim == 2:
            made = draw_frames(scene.shape, scene.colour, made)
        videos.append(made)
    return torch.stack(videos)


def noise(scenes, starts, videos, strength):
    return (videos + strength * normal(*videos.shape)).clamp(0, 1)


def blur(scenes, starts, videos, strength):
    return blurred(videos, strength)


def fade(scenes, starts, videos, strength):
    contrast = torch.linspace(1, 1 - strength, 9)[:, None, None, None]
    return BACKGROUND + (videos - BACKGROUND) * contrast


def vanish(scenes, starts, videos, strength):
    """The last frames are empty."""
    kept = videos[:, : 9 - strength]
    return torch.cat([kept, torch.full_like(videos[:, 9 - strength :], BACKGROUND)], 1)


def second_thing(scenes, starts, videos, strength):
    """The video of another scene, nine pixels away, shines through."""
    other = videos.roll(5, 0).roll((7, 9), (3, 4))
    return torch.maximum(videos, BACKGROUND + (other - BACKGROUND) * strength)


def brightness(scenes, starts, videos, strength):
    return (videos + strength * normal(N, 9, 1, 1, 1)).clamp(0, 1)


def alternate_noise(scenes, starts, videos, strength):
    """Noise in every other frame."""
    odd = torch.arange(9)[:, None, None, None] % 2
    return (videos + strength * odd * normal(*videos.shape)).clamp(0, 1)


def shuffle(scenes, starts, videos, strength):
    """This many random frames in another order, none in its own place."""
    rng, rows = random.Random(3), []
    for video in videos:
        chosen = rng.sample(range(9), strength)
        moved = chosen
        while any(a == b for a, b in zip(chosen, moved, strict=True)):
            moved = rng.sample(chosen, strength)
        rows.append(video.clone())
        rows[-1][chosen] = video[moved]
    return torch.stack(rows)


def jump(scenes, starts, videos, strength):
    """A jump in a random direction before the sixth frame."""
    angle = 2 * math.pi * torch.rand(N, generator=generator(8))
    offset = torch.stack([angle.cos(), angle.sin(), torch.zeros(N)], 1) * strength
    return redrawn(scenes, starts, lambda i, _, path: torch.cat([path[:5], path[5:] + offset[i]]))


def shake(scenes, starts, videos, strength):
    """The centre jitters."""
    offset = torch.cat([normal(N, 9, 2), torch.zeros(N, 9, 1)], 2) * strength
    return redrawn(scenes, starts, lambda i, _, path: path + offset[i])


def switch(scenes, starts, kind, frames):
    """Another shape or colour in the last frames."""
    rng = random.Random(9)

    def change(_, scene, path):
        other = rng.choice([v for v in VALUES[kind] if v != getattr(scene, kind)])
        look = {"shape": scene.shape, "colour": scene.colour}
        first = draw_frames(**look, path=path[: 9 - frames])
        return torch.cat([first, draw_frames(**look | {kind: other}, path=path[9 - frames :])])

    return redrawn(scenes, starts, change)


def switch_shape(scenes, starts, videos, strength):
    return switch(scenes, starts, "shape", strength)


def switch_colour(scenes, starts, videos, strength):
    return switch(scenes, starts, "colour", strength)


CORRUPTIONS = [  # a corruption, three strengths, and the metrics that see it
    (noise, (0.03, 0.06, 0.2), ("visual", "overall", "flicker")),
    (blur, (0.8, 1.5, 3.0), ("visual", "overall")),
    (fade, (0.3, 0.5, 0.9), ("visual", "overall")),
    (vanish, (1, 4, 6), ("visual", "motion", "overall")),
    (second_thing, (0.2, 0.5, 1.0), ("visual", "overall")),
    (brightness, (0.02, 0.05, 0.1), ("flicker", "visual", "overall")),
    (alternate_noise, (0.03, 0.06, 0.2), ("flicker", "visual", "overall")),
    (shuffle, (3, 5, 9), ("motion", "overall")),
    (jump, (2, 4, 8), ("motion", "overall")),
    (switch_shape, (1, 2, 4), ("motion", "overall")),
    (switch_colour, (1, 2, 4), ("motion", "overall")),
    (shake, (0.4, 0.8, 2.0), ("motion", "overall")),
]


@pytest.mark.parametrize(
    ("corrupt", "strengths", "names"), CORRUPTIONS, ids=[row[0].__name__ for row in CORRUPTIONS]
)
def test_metrics_rank_the_clean_video_above_the_corrupted_one(moving, corrupt, strengths, names):
    scenes, starts, videos, prompts, clean = moving
    scores = [clean]
    for strength in strengths:
        scores.append(measure(corrupt(scenes, starts, videos, strength), prompts))
    for name in names:
        for corrupted in scores[1:]:
            assert better(name, clean, corrupted).float().mean() >= 0.95, name
        sign = -1 if name in LESS_IS_BETTER else 1
        means = [found[name].mean().item() * sign for found in scores]
        assert means == sorted(means, reverse=True), name
        assert means[0] > means[1] > means[3], name
    accuracies = [found["accuracy"].mean().item() for found in scores]
    assert accuracies == sorted(accuracies, reverse=True)


# --------------------------------------------------------------------------- values by other means


def test_a_stain_counts_by_its_squares_and_flickers_only_if_it_blinks():
    videos = draw([Scene(*look, "still") for look in LOOKS], torch.zeros(24, 2))
    stain = 0.03  # too faint to be taken for a part of the thing
    clean = measure(videos, ["it"] * 24)
    steady, blinking = videos.clone(), videos.clone()
    steady[..., :2, :] += stain
    blinking[:, 1::2, :, :2] += stain
    drawn = (read(videos).drawing - BACKGROUND).square().sum((2, 3, 4))[:, 0]
    lost, change = stain**2 * 3 * 64 / drawn, stain**2 * 64 / 1024
    for made, frames, squares in ((steady, 9, 0), (blinking, 4, change)):
        found = measure(made, ["it"] * 24)
        visual = clean["visual"] - lost * frames / 9
        torch.testing.assert_close(found["visual"], visual, atol=1e-4, rtol=0)
        flicker = (clean["flicker"].square() + squares).sqrt()
        torch.testing.assert_close(found["flicker"], flicker, atol=1e-5, rtol=0)
        assert torch.equal(found["motion"], clean["motion"])


def test_accuracy_sees_other_scenes_and_other_motions(moving):
    scenes, starts, videos, prompts, clean = moving
    assert clean["accuracy"].tolist() == [1.0] * N
    directional = torch.tensor([scene.motion in DIRECTIONS for scene in scenes])
    fast = torch.tensor([scene.speed == "fast" for scene in scenes])
    moments = torch.linspace(0, 4, 9)  # half of the way in the same nine frames

    def slowed(_, __, path):
        low, part = moments.long().clamp_max(7), (moments % 1)[:, None]
        return path[low] * (1 - part) + path[low + 1] * part

    corrupted = {
        "other": (videos.roll(1, 0), torch.ones(N, dtype=bool)),
        "reversed": (videos.flip(1), directional),
        "half speed": (redrawn(scenes, starts, slowed), fast),
    }
    for kind, (made, chosen) in corrupted.items():
        assert chosen.sum() > 10
        scores = measure(made, prompts)
        for name in ("accuracy", "overall"):
            assert better(name, clean, scores)[chosen].float().mean() >= 0.95, (kind, name)
    for wrong in (16, 32, 64):
        made = torch.cat([videos[:wrong].roll(1, 0), videos[wrong:]])
        assert measure(made, prompts)["accuracy"].mean() == 1 - wrong / N


def test_first_frame_is_the_distance_to_the_image_of_the_prompt(moving):
    scenes, starts, videos, prompts, clean = moving
    rounding = 0.5 / 255 + 1e-6  # of an image to whole levels
    assert clean["first_frame"].max() <= rounding
    angle = 2 * math.pi * torch.rand(N, generator=generator(8))
    aside = torch.stack([angle.cos(), angle.sin()], 1)
    moved = [draw(scenes, starts + pixels * aside) for pixels in (0.3, 1.0, 3.0)]
    soft = []
    for width in (0.5, 1.0, 2.0):
        soft.append(torch.cat([blurred(videos[:, :1], width), videos[:, 1:]], 1))
    other = [switch(scenes, starts, kind, 9) for kind in ("shape", "colour")]
    for made in (moved, soft, other):
        scores = [measure(video, prompts)["first_frame"] for video in made]
        for video, found in zip(made, scores, strict=True):
            assert (found > clean["first_frame"]).all()
            expected = (video[:, 0] - videos[:, 0]).square().mean((1, 2, 3)).sqrt()
            assert found == pytest.approx(expected, abs=rounding)
        if made is not other:
            means = [found.mean().item() for found in scores]
            assert means == sorted(means)
    later = torch.cat([videos[:, :1], torch.rand(N, 8, 3, 32, 32, generator=generator())], 1)
    assert torch.equal(measure(later, prompts)["first_frame"], clean["first_frame"])

"""Scenes of clips: paths measured on pixels."""

import itertools
import math
from collections import Counter

import pytest
import torch

from bpgo.worlds.clips.scenes import (
    DIRECTIONS,
    START,
    Scene,
    describes,
    draw,
    draw_frames,
    sample_pixels,
    sample_scenes,
)
from bpgo.worlds.forms import BACKGROUND
from tests.worlds.clips.helpers import DESCRIPTIONS, EVERY, fits, path_of
from tests.worlds.common import generator


def moments(videos):
    """(B, 9) centre of mass x and y, and area in units of the colour, measured on the pixels."""
    ink = (videos - BACKGROUND).norm(dim=2).double()
    axis = torch.arange(32) + 0.5
    total = ink.sum((2, 3))
    x, y = ((ink.sum(dim) * axis).sum(2) / total for dim in (2, 3))
    return x, y, total / ink.amax((1, 2, 3))[:, None]


def test_the_world_has_312_scenes_that_look_different():
    assert len(set(EVERY)) == len(EVERY) == 4 * 6 * (1 + 6 * 2) == 312
    assert {(s.motion == "still", s.speed is None) for s in EVERY} == {(True, True), (False, False)}
    flat = draw(list(EVERY), torch.zeros(312, 2)).flatten(1)
    distances = torch.cdist(flat, flat) + 1e9 * torch.eye(312)
    assert distances.min() / math.sqrt(flat.shape[1]) > 0.02  # RMS of the two most alike


def test_a_first_frame_tells_nothing_about_the_motion():
    scenes = sorted(EVERY, key=lambda scene: (scene.shape, scene.colour))
    starts = (2 * torch.rand(24, 2, generator=generator()) - 1) * START
    first = draw(scenes, starts.repeat_interleave(13, 0))[:, 0].unflatten(0, (24, 13))
    assert torch.equal(first, first[:, :1].expand_as(first))


def test_things_move_as_their_scene_states():
    x, y, area = moments(sample_pixels(list(EVERY), generator(1)))
    x, y, radius = x - x[:, :1], y - y[:, :1], (area / area[:, :1]).sqrt()
    time = torch.linspace(0, 1, 9).double()
    for i, scene in enumerate(EVERY):
        path, growth = torch.zeros(2, 9).double(), torch.ones(9).double()
        if scene.motion in DIRECTIONS:
            length = {"slow": 4, "fast": 9}[scene.speed]
            path = torch.tensor(DIRECTIONS[scene.motion])[:, None] * length * time
        if scene.motion == "bounce":
            times = {"slow": 1, "fast": 2}[scene.speed]
            path[1] = -8 * (math.pi * times * time).sin().abs()
        if scene.motion == "grow":
            growth = 1 + {"slow": 0.4, "fast": 1.0}[scene.speed] * time
        else:  # the centre of mass of a growing triangle drifts away from its centre
            assert (torch.stack([x[i], y[i]]) - path).abs().max() < 0.08, scene
        assert (radius[i] - growth).abs().max() < 0.025, scene


@pytest.mark.parametrize("corner", list(itertools.product((-START, START), repeat=2)), ids=str)
def test_everything_stays_inside_the_image(corner):
    """The area is the same as in the middle, where nothing is cut off, at the same subpixels."""
    scenes = [scene for scene in EVERY if scene.colour == "white"]
    offset = torch.tensor(corner)
    videos = draw(scenes, offset.expand(len(scenes), 2))
    for scene, video in zip(scenes, videos, strict=True):
        path = path_of(scene, 16 + offset)
        path[:, :2] -= (path[:, :2] - 16).round()
        middle = draw_frames(scene.shape, "white", path)
        lost = (middle.sum((1, 2, 3)) - video.sum((1, 2, 3))) / 3 / 0.85
        assert lost.abs().max() < 0.02, scene  # pixels of area


def test_scenes_and_starts_are_sampled_uniformly():
    counts = Counter(sample_scenes(31200, generator(3)))
    chi = sum((counts[scene] - 100) ** 2 / 100 for scene in EVERY)
    assert abs(chi - 311) < 5 * math.sqrt(2 * 311)
    x, y, _ = moments(sample_pixels([Scene("circle", "white", "still")] * 300, generator(4)))
    for start in (x[:, 0] - 16, y[:, 0] - 16):
        assert start.abs().max() < START + 0.05
        assert abs(start.mean()) < 5 * START / math.sqrt(3 * 300)
        assert start.std().item() == pytest.approx(START / math.sqrt(3), rel=0.15)


def test_a_description_describes_what_its_words_allow():
    for description in DESCRIPTIONS[::5]:
        expected = [fits(description, scene) for scene in EVERY]
        assert [describes(description, scene) for scene in EVERY] == expected

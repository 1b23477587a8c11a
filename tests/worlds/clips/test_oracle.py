"""The oracle of clips: what it reads, where, and what the diversity of a group is."""

import itertools
import random
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bpgo.prompts import Prompt
from bpgo.worlds.clips import oracle
from bpgo.worlds.clips.captions import parse, wordings
from bpgo.worlds.clips.oracle import measure, read
from bpgo.worlds.clips.scenes import (
    START,
    Scene,
    draw,
    draw_frames,
    sample_pixels,
    track,
)
from bpgo.worlds.forms import BACKGROUND, COLOURS
from bpgo.worlds.shapes import scenes as shapes_scenes
from tests.worlds.clips.helpers import DESCRIPTIONS, EVERY, LOOKS, fits, image_of, path_of
from tests.worlds.common import examples, generator


@pytest.fixture(scope="module")
def world():
    """Every scene once, from a random start."""
    return sample_pixels(list(EVERY), generator(1))


def test_every_scene_is_read_and_where_it_is(world):
    seen = read(world)
    assert seen.scenes == list(EVERY)
    assert oracle.error_rate(world, list(EVERY)) == {"misread": 0.0, "unrecognised": 0.0}
    starts = (2 * torch.rand(312, 2, generator=generator(1)) - 1) * START  # those of `world`
    centres = torch.cat([16 + starts, torch.zeros(312, 1)], 1)[:, None]
    truth = torch.stack([track(scene.motion, scene.speed) for scene in EVERY]) + centres
    assert (seen.path - truth).abs().max() < 0.15
    assert seen.astray.max() < 0.1
    assert torch.equal(seen.same, torch.ones(312))
    distance = (seen.drawing - world).square().mean((1, 2, 3, 4)).sqrt()
    assert distance == pytest.approx(seen.distance, abs=1e-6)
    assert seen.distance.max() < 0.01


def test_a_little_noise_and_the_batch_do_not_change_a_reading(world):
    noisy = (world + 0.02 * torch.randn(world.shape, generator=generator())).clamp(0, 1)
    assert read(noisy).scenes == list(EVERY)
    some = noisy[::39]
    together = read(some)
    for i, video in enumerate(some):
        alone = read(video[None])
        assert alone.scenes[0] == together.scenes[i]
        torch.testing.assert_close(alone.path[0], together.path[i])


@examples
@given(scene=st.sampled_from(EVERY), dx=st.integers(-1, 1), dy=st.integers(-1, 1))
def test_a_video_moved_by_a_pixel_is_read_a_pixel_away(scene, dx, dy):
    video = draw([scene], torch.tensor([[0.3, -0.2]]))
    here, there = read(video), read(video.roll((dy, dx), (3, 4)))
    assert here.scenes == there.scenes == [scene]
    moved = torch.tensor([dx, dy, 0.0]).expand(1, 9, 3)
    torch.testing.assert_close(there.path - here.path, moved, atol=1e-4, rtol=0)


def test_same_counts_the_frames_that_show_what_the_video_shows():
    path = path_of(Scene(motion="still"), (16, 16))
    for shape, colour in LOOKS:
        other_colour = next(c for c in COLOURS if c != colour)
        empty = torch.full((2, 3, 32, 32), BACKGROUND)
        for odd in (empty, draw_frames(shape, other_colour, path[:2])):
            video = torch.cat([draw_frames(shape, colour, path[2:]), odd])
            assert read(video[None]).same.item() == pytest.approx(7 / 9), (shape, colour)
    still = draw([Scene(*look, "still") for look in LOOKS], torch.zeros(24, 2))
    assert torch.equal(read(still).same, torch.ones(24))


# ------------------------------------------------------------------------------- what is not a clip


def paint(under, scene, path):
    """The frames with one more thing painted on them."""
    colour = torch.tensor(COLOURS[scene.colour])
    line = colour - BACKGROUND
    frames = draw_frames(scene.shape, scene.colour, path) - BACKGROUND
    cover = torch.einsum("tchw,c->thw", frames, line)[:, None] / line.square().sum()
    return under * (1 - cover) + colour[:, None, None] * cover


def two_things():
    """(120, 9, 3, 32, 32) videos of two things, still or moving up together."""
    rng, videos = random.Random(0), []
    pairs = rng.choices(list(itertools.product(LOOKS, LOOKS)), k=60)
    for (first, second), way in itertools.product(pairs, (("still", None), ("up", "slow"))):
        video = torch.full((9, 3, 32, 32), BACKGROUND)
        for look, x in ((first, 8), (second, 24)):
            scene = Scene(*look, *way)
            video = paint(video, scene, path_of(scene, (x, 16)))
        videos.append(video)
    return torch.stack(videos)


def drawings_of_shapes():
    """Drawings of the shapes world, of pairs and of large things, as videos without motion."""
    single = [s for s in shapes_scenes.all_scenes(1)[::3] if s.things[0].size == "large"]
    scenes = [*shapes_scenes.all_scenes(2)[::9], *single]
    images = shapes_scenes.sample_pixels(scenes, generator())
    return images[:, None].repeat(1, 9, 1, 1, 1)


@cache
def not_a_clip():
    noise = torch.rand(8, 9, 3, 32, 32, generator=generator())
    zigzag = torch.tensor([[16.0, 16 + 6 * (-1) ** t, 4.5] for t in range(9)])
    tiny = torch.tensor([[16.0, 16.0, 1.5]] * 9)
    blue = torch.tensor(COLOURS["blue"])[:, None, None]
    return {
        "empty": torch.full((1, 9, 3, 32, 32), BACKGROUND),
        "noise": noise,
        "still noise": noise[:, :1].expand_as(noise),
        "two things": two_things(),
        "the shapes world": drawings_of_shapes(),
        "negatives": 1 - sample_pixels(list(EVERY[::20]), generator()),
        "zigzag": draw_frames("circle", "red", zigzag)[None],
        "tiny": draw_frames("circle", "red", tiny)[None],
        "filled": blue.expand(1, 9, 3, 32, 32),
        "white": torch.ones(1, 9, 3, 32, 32),
    }


@pytest.mark.parametrize("kind", list(not_a_clip()))
def test_nothing_is_read_where_there_is_no_clip(kind):
    videos = not_a_clip()[kind]
    assert read(videos).scenes == [None] * len(videos)


@pytest.mark.parametrize("kind", ["empty", "noise", "negatives", "filled", "white"])
def test_what_shows_no_thing_is_not_well_drawn_either(kind):
    videos = not_a_clip()[kind]
    assert measure(videos, ["a shape"] * len(videos))["overall"].max() < 0.15


# --------------------------------------------------------------------------------- share, diversity


def test_the_share_that_is_right_counts_attributes():
    video = draw([Scene("square", "blue", "left", "fast")], torch.zeros(1, 2))
    shares = {
        "a blue square moves left fast": 1,
        "a red square moves left fast": 3 / 4,
        "a red circle does not move": 0,
        "a blue thing is in motion": 1,
        "a red thing is in motion": 1 / 2,
        "it": 1,
    }
    found = oracle.share_right(video.expand(6, -1, -1, -1, -1), list(shares))
    assert found.tolist() == pytest.approx(list(shares.values()))


def simpson(scenes, prompt, pictured):
    """Diversity by brute force: over all ordered pairs of two videos, for each open attribute."""
    description, ratios = parse(prompt), []
    seen = [scene for scene in scenes if scene is not None]
    fitting = [scene for scene in EVERY if fits(description, scene)]
    if pictured:
        look = (fitting[0].shape, fitting[0].colour)
        fitting = [scene for scene in fitting if (scene.shape, scene.colour) == look]
    for names in (("shape",), ("colour",), ("motion", "speed")):
        possible = {tuple(getattr(scene, name) for name in names) for scene in fitting}
        values = [tuple(getattr(scene, name) for name in names) for scene in seen]
        if "motion" in names:
            values = [value for value in values if value in possible]
        pairs = [a != b for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
        if len(possible) > 1 and pairs:
            ratios.append(sum(pairs) / len(pairs) / (1 - 1 / len(possible)))
    return sum(ratios) / len(ratios) if ratios else None


@examples
@given(st.data())
def test_diversity_is_that_of_all_pairs(data):
    text = next(iter(wordings(data.draw(st.sampled_from(DESCRIPTIONS)))))
    few = data.draw(st.lists(st.sampled_from(EVERY), min_size=1, max_size=4))
    scenes = data.draw(st.lists(st.sampled_from([None, *few]), max_size=8))
    pictured = data.draw(st.booleans())
    prompt = Prompt(text, Image.new("RGB", (32, 32))) if pictured else text
    expected = simpson(scenes, text, pictured)
    assert oracle.diversity(scenes, prompt) == pytest.approx(expected)


@pytest.mark.parametrize(
    "prompt", ["a red shape", "a circle moves", "a red circle moves fast", "a red circle goes left"]
)
def test_diversity_is_one_for_what_the_prompt_leaves_open(prompt):
    rng, fitting = random.Random(1), [scene for scene in EVERY if fits(parse(prompt), scene)]
    groups = [oracle.diversity(rng.choices(fitting, k=4), prompt) for _ in range(1500)]
    room = 0.06 if prompt.endswith("left") else 0.03
    assert sum(groups) / len(groups) == pytest.approx(1, abs=room)
    assert oracle.diversity([fitting[0]] * 5, prompt) == 0


def test_videos_that_do_not_follow_the_prompt_do_not_add_diversity():
    left, up = Scene("circle", "red", "left", "slow"), Scene("circle", "red", "up", "fast")
    assert oracle.diversity([left, left, up, up], "a red circle moves left") == 0


def test_groups_of_image_to_video_share_the_text_and_the_image(world):
    def rows_of(colour, ways):
        return [EVERY.index(Scene("circle", colour, way, "slow")) for way in ways]

    rows = rows_of("red", ("left", "left", "up")) + rows_of("blue", ("left", "up"))
    red, blue = image_of(world[rows[0], 0]), image_of(world[rows[3], 0])
    prompts = [Prompt("it moves", image) for image in (red, red, red, blue, blue)]
    metrics = measure(world[rows], prompts)
    # Of the ordered pairs four of six differ in the first group, and two of two in the second.
    expected = [2 / 3 / (11 / 12)] * 3 + [12 / 11] * 2
    assert metrics["diversity"].tolist() == pytest.approx(expected)
    without = measure(world[rows], ["it moves"] * 5)
    assert without["first_frame"].isnan().all()
    assert without["diversity"].unique().numel() == 1
    mixed = measure(world[rows], [*prompts[:3], "a shape", "a thing"])
    assert mixed["first_frame"].isnan().tolist() == [False] * 3 + [True] * 2
    assert mixed["diversity"].isnan().tolist() == [False] * 3 + [True] * 2

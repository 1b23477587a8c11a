"""The world of clips: paths measured on pixels, captions against their own enumeration, the oracle, its measures against corruptions."""

import itertools
import json
import math
import random
from collections import Counter, defaultdict
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import conv2d, pad

from bpgo.files import SHIPPED
from bpgo.prompts import Prompt
from bpgo.worlds.clips import oracle as clip_oracle
from bpgo.worlds.clips.captions import (
    VOCABULARY,
    WORDS,
    clip_bits,
    graded_prompts,
    omissions,
    parse,
    prompt_bits,
    sample_caption,
    wordings,
)
from bpgo.worlds.clips.oracle import measure, read
from bpgo.worlds.clips.scenes import (
    MOVING,
    START,
    Clip,
    all_clips,
    draw_clips,
    draw_frames,
    sample_clips,
    sample_videos,
    says,
    track,
)
from bpgo.worlds.shapes.captions import MENTION
from bpgo.worlds.shapes.scenes import BACKGROUND, COLOURS, VALUES, all_scenes, sample_pictures

EVERY = all_clips()
LOOKS = list(itertools.product(VALUES["shape"], VALUES["colour"]))
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # y points down
DESCRIPTIONS = [
    Clip(shape, colour, motion, speed)
    for shape, colour in itertools.product((None, *VALUES["shape"]), (None, *VALUES["colour"]))
    for motion, speed in [
        (None, None),
        ("still", None),
        *itertools.product((MOVING, *DIRECTIONS, "bounce", "grow"), (None, "slow", "fast")),
    ]
]
examples = settings(max_examples=60, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------------- the world


@pytest.fixture(scope="module")
def world():
    """Every clip once, from a random start."""
    return sample_videos(list(EVERY), generator(1))


def moments(videos):
    """(B, 9) centre of mass x and y, from the pixels' distance to the background, and area in units of the whole colour."""
    ink = (videos - BACKGROUND).norm(dim=2).double()
    at = torch.arange(32) + 0.5
    total = ink.sum((2, 3))
    return (
        (ink.sum(2) * at).sum(2) / total,
        (ink.sum(3) * at).sum(2) / total,
        total / ink.amax((1, 2, 3))[:, None],
    )


def test_the_world_has_312_clips(world):
    assert len(set(EVERY)) == len(EVERY) == 4 * 6 * (1 + 6 * 2) == 312
    assert {(c.motion == "still", c.speed is None) for c in EVERY} == {(True, True), (False, False)}
    assert world.shape == (312, 9, 3, 32, 32)
    assert world.dtype == torch.float32
    assert 0 <= world.min() <= world.max() <= 1
    flat = draw_clips(list(EVERY), torch.zeros(312, 2)).flatten(1)
    apart = torch.cdist(flat, flat) + 1e9 * torch.eye(312)
    assert apart.min() / math.sqrt(flat.shape[1]) > 0.02  # RMS over pixels of the two most alike


def test_a_first_frame_says_nothing_of_the_motion():
    clips = sorted(EVERY, key=lambda c: (c.shape, c.colour))
    starts = (2 * torch.rand(24, 2, generator=generator()) - 1) * START
    first = draw_clips(clips, starts.repeat_interleave(13, 0))[:, 0].unflatten(0, (24, 13))
    assert torch.equal(first, first[:, :1].expand_as(first))


def test_things_move_as_is_said(world):
    x, y, area = moments(world)
    x, y, radius = x - x[:, :1], y - y[:, :1], (area / area[:, :1]).sqrt()
    seconds = torch.linspace(0, 1, 9).double()
    for i, clip in enumerate(EVERY):
        path, growth = torch.zeros(2, 9).double(), torch.ones(9).double()
        if clip.motion in DIRECTIONS:
            path = (
                torch.tensor(DIRECTIONS[clip.motion])[:, None]
                * {"slow": 4, "fast": 9}[clip.speed]
                * seconds
            )
        if clip.motion == "bounce":
            path[1] = -8 * (math.pi * {"slow": 1, "fast": 2}[clip.speed] * seconds).sin().abs()
        if clip.motion == "grow":
            growth = 1 + {"slow": 0.4, "fast": 1.0}[clip.speed] * seconds
        if clip.motion != "grow":  # a growing triangle's centre of mass drifts from its centre
            assert (torch.stack([x[i], y[i]]) - path).abs().max() < 0.08, clip
        assert (radius[i] - growth).abs().max() < 0.025, clip


def test_everything_stays_inside_the_picture():
    corners = torch.tensor(list(itertools.product((-START, START), repeat=2)))
    whites = [c for c in EVERY if c.colour == "white"]
    for corner in corners:
        for clip, drawn in zip(
            whites, draw_clips(whites, corner.expand(len(whites), 2)), strict=True
        ):
            path = path_of(clip, 16 + corner)
            path[:, :2] -= (
                path[:, :2] - 16
            ).round()  # the same by whole pixels, in the middle, where there is room
            lost = (
                (draw_frames(clip.shape, "white", path).sum((1, 2, 3)) - drawn.sum((1, 2, 3)))
                / 3
                / 0.85
            )
            assert lost.abs().max() < 0.02, clip  # pixels of area


def test_clips_and_starts_are_drawn_uniformly():
    clips = sample_clips(31200, generator(3))
    counts = Counter(clips)
    chi = sum((counts[c] - 100) ** 2 / 100 for c in EVERY)
    assert abs(chi - 311) < 5 * math.sqrt(2 * 311)
    x, y, _ = moments(sample_videos([Clip("circle", "white", "still")] * 300, generator(4)))
    for at in (x[:, 0] - 16, y[:, 0] - 16):
        assert at.abs().max() < START + 0.05
        assert abs(at.mean()) < 5 * START / math.sqrt(3 * 300)
        assert at.std().item() == pytest.approx(START / math.sqrt(3), rel=0.15)


def fits(description, clip):
    """`says` in a table: what each word of a motion allows."""
    allowed = {
        None: {*DIRECTIONS, "bounce", "grow", "still"},
        MOVING: {*DIRECTIONS, "bounce", "grow"},
    }
    return (
        clip.motion in allowed.get(description.motion, {description.motion})
        and description.shape in (None, clip.shape)
        and description.colour in (None, clip.colour)
        and description.speed in (None, clip.speed)
    )


def test_a_description_says_what_its_words_allow():
    for description in DESCRIPTIONS[::5]:
        assert [says(description, clip) for clip in EVERY] == [
            fits(description, clip) for clip in EVERY
        ]


# -------------------------------------------------------------------------------------------------------------- captions


def test_every_wording_of_every_description_parses_back_to_it():
    assert len(set(DESCRIPTIONS)) == 5 * 7 * 23
    seen = {}
    for description in DESCRIPTIONS:
        said = wordings(description)
        assert math.isclose(math.fsum(said.values()), 1)
        assert min(said.values()) > 0
        for caption in said:
            assert parse(caption) == description, caption
            assert seen.setdefault(caption, description) == description
            assert set(caption.split()) <= set(VOCABULARY)
    assert {word for caption in seen for word in caption.split()} == set(VOCABULARY)


def ways(clip):
    """Every caption of a clip with its probability, anew: attributes named with MENTION, two words each, the speed first or last."""
    found = defaultdict(float)

    def said(kind, value):
        return [(1 - MENTION, None, "")] + [
            (MENTION / 2, value, word) for word in WORDS[kind][value]
        ]

    speeds = said("speed", clip.speed) if clip.motion != "still" else [(1, None, "")]
    for shape, colour, motion, speed in itertools.product(
        said("shape", clip.shape), said("colour", clip.colour), said("motion", clip.motion), speeds
    ):
        p = shape[0] * colour[0] * motion[0] * speed[0]
        nouns = [shape[2]] if shape[1] else ["shape", "thing"]
        subjects = [" ".join(f"a {colour[2]} {noun}".split()) for noun in nouns] + ["it"] * (
            not shape[1] and not colour[1]
        )
        if motion[1]:
            moves = [(1, motion[2])]
        elif clip.motion == "still":
            moves = [(1, "")]
        else:  # that it moves is said half the time, and always with a speed
            silent = 0 if speed[1] else 0.5
            moves = [(silent, ""), ((1 - silent) / 2, "moves"), ((1 - silent) / 2, "is in motion")]
        for subject, (q, move) in itertools.product(subjects, moves):
            for parts in ((subject, move, speed[2]), (speed[2], subject, move)):
                if q:
                    found[" ".join(part for part in parts if part)] += p * q / len(subjects) / 2
    return found


@pytest.fixture(scope="module")
def joint():
    return {clip: ways(clip) for clip in EVERY}


def entropy(weights):
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log2(w / total) for w in weights if w)


def test_the_probabilities_of_captions_are_those_of_the_enumeration(joint):
    for clip in EVERY[::17]:
        left = omissions(clip)
        assert math.isclose(math.fsum(left.values()), 1)
        assert all(fits(description, clip) for description in left)
        ours = defaultdict(float)
        for description, p in left.items():
            for caption, q in wordings(description).items():
                ours[caption] += p * q
        assert ours == pytest.approx(joint[clip], abs=1e-12)
        assert clip_bits(clip) == pytest.approx(entropy(joint[clip].values()), abs=1e-9)


def test_bits_of_prompts_are_those_of_the_clips_that_can_be_said_so(joint):
    clips_of = defaultdict(list)
    for clip, said in joint.items():
        assert math.isclose(math.fsum(said.values()), 1)
        for caption in said:
            clips_of[caption].append(clip)
    assert len(clips_of) > 5000
    for caption in [
        *random.Random(0).sample(sorted(clips_of), 300),
        "it",
        "it moves",
        "a shape",
        "slowly a thing is in motion",
    ]:
        assert prompt_bits(caption) == pytest.approx(math.log2(len(clips_of[caption])), abs=1e-9), (
            caption
        )
        picture = random.Random(caption).choice(clips_of[caption])
        alike = [
            c for c in clips_of[caption] if (c.shape, c.colour) == (picture.shape, picture.colour)
        ]
        assert prompt_bits(caption, picture) == pytest.approx(math.log2(len(alike)), abs=1e-9), (
            caption
        )


def test_bits_that_can_be_said_by_heart():
    assert prompt_bits("a shape") == prompt_bits("it") == pytest.approx(math.log2(312))
    assert prompt_bits("it moves", EVERY[0]) == pytest.approx(math.log2(12))
    assert prompt_bits("it", EVERY[0]) == pytest.approx(math.log2(13))
    assert prompt_bits("a shape moves") == pytest.approx(math.log2(24 * 12))
    assert prompt_bits("a thing moves fast") == pytest.approx(math.log2(24 * 6))
    assert prompt_bits("a red circle moves left") == pytest.approx(1)
    assert prompt_bits("quickly a red circle hops") == prompt_bits("it stays still", EVERY[5]) == 0


@pytest.mark.parametrize(
    "clip",
    [Clip("cross", "red", "bounce", "fast"), Clip("circle", "blue", "still")],
    ids=lambda c: c.motion,
)
def test_sampled_captions_have_the_probabilities_of_the_enumeration(joint, clip):
    rng, n = random.Random(5), 20000
    captions = Counter(sample_caption(clip, rng) for _ in range(n))
    descriptions = Counter()
    for caption, count in captions.items():
        descriptions[parse(caption)] += count
    for counts, expected in ((captions, joint[clip]), (descriptions, omissions(clip))):
        assert counts.keys() <= expected.keys()
        often = [k for k, p in expected.items() if p * n >= 5]
        chi = sum((counts[k] - expected[k] * n) ** 2 / (expected[k] * n) for k in often)
        assert chi < len(often) + 5 * math.sqrt(2 * len(often))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", "what it is about"),
        ("a mauve circle", "mauve"),
        ("a red dog flies left", "dog, flies"),
        ("a red circle left", "left"),  # a word of the world, but only after "moves"
        ("a red blue circle", "blue circle"),
        ("a circle moves left rises", "rises"),
        ("a circle moves left moves left", "moves left"),
        ("a circle a square", "a square"),
        ("a circle shape", "shape"),
        ("a a", "a"),
        ("it a circle", "what it is about"),
        ("it red", "what it is about"),
        ("a moves left", "what it is about"),
        ("red circle", "what it is about"),
        ("moves left slowly", "what it is about"),
        ("a circle stays still fast", "what is still has no speed"),
        ("a circle slowly moves fast", "fast"),
        ("it does not", "does not"),
    ],
)
def test_what_is_no_caption_of_a_clip_is_refused_with_its_words(caption, words):
    with pytest.raises(ValueError, match="not a caption of a clip") as error:
        parse(caption)
    assert words in str(error.value)


def test_captions_are_read_whatever_their_case_commas_and_order():
    assert parse("Slowly, a RED circle moves left") == Clip("circle", "red", "left", "slow")
    assert parse("a red circle slowly moves left") == Clip("circle", "red", "left", "slow")
    assert parse("a red circle, slowly") == Clip(
        "circle", "red", MOVING, "slow"
    )  # what has a speed moves


@pytest.mark.parametrize("pictures", [False, True])
def test_graded_prompts_are_what_their_rows_say(pictures):
    found = graded_prompts(200, 3, 0.75, pictures)
    assert sum(row["level"] == 1 for _, row in found) == 150
    assert sum(row["bits"] == 0 for _, row in found) == 150
    for clip, row in found:
        description = parse(row["prompt"])
        assert fits(description, clip)
        names = (
            ["motion"] + ["speed"] * (clip.motion != "still") + ["shape", "colour"] * (not pictures)
        )
        named = [name for name in names if getattr(description, name) not in (None, MOVING)]
        assert row["level"] == round(len(named) / len(names), 3)
        fitting = [
            c
            for c in EVERY
            if fits(description, c)
            and (not pictures or (c.shape, c.colour) == (clip.shape, clip.colour))
        ]
        assert row["bits"] == round(math.log2(len(fitting)), 4)
    levels = Counter(row["level"] for _, row in found)
    assert len(levels) >= (
        3 if pictures else 4
    )  # still: 0 of 1; moving: 0 or 1 of 2 - or 0 to 3 of 4
    assert [row["level"] for _, row in found[:150]] != [1.0] * 150  # shuffled
    assert found == graded_prompts(200, 3, 0.75, pictures)
    assert found != graded_prompts(200, 4, 0.75, pictures)
    assert sum(row["level"] == 1 for _, row in graded_prompts(7, 0, 0.5, pictures)) == round(3.5)


# ------------------------------------------------------------------------------------------------------------- the oracle


def test_the_oracle_reads_every_clip_and_where_it_is(world):
    seen = read(world)
    assert seen.clips == list(EVERY)
    assert clip_oracle.error_rate(world, list(EVERY)) == {"misread": 0.0, "unrecognised": 0.0}
    starts = (2 * torch.rand(312, 2, generator=generator(1)) - 1) * START  # as `world` draws them
    truth = (
        torch.stack([track(c.motion, c.speed) for c in EVERY])
        + torch.cat([16 + starts, torch.zeros(312, 1)], 1)[:, None]
    )
    assert (seen.path - truth).abs().max() < 0.15
    assert seen.astray.max() < 0.1
    assert torch.equal(seen.same, torch.ones(312))
    assert (seen.drawing - world).square().mean((1, 2, 3, 4)).sqrt() == pytest.approx(
        seen.distance, abs=1e-6
    )
    assert seen.distance.max() < 0.01


def test_errors_are_counted(world):
    clips = [Clip("circle", "red", "still"), *EVERY[1:8]]
    videos = torch.cat([torch.full((1, 9, 3, 32, 32), BACKGROUND), world[1:8]])
    clips[3] = Clip("cross", "white", "up", "slow")
    assert clip_oracle.error_rate(videos, clips) == {"misread": 2 / 8, "unrecognised": 1 / 8}


def test_readings_stand_little_noise_and_do_not_depend_on_the_batch(world):
    noisy = (world + 0.02 * torch.randn(world.shape, generator=generator())).clamp(0, 1)
    assert read(noisy).clips == list(EVERY)
    some = noisy[::39]
    among = read(some)
    for i, video in enumerate(some):
        alone = read(video[None])
        assert alone.clips[0] == among.clips[i]
        torch.testing.assert_close(alone.path[0], among.path[i])


@examples
@given(clip=st.sampled_from(EVERY), dx=st.integers(-1, 1), dy=st.integers(-1, 1))
def test_a_whole_pixel_moves_the_reading_by_it(clip, dx, dy):
    video = draw_clips([clip], torch.tensor([[0.3, -0.2]]))
    here, there = read(video), read(video.roll((dy, dx), (3, 4)))
    assert here.clips == there.clips == [clip]
    torch.testing.assert_close(
        there.path - here.path, torch.tensor([dx, dy, 0.0]).expand(1, 9, 3), atol=1e-4, rtol=0
    )


def test_same_counts_the_frames_that_show_what_the_video_shows():
    starts = torch.zeros(24, 2)
    for shape, colour in LOOKS:
        path = path_of(Clip(motion="still"), (16, 16))
        other = next(c for c in COLOURS if c != colour)
        for odd in (torch.full((2, 3, 32, 32), BACKGROUND), draw_frames(shape, other, path[:2])):
            video = torch.cat([draw_frames(shape, colour, path[2:]), odd])
            assert read(video[None]).same.item() == pytest.approx(7 / 9), (shape, colour)
    assert torch.equal(
        read(draw_clips([Clip(*look, "still") for look in LOOKS], starts)).same, torch.ones(24)
    )


def paint(under, clip, path):
    """The frames with one more thing painted on."""
    d = torch.tensor(COLOURS[clip.colour]) - BACKGROUND
    cover = (
        torch.einsum("tchw,c->thw", draw_frames(clip.shape, clip.colour, path) - BACKGROUND, d)[
            :, None
        ]
        / d.square().sum()
    )
    return under * (1 - cover) + torch.tensor(COLOURS[clip.colour])[:, None, None] * cover


def path_of(clip, centre):
    path = track(clip.motion, clip.speed).clone()
    path[:, :2] += torch.as_tensor(centre, dtype=torch.float32)
    return path


@cache
def not_a_clip():
    empty, rng = torch.full((9, 3, 32, 32), BACKGROUND), random.Random(0)
    pairs = []
    for (a, b), motion in itertools.product(
        rng.choices(list(itertools.product(LOOKS, LOOKS)), k=60), ("still", "up")
    ):
        first, second = (
            Clip(*look, motion, None if motion == "still" else "slow") for look in (a, b)
        )
        pairs.append(
            paint(paint(empty, first, path_of(first, (8, 16))), second, path_of(second, (24, 16)))
        )
    noise = torch.rand(8, 9, 3, 32, 32, generator=generator())
    scenes = [*all_scenes(2)[::9], *(s for s in all_scenes(1)[::3] if s.things[0].size == "large")]
    zigzag = torch.tensor([[16.0, 16 + 6 * (-1) ** t, 4.5] for t in range(9)])
    return {
        "empty": empty[None],
        "black": torch.zeros(1, 9, 3, 32, 32),
        "white": torch.ones(1, 9, 3, 32, 32),
        "noise": noise,
        "one picture of noise": noise[:, :1].expand_as(noise),
        "two things": torch.stack(pairs),
        "the world of pictures": sample_pictures(scenes, generator())[:, None].repeat(
            1, 9, 1, 1, 1
        ),
        "inverted": 1 - sample_videos(list(EVERY[::20]), generator()),
        "zigzag": draw_frames("circle", "red", zigzag)[None],
        "tiny": draw_frames("circle", "red", torch.tensor([[16.0, 16.0, 1.5]] * 9))[None],
        "filled": torch.tensor(COLOURS["blue"])[:, None, None].expand(1, 9, 3, 32, 32),
    }


@pytest.mark.parametrize("kind", not_a_clip())
def test_the_oracle_sees_nothing_where_there_is_no_clip(kind):
    videos = not_a_clip()[kind]
    assert read(videos).clips == [None] * len(videos)
    scores = measure(videos, ["a shape"] * len(videos))
    assert scores["accuracy"].tolist() == [0.0] * len(videos)
    if kind in ("empty", "black", "white", "noise", "filled", "inverted"):
        assert scores["overall"].max() < 0.15  # nor is it well drawn


@pytest.mark.parametrize(
    "shape",
    [(9, 3, 32, 32), (2, 8, 3, 32, 32), (2, 9, 1, 32, 32), (2, 9, 3, 64, 64), (2, 3, 9, 32, 32)],
)
def test_videos_of_another_world_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"the oracle reads \(B, 9, 3, 32, 32\) videos of the shapes world, not \("
    ):
        read(torch.zeros(shape))


def test_half_precision_is_read_and_no_gradient_is_kept(world):
    videos = world[:4].half().requires_grad_()
    assert read(videos).clips == list(EVERY[:4])
    assert not any(v.requires_grad for v in measure(videos, ["it"] * 4).values())


def test_accuracy_is_whether_the_prompt_says_so(world):
    rng = random.Random(0)
    for prompts in (
        [sample_caption(c, rng) for c in EVERY],
        [sample_caption(rng.choice(EVERY), rng) for _ in EVERY],
    ):
        expected = [float(fits(parse(p), c)) for p, c in zip(prompts, EVERY, strict=True)]
        assert measure(world, prompts)["accuracy"].tolist() == expected
    assert 0 < sum(expected) < 150


def simpson(clips, prompt, pictured):
    """Diversity by brute force: over all ordered pairs of two videos, for each attribute that the prompt leaves open."""
    said, ratios = parse(prompt), []
    seen = [c for c in clips if c is not None]
    fitting = [c for c in EVERY if fits(said, c)]
    if pictured:
        fitting = [
            c for c in fitting if (c.shape, c.colour) == (fitting[0].shape, fitting[0].colour)
        ]
    for part in (lambda c: c.shape, lambda c: c.colour, lambda c: (c.motion, c.speed)):
        possible = {part(c) for c in fitting}
        is_way = isinstance(next(iter(possible)), tuple)
        values = [part(c) for c in seen if not is_way or part(c) in possible]
        pairs = [
            a != b for (i, a), (j, b) in itertools.product(enumerate(values), repeat=2) if i != j
        ]
        if len(possible) > 1 and pairs:
            ratios.append(sum(pairs) / len(pairs) / (1 - 1 / len(possible)))
    return sum(ratios) / len(ratios) if ratios else None


@examples
@given(st.data())
def test_diversity_is_that_of_all_pairs(data):
    prompt = next(iter(wordings(data.draw(st.sampled_from(DESCRIPTIONS)))))
    few = data.draw(st.lists(st.sampled_from(EVERY), min_size=1, max_size=4))
    clips = data.draw(st.lists(st.sampled_from([None, *few]), max_size=8))
    pictured = data.draw(st.booleans())
    assert clip_oracle.diversity(clips, prompt, pictured) == pytest.approx(
        simpson(clips, prompt, pictured)
    )


@pytest.mark.parametrize(
    "prompt",
    ["it", "a red shape", "a circle moves", "a red circle moves fast", "a red circle goes left"],
)
def test_diversity_is_one_in_the_world_and_zero_for_one_video(prompt):
    rng, fitting = random.Random(1), [c for c in EVERY if fits(parse(prompt), c)]
    groups = [clip_oracle.diversity(rng.choices(fitting, k=4), prompt) for _ in range(1500)]
    assert sum(groups) / len(groups) == pytest.approx(
        1, abs=0.06 if prompt.endswith("left") else 0.03
    )
    assert clip_oracle.diversity([fitting[0]] * 5, prompt) == 0
    assert clip_oracle.diversity([fitting[0], None, None], prompt) is None
    assert clip_oracle.diversity([fitting[0]] * 5, next(iter(wordings(fitting[0])))) is None


def test_a_video_that_does_not_follow_the_prompt_makes_it_no_more_diverse():
    left, up = Clip("circle", "red", "left", "slow"), Clip("circle", "red", "up", "fast")
    assert clip_oracle.diversity([left, left, up, up], "a red circle moves left") == 0


def picture(frame):
    return Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy())


def test_measures_of_groups_are_of_one_prompt_and_one_picture(world):
    red, blue = (Clip("circle", colour, "left", "slow") for colour in ("red", "blue"))
    looks = [EVERY.index(red)] * 3 + [EVERY.index(blue)] * 2
    images = [picture(world[looks[0], 0])] * 3 + [picture(world[looks[3], 0])] * 2
    prompts = [Prompt("it moves", image) for image in images]
    rows = [EVERY.index(Clip("circle", "red", way, "slow")) for way in ("left", "left", "up")]
    rows += [EVERY.index(Clip("circle", "blue", way, "slow")) for way in ("left", "up")]
    scores = measure(world[rows], prompts)
    expected = [2 / 3 / (11 / 12)] * 3 + [
        12 / 11
    ] * 2  # of ordered pairs, four of six differ, and two of two
    assert scores["diversity"].tolist() == pytest.approx(expected)
    bare = measure(world[rows], ["it moves"] * 5)
    assert bare["first_frame"].isnan().all()
    assert bare["diversity"].unique().numel() == 1
    mixed = measure(world[rows], [*prompts[:3], "a shape", "a thing"])
    assert mixed["first_frame"].isnan().tolist() == [False] * 3 + [True] * 2
    assert mixed["diversity"].isnan().tolist() == [False] * 3 + [True] * 2


@examples
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["uniform", "flat", "clip", "mix"]),
    scale=st.floats(0, 1),
)
def test_measures_keep_to_their_ranges(seed, kind, scale):
    g = generator(seed)
    clip = sample_videos(sample_clips(2, g), g)
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
    assert (scores["flicker"] >= 0).all()
    torch.testing.assert_close(
        scores["overall"], (scores["accuracy"] + scores["motion"] + scores["visual"]) / 3
    )


# -------------------------------------------------------- every measure against the corruptions that it is there to see

N = 64


@pytest.fixture(scope="module")
def moving():
    """64 moving clips, their starts, drawings, full prompts, and the measures of these."""
    rng, g = random.Random(0), generator(0)
    clips = rng.sample([c for c in EVERY if c.motion != "still"], N)
    starts = (2 * torch.rand(N, 2, generator=g) - 1) * START
    videos = draw_clips(clips, starts)
    prompts = [
        Prompt(next(iter(wordings(c))), picture(v[0])) for c, v in zip(clips, videos, strict=True)
    ]
    return clips, starts, videos, prompts, measure(videos, prompts)


def blurred(videos, width):
    at = torch.arange(-6, 7.0)
    kernel = (-((at / width) ** 2) / 2).exp()
    kernel = kernel / kernel.sum()
    rows = pad(videos.flatten(0, 2)[:, None], (6, 6, 6, 6), mode="replicate")
    return conv2d(conv2d(rows, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(videos)


def redrawn(clips, starts, change):
    """The clips drawn anew with their paths (9, 3) changed; change(i, clip, path) gives frames or a path."""
    rows = []
    for i, (clip, start) in enumerate(zip(clips, starts, strict=True)):
        made = change(i, clip, path_of(clip, 16 + start))
        rows.append(draw_frames(clip.shape, clip.colour, made) if made.ndim == 2 else made)
    return torch.stack(rows)


def normal(*shape):
    return torch.randn(shape, generator=generator(7))


def fade(videos, s):
    return BACKGROUND + (videos - BACKGROUND) * torch.linspace(1, 1 - s, 9)[:, None, None, None]


def vanish(videos, frames):
    return torch.cat(
        [videos[:, : 9 - frames], torch.full_like(videos[:, 9 - frames :], BACKGROUND)], 1
    )


def second(videos, s):
    """The video of another clip, nine pixels aside, shines through."""
    other = videos.roll(5, 0).roll((7, 9), (3, 4))
    return torch.maximum(videos, BACKGROUND + (other - BACKGROUND) * s)


def brightness(videos, s):
    return (videos + s * normal(N, 9, 1, 1, 1)).clamp(0, 1)


def alternate(videos, s):
    odd = torch.arange(9)[:, None, None, None] % 2
    return (videos + s * odd * normal(*videos.shape)).clamp(0, 1)


def shuffle(videos, count):
    """So many frames, chosen at random, in another order, none in its own place."""
    rng, rows = random.Random(3), []
    for video in videos:
        chosen = rng.sample(range(9), count)
        moved = chosen
        while any(a == b for a, b in zip(chosen, moved, strict=True)):
            moved = rng.sample(chosen, count)
        rows.append(video.clone())
        rows[-1][chosen] = video[moved]
    return torch.stack(rows)


def teleport(clips, starts, s):
    angle = 2 * math.pi * torch.rand(N, generator=generator(8))
    jump = torch.stack([angle.cos(), angle.sin(), torch.zeros(N)], 1) * s
    return redrawn(clips, starts, lambda i, _, path: torch.cat([path[:5], path[5:] + jump[i]]))


def jitter(clips, starts, s):
    shake = torch.cat([normal(N, 9, 2), torch.zeros(N, 9, 1)], 2) * s
    return redrawn(clips, starts, lambda i, _, path: path + shake[i])


def switch(clips, starts, kind, frames):
    """Another shape or colour for the last frames."""
    rng = random.Random(9)

    def change(_, clip, path):
        other = rng.choice([v for v in VALUES[kind] if v != getattr(clip, kind)])
        look = {"shape": clip.shape, "colour": clip.colour} | {kind: other}
        return torch.cat(
            [
                draw_frames(clip.shape, clip.colour, path[: 9 - frames]),
                draw_frames(**look, path=path[9 - frames :]),
            ]
        )

    return redrawn(clips, starts, change)


# name: (how it is made of clips, starts, videos and a strength, three strengths, the measures that see it)
CORRUPTIONS = {
    "noise": (
        lambda c, s, v, k: (v + k * normal(*v.shape)).clamp(0, 1),
        (0.03, 0.06, 0.2),
        ("visual", "overall", "flicker"),
    ),
    "blur": (lambda c, s, v, k: blurred(v, k), (0.8, 1.5, 3.0), ("visual", "overall")),
    "fading contrast": (lambda c, s, v, k: fade(v, k), (0.3, 0.5, 0.9), ("visual", "overall")),
    "a thing that vanishes": (
        lambda c, s, v, k: vanish(v, k),
        (1, 4, 6),
        ("visual", "motion", "overall"),
    ),
    "a second thing": (lambda c, s, v, k: second(v, k), (0.2, 0.5, 1.0), ("visual", "overall")),
    "brightness of frames": (
        lambda c, s, v, k: brightness(v, k),
        (0.02, 0.05, 0.1),
        ("flicker", "visual", "overall"),
    ),
    "noise in every other frame": (
        lambda c, s, v, k: alternate(v, k),
        (0.03, 0.06, 0.2),
        ("flicker", "visual", "overall"),
    ),
    "frames exchanged": (lambda c, s, v, k: shuffle(v, k), (3, 5, 9), ("motion", "overall")),
    "a jump half way": (lambda c, s, v, k: teleport(c, s, k), (2, 4, 8), ("motion", "overall")),
    "another shape half way": (
        lambda c, s, v, k: switch(c, s, "shape", k),
        (1, 2, 4),
        ("motion", "overall"),
    ),
    "another colour half way": (
        lambda c, s, v, k: switch(c, s, "colour", k),
        (1, 2, 4),
        ("motion", "overall"),
    ),
    "a shaking centre": (
        lambda c, s, v, k: jitter(c, s, k),
        (0.4, 0.8, 2.0),
        ("motion", "overall"),
    ),
}
LESS = {"flicker", "first_frame"}  # less of these is better


def better(name, first, then):
    """Where the first scores better than the second."""
    return first[name] < then[name] if name in LESS else first[name] > then[name]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_measure_ranks_the_clean_video_above_the_corrupted_one(moving, kind):
    clips, starts, videos, prompts, clean = moving
    corrupt, strengths, sees = CORRUPTIONS[kind]
    scores = [clean, *(measure(corrupt(clips, starts, videos, k), prompts) for k in strengths)]
    for name in sees:
        for found in scores[1:]:
            assert better(name, clean, found).float().mean() >= 0.95, name
        means = [found[name].mean().item() * (-1 if name in LESS else 1) for found in scores]
        assert means == sorted(means, reverse=True), (name, means)
        assert means[0] > means[1]
    accuracies = [found["accuracy"].mean().item() for found in scores]
    assert accuracies == sorted(accuracies, reverse=True)


def test_a_stain_counts_as_its_squares_say_and_flickers_only_if_it_does():
    clips = [Clip(*look, "still") for look in LOOKS]
    videos, stain = (
        draw_clips(clips, torch.zeros(24, 2)),
        0.03,
    )  # too faint to be taken for a part of the thing
    clean = measure(videos, ["it"] * 24)
    steady, blinking = videos.clone(), videos.clone()
    steady[..., :2, :] += stain
    blinking[:, 1::2, :, :2] += stain
    drawn = (read(videos).drawing - BACKGROUND).square().sum((2, 3, 4))[:, 0]
    lost, change = stain**2 * 3 * 64 / drawn, stain**2 * 64 / 1024
    for made, frames, squares in ((steady, 9, 0), (blinking, 4, change)):
        found = measure(made, ["it"] * 24)
        torch.testing.assert_close(
            found["visual"], clean["visual"] - lost * frames / 9, atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            found["flicker"], (clean["flicker"].square() + squares).sqrt(), atol=1e-5, rtol=0
        )
        assert torch.equal(found["motion"], clean["motion"])


def test_accuracy_tells_the_videos_of_other_clips_and_other_motions(moving):
    clips, starts, videos, prompts, clean = moving
    assert clean["accuracy"].tolist() == [1.0] * N
    directional = torch.tensor([c.motion in DIRECTIONS for c in clips])
    fast = torch.tensor([c.speed == "fast" for c in clips])
    moments_of = torch.linspace(0, 4, 9)  # half of the way in the same nine frames

    def slowed(_, __, path):
        low, part = moments_of.long().clamp_max(7), (moments_of % 1)[:, None]
        return path[low] * (1 - part) + path[low + 1] * part

    corrupted = {
        "other": (videos.roll(1, 0), torch.ones(N, dtype=bool)),
        "reversed": (videos.flip(1), directional),
        "half speed": (redrawn(clips, starts, slowed), fast),
    }
    for kind, (made, chosen) in corrupted.items():
        scores = measure(made, prompts)
        for name in ("accuracy", "overall"):
            assert better(name, clean, scores)[chosen].float().mean() >= 0.95, (kind, name)
            assert scores[name][chosen].mean() < clean[name][chosen].mean()
    wrong = [measure(torch.cat([videos[:k].roll(1, 0), videos[k:]]), prompts) for k in (16, 32, 64)]
    assert [w["accuracy"].mean().item() for w in wrong] == [0.75, 0.5, 0.0]


def test_first_frame_is_the_distance_to_the_picture_of_the_prompt(moving):
    clips, starts, videos, prompts, clean = moving
    assert clean["first_frame"].max() <= 0.5 / 255 + 1e-6  # pictures have whole levels
    angle = 2 * math.pi * torch.rand(N, generator=generator(8))
    aside = torch.stack([angle.cos(), angle.sin()], 1)
    kinds = {
        "another start": [draw_clips(clips, starts + k * aside) for k in (0.3, 1.0, 3.0)],
        "a blurred first frame": [
            torch.cat([blurred(videos[:, :1], k), videos[:, 1:]], 1) for k in (0.5, 1.0, 2.0)
        ],
        "another look": [switch(clips, starts, kind, 9) for kind in ("shape", "colour")],
    }
    for kind, made in kinds.items():
        scores = [measure(video, prompts) for video in made]
        assert all(better("first_frame", clean, found).all() for found in scores), kind
        if kind != "another look":
            means = [found["first_frame"].mean().item() for found in scores]
            assert means == sorted(means)
        for video, found in zip(made, scores, strict=True):
            expected = (video[:, 0] - videos[:, 0]).square().mean((1, 2, 3)).sqrt()
            assert found["first_frame"] == pytest.approx(expected, abs=0.5 / 255 + 1e-6)
    later = torch.cat([videos[:, :1], torch.rand(N, 8, 3, 32, 32, generator=generator())], 1)
    assert torch.equal(measure(later, prompts)["first_frame"], clean["first_frame"])


# ------------------------------------------------------------------------------------------------------- what is shipped

AUTOENCODER = SHIPPED / "tiny-video-autoencoder"


@pytest.mark.skipif(not AUTOENCODER.is_dir(), reason="the video autoencoder is not shipped yet")
def test_autoencoded_clips_are_misread_no_more_often_than_the_card_says():
    from diffusers import AutoencoderKLWan

    card = json.loads((AUTOENCODER / "card.json").read_text())["metrics"][
        "oracle misread, autoencoded"
    ]
    vae = AutoencoderKLWan.from_pretrained(AUTOENCODER, dtype=torch.float32).eval()
    clips = sample_clips(256, generator(11))
    videos = sample_videos(clips, generator(12)).transpose(1, 2) * 2 - 1
    with torch.no_grad():
        back = torch.cat(
            [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in videos.split(64)]
        )
    rate = clip_oracle.error_rate((back.transpose(1, 2) / 2 + 0.5).clamp(0, 1), clips)["misread"]
    room = max(
        card, 1 / 512
    )  # the card counts 512 clips: none misread there says no more than one in 512
    assert rate <= card + 3 * math.sqrt(room * (1 - room) / 256)

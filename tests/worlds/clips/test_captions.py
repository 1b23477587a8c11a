"""Captions of clips, and their probabilities and bits against an independent enumeration."""

import itertools
import math
import random
from collections import Counter, defaultdict

import pytest

from bpgo.worlds.clips.captions import (
    VOCABULARY,
    WORDS,
    graded_prompts,
    graded_scenes,
    omissions,
    parse,
    prompt_bits,
    sample_caption,
    scene_bits,
    wordings,
)
from bpgo.worlds.clips.scenes import MOVING, Scene
from bpgo.worlds.forms import MENTION
from tests.worlds.clips.helpers import DESCRIPTIONS, EVERY, fits
from tests.worlds.common import entropy


def test_every_wording_of_every_description_parses_back_to_it():
    assert len(set(DESCRIPTIONS)) == 5 * 7 * 23
    meanings = {}
    for description in DESCRIPTIONS:
        for caption in wordings(description):
            assert parse(caption) == description, caption
            assert meanings.setdefault(caption, description) == description
    assert {word for caption in meanings for word in caption.split()} == set(VOCABULARY)


# ------------------------------------------------------------------------------ probabilities, bits


def caption_probabilities(scene):
    """p(caption | scene): named with MENTION, two words each, the speed first or last."""
    found = defaultdict(float)

    def words_of(kind, value):
        """(probability, value, word) of an attribute; value None if it is left out."""
        named = [(MENTION / 2, value, word) for word in WORDS[kind][value]]
        return [(1 - MENTION, None, ""), *named]

    def subjects_of(shape, shape_word, colour, colour_word):
        nouns = [shape_word] if shape else ["shape", "thing"]
        subjects = [" ".join(f"a {colour_word} {noun}".split()) for noun in nouns]
        return subjects if shape or colour else [*subjects, "it"]

    def motions_of(motion, motion_word, speed):
        """(probability, words); a motion left out is mentioned half the time, or with a speed."""
        if motion:
            return [(1, motion_word)]
        if scene.motion == "still":
            return [(1, "")]
        mentioned = 1 if speed else 0.5
        motions = [(mentioned / 2, "moves"), (mentioned / 2, "is in motion")]
        return motions if speed else [(0.5, ""), *motions]

    speeds = words_of("speed", scene.speed) if scene.motion != "still" else [(1, None, "")]
    for (p, shape, a), (q, colour, b), (r, motion, c), (s, speed, d) in itertools.product(
        words_of("shape", scene.shape),
        words_of("colour", scene.colour),
        words_of("motion", scene.motion),
        speeds,
    ):
        subjects = subjects_of(shape, a, colour, b)
        for subject, (t, moves) in itertools.product(subjects, motions_of(motion, c, speed)):
            for parts in ((subject, moves, d), (d, subject, moves)):
                probability = p * q * r * s * t / len(subjects) / 2
                found[" ".join(part for part in parts if part)] += probability
    return found


@pytest.fixture(scope="module")
def joint():
    return {scene: caption_probabilities(scene) for scene in EVERY}


def test_probabilities_of_captions_are_those_of_the_enumeration(joint):
    for scene in EVERY[::17]:
        assert all(fits(description, scene) for description in omissions(scene))
        ours = defaultdict(float)
        for description, p in omissions(scene).items():
            for caption, q in wordings(description).items():
                ours[caption] += p * q
        assert ours == pytest.approx(joint[scene], abs=1e-12)
        expected = entropy(joint[scene].values())
        assert scene_bits(scene) == pytest.approx(expected, abs=1e-9)


def test_prompt_bits_count_the_scenes_that_can_have_the_caption(joint):
    scenes_of = defaultdict(list)
    for scene, probabilities in joint.items():
        assert math.isclose(math.fsum(probabilities.values()), 1)
        for caption in probabilities:
            scenes_of[caption].append(scene)
    assert len(scenes_of) > 5000
    captions = random.Random(0).sample(sorted(scenes_of), 300)
    captions += ["it", "it moves", "a shape", "slowly a thing is in motion"]
    for caption in captions:
        scenes = scenes_of[caption]
        expected = math.log2(len(scenes))
        assert prompt_bits(caption) == pytest.approx(expected, abs=1e-9), caption
        shown = random.Random(caption).choice(scenes)
        alike = [s for s in scenes if (s.shape, s.colour) == (shown.shape, shown.colour)]
        expected = math.log2(len(alike))
        assert prompt_bits(caption, shown) == pytest.approx(expected, abs=1e-9), caption


def test_bits_that_can_be_counted_by_hand():
    assert prompt_bits("a shape") == prompt_bits("it") == pytest.approx(math.log2(312))
    assert prompt_bits("it moves", EVERY[0]) == pytest.approx(math.log2(12))
    assert prompt_bits("it", EVERY[0]) == pytest.approx(math.log2(13))
    assert prompt_bits("a shape moves") == pytest.approx(math.log2(24 * 12))
    assert prompt_bits("a thing moves fast") == pytest.approx(math.log2(24 * 6))
    assert prompt_bits("a red circle moves left") == pytest.approx(1)
    assert prompt_bits("quickly a red circle hops") == 0
    assert prompt_bits("it stays still", EVERY[5]) == 0


@pytest.mark.parametrize(
    "scene",
    [Scene("cross", "red", "bounce", "fast"), Scene("circle", "blue", "still")],
    ids=lambda scene: scene.motion,
)
def test_sampled_captions_have_the_probabilities_of_the_enumeration(joint, scene):
    rng, n = random.Random(5), 20000
    captions = Counter(sample_caption(scene, rng) for _ in range(n))
    descriptions = Counter()
    for caption, count in captions.items():
        descriptions[parse(caption)] += count
    for counts, expected in ((captions, joint[scene]), (descriptions, omissions(scene))):
        assert counts.keys() <= expected.keys()
        often = [key for key, p in expected.items() if p * n >= 5]
        chi = sum((counts[key] - expected[key] * n) ** 2 / (expected[key] * n) for key in often)
        assert chi < len(often) + 5 * math.sqrt(2 * len(often))


# ------------------------------------------------------------------------------------------ parsing


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
        ("a circle slowly moves fast", "fast"),
        ("it does not", "does not"),
    ],
)
def test_a_refusal_names_what_cannot_be_read(caption, words):
    with pytest.raises(ValueError, match=rf"\(cannot read {words}\)$"):
        parse(caption)


def test_what_is_still_has_no_speed():
    with pytest.raises(ValueError, match=r"\(what is still has no speed\)$"):
        parse("a circle stays still fast")


def test_captions_are_read_in_any_case_and_order_and_with_commas():
    assert parse("Slowly, a RED circle moves left") == Scene("circle", "red", "left", "slow")
    assert parse("a red circle slowly moves left") == Scene("circle", "red", "left", "slow")
    # What has a speed moves.
    assert parse("a red circle, slowly") == Scene("circle", "red", MOVING, "slow")


# ---------------------------------------------------------------------------------- graded prompts


@pytest.mark.parametrize("images", [False, True])
def test_graded_prompts_describe_their_scenes(images):
    found = graded_scenes(200, 3, 0.75, images)
    assert [row for _, row in found] == graded_prompts(200, 3, 0.75, images)
    assert sum(row["level"] == 1 for _, row in found) == 150
    assert sum(row["bits"] == 0 for _, row in found) == 150
    for scene, row in found:
        description = parse(row["prompt"])
        assert fits(description, scene)
        names = [name for name in scene.attributes if not images or name in ("motion", "speed")]
        named = [name for name in names if getattr(description, name) not in (None, MOVING)]
        assert row["level"] == round(len(named) / len(names), 3)
        fitting = [other for other in EVERY if fits(description, other)]
        if images:
            look = (scene.shape, scene.colour)
            fitting = [other for other in fitting if (other.shape, other.colour) == look]
        assert row["bits"] == round(math.log2(len(fitting)), 4)
    # With an image: 0 of 1 attribute if still, else 0 or 1 of 2. Without: 0 to 3 of 4.
    levels = {row["level"] for _, row in found}
    assert len(levels) >= (3 if images else 4)


def test_the_number_of_prompts_that_leave_nothing_open_is_rounded():
    rows = graded_prompts(7, 0, 0.5)
    assert sum(row["level"] == 1 for row in rows) == 4

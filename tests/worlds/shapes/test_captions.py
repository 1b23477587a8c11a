"""Captions of drawings, and their bits against an independent enumeration of all captions."""

import itertools
import math
import random
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpgo.worlds.forms import MENTION
from bpgo.worlds.shapes.captions import (
    WORDS,
    graded_prompts,
    leave_out,
    parse,
    prompt_bits,
    sample_caption,
    scene_bits,
    wordings,
)
from bpgo.worlds.shapes.scenes import all_scenes, describes, readings
from tests.worlds.common import entropy, examples

EVERY = all_scenes()


@examples
@given(scene=st.sampled_from(EVERY), dropped=st.integers(0, 31))
def test_every_wording_of_a_description_parses_back_to_it(scene, dropped):
    names = [name for i, name in enumerate(scene.attributes) if dropped >> i & 1]
    description = leave_out(scene, set(names))
    for caption in wordings(description):
        assert parse(caption) in readings(description)


@examples
@given(scene=st.sampled_from(EVERY), other=st.sampled_from(EVERY))
def test_a_caption_that_names_everything_describes_no_other_scene(scene, other):
    assert describes(parse(next(iter(wordings(scene)))), other) == (scene == other)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("a mauve circle", "unknown words: mauve"),
        ("circle", "one or two things"),
        ("a a a", "one or two things"),
        ("a circle a square", "two things need a relation"),
        ("a circle on", "cannot read 'on'"),
    ],
)
def test_a_refusal_gives_the_reason(caption, reason):
    with pytest.raises(ValueError, match=reason):
        parse(caption)


def test_captions_are_read_in_any_case_and_with_commas():
    assert parse("At the top, a RED circle") == parse("a red circle at the top")


# -------------------------------------------------------------------------------------------- bits


def caption_probabilities(scene):
    """p(caption | scene), by enumeration: named with MENTION, two words each, two word orders."""
    found = defaultdict(float)

    def words_of(kind, value):
        """(word, probability) of an attribute: named by either word, or left out."""
        left_out = WORDS[kind][None]
        yield from ((word, MENTION / 2) for word in WORDS[kind][value])
        yield from ((word, (1 - MENTION) / len(left_out)) for word in left_out)

    def nouns(thing):
        kinds = [kind for kind in ("size", "colour", "shape") if getattr(thing, kind) is not None]
        for words in itertools.product(*(list(words_of(k, getattr(thing, k))) for k in kinds)):
            noun = " ".join(["a", *(word for word, _ in words if word)])
            yield noun, math.prod(p for _, p in words)

    if len(scene.things) == 1:
        [thing] = scene.things
        places = list(words_of("position", thing.position))
        for (noun, p), (place, q) in itertools.product(nouns(thing), places):
            for order in ((noun, place), (place, noun)):
                found[" ".join(part for part in order if part)] += p * q / 2
        return found
    turned = {"left": "right", "above": "below"}[scene.relation]
    for (first, p), (second, q) in itertools.product(*map(nouns, scene.things)):
        for (a, b), relation in (((first, second), scene.relation), ((second, first), turned)):
            for word, r in words_of("relation", relation):
                found[f"{a} {word} {b}"] += p * q * r / 2
    return found


def test_bits_of_one_thing_are_those_of_the_joint_distribution():
    joint = {scene: caption_probabilities(scene) for scene in all_scenes(1)}
    by_caption = defaultdict(list)
    for probabilities in joint.values():
        assert math.isclose(math.fsum(probabilities.values()), 1)
        for caption, p in probabilities.items():
            by_caption[caption].append(p)
    assert len(by_caption) > 10000
    for scene in random.Random(0).sample(all_scenes(1), 12):
        assert scene_bits(scene) == pytest.approx(entropy(joint[scene].values()), abs=1e-9)
    for caption in [*random.Random(1).sample(sorted(by_caption), 200), "a shape", "a thing"]:
        expected = entropy(by_caption[caption])
        assert prompt_bits(caption) == pytest.approx(expected, abs=1e-9), caption


def test_bits_of_two_things_are_those_of_the_joint_distribution():
    rng = random.Random(2)
    captions = {sample_caption(rng.choice(all_scenes(2)), rng) for _ in range(60)}
    captions |= {
        "a shape and a shape",
        "a red circle with a red circle",
        "a red circle and a shape",
        "a shape over a white thing",
    }
    by_caption = defaultdict(list)
    for i, scene in enumerate(all_scenes(2)):
        probabilities = caption_probabilities(scene)
        for caption in captions & probabilities.keys():
            by_caption[caption].append(probabilities[caption])
        if i % 300 == 0:
            assert math.isclose(math.fsum(probabilities.values()), 1)
            expected = entropy(probabilities.values())
            assert scene_bits(scene) == pytest.approx(expected, abs=1e-9)
    assert by_caption.keys() == captions
    for caption in captions:
        expected = entropy(by_caption[caption])
        assert prompt_bits(caption) == pytest.approx(expected, abs=1e-9), caption


def test_bits_that_can_be_counted_by_hand():
    assert prompt_bits("a shape") == pytest.approx(math.log2(240))
    assert prompt_bits("a small red circle in the middle") == 0
    assert prompt_bits("a red thing") == pytest.approx(math.log2(40))
    assert prompt_bits("a shape and a thing") == pytest.approx(math.log2(1152))
    assert prompt_bits("a red circle left of a blue square") == 0
    # To the left, to the right, above or below.
    assert prompt_bits("a red circle and a blue square") == pytest.approx(2)


def test_graded_prompts_state_the_share_that_is_named_and_the_kind():
    rows = graded_prompts(100, seed=3, specified=0.5, pairs=0.2)
    assert [row["kind"] for row in rows].count("pair") == 20
    assert sum(row["level"] == 1 for row in rows) == 50
    for row in rows:
        description = parse(row["prompt"])
        values = list(description.attributes.values())
        assert row["level"] == round(1 - values.count(None) / len(values), 3)
        assert row["kind"] == ("pair" if len(description.things) == 2 else "single")

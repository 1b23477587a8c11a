"""Captions of digits, and their bits against the joint distribution."""

import math
import random
from collections import defaultdict

import pytest

from bpgo.worlds.digits.captions import (
    KINDS,
    MEANING,
    VAGUE_SHARE,
    WORDINGS,
    graded_prompts,
    parse,
    prompt_bits,
    sample_caption,
    scene_bits,
)
from tests.worlds.common import entropy


@pytest.fixture(scope="module")
def joint():
    """Caption -> digit -> probability, by enumeration.

    Each kind of vague description that fits has probability VAGUE_SHARE, and the name has the rest.
    """
    found = defaultdict(dict)
    for digit in range(10):
        descriptions = {}
        for kind in KINDS.values():
            for description in kind:
                if digit in description:
                    descriptions[description] = VAGUE_SHARE
        assert len(descriptions) == (3 if digit == 5 else 4)
        descriptions[frozenset({digit})] = 1 - math.fsum(descriptions.values())
        for description, p in descriptions.items():
            for caption in WORDINGS[description]:
                found[caption][digit] = p / len(WORDINGS[description]) / 10
    return found


def test_bits_are_those_of_the_joint_distribution(joint):
    assert math.isclose(math.fsum(p for row in joint.values() for p in row.values()), 1)
    assert joint.keys() == MEANING.keys()
    for caption, row in joint.items():
        assert row.keys() == parse(caption)
        assert prompt_bits(caption) == pytest.approx(entropy(row.values()), abs=1e-9)
    for digit in range(10):
        expected = entropy(row[digit] for row in joint.values() if digit in row)
        assert scene_bits(digit) == pytest.approx(expected, abs=1e-9)


def test_sampled_captions_have_the_probabilities_of_the_joint_distribution(joint):
    rng, n = random.Random(0), 20000
    captions = [sample_caption(digit, rng) for digit in rng.choices(range(10), k=n)]
    for caption in ("a digit", "an even number", "either four or nine", "a handwritten 8"):
        p = sum(joint[caption].values())
        assert captions.count(caption) / n == pytest.approx(p, abs=5 * math.sqrt(p / n))


@pytest.mark.parametrize(
    ("caption", "digits"),
    [
        ("a four", {4}),
        ("an 8", {8}),
        ("The  Number Nine", {9}),
        ("either four or nine", {4, 9}),
        ("a digit above five", {6, 7, 8, 9}),
        ("an even digit", {0, 2, 4, 6, 8}),
        ("a digit below five", {0, 1, 2, 3, 4}),
        ("an odd digit", {1, 3, 5, 7, 9}),
        ("a digit", set(range(10))),
    ],
)
def test_captions_fit_the_digits_that_they_name(caption, digits):
    assert parse(caption) == digits
    assert prompt_bits(caption) == math.log2(len(digits))


def test_a_refusal_gives_examples():
    with pytest.raises(ValueError, match="none of 115 captions such as a zero, a handwritten zero"):
        parse("a digit above six")


def test_the_level_of_a_prompt_is_the_share_of_bits_that_it_names():
    rows = graded_prompts(80, 3, specified=0.5)
    for row in rows:
        expected = 1 - prompt_bits(row["prompt"]) / math.log2(10)
        assert row["level"] == round(expected, 3)
    # Named digits are as frequent, and so are the four kinds of vague prompts.
    named = [parse(row["prompt"]) for row in rows if row["bits"] == 0]
    assert {digit: named.count(frozenset({digit})) for digit in range(10)} == dict.fromkeys(
        range(10), 4
    )
    sizes = [len(parse(row["prompt"])) for row in rows if row["bits"]]
    assert [sizes.count(2), sizes.count(10)] == [10, 10]
    assert sizes.count(4) + sizes.count(5) == 20

"""Captions of digits, and exactly how much each leaves open.

A caption names the digit, or says only that it is one of two that are easily confused, that it is
above or below five, that it is even or odd, or that it is a digit. A vague description is used with
the same probability for every digit that it fits. (5 is neither above nor below five, so it is
named more often.) Digits are equally frequent, so a caption leaves open log2 of the number of
digits that fit.
"""

from __future__ import annotations

import math
import random

from bpgo.worlds.shared import caption_probabilities, choose, entropy

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAIRS = ((0, 6), (1, 7), (2, 3), (4, 9), (5, 8))
ANY = frozenset(range(10))
VAGUE_SHARE = 0.1  # probability of each kind of vague description that fits a digit


def _names(digit: int) -> tuple[str, ...]:
    """The wordings that name a digit, as a word or as a figure."""
    starts = ("an" if digit == 8 else "a", "a handwritten", "the digit", "the number")
    return tuple(f"{start} {name}" for name in (NAMES[digit], str(digit)) for start in starts)


def _pair_names(a: int, b: int) -> tuple[str, ...]:
    """The wordings that name one of two digits."""
    captions = []
    for first, second in ((a, b), (b, a)):
        for start in ("either", "a handwritten"):
            captions.append(f"{start} {NAMES[first]} or {NAMES[second]}")
    return tuple(captions)


KINDS = {  # kind of vague description -> digits that fit -> wordings
    "pair": {frozenset(pair): _pair_names(*pair) for pair in PAIRS},
    "side": {
        frozenset({6, 7, 8, 9}): (
            "a digit above five",
            "a digit over 5",
            "a number greater than five",
        ),
        frozenset({0, 1, 2, 3, 4}): (
            "a digit below five",
            "a digit under 5",
            "a number less than five",
        ),
    },
    "parity": {
        frozenset({0, 2, 4, 6, 8}): ("an even digit", "an even number", "a handwritten even digit"),
        frozenset({1, 3, 5, 7, 9}): ("an odd digit", "an odd number", "a handwritten odd digit"),
    },
    "any": {ANY: ("a digit", "a number", "a handwritten digit")},
}
VAGUE = {description: words for kind in KINDS.values() for description, words in kind.items()}
WORDINGS = {frozenset({digit}): _names(digit) for digit in range(10)} | VAGUE
MEANING = {caption: digits for digits, captions in WORDINGS.items() for caption in captions}
VOCABULARY = sorted({word for caption in MEANING for word in caption.split()})


def wordings(description: frozenset[int]) -> dict[str, float]:
    """Every caption of a description, with its probability."""
    captions = WORDINGS[description]
    return dict.fromkeys(captions, 1 / len(captions))


def omissions(scene: int) -> dict[frozenset[int], float]:
    """Every description of a digit, as the set of digits that it fits, with its probability."""
    vague = {description: VAGUE_SHARE for description in VAGUE if scene in description}
    return {frozenset({scene}): 1 - sum(vague.values())} | vague


def sample_wording(description: frozenset[int], rng: random.Random) -> str:
    """One caption of a description, drawn from `wordings`."""
    return rng.choice(WORDINGS[description])


def sample_caption(scene: int, rng: random.Random) -> str:
    """One caption of a digit: its description and the wording are random."""
    return sample_wording(choose(omissions(scene), rng), rng)


def parse(caption: str) -> frozenset[int]:
    """The digits that a caption fits. Raises ValueError for text that is not a caption."""
    key = " ".join(caption.lower().split())
    if key not in MEANING:
        examples = ", ".join(list(MEANING)[:3])
        raise ValueError(
            f"not a caption of the digits world: {caption!r} "
            f"(it is none of {len(MEANING)} captions such as {examples})"
        )
    return MEANING[key]


def prompt_bits(caption: str) -> float:
    """Entropy, in bits, of the digit given the caption: 0 for its name, 3.32 for "a digit"."""
    return math.log2(len(parse(caption)))


def scene_bits(scene: int) -> float:
    """Entropy, in bits, of the caption given the digit."""
    return entropy(caption_probabilities(omissions(scene), wordings).values())


def graded_prompts(n: int, seed: int, specified: float = 0.5) -> list[dict[str, str | float]]:
    """n prompts of graded ambiguity, as rows {prompt, level, bits}.

    A share `specified` names a digit, each equally often. The others are vague: one of two digits,
    above or below five, even or odd, or any digit, each kind equally often. level:
    1 - bits / log2(10), in [0, 1]. bits: `prompt_bits`.
    """
    rng = random.Random(seed)
    kinds = list(KINDS.values())
    n_named = round(n * specified)
    descriptions = [frozenset({i % 10}) for i in range(n_named)]
    for i in range(n - n_named):
        descriptions.append(rng.choice(list(kinds[i % len(kinds)])))
    captions = [sample_wording(description, rng) for description in descriptions]
    rng.shuffle(captions)
    rows = []
    for caption in captions:
        bits = prompt_bits(caption)
        level = round(1 - bits / math.log2(10), 3)
        rows.append({"prompt": caption, "level": level, "bits": round(bits, 4)})
    return rows

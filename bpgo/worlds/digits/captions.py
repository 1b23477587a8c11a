"""Captions of digits, and how much each leaves open, exactly.

A caption names the digit, or says that it is one of two that are easily confused, its half of the scale, its parity, or only that it is a
digit. A vague description is said of every digit that it fits with one probability (5, which is in neither half, is named the more
often), so that, digits being equally frequent, a caption leaves log2 of the number of fitting digits open.
"""

from __future__ import annotations

import math
import random

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAIRS = ((0, 6), (1, 7), (2, 3), (4, 9), (5, 8))
ANY = frozenset(range(10))
MENTION = (
    0.1  # how often each kind of vague description is said of a digit that one of the kind fits
)
KINDS = {  # what fits, and the words for it
    "pair": {
        frozenset(pair): tuple(
            f"{start} {NAMES[a]} or {NAMES[b]}"
            for a, b in (pair, pair[::-1])
            for start in ("either", "a handwritten")
        )
        for pair in PAIRS
    },
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
VAGUE = {fitting: words for kind in KINDS.values() for fitting, words in kind.items()}


def _names(digit: int) -> tuple[str, ...]:
    """The wordings that name a digit, as a word or as a figure."""
    article = "an" if digit == 8 else "a"
    return tuple(
        f"{start} {said}"
        for said in (NAMES[digit], str(digit))
        for start in (article, "a handwritten", "the digit", "the number")
    )


WORDINGS = {frozenset({d}): _names(d) for d in range(10)} | VAGUE
MEANING = {caption: fitting for fitting, captions in WORDINGS.items() for caption in captions}
VOCABULARY = sorted({word for caption in MEANING for word in caption.split()})


def descriptions(digit: int) -> dict[frozenset[int], float]:
    """Everything that may be said of a digit, as the digits that it fits, with its probability."""
    vague = {fitting: MENTION for fitting in VAGUE if digit in fitting}
    return {frozenset({digit}): 1 - sum(vague.values())} | vague


def sample_caption(digit: int, rng: random.Random) -> str:
    """One caption of a digit, drawn from `descriptions` and their wordings."""
    said = descriptions(digit)
    return rng.choice(WORDINGS[rng.choices(list(said), weights=said.values())[0]])


def name_digit(digit: int, rng: random.Random) -> str:
    """One caption that names a digit."""
    return rng.choice(WORDINGS[frozenset({digit})])


def parse(caption: str) -> frozenset[int]:
    """The digits that a caption fits. Raises ValueError for what is no caption of this world."""
    key = " ".join(caption.lower().split())
    if key not in MEANING:
        raise ValueError(
            f"not a caption of the digits world: {caption!r} (it has {len(MEANING)}, such as {', '.join(list(MEANING)[:3])})"
        )
    return MEANING[key]


def prompt_bits(caption: str) -> float:
    """Entropy, in bits, of the digit given the caption: 0 for its name, 3.32 for "a digit"."""
    return math.log2(len(parse(caption)))


def other_digit(digit: int, caption: str, rng: random.Random) -> int | None:
    """A digit that the caption does not fit; None if it fits all."""
    others = sorted(ANY - parse(caption))
    return rng.choice(others) if others else None


def graded_prompts(n: int, seed: int, specified: float = 0.5) -> list[dict]:
    """n prompts as rows {prompt, level, bits}: the share `specified` names a digit, the others are vague, each kind as often.

    Kinds: one of two, a half of the scale, a parity, any. `level` is 1 - bits / log2(10), in [0, 1].
    """
    rng, named, kinds = random.Random(seed), round(n * specified), list(KINDS.values())
    fitting = [frozenset({i % 10}) for i in range(named)] + [
        rng.choice(list(kinds[i % len(kinds)])) for i in range(n - named)
    ]
    captions = [rng.choice(WORDINGS[f]) for f in fitting]
    rng.shuffle(captions)
    graded = [(caption, prompt_bits(caption)) for caption in captions]
    return [
        {"prompt": caption, "level": round(1 - bits / math.log2(10), 3), "bits": round(bits, 4)}
        for caption, bits in graded
    ]

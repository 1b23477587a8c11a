"""Captions of clips: what moves and how, named, left out or said in other words; and how ambiguous each is, exactly.

As for pictures (`captions`), each attribute is named with probability MENTION, in one of two words. A motion that is not named is either
not spoken of at all or said to be one: "a red circle moves". For image-to-video the picture shows what moves, so "it moves" leaves
only the motion open.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

from bpgo.worlds.clips.scenes import MOVING, Clip, all_clips, says
from bpgo.worlds.shapes.captions import MENTION, _entropy
from bpgo.worlds.shapes.captions import WORDS as PICTURE_WORDS

WORDS = {
    kind: {value: words for value, words in PICTURE_WORDS[kind].items() if value}
    for kind in ("shape", "colour")
} | {
    "motion": {
        "still": ("stays still", "does not move"),
        "left": ("moves left", "goes left"),
        "right": ("moves right", "goes right"),
        "up": ("moves up", "rises"),
        "down": ("moves down", "falls"),
        "bounce": ("bounces", "hops"),
        "grow": ("grows", "swells"),
        MOVING: ("moves", "is in motion"),
    },
    "speed": {"slow": ("slowly", "gently"), "fast": ("fast", "quickly")},
}
NOUNS = ("shape", "thing")  # of an open shape
MEANING = {
    w: (kind, value)
    for kind, table in WORDS.items()
    for value, words in table.items()
    for w in words
}
MEANING |= {noun: ("shape", None) for noun in NOUNS} | {word: (word, None) for word in ("a", "it")}
VOCABULARY = sorted({word for phrase in MEANING for word in phrase.split()})


def wordings(description: Clip) -> dict[str, float]:
    """Every caption that says this description, with its probability. A description of a speed names a motion, if only MOVING."""
    colours, shapes = (
        WORDS["colour"].get(description.colour, ("",)),
        WORDS["shape"].get(description.shape, NOUNS),
    )
    subjects = [f"a {colour} {shape}".replace("  ", " ") for colour in colours for shape in shapes]
    if description.shape is None and description.colour is None:
        subjects.append("it")
    motions = WORDS["motion"].get(description.motion, ("",))
    said = []
    for subject, motion, speed in itertools.product(
        subjects, motions, WORDS["speed"].get(description.speed, ("",))
    ):
        said += [f"{subject} {motion} {speed}".strip(), f"{speed} {subject} {motion}".strip()]
    return {caption: n / len(said) for caption, n in Counter(said).items()}


def leave_out(clip: Clip, names: set[str], says_moving: bool = False) -> Clip:
    """The description of a clip that leaves these attributes open. says_moving: of an open motion, say at least that there is one."""
    left = replace(clip, **dict.fromkeys(names))
    if "motion" in names and clip.motion != "still" and (says_moving or left.speed):
        left = replace(left, motion=MOVING)
    return left


def omissions(clip: Clip) -> dict[Clip, float]:
    """Every description of a clip, from everything named to nothing named, with its probability."""
    names, result = list(clip.attributes), Counter()
    for kept in itertools.product((True, False), repeat=len(names)):
        dropped = {name for name, keep in zip(names, kept, strict=True) if not keep}
        for moving in (True, False):
            result[leave_out(clip, dropped, moving)] += (
                math.prod(MENTION if keep else 1 - MENTION for keep in kept) / 2
            )
    return dict(result)


def sample_wording(description: Clip, rng: random.Random) -> str:
    said = wordings(description)
    return rng.choices(list(said), weights=said.values())[0]


def sample_caption(clip: Clip, rng: random.Random) -> str:
    """One caption of a clip: attributes left out at random, words and their order chosen at random."""
    names = {name for name in clip.attributes if rng.random() > MENTION}
    return sample_wording(leave_out(clip, names, rng.random() < 0.5), rng)


def parse(caption: str) -> Clip:
    """The description that a caption says. Raises ValueError with the words that are not the world's, or say a thing twice."""
    rest, found = caption.lower().replace(",", " ").split(), {}
    unknown = [word for word in rest if word not in VOCABULARY]
    while rest and not unknown:
        for size in range(
            min(3, len(rest)), 0, -1
        ):  # longest phrase first: "moves left" before "moves"
            kind, value = MEANING.get(" ".join(rest[:size]), (None, None))
            if kind and kind not in found:
                found[kind], rest = value, rest[size:]
                break
        else:
            unknown = [" ".join(rest)]
    subject = found.keys() & {"a", "it", "colour", "shape"}
    if unknown or subject not in ({"it"}, {"a", "shape"}, {"a", "colour", "shape"}):
        raise ValueError(
            f"not a caption of a clip: {caption!r} (cannot read {', '.join(unknown) or 'what it is about'})"
        )
    if found.get("motion") == "still" and "speed" in found:
        raise ValueError(f"not a caption of a clip: {caption!r} (what is still has no speed)")
    if "speed" in found:
        found.setdefault("motion", MOVING)
    return Clip(**{kind: value for kind, value in found.items() if kind in WORDS})


def prompt_bits(caption: str, picture: Clip | None = None) -> float:
    """log2 of how many clips fit the caption, each equally likely: 0 when it leaves nothing open, 8.3 for "a shape".

    What a caption tells by what it leaves unsaid is not counted ("a shape" is said more often of one that is still than of one that moves).
    picture: for image-to-video the clip whose first frame is given; what it looks like is then known.
    """
    description = parse(caption)
    if picture is not None:
        description = replace(description, shape=picture.shape, colour=picture.colour)
    return _entropy([1.0] * sum(says(description, clip) for clip in all_clips()))


def clip_bits(clip: Clip) -> float:
    """Entropy, in bits, of the caption given the clip: in how many ways the same video may be said."""
    captions: Counter[str] = Counter()
    for description, p in omissions(clip).items():
        for caption, q in wordings(description).items():
            captions[caption] += p * q
    return _entropy(captions.values())


def graded_prompts(n: int, seed: int, specified: float, pictures: bool) -> list[tuple[Clip, dict]]:
    """n clips, each with a row {prompt, level, bits} of graded ambiguity: a share `specified` leaves nothing open, the rest a
    uniformly drawn number of attributes, at least one.

    level: share of the attributes that are named. pictures: for image-to-video, where a row specifies when it names the motion, and
    what it looks like is named or not by chance.
    """
    rng, rows = random.Random(seed), []
    for i in range(n):
        clip = rng.choice(all_clips())
        names = [name for name in clip.attributes if not pictures or name in ("motion", "speed")]
        dropped = (
            set()
            if i < round(n * specified)
            else set(rng.sample(names, rng.randint(1, len(names))))
        )
        looks = {name for name in ("shape", "colour") if pictures and rng.random() > MENTION}
        caption = sample_wording(
            leave_out(clip, dropped | looks, pictures or rng.random() < 0.5), rng
        )
        bits = prompt_bits(caption, clip if pictures else None)
        rows.append(
            (
                clip,
                {
                    "prompt": caption,
                    "level": round(1 - len(dropped) / len(names), 3),
                    "bits": round(bits, 4),
                },
            )
        )
    rng.shuffle(rows)
    return rows

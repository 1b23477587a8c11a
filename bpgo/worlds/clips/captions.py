"""Captions of clips with controlled ambiguity, and the exact ambiguity of each caption.

As in the shapes world, each attribute is named with probability MENTION, in one of two words. A
motion that is not named is either not mentioned at all, or mentioned as a motion: "a red circle
moves". For image-to-video the image shows what moves, so "it moves" leaves only the motion open.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

from bpgo.worlds.clips.scenes import MOVING, Scene, all_scenes, describes
from bpgo.worlds.forms import ANY_SHAPE, COLOUR_WORDS, MENTION, SHAPE_WORDS
from bpgo.worlds.shared import caption_probabilities, choose, entropy

WORDS = {
    "shape": SHAPE_WORDS,
    "colour": COLOUR_WORDS,
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


def _meanings() -> dict[str, tuple[str, str | None]]:
    """Phrase -> (kind of attribute, value). "a" and "it" are separate kinds."""
    meanings = {
        phrase: (kind, value)
        for kind, table in WORDS.items()
        for value, phrases in table.items()
        for phrase in phrases
    }
    meanings |= {noun: ("shape", None) for noun in ANY_SHAPE}
    return meanings | {word: (word, None) for word in ("a", "it")}


MEANING = _meanings()
VOCABULARY = sorted({word for phrase in MEANING for word in phrase.split()})


def wordings(description: Scene) -> dict[str, float]:
    """Every caption of a description, with its probability.

    A description with a speed has a motion too, which may be MOVING.
    """
    shapes = WORDS["shape"].get(description.shape, ANY_SHAPE)
    colours = WORDS["colour"].get(description.colour, ("",))
    motions = WORDS["motion"].get(description.motion, ("",))
    speeds = WORDS["speed"].get(description.speed, ("",))
    subjects = [f"a {colour} {shape}".replace("  ", " ") for colour in colours for shape in shapes]
    if description.shape is None and description.colour is None:
        subjects.append("it")
    captions = []
    for subject, motion, speed in itertools.product(subjects, motions, speeds):
        captions.append(f"{subject} {motion} {speed}".strip())
        captions.append(f"{speed} {subject} {motion}".strip())
    return {caption: n / len(captions) for caption, n in Counter(captions).items()}


def leave_out(scene: Scene, names: set[str], says_moving: bool = False) -> Scene:
    """The description of a scene that leaves these attributes open.

    says_moving: a motion left open becomes MOVING, "anything but still". It always does if the
    description has a speed.
    """
    description = replace(scene, **dict.fromkeys(names))
    if "motion" in names and scene.motion != "still" and (says_moving or description.speed):
        description = replace(description, motion=MOVING)
    return description


def omissions(scene: Scene) -> dict[Scene, float]:
    """Every description of a scene, from all named to nothing named, with its probability."""
    names = list(scene.attributes)
    result: Counter[Scene] = Counter()
    for kept in itertools.product((True, False), repeat=len(names)):
        dropped = {name for name, keep in zip(names, kept, strict=True) if not keep}
        probability = math.prod(MENTION if keep else 1 - MENTION for keep in kept)
        for says_moving in (True, False):
            result[leave_out(scene, dropped, says_moving)] += probability / 2
    return dict(result)


def sample_wording(description: Scene, rng: random.Random) -> str:
    """One caption of a description, drawn from `wordings`."""
    return choose(wordings(description), rng)


def sample_caption(scene: Scene, rng: random.Random) -> str:
    """One caption of a scene: attributes left out, words and word order are random."""
    dropped = {name for name in scene.attributes if rng.random() > MENTION}
    return sample_wording(leave_out(scene, dropped, rng.random() < 0.5), rng)


def parse(caption: str) -> Scene:
    """The description that a caption states. Raises ValueError for text that is not a caption.

    The message names the words that are unknown, or that name an attribute a second time.
    """
    words = caption.lower().replace(",", " ").split()
    unknown = [word for word in words if word not in VOCABULARY]
    if unknown:
        raise _not_a_caption(caption, f"cannot read {', '.join(unknown)}")
    found = _phrases(caption, words)
    subject = found.keys() & {"a", "it", "colour", "shape"}
    if subject not in ({"it"}, {"a", "shape"}, {"a", "colour", "shape"}):
        raise _not_a_caption(caption, "cannot read what it is about")
    if found.get("motion") == "still" and "speed" in found:
        raise _not_a_caption(caption, "what is still has no speed")
    if "speed" in found:
        found.setdefault("motion", MOVING)
    return Scene(**{kind: value for kind, value in found.items() if kind in WORDS})


def _phrases(caption: str, words: list[str]) -> dict[str, str | None]:
    """Kind -> value of the phrases. Tries the longest first: "moves left" before "moves"."""
    found: dict[str, str | None] = {}
    while words:
        for size in range(min(3, len(words)), 0, -1):
            kind, value = MEANING.get(" ".join(words[:size]), (None, None))
            if kind and kind not in found:
                found[kind] = value
                words = words[size:]
                break
        else:
            raise _not_a_caption(caption, f"cannot read {' '.join(words)}")
    return found


def _not_a_caption(caption: str, reason: str) -> ValueError:
    return ValueError(f"not a caption of the clips world: {caption!r} ({reason})")


def prompt_bits(caption: str, image_of: Scene | None = None) -> float:
    """log2 of how many scenes fit the caption: 0 if nothing is open, 8.3 for "a shape".

    Every scene that fits counts the same: "a shape" is a more likely caption of a scene that is
    still than of one that moves, and this is ignored. image_of: for image-to-video, the scene whose
    first frame is given. The frame shows the shape and the colour.
    """
    description = parse(caption)
    if image_of is not None:
        description = replace(description, shape=image_of.shape, colour=image_of.colour)
    return entropy([1.0] * sum(describes(description, scene) for scene in all_scenes()))


def scene_bits(scene: Scene) -> float:
    """Entropy, in bits, of the caption given the scene: the number of ways to word one video."""
    return entropy(caption_probabilities(omissions(scene), wordings).values())


def graded_prompts(
    n: int, seed: int, specified: float = 0.5, images: bool = False
) -> list[dict[str, str | float]]:
    """n prompts of graded ambiguity, as rows {prompt, level, bits}: those of `graded_scenes`."""
    return [row for _, row in graded_scenes(n, seed, specified, images)]


def graded_scenes(
    n: int, seed: int, specified: float = 0.5, images: bool = False
) -> list[tuple[Scene, dict[str, str | float]]]:
    """n scenes with one prompt of graded ambiguity each, as rows {prompt, level, bits}.

    A share `specified` leaves nothing open, and the rest leaves out a uniformly drawn number of
    attributes, at least one. level: share of attributes named, in [0, 1]. bits: `prompt_bits`.
    images: for image-to-video. The attributes of a prompt are then motion and speed only, and it
    names the shape and the colour, which the image shows, with probability MENTION.
    """
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        scene = rng.choice(all_scenes())
        names = [name for name in scene.attributes if not images or name in ("motion", "speed")]
        dropped: set[str] = set()
        if i >= round(n * specified):
            dropped = set(rng.sample(names, rng.randint(1, len(names))))
        looks = {name for name in ("shape", "colour") if images and rng.random() > MENTION}
        description = leave_out(scene, dropped | looks, images or rng.random() < 0.5)
        caption = sample_wording(description, rng)
        row = {
            "prompt": caption,
            "level": round(1 - len(dropped) / len(names), 3),
            "bits": round(prompt_bits(caption, scene if images else None), 4),
        }
        rows.append((scene, row))
    rng.shuffle(rows)
    return rows

"""Captions of drawings with controlled ambiguity, and the exact ambiguity of each caption.

A caption names each attribute of a scene with probability MENTION, in one of two words and in one
of two word orders. Two ambiguities are known in bits: what a prompt leaves open of the scene
(`prompt_bits`), and in how many ways a scene can be worded (`scene_bits`).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

from bpgo.worlds.forms import ANY_SHAPE, COLOUR_WORDS, MENTION, SHAPE_WORDS
from bpgo.worlds.shapes.scenes import VALUES, Scene, Thing, all_scenes, describes, readings
from bpgo.worlds.shared import caption_probabilities, choose, entropy

WORDS = {  # for each value, and for None, an attribute that is left open
    "shape": SHAPE_WORDS | {None: ANY_SHAPE},
    "colour": COLOUR_WORDS | {None: ("",)},
    "size": {"small": ("small", "little"), "large": ("large", "big"), None: ("",)},
    "position": {
        "left": ("on the left", "at the left"),
        "right": ("on the right", "at the right"),
        "top": ("at the top", "up high"),
        "bottom": ("at the bottom", "down low"),
        "middle": ("in the middle", "in the centre"),
        None: ("",),
    },
    "relation": {
        "left": ("left of", "beside and left of"),
        "right": ("right of", "beside and right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
        None: ("and", "with"),
    },
}
OPPOSITE = {"left": "right", "above": "below"}


def _meanings() -> dict[str, tuple[str, str | None]]:
    """Phrase -> (kind of attribute, value)."""
    return {
        phrase: (kind, value)
        for kind, table in WORDS.items()
        for value, phrases in table.items()
        for phrase in phrases
        if phrase
    }


MEANING = _meanings()
VOCABULARY = sorted({word for phrase in MEANING for word in phrase.split()} | {"a"})


def wordings(description: Scene) -> dict[str, float]:
    """Every caption of a description, with its probability: two words each, two word orders."""
    if len(description.things) == 1:
        captions = _wordings_of_one(description.things[0])
    else:
        captions = _wordings_of_pair(description)
    return {caption: n / len(captions) for caption, n in Counter(captions).items()}


def _wordings_of_one(thing: Thing) -> list[str]:
    captions = []
    for noun, place in itertools.product(_nouns(thing), WORDS["position"][thing.position]):
        captions += [f"{noun} {place}".strip(), f"{place} {noun}".strip()]
    return captions


def _wordings_of_pair(description: Scene) -> list[str]:
    first, second = (_nouns(thing) for thing in description.things)
    relations = WORDS["relation"][description.relation]
    turned = WORDS["relation"][OPPOSITE.get(description.relation)]
    captions = [f"{a} {r} {b}" for a, r, b in itertools.product(first, relations, second)]
    captions += [f"{b} {r} {a}" for a, r, b in itertools.product(first, turned, second)]
    return captions


def _nouns(thing: Thing) -> list[str]:
    """Wordings of what a thing is: "a small red circle"."""
    words = itertools.product(
        WORDS["size"][thing.size], WORDS["colour"][thing.colour], WORDS["shape"][thing.shape]
    )
    return [" ".join(f"a {size} {colour} {shape}".split()) for size, colour, shape in words]


def omissions(scene: Scene) -> dict[Scene, float]:
    """Every description of a scene, from all named to nothing named, with its probability."""
    names = _names(scene)
    result = {}
    for kept in itertools.product((True, False), repeat=len(names)):
        dropped = {name for name, keep in zip(names, kept, strict=True) if not keep}
        probability = math.prod(MENTION if keep else 1 - MENTION for keep in kept)
        result[leave_out(scene, dropped)] = probability
    return result


def leave_out(scene: Scene, names: set[str]) -> Scene:
    """The description of a scene that leaves these attributes open: names of `scene.attributes`."""
    if len(scene.things) == 1:
        return Scene((replace(scene.things[0], **dict.fromkeys(names)),))
    things = []
    for number, thing in enumerate(scene.things, 1):
        dropped = [kind for kind in ("shape", "colour") if f"{kind} {number}" in names]
        things.append(replace(thing, **dict.fromkeys(dropped)))
    return Scene(tuple(things), None if "relation" in names else scene.relation)


def sample_wording(description: Scene, rng: random.Random) -> str:
    """One caption of a description, drawn from `wordings`."""
    return choose(wordings(description), rng)


def sample_caption(scene: Scene, rng: random.Random) -> str:
    """One caption of a scene: attributes left out, words and word order are random."""
    dropped = {name for name in _names(scene) if rng.random() > MENTION}
    return sample_wording(leave_out(scene, dropped), rng)


def _names(scene: Scene) -> list[str]:
    """Names of the attributes that a scene has."""
    return [name for name, value in scene.attributes.items() if value is not None]


def parse(caption: str) -> Scene:
    """The description that a caption states. Raises ValueError for text that is not a caption."""
    words = caption.lower().replace(",", " ").split()
    unknown = [word for word in words if word not in VOCABULARY]
    if unknown:
        raise _not_a_caption(caption, f"unknown words: {', '.join(unknown)}")
    if words.count("a") not in (1, 2):
        raise _not_a_caption(caption, "it must name one or two things, each with its 'a'")
    found = _phrases(caption, words)
    if words.count("a") == 1:
        return Scene((_thing(found),))
    cut = next((i for i, (kind, _) in enumerate(found) if kind == "relation"), None)
    if cut is None:
        raise _not_a_caption(caption, "two things need a relation between them, such as 'and'")
    first, second, relation = _thing(found[:cut]), _thing(found[cut:]), found[cut][1]
    if relation in ("right", "below"):
        return Scene((second, first), {"right": "left", "below": "above"}[relation])
    return Scene((first, second), relation)


def _phrases(caption: str, words: list[str]) -> list[tuple[str, str | None]]:
    """Kind and value of each phrase. Tries the longest first: "left of" before "on the left"."""
    found = []
    while words:
        for size in range(min(5, len(words)), 0, -1):
            phrase = " ".join(words[:size])
            if phrase in MEANING or phrase == "a":
                found.append(MEANING.get(phrase, ("a", None)))
                words = words[size:]
                break
        else:
            raise _not_a_caption(caption, f"cannot read {' '.join(words)!r}")
    return found


def _thing(found: list[tuple[str, str | None]]) -> Thing:
    return Thing(**{kind: value for kind, value in found if kind in VALUES})


def _not_a_caption(caption: str, reason: str) -> ValueError:
    return ValueError(f"not a caption of the shapes world: {caption!r} ({reason})")


def prompt_bits(caption: str) -> float:
    """Entropy, in bits, of the scene given the caption: 0 if nothing is open, 7.9 for "a shape"."""
    description = parse(caption)
    orders = readings(description)
    weights = []
    for scene in all_scenes(len(description.things)):
        weight = 0
        for order in orders:
            if order.relation is None:
                order = replace(order, relation=scene.relation)
            weight += describes(order, scene)
        weights.append(weight)
    return entropy(weights)


def scene_bits(scene: Scene) -> float:
    """Entropy, in bits, of the caption given the scene: the number of ways to word one drawing."""
    return entropy(caption_probabilities(omissions(scene), wordings).values())


def graded_prompts(
    n: int, seed: int, specified: float = 0.5, pairs: float = 0.1
) -> list[dict[str, str | float]]:
    """n prompts of graded ambiguity, as rows {prompt, level, bits, kind}.

    A share `pairs` names two things. Of these and of the others, a share `specified` leaves nothing
    open, and the rest leaves out a uniformly drawn number of attributes, at least one. Shares are
    exact, to rounding. level: share of attributes named, in [0, 1]. bits: `prompt_bits`. kind:
    "single" or "pair".
    """
    rng = random.Random(seed)
    rows = []
    n_pairs = round(n * pairs)
    for things, count in ((2, n_pairs), (1, n - n_pairs)):
        for i in range(count):
            scene = rng.choice(all_scenes(things))
            names = _names(scene)
            dropped = 0 if i < round(count * specified) else rng.randint(1, len(names))
            description = leave_out(scene, set(rng.sample(names, dropped)))
            caption = sample_wording(description, rng)
            row = {
                "prompt": caption,
                "level": round(1 - dropped / len(names), 3),
                "bits": round(prompt_bits(caption), 4),
                "kind": "pair" if things == 2 else "single",
            }
            rows.append(row)
    rng.shuffle(rows)
    return rows

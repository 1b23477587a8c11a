"""Captions of controlled ambiguity, and how ambiguous each is, exactly, both ways.

A caption names each attribute of a scene with probability MENTION, picks one of two words for it, and one of two word
orders. So two ambiguities of text and picture are known in bits: what a prompt leaves open of the scene (`prompt_bits`), and in
how many ways a scene may be said (`scene_bits`).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

from bpgo.worlds.shapes.scenes import VALUES, Scene, Thing, all_scenes, readings, says

MENTION = 0.75
WORDS = {
    "shape": {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle", "wedge"),
        "cross": ("cross", "plus"),
        None: ("shape", "thing"),
    },
    "colour": {
        "red": ("red", "crimson"),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure"),
        "yellow": ("yellow", "golden"),
        "purple": ("purple", "violet"),
        "white": ("white", "ivory"),
        None: ("",),
    },
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
MEANING = {
    w: (kind, v) for kind, table in WORDS.items() for v, words in table.items() for w in words if w
}
VOCABULARY = sorted({word for phrase in MEANING for word in phrase.split()} | {"a"})


def wordings(description: Scene) -> dict[str, float]:
    """Every caption that says this description, with its probability. Two words for each attribute, two word orders."""
    if len(description.things) == 1:
        thing = description.things[0]
        choices = [
            [
                " ".join(f"a {s} {c} {n}".split())
                for s in WORDS["size"][thing.size]
                for c in WORDS["colour"][thing.colour]
                for n in WORDS["shape"][thing.shape]
            ],
            WORDS["position"][thing.position],
        ]
        said = [
            f"{a} {b}".strip()
            for noun, place in itertools.product(*choices)
            for a, b in ((noun, place), (place, noun))
        ]
    else:
        first, second = (
            [
                f"a {c} {n}".replace("  ", " ")
                for c in WORDS["colour"][t.colour]
                for n in WORDS["shape"][t.shape]
            ]
            for t in description.things
        )
        turned = OPPOSITE.get(description.relation)
        said = [
            f"{a} {r} {b}"
            for a, r, b in itertools.product(first, WORDS["relation"][description.relation], second)
        ]
        said += [
            f"{b} {r} {a}"
            for a, r, b in itertools.product(first, WORDS["relation"][turned], second)
        ]
    return {caption: n / len(said) for caption, n in Counter(said).items()}


def omissions(scene: Scene) -> dict[Scene, float]:
    """Every description of a scene, from everything named to nothing named, with its probability."""
    names = [name for name, value in scene.attributes.items() if value is not None]
    result = {}
    for kept in itertools.product((True, False), repeat=len(names)):
        dropped = {name for name, keep in zip(names, kept, strict=True) if not keep}
        result[leave_out(scene, dropped)] = math.prod(
            MENTION if keep else 1 - MENTION for keep in kept
        )
    return result


def leave_out(scene: Scene, names: set[str]) -> Scene:
    """The description of a scene that leaves these attributes open (names as in `Scene.attributes`)."""
    if len(scene.things) == 1:
        return Scene((replace(scene.things[0], **dict.fromkeys(names)),))
    things = tuple(
        replace(t, **{k: None for k in ("shape", "colour") if f"{k} {i}" in names})
        for i, t in enumerate(scene.things, 1)
    )
    return Scene(things, None if "relation" in names else scene.relation)


def sample_wording(description: Scene, rng: random.Random) -> str:
    said = wordings(description)
    return rng.choices(list(said), weights=said.values())[0]


def sample_caption(scene: Scene, rng: random.Random) -> str:
    """One caption of a scene: attributes left out at random, words and their order chosen at random."""
    names = {
        name
        for name, value in scene.attributes.items()
        if value is not None and rng.random() > MENTION
    }
    return sample_wording(leave_out(scene, names), rng)


def parse(caption: str) -> Scene:
    """The description that a caption says. Raises ValueError with the words that are not the world's."""
    words = caption.lower().replace(",", " ").split()
    unknown = [word for word in words if word not in VOCABULARY]
    if unknown or words.count("a") not in (1, 2):
        raise ValueError(
            f"not a caption of this world: {caption!r} (unknown words: {unknown or 'none'}; one or two things)"
        )
    found, rest = [], words
    while rest:  # longest phrase first: "left of" before "on the left"
        for size in range(min(5, len(rest)), 0, -1):
            if (phrase := " ".join(rest[:size])) in MEANING or phrase == "a":
                found.append(MEANING.get(phrase, ("a", None)))
                rest = rest[size:]
                break
        else:
            raise ValueError(
                f"not a caption of this world: {caption!r} (cannot read {' '.join(rest)!r})"
            )
    if words.count("a") == 1:
        return Scene((Thing(**{kind: value for kind, value in found if kind in VALUES}),))
    cut = next((i for i, (kind, _) in enumerate(found) if kind == "relation"), None)
    if cut is None:
        raise ValueError(
            f"not a caption of this world: {caption!r} (two things, and no word that relates them)"
        )
    first, second = (
        Thing(**{k: v for k, v in part if k in VALUES}) for part in (found[:cut], found[cut:])
    )
    relation = found[cut][1]
    if relation in ("right", "below"):
        return Scene((second, first), {"right": "left", "below": "above"}[relation])
    return Scene((first, second), relation)


def prompt_bits(caption: str) -> float:
    """Entropy, in bits, of the scene given the caption: 0 when it leaves nothing open, 7.9 for "a shape"."""
    description = parse(caption)
    orders = readings(description)
    weights = [
        sum(says(Scene(o.things, s.relation) if o.relation is None else o, s) for o in orders)
        for s in all_scenes(len(description.things))
    ]
    return _entropy(weights)


def scene_bits(scene: Scene) -> float:
    """Entropy, in bits, of the caption given the scene: in how many ways the same picture may be said."""
    captions: Counter[str] = Counter()
    for description, p in omissions(scene).items():
        for caption, q in wordings(description).items():
            captions[caption] += p * q
    return _entropy(captions.values())


def _entropy(weights) -> float:
    total = sum(weights)
    return -sum(w / total * math.log2(w / total) for w in weights if w) + 0.0


def graded_prompts(n: int, seed: int, pairs: float = 0.1, specified: float = 0.5) -> list[dict]:
    """n prompts of graded ambiguity, as rows {prompt, level, bits, kind}.

    Exact shares, to rounding: `pairs` speak of two things; of these and of the others, `specified` leave nothing open and the
    rest leave out a uniformly drawn number of attributes, at least one. `level` is the share of attributes named, in
    [0, 1]; `bits` is `prompt_bits`.
    """
    rng = random.Random(seed)
    rows = []
    for things, count in ((2, round(n * pairs)), (1, n - round(n * pairs))):
        for i in range(count):
            scene = rng.choice(all_scenes(things))
            names = [name for name, value in scene.attributes.items() if value is not None]
            dropped = 0 if i < round(count * specified) else rng.randint(1, len(names))
            caption = sample_wording(leave_out(scene, set(rng.sample(names, dropped))), rng)
            rows.append(
                {
                    "prompt": caption,
                    "level": round(1 - dropped / len(names), 3),
                    "bits": round(prompt_bits(caption), 4),
                    "kind": "pair" if things == 2 else "single",
                }
            )
    rng.shuffle(rows)
    return rows

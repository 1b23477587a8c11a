"""The embedded worlds: small sources of scenes and captions in which the truth is known exactly.

Each world is a package `bpgo.worlds.<name>` with three modules, and all worlds share one interface.
A *scene* is everything that an image or a video of the world can show. A *description* is a scene
in which something may be left open; a caption is the wording of a description. Pixels have the
shape (B, 3, H, W), or (B, T, 3, H, W) for videos, and lie in [0, 1].

scenes:
    Scene                                   hashable
    all_scenes() -> tuple[Scene, ...]       every scene
    describes(description, scene) -> bool   whether all that the description names is true of it
    sample_scenes(n, generator) -> list[Scene]
    sample_pixels(scenes, generator) -> Tensor
captions:
    VOCABULARY                              sorted list of all words
    wordings(description) -> dict[str, float]       captions and their probabilities
    omissions(scene) -> dict[description, float]    descriptions and their probabilities
    parse(caption) -> description           raises ValueError for text that is not a caption
    sample_wording(description, rng) -> str
    sample_caption(scene, rng) -> str
    prompt_bits(caption) -> float           what the caption leaves open of the scene, in bits
    scene_bits(scene) -> float              entropy of the caption given the scene, in bits
    graded_prompts(n, seed, specified=0.5) -> list[dict]    rows {prompt, level, bits, ...}
oracle:
    read(pixels) -> Reading                 .scenes (None where nothing is recognised), .distance
    measure(pixels, prompts) -> dict[str, Tensor]   metrics by name, each (B,); a metric is NaN
                                            where it is not defined
    share_right(pixels, prompts) -> Tensor  (B,) graded truth in [0, 1], finer than accuracy
    diversity(scenes, prompt) -> float | None       of a group of scenes that were read
    error_rate(pixels, scenes) -> dict[str, float]  how often `read` is wrong

Worlds whose scenes have named attributes (`scene.attributes`) also have
`captions.leave_out(scene, names) -> description` and `scenes.draw(scenes, offsets) -> Tensor`,
which is deterministic. Worlds may add optional arguments after the ones above. `generator` is a
torch.Generator, `rng` a random.Random, and `specified` the share of prompts that leave nothing
open.

To add a world, write such a package and add one line to the "metric" table in `bpgo/registry.py`
that names its `measure`. `bpgo.worlds.shared` has what the oracles and captions have in common.
`bpgo.worlds.pretrain` trains the tiny checkpoints on the worlds.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from bpgo.registry import TABLES


class World(NamedTuple):
    """The three modules of a world."""

    scenes: ModuleType
    captions: ModuleType
    oracle: ModuleType


def load_world(name: str) -> World:
    """The modules of a world. Raises ValueError, with the known names, for another name."""
    worlds = [key for key, path in TABLES["metric"].items() if path.startswith(f"{__name__}.")]
    if name not in worlds:
        raise ValueError(f"unknown world {name!r}: known worlds are {', '.join(worlds)}")
    return World(*(import_module(f"{__name__}.{name}.{part}") for part in World._fields))

"""The two rewards of the shapes world: the training reward and the held-out one."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch

from bpgo.rewards.image_reward import ImageReward
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.fit import batches, roundtrip, scaled_size
from bpgo.worlds.pretrain.reward_models import (
    Examples,
    Preferences,
    finish_reward,
    fit_clip,
    fit_preference,
    near_misses,
    with_noise,
)
from bpgo.worlds.pretrain.stages import STAGES
from bpgo.worlds.shapes.captions import VOCABULARY, parse, sample_caption
from bpgo.worlds.shapes.scenes import Scene, all_scenes, describes, sample_pixels, sample_scenes

DATA = (
    "16 000 drawings, half of them autoencoded, with noise of standard deviation 0.02; captions "
    "with attributes left out"
)


def reward_examples(output: Path, n: int, generator: torch.Generator) -> Examples:
    """n scenes as a generator shows them: half autoencoded, all with a little noise."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(output / "tiny-autoencoder", dtype=torch.float32).eval()
    scenes = sample_scenes(n, generator)
    images = sample_pixels(scenes, generator)
    images[: n // 2] = roundtrip(vae, images[: n // 2])
    return Examples(scenes, with_noise(images, generator))


def train_reward(output: Path, scale: float) -> None:
    """Train a CLIPModel with a contrastive loss."""
    stage, seed = "reward", STAGES["reward"].seed
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    examples = reward_examples(output, scaled_size(16000, scale), generator)
    save = fit_clip(examples, VOCABULARY, sample_caption, 160, generator, rng, stage, scale)
    what = "CLIPModel, the training reward: cosine of image and caption."
    finish_reward(output / "tiny-reward", stage, "clip", save, what, DATA, preferences())


def train_held_out(output: Path, scale: float) -> None:
    """Train an ImageReward on preferences."""
    stage, seed = "held_out", STAGES["held_out"].seed
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    examples = reward_examples(output, scaled_size(16000, scale), generator)
    model, tokenizer = ImageReward(tiny.image_reward_config()), tiny.bert_tokenizer()
    index = batches(len(examples.scenes), 64, generator)
    save = fit_preference(
        model, tokenizer, examples, sample_caption, near_miss, index, rng, stage, scale
    )
    what = (
        "ImageReward architecture, the held-out reward; scores of matched images have mean 1 and "
        "standard deviation 1."
    )
    finish_reward(output / "tiny-held-out", stage, "image_reward", save, what, DATA, preferences())


def near_miss(scene: Scene, caption: str, rng: random.Random) -> Scene | None:
    """A scene with one to all attributes changed, which the caption does not describe.

    It has the same number of things. None if eight attempts did not draw one.
    """
    description = parse(caption)
    for _ in range(8):
        other = rng.choice(all_scenes(len(scene.things)))
        share = rng.choice((0.25, 0.5, 1.0))
        things = []
        for thing, other_thing in zip(scene.things, other.things, strict=True):
            changed = {}
            for name, value in vars(other_thing).items():
                if rng.random() < share:
                    changed[name] = value
            things.append(replace(thing, **changed))
        relation = other.relation if rng.random() < share else scene.relation
        candidate = Scene(tuple(things), relation)
        if not describes(description, candidate):
            return candidate
    return None


def preferences() -> Preferences:
    """Drawings that show what their captions say, and near misses."""
    generator, rng = torch.Generator().manual_seed(202), random.Random(202)
    scenes = sample_scenes(2048, generator)
    scenes, misses, captions = near_misses(scenes, sample_caption, near_miss, rng)
    right, wrong = sample_pixels(scenes, generator), sample_pixels(misses, generator)
    return Preferences(right, wrong, captions)

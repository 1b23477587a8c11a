"""How the reward models are trained, whichever world they judge.

A CLIPModel is trained with a contrastive loss, and is the training reward of policies. An
ImageReward is trained on preferences and held out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from bpgo.rewards import load_reward
from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.image_reward import ImageReward
from bpgo.rewards.preprocess import centre_crop, rounded_half
from bpgo.tokenization import tokenize
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.fit import batches, card, optimise, stage_steps, store, write_card

Caption = Callable[[object, random.Random], str]  # (scene, rng) -> a caption of the scene
# (scene, caption, rng) -> a scene that the caption does not describe, or None
NearMiss = Callable[[object, str, random.Random], object]


class Examples(NamedTuple):
    """Scenes and what they look like: pixels (B, ...) in [0, 1]."""

    scenes: list
    pixels: Tensor


class Preferences(NamedTuple):
    """Captions, pixels that show what they say and pixels that do not, to measure a reward on."""

    right: Tensor
    wrong: Tensor
    captions: list[str]


def fit_clip(
    examples: Examples,
    vocabulary: list[str],
    caption: Caption,
    batch: int,
    generator: torch.Generator,
    rng: random.Random,
    stage: str,
    scale: float,
) -> Callable[[Path], None]:
    """Train a CLIPModel with a contrastive loss. Returns the function that saves it.

    Each image is compared with the captions of the batch, and each caption with its images.
    """
    from transformers import CLIPImageProcessorPil

    tokenizer = tiny.clip_tokenizer(vocabulary)
    model = tiny.clip_model(tokenizer)
    index = batches(len(examples.scenes), batch, generator)
    pixels = centre_crop(examples.pixels, 32, MEAN, STD, rounded_half)

    def loss() -> Tensor:
        chosen = next(index)
        captions = [caption(examples.scenes[i], rng) for i in chosen.tolist()]
        text = tokenizer(captions, padding="max_length", return_tensors="pt")
        return model(**text, pixel_values=pixels[chosen], return_loss=True).loss

    optimise(list(model.parameters()), stage_steps(stage, scale), 1.5e-3, loss, stage)
    model.half().float().eval()

    def save(folder: Path) -> None:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)

    return save


def fit_preference(
    model: ImageReward,
    tokenizer,
    examples: Examples,
    caption: Caption,
    near_miss: NearMiss,
    index,
    rng: random.Random,
    stage: str,
    scale: float,
) -> Callable[[Path], None]:
    """Train an ImageReward to prefer an image that shows its caption to a near miss.

    index: batches of rows. The scores of matched images are then scaled to mean 1 and std 1.
    Returns the function that saves the model.
    """
    scenes, length = examples.scenes, model.config["max_length"]
    side = model.config["vision"]["image_size"]
    pixels = centre_crop(examples.pixels, side, MEAN, STD, rounded_half)
    rows: dict = {}
    for i, scene in enumerate(scenes):
        rows.setdefault(scene, []).append(i)

    def score(images: Tensor, captions: list[str]) -> Tensor:
        text = tokenize(tokenizer, captions, length)
        return model(images, text["input_ids"], text["attention_mask"])

    def loss() -> Tensor:
        right, wrong, captions = [], [], []
        for i in next(index).tolist():
            said = caption(scenes[i], rng)
            other = near_miss(scenes[i], said, rng)
            if other in rows:
                captions.append(said)
                right.append(i)
                wrong.append(rng.choice(rows[other]))
        scores = score(pixels[right + wrong], captions * 2)
        better, worse = scores.chunk(2)
        return -F.logsigmoid(better - worse).mean() + 1e-3 * scores.square().mean()

    optimise(list(model.parameters()), stage_steps(stage, scale), 1.5e-3, loss, stage)
    model.half().float().eval()
    with torch.no_grad():
        scores = score(pixels[:1024], [caption(scene, rng) for scene in scenes[:1024]])
    mean, std = scores.mean().item(), scores.std().item()
    model.config |= {"mean": mean - std, "std": std}
    return partial(save_reward, model, tokenizer)


def save_reward(model, tokenizer, folder: Path) -> None:
    """Save a model that has a `config` dict, in half precision, and its tokenizer."""
    (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n", encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in model.half().state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    tokenizer.save_pretrained(folder)


def with_noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels with noise of standard deviation 0.02, within [0, 1]."""
    return (pixels + 0.02 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def near_misses(
    scenes: list, caption: Caption, near_miss: NearMiss, rng: random.Random
) -> tuple[list, list, list[str]]:
    """Scenes, a near miss of each, and a caption that describes the first and not the second.

    Scenes without a near miss are left out.
    """
    captions = [caption(scene, rng) for scene in scenes]
    kept, misses, said = [], [], []
    for scene, text in zip(scenes, captions, strict=True):
        miss = near_miss(scene, text, rng)
        if miss is not None:
            kept.append(scene)
            misses.append(miss)
            said.append(text)
    return kept, misses, said


def finish_reward(
    folder: Path,
    stage: str,
    name: str,
    save: Callable[[Path], None],
    what: str,
    data: str,
    preferences: Preferences,
) -> None:
    """Store a reward, then measure how often it prefers the right one, as it will be loaded."""
    store(folder, save, card(stage, what, data, {}))
    reward = load_reward(name, folder)
    right = reward(preferences.right, preferences.captions)
    wrong = reward(preferences.wrong, preferences.captions)
    metrics = {
        "prefers the right one to a near miss": (right > wrong).float().mean().item(),
        "mean reward of right ones": right.mean().item(),
        "mean reward of near misses": wrong.mean().item(),
    }
    print(json.dumps(metrics, indent=1))
    write_card(folder, card(stage, what, data, metrics), folder.name)

"""The two reward models: a CLIPModel by contrast, which policies are trained on, and an ImageReward by preference, held out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ..rewards import load_reward
from ..rewards.clip import MEAN, STD
from ..rewards.image_reward import ImageReward
from ..rewards.preprocess import centre_crop
from ..text import tokenize
from . import tiny
from .captions import parse, sample_caption
from .fit import SEEDS, batches, card, optimise, roundtrip, size, steps, store, write_card
from .scenes import Scene, all_scenes, sample_pictures, sample_scenes, says

DATA = "16 000 drawings, half of them autoencoded, noise of 0.02; captions with attributes left out"


def reward_pictures(output: Path, n: int, generator: torch.Generator) -> tuple[list[Scene], Tensor]:
    """n scenes and their pictures as a generator shows them: half autoencoded, all with a little noise."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(output / "tiny-autoencoder", dtype=torch.float32).eval()
    scenes = sample_scenes(n, generator)
    pictures = sample_pictures(scenes, generator)
    pictures[: n // 2] = roundtrip(vae, pictures[: n // 2])
    return scenes, (pictures + 0.02 * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def train_reward(output: Path, scale: float) -> None:
    """CLIPModel by contrast: each picture against the batch's captions, each caption against its pictures."""
    from transformers import CLIPImageProcessorPil

    generator, rng = torch.Generator().manual_seed(SEEDS["reward"]), random.Random(SEEDS["reward"])
    scenes, pictures = reward_pictures(output, size(16000, scale), generator)
    tokenizer = tiny.clip_tokenizer()
    model = tiny.clip_model(tokenizer)
    index = batches(len(scenes), 160, generator)
    pixels = centre_crop(pictures, 32, MEAN, STD)

    def loss() -> Tensor:
        chosen = next(index)
        text = tokenizer([sample_caption(scenes[i], rng) for i in chosen.tolist()], padding="max_length", return_tensors="pt")
        return model(**text, pixel_values=pixels[chosen], return_loss=True).loss

    optimise(list(model.parameters()), steps("reward", scale), 1.5e-3, loss, "reward")
    model.half().float().eval()

    def save(folder: Path) -> None:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)

    what = "CLIPModel, the training reward: cosine of picture and caption."
    finish_reward(output / "tiny-reward", "reward", "clip", save, what, DATA, preferences())


def train_held_out(output: Path, scale: float) -> None:
    """ImageReward by preference: for one caption, a picture that shows it against a near miss that does not."""
    generator, rng = torch.Generator().manual_seed(SEEDS["held_out"]), random.Random(SEEDS["held_out"])

    scenes, pictures = reward_pictures(output, size(16000, scale), generator)
    pixels = centre_crop(pictures, 32, MEAN, STD)
    by_scene: dict[Scene, list[int]] = {}
    for i, scene in enumerate(scenes):
        by_scene.setdefault(scene, []).append(i)
    tokenizer = tiny.bert_tokenizer()
    model = ImageReward(tiny.image_reward_config())
    index = batches(len(scenes), 64, generator)

    def loss() -> Tensor:
        right, wrong, captions = [], [], []
        for i in next(index).tolist():
            caption = sample_caption(scenes[i], rng)
            miss = near_miss(scenes[i], caption, rng)
            if miss in by_scene:
                captions.append(caption)
                right.append(i)
                wrong.append(rng.choice(by_scene[miss]))
        text = tokenize(tokenizer, captions * 2, tiny.TOKENS)
        score = model(pixels[right + wrong], text["input_ids"], text["attention_mask"])
        better, worse = score.chunk(2)
        return -F.logsigmoid(better - worse).mean() + 1e-3 * score.square().mean()

    optimise(list(model.parameters()), steps("held_out", scale), 1.5e-3, loss, "held_out")
    model.half().float().eval()
    with torch.no_grad():
        text = tokenize(tokenizer, [sample_caption(s, rng) for s in scenes[:1024]], tiny.TOKENS)
        score = model(pixels[:1024], text["input_ids"], text["attention_mask"])
    model.config |= {"mean": score.mean().item() - score.std().item(), "std": score.std().item()}

    def save(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n")
        save_file(model.half().state_dict(), folder / "model.safetensors")
        tokenizer.save_pretrained(folder)

    what = "ImageReward architecture, the held-out reward; matched pictures score 1 +- 1."
    finish_reward(output / "tiny-held-out", "held_out", "image_reward", save, what, DATA, preferences())


def near_miss(scene: Scene, caption: str, rng: random.Random) -> Scene | None:
    """A scene of as many things, one to all attributes changed, that the caption does not describe; None if none was drawn."""
    description = parse(caption)
    for _ in range(8):
        other = rng.choice(all_scenes(len(scene.things)))
        share = rng.choice((0.25, 0.5, 1.0))
        things = tuple(
            type(thing)(**{k: (vars(theirs)[k] if rng.random() < share else v) for k, v in vars(thing).items()})
            for thing, theirs in zip(scene.things, other.things, strict=True)
        )
        candidate = Scene(things, other.relation if rng.random() < share else scene.relation)
        if not says(description, candidate):
            return candidate
    return None


def preferences() -> tuple[Tensor, Tensor, list[str]]:
    """Right pictures, near misses, and the captions that tell them apart."""
    generator, rng = torch.Generator().manual_seed(202), random.Random(202)
    scenes = sample_scenes(2048, generator)
    captions = [sample_caption(s, rng) for s in scenes]
    misses = [near_miss(s, c, rng) for s, c in zip(scenes, captions, strict=True)]
    rows = [(s, m, c) for s, m, c in zip(scenes, misses, captions, strict=True) if m is not None]
    scenes, misses, captions = (list(column) for column in zip(*rows, strict=True))
    return sample_pictures(scenes, generator), sample_pictures(misses, generator), captions


def finish_reward(
    folder: Path, stage: str, name: str, save: Callable[[Path], None], what: str, data: str, judged: tuple[Tensor, Tensor, list[str]]
) -> None:
    """Store a reward, then measure it as it will be loaded: how often it prefers the right of two samples for a caption."""
    store(folder, save, card(stage, what, data, {}))
    reward = load_reward(name, folder)
    right, wrong = (reward(samples, judged[2]) for samples in judged[:2])
    metrics = {
        "prefers the right one to a near miss": (right > wrong).float().mean().item(),
        "mean reward of right ones": right.mean().item(),
        "mean reward of near misses": wrong.mean().item(),
    }
    print(json.dumps(metrics, indent=1))
    write_card(folder, card(stage, what, data, metrics))

"""The two reward models: a CLIPModel by contrast, which policies are trained on, and an ImageReward by preference, held out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from bpgo.rewards import load_reward
from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.image_reward import ImageReward
from bpgo.rewards.preprocess import centre_crop
from bpgo.tokenization import tokenize
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.fit import (
    SEEDS,
    batches,
    card,
    optimise,
    roundtrip,
    size,
    steps,
    store,
    write_card,
)
from bpgo.worlds.shapes.captions import parse, sample_caption
from bpgo.worlds.shapes.scenes import Scene, all_scenes, sample_pictures, sample_scenes, says

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
        text = tokenizer(
            [sample_caption(scenes[i], rng) for i in chosen.tolist()],
            padding="max_length",
            return_tensors="pt",
        )
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
    """ImageReward by preference on pictures."""
    generator, rng = (
        torch.Generator().manual_seed(SEEDS["held_out"]),
        random.Random(SEEDS["held_out"]),
    )
    scenes, pictures = reward_pictures(output, size(16000, scale), generator)
    model, tokenizer = ImageReward(tiny.image_reward_config()), tiny.bert_tokenizer()
    index = batches(len(scenes), 64, generator)
    fit_preference(
        model, tokenizer, scenes, pictures, index, sample_caption, near_miss, rng, "held_out", scale
    )
    what = "ImageReward architecture, the held-out reward; matched pictures score 1 +- 1."
    save = partial(save_reward, model, tokenizer)
    finish_reward(
        output / "tiny-held-out", "held_out", "image_reward", save, what, DATA, preferences()
    )


def fit_preference(
    model: ImageReward,
    tokenizer,
    subjects: list,
    pictures: Tensor,
    index,
    caption,
    miss,
    rng: random.Random,
    stage: str,
    scale: float,
) -> None:
    """Train an ImageReward to prefer, for one caption, a picture that shows it to a near miss that does not.

    subjects: B scenes or clips, shown by pictures (B, 3, S, S); index: batches of rows; caption(subject, rng) says a subject, miss(subject,
    caption, rng) is a near miss or None. The scores of matched pictures are then put at 1 +- 1.
    """
    pixels, length = (
        centre_crop(pictures, model.config["vision"]["image_size"], MEAN, STD),
        model.config["max_length"],
    )
    rows: dict = {}
    for i, subject in enumerate(subjects):
        rows.setdefault(subject, []).append(i)

    def loss() -> Tensor:
        right, wrong, captions = [], [], []
        for i in next(index).tolist():
            said = caption(subjects[i], rng)
            other = miss(subjects[i], said, rng)
            if other in rows:
                captions.append(said)
                right.append(i)
                wrong.append(rng.choice(rows[other]))
        text = tokenize(tokenizer, captions * 2, length)
        score = model(pixels[right + wrong], text["input_ids"], text["attention_mask"])
        better, worse = score.chunk(2)
        return -F.logsigmoid(better - worse).mean() + 1e-3 * score.square().mean()

    optimise(list(model.parameters()), steps(stage, scale), 1.5e-3, loss, stage)
    model.half().float().eval()
    with torch.no_grad():
        text = tokenize(tokenizer, [caption(subject, rng) for subject in subjects[:1024]], length)
        score = model(pixels[:1024], text["input_ids"], text["attention_mask"])
    model.config |= {"mean": score.mean().item() - score.std().item(), "std": score.std().item()}


def save_reward(model, tokenizer, folder: Path) -> None:
    """A model with a `config` dict, in half precision, and its tokenizer."""
    (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.half().state_dict().items()},
        folder / "model.safetensors",
    )
    tokenizer.save_pretrained(folder)


def near_miss(scene: Scene, caption: str, rng: random.Random) -> Scene | None:
    """A scene of as many things, one to all attributes changed, that the caption does not describe; None if none was drawn."""
    description = parse(caption)
    for _ in range(8):
        other = rng.choice(all_scenes(len(scene.things)))
        share = rng.choice((0.25, 0.5, 1.0))
        things = tuple(
            type(thing)(
                **{
                    k: (vars(theirs)[k] if rng.random() < share else v)
                    for k, v in vars(thing).items()
                }
            )
            for thing, theirs in zip(scene.things, other.things, strict=True)
        )
        candidate = Scene(things, other.relation if rng.random() < share else scene.relation)
        if not says(description, candidate):
            return candidate
    return None


def preferences() -> tuple[Tensor, Tensor, list[str]]:
    """Right pictures, near misses, and the captions that tell them apart."""
    generator, rng = torch.Generator().manual_seed(202), random.Random(202)
    scenes, misses, captions = told_apart(
        sample_scenes(2048, generator), sample_caption, near_miss, rng
    )
    return sample_pictures(scenes, generator), sample_pictures(misses, generator), captions


def told_apart(subjects: list, caption, miss, rng: random.Random) -> tuple[list, list, list[str]]:
    """Subjects, a near miss of each, and a caption that tells the two apart; those for which none was drawn are left out."""
    captions = [caption(subject, rng) for subject in subjects]
    misses = [miss(subject, said, rng) for subject, said in zip(subjects, captions, strict=True)]
    rows = [row for row in zip(subjects, misses, captions, strict=True) if row[1] is not None]
    return tuple(list(column) for column in zip(*rows, strict=True))


def finish_reward(
    folder: Path,
    stage: str,
    name: str,
    save: Callable[[Path], None],
    what: str,
    data: str,
    judged: tuple[Tensor, Tensor, list[str]],
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

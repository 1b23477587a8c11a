"""The two rewards of the clips world: the training reward and the held-out one."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bpgo.rewards.image_grid import grid
from bpgo.rewards.image_reward import ImageReward
from bpgo.rewards.video_clip_xl import VideoCLIP, preprocess
from bpgo.tokenization import tokenize
from bpgo.worlds.clips.captions import VOCABULARY, parse, sample_caption
from bpgo.worlds.clips.scenes import Scene, all_scenes, describes, sample_pixels, sample_scenes
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.clips_generator import load_autoencoder, roundtrip
from bpgo.worlds.pretrain.fit import batches, optimise, scaled_size, stage_steps
from bpgo.worlds.pretrain.reward_models import (
    Examples,
    Preferences,
    finish_reward,
    fit_preference,
    near_misses,
    save_reward,
    with_noise,
)
from bpgo.worlds.pretrain.stages import STAGES

DATA = (
    "6 000 clips, half of them autoencoded, with noise of standard deviation 0.02; captions with "
    "attributes left out"
)


def reward_examples(output: Path, n: int, generator: torch.Generator) -> Examples:
    """n scenes as a generator shows them: half autoencoded, all with a little noise."""
    scenes = sample_scenes(n, generator)
    videos = sample_pixels(scenes, generator)
    videos[: n // 2] = roundtrip(load_autoencoder(output), videos[: n // 2])
    return Examples(scenes, with_noise(videos, generator))


def train_reward(output: Path, scale: float) -> None:
    """Train a VideoCLIP with a contrastive loss.

    Each video is compared with the captions of the batch, and each caption with its videos.
    """
    stage, seed = "video_reward", STAGES["video_reward"].seed
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes, videos = reward_examples(output, scaled_size(6000, scale), generator)
    tokenizer = tiny.clip_tokenizer(VOCABULARY, tiny.VIDEO_TOKENS)
    model = VideoCLIP(tiny.video_clip_config(tokenizer))
    torch.nn.init.normal_(model.temporal, std=0.02)
    temperature = torch.nn.Parameter(torch.tensor(2.66))
    frames = preprocess(videos, model.config["frames"], 32)
    index = batches(len(scenes), 128, generator)

    def loss() -> Tensor:
        chosen = next(index)
        captions = [sample_caption(scenes[i], rng) for i in chosen.tolist()]
        text = tokenize(tokenizer, captions, tiny.VIDEO_TOKENS)
        seen = model.embed_video(frames[chosen])
        said = model.embed_text(text["input_ids"], text["attention_mask"])
        logits, own = temperature.exp() * seen @ said.T, torch.arange(len(chosen))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    parameters = [*model.parameters(), temperature]
    optimise(parameters, stage_steps(stage, scale), 1.5e-3, loss, stage)
    what = (
        "VideoCLIP (the architecture of VideoCLIP-XL), the training reward of the video tasks: "
        "cosine of video and caption."
    )
    save = partial(save_reward, model, tokenizer)
    folder = output / "tiny-video-reward"
    finish_reward(folder, stage, "video_clip_xl", save, what, DATA, preferences())


def train_held_out(output: Path, scale: float) -> None:
    """Train an ImageReward on preferences, with grids of the frames."""
    stage, seed = "video_held_out", STAGES["video_held_out"].seed
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes, videos = reward_examples(output, scaled_size(6000, scale), generator)
    examples = Examples(scenes, grid(videos))
    model = ImageReward(tiny.image_grid_config(examples.pixels.shape[-1]))
    tokenizer = tiny.bert_tokenizer(VOCABULARY, tiny.VIDEO_TOKENS)
    index = batches(len(scenes), 64, generator)
    save = fit_preference(
        model, tokenizer, examples, sample_caption, near_miss, index, rng, stage, scale
    )
    what = (
        "ImageReward architecture on 3 x 3 grids of the frames, the held-out reward of the video "
        "tasks; scores of matched videos have mean 1 and standard deviation 1."
    )
    folder = output / "tiny-video-held-out"
    finish_reward(folder, stage, "image_grid", save, what, DATA, preferences())


def near_miss(scene: Scene, caption: str, rng: random.Random) -> Scene | None:
    """A scene with one to all attributes changed, which the caption does not describe.

    None if eight attempts did not draw one.
    """
    description = parse(caption)
    for _ in range(8):
        other, share = rng.choice(all_scenes()), rng.choice((0.25, 0.5, 1.0))
        shape = other.shape if rng.random() < share else scene.shape
        colour = other.colour if rng.random() < share else scene.colour
        moving = other if rng.random() < share else scene
        candidate = Scene(shape, colour, moving.motion, moving.speed)
        if not describes(description, candidate):
            return candidate
    return None


def preferences() -> Preferences:
    """Videos that show what their captions say, and near misses."""
    generator, rng = torch.Generator().manual_seed(202), random.Random(202)
    scenes = sample_scenes(1024, generator)
    scenes, misses, captions = near_misses(scenes, sample_caption, near_miss, rng)
    right, wrong = sample_pixels(scenes, generator), sample_pixels(misses, generator)
    return Preferences(right, wrong, captions)

"""The two rewards of clips: a VideoCLIP by contrast, which policies are trained on, and an ImageReward on grids of frames, held out."""

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
from bpgo.worlds.clips.scenes import Clip, all_clips, sample_clips, sample_videos, says
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.fit import SEEDS, batches, optimise, size, steps
from bpgo.worlds.pretrain.rewards import finish_reward, fit_preference, save_reward, told_apart
from bpgo.worlds.pretrain.wan import autoencoder, roundtrip

DATA = "6 000 clips, half of them autoencoded, noise of 0.02; captions with attributes left out"


def reward_videos(output: Path, n: int, generator: torch.Generator) -> tuple[list[Clip], Tensor]:
    """n clips and their videos as a generator shows them: half autoencoded, all with a little noise."""
    clips = sample_clips(n, generator)
    videos = sample_videos(clips, generator)
    videos[: n // 2] = roundtrip(autoencoder(output), videos[: n // 2])
    return clips, (videos + 0.02 * torch.randn(videos.shape, generator=generator)).clamp(0, 1)


def train_video_reward(output: Path, scale: float) -> None:
    """VideoCLIP by contrast: each video against the batch's captions, each caption against its videos."""
    generator, rng = (
        torch.Generator().manual_seed(SEEDS["video_reward"]),
        random.Random(SEEDS["video_reward"]),
    )
    clips, videos = reward_videos(output, size(6000, scale), generator)
    tokenizer = tiny.clip_tokenizer(VOCABULARY, tiny.CLIP_TOKENS)
    model = VideoCLIP(tiny.video_clip_config(tokenizer))
    torch.nn.init.normal_(model.temporal, std=0.02)
    temperature = torch.nn.Parameter(torch.tensor(2.66))
    frames, index = (
        preprocess(videos, model.config["frames"], 32),
        batches(len(clips), 128, generator),
    )

    def loss() -> Tensor:
        chosen = next(index)
        text = tokenize(
            tokenizer, [sample_caption(clips[i], rng) for i in chosen.tolist()], tiny.CLIP_TOKENS
        )
        seen, said = (
            model.embed_video(frames[chosen]),
            model.embed_text(text["input_ids"], text["attention_mask"]),
        )
        logits, own = temperature.exp() * seen @ said.T, torch.arange(len(chosen))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    optimise(
        [*model.parameters(), temperature],
        steps("video_reward", scale),
        1.5e-3,
        loss,
        "video_reward",
    )

    what = "VideoCLIP (the architecture of VideoCLIP-XL), the training reward of the video tasks: cosine of video and caption."
    save = partial(save_reward, model, tokenizer)
    finish_reward(
        output / "tiny-video-reward",
        "video_reward",
        "video_clip_xl",
        save,
        what,
        DATA,
        preferences(),
    )


def train_video_held_out(output: Path, scale: float) -> None:
    """ImageReward by preference on grids of the frames."""
    generator, rng = (
        torch.Generator().manual_seed(SEEDS["video_held_out"]),
        random.Random(SEEDS["video_held_out"]),
    )
    clips, videos = reward_videos(output, size(6000, scale), generator)
    pictures = grid(videos)
    model, tokenizer = (
        ImageReward(tiny.image_grid_config(pictures.shape[-1])),
        tiny.bert_tokenizer(VOCABULARY, tiny.CLIP_TOKENS),
    )
    index = batches(len(clips), 64, generator)
    fit_preference(
        model,
        tokenizer,
        clips,
        pictures,
        index,
        sample_caption,
        near_miss,
        rng,
        "video_held_out",
        scale,
    )
    what = "ImageReward architecture on 3 x 3 grids of the frames, the held-out reward of the video tasks; matched videos score 1 +- 1."
    save = partial(save_reward, model, tokenizer)
    finish_reward(
        output / "tiny-video-held-out",
        "video_held_out",
        "image_grid",
        save,
        what,
        DATA,
        preferences(),
    )


def near_miss(clip: Clip, caption: str, rng: random.Random) -> Clip | None:
    """A clip with one to all attributes changed that the caption does not describe; None if none was drawn."""
    description = parse(caption)
    for _ in range(8):
        other, share = rng.choice(all_clips()), rng.choice((0.25, 0.5, 1.0))
        looks = {
            k: (getattr(other, k) if rng.random() < share else getattr(clip, k))
            for k in ("shape", "colour")
        }
        moving = other if rng.random() < share else clip
        candidate = Clip(**looks, motion=moving.motion, speed=moving.speed)
        if not says(description, candidate):
            return candidate
    return None


def preferences() -> tuple[Tensor, Tensor, list[str]]:
    """Right videos, near misses, and the captions that tell them apart."""
    generator, rng = torch.Generator().manual_seed(202), random.Random(202)
    clips, misses, captions = told_apart(
        sample_clips(1024, generator), sample_caption, near_miss, rng
    )
    return sample_videos(clips, generator), sample_videos(misses, generator), captions

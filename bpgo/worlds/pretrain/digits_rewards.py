"""The two rewards of the digits world: the training reward and the held-out one."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from bpgo.rewards.image_reward import ImageReward
from bpgo.worlds.digits.captions import ANY, VOCABULARY, parse, sample_caption, sample_wording
from bpgo.worlds.digits.scenes import sample_pixels, sample_scenes
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

DATA = (
    "500 images of the rewards' split, varied to give 8 000, half of them autoencoded, with noise "
    "of standard deviation 0.02; captions of all kinds"
)


def reward_examples(output: Path, n: int, generator: torch.Generator) -> Examples:
    """n digits as a generator shows them: half autoencoded, all with a little noise."""
    from diffusers import AutoencoderKL

    folder = output / "tiny-digits-flux"
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=torch.float32).eval()
    digits = sample_scenes(n, generator)
    images = sample_pixels(digits, generator, "reward")
    images[: n // 2] = roundtrip(vae, images[: n // 2])
    return Examples(digits, with_noise(images, generator))


def train_reward(output: Path, scale: float) -> None:
    """Train a CLIPModel with a contrastive loss."""
    stage, seed = "digits_reward", STAGES["digits_reward"].seed
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    examples = reward_examples(output, scaled_size(8000, scale), generator)
    save = fit_clip(examples, VOCABULARY, sample_caption, 128, generator, rng, stage, scale)
    what = "CLIPModel, the training reward of the digits world: cosine of image and caption."
    finish_reward(output / "tiny-digits-reward", stage, "clip", save, what, DATA, preferences())


def train_held_out(output: Path, scale: float) -> None:
    """Train an ImageReward on preferences, first with captions that name the digit.

    With all kinds of captions from the start, it can stay at chance for 1000 steps.
    """
    stage, seed = "digits_held_out", STAGES["digits_held_out"].seed
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    examples = reward_examples(output, scaled_size(8000, scale), generator)
    config = tiny.image_reward_config()
    config["text"] |= {"vocab_size": 5 + len(VOCABULARY)}
    model, tokenizer = ImageReward(config), tiny.bert_tokenizer(VOCABULARY)
    index = batches(len(examples.scenes), 64, generator)
    for caption in (name_digit, sample_caption):
        model.config |= {"mean": 0.0, "std": 1.0}
        save = fit_preference(
            model, tokenizer, examples, caption, near_miss, index, rng, stage, scale
        )
    what = (
        "ImageReward architecture, the held-out reward of the digits world, trained in two passes; "
        "scores of matched images have mean 1 and standard deviation 1."
    )
    folder = output / "tiny-digits-held-out"
    finish_reward(folder, stage, "image_reward", save, what, DATA, preferences())


def name_digit(digit: int, rng: random.Random) -> str:
    """One caption that names a digit."""
    return sample_wording(frozenset({digit}), rng)


def near_miss(_: int, caption: str, rng: random.Random) -> int | None:
    """A digit that the caption does not describe; None if it describes all."""
    others = sorted(ANY - parse(caption))
    return rng.choice(others) if others else None


def preferences() -> Preferences:
    """Images that no reward was trained on, which show what their captions say, and near misses."""
    generator, rng = torch.Generator().manual_seed(402), random.Random(402)
    digits = sample_scenes(1024, generator)
    images = sample_pixels(digits, generator, "judge_test")
    rows_of: dict[int, list[int]] = {digit: [] for digit in range(10)}
    for row, digit in enumerate(digits):
        rows_of[digit].append(row)
    right, wrong, captions = near_misses(digits, sample_caption, near_miss, rng)
    right_rows = [rng.choice(rows_of[digit]) for digit in right]
    wrong_rows = [rng.choice(rows_of[digit]) for digit in wrong]
    return Preferences(images[right_rows], images[wrong_rows], captions)

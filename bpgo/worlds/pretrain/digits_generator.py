"""The tiny FLUX pipeline of the digits world.

The shipped autoencoder is trained further. Transformer and text encoders are then trained with flow
matching. The architectures are those of the shapes world.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor

from bpgo.files import SHIPPED
from bpgo.worlds import shared
from bpgo.worlds.digits.captions import VOCABULARY, graded_prompts, parse, sample_caption
from bpgo.worlds.digits.oracle import Judge
from bpgo.worlds.digits.scenes import enlarge, handwriting, sample_pixels, sample_scenes
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain import flux
from bpgo.worlds.pretrain.fit import (
    card,
    roundtrip,
    scaled_size,
    scaled_steps,
    stage_steps,
    store,
)
from bpgo.worlds.pretrain.stages import STAGES

AUTOENCODER_STEPS = 700
WRONG = 0.4  # probability that a caption is that of another digit, which leaves something to learn


def digits_pipeline(vae):
    """`tiny.flux_pipeline` with the vocabulary of digits."""
    pipeline = tiny.flux_pipeline(vae)
    tokenizer, tokenizer_2 = tiny.clip_tokenizer(VOCABULARY), tiny.t5_tokenizer(VOCABULARY)
    pipeline.register_modules(tokenizer=tokenizer, tokenizer_2=tokenizer_2)
    pipeline.text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    pipeline.text_encoder_2.resize_token_embeddings(len(tokenizer_2), mean_resizing=False)
    return pipeline


def train_autoencoder(images: Tensor, generator: torch.Generator, scale: float):
    """Train the shipped autoencoder, which has seen only coloured shapes, on grey strokes."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(SHIPPED / "tiny-autoencoder", dtype=torch.float32)
    vae.register_to_config(_name_or_path="tiny-autoencoder")  # not the folder on this machine
    steps = scaled_steps(AUTOENCODER_STEPS, scale)
    flux.fit_autoencoder(vae, images, steps, 1e-3, generator, posterior_generator=generator)
    return vae


def mislabelled(digit: int, rng: random.Random) -> int:
    """The digit, or another one with probability WRONG."""
    if rng.random() >= WRONG:
        return digit
    return rng.choice([other for other in range(10) if other != digit])


def train_generator(output: Path, scale: float) -> None:
    """Train with flow matching on varied images with four captions each, partly of other digits."""
    seed = STAGES["digits_flux"].seed
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    digits = sample_scenes(scaled_size(12000, scale), generator)
    images = sample_pixels(digits, generator, "generator")
    pipeline = digits_pipeline(train_autoencoder(images, generator, scale))
    latents = flux.latents_of(pipeline.vae, images)
    labels = [[mislabelled(digit, rng) for _ in range(4)] for digit in digits]
    captions = [[sample_caption(label, rng) for label in row] for row in labels]
    steps = stage_steps("digits_flux", scale)
    flux.fit_flow(
        pipeline, latents, captions, steps, 64, 1.5e-3, 1.5, generator, rng, "digits_flux"
    )
    judge = Judge(output / "tiny-digits-judge")
    metrics = measure_generator(flux.policy_of(pipeline), judge)
    print(json.dumps(metrics, indent=1))
    what = (
        "FluxPipeline of the digits world; call it with height=32, width=32, "
        "max_sequence_length=16."
    )
    data = (
        "600 images of the generator's split, varied to give 12 000 with four captions each, "
        f"of which {WRONG:.0%} are for another digit"
    )
    for module in (*flux.trained_parts(pipeline), pipeline.vae):
        module.half()
    facts = card("digits_flux", what, data, metrics)
    store(output / "tiny-digits-flux", pipeline.save_pretrained, facts)


def measure_generator(policy, judge: Judge, samples: int = 512) -> dict[str, float]:
    """What the judge reads in samples of prompts that name a digit, and errors on real images."""
    prompts = [row["prompt"] for row in graded_prompts(samples, 401, specified=1.0)]
    read = judge.read(flux.sample(policy, prompts, seed=401))
    right = sum(digit in parse(prompt) for digit, prompt in zip(read.scenes, prompts, strict=True))
    levels, digits = handwriting("judge_test")
    clean = enlarge(levels)
    decoded = roundtrip(policy.pipeline.vae, clean)
    errors = shared.error_rate(judge.read(decoded).scenes, digits.tolist())
    return {
        "judge's accuracy, digit named": right / samples,
        "no digit recognised": sum(digit is None for digit in read.scenes) / samples,
        "distance to the world": read.distance.mean().item(),
        "autoencoder's mean absolute error, [0, 1] pixels": (decoded - clean).abs().mean().item(),
        "judge misreads, autoencoded": errors["misread"],
    }

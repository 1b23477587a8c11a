"""The tiny FLUX pipeline: an autoencoder, then flow matching on partly wrong captions."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

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
from bpgo.worlds.shapes import oracle
from bpgo.worlds.shapes.captions import sample_caption, sample_wording
from bpgo.worlds.shapes.scenes import Scene, all_scenes, sample_pixels, sample_scenes

WRONG = 0.15  # probability that a caption's attribute is that of another scene


class Pass(NamedTuple):
    """One pass of training.

    batch: images per step. rate: peak learning rate. shift: sigma is uniform for 1 and biased
    towards high noise above 1.
    """

    steps: int
    batch: int
    rate: float
    shift: float


# The last pass is biased towards high noise, where the caption decides what the image will show.
PASSES = (
    Pass(2500, 128, 1.5e-3, 1.0),
    Pass(4000, 64, 7e-4, 1.0),
    Pass(4000, 64, 3.5e-4, 1.0),
    Pass(2500, 64, 7e-4, 3.0),
)


def train_autoencoder(output: Path, scale: float) -> None:
    """Train an AutoencoderKL on drawings."""
    generator = torch.Generator().manual_seed(STAGES["autoencoder"].seed)
    scenes = sample_scenes(scaled_size(12000, scale), generator, pairs=0.4)
    images = sample_pixels(scenes, generator)
    vae = tiny.autoencoder()
    flux.fit_autoencoder(vae, images, stage_steps("autoencoder", scale), 2e-3, generator)
    metrics = measure_autoencoder(vae)
    print(json.dumps(metrics, indent=1))
    what = "AutoencoderKL of the tiny FLUX pipeline."
    facts = card("autoencoder", what, "12 000 drawings, 40 % with two things", metrics)
    store(output / "tiny-autoencoder", lambda folder: vae.half().save_pretrained(folder), facts)


def measure_autoencoder(vae) -> dict[str, float]:
    """Errors of the autoencoder, and of the oracle on clean and autoencoded drawings."""
    scenes = sample_scenes(2048, torch.Generator().manual_seed(101))
    clean = sample_pixels(scenes, torch.Generator().manual_seed(102))
    decoded = roundtrip(vae, clean)
    metrics = {"mean absolute error, [0, 1] pixels": (decoded - clean).abs().mean().item()}
    for kind, images in (("clean", clean), ("autoencoded", decoded)):
        for name, value in oracle.error_rate(images, scenes).items():
            metrics[f"oracle {name}, {kind}"] = value
    distance = oracle.read(decoded).distance
    metrics["distance to the world, clean"] = oracle.read(clean).distance.mean().item()
    metrics["distance to the world, autoencoded"] = distance.mean().item()
    metrics["distance to the world, autoencoded, 99.9 %"] = distance.quantile(0.999).item()
    return metrics


def mislabelled(scene: Scene, rng: random.Random) -> Scene:
    """The scene with each attribute replaced by that of a random scene with probability WRONG."""
    other = rng.choice(all_scenes(len(scene.things)))
    things = []
    for thing, other_thing in zip(scene.things, other.things, strict=True):
        wrong = {}
        for name, value in vars(other_thing).items():
            if rng.random() < WRONG:
                wrong[name] = value
        things.append(replace(thing, **wrong))
    relation = other.relation if rng.random() < WRONG else scene.relation
    return Scene(tuple(things), relation)


def train_generator(output: Path, scale: float) -> None:
    """Train the first pass, from random weights around the trained autoencoder."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(output / "tiny-autoencoder", dtype=torch.float32)
    _train_pass(tiny.flux_pipeline(vae), output, 0, scale)


def refine_generator(output: Path, scale: float) -> None:
    """Train the next of the PASSES from the pipeline in the output folder, on other drawings.

    Raises ValueError if it has had all of them.
    """
    from diffusers import FluxPipeline

    folder = output / "tiny-flux"
    done = json.loads((folder / "card.json").read_text(encoding="utf-8"))["passes"]
    if done == len(PASSES):
        raise ValueError(f"{folder} has had all its {done} passes: start again with the stage flux")
    _train_pass(FluxPipeline.from_pretrained(folder, dtype=torch.float32), output, done, scale)


def _train_pass(pipeline, output: Path, done: int, scale: float) -> None:
    """One pass of flow matching, and the card. done: number of passes before this one."""
    now = PASSES[done]
    seed = STAGES["flux"].seed + (4 + done if done else 0)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes = sample_scenes(scaled_size(24000, scale), generator)
    latents = flux.latents_of(pipeline.vae, sample_pixels(scenes, generator))
    captions = [[sample_caption(mislabelled(s, rng), rng) for _ in range(4)] for s in scenes]
    steps, name = scaled_steps(now.steps, scale), f"flux, pass {done + 1}"
    flux.fit_flow(
        pipeline, latents, captions, steps, now.batch, now.rate, now.shift, generator, rng, name
    )
    metrics = measure_generator(flux.policy_of(pipeline))
    print(json.dumps(metrics, indent=1))
    what = (
        "FluxPipeline of the shapes world; call it with height=32, width=32, "
        "max_sequence_length=16."
    )
    data = (
        "24 000 drawings per pass with four captions each, in which each named attribute is wrong "
        f"with probability {WRONG}"
    )
    facts = card("flux", what, data, metrics) | {
        "command": "bpgo pretrain autoencoder flux" + " refine" * done,
        "passes": done + 1,
        "steps": sum(p.steps for p in PASSES[: done + 1]),
    }
    for module in (*flux.trained_parts(pipeline), pipeline.vae):
        module.half()
    store(output / "tiny-flux", pipeline.save_pretrained, facts)


def measure_generator(policy) -> dict[str, float]:
    """Accuracy and distance to the world, for prompts of one thing and of two.

    Each is a mean over samples of 512 prompts that leave nothing open.
    """
    metrics = {}
    for kind, things in (("one thing", 1), ("two things", 2)):
        rng = random.Random(things)
        prompts = [sample_wording(rng.choice(all_scenes(things)), rng) for _ in range(512)]
        found = oracle.measure(flux.sample(policy, prompts, seed=things), prompts)
        accuracy, distance = found["accuracy"].mean().item(), found["distance"].mean().item()
        metrics[f"oracle accuracy, fully specified, {kind}"] = accuracy
        metrics[f"distance to the world, {kind}"] = distance
    return metrics

"""The tiny FLUX pipeline: an autoencoder, then transformer and text encoders by flow matching on partly wrong captions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bpgo.generators.flux import FluxPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.fit import SEEDS, batches, card, optimise, roundtrip, size, steps, store
from bpgo.worlds.shapes import oracle
from bpgo.worlds.shapes.captions import sample_caption, sample_wording
from bpgo.worlds.shapes.scenes import Scene, all_scenes, sample_pictures, sample_scenes

WRONG = 0.15
GUIDANCE = 3.5  # FluxPipeline's default: the guidance embedding is trained at this one value


class Pass(NamedTuple):
    """One pass of training: steps, pictures a step, peak learning rate, and how far sigma leans to noise (1: even)."""

    steps: int
    batch: int
    rate: float
    shift: float


# The last leans to high noise, where the words decide and not yet the picture.
PASSES = (
    Pass(2500, 128, 1.5e-3, 1.0),
    Pass(4000, 64, 7e-4, 1.0),
    Pass(4000, 64, 3.5e-4, 1.0),
    Pass(2500, 64, 7e-4, 3.0),
)


def train_autoencoder(output: Path, scale: float) -> None:
    """AutoencoderKL on pictures: absolute plus squared error, a light KL term; latents then scaled to unit variance."""
    generator = torch.Generator().manual_seed(SEEDS["autoencoder"])
    pictures = sample_pictures(sample_scenes(size(12000, scale), generator, pairs=0.4), generator)
    vae = tiny.autoencoder()
    index = batches(len(pictures), 48, generator)

    def loss() -> Tensor:
        x = pictures[next(index)] * 2 - 1
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        return error.abs().mean() + error.square().mean() + 1e-5 * posterior.kl().mean()

    optimise(list(vae.parameters()), steps("autoencoder", scale), 2e-3, loss, "autoencoder")
    vae.eval().requires_grad_(False).half().float()
    latents = torch.cat(
        [vae.encode(x * 2 - 1).latent_dist.mode() for x in pictures[:2048].split(128)]
    )
    vae.register_to_config(
        scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item()
    )
    scenes = sample_scenes(2048, torch.Generator().manual_seed(101))
    clean = sample_pictures(scenes, torch.Generator().manual_seed(102))
    decoded = roundtrip(vae, clean)
    metrics = {
        "mean absolute error, [0, 1] pixels": (decoded - clean).abs().mean().item(),
        **{f"oracle {k}, clean": v for k, v in oracle.error_rate(clean, scenes).items()},
        **{f"oracle {k}, autoencoded": v for k, v in oracle.error_rate(decoded, scenes).items()},
        "distance to the world, clean": oracle.read(clean).distance.mean().item(),
        "distance to the world, autoencoded": oracle.read(decoded).distance.mean().item(),
        "distance to the world, autoencoded, 99.9 %": oracle.read(decoded)
        .distance.quantile(0.999)
        .item(),
    }
    print(json.dumps(metrics, indent=1))
    facts = card(
        "autoencoder",
        "AutoencoderKL of the tiny FLUX pipeline.",
        "12 000 drawings, 40 % with two things",
        metrics,
    )
    store(output / "tiny-autoencoder", lambda folder: vae.half().save_pretrained(folder), facts)


def mislabelled(scene: Scene, rng: random.Random) -> Scene:
    """The scene with each attribute replaced by that of a random scene with probability WRONG."""
    other = rng.choice(all_scenes(len(scene.things)))
    fields = [
        {k: (v if rng.random() >= WRONG else vars(theirs)[k]) for k, v in vars(thing).items()}
        for thing, theirs in zip(scene.things, other.things, strict=True)
    ]
    relation = scene.relation if rng.random() >= WRONG else other.relation
    return Scene(tuple(type(t)(**f) for t, f in zip(scene.things, fields, strict=True)), relation)


def train_flux(output: Path, scale: float) -> None:
    """A pipeline of random weights around the autoencoder, trained for a first time."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(output / "tiny-autoencoder", dtype=torch.float32)
    fit_flux(tiny.flux_pipeline(vae), output, 0, scale)


def train_refine(output: Path, scale: float) -> None:
    """The pipeline that is there, trained for the next of the PASSES, on other drawings."""
    from diffusers import FluxPipeline

    folder = output / "tiny-flux"
    done = json.loads((folder / "card.json").read_text())["passes"]
    if done == len(PASSES):
        raise ValueError(f"{folder} has had all its {done} passes: start again with the stage flux")
    fit_flux(FluxPipeline.from_pretrained(folder, dtype=torch.float32), output, done, scale)


def fit_flux(pipeline, output: Path, done: int, scale: float) -> None:
    """Flow matching, `v = noise - data`, transformer and both text encoders together. done: passes before this one."""
    now, seed = PASSES[done], SEEDS["flux"] + 4 * bool(done) + done
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    policy = FluxPolicy(pipeline, height=32, width=32, guidance=GUIDANCE)
    vae, scenes = pipeline.vae, sample_scenes(size(24000, scale), generator)
    latents = latents_of(vae, sample_pictures(scenes, generator))
    captions = [[sample_caption(mislabelled(s, rng), rng) for _ in range(4)] for s in scenes]
    index = batches(len(latents), now.batch, generator)

    def loss() -> Tensor:
        chosen = next(index)
        return flow_loss(
            policy,
            latents[chosen],
            [captions[i][rng.randrange(4)] for i in chosen.tolist()],
            now.shift,
            generator,
        )

    trained = [pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]
    parameters = [p for m in trained for p in m.requires_grad_(True).parameters()]
    optimise(parameters, max(2, round(now.steps * scale)), now.rate, loss, f"flux, pass {done + 1}")
    for module in (*trained, vae):
        module.half().float()
    metrics = measure_generator(FluxPolicy(pipeline, height=32, width=32, guidance=GUIDANCE))
    print(json.dumps(metrics, indent=1))
    data = f"24 000 drawings a pass with four captions each, every named attribute wrong with probability {WRONG}"
    what = "FluxPipeline of the shapes world; call it with height=32, width=32, max_sequence_length=16."
    command = "python -m bpgo pretrain autoencoder flux" + " refine" * done
    facts = card("flux", what, data, metrics) | {
        "command": command,
        "passes": done + 1,
        "steps": sum(p.steps for p in PASSES[: done + 1]),
    }
    for module in (*trained, vae):
        module.half()
    store(output / "tiny-flux", pipeline.save_pretrained, facts)


@torch.no_grad()
def latents_of(vae, pictures: Tensor) -> Tensor:
    """(B, 4, 8, 8) latents of (B, 3, 32, 32) pictures in [0, 1], at unit variance."""
    latents = torch.cat([vae.encode(x * 2 - 1).latent_dist.mode() for x in pictures.split(128)])
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def flow_loss(
    policy, data: Tensor, captions: list[str], shift: float, generator: torch.Generator
) -> Tensor:
    """Squared error of the velocity of (B, 4, 8, 8) latents, each at a random sigma, which leans to noise where shift is above 1."""
    noise = torch.randn(data.shape, generator=generator)
    u = torch.rand(len(data), generator=generator)
    sigma = shift * u / (1 + (shift - 1) * u)
    s = sigma[:, None, None, None]
    return F.mse_loss(
        policy.velocity((1 - s) * data + s * noise, sigma, policy.embed(captions)), noise - data
    )


def measure_generator(policy) -> dict[str, float]:
    """Oracle accuracy of 10-step ODE samples, single things and pairs fully specified, and their distance to the world."""
    metrics = {}
    for kind, things in (("one thing", 1), ("two things", 2)):
        rng = random.Random(things)
        prompts = [sample_wording(rng.choice(all_scenes(things)), rng) for _ in range(512)]
        noise = torch.randn(
            512, *policy.latent_shape(), generator=torch.Generator().manual_seed(things)
        )
        cond = policy.encode(prompts)
        with torch.no_grad():
            pictures = policy.decode(integrate(policy, noise, cond, sigma_grid(10)))
        metrics[f"oracle accuracy, fully specified, {kind}"] = (
            oracle.accuracy(pictures, prompts).mean().item()
        )
        metrics[f"distance to the world, {kind}"] = oracle.read(pictures).distance.mean().item()
    return metrics

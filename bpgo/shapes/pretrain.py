"""How the tiny checkpoints were trained: `python -m bpgo pretrain [STAGE ...] --output FOLDER`.

Stages, in order: `autoencoder` and `flux` make the pipeline tiny-flux, `reward` the CLIP-type training reward, `held_out` an
ImageReward-type model that no policy is trained on, `prompts` the graded prompt files. All from fixed seeds. The generator's captions
are partly wrong (each named attribute replaced with probability WRONG), so the SFT model has something left to learn.
Weights are stored in half precision; the figures of each card are measured on what was stored.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import write_atomic
from ..generators.flux import FluxPolicy
from ..rollout import integrate
from ..sde import sigma_grid
from . import oracle, tiny
from .captions import graded_prompts, parse, sample_caption, sample_wording
from .scenes import Scene, all_scenes, sample_pictures, sample_scenes, says

WRONG = 0.15
GUIDANCE = 3.5  # FluxPipeline's default: the guidance embedding is trained at this one value
STEPS = {"autoencoder": 1500, "flux": 2500, "reward": 1200, "held_out": 1500}
SEEDS = {"autoencoder": 11, "flux": 12, "reward": 13, "held_out": 14, "prompts": 15}


def pretrain(stages: list[str], output: Path, scale: float = 1.0) -> None:
    """Train the named stages into folders under `output`. scale < 1 shortens every stage (for tests)."""
    run = {"autoencoder": train_autoencoder, "flux": train_flux, "reward": train_reward, "held_out": train_held_out,
           "prompts": write_prompts}  # fmt: skip
    for stage in stages or list(run):
        if stage not in run:
            raise ValueError(f"unknown stage {stage!r}; stages are {', '.join(run)}")
        torch.manual_seed(SEEDS[stage])
        run[stage](Path(output), max(2, round(STEPS.get(stage, 0) * scale)))


# ------------------------------------------------------------------------------------------------------ one training loop


def optimise(parameters, steps: int, lr: float, loss_of_batch: Callable[[], Tensor], name: str) -> list[float]:
    """AdamW with a short warm-up and a cosine decay to zero; prints the running loss. Returns the losses."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    warm = max(1, steps // 25)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min(1, (i + 1) / warm) * 0.5 * (1 + math.cos(math.pi * i / steps))
    )
    losses, start = [], time.time()
    for step in range(steps):
        loss = loss_of_batch()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 99 or step == steps - 1:
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"{name} {step + 1}/{steps} loss {mean:.4f} {time.time() - start:.0f} s", flush=True)
    return losses


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled index batches over range(n)."""
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % size].split(size) if n >= size else (order,)


def store(folder: Path, save: Callable[[Path], None], card: dict) -> None:
    """Write a checkpoint folder beside its place, then move it there: a kill leaves the old one whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    write_card(partial, card)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_card(folder: Path, card: dict) -> None:
    """README.md for people, card.json for machines."""
    write_atomic(folder / "card.json", json.dumps(card, indent=1) + "\n")
    lines = [f"# {folder.name}", "", card["what"], "", f"Made by `{card['command']}` (seed {card['seed']}). Apache-2.0.", "",
             f"Data: {card['data']}", "", "| measure | value |", "|---|---|",
             *(f"| {k} | {v:.4g} |" for k, v in card["metrics"].items()), ""]  # fmt: skip
    write_atomic(folder / "README.md", "\n".join(lines))


def card(stage: str, what: str, data: str, metrics: dict[str, float]) -> dict:
    return {"what": what, "command": f"python -m bpgo pretrain {stage}", "seed": SEEDS[stage], "steps": STEPS[stage],
            "data": data, "metrics": metrics}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the pipeline


def train_autoencoder(output: Path, steps: int) -> None:
    """AutoencoderKL on pictures: absolute plus squared error, a light KL term; latents then scaled to unit variance."""
    generator = torch.Generator().manual_seed(SEEDS["autoencoder"])
    pictures = sample_pictures(sample_scenes(12000, generator, pairs=0.4), generator)
    vae = tiny.autoencoder()
    index = batches(len(pictures), 48, generator)

    def loss() -> Tensor:
        x = pictures[next(index)] * 2 - 1
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        return error.abs().mean() + error.square().mean() + 1e-5 * posterior.kl().mean()

    optimise(list(vae.parameters()), steps, 2e-3, loss, "autoencoder")
    vae.eval().requires_grad_(False).half().float()
    latents = torch.cat([vae.encode(x * 2 - 1).latent_dist.mode() for x in pictures[:2048].split(128)])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    scenes = sample_scenes(2048, torch.Generator().manual_seed(101))
    clean = sample_pictures(scenes, torch.Generator().manual_seed(102))
    decoded = roundtrip(vae, clean)
    metrics = {
        "mean absolute error, [0, 1] pixels": (decoded - clean).abs().mean().item(),
        **{f"oracle {k}, clean": v for k, v in oracle.error_rate(clean, scenes).items()},
        **{f"oracle {k}, autoencoded": v for k, v in oracle.error_rate(decoded, scenes).items()},
        "distance to the world, clean": oracle.read(clean).distance.mean().item(),
        "distance to the world, autoencoded": oracle.read(decoded).distance.mean().item(),
        "distance to the world, autoencoded, 99.9 %": oracle.read(decoded).distance.quantile(0.999).item(),
    }
    print(json.dumps(metrics, indent=1))
    facts = card("autoencoder", "AutoencoderKL of the tiny FLUX pipeline.", "12 000 drawings, 40 % with two things", metrics)
    store(output / "tiny-autoencoder", lambda folder: vae.half().save_pretrained(folder), facts)


@torch.no_grad()
def roundtrip(vae, pictures: Tensor) -> Tensor:
    """Pictures encoded and decoded again, (B, 3, H, W) in [0, 1]."""
    out = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample for x in pictures.split(128)]
    return (torch.cat(out) / 2 + 0.5).clamp(0, 1)


def mislabelled(scene: Scene, rng: random.Random) -> Scene:
    """The scene with each attribute replaced by that of a random scene with probability WRONG."""
    other = rng.choice(all_scenes(len(scene.things)))
    fields = [
        {k: (v if rng.random() >= WRONG else vars(theirs)[k]) for k, v in vars(thing).items()}
        for thing, theirs in zip(scene.things, other.things, strict=True)
    ]
    relation = scene.relation if rng.random() >= WRONG else other.relation
    return Scene(tuple(type(t)(**f) for t, f in zip(scene.things, fields, strict=True)), relation)


def train_flux(output: Path, steps: int) -> None:
    """Flow matching, `v = noise - data` at uniform sigma, transformer and both text encoders together."""
    from diffusers import AutoencoderKL

    generator, rng = torch.Generator().manual_seed(SEEDS["flux"]), random.Random(SEEDS["flux"])
    vae = AutoencoderKL.from_pretrained(output / "tiny-autoencoder", dtype=torch.float32).eval().requires_grad_(False)
    scenes = sample_scenes(24000, generator)
    with torch.no_grad():
        latents = torch.cat([vae.encode(x * 2 - 1).latent_dist.mode() for x in sample_pictures(scenes, generator).split(128)])
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    captions = [[sample_caption(mislabelled(s, rng), rng) for _ in range(4)] for s in scenes]
    index = batches(len(latents), 128, generator)
    pipeline = tiny.flux_pipeline(vae)
    policy = FluxPolicy(pipeline, height=32, width=32, guidance=GUIDANCE)

    def loss() -> Tensor:
        chosen = next(index)
        data = latents[chosen]
        noise = torch.randn(data.shape, generator=generator)
        sigma = torch.rand(len(data), generator=generator)
        cond = policy.embed([captions[i][rng.randrange(4)] for i in chosen.tolist()])
        s = sigma[:, None, None, None]
        return F.mse_loss(policy.velocity((1 - s) * data + s * noise, sigma, cond), noise - data)

    trained = [pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]
    optimise([p for m in trained for p in m.requires_grad_(True).parameters()], steps, 1.5e-3, loss, "flux")
    pipeline.to(dtype=torch.float16).to(dtype=torch.float32)
    metrics = measure_generator(FluxPolicy(pipeline, height=32, width=32, guidance=GUIDANCE))
    print(json.dumps(metrics, indent=1))
    data = f"24 000 drawings with four captions each, every named attribute wrong with probability {WRONG}"
    facts = card(
        "flux", "FluxPipeline of the shapes world; call it with height=32, width=32, max_sequence_length=16.", data, metrics
    )
    store(output / "tiny-flux", lambda folder: pipeline.to(dtype=torch.float16).save_pretrained(folder), facts)


def measure_generator(policy) -> dict[str, float]:
    """Oracle accuracy of 10-step ODE samples, single things and pairs fully specified, and their distance to the world."""
    metrics = {}
    for kind, things in (("one thing", 1), ("two things", 2)):
        rng = random.Random(things)
        prompts = [sample_wording(rng.choice(all_scenes(things)), rng) for _ in range(512)]
        noise = torch.randn(512, *policy.latent_shape(), generator=torch.Generator().manual_seed(things))
        cond = policy.encode(prompts)
        with torch.no_grad():
            pictures = policy.decode(integrate(policy, noise, cond, sigma_grid(10)))
        metrics[f"oracle accuracy, fully specified, {kind}"] = oracle.accuracy(pictures, prompts).mean().item()
        metrics[f"distance to the world, {kind}"] = oracle.read(pictures).distance.mean().item()
    return metrics


# ------------------------------------------------------------------------------------------------------------- the rewards


def reward_pictures(output: Path, n: int, generator: torch.Generator) -> tuple[list[Scene], Tensor]:
    """n scenes and their pictures as a generator shows them: half autoencoded, all with a little noise."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(output / "tiny-autoencoder", dtype=torch.float32).eval()
    scenes = sample_scenes(n, generator)
    pictures = sample_pictures(scenes, generator)
    pictures[: n // 2] = roundtrip(vae, pictures[: n // 2])
    return scenes, (pictures + 0.02 * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def train_reward(output: Path, steps: int) -> None:
    """CLIPModel by contrast: each picture against the batch's captions, each caption against its pictures."""
    from transformers import CLIPImageProcessorPil

    from ..rewards.clip import MEAN, STD
    from ..rewards.preprocess import centre_crop

    generator, rng = torch.Generator().manual_seed(SEEDS["reward"]), random.Random(SEEDS["reward"])
    scenes, pictures = reward_pictures(output, 16000, generator)
    tokenizer = tiny.clip_tokenizer()
    model = tiny.clip_model(tokenizer)
    index = batches(len(scenes), 160, generator)
    pixels = centre_crop(pictures, 32, MEAN, STD)

    def loss() -> Tensor:
        chosen = next(index)
        text = tokenizer([sample_caption(scenes[i], rng) for i in chosen.tolist()], padding="max_length", return_tensors="pt")
        return model(**text, pixel_values=pixels[chosen], return_loss=True).loss

    optimise(list(model.parameters()), steps, 1.5e-3, loss, "reward")
    model.half().float().eval()

    def save(folder: Path) -> None:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)

    what = "CLIPModel, the training reward: cosine of picture and caption."
    finish_reward(output / "tiny-reward", "reward", "clip", save, what)


def train_held_out(output: Path, steps: int) -> None:
    """ImageReward by preference: for one caption, a picture that shows it against a near miss that does not."""
    generator, rng = torch.Generator().manual_seed(SEEDS["held_out"]), random.Random(SEEDS["held_out"])
    from safetensors.torch import save_file

    from ..rewards.image_reward import MEAN, STD, ImageReward
    from ..rewards.preprocess import centre_crop
    from ..text import tokenize

    scenes, pictures = reward_pictures(output, 16000, generator)
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

    optimise(list(model.parameters()), steps, 1.5e-3, loss, "held_out")
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
    finish_reward(output / "tiny-held-out", "held_out", "image_reward", save, what)


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


def finish_reward(folder: Path, stage: str, name: str, save: Callable[[Path], None], what: str) -> None:
    """Store a reward, then measure it as it will be loaded: how often it prefers the right picture to a near miss."""
    from ..rewards import load_reward

    data = "16 000 drawings, half of them autoencoded, noise of 0.02; captions with attributes left out"
    store(folder, save, card(stage, what, data, {}))
    reward = load_reward(name, folder)
    generator, rng = torch.Generator().manual_seed(202), random.Random(202)
    scenes = sample_scenes(2048, generator)
    captions = [sample_caption(s, rng) for s in scenes]
    misses = [near_miss(s, c, rng) for s, c in zip(scenes, captions, strict=True)]
    rows = [(s, m, c) for s, m, c in zip(scenes, misses, captions, strict=True) if m is not None]
    scenes, misses, captions = (list(column) for column in zip(*rows, strict=True))
    right, wrong = (reward(sample_pictures(s, generator), captions) for s in (scenes, misses))
    metrics = {
        "prefers the right picture to a near miss": (right > wrong).float().mean().item(),
        "mean reward of right pictures": right.mean().item(),
        "mean reward of near misses": wrong.mean().item(),
    }
    print(json.dumps(metrics, indent=1))
    write_card(folder, card(stage, what, data, metrics))


def write_prompts(output: Path, _: int) -> None:
    """The graded prompts that the tiny presets train on and evaluate on: JSON lines {prompt, level, bits, kind}."""
    folder = output / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, seed in (("train", 1024, SEEDS["prompts"]), ("evaluation", 96, SEEDS["prompts"] + 1)):
        rows = graded_prompts(n, seed)
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

"""What training a tiny checkpoint takes, whichever it is: one loop, its steps and seeds, and the card that says how it was made."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bpgo.files import write_atomic

STEPS = {
    "autoencoder": 1500,
    "reward": 1200,
    "held_out": 1500,
    "frame_autoencoder": 1800,
    "video_autoencoder": 1500,
    "video_decoder": 2000,
    "video_reward": 1300,
    "video_held_out": 1200,
    "wan": 3000,
    "wan_image": 1400,
}
SEEDS = {  # passes of flux after the first: 17, 18, 19; the low-noise expert of wan_image: 33
    "autoencoder": 11,
    "flux": 12,
    "reward": 13,
    "held_out": 14,
    "prompts": 15,
    "video_autoencoder": 21,
    "wan": 22,
    "wan_image": 23,
    "video_decoder": 24,
    "video_reward": 25,
    "video_held_out": 26,
    "video_prompts": 27,
}


def steps(stage: str, scale: float) -> int:
    """Training steps of a stage, at least 2."""
    return max(2, round(STEPS[stage] * scale))


def size(full: int, scale: float) -> int:
    """Examples to train on: all of them at scale 1, never fewer than two batches."""
    return max(256, round(full * min(1, scale)))


def optimise(
    parameters, steps: int, lr: float, loss_of_batch: Callable[[], Tensor], name: str
) -> list[float]:
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
            print(
                f"{name} {step + 1}/{steps} loss {mean:.4f} {time.time() - start:.0f} s", flush=True
            )
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
    title = folder.name.removesuffix(".partial")
    made = f"Made by `{card['command']} --output FOLDER` (seed {card['seed']}, {card['steps']} steps). Apache-2.0."
    rows = [f"| {name} | {value:.4g} |" for name, value in card["metrics"].items()]
    text = [
        f"# {title}",
        card["what"],
        made,
        f"Data: {card['data']}.",
        "\n".join(["| measure | value |", "|---|---|", *rows]),
    ]
    write_atomic(folder / "README.md", "\n\n".join(text) + "\n")


def card(stage: str, what: str, data: str, metrics: dict[str, float]) -> dict:
    return {
        "what": what,
        "command": f"python -m bpgo pretrain {stage}",
        "seed": SEEDS[stage],
        "steps": STEPS.get(stage, 0),
        "data": data,
        "metrics": metrics,
    }


@torch.no_grad()
def roundtrip(vae, pictures: Tensor) -> Tensor:
    """Pictures encoded and decoded again, (B, 3, H, W) in [0, 1]."""
    out = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample for x in pictures.split(128)]
    return (torch.cat(out) / 2 + 0.5).clamp(0, 1)

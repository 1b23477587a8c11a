"""What all stages share: the training loop, and the card that states how a checkpoint was made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.files import atomic_folder, write_atomic
from bpgo.worlds.pretrain.stages import STAGES


def scaled_steps(steps: int, scale: float) -> int:
    """Training steps at a scale, at least 2."""
    return max(2, round(steps * scale))


def stage_steps(stage: str, scale: float) -> int:
    """Training steps of a stage at a scale, at least 2."""
    return scaled_steps(STAGES[stage].steps, scale)


def scaled_size(full: int, scale: float) -> int:
    """Number of training examples: all of them at scale 1, and never fewer than two batches."""
    return max(256, round(full * min(1, scale)))


def optimise(
    parameters: list[nn.Parameter],
    steps: int,
    lr: float,
    loss_of_batch: Callable[[], Tensor],
    name: str,
) -> None:
    """Train with AdamW, a short warm-up and a cosine decay to zero. Prints the running loss."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    warm_up = max(1, steps // 25)

    def rate(step: int) -> float:
        return min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    losses: list[float] = []
    start = time.time()
    for step in range(1, steps + 1):
        loss = loss_of_batch()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            mean = sum(losses[-100:]) / len(losses[-100:])
            seconds = time.time() - start
            print(f"{name} {step}/{steps} loss {mean:.4f} {seconds:.0f} s", flush=True)


def trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of the modules, with gradients turned on."""
    return [p for module in modules for p in module.requires_grad_(True).parameters()]


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled batches of indices below n."""
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % size].split(size) if n >= size else (order,)


def store(folder: Path, save: Callable[[Path], None], card: dict) -> None:
    """Write a checkpoint folder with its card. A kill leaves the old folder or the new one."""
    with atomic_folder(folder) as partial:
        save(partial)
        write_card(partial, card, folder.name)


def write_card(folder: Path, card: dict, title: str) -> None:
    """Write README.md for people and card.json for programs."""
    write_atomic(folder / "card.json", json.dumps(card, indent=1) + "\n")
    made = f"Made by `{card['command']} --output FOLDER` (seed {card['seed']}, "
    made += f"{card['steps']} steps). Apache-2.0."
    rows = [f"| {name} | {value:.4g} |" for name, value in card["metrics"].items()]
    paragraphs = [
        f"# {title}",
        card["what"],
        made,
        f"Data: {card['data']}.",
        "\n".join(["| metric | value |", "|---|---|", *rows]),
    ]
    write_atomic(folder / "README.md", "\n\n".join(paragraphs) + "\n")


def card(stage: str, what: str, data: str, metrics: dict[str, float]) -> dict:
    """The card of a checkpoint: what it is, how it was made, on which data, and its metrics."""
    return {
        "what": what,
        "command": f"bpgo pretrain {stage}",
        "seed": STAGES[stage].seed,
        "steps": STAGES[stage].steps,
        "data": data,
        "metrics": metrics,
    }


@torch.no_grad()
def roundtrip(vae, images: Tensor) -> Tensor:
    """Images encoded and decoded again, (B, 3, H, W) in [0, 1]."""
    out = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample for x in images.split(128)]
    return (torch.cat(out) / 2 + 0.5).clamp(0, 1)

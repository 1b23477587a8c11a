"""What a training iteration costs beyond its model calls, and what BPGO costs beyond GRPO: ratios, measured side by side."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from bpgo.config import Config, Prior
from bpgo.rollout import select
from bpgo.trainer import Trainer


def bench(config: Config, rounds: int) -> str:
    """A table of two ratios, each the median over interleaved rounds, with the smallest and largest.

    1. iteration / model calls: one `Trainer.step` against the forward and backward calls of transformer, decoder and reward that it
       makes, replayed on the same tensors with nothing around them. 2. BPGO / GRPO: one `Trainer.step` of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: _trainer(config, name, Path(folder) / name) for name in ("grpo", "bpgo")}
        calls = model_calls(trainers["grpo"])
        timed: dict[str, list[float]] = {"grpo": [], "bpgo": [], "calls": []}
        work = {"grpo": trainers["grpo"].step, "bpgo": trainers["bpgo"].step, "calls": calls}
        for call in work.values():
            call()  # warm up
        for i in range(rounds):
            names = (
                list(work) if i % 2 else list(work)[::-1]
            )  # turn the order, so that drift falls on all alike
            for name in names:
                timed[name].append(seconds(work[name]))
    lines = [
        f"{config.groups} prompts x {config.group_size} samples, {rounds} rounds, {torch.get_num_threads()} threads"
    ]
    for title, above, below in (
        ("iteration / model calls", "grpo", "calls"),
        ("BPGO / GRPO", "bpgo", "grpo"),
    ):
        ratios = sorted(a / b for a, b in zip(timed[above], timed[below], strict=True))
        lines.append(f"{title:26}{median(ratios):.3f}   ({ratios[0]:.3f} .. {ratios[-1]:.3f})")
    return "\n".join(lines)


def _trainer(config: Config, objective: str, folder: Path) -> Trainer:
    """A trainer whose every iteration trains the same number of steps, without evaluation, checkpoints or samples for a prior."""
    prior = Prior() if config.prior.name.startswith("sft") else config.prior
    config = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, name=objective), prior=prior
    )
    return Trainer(config, folder, progress=False)


def model_calls(trainer: Trainer) -> Callable[[], None]:
    """The model calls of one iteration of a trainer, to be replayed: same rows, same sigmas, same order, gradients thrown away."""
    prompts, plan, cond, rollout = trainer.collect()
    flat = [p for p in prompts for _ in range(trainer.config.group_size)]
    policy, parts = trainer.policy, list(trainer._micro_batches())
    x, scores = rollout.latents, torch.randn_like(rollout.latents)
    conds = [select(cond, part, trainer.config.group_size) for part in parts]

    def replay() -> None:
        with torch.no_grad():
            for part, chosen in zip(parts, conds, strict=True):
                for sigma in plan.sigmas[:-1]:
                    policy.velocity(x[part], sigma, chosen)
        pixels = torch.cat([policy.decode(x[part]) for part in parts])
        trainer.reward(pixels, flat)
        for _ in range(trainer.config.optimiser.epochs):
            for part, chosen in zip(parts, conds, strict=True):
                for i in plan.trained:
                    policy.velocity(x[part], plan.sigmas[i], chosen).backward(scores[part])
        trainer.optimiser.zero_grad(set_to_none=True)

    return replay


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call, the device idle before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start

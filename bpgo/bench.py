"""What an iteration costs beyond its model calls, and what BPGO costs beyond GRPO.

Both are ratios of times that are measured side by side.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from bpgo.config import Config, PriorConfig
from bpgo.rollout import sample_groups, select
from bpgo.trainer import Trainer


def bench(config: Config, rounds: int) -> str:
    """A table of two ratios, each the median over interleaved rounds with the range.

    1. iteration / model calls: the time of one `Trainer.step`, divided by the time of its model
       calls alone (transformer, decoder and reward), replayed on the same tensors.
    2. BPGO / GRPO: the times of one `Trainer.step` with each objective.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: _trainer(config, name, Path(folder) / name) for name in ("grpo", "bpgo")}
        work = {name: trainer.step for name, trainer in trainers.items()}
        work["calls"] = model_calls(trainers["grpo"])
        for call in work.values():
            call()  # warm up
        timed = {name: [] for name in work}
        for number in range(rounds):
            # The order alternates, so drift affects all of them alike.
            names = list(work) if number % 2 else reversed(work)
            for name in names:
                timed[name].append(seconds(work[name]))
    threads = torch.get_num_threads()
    head = (
        f"{config.groups} prompts x {config.group_size} samples, {rounds} rounds, {threads} threads"
    )
    return "\n".join(
        [
            head,
            _ratio("iteration / model calls", timed["grpo"], timed["calls"]),
            _ratio("BPGO / GRPO", timed["bpgo"], timed["grpo"]),
        ]
    )


def _ratio(title: str, above: list[float], below: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return f"{title:26}{median(ratios):.3f}   ({ratios[0]:.3f} .. {ratios[-1]:.3f})"


def _trainer(config: Config, objective: str, folder: Path) -> Trainer:
    """A trainer with this objective and a prior that needs no samples."""
    prior = PriorConfig() if config.prior.name.startswith("sft") else config.prior
    named = dataclasses.replace(config.objective, name=objective)
    config = dataclasses.replace(config, objective=named, prior=prior)
    return Trainer(config, folder, progress=False)


def model_calls(trainer: Trainer) -> Callable[[], None]:
    """The model calls of one iteration: same rows, sigmas and order, with gradients discarded."""
    policy, group_size = trainer.policy, trainer.config.group_size
    batch = trainer.draw_batch()
    steps, prompts = batch.steps, batch.prompts_of(slice(0, len(batch.seeds)))
    parts = []
    for part in sample_groups(policy, batch, trainer.micro_batch):
        cond = select(batch.cond, part.rows, group_size)
        parts.append((part.latents, cond, torch.randn_like(part.latents)))

    def replay() -> None:
        pixels = []
        with torch.no_grad():
            for x, cond, _ in parts:
                for sigma in steps.sigmas[:-1]:
                    policy.velocity(x, sigma, cond)
                pixels.append(policy.decode(x))
        trainer.reward(torch.cat(pixels), prompts)
        for _ in range(trainer.config.optimiser.epochs):
            for x, cond, gradient in parts:
                for i in steps.trained:
                    policy.velocity(x, steps.sigmas[i], cond).backward(gradient)
        trainer.optimiser.zero_grad(set_to_none=True)

    return replay


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call, with the device idle before and after it."""
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()

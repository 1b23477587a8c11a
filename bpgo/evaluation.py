"""Evaluation on fixed prompts, from noise hashed from each prompt: the same pictures whatever the seed, batch or number of processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .files import resolve
from .rollout import integrate, row_noise, seed_of, select
from .sde import sigma_grid

Metric = Callable[[Tensor, list[str]], Tensor]


class Scores(NamedTuple):
    """pixels: (P, S, 3, H, W) for P prompts x S samples; scores: metric -> (P, S), NaN where a metric is not defined."""

    pixels: Tensor
    scores: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Mean of each metric over what is defined of it."""
        return {name: values.nanmean().item() for name, values in self.scores.items()}


def read_prompts(path: str) -> list[str]:
    """Prompts of a text file (one a line, blank lines skipped) or of JSON lines (`prompt`). ValueError if there is none."""
    place = resolve(path)
    if not isinstance(place, Path) or not place.is_file():
        raise FileNotFoundError(f"no prompt file {path!r}")
    lines = [line for line in place.read_text().splitlines() if line.strip()]
    try:
        prompts = [json.loads(line)["prompt"] if place.suffix == ".jsonl" else line.strip() for line in lines]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{place} is not JSON lines with the key "prompt"') from None
    if not prompts:
        raise ValueError(f"the prompt file {place} has no prompts")
    return prompts


def encode_each(policy, prompts: list[str]) -> dict[str, Tensor]:
    """Conditions of prompts, each encoded by itself: the same bits whichever prompts share its batch."""
    rows = {p: policy.encode([p]) for p in dict.fromkeys(prompts)}
    return {name: torch.cat([rows[p][name] for p in prompts]) for name in rows[prompts[0]]}


def evaluate(
    policy, prompts: list[str], metrics: dict[str, Metric], samples: int, steps: int, shift: float, micro_batch: int | None = None
) -> Scores:
    """Sample S pictures of each prompt by the ODE and measure them. Metrics get flat rows, the samples of a prompt together."""
    seeds, drawn = [], Counter()
    for prompt in (p for p in prompts for _ in range(samples)):
        seeds.append(seed_of("evaluation", prompt, drawn[prompt]))
        drawn[prompt] += 1
    flat = [prompt for prompt in prompts for _ in range(samples)]
    noise = row_noise(seeds, policy.latent_shape(), 1, policy.device)[0]
    cond = select(encode_each(policy, prompts), slice(0, len(flat)), samples)
    pixels = policy.decode(integrate(policy, noise, cond, sigma_grid(steps, shift), micro_batch))
    scores = {name: metric(pixels, flat).float().cpu().view(len(prompts), samples) for name, metric in metrics.items()}
    return Scores(pixels.cpu().unflatten(0, (len(prompts), samples)), scores)

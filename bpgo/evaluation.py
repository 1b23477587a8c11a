"""Evaluation on fixed prompts, from noise hashed from each prompt: the same pictures whatever the seed, batch or number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .prompts import images_of, key_of
from .rollout import integrate, micro_batches, row_noise, seed_of, select
from .sde import sigma_grid

Metric = Callable[[Tensor, list[str]], Tensor | dict[str, Tensor]]  # one measure, or several by name


class Scores(NamedTuple):
    """pixels: (P, S, 3, H, W), videos (P, S, F, 3, H, W), for P prompts x S samples.

    scores: metric -> (P, S), NaN where a metric is not defined.
    """

    pixels: Tensor
    scores: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Mean of each metric over what is defined of it."""
        return {name: values.nanmean().item() for name, values in self.scores.items()}


def check_prompts(policy, prompts: list[str], name: str) -> None:
    """Raise ValueError, beginning with this name of theirs, for prompts or pictures that the policy refuses."""
    try:
        images = images_of(prompts)
        policy.check(prompts) if images is None else policy.check(prompts, images)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def try_metrics(policy, prompt: str, metrics: dict[str, Metric]) -> None:
    """Measure decoded noise: a reward or a measure that cannot score what this policy makes raises now, not hours later."""
    pixels = policy.decode(row_noise([0], policy.latent_shape(), 1, policy.device)[0])
    for metric in metrics.values():
        metric(pixels, [prompt])


def encode(policy, prompts: list[str]) -> dict[str, Tensor]:
    """Conditions of prompts, with their pictures if they have any."""
    images = images_of(prompts)
    return policy.encode(prompts) if images is None else policy.encode(prompts, images)


def encode_each(policy, prompts: list[str]) -> dict[str, Tensor]:
    """Conditions of prompts, each encoded by itself: the same bits whichever prompts share its batch."""
    rows = {key: encode(policy, [p]) for key, p in {key_of(p): p for p in prompts}.items()}
    return {name: torch.cat([rows[key_of(p)][name] for p in prompts]) for name in rows[key_of(prompts[0])]}


def evaluate(
    policy, prompts: list[str], metrics: dict[str, Metric], samples: int, steps: int, shift: float, micro_batch: int | None = None
) -> Scores:
    """Sample S pictures or videos of each prompt by the ODE and measure them. Metrics get flat rows, the samples of a prompt together."""
    seeds, drawn = [], Counter()
    flat = [prompt for prompt in prompts for _ in range(samples)]
    for key in map(key_of, flat):
        seeds.append(seed_of("evaluation", key, drawn[key]))
        drawn[key] += 1
    cond, sigmas, pixels = encode_each(policy, prompts), sigma_grid(steps, shift), []
    for part in micro_batches(len(flat), micro_batch):
        noise = row_noise(seeds[part], policy.latent_shape(), 1, policy.device)[0]
        pixels.append(policy.decode(integrate(policy, noise, select(cond, part, samples), sigmas)))
    pixels, found = torch.cat(pixels), {}
    for name, metric in metrics.items():
        values = metric(pixels, flat)
        found |= values if isinstance(values, dict) else {name: values}
    scores = {name: values.float().cpu().view(len(prompts), samples) for name, values in found.items()}
    return Scores(pixels.cpu().unflatten(0, (len(prompts), samples)), scores)

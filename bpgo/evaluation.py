"""Evaluation on fixed prompts, from noise hashed from each prompt: the same pictures whatever the seed, batch or number of processes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bpgo.prompts import images_of, key_of
from bpgo.rollout import integrate, micro_batches, row_noise, seed_of, select
from bpgo.sde import sigma_grid

Metric = Callable[
    [Tensor, list[str]], Tensor | dict[str, Tensor]
]  # one measure, or several by name


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
    return {
        name: torch.cat([rows[key_of(p)][name] for p in prompts])
        for name in rows[key_of(prompts[0])]
    }


def evaluate(
    policy,
    prompts: list[str],
    metrics: dict[str, Metric],
    samples: int,
    steps: int,
    shift: float,
    micro_batch: int | None = None,
    conditions: Callable[[list[str]], dict[str, Tensor]] | None = None,
    keep: bool = True,
) -> Scores:
    """Sample S pictures or videos of each prompt by the ODE and measure them. Metrics get flat rows, the samples of a prompt together.

    conditions: what encodes prompts, if not the policy anew. keep: whether the samples are to be returned; else they are dropped as soon as
    they are measured, and pixels is empty.
    """
    at_once = len(prompts) if micro_batch is None else max(1, micro_batch // samples)
    conditions, sigmas, drawn = (
        conditions or partial(encode_each, policy),
        sigma_grid(steps, shift),
        Counter(),
    )
    kept, found = [], defaultdict(list)
    for chosen in micro_batches(len(prompts), at_once):
        flat, seeds = [p for p in prompts[chosen] for _ in range(samples)], []
        for key in map(key_of, flat):
            seeds.append(seed_of("evaluation", key, drawn[key]))
            drawn[key] += 1
        cond, pixels = conditions(prompts[chosen]), []
        for part in micro_batches(len(flat), micro_batch):
            noise = row_noise(seeds[part], policy.latent_shape(), 1, policy.device)[0]
            pixels.append(
                policy.decode(integrate(policy, noise, select(cond, part, samples), sigmas))
            )
        pixels = torch.cat(pixels)
        for name, metric in metrics.items():
            values = metric(pixels, flat)
            for key, scores in (values if isinstance(values, dict) else {name: values}).items():
                found[key].append(scores.float().cpu().view(-1, samples))
        if keep:
            kept.append(pixels.cpu().unflatten(0, (-1, samples)))
    return Scores(
        torch.cat(kept) if keep else torch.empty(0),
        {name: torch.cat(parts) for name, parts in found.items()},
    )


def shares(prompts: list[str], count: int) -> list[list[int]]:
    """Indices of the prompts that each of `count` processes evaluates: equally many, equal prompts together (they share a count of draws).

    Where they do not divide, the last index of a share is repeated at its end.
    """
    keys = list(dict.fromkeys(map(key_of, prompts)))
    of = {key: n % count for n, key in enumerate(keys)}
    found = [[i for i, p in enumerate(prompts) if of[key_of(p)] == rank] for rank in range(count)]
    longest = max(map(len, found))
    return [share + (share[-1:] or [0]) * (longest - len(share)) for share in found]

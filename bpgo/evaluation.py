"""Evaluation on fixed prompts, from noise that is hashed from each prompt.

The samples are therefore the same for every seed, batch size and number of processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bpgo.conditioning import Conditions
from bpgo.prompts import key_of
from bpgo.rewards.checks import check_samples
from bpgo.rollout import integrate, micro_batches, row_noise, seed_of, select
from bpgo.sde import sigma_grid

# (pixels, prompts) -> (B,) values, or several of them by name
Metric = Callable[[Tensor, list[str]], Tensor | dict[str, Tensor]]


class Scores(NamedTuple):
    """Samples and their scores, for P prompts with S samples each.

    pixels: (P, S, 3, H, W) images or (P, S, F, 3, H, W) videos, of the prompts whose samples were
    kept: the first ones. Empty if there are none.
    scores: (P, S) by metric, NaN where a metric is not defined.
    """

    pixels: Tensor
    scores: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """The mean of each metric, over the samples for which it is defined."""
        return {name: values.nanmean().item() for name, values in self.scores.items()}


def evaluate(
    policy,
    prompts: list[str],
    metrics: dict[str, Metric],
    samples: int,
    steps: int,
    shift: float,
    micro_batch: int | None = None,
    conditions: Callable[[list[str]], dict[str, Tensor]] | None = None,
    keep: int | None = None,
) -> Scores:
    """Sample every prompt `samples` times with the ODE, and score the samples with all metrics.

    A metric receives all samples of a prompt in one call. Raises RewardError if the policy decodes
    to pixels that are not finite or not in [0, 1]. conditions: encodes prompts (None: the
    policy does). keep: of how many prompts, from the first on, the samples are returned (None: of
    all); the others are dropped once they are scored.
    """
    conditions = conditions or Conditions(policy)
    per_call = len(prompts) if micro_batch is None else max(1, micro_batch // samples)
    keep = len(prompts) if keep is None else keep
    sigmas, drawn = sigma_grid(steps, shift), Counter()
    kept, scores = [], defaultdict(list)
    for chosen in micro_batches(len(prompts), per_call):
        rows = [prompt for prompt in prompts[chosen] for _ in range(samples)]
        seeds = [_next_seed(prompt, drawn) for prompt in rows]
        cond = conditions(prompts[chosen])
        pixels = _sample(policy, cond, seeds, samples, sigmas, micro_batch)
        for name, values in _score(metrics, pixels, rows).items():
            scores[name].append(values.view(-1, samples))
        wanted = pixels[: max(0, keep - chosen.start) * samples]
        if len(wanted):
            kept.append(wanted.cpu().unflatten(0, (-1, samples)))
    pixels = torch.cat(kept) if kept else torch.empty(0)
    return Scores(pixels, {name: torch.cat(values) for name, values in scores.items()})


def _next_seed(prompt: str, drawn: Counter) -> int:
    """The seed of the next sample of this prompt, which may occur more than once."""
    key = key_of(prompt)
    seed = seed_of("evaluation", key, drawn[key])
    drawn[key] += 1
    return seed


def _sample(
    policy,
    cond: dict[str, Tensor],
    seeds: list[int],
    samples: int,
    sigmas: Tensor,
    micro_batch: int | None,
) -> Tensor:
    pixels = []
    for rows in micro_batches(len(seeds), micro_batch):
        noise = row_noise(seeds[rows], policy.latent_shape(), 1, policy.device)[0]
        latents = integrate(policy, noise, select(cond, rows, samples), sigmas)
        pixels.append(policy.decode(latents))
    return torch.cat(pixels)


def _score(metrics: dict[str, Metric], pixels: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """(B,) float32 values of each metric on the CPU. A metric may give several values by name.

    Each metric gets its own copies, so what it changes in place does not reach the others. Raises
    RewardError for pixels that are not finite or not in [0, 1].
    """
    check_samples(pixels, prompts, "evaluation")
    found = {}
    for name, metric in metrics.items():
        values = metric(pixels.clone(), list(prompts))
        found |= values if isinstance(values, dict) else {name: values}
    return {name: values.detach().float().cpu() for name, values in found.items()}


def divide_prompts(prompts: list[str], processes: int) -> list[list[int]]:
    """Indices of the prompts that each process evaluates.

    Equal prompts stay together, because they share a count of draws. All processes get the same
    number of indices. If the prompts cannot be divided evenly, a process repeats its last index.
    """
    keys = list(dict.fromkeys(map(key_of, prompts)))
    process_of = {key: number % processes for number, key in enumerate(keys)}
    shares: list[list[int]] = [[] for _ in range(processes)]
    for i, prompt in enumerate(prompts):
        shares[process_of[key_of(prompt)]].append(i)
    longest = max(map(len, shares))
    return [share + (share[-1:] or [0]) * (longest - len(share)) for share in shares]

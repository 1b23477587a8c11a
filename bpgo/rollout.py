"""Groups of trajectories under a policy: N prompts x G samples in flat micro-batches, only the trained steps kept."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bpgo.sde import SCHEDULES, noise_levels, sde_step


class Rollout(NamedTuple):
    """B = N * G trajectories, row i * G + j being sample j of prompt i; K trained steps in order.

    latents: (B, ...) at sigma 0. x, x_next: (K, B, ...) before and after each trained step. log_prob: (K, B).
    """

    latents: Tensor
    x: Tensor
    x_next: Tensor
    log_prob: Tensor


class Plan(NamedTuple):
    """A sigma grid, the noise at each of its steps, how a step is made, and which steps are trained."""

    sigmas: list[float]
    noise: list[float]
    schedule: str
    trained: tuple[int, ...]

    def step(self, i: int, x: Tensor, velocity: Tensor, **given):
        """Step i of the grid: a new draw, or with x_next=... its log-probability."""
        return SCHEDULES[self.schedule].step(
            x, velocity, self.sigmas[i], self.sigmas[i + 1], self.noise[i], **given
        )


def plan(
    sigmas: Tensor,
    schedule: str,
    level: float,
    trained_share: float,
    window: int | None,
    rng: random.Random,
    window_range: tuple[int, int] | None = None,
) -> Plan:
    """Which steps carry noise and which are trained in one iteration.

    Without a window every step but the last carries noise, and a random share of these (at least one) is trained. With a window, that many
    consecutive steps at a random place carry noise and are trained; all others are plain ODE steps (MixGRPO, arXiv 2507.21802).
    window_range keeps the window within steps [first, last), as Flow-GRPO-Fast does.
    """
    noisy = len(sigmas) - 2
    if noisy < 1:
        raise ValueError(
            "training needs at least 2 sampling steps: the last step carries no noise and cannot be trained"
        )
    if window is None:
        carrying = set(range(noisy))
        trained = rng.sample(range(noisy), max(1, round(trained_share * noisy)))
    else:
        first, last = window_range or (0, noisy)
        if not (window >= 1 and first >= 0 and first + window <= last <= noisy):
            where = f"the steps from {first} to {last - 1} of " if window_range else ""
            raise ValueError(
                f"a window of {window} does not fit {where}the {noisy} steps that can carry noise"
            )
        start = rng.randint(first, last - window)
        carrying = set(trained := range(start, start + window))
    return Plan(
        sigmas.tolist(),
        noise_levels(schedule, sigmas, level, carrying),
        schedule,
        tuple(sorted(trained)),
    )


def seed_of(*parts: object) -> int:
    """A seed from a hash of the parts, the same on every machine. (torch's CPU generator uses its low 32 bits.)"""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def row_noise(
    seeds: list[int], shape: tuple[int, ...], draws: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(draws, B, *shape) standard normal, each row from its own seed: the same whatever the batch or the number of processes."""
    rows = [
        torch.randn(draws, *shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.stack(rows, 1).to(device)


def micro_batches(rows: int, size: int | None) -> Iterator[slice]:
    """Contiguous slices that cover range(rows), `size` rows each (None: all at once)."""
    size = size or rows
    return (slice(i, min(i + size, rows)) for i in range(0, rows, size))


def select(cond: dict[str, Tensor], rows: slice, group_size: int = 1) -> dict[str, Tensor]:
    """The conditions of flat rows, from conditions of one row a prompt."""
    index = torch.arange(rows.start, rows.stop) // group_size
    return {name: value[index.to(value.device)] for name, value in cond.items()}


@torch.no_grad()
def sample_groups(
    policy,
    cond: dict[str, Tensor],
    group_size: int,
    plan: Plan,
    seeds: list[int],
    start_seeds: list[int] | None = None,
    micro_batch: int | None = None,
    finished: Callable[[slice, Tensor], None] | None = None,
    keep_on: torch.device | str | None = None,
) -> Rollout:
    """Sample G trajectories for each of the N rows of cond.

    seeds: N * G seeds of the noise; start_seeds: other seeds for the initial noise alone (equal in a group: shared initial noise).
    finished: called with the rows and the latents of each micro-batch, before the next is sampled. keep_on: the device on which the
    trained steps are kept; None, the policy's.
    """
    rows, draws = len(seeds), 1 + sum(s > 0 for s in plan.noise)
    expected = len(next(iter(cond.values()))) * group_size
    for name, given in (("seeds", seeds), ("start_seeds", start_seeds)):
        if given is not None and len(given) != expected:
            raise ValueError(
                f"{len(given)} {name} for {expected} trajectories: give group_size={group_size} for each prompt"
            )
    kept: list[list[Tensor]] = []
    for part in micro_batches(rows, micro_batch):
        chosen = select(cond, part, group_size)
        noise = list(row_noise(seeds[part], policy.latent_shape(), draws, policy.device))
        x = noise.pop(0)
        if start_seeds is not None:
            x = row_noise(start_seeds[part], policy.latent_shape(), 1, policy.device)[0]
        before, after, log_prob = [], [], []
        for i, sigma in enumerate(plan.sigmas[:-1]):
            fresh = noise.pop(0) if plan.noise[i] else None
            step = plan.step(i, x, policy.velocity(x, sigma, chosen), noise=fresh)
            if i in plan.trained:
                before.append(x)
                after.append(step.x_next)
                log_prob.append(step.log_prob)
            x = step.x_next
        steps = [torch.stack(before), torch.stack(after)]
        kept.append([x, *(t.to(keep_on or policy.device) for t in steps), torch.stack(log_prob)])
        if finished:
            finished(part, x)
    latents, *stored = zip(*kept, strict=True)
    return Rollout(torch.cat(latents), *(torch.cat(parts, 1) for parts in stored))


@torch.no_grad()
def integrate(
    policy, x: Tensor, cond: dict[str, Tensor], sigmas: Tensor, micro_batch: int | None = None
) -> Tensor:
    """The ODE from initial noise x (B, ...) to latents, by Euler steps over the grid. cond: one row a sample."""
    done = []
    for part in micro_batches(len(x), micro_batch):
        latents, chosen = x[part], select(cond, part)
        for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            latents = sde_step(
                latents, policy.velocity(latents, sigma, chosen), sigma, sigma_next, 0.0
            ).x_next
        done.append(latents)
    return torch.cat(done)

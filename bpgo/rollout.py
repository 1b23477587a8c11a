"""Groups of samples under a policy: N prompts with G samples each, in micro-batches.

For each trajectory, the update needs the states before and after every trained step and the
log-probability of that step. The reward needs the final state.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from bpgo.batching import own_groups
from bpgo.config import Config, SamplingConfig
from bpgo.registry import find
from bpgo.sde import Schedule, Step, noise_levels, sde_step, sigma_grid


class Steps(NamedTuple):
    """The denoising steps of one iteration.

    sigmas: the levels from 1 to 0, one more than there are steps. noise_std: of each step, as
    `sde_step` takes it. schedule: computes a step. trained: indices of the steps that the update
    trains, in order.
    """

    sigmas: list[float]
    noise_std: list[float]
    schedule: Schedule
    trained: tuple[int, ...]

    def take(self, i: int, x: Tensor, velocity: Tensor, **given) -> Step:
        """Compute step i from x. given: `noise` to draw with, or `x_next` to evaluate."""
        levels = self.sigmas[i], self.sigmas[i + 1]
        return self.schedule.step(x, velocity, *levels, self.noise_std[i], **given)


class Batch(NamedTuple):
    """What one process samples in one iteration: N prompts with G samples each, B = N G rows.

    Row i * G + j is sample j of prompt i. cond: the encoded prompts, one row per prompt. seeds: B
    seeds of the noise. start_seeds: B seeds of the initial noise, equal within a group if the group
    shares it; None if `seeds` determine the initial noise too.
    """

    prompts: list[str]
    cond: dict[str, Tensor]
    group_size: int
    steps: Steps
    seeds: list[int]
    start_seeds: list[int] | None = None

    def prompts_of(self, rows: slice) -> list[str]:
        """The prompt of each of these rows."""
        return [self.prompts[row // self.group_size] for row in range(rows.start, rows.stop)]


class Part(NamedTuple):
    """One micro-batch of b trajectories with K trained steps.

    rows: which of the B rows. latents: (b, ...) at sigma = 0. x, x_next: (K, b, ...), before and
    after each trained step. log_prob: (K, b), of x_next given x.
    """

    rows: slice
    latents: Tensor
    x: Tensor
    x_next: Tensor
    log_prob: Tensor


class Rollout(NamedTuple):
    """A batch and its trajectories, part by part."""

    batch: Batch
    parts: list[Part]


def draw_batch(
    config: Config,
    prompts: list[str],
    iteration: int,
    conditions: Callable[[list[str]], dict[str, Tensor]],
    processes: int = 1,
    rank: int = 0,
) -> Batch:
    """Draw the prompts, steps and seeds of one process in one iteration.

    Every iteration draws its prompts anew, without replacement within the iteration. Everything
    depends only on (config.seed, iteration, group, sample), so several processes together draw the
    same samples as a single one. prompts: all training prompts. conditions: encodes prompts.
    """
    rng = random.Random(seed_of(config.seed, "iteration", iteration))
    drawn = rng.sample(prompts, config.groups)
    steps = draw_steps(config.sampling, rng)
    groups = own_groups(config.groups, config.optimiser.updates, processes, rank)
    own = [drawn[g] for g in groups]
    rows = [(g, j) for g in groups for j in range(config.group_size)]
    seeds = [seed_of(config.seed, iteration, g, j) for g, j in rows]
    start_seeds = None
    if config.sampling.shared_noise:
        start_seeds = [seed_of(config.seed, iteration, g) for g, _ in rows]
    return Batch(own, conditions(own), config.group_size, steps, seeds, start_seeds)


def draw_steps(sampling: SamplingConfig, rng: random.Random) -> Steps:
    """Draw which steps carry noise and which are trained in one iteration.

    Without a window, every step but the last carries noise, and a random fraction
    (`trained_share`, at least one step) is trained. With a window, that many consecutive steps at a
    random position carry noise and are trained, and all others are ODE steps (MixGRPO,
    arXiv 2507.21802). `window_range` = (first, stop) keeps the window within steps
    first, ..., stop - 1, as in Flow-GRPO-Fast. Raises ValueError if the window does not fit.
    """
    sigmas = sigma_grid(sampling.steps, sampling.shift)
    schedule = find("schedule", sampling.schedule)
    if not isinstance(schedule, Schedule):
        found = type(schedule).__name__
        raise TypeError(f"schedule {sampling.schedule!r} is a {found}: make it a bpgo.sde.Schedule")
    noisy_steps = sampling.steps - 1
    if sampling.window is None:
        carrying = range(noisy_steps)
        count = max(1, round(sampling.trained_share * noisy_steps))
        trained = sorted(rng.sample(range(noisy_steps), count))
    else:
        start = _draw_window(sampling, noisy_steps, rng)
        carrying = trained = range(start, start + sampling.window)
    noise = noise_levels(schedule, sigmas, sampling.noise_level, carrying)
    return Steps(sigmas.tolist(), noise, schedule, tuple(trained))


def _draw_window(sampling: SamplingConfig, noisy_steps: int, rng: random.Random) -> int:
    """The first step of the window."""
    first, stop = sampling.window_range or (0, noisy_steps)
    if not first + sampling.window <= stop <= noisy_steps:
        within = f" within steps {first} to {stop - 1}" if sampling.window_range else ""
        raise ValueError(
            f"sampling.window={sampling.window} does not fit{within}: of {sampling.steps} steps, "
            f"the first {noisy_steps} can carry noise"
        )
    return rng.randint(first, stop - sampling.window)


@torch.no_grad()
def sample_groups(
    policy,
    batch: Batch,
    micro_batch: int | None = None,
    keep_on: torch.device | str | None = None,
) -> Iterator[Part]:
    """Sample the trajectories of a batch, and yield each micro-batch as soon as it is complete.

    micro_batch: rows of one part (None: all). keep_on: device on which the states of trained steps
    are kept (None: the policy's). No gradients are computed while sampling, but the caller's
    gradient mode holds between two parts. Raises ValueError if the number of seeds is not N G.
    """
    _check_seeds(batch)
    steps = batch.steps
    for rows in micro_batches(len(batch.seeds), micro_batch):
        cond = select(batch.cond, rows, batch.group_size)
        x, noise = _draw_noise(policy, batch, rows)
        before, after, log_prob = [], [], []
        for i, sigma in enumerate(steps.sigmas[:-1]):
            velocity = policy.velocity(x, sigma, cond)
            step = steps.take(i, x, velocity, noise=noise.get(i))
            if i in steps.trained:
                before.append(x)
                after.append(step.x_next)
                log_prob.append(step.log_prob)
            x = step.x_next
        device = keep_on or policy.device
        states = torch.stack(before).to(device), torch.stack(after).to(device)
        yield Part(rows, x, *states, torch.stack(log_prob))


def _draw_noise(policy, batch: Batch, rows: slice) -> tuple[Tensor, dict[int, Tensor]]:
    """The initial noise of these rows, and the noise of each step that carries any."""
    shape, noisy = policy.latent_shape(), [i for i, s in enumerate(batch.steps.noise_std) if s > 0]
    initial, *fresh = row_noise(batch.seeds[rows], shape, 1 + len(noisy), policy.device)
    if batch.start_seeds is not None:
        initial = row_noise(batch.start_seeds[rows], shape, 1, policy.device)[0]
    return initial, dict(zip(noisy, fresh, strict=True))


def _check_seeds(batch: Batch) -> None:
    expected = len(batch.prompts) * batch.group_size
    for name in ("seeds", "start_seeds"):
        given = getattr(batch, name)
        if given is not None and len(given) != expected:
            raise ValueError(
                f"{len(given)} {name} for {len(batch.prompts)} prompts with "
                f"{batch.group_size} samples each: give {expected}"
            )


@torch.no_grad()
def integrate(
    policy, x: Tensor, cond: dict[str, Tensor], sigmas: Tensor, micro_batch: int | None = None
) -> Tensor:
    """Integrate the ODE from initial noise x (B, ...) to latents, with Euler steps over the grid.

    cond: one row per sample.
    """
    done = []
    levels = sigmas.tolist()
    for rows in micro_batches(len(x), micro_batch):
        latents, chosen = x[rows], select(cond, rows)
        for sigma, sigma_next in pairwise(levels):
            velocity = policy.velocity(latents, sigma, chosen)
            latents = sde_step(latents, velocity, sigma, sigma_next, 0.0).x_next
        done.append(latents)
    return torch.cat(done)


# --------------------------------------------------------------------------------- rows and noise


def micro_batches(rows: int, size: int | None) -> Iterator[slice]:
    """Consecutive slices that cover range(rows), of `size` rows each (None: one slice)."""
    size = size or rows
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def select(cond: dict[str, Tensor], rows: slice, group_size: int = 1) -> dict[str, Tensor]:
    """The conditions of these rows, from conditions with one row per prompt."""
    index = torch.arange(rows.start, rows.stop) // group_size
    return {name: value[index.to(value.device)] for name, value in cond.items()}


def seed_of(*parts: object) -> int:
    """A seed hashed from the parts, equal on every machine: 63 bits, which torch accepts.

    torch's CPU generator uses only the low 32 bits of a seed.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def row_noise(
    seeds: list[int], shape: tuple[int, ...], draws: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(draws, B, *shape) standard normal noise, every row from its own seed.

    A row is therefore the same in any batch and for any number of processes.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = [torch.randn(draws, *shape, generator=generator) for generator in generators]
    return torch.stack(rows, 1).to(device)

"""The policy update: advantages -> loss -> gradient -> optimiser step."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from bpgo.config import Config, ObjectiveConfig
from bpgo.diagnostics import ratio_diagnostics
from bpgo.distributed import clip_gradients, exchange_gradients
from bpgo.learning_rate import rate_factors, set_learning_rate
from bpgo.objective import Advantages, kl_divergence, surrogate_loss
from bpgo.rollout import Part, Rollout, Steps, select
from bpgo.sde import Step

LOGGED = ("grad_norm", "loss", "clip_up", "clip_down", "approx_kl")


def update_policy(
    policy,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Advantages,
    config: Config,
    accelerator: Accelerator,
    iteration: int = 0,
    starting_means: list[Tensor] | None = None,
) -> dict[str, float]:
    """Train the policy on a rollout, with `updates` times `epochs` optimiser steps.

    Each optimiser step uses its share of the prompts, and an epoch uses all of them. The
    micro-batches are those that were sampled, because only then is the first importance ratio
    exactly 1. advantages: (N, G), one row per prompt of the rollout. iteration: how many iterations
    precede this one, which determines the learning rate. starting_means: from
    `starting_model.starting_means`, for the KL term of the loss; None for a loss without it.

    Returns the means over the optimiser steps of the loss, the clip fractions, the approximate KL
    divergence from the policy that sampled, the gradient norm and, with a KL term, the divergence
    `kl` from the starting model. Also `first_log_ratio`, the largest |log ratio| before the
    first optimiser step; `learning_rate`, that of the last optimiser step; and
    `gradient_accumulation`, the number of micro-batches of an optimiser step, over all processes.
    Raises FloatingPointError, without making the optimiser step, if a gradient is not finite.
    """
    batch = rollout.batch
    trained = range(len(batch.steps.trained))
    means_of_parts = starting_means or [None] * len(rollout.parts)
    pairs = list(zip(rollout.parts, means_of_parts, strict=True))
    updates = _by_update(pairs, config)
    factors = rate_factors(config, iteration)
    last_pass = _last_passes(policy, batch.steps)
    logged, norms, first_log_ratios = [], [], []
    for micro_batches, factor in zip(updates, factors, strict=True):
        optimiser.zero_grad(set_to_none=True)  # an interrupted update may have left gradients
        set_learning_rate(optimiser, factor)
        rows = sum(_size(part) for part, _ in micro_batches)
        for part, means in micro_batches:
            share = _size(part) / rows / len(trained)
            main = _flat_rows(advantages.main, part)
            auxiliary = _flat_rows(advantages.auxiliary, part)
            cond = select(batch.cond, part.rows, batch.group_size)
            for n in trained:
                for name, module in policy.modules.items():
                    last = part is micro_batches[-1][0] and n == last_pass.get(name)
                    exchange_gradients(module, last)
                step = trained_step(policy, cond, batch.steps, part, n)
                log_ratio = step.log_prob - part.log_prob[n]
                start = None if means is None else means[n]
                loss, values = _loss(step, log_ratio, main, auxiliary, start, config.objective)
                accelerator.backward(share * loss)
                if not norms:  # before the first optimiser step
                    first_log_ratios.append(log_ratio.detach().abs().max())
                logged.append(share * values)
        norms.append(_optimiser_step(optimiser, config.optimiser.max_grad_norm))
    sums = torch.cat([torch.stack(norms).sum()[None], torch.stack(logged).sum(0)])
    averages = accelerator.reduce(sums / len(updates), "mean").tolist()
    first = accelerator.gather(torch.stack(first_log_ratios).max()).max().item()
    names = LOGGED if starting_means is None else (*LOGGED, "kl")
    return dict(zip(names, averages, strict=True)) | {
        "first_log_ratio": first,
        "learning_rate": optimiser.param_groups[0]["lr"],
        "gradient_accumulation": len(updates[0]) * accelerator.num_processes,
    }


def _loss(
    step: Step,
    log_ratio: Tensor,
    main: Tensor,
    auxiliary: Tensor | None,
    start: Tensor | None,
    objective: ObjectiveConfig,
) -> tuple[Tensor, Tensor]:
    """The loss of one trained step of a micro-batch, and what to log of it.

    log_ratio, main, auxiliary: (b,). start: the starting model's mean of the step, for the KL term.
    """
    loss = surrogate_loss(log_ratio, main, auxiliary, objective.clip_range)
    values = ratio_diagnostics(log_ratio, main, objective.clip_range)
    if start is not None:
        divergence = kl_divergence(step.mean, start.to(step.mean.device), step.std).mean()
        loss = loss + objective.kl * divergence
        values = torch.cat([values, divergence.detach()[None]])
    return loss, torch.cat([loss.detach()[None], values])


def trained_step(policy, cond: dict[str, Tensor], steps: Steps, part: Part, n: int) -> Step:
    """The n-th trained step of a part under the current weights, with that part's own draw.

    cond: one row per sample of the part. Gradients reach the policy.
    """
    i = steps.trained[n]
    before = part.x[n].to(policy.device)
    after = part.x_next[n].to(policy.device)
    velocity = policy.velocity(before, steps.sigmas[i], cond)
    return steps.take(i, before, velocity, x_next=after)


def log_ratio_of(policy, cond: dict[str, Tensor], steps: Steps, part: Part, n: int) -> Tensor:
    """(b,): log importance ratio of the n-th trained step, with gradients as `trained_step`."""
    return trained_step(policy, cond, steps, part, n).log_prob - part.log_prob[n]


def _by_update(parts: list, config: Config) -> list[list]:
    """The parts (and what belongs to them) of each optimiser step, in order, for all epochs."""
    per_update = len(parts) // config.optimiser.updates
    starts = range(0, len(parts), per_update)
    return [parts[start : start + per_update] for start in starts] * config.optimiser.epochs


def _size(part: Part) -> int:
    return part.rows.stop - part.rows.start


def _flat_rows(advantages: Tensor | None, part: Part) -> Tensor | None:
    return None if advantages is None else advantages.flatten()[part.rows]


def _last_passes(policy, steps: Steps) -> dict[str, int]:
    """For each module, the last trained step whose backward pass reaches it.

    With two experts, a step uses only one of them, so their last passes differ.
    """
    last_pass = {}
    for n, i in enumerate(steps.trained):
        last_pass[_module_at(policy, steps.sigmas[i])] = n
    return last_pass


def _module_at(policy, sigma: float) -> str:
    """The name of the module that predicts at this level: one of two experts, or the only one."""
    return policy.expert(sigma) if hasattr(policy, "expert") else next(iter(policy.modules))


def _optimiser_step(optimiser: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clip the gradients, make the step and return the gradient norm before clipping.

    Each group of parameters is one module and is clipped separately, so that the gradient of one
    expert does not scale the other's. A module that no trained step used has no gradients.
    """
    groups = [group["params"] for group in optimiser.param_groups]
    reached = [group for group in groups if any(p.grad is not None for p in group)]
    norm = torch.stack([clip_gradients(group, max_norm) for group in reached]).norm()
    if not torch.isfinite(norm):
        optimiser.zero_grad(set_to_none=True)
        raise FloatingPointError(
            "the gradient is not finite: lower optimiser.learning_rate or sampling.noise_level"
        )
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm

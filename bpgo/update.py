"""The policy update: advantages -> loss -> gradient -> optimiser step."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from bpgo.config import Config
from bpgo.diagnostics import ratio_diagnostics
from bpgo.distributed import clip_gradients, exchange_gradients
from bpgo.objective import Advantages, surrogate_loss
from bpgo.rollout import Part, Rollout, Steps, select

LOGGED = ("loss", "clip_up", "clip_down", "approx_kl", "grad_norm")


def update_policy(
    policy,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Advantages,
    config: Config,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Train the policy on a rollout, with `updates` times `epochs` optimiser steps.

    Each optimiser step uses its share of the prompts, and an epoch uses all of them. The
    micro-batches are those that were sampled, because only then is the first importance ratio
    exactly 1. advantages: (N, G), one row per prompt of the rollout.

    Returns the means over the optimiser steps of the loss, the clip fractions, the approximate KL
    divergence and the gradient norm; and `first_log_ratio`, the largest |log ratio| before the
    first optimiser step. Raises FloatingPointError, without making the optimiser step, if a
    gradient is not finite.
    """
    batch, clip_range = rollout.batch, config.objective.clip_range
    trained = range(len(batch.steps.trained))
    updates = _by_update(rollout.parts, config)
    last_pass = _last_passes(policy, batch.steps)
    logged, norms, first_log_ratios = [], [], []
    for parts in updates:
        optimiser.zero_grad(set_to_none=True)  # an interrupted update may have left gradients
        rows = sum(_size(part) for part in parts)
        for part in parts:
            share = _size(part) / rows / len(trained)
            main = _flat_rows(advantages.main, part)
            auxiliary = _flat_rows(advantages.auxiliary, part)
            cond = select(batch.cond, part.rows, batch.group_size)
            for n in trained:
                for name, module in policy.modules.items():
                    exchange_gradients(module, part is parts[-1] and n == last_pass.get(name))
                log_ratio = log_ratio_of(policy, cond, batch.steps, part, n)
                loss = share * surrogate_loss(log_ratio, main, auxiliary, clip_range)
                accelerator.backward(loss)
                if not norms:  # before the first optimiser step
                    first_log_ratios.append(log_ratio.detach().abs().max())
                diagnostics = share * ratio_diagnostics(log_ratio, main, clip_range)
                logged.append(torch.cat([loss.detach()[None], diagnostics]))
        norms.append(_optimiser_step(optimiser, config.optimiser.max_grad_norm))
    sums = torch.cat([torch.stack(logged).sum(0), torch.stack(norms).sum()[None]])
    means = accelerator.reduce(sums / len(updates), "mean").tolist()
    first = accelerator.gather(torch.stack(first_log_ratios).max()).max().item()
    return dict(zip(LOGGED, means, strict=True)) | {"first_log_ratio": first}


def log_ratio_of(policy, cond: dict[str, Tensor], steps: Steps, part: Part, n: int) -> Tensor:
    """(b,): log importance ratio of the n-th trained step under the current weights.

    cond: one row per sample of the part. Gradients reach the policy.
    """
    i = steps.trained[n]
    before = part.x[n].to(policy.device, non_blocking=True)
    after = part.x_next[n].to(policy.device, non_blocking=True)
    velocity = policy.velocity(before, steps.sigmas[i], cond)
    log_prob = steps.take(i, before, velocity, x_next=after).log_prob
    return log_prob - part.log_prob[n]


def _by_update(parts: list[Part], config: Config) -> list[list[Part]]:
    """The parts of each optimiser step, in order, for all epochs."""
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

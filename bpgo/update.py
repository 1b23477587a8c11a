"""The policy update: the clipped surrogate over the trained steps of a rollout, one optimiser step for each share of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bpgo.distributed import clip_gradients, exchange_gradients
from bpgo.objective import Advantages, ratio_diagnostics, surrogate_loss
from bpgo.rollout import Plan, Rollout, select


def update_policy(
    policy,
    accelerator,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    plan: Plan,
    cond: dict[str, Tensor],
    advantages: Advantages,
    batches: list[list[slice]],
    clip_range: float,
    max_grad_norm: float,
) -> dict[str, float]:
    """One optimiser step for each entry of `batches`, itself a list of micro-batches (slices of the B rows).

    The micro-batches must be those of the rollout: only then is the first importance ratio exactly 1. advantages: (N, G) for the
    N conditions in cond. Returns loss, clip fractions, approximate KL, gradient norm (means over the steps) and
    `first_log_ratio`, the largest |log ratio| before the first step, in any process. Raises FloatingPointError, with the weights untouched
    by that step, if a gradient is not finite.
    """
    group_size = advantages.main.shape[1]
    main = advantages.main.flatten()
    auxiliary = None if advantages.auxiliary is None else advantages.auxiliary.flatten()
    groups = [
        group["params"] for group in optimiser.param_groups
    ]  # one a module: no expert's gradient scales another's
    expert = getattr(
        policy, "expert", lambda sigma: next(iter(policy.modules))
    )  # the module that makes a step
    last = {expert(plan.sigmas[i]): n for n, i in enumerate(plan.trained)}
    logged, norms, drift = [], [], []
    for parts in batches:
        optimiser.zero_grad(set_to_none=True)  # what an interrupted update may have left
        rows = sum(part.stop - part.start for part in parts)
        for part in parts:
            chosen = select(cond, part, group_size)
            share = (part.stop - part.start) / rows / len(plan.trained)
            for n, i in enumerate(plan.trained):
                for (
                    name,
                    module,
                ) in (
                    policy.modules.items()
                ):  # a module's gradients are exchanged in its last backward pass
                    exchange_gradients(module, part is parts[-1] and n == last.get(name))
                before, after = (
                    kept[n, part].to(policy.device, non_blocking=True)
                    for kept in (rollout.x, rollout.x_next)
                )
                velocity = policy.velocity(before, plan.sigmas[i], chosen)
                log_prob = plan.step(i, before, velocity, x_next=after).log_prob
                log_ratio = log_prob - rollout.log_prob[n, part]
                second = None if auxiliary is None else auxiliary[part]
                loss = share * surrogate_loss(log_ratio, main[part], second, clip_range)
                accelerator.backward(loss)
                if not norms:
                    drift.append(log_ratio.detach().abs().max())
                seen = share * ratio_diagnostics(log_ratio, main[part], clip_range)
                logged.append(torch.cat([loss.detach()[None], seen]))
        reached = [group for group in groups if any(p.grad is not None for p in group)]
        norm = torch.stack([clip_gradients(group, max_grad_norm) for group in reached]).norm()
        if not torch.isfinite(norm):
            optimiser.zero_grad(set_to_none=True)
            raise FloatingPointError(
                "the gradient is not finite: lower the learning rate or the noise level"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        norms.append(norm)
    means = torch.cat([torch.stack(logged).sum(0), torch.stack(norms).sum()[None]]) / len(batches)
    names = ("loss", "clip_up", "clip_down", "approx_kl", "grad_norm")
    result = dict(zip(names, accelerator.reduce(means, "mean").tolist(), strict=True))
    return result | {"first_log_ratio": accelerator.gather(torch.stack(drift).max()).max().item()}

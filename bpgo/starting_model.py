"""The KL divergence from the starting model, which keeps the policy close to it.

Flow-GRPO (arXiv 2505.05470) adds beta KL(policy || starting model) to its loss. Both models make a
Gaussian step with the same standard deviation from the same state, so the divergence of a step is
(mean - mean_start)^2 / (2 std^2), averaged over dimensions like the log-probabilities. Here std is
that of the step, s sqrt(-dt). Flow-GRPO's published code divides by s^2 instead, so its beta
corresponds to a weight of beta * (-dt) here, which is about beta / steps on an even grid.

The starting model is the one that `generator` describes, adapters included. The weights that are
trained are copied before training and before a checkpoint is restored, so a resumed run has the
same starting model and a checkpoint need not contain it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bpgo.averaging import swapped
from bpgo.rollout import Rollout, select
from bpgo.update import trained_step


@torch.no_grad()
def starting_means(
    policy, rollout: Rollout, parameters: dict[str, Tensor], start: dict[str, Tensor]
) -> list[Tensor] | None:
    """For each part of a rollout, (K, b, ...): the mean of each trained step of the starting model.

    parameters: the trained weights, by name. start: a copy of them from before training, or an
    empty dict if the loss has no KL term; the result is then None. The means are kept where the
    states of the part are. They are those of all updates and epochs of the iteration.
    """
    if not start:
        return None
    batch, steps = rollout.batch, rollout.batch.steps
    means = []
    with swapped(parameters, start):
        for part in rollout.parts:
            cond = select(batch.cond, part.rows, batch.group_size)
            each = [
                trained_step(policy, cond, steps, part, n).mean.to(part.x.device)
                for n in range(len(steps.trained))
            ]
            means.append(torch.stack(each))
    return means

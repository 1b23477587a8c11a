"""The learning rate of each optimiser step: warm-up and decay, by transformers' names.

The rate is a function of the settings and of the number of optimiser steps made so far, so a
checkpoint needs no state for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from bpgo.config import Config

DECAYING = ("linear", "cosine")  # to 0 at the end of the run


def rate_factors(config: Config, iteration: int) -> list[float]:
    """What `optimiser.learning_rate` is multiplied by in each optimiser step of an iteration.

    iteration: how many iterations precede it. The factors are those of
    `transformers.get_scheduler` for a run of iterations * updates * epochs optimiser steps: a
    warm-up starts at 0, and a decay would reach 0 one step after the last.
    """
    o = config.optimiser
    per_iteration = o.updates * o.epochs
    factor = _factor(o.schedule, o.warmup, config.iterations * per_iteration)
    first = iteration * per_iteration
    return [factor(step) for step in range(first, first + per_iteration)]


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Let the next step use the learning rate that the optimiser was made with, times a factor."""
    for group in optimiser.param_groups:
        group["lr"] = optimiser.defaults["lr"] * factor


def depends_on_iterations(config: Config) -> bool:
    """Whether a run of more iterations would have had other learning rates from the start."""
    return config.optimiser.schedule in DECAYING


@cache
def _factor(schedule: str, warmup: int, total: int) -> Callable[[int], float]:
    from transformers import get_scheduler

    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    return get_scheduler(schedule, unused, warmup, total).lr_lambdas[0]

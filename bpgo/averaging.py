"""Exponential moving average of the trained weights."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor


def start_average(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the parameters, as the first average."""
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def update_average(average: dict[str, Tensor], parameters: dict[str, Tensor], decay: float) -> None:
    """average = decay average + (1 - decay) parameters, in place. An empty average stays empty."""
    if average:
        torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)


@contextmanager
def swapped(parameters: dict[str, Tensor], average: dict[str, Tensor]):
    """Give the parameters their averages in this context. Does nothing if the average is empty."""
    if not average:
        yield
        return
    current = start_average(parameters)
    _copy(average, parameters)
    try:
        yield
    finally:
        _copy(current, parameters)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, p in target.items():
        p.copy_(source[name])

"""Where R_prior comes from: the reward to expect of a semantically clear, typical prompt (arXiv 2511.18919, section 3).

A prior is asked for its value before each update, `prior(prompts, rewards)`, then shown the rewards, `prior.update(rewards)`; what it
has learnt is saved with each checkpoint. It knows tensors only: tables of rewards are handed to it ready.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Prior(Protocol):
    """prompts: N; rewards: (N, G) of this iteration over all processes (None to ask before any)."""

    def __call__(self, prompts: list[str], rewards: Tensor) -> Tensor | float:
        """A number or (N,), in units of the reward."""

    def update(self, rewards: Tensor) -> None: ...

    def state(self) -> dict[str, float]: ...

    def restore(self, state: dict[str, float]) -> None: ...


class Constant:
    """One number for every prompt: given by hand, or the mean reward of the SFT model's samples (`sft`)."""

    def __init__(self, value: float):
        self.value = float(value)

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        return self.value

    def update(self, rewards: Tensor) -> None:
        pass

    def state(self) -> dict[str, float]:
        return {"value": self.value}

    def restore(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class PerPrompt:
    """For each prompt the mean reward of the SFT model's own samples of it. table: prompt -> reward."""

    def __init__(self, table: dict[str, float]):
        self.table = table

    def __call__(self, prompts: list[str], rewards: Tensor) -> Tensor:
        missing = [p for p in prompts if p not in self.table]
        if missing:
            raise KeyError(
                f"no reference reward for prompt {missing[0]!r} ({len(missing)} missing): compute the table for all prompts"
            )
        return torch.tensor([self.table[p] for p in prompts], dtype=rewards.dtype)

    def update(self, rewards: Tensor) -> None:
        pass

    def state(self) -> dict[str, float]:
        return {}

    def restore(self, state: dict[str, float]) -> None:
        pass


class RunningMean:
    """Exponential mean of the group rewards seen so far (the paper's choice for text-to-image).

    momentum in [0, 1): weight of the past at each iteration. Before any iteration it is the first batch's own mean.
    """

    def __init__(self, momentum: float = 0.9):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum, self.mean = momentum, None

    def __call__(self, prompts: list[str], rewards: Tensor) -> float:
        return rewards.mean().item() if self.mean is None else self.mean

    def update(self, rewards: Tensor) -> None:
        new = rewards.mean().item()
        self.mean = new if self.mean is None else self.momentum * self.mean + (1 - self.momentum) * new

    def state(self) -> dict[str, float]:
        return {} if self.mean is None else {"mean": self.mean}

    def restore(self, state: dict[str, float]) -> None:
        self.mean = state.get("mean")

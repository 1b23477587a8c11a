"""Repeat calls of a reward that failed: a server's error, or the end of the reward's process."""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor

from bpgo.rewards.checks import CallError

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds


class RetryWarning(UserWarning):
    """A call of a reward failed and is repeated."""


def retried(reward, name: str, retries: int, pixels: Tensor, prompts: list[str]) -> Tensor:
    """The scores of a reward, whose call is repeated up to `retries` times if it fails.

    Only a CallError is a failure. A wrong shape, or a value that is not finite, would come again.
    The pauses are 1, 2, 4, ... seconds, at most 60. Each repetition is announced by a RetryWarning.
    """
    for attempt in range(retries):
        try:
            return reward(pixels, prompts)
        except CallError as error:
            pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
            # The time makes each text differ, because Python shows equal warnings only once.
            warnings.warn(
                f"{time.strftime('%H:%M:%S')}: {error}. The call of reward {name!r} is repeated in "
                f"{pause:g} s (retry {attempt + 1} of {retries})",
                RetryWarning,
                stacklevel=2,
            )
            time.sleep(pause)
    return reward(pixels, prompts)


def with_same_draws(reward, pixels: Tensor, prompts: list[str]) -> Tensor:
    """The scores of a reward in this process. A failed call restores torch's CPU generator.

    Rewards may draw from this generator, so a repeated call draws the same numbers, and a failure
    does not change those of the run.
    """
    state = torch.get_rng_state()
    try:
        return reward(pixels, prompts)
    except CallError:
        torch.set_rng_state(state)
        raise

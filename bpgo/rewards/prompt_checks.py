"""Checking prompts with the tokenizer of a reward, which needs no pixels.

A reward that cannot score every text has an attribute `check_prompts(prompts) -> None`, which
raises ValueError listing all prompts that it refuses. So a run can check all of its prompts before
it starts. A reward of your own may have one too, as a method of its class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


def prompt_check(reward: Callable) -> Callable[[list[str]], None]:
    """The `check_prompts` of a reward, or a function that accepts all prompts if it has none.

    It is found behind the functions that `load_reward` and `load_rewards` put around a reward, and
    in the process of a `Worker`.
    """
    while True:
        check = getattr(reward, "check_prompts", None)
        if check is not None:
            return check
        if not isinstance(reward, partial) or not reward.args:
            return _accept
        reward = reward.args[0]


def _accept(prompts: list[str]) -> None:
    """Every text can be scored."""

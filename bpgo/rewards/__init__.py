"""Rewards: `reward(pixels, prompts) -> (B,)` float32, higher is better.

pixels: float32 tensor in [0, 1], (B, 3, H, W) images or (B, F, 3, H, W) videos. prompts: a list of
B strings. Row i of the pixels was sampled for prompts[i]; rows are scored independently.

A reward of your own may ask for further columns of the prompt file by name, as lists with one entry
per prompt: `def reward(pixels, prompts, answer)`. It gets its own copy of the pixels, on its own
device (the one given to `load_reward`) and without gradients, and may change them in place. It may
return anything that torch.as_tensor turns into B real numbers; truth values are 0 and 1.

Rewards from `load_reward` and `load_rewards` check what they are given and what they return:
see `checked`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bpgo.files import cached_snapshot, check_weights, from_hub, resolve
from bpgo.memory import is_out_of_memory
from bpgo.prompts import columns_for, with_columns
from bpgo.registry import TABLES, arguments, find
from bpgo.rewards.checks import CallError, RewardError, check_samples, numbers
from bpgo.rewards.retry import retried, with_same_draws

__all__ = [
    "CallError",
    "Reward",
    "RewardError",
    "check_columns",
    "checked",
    "collect",
    "load_reward",
    "load_rewards",
    "published_weights",
    "reward_arguments",
    "submit",
    "total",
]
Reward = Callable[[Tensor, list[str]], Tensor]


# ---------------------------------------------------------------------------------------- loading


def load_reward(
    name: str,
    path_or_hub_id: str | Path | None = None,
    device: str = "cpu",
    scale: float = 1.0,
    **options,
) -> Reward:
    """A reward by name, with its weights from a folder, a shipped name or a hub id.

    name: one of the registry, or `module:attribute`. An attribute that is a function is the reward
    itself. An attribute that is a class is instantiated with `path`, `device` (if its signature has
    them) and the options, and moved to the device if it is a torch module. Both get pixels on this
    device, and the columns of the prompts that they ask for.
    path_or_hub_id: None loads the published weights. options: further arguments of the loader.
    The values are multiplied by `scale`.

    Raises ValueError for an unknown name (with the nearest known one), an unknown option or damaged
    weights, FileNotFoundError for missing weights and OSError for a hub id that cannot be fetched.
    The reward that is returned raises errors as `checked` does.
    """
    if name in TABLES["reward"]:
        score = _load_known(name, path_or_hub_id, device, options)
    else:
        score = _load_own(name, path_or_hub_id, device, options)
        score = partial(_on_device, with_columns(score, f"reward {name!r}"), device)
    return partial(checked, score, name, scale=scale)


def load_rewards(configs: list, device: str = "cpu") -> dict[str, Reward]:
    """The rewards of these `RewardConfig`s, by name. A second one of a name is called `name-2`.

    Failed calls are repeated as `reward.retries` says: see `bpgo.rewards.retry.retried`. Raises
    errors as `load_reward` does, and ValueError for an option that has the name of a setting.
    """
    from bpgo.rewards.worker import Worker

    rewards = {}
    for c in configs:
        given = dict(name=c.name, path_or_hub_id=c.path, device=c.device or device, scale=c.scale)
        for option in given.keys() & c.options.keys():
            raise ValueError(
                f"reward {c.name!r}: {option!r} cannot be one of its options, because load_reward "
                f"has an argument of that name: give the option another name"
            )
        if c.process:
            limits = dict(time_limit=c.time_limit, retries=c.retries)
            reward = Worker(**given, **limits, options=c.options)
        else:
            reward = load_reward(**given, **c.options)
            reward = partial(retried, partial(with_same_draws, reward), c.name, c.retries)
        rewards[_unused(c.name, rewards)] = reward
    return rewards


def check_columns(name: str, prompts: list[str]) -> None:
    """Raise ValueError, as `columns_for` does, if prompts lack a column that this reward asks for.

    The reward is not loaded.
    """
    if name in TABLES["reward"]:
        return
    found = find("reward", name)
    if isinstance(found, type):
        is_module = issubclass(found, torch.nn.Module)
        method = found.forward if is_module else found.__call__
        found = partial(method, None)  # in place of self
    columns_for(found, prompts, f"reward {name!r}")


def published_weights(name: str) -> str | None:
    """The hub id of a reward's published weights; None if there are none."""
    if name not in TABLES["reward"]:
        return None
    default = inspect.signature(find("reward", name)).parameters["path"].default
    return None if default is inspect.Parameter.empty else default


def reward_arguments(
    name: str, path: str | Path | None, options: dict, device: str = "cpu"
) -> dict:
    """The keyword arguments of a reward's loader or class. Nothing is loaded.

    Raises FileNotFoundError if it has no published weights and no path, and ValueError for a name
    or an option that does not exist, and for a path or options of a function.
    """
    found, what = find("reward", name), f"reward {name!r}"
    if name in TABLES["reward"]:
        if not path and published_weights(name) is None:
            raise FileNotFoundError(f"{what} has no published weights: set reward.path")
        return arguments(found, {}, options, what, passed=1)
    if isinstance(found, type):
        given = options if path is None else {"path": path} | options
        return arguments(found, {"device": device}, given, what)
    if path is not None or options:
        raise ValueError(
            f"{what} is a function, which takes no path and no options: set reward.path=null and "
            f"remove reward.options, or write a class that takes them"
        )
    return {}


def _load_known(name: str, path: str | Path | None, device: str, options: dict) -> Reward:
    options = reward_arguments(name, path, options, device)
    load, place = find("reward", name), resolve(path or published_weights(name))
    folder = place if isinstance(place, Path) else cached_snapshot(place)
    if folder is not None:
        check_weights(folder)
    with nullcontext() if isinstance(place, Path) else from_hub(place, f"reward {name!r}"):
        model, score = load(place, **options)
    model.to(device)
    return score


def _load_own(name: str, path: str | Path | None, device: str, options: dict) -> Reward:
    found = find("reward", name)
    given = reward_arguments(name, path, options, device)
    if not isinstance(found, type):
        return found
    score = found(**given)
    if isinstance(score, torch.nn.Module):
        score.to(device)
    return score


def _on_device(score: Reward, device: str, pixels: Tensor, prompts: list[str]) -> Tensor:
    return score(pixels.to(device), prompts)


def _unused(name: str, taken: dict) -> str:
    number = 1
    unused = name
    while unused in taken:
        number += 1
        unused = f"{name}-{number}"
    return unused


# ---------------------------------------------------------------------------------------- scoring


def submit(
    rewards: dict[str, Reward], pixels: Tensor, prompts: list[str]
) -> dict[str, Future[Tensor]]:
    """Score the same samples with all rewards, by name.

    Rewards in separate processes start at once and are not waited for. The others are complete
    when this returns, and their errors are raised here.
    """
    answers = {}
    for name, reward in rewards.items():
        if hasattr(reward, "submit"):
            answers[name] = reward.submit(pixels, prompts)
    for name, reward in rewards.items():
        if name not in answers:
            answers[name] = Future()
            answers[name].set_result(reward(pixels, prompts))
    return answers


def collect(answers: list[dict[str, Future[Tensor]]]) -> dict[str, Tensor]:
    """(B,) scores of all micro-batches by reward, once they are complete."""
    return {name: torch.cat([part[name].result() for part in answers]) for name in answers[0]}


def total(rewards: dict[str, Reward]) -> Reward:
    """The sum of several rewards, as one reward."""

    def summed(pixels: Tensor, prompts: list[str]) -> Tensor:
        scores = collect([submit(rewards, pixels, prompts)])
        return sum(scores[name] for name in rewards)

    return summed


@torch.no_grad()
def checked(
    reward: Reward, name: str, pixels: Tensor, prompts: list[str], scale: float = 1.0
) -> Tensor:
    """(B,) float32 values of a reward times `scale`, on the device of the pixels.

    The reward gets copies, so what it changes in place changes nothing else. Its copy of the pixels
    is float32 and has no gradients. What it does to torch's gradient mode and default dtype is
    undone.

    Raises RewardError, with the reward's name, for pixels and prompts as `check_samples` does, and
    for anything but B finite real numbers; its subclass CallError for whatever the reward raises;
    MemoryError if it runs out of memory.
    """
    check_samples(pixels, prompts, f"reward {name!r}")
    copies = pixels.detach().to(torch.float32, copy=True), list(prompts)
    dtype = torch.get_default_dtype()
    try:
        returned = reward(*copies)
    except RewardError:
        raise
    except Exception as error:  # from any user's code, so the message must name the reward
        if is_out_of_memory(error):
            raise MemoryError(
                f"reward {name!r} (set reward.device to move it, for example to cpu): {error}"
            ) from error
        raise CallError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    finally:
        torch.set_default_dtype(dtype)
    return _checked_values(returned, name, pixels, prompts, scale)


def _checked_values(
    returned: object, name: str, pixels: Tensor, prompts: list[str], scale: float
) -> Tensor:
    samples = f"{len(prompts)} {'videos' if pixels.ndim == 5 else 'images'}"
    try:
        values = numbers(returned)
    except TypeError as error:
        raise RewardError(
            f"reward {name!r} {error}; it must return ({len(prompts)},) numbers for {samples}"
        ) from error
    if values.shape != (len(prompts),):
        raise RewardError(
            f"reward {name!r} returned shape {tuple(values.shape)} for {samples}; "
            f"it must be ({len(prompts)},)"
        )
    if scale != 1:
        values = scale * values
    values = values.to(torch.float32).to(pixels.device)  # mps has no float64
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward {name!r} returned {values[bad[0]].item()} for prompt {prompts[bad[0]]!r} "
            f"({len(bad)} of {len(values)} values are not finite)"
        )
    return values

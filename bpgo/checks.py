"""Checks of a config that load no weights: training refuses what they find, preflight lists it.

Each check raises an error for one part of the config; `errors_of` collects those of all checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial

from bpgo.batching import check_divisible
from bpgo.config import Config, RewardConfig, named_rewards
from bpgo.devices import check_device
from bpgo.prompts import columns_for
from bpgo.registry import TABLES, arguments, find
from bpgo.rewards import check_columns, reward_arguments
from bpgo.rollout import draw_steps

OF_A_RUN = ("config", "policy", "reward", "prompts", "conditions")  # objects offered to a prior


def errors_of(checks: Iterable[Callable[[], object]]) -> list[Exception]:
    """What the checks raise, each error once."""
    errors = {}
    for check in checks:
        try:
            check()
        except Exception as error:  # importing or calling a user's code may raise anything
            errors.setdefault(describe(error), error)
    return list(errors.values())


def describe(error: Exception) -> str:
    """The message of an error, with its type if a message of ours does not say what is wrong."""
    if isinstance(error, (ValueError, OSError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def raise_all(errors: list[Exception]) -> None:
    """Raise the only error, or ValueError with the messages of several, one a line."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ValueError("\n".join(map(describe, errors)))


def reward_checks(config: Config, given: dict[str, object]) -> list[Callable[[], None]]:
    """Checks of the name and the options of every reward that was not given as an object."""
    checks = []
    for key, reward in named_rewards(config):
        if key.startswith("evaluation") or given["reward"] is None:
            checks.append(partial(reward_arguments, reward.name, reward.path, reward.options))
    return checks


def column_checks(
    rewards: list[RewardConfig], metrics: list[str], prompts: list[str]
) -> list[Callable[[], object]]:
    """Checks that prompts have the columns that your own rewards and metrics ask for by name.

    What cannot be found by its name is left out: it was given as an object, or `setting_errors`
    says that it does not exist.
    """
    names = [reward.name for reward in rewards if _is_found("reward", reward.name)]
    checks = [partial(check_columns, name, prompts) for name in names]
    for name in metrics:
        if name not in TABLES["metric"] and _is_found("metric", name):
            found = find("metric", name)
            checks.append(partial(columns_for, found, prompts, f"metric {name!r}"))
    return checks


def _is_found(kind: str, name: str) -> bool:
    return not errors_of([partial(find, kind, name)])


def device_checks(config: Config, given: dict[str, object]) -> list[Callable[[], None]]:
    """Checks that this machine has the device of every reward that was not given as an object."""
    checks = []
    for key, reward in named_rewards(config):
        if key.startswith("evaluation") or given["reward"] is None:
            checks.append(partial(check_device, reward.device, f"{key}.device"))
    return checks


def prior_arguments(config: Config, make: Callable, objects: dict[str, object]) -> dict:
    """The arguments of a prior: its settings, objects of the run (OF_A_RUN) and its options.

    Raises ValueError as `registry.arguments` does.
    """
    p = config.prior
    offered = {"momentum": p.momentum, "samples": p.samples, **objects}
    if p.value is not None:
        offered["value"] = p.value
    return arguments(make, offered, p.options, f"prior {p.name!r}")


def check_prior(config: Config) -> None:
    """Raise ValueError for a prior or an option of it that does not exist."""
    prior_arguments(config, find("prior", config.prior.name), dict.fromkeys(OF_A_RUN))


def check_division(config: Config, processes: int) -> None:
    """Raise ValueError if the samples cannot be divided as the settings ask."""
    check_divisible(config.groups, config.optimiser.updates, processes)


def check_offload(config: Config, processes: int) -> None:
    """Raise ValueError for offloading in several processes."""
    if config.generator.offload and processes > 1:
        raise ValueError(
            "generator.offload supports a single process only: shard the weights instead "
            "(reproduce/accelerate/fsdp2.yaml)"
        )


def check_steps(config: Config) -> None:
    """Raise ValueError for steps that cannot be drawn, and TypeError as `draw_steps` does."""
    draw_steps(config.sampling, random.Random())


def check_own_policy(config: Config) -> None:
    """Raise ValueError for a policy of your own, or an option of it, that does not exist."""
    policy = config.generator.policy
    if policy is not None and policy not in TABLES["generator"]:
        find("generator", policy)

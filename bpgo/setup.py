"""Create the parts of a run from its config, and check them before training starts."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from bpgo import checks
from bpgo.batching import small_micro_batch
from bpgo.conditioning import Conditions
from bpgo.config import Config, PriorConfig, RewardConfig, to_dict
from bpgo.distributed import check_launch, sharded
from bpgo.evaluation import Metric
from bpgo.generators import load_generator
from bpgo.generators.lora_files import find_lora, read_adapters
from bpgo.generators.offload import offloads
from bpgo.objective import Advantages, check_advantages
from bpgo.priors import Prior
from bpgo.prompt_files import read_prompts
from bpgo.prompts import images_of, with_columns
from bpgo.reference import cache_file, weights_fingerprint
from bpgo.registry import TABLES, arguments, find, name_of
from bpgo.rewards import Reward, load_rewards
from bpgo.rewards.prompt_checks import prompt_check
from bpgo.rollout import row_noise
from bpgo.trackers import check_tracker

POLICY_SETTINGS = (
    "height",
    "width",
    "frames",
    "guidance",
    "guidance_2",
    "cfg_gradient",
    "negative_prompt",
    "max_sequence_length",
)


def with_names(config: Config, policy, objective, prior, reward) -> Config:
    """The config with the names of objects that were passed in place of those that it names."""
    if policy is not None and name_of(policy) not in TABLES["generator"].values():
        named = dataclasses.replace(config.generator, policy=name_of(policy))
        config = dataclasses.replace(config, generator=named)
    if objective is not None:
        named = dataclasses.replace(config.objective, name=name_of(objective))
        config = dataclasses.replace(config, objective=named)
    if prior is not None:
        config = dataclasses.replace(config, prior=PriorConfig(name=name_of(prior)))
    if reward is not None:
        config = dataclasses.replace(config, reward=[RewardConfig(name=name_of(reward))])
    return config


def with_lora(config: Config) -> Config:
    """The config with the rank and alpha of the adapters that `generator.lora` names, if any.

    Raises ValueError if it states another rank or alpha, and errors as `find_lora` and
    `read_adapters` do.
    """
    g = config.generator
    if g.lora is None:
        return config
    adapters = read_adapters(find_lora(g.lora))
    stated = [("lora_rank", g.lora_rank or None), ("lora_alpha", g.lora_alpha)]
    found = {"lora_rank": adapters.rank, "lora_alpha": adapters.alpha}
    for name, value in stated:
        if value is not None and value != found[name]:
            raise ValueError(
                f"generator.{name}={value:g}, but it is {found[name]:g} in {adapters.file}: leave "
                f"generator.{name} out, or start from new adapters (generator.lora=null)"
            )
    return dataclasses.replace(config, generator=dataclasses.replace(g, **found))


def check_settings(config: Config, given: dict[str, object]) -> None:
    """Check what the config names and how it samples, before anything large is loaded.

    given: by kind, the object that was passed instead of what the config names, or None. Raises
    the errors of `setting_errors`, and ValueError as `check_launch` does. Warns about micro-batches
    that are much smaller than the settings allow.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    checks.raise_all(setting_errors(config, given, processes))
    check_launch()
    warning = small_micro_batch(config, processes)
    if warning:
        warnings.warn(warning, stacklevel=3)


def setting_errors(
    config: Config, given: dict[str, object], processes: int = 1, on_this_machine: bool = True
) -> list[Exception]:
    """What is wrong with the settings: names, options, numbers and devices that do not exist.

    Training refuses these errors, and `bpgo preflight` lists them. No weights are loaded.
    on_this_machine: whether the devices of this machine are checked.
    """
    every = [partial(find, "metric", name) for name in config.evaluation.metrics]
    every.append(partial(make_objective, config, given["objective"]))
    if given["prior"] is None:
        every.append(partial(checks.check_prior, config))
    every += checks.reward_checks(config, given)
    if given.get("generator") is None:
        every.append(partial(checks.check_own_policy, config))
    for check in (checks.check_steps, with_lora):
        every.append(partial(check, config))
    every.append(partial(check_tracker, config.tracker))
    for check in (checks.check_division, checks.check_offload):
        every.append(partial(check, config, processes))
    if on_this_machine:
        every += checks.device_checks(config, given)
    return checks.errors_of(every)


# ------------------------------------------------------------------------------------------ parts


def load_policy(config: Config, accelerator: Accelerator):
    """The policy of `config.generator` with its trained weights, on this process's device.

    Raises ValueError or FileNotFoundError.
    """
    checks.check_offload(config, accelerator.num_processes)
    return make_policy(config, str(accelerator.device), sharded(accelerator))


def make_policy(config: Config, device: str, shards: bool = False):
    """The policy of `config.generator` on a device, or on the CPU if it will be sharded.

    Raises ValueError or FileNotFoundError.
    """
    config = with_lora(config)
    g = config.generator
    given = {name: getattr(g, name) for name in POLICY_SETTINGS if getattr(g, name) is not None}
    parks = offloads(config, device)
    given |= {"dtype": g.dtype, "device": "cpu" if parks or shards else device}
    torch.manual_seed(config.seed)  # for a policy that draws its own weights
    policy = load_generator(g.path, g.policy, **given, **g.options)
    if shards:  # sharded modules move to the device block by block
        for name in ("vae", *policy.encoders):
            getattr(policy.pipeline, name).to(device)
    for module in policy.modules.values():
        if g.gradient_checkpointing:
            module.enable_gradient_checkpointing()
        if not g.lora_rank:
            module.float().requires_grad_(True)
    if g.lora_rank:
        torch.manual_seed(config.seed)  # the adapters' initial weights depend on the seed
        if g.lora is None:
            policy.add_lora(g.lora_rank, g.lora_alpha or 2 * g.lora_rank)
        else:
            policy.load_lora(g.lora)
    if g.vae_tiling:
        policy.pipeline.vae.enable_tiling()
    if g.compile:
        for module in policy.modules.values():
            module.compile()
    if parks:
        policy.offload(device)
    return policy


def make_optimiser(config: Config, modules: dict[str, torch.nn.Module]) -> torch.optim.AdamW:
    """AdamW over the trained weights, with one group of parameters per module."""
    o = config.optimiser
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad]}
        for module in modules.values()
    ]
    betas = (o.beta1, o.beta2)
    return torch.optim.AdamW(
        groups, o.learning_rate, betas, weight_decay=o.weight_decay, fused=True
    )


def make_conditions(
    config: Config, policy, prompts: list[str], accelerator: Accelerator
) -> Conditions:
    """The `Conditions` of a run, which encode each prompt once.

    With offloading or several processes, all prompts are encoded now and stored on disk, and the
    encoders leave the device for good. Processes share the work. The main process keeps the
    encoders on the CPU, to export them with the rest. Without encoders there is nothing to free,
    and each process encodes what it needs.
    """
    several = accelerator.num_processes > 1
    if not (offloads(config, policy.device) or several) or not policy.encoders:
        return Conditions(policy)
    given = to_dict(config)["generator"]
    encoders = {name: getattr(policy.pipeline, name) for name in policy.encoders}
    identity = [given[name] for name in ("path", "dtype", "options", *POLICY_SETTINGS)]
    identity += [name_of(policy), weights_fingerprint(encoders)]
    folder = cache_file("conditions", identity)
    conditions = Conditions(policy, folder)
    conditions.prepare(prompts[accelerator.process_index :: accelerator.num_processes])
    accelerator.wait_for_everyone()
    conditions.prepare(prompts)  # those that another machine has encoded onto its own disk
    if several:
        for encoder in encoders.values():
            encoder.to("cpu" if accelerator.is_main_process else "meta")
    return conditions


def make_objective(
    config: Config, function: Callable[..., Advantages] | None = None
) -> Callable[[Tensor, Tensor | float, float], Advantages]:
    """The objective as a function of (rewards, prior, k), with all other hyperparameters fixed.

    function: instead of the one that `config.objective.name` names. A hyperparameter of the
    function that is also a setting (alpha, lam, beta) gets that value; objective.options gives the
    others. The objective is tried on random rewards. Raises ValueError or TypeError.
    """
    o = config.objective
    function = function or find("objective", o.name)
    offered = {"alpha": o.alpha, "lam": o.lam, "beta": o.beta, "k": 1.0}
    fixed = arguments(function, offered, o.options, f"objective {o.name!r}", passed=2)

    def objective(rewards: Tensor, prior: Tensor | float, k: float) -> Advantages:
        hyperparameters = fixed | {"k": k} if "k" in fixed else fixed
        return function(rewards, prior, **hyperparameters)

    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(config.groups, config.group_size, generator=generator)
    check_advantages(objective(rewards, 0.5, 1.0), rewards)
    return objective


def make_prior(
    config: Config, policy, reward: Reward, prompts: list[str], conditions: Callable | None = None
) -> Prior:
    """The prior that `config.prior` names. policy: must still be the starting model.

    The prior is called with those of its parameters that are settings (value, momentum, samples) or
    objects of the run (config, policy, reward, prompts, conditions), and with prior.options.
    """
    p = config.prior
    make = find("prior", p.name)
    objects = {"config": config, "policy": policy, "reward": reward}
    objects |= {"prompts": prompts, "conditions": conditions}
    prior = make(**checks.prior_arguments(config, make, objects))
    if not isinstance(prior, Prior):
        raise TypeError(f"prior {p.name!r} is a {type(prior).__name__}: subclass bpgo.priors.Prior")
    return prior


def make_metrics(
    config: Config, reward: Reward, metrics: dict[str, Metric], device: str
) -> dict[str, Metric]:
    """What an evaluation computes: the reward, the held-out rewards, and all further metrics.

    A single held-out reward is called `held_out`; several have their own names. metrics: further
    ones, in addition to `evaluation.metrics`.
    """
    held_out = load_rewards(config.evaluation.held_out, device)
    if len(held_out) == 1:
        held_out = {"held_out": next(iter(held_out.values()))}
    own = {name: find("metric", name) for name in config.evaluation.metrics} | metrics
    own = {name: with_columns(metric, f"metric {name!r}") for name, metric in own.items()}
    return {"reward": reward} | held_out | own


# ----------------------------------------------------------------------------------------- checks


def load_prompts(config: Config, prompts: list[str] | None = None) -> tuple[list[str], list[str]]:
    """The training prompts, or those given in their place, and the evaluation prompts.

    Raises ValueError if there are fewer than `groups`, and errors as `read_prompts` does.
    """
    prompts = read_prompts(config.prompts) if prompts is None else list(prompts)
    if len(prompts) < config.groups:
        raise ValueError(
            f"groups={config.groups} prompts per iteration, but there are only "
            f"{len(prompts)} prompts: lower groups, or add prompts"
        )
    path = config.evaluation.prompts
    return prompts, read_prompts(path) if path else prompts


def check_all_prompts(
    config: Config,
    policy,
    rewards: dict[str, Reward],
    metrics: dict[str, Metric],
    prompts: list[str],
    evaluation_prompts: list[str],
) -> None:
    """Check every prompt with the policy and with every reward and metric that will read it.

    rewards, metrics: by name. Raises ValueError that lists all prompts that cannot be used.
    """
    readers = [("prompts", prompts, rewards)]
    readers.append(("evaluation.prompts", evaluation_prompts, rewards | metrics))
    if evaluation_prompts is prompts:
        readers = [("prompts", prompts, rewards | metrics)]
    every = all_column_checks(config, prompts, evaluation_prompts)
    for key, own, of in readers:
        every.append(partial(check_prompts, policy, own, key))
        every += [partial(_check_with_reward, of[name], name, own, key) for name in of]
    checks.raise_all(checks.errors_of(every))


def all_column_checks(
    config: Config, prompts: list[str], evaluation_prompts: list[str]
) -> list[Callable[[], object]]:
    """Checks of the columns that rewards read of all prompts, and held-out ones in evaluation."""
    e = config.evaluation
    return [
        *checks.column_checks(config.reward, [], prompts),
        *checks.column_checks([*config.reward, *e.held_out], e.metrics, evaluation_prompts),
    ]


def _check_with_reward(reward: Reward, name: str, prompts: list[str], key: str) -> None:
    try:
        prompt_check(reward)(prompts)
    except ValueError as error:
        raise ValueError(f"{key}: reward {name!r}: {error}") from error


def check_prompts(policy, prompts: list[str], name: str) -> None:
    """Raise ValueError, starting with `name`, for prompts or images that the policy refuses."""
    try:
        images = images_of(prompts)
        if images is None:
            policy.check(prompts)
        else:
            policy.check(prompts, images)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def try_metrics(policy, prompt: str, metrics: dict[str, Metric]) -> list[str]:
    """Score decoded noise with every metric, so that a broken one fails before training.

    Returns the names under which evaluations log them; a metric may log several. Raises ValueError
    for one that does not return a tensor with one value per sample.
    """
    logged = []
    noise = row_noise([0], policy.latent_shape(), 1, policy.device)[0]
    pixels = policy.decode(noise)
    for name, metric in metrics.items():
        values = metric(pixels, [prompt])
        by_name = values if isinstance(values, dict) else {name: values}
        for part, scores in by_name.items():
            found = scores.shape if isinstance(scores, Tensor) else type(scores).__name__
            if found != (1,):
                raise ValueError(
                    f"metric {part!r} returned {found} for one sample; it must be a tensor (1,)"
                )
            logged.append(part)
    return logged


def check_keep_best(config: Config, logged: list[str]) -> None:
    """Raise ValueError if keep_best is not one of the metrics that evaluations log."""
    if config.keep_best is not None and config.keep_best not in logged:
        raise ValueError(
            f"keep_best={config.keep_best} is not a metric of this run's evaluations: "
            f"choose one of {', '.join(logged)}"
        )

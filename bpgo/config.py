"""Every setting of a run: dataclasses that are read from a YAML preset and `key=value` overrides.

The message for an unknown key suggests the nearest known one. That for a wrong value says what is
allowed.
`bpgo settings` lists every setting with its default.

This module is longer than others because it defines all settings.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from bpgo.batching import check_divisible
from bpgo.devices import check_device_name
from bpgo.files import expand
from bpgo.other_names import suggestion
from bpgo.overrides import ConfigError, apply_overrides, names_only
from bpgo.registry import TABLES, check_name
from bpgo.settings import list_settings
from bpgo.text_files import ParseError, Word, line_of, parse_yaml, read_text

PRESETS = Path(__file__).parent / "presets"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=2**16)]  # of something that takes memory
settings = dataclass(
    config=ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=()),
    kw_only=True,
)


def _names(kind: str) -> type[str]:
    """The names of one table of the registry, and `module:attribute`."""
    allowed = Field(json_schema_extra={"enum": [*TABLES[kind], "module:attribute"]})
    return Annotated[str, AfterValidator(partial(check_name, kind)), allowed]


def _as_list(value):
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _check_words(value):
    """Refuse yes, no, on and off where it is not known whether a text or a truth value is meant."""
    if isinstance(value, Word):
        raise ValueError(f"{value} is a text or true or false: write true, false or '\"{value}\"'")
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list, Word)):
            _check_words(inner)
    return value


Options = Annotated[dict[str, Any], AfterValidator(_check_words)]
Device = Annotated[str, BeforeValidator(check_device_name)]


@settings
class GeneratorConfig:
    path: str
    """Folder, shipped name or hub id of a diffusers pipeline."""
    policy: _names("generator") | None = None
    """Policy class, as module:attribute. null: determined by the pipeline's class."""
    options: Options = field(default_factory=dict)
    """Further arguments for your own policy class."""
    height: Size | None = None
    """Height in pixels. null: the size that the pipeline was trained at."""
    width: Size | None = None
    """Width in pixels. null: the size that the pipeline was trained at."""
    frames: Size | None = None
    """Number of video frames, 4k + 1. null: the pipeline's default."""
    guidance: NonNegative | None = None
    """Guidance scale. null: the pipeline's default (FLUX 3.5, Wan 5). Wan at 1 or less runs
    without guidance, at half the cost."""
    guidance_2: NonNegative | None = None
    """Guidance scale of Wan's low-noise expert. null: the same as guidance."""
    cfg_gradient: Literal["both", "conditional"] | None = None
    """Wan: which part of classifier-free guidance carries gradients. null: both."""
    negative_prompt: str | None = None
    """Wan: the prompt of the unconditional part. null: the empty prompt."""
    max_sequence_length: Size | None = None
    """Number of text tokens. null: the tokenizer's limit."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen weights. Weights that are trained in full are always kept in
    float32."""
    lora: str | None = None
    """Folder, file or hub id of LoRA adapters to start from, in diffusers' format. Their rank and
    alpha are read from the file. null: new adapters."""
    lora_rank: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Rank of the LoRA adapters. 0 trains all weights of the transformer."""
    lora_alpha: Positive | None = None
    """Scale of the LoRA adapters. null: twice the rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""
    vae_tiling: bool = False
    """Decode and encode in tiles: less memory; pixels differ slightly where tiles meet."""
    offload: bool = False
    """Keep on the CPU whatever is not in use: text encoders, autoencoder, the other expert,
    trajectories."""
    compile: bool = False
    """Compile the transformer with torch.compile. The first importance ratio is then 1 only up to
    rounding."""


@settings
class RewardConfig:
    name: _names("reward")
    """Reward model, or module:attribute for your own."""
    path: str | None = None
    """Folder, shipped name or hub id of its weights. null: the published weights."""
    options: Options = field(default_factory=dict)
    """Further arguments for the function or class that loads the reward."""
    scale: Finite = 1.0
    """Factor that its values are multiplied by: its weight in a sum of rewards."""
    device: Device | None = None
    """Device that it runs on, such as cuda:1. null: the policy's device."""
    process: bool = False
    """Run it in a separate process, which scores while the next micro-batch is sampled."""
    time_limit: Positive = 600.0
    """Time limit of that process for one micro-batch, in seconds. For loading it is at least
    600."""
    retries: Natural = 0
    """Number of times a failed call is repeated, after a server's error or the end of the reward's
    process, before the run ends."""


Rewards = Annotated[list[RewardConfig], BeforeValidator(_as_list)]  # a preset may give just one


@settings
class SamplingConfig:
    steps: Annotated[int, Field(ge=2, le=2**16)] = 16
    """Denoising steps of a rollout."""
    shift: Positive = 3.0
    """Shift of the sigma grid. 1 is an even grid."""
    schedule: _names("schedule") = "dance-grpo"
    """Noise schedule: how much noise each step adds."""
    noise_level: Positive = 0.3
    """Level of the schedule: a of Flow-GRPO and CPS, eta of DanceGRPO."""
    trained_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Fraction of the noisy steps, drawn at random, that each iteration trains."""
    window: Count | None = None
    """If given, only this many consecutive steps carry noise and are trained; the others are ODE
    steps."""
    window_range: tuple[Natural, Count] | None = None
    """First step that the window may contain, and the step after the last one. null: every step
    that can carry noise."""
    shared_noise: bool = False
    """Start all samples of a group from the same initial noise."""
    micro_batch: Count | None = None
    """Largest number of samples in one model call. null: all samples of an update. Gradients are
    accumulated over the micro-batches of an update (gradient accumulation), so this setting changes
    the memory and not the number of samples per optimiser step."""

    @model_validator(mode="after")
    def _range_needs_window(self):
        if self.window_range is not None and self.window is None:
            raise ValueError(
                "window_range limits the position of the window: set sampling.window too"
            )
        return self


@settings
class ObjectiveConfig:
    name: _names("objective") = "bpgo"
    """Objective. teleboost is the variant that the authors' institute published."""
    alpha: Fraction = 0.5
    """Strength of RAS (equation 2)."""
    k: NonNegative | None = None
    """Sharpness of RAS per unit of reward. Set either this or kappa."""
    kappa: NonNegative | None = None
    """Sharpness of RAS per standard deviation of the iteration's rewards. 1 if neither k nor kappa
    is set."""
    lam: NonNegative = 1.0
    """lambda of CRT (equation 4), per unit of reward."""
    beta: NonNegative = 0.5
    """Weight of the CRT loss (equation 5)."""
    kl: NonNegative = 0.0
    """Weight of the KL divergence of each trained step from that of the starting model: the beta of
    Flow-GRPO (see bpgo.starting_model). 0: none."""
    clip_range: Positive = 1e-4
    """Clip range of the importance ratio, which differs from 1 by only 1e-5 to 1e-2 here."""
    options: Options = field(default_factory=dict)
    """Further hyperparameters for your own objective."""

    @model_validator(mode="after")
    def _one_sharpness(self):
        if self.k is not None and self.kappa is not None:
            raise ValueError(
                "set either k (per unit of reward) or kappa (per standard deviation), not both"
            )
        return self


@settings
class PriorConfig:
    name: _names("prior") = "running_mean"
    """Source of R_prior. sft: the starting model's mean reward; first_frame: the reward of the
    conditioning image."""
    value: Finite | None = None
    """Value of the constant prior, in units of the reward."""
    momentum: Decay = 0.9
    """Weight of the past in running_mean and empirical_bayes."""
    samples: Size = 4
    """Samples per prompt from which sft and sft_per_prompt are computed."""
    options: Options = field(default_factory=dict)
    """Further arguments for your own prior."""

    @model_validator(mode="after")
    def _value_of_constant(self):
        if (self.name == "constant") != (self.value is not None):
            raise ValueError("prior.value must be set for prior.name=constant, and only then")
        return self


@settings
class OptimiserConfig:
    learning_rate: Positive = 1e-5
    """Learning rate of AdamW, after the warm-up and before any decay."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt"] = (
        "constant"
    )
    """Learning-rate schedule, by its name in transformers' get_scheduler. linear and cosine decay
    to 0 at the end of the run, so they do not allow another number of iterations on resume."""
    warmup: Natural = 0
    """Optimiser steps over which the learning rate rises from 0; an iteration makes updates *
    epochs of them. Every schedule but constant has a warm-up."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    beta1: Fraction = 0.9
    """First decay rate of AdamW."""
    beta2: Fraction = 0.999
    """Second decay rate of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    updates: Count = 1
    """Optimiser steps per iteration, each on its share of the prompts and with gradients that are
    accumulated over its micro-batches. The first is exactly on-policy."""
    epochs: Count = 1
    """Passes over the samples of an iteration."""
    ema_decay: Decay = 0.0
    """Decay per iteration of the averaged weights, which are evaluated and exported. 0: no
    averaging."""

    @model_validator(mode="after")
    def _warmup_needs_schedule(self):
        if self.warmup and self.schedule == "constant":
            raise ValueError(
                f"warmup={self.warmup} has no effect on a constant learning rate: "
                f"set optimiser.schedule=constant_with_warmup too"
            )
        return self


@settings
class EvaluationConfig:
    prompts: str | None = None
    """Evaluation prompts, in the same form as `prompts`. null: the training prompts."""
    every: Count | None = None
    """Iterations between evaluations. null: only before the first and after the last."""
    samples: Size = 4
    """Samples per prompt, from noise that depends only on the prompt."""
    steps: Size = 16
    """Number of ODE steps."""
    held_out: Rewards = field(default_factory=list)
    """One or several rewards that the policy is not trained on."""
    metrics: Annotated[list[_names("metric")], BeforeValidator(_as_list)] = field(
        default_factory=list
    )
    """Further metrics: the oracle of an embedded world, or module:attribute for your own."""
    pictures: Natural = 4
    """Number of prompts, from the first on, whose samples are saved as a picture in samples/ at
    each evaluation. 0: none."""


@settings
class Config:
    """All settings of a run. `read_config` makes one from a preset."""

    generator: GeneratorConfig
    reward: Annotated[Rewards, Field(min_length=1)]
    """One reward, or a list of rewards. Their scaled values are added."""
    prompts: str
    """File (.txt, or a .csv, .tsv, .json, .jsonl or .parquet with the columns `prompt` and, for
    image-to-video, `image`) or dataset: see bpgo.prompt_files.read_prompts."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    iterations: Count = 100
    """Number of iterations. Each is a rollout followed by its updates."""
    groups: Count = 8
    """Prompts per iteration, N, over all processes."""
    group_size: Annotated[int, Field(ge=2, le=2**16)] = 12
    """Samples per prompt, G."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed for drawing prompts, trained steps and noise."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast precision of the transformer."""
    checkpoint_every: Count = 25
    """Iterations between checkpoints."""
    keep_checkpoints: Count = 2
    """Number of checkpoints that are kept, the newest ones."""
    keep_best: str | None = None
    """Evaluation metric, such as reward or held_out. The checkpoint with its highest value is kept
    too. It is judged by the evaluation at its own iteration, so let evaluation.every be a multiple
    of checkpoint_every."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Experiment tracker, in addition to metrics.jsonl, which is always written."""
    guards: bool = True
    """Warn about stagnation, concentration on single samples and reward hacking (bpgo.guards).
    Changes nothing else."""

    @model_validator(mode="after")
    def _groups_divide(self):
        check_divisible(self.groups, self.optimiser.updates)
        return self

    @model_validator(mode="after")
    def _best_needs_evaluations(self):
        if self.keep_best is not None and self.evaluation.every is None:
            raise ValueError(
                f"keep_best={self.keep_best} compares evaluations: set evaluation.every to a "
                f"multiple of checkpoint_every={self.checkpoint_every}"
            )
        return self

    @model_validator(mode="after")
    def _one_source_of_sharpness(self):
        given = [name for name in ("k", "kappa") if getattr(self.objective, name) is not None]
        if self.prior.name == "empirical_bayes" and given:
            raise ValueError(
                f"prior.name=empirical_bayes determines the sharpness of RAS itself: "
                f"set objective.{given[0]}=null"
            )
        return self


# ------------------------------------------------------------------------------------ reading


def read_config(preset: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The validated settings of a preset with `key.path=value` overrides.

    preset: a YAML file, or the name of a shipped preset. The values of overrides are YAML:
    `objective.alpha=0.3`, `evaluation.held_out=null`. An empty value is null. Entries of a list are
    counted from 0: `reward.1.scale=0.5`. Raises ConfigError or FileNotFoundError.
    """
    file = find_preset(preset)
    try:
        text = read_text(file)
        tree = parse_yaml(text)
    except ParseError as error:
        raise ConfigError(f"{file}, {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(tree, dict):
        what = "is empty" if tree is None else "has no settings"
        raise ConfigError(f"{file} {what}: write lines of `key: value`, from line 1 on")
    overridden = [names_only(keys) for keys in apply_overrides(tree, overrides)]

    def place(keys: tuple) -> str:
        names = names_only(keys)
        changed = any(k[: len(names)] == names or names[: len(k)] == k for k in overridden)
        line = None if changed else line_of(text, keys)
        return "" if line is None else f"{file}, line {line}: "

    return _build(tree, place)


def find_preset(preset: str | Path) -> Path:
    """The YAML file of a preset. Raises FileNotFoundError with the shipped names."""
    for file in (expand(preset), PRESETS / f"{preset}.yaml"):
        if file.is_file():
            return file
    names = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
    raise FileNotFoundError(f"no preset {str(preset)!r}: give a YAML file or one of {names}")


def list_presets() -> dict[str, str]:
    """Name and first comment line of every shipped preset."""
    first_lines = {
        file.stem: read_text(file).partition("\n")[0] for file in sorted(PRESETS.glob("*.yaml"))
    }
    return {name: line.lstrip("# ").strip() for name, line in first_lines.items()}


def build_config(tree: dict) -> Config:
    """The config of a nested dict. Raises ConfigError, which lists every error found."""
    return _build(tree, lambda keys: "")


def _build(tree: dict, place: Callable[[tuple], str]) -> Config:
    """The config. place: where a setting is given, as the start of a message."""
    try:
        return TypeAdapter(Config).validate_python(_with_new_names(tree))
    except ValidationError as error:
        lines = [f"{place(e['loc'])}{_explain(e, tree)}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _with_new_names(tree: dict) -> dict:
    """The settings, with names of earlier versions replaced. Warns about each of them."""
    tree = dict(tree)
    objective, prior = tree.get("objective"), tree.get("prior")
    if isinstance(objective, dict) and objective.get("name") == "bgpo":
        warnings.warn("objective.name=bgpo is now called teleboost", stacklevel=3)
        tree["objective"] = objective | {"name": "teleboost"}
    if isinstance(prior, dict) and "kind" in prior and "name" not in prior:
        warnings.warn("prior.kind is now called prior.name", stacklevel=3)
        tree["prior"] = {"name" if key == "kind" else key: v for key, v in prior.items()}
    return tree


def _explain(error: dict, tree: dict) -> str:
    """A pydantic error as one line of plain English."""
    names, key = ".".join(names_only(error["loc"])), _key(error["loc"], tree)
    known = {setting.name: setting for setting in list_settings(Config)}
    if error["type"] == "unexpected_keyword_argument":
        if "." in error["loc"][-1]:
            group, _, leaf = error["loc"][-1].rpartition(".")
            return f"unknown setting {key!r}: in a file, write `{leaf}:` below `{group}:`"
        groups = {name.rpartition(".")[0] for name in known} - {""}
        near = get_close_matches(names, [*known, *groups], 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "`bpgo settings` lists them all"
        hint = suggestion(names, known) or hint
        return f"unknown setting {key!r}: {hint}"
    if error["type"] == "missing":
        return f"{key} must be given"
    if error["type"] == "value_error":
        return f"{key or 'settings'}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "dataclass_type":
        return f"{key} = {error['input']!r}: write its settings below it, one `name: value` a line"
    allowed = f" ({known[names].allowed})" if names in known else ""
    return f"{key} = {error['input']!r}: {error['msg']}{allowed}"


def _key(location: tuple, tree: dict) -> str:
    """The name of a setting. Entries of a list of one have no number."""
    parts, branch = [], tree
    for part in location:
        if isinstance(part, str) or (isinstance(branch, list) and len(branch) > 1):
            parts.append(str(part))
        if isinstance(branch, dict):
            branch = branch.get(part)
        elif isinstance(branch, list) and isinstance(part, int):
            branch = branch[part]
    return ".".join(parts)


# ----------------------------------------------------------------------------------- comparing


def named_rewards(config: Config) -> Iterator[tuple[str, RewardConfig]]:
    """The setting and the config of every reward, such as `evaluation.held_out.1`."""
    held_out = config.evaluation.held_out
    for key, rewards in (("reward", config.reward), ("evaluation.held_out", held_out)):
        for i, reward in enumerate(rewards):
            yield (key if len(rewards) == 1 else f"{key}.{i}"), reward


def to_dict(config: Config) -> dict:
    """The config as a nested dict of plain values, which `build_config` accepts."""
    return asdict(config)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """`key: old -> new` for every setting that differs between two nested dicts."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines

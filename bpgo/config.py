"""Every setting of a run: one tree of dataclasses, read from a YAML preset with `key=value` overrides.

A key that does not exist is refused with the nearest that does; a value of the wrong type or out of range is refused with its range.
`python -m bpgo settings` lists all of this with defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

PRESETS = Path(__file__).parent / "presets"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
settings = dataclass(
    config=ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=()),
    kw_only=True,
)


class ConfigError(ValueError):
    """A setting that does not exist or cannot have this value."""


@settings
class Generator:
    path: str
    """Folder, shipped name or hub id of a diffusers pipeline."""
    height: Count | None = None
    """Pixels; null: what the pipeline was trained at."""
    width: Count | None = None
    """Pixels; null: what the pipeline was trained at."""
    frames: Count | None = None
    """Of a video, 4k + 1; null: what the pipeline makes."""
    guidance: NonNegative | None = None
    """Guidance scale; null: the pipeline's (FLUX 3.5, Wan 5). For Wan, 1 or less is none, at half the cost."""
    guidance_2: NonNegative | None = None
    """Guidance scale of Wan's low-noise expert; null: the same."""
    cfg_gradient: Literal["both", "conditional"] | None = None
    """For Wan, which half of the guidance carries gradients; null: both."""
    negative_prompt: str | None = None
    """For Wan, what the unconditional half is given; null: nothing."""
    max_sequence_length: Count | None = None
    """Text tokens; null: what the tokenizer says."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the frozen weights. Full-weight training keeps its weights in float32 whatever this says."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the trained adapters; 0 trains all weights of the transformer."""
    lora_alpha: Positive | None = None
    """Scale of the adapters; null: twice the rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    vae_tiling: bool = False
    """Decode and encode in tiles: less memory, slightly other pixels where tiles meet."""
    offload: bool = False
    """Keep on the CPU what is not at work: text encoders, autoencoder, the other expert, the rollout. Prompts are encoded once, to disk."""
    compile: bool = False
    """torch.compile the transformer: the first iterations wait for it, and the first ratio is 1 up to rounding only."""


@settings
class Reward:
    name: str
    """One of `bpgo.rewards.REWARDS`: clip, pickscore, hpsv2, image_reward, video_clip_xl, video_align, ..."""
    path: str | None = None
    """Folder, shipped name or hub id of its weights; null: the published ones."""
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """What its values are multiplied by: its weight in a sum, or the scale on which a paper reports it."""
    device: str | None = None
    """Where it runs, such as cuda:1; null: where the policy does."""
    process: bool = False
    """Run it in a process of its own, which scores while the next micro-batch is sampled."""
    time_limit: Positive = 600.0
    """Seconds that this process may take over one micro-batch."""


def _listed(value):
    return [] if value is None else value if isinstance(value, list) else [value]


Rewards = Annotated[
    list[Reward], BeforeValidator(_listed)
]  # in a preset also a single one, or null for none


@settings
class Sampling:
    steps: Annotated[int, Field(ge=2)] = 16
    """Denoising steps of a rollout."""
    shift: Positive = 3.0
    """Shift of the sigma grid, applied once; 1 is an even grid."""
    schedule: Literal["flow-grpo", "dance-grpo", "cps"] = "dance-grpo"
    """How much noise a step adds."""
    noise_level: Positive = 0.3
    """a of Flow-GRPO and CPS, eta of DanceGRPO."""
    trained_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the noisy steps that each iteration trains, drawn at random."""
    window: Count | None = None
    """Instead: this many consecutive steps carry noise and are trained, all others are plain ODE steps."""
    window_range: tuple[Annotated[int, Field(ge=0)], Count] | None = None
    """First step that the window may hold, and the one after the last; null: all that can carry noise."""
    shared_noise: bool = False
    """Whether a group starts from one initial noise."""
    micro_batch: Count | None = None
    """Rows in one model call; null: all rows of an update."""

    @model_validator(mode="after")
    def _range_is_of_a_window(self):
        if self.window_range is not None and self.window is None:
            raise ValueError(
                "window_range says where sampling.window may lie: give sampling.window too"
            )
        return self


@settings
class Objective:
    name: Literal["grpo", "ras", "crt", "bpgo", "bgpo"] = "bpgo"
    """bgpo is the institute's published variant."""
    alpha: Share = 0.5
    """Strength of RAS, equation 2."""
    k: NonNegative | None = None
    """Sharpness of RAS per unit of reward. Give this or kappa."""
    kappa: NonNegative | None = None
    """Sharpness of RAS per standard deviation of the iteration's rewards. Give this or k; 1 if neither is given."""
    lam: NonNegative = 1.0
    """lambda of CRT, equation 4, per unit of reward."""
    beta: NonNegative = 0.5
    """Weight of the CRT loss, equation 5."""
    clip_range: Positive = 1e-4
    """Of the importance ratio, which here differs from 1 by 1e-5 to 1e-2."""

    @model_validator(mode="after")
    def _one_sharpness(self):
        if self.k is not None and self.kappa is not None:
            raise ValueError(
                "give k (per unit of reward) or kappa (per standard deviation), not both"
            )
        return self


@settings
class Prior:
    kind: Literal[
        "running_mean", "constant", "sft", "sft_per_prompt", "first_frame", "empirical_bayes"
    ] = "running_mean"
    """sft: the starting model's mean reward; first_frame: the still picture's; empirical_bayes: learnt from the groups, k of RAS too."""
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The constant, in units of the reward."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in the running mean and in the moments of empirical_bayes."""
    samples: Count = 4
    """Samples a prompt from which SFT rewards are computed."""

    @model_validator(mode="after")
    def _has_value(self):
        if (self.kind == "constant") != (self.value is not None):
            raise ValueError("prior.value goes with prior.kind=constant, and only with it")
        return self


@settings
class Optimiser:
    learning_rate: Positive = 1e-5
    """Of AdamW."""
    weight_decay: NonNegative = 0.0
    """Of AdamW."""
    beta1: Share = 0.9
    """Of AdamW."""
    beta2: Share = 0.999
    """Of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    updates: Count = 1
    """Optimiser steps an iteration, each on its share of the prompts; the first is exactly on-policy."""
    epochs: Count = 1
    """Passes over an iteration's samples."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay an iteration of the averaged weights that are evaluated and saved; 0: none."""


@settings
class Evaluation:
    prompts: str | None = None
    """Like `prompts`; null: the training prompts."""
    every: Count | None = None
    """Iterations between evaluations; null: before the first and after the last only."""
    samples: Count = 4
    """A prompt, from noise hashed from the prompt."""
    steps: Count = 16
    """ODE steps."""
    held_out: Rewards = field(default_factory=list)
    """A reward that the policy is not trained on, or a list of several."""
    oracle: bool | Literal["digits"] = False
    """Also measure with what knows the truth: true, the oracle of the shapes world; digits, the judge of handwriting."""


@settings
class Config:
    generator: Generator
    reward: Annotated[Rewards, Field(min_length=1)]
    """One, or a list of several: their scaled values are added."""
    prompts: str
    """Text file, JSON lines (`prompt`, for image-to-video `image`) or dataset (`owner/name:split:column`): see prompts.read_prompts."""
    sampling: Sampling = field(default_factory=Sampling)
    objective: Objective = field(default_factory=Objective)
    prior: Prior = field(default_factory=Prior)
    optimiser: Optimiser = field(default_factory=Optimiser)
    evaluation: Evaluation = field(default_factory=Evaluation)
    iterations: Count = 100
    """Rollouts followed by updates."""
    groups: Count = 8
    """Prompts an iteration, over all processes."""
    group_size: Annotated[int, Field(ge=2)] = 12
    """Samples a prompt, G."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of prompts, steps and noise."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast of the transformer."""
    checkpoint_every: Count = 25
    """Iterations between checkpoints."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Beside metrics.jsonl, which is always written."""
    guards: bool = True
    """Warn when a run stagnates, follows single samples or games its reward: see bpgo.guards. Nothing else changes."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value):
        return "no" if value is False else value  # what YAML makes of it

    @model_validator(mode="after")
    def _updates_fit(self):
        if self.groups % self.optimiser.updates:
            raise ValueError(
                f"groups={self.groups} cannot be split over optimiser.updates={self.optimiser.updates}"
            )
        return self

    @model_validator(mode="after")
    def _one_source_of_sharpness(self):
        given = [name for name in ("k", "kappa") if getattr(self.objective, name) is not None]
        if self.prior.kind == "empirical_bayes" and given:
            raise ValueError(
                f"prior.kind=empirical_bayes works out the sharpness of RAS itself: set objective.{given[0]}=null"
            )
        return self


def read_config(preset: str | Path, overrides: Iterable[str] = ()) -> Config:
    """A preset (a YAML file, or the name of one in bpgo/presets) with `key.path=value` overrides, validated.

    Values are YAML: `objective.alpha=0.3`, `evaluation.held_out=null`. Raises ConfigError, FileNotFoundError.
    """
    place = next((p for p in (Path(preset), PRESETS / f"{preset}.yaml") if p.is_file()), None)
    if place is None:
        raise FileNotFoundError(
            f"no preset {str(preset)!r}: give a YAML file or one of {', '.join(sorted(p.stem for p in PRESETS.glob('*.yaml')))}"
        )
    tree = _parse(place.read_text(), str(place)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{place} holds no settings: write lines of `key: value`")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is not an override: write key=value")
        *parents, leaf = key.strip().split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if isinstance(branch, list) and len(branch) == 1:
                branch = branch[0]
            if not isinstance(branch, dict):
                raise ConfigError(f"{key!r}: {parent} is {branch!r}, it has no settings below it")
        branch[leaf] = _parse(value, override)
    return build_config(tree)


def _parse(text: str, place: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} is not YAML: {error}") from None


def build_config(tree: dict) -> Config:
    """Config of a nested dict. Raises ConfigError with every fault found, unknown keys with the nearest known one."""
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None


def _explain(error: dict) -> str:
    key = ".".join(part for part in error["loc"] if isinstance(part, str))
    if error["type"] == "unexpected_keyword_argument":
        known = flatten(Config)
        near = get_close_matches(
            key, [*known, *{name.rpartition(".")[0] for name in known}], 1, 0.5
        )
        return f"unknown setting {key!r}: " + (
            f"did you mean {near[0]!r}?" if near else "`python -m bpgo settings` lists all"
        )
    if error["type"] == "missing":
        return f"{key} must be given"
    if error["type"] == "value_error":
        return f"{key or 'settings'}: {error['msg'].removeprefix('Value error, ')}"
    return f"{key} = {error['input']!r}: {error['msg']}"


def flatten(kind: type, prefix: str = "") -> dict[str, str]:
    """Dotted name of every setting below a dataclass, with its documentation."""
    documented = {name: (info.description or "") for name, info in kind.__pydantic_fields__.items()}
    hints, names = get_type_hints(kind), {}
    for f in fields(kind):
        inner = next(
            (
                t
                for t in (hints[f.name], *getattr(hints[f.name], "__args__", ()))
                if is_dataclass(t)
            ),
            None,
        )
        names |= (
            flatten(inner, f"{prefix}{f.name}.") if inner else {prefix + f.name: documented[f.name]}
        )
    return names


def to_dict(config: Config) -> dict:
    """Nested dict of plain values, as read_config takes it."""
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

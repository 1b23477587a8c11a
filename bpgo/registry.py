"""Every name that a setting may take, and where it is defined.

Nothing is imported before it is looked up.

A name of the form `module:attribute` is taken from outside the package and needs no entry here:

    bpgo train t2i-tiny --output runs/x objective.name=my_module:my_objective

To add something inside the package, write it and add one line to its table below.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module

TABLES: dict[str, dict[str, str]] = {
    # (rewards, prior, *, hyperparameters) -> Advantages
    "objective": {
        "grpo": "bpgo.objective:grpo",
        "ras": "bpgo.objective:ras",
        "crt": "bpgo.objective:crt",
        "bpgo": "bpgo.objective:bpgo",
        "teleboost": "bpgo.objective:teleboost",
    },
    # (*, hyperparameters) -> Prior
    "prior": {
        "running_mean": "bpgo.priors:RunningMean",
        "constant": "bpgo.priors:Constant",
        "empirical_bayes": "bpgo.priors:EmpiricalBayes",
        "sft": "bpgo.reference:sft",
        "sft_per_prompt": "bpgo.reference:sft_per_prompt",
        "first_frame": "bpgo.reference:first_frame",
    },
    # sde.Schedule
    "schedule": {
        "flow-grpo": "bpgo.sde:FLOW_GRPO",
        "dance-grpo": "bpgo.sde:DANCE_GRPO",
        "cps": "bpgo.sde:CPS",
    },
    # (path, *, options) -> (model, reward); the default of `path` is the published weights
    "reward": {
        "clip": "bpgo.rewards.clip:load",
        "pickscore": "bpgo.rewards.clip:load_pickscore",
        "hpsv2": "bpgo.rewards.hpsv2:load",
        "hpsv2.0": "bpgo.rewards.hpsv2:load_v2_0",
        "image_reward": "bpgo.rewards.image_reward:load",
        "image_grid": "bpgo.rewards.image_grid:load",
        "video_clip_xl": "bpgo.rewards.video_clip_xl:load",
        "video_align": "bpgo.rewards.video_align:load",
        "video_align_vq": "bpgo.rewards.video_align:load_vq",
        "video_align_mq": "bpgo.rewards.video_align:load_mq",
        "video_align_ta": "bpgo.rewards.video_align:load_ta",
        "qwen3_vl_embedding": "bpgo.rewards.qwen3_vl_embedding:load",
    },
    # a policy class, by the class of the diffusers pipeline in model_index.json
    "generator": {
        "FluxPipeline": "bpgo.generators.flux:FluxPolicy",
        "WanPipeline": "bpgo.generators.wan:WanPolicy",
        "WanImageToVideoPipeline": "bpgo.generators.wan:WanPolicy",
    },
    # (pixels, prompts) -> (B,) values, or a dict of several by name
    "metric": {
        "shapes": "bpgo.worlds.shapes.oracle:measure",
        "clips": "bpgo.worlds.clips.oracle:measure",
        "digits": "bpgo.worlds.digits.oracle:measure",
    },
}


def check_name(kind: str, name: str) -> str:
    """Return `name` if it is in the table of this kind or has the form `module:attribute`.

    Nothing is imported. Raises ValueError with the nearest known name otherwise.
    """
    if name in TABLES[kind] or re.fullmatch(r"[\w.]+:[\w.<>]+", name):
        return name
    near = get_close_matches(name, TABLES[kind], 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TABLES[kind])}."
    raise ValueError(f"unknown {kind} {name!r}: {hint} Write module:attribute for one of your own.")


def find(kind: str, name: str):
    """The object that a name stands for. Raises ValueError if it does not exist."""
    module, _, attribute = TABLES[kind].get(check_name(kind, name), name).partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, and something that it imports does not
        raise ValueError(
            f"{kind} {name!r}: there is no module {module!r}. Run the command in the folder "
            f"that contains it, or add that folder to PYTHONPATH."
        ) from None
    if "<" in attribute:
        raise ValueError(
            f"{kind} {name!r} is defined inside a function, so it cannot be found by name: "
            f"pass the object itself to Trainer, or define it at the top of a module"
        )
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), 1)
            hint = f": did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"{kind} {name!r}: {module} has no attribute {attribute!r}{hint}")
        found = getattr(found, part)
    return found


def name_of(value: object) -> str:
    """The name under which `find` returns this function or class, or the class of an object."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def arguments(
    function: Callable, offered: Mapping, options: Mapping, what: str, passed: int = 0
) -> dict:
    """The keyword arguments of a call: what is offered and named by the function, and all options.

    what: how messages refer to the function, such as "prior 'my_module:MyPrior'". passed: number of
    leading arguments that the caller passes itself. Raises ValueError for an option that the
    function does not have or that is offered already, and for a required argument that is missing.
    """
    parameters = list(inspect.signature(function).parameters.values())[passed:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option in offered:
            raise ValueError(
                f"{what}: {option!r} already has a value, so it cannot be an option too"
            )
        if option not in names and not takes_any:
            near = get_close_matches(option, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names) or 'none'}."
            raise ValueError(f"{what} has no option {option!r}: {hint}")
    given = {name: value for name, value in offered.items() if name in names} | dict(options)
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise ValueError(f"{what} needs {missing[0]!r}: set it in its options")
    return given

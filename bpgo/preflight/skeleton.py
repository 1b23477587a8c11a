"""The policy of a run without weights: its sizes, tokenizers and checks, on the device meta."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import torch

from bpgo.config import Config
from bpgo.files import cached_snapshot, resolve
from bpgo.generators import pipeline_policy
from bpgo.generators.flux import FluxPolicy
from bpgo.generators.wan import WanPolicy
from bpgo.generators.wan_checks import check_parts
from bpgo.registry import TABLES, arguments, find
from bpgo.setup import POLICY_SETTINGS


def policy_without_weights(config: Config):
    """The policy of `config.generator` as far as it can be made without weights.

    None if the generator's files are not here, and for a policy of your own that is made in another
    way than those of the package. Raises errors as `load_generator` does.
    """
    g = config.generator
    given = {name: getattr(g, name) for name in POLICY_SETTINGS if getattr(g, name) is not None}
    own = g.policy is not None and g.policy not in TABLES["generator"]
    if own and not hasattr(find("generator", g.policy), "load"):
        offered = {"path": g.path, "dtype": g.dtype, "device": "cpu"}
        options = given | g.options
        arguments(find("generator", g.policy), offered, options, f"generator {g.policy!r}")
        return None
    folder = _folder(g.path)
    if folder is None or not (folder / "model_index.json").is_file():
        return None
    index = folder / "model_index.json"
    found, options = pipeline_policy(index, g.path, g.policy, given | g.options)
    if not _is_made_from_a_pipeline(found):
        return None
    check_parts(folder)
    return found(_pipeline(index), **options)


def _folder(path: str) -> Path | None:
    try:
        place = resolve(path)
    except FileNotFoundError:  # the report lists it among the missing files
        return None
    return place if isinstance(place, Path) else cached_snapshot(place)


def _is_made_from_a_pipeline(policy: type) -> bool:
    """Whether `load` is that of a policy of the package, which calls the class with a pipeline."""
    loaders = (FluxPolicy.load.__func__, WanPolicy.load.__func__)
    return getattr(policy.load, "__func__", None) in loaders


def _pipeline(index: Path):
    """The diffusers pipeline of a folder, with models on the device meta."""
    import diffusers

    described = json.loads(index.read_text(encoding="utf-8"))
    settings = {}
    parts = {}
    for name, value in described.items():
        if isinstance(value, list):
            parts[name] = _part(index.parent / name, *value) if all(value) else None
        elif not name.startswith("_"):
            settings[name] = value
    return getattr(diffusers, described["_class_name"])(**parts, **settings)


def _part(folder: Path, library: str, class_name: str):
    """A tokenizer, a scheduler, or a model without weights."""
    kind = getattr(import_module(library), class_name)
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(folder)
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))

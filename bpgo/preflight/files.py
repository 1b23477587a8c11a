"""Which files a run needs, which of them are here and complete, and how to get the others."""

from __future__ import annotations

import json
from pathlib import Path

from bpgo.config import Config
from bpgo.files import LOGIN, cached_snapshot, check_weights
from bpgo.preflight.published import PIPELINE_PATTERNS, PIPELINES, REWARDS, Files
from bpgo.preflight.sizes import cached_file, component_names, local_path
from bpgo.registry import TABLES

LOCAL = "local"  # shown in place of a licence

# ----------------------------------------------------------------------------- what is needed


def needed_files(config: Config) -> list[Files]:
    """The files of the generator and of every reward, each once."""
    files = list(generator_files(config.generator.path, config.generator.policy))
    for reward in (*config.reward, *config.evaluation.held_out):
        files += reward_files(reward.name, reward.path)
    return list(dict.fromkeys(files))


def generator_files(path: str, policy: str | None = None) -> tuple[Files, ...]:
    """The files of a generator. path, policy: as in the settings.

    How your own policy uses its path is not known, so the path is listed only if it exists here.
    """
    if policy is not None and policy not in TABLES["generator"]:
        return _own_files(path)
    local = _local_files(path, "model_index.json")
    if local is not None:
        return (local,)
    known = PIPELINES.get(path)
    if known is None:
        return (Files(path, PIPELINE_PATTERNS, "model_index.json", 0, "not known"),)
    stored = sum(part.stored for part in known.sizes.parts.values())
    terms = known.licence, known.gated
    return (Files(path, PIPELINE_PATTERNS, "model_index.json", stored, *terms),)


def reward_files(name: str, path: str | None) -> tuple[Files, ...]:
    """The files of a reward. name, path: as in the settings.

    Empty for a reward without published weights that has no path. Your own
    rewards have files only if they have a path that exists here.
    """
    if name not in TABLES["reward"]:
        return _own_files(path)
    if path is None and name in REWARDS:
        return REWARDS[name].files
    path = path or _default_path(name)
    if path is None:
        return ()
    local = _local_files(path)
    if local is not None:
        return (local,)
    if name in REWARDS and any(files.source == path for files in _published_files()):
        return REWARDS[name].files
    return (Files(path, ("*",), "config.json", 0, "not known"),)


def _default_path(name: str) -> str | None:
    from bpgo.rewards import published_weights

    return published_weights(name)


def _published_files() -> list[Files]:
    return [files for reward in REWARDS.values() for files in reward.files]


def _own_files(path: str | None) -> tuple[Files, ...]:
    try:
        here = path is not None and local_path(path) is not None
    except FileNotFoundError:
        here = False
    return (_local_files(path),) if here else ()


def _local_files(path: str, required: str = "") -> Files | None:
    """The files of a folder, a file or a shipped name; None for a hub id."""
    try:
        place = local_path(path)
    except FileNotFoundError:
        return Files(path, (), "", 0, "")
    if place is None:
        return None
    inside = [place] if place.is_file() else place.rglob("*")
    stored = sum(file.stat().st_size for file in inside if file.is_file())
    return Files(path, (), required, stored, LOCAL)


# ------------------------------------------------------------------------------ what is here


def present(files: Files) -> bool:
    """Whether the files are here and complete."""
    return _found(files) and damage(files) is None


def damage(files: Files) -> str | None:
    """Which file is truncated, and what to do about it. None if no damage is found.

    Files are not read in full, so damage in the middle of one is not found.
    """
    try:
        place = cached_snapshot(files.source) if files.patterns else local_path(files.source)
        if place is not None:
            check_weights(place)
    except FileNotFoundError:  # absent altogether
        return None
    except ValueError as error:
        return str(error)
    return None


def absence(files: Files) -> str:
    """What is wrong with files that are not `present`, and what to do about it."""
    damaged = damage(files)
    if damaged:
        return damaged
    if not files.patterns:
        remedy = "give a folder that exists, a shipped name or a hub id (owner/name)"
    elif files.gated:
        remedy = f"{LOGIN}, then run this again with --download"
    else:
        remedy = "run this again with --download"
    return f"{files.source} is not here: {remedy}"


def fetch(files: Files) -> str | None:
    """Fetch the files from the hub. Returns what went wrong, or None."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(files.source, allow_patterns=list(files.patterns))
    except OSError as error:  # every error of the hub is one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        login = f": {LOGIN}" if files.gated else ""
        return f"{files.source} could not be downloaded{login} ({reason})"
    return None


def _found(files: Files) -> bool:
    if not files.patterns:
        return _found_locally(files)
    required = cached_file(files.source, files.required)
    if required is None and files.required == "model.safetensors":
        # older repositories have the same weights under another name
        required = cached_file(files.source, "pytorch_model.bin")
    if required is not None and files.required == "model_index.json":
        return _has_all_components(required)
    return required is not None


def _found_locally(files: Files) -> bool:
    try:
        place = local_path(files.source)
    except FileNotFoundError:
        return False
    return place is not None and (place / files.required).exists()


def _has_all_components(index: Path) -> bool:
    for name in component_names(json.loads(index.read_text(encoding="utf-8"))):
        folder = index.parent / name
        has_weights = name.startswith(("transformer", "text_encoder", "vae"))
        if not folder.is_dir() or (has_weights and not _has_all_shards(folder)):
            return False
    return True


def _has_all_shards(folder: Path) -> bool:
    shards = set()
    for index in folder.glob("*.index.json"):
        shards.update(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    # a file of the hub's cache is a link, which may lead nowhere
    weights = any(file.exists() for file in folder.glob("*.safetensors"))
    return weights and all((folder / name).exists() for name in shards)

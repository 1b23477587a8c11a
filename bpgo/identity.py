"""Digests of the data that a run depends on: prompts, images, weights and your own code.

A run stores them in identity.json. They are compared when it is resumed, so that a change of a file
does not go unnoticed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from pathlib import Path

from bpgo.config import Config
from bpgo.files import cached_snapshot, resolve, write_atomic
from bpgo.prompts import key_of
from bpgo.reference import cache_file
from bpgo.registry import TABLES, find
from bpgo.rewards import published_weights
from bpgo.text_files import read_json

FILE = "identity.json"
CODE = "code of "  # keys of digests whose change is reported but not refused
LARGE = 2**26  # bytes from which on the digest of a file is cached


def data_identity(
    config: Config, prompts: list[str], evaluation_prompts: list[str], given: dict[str, object]
) -> dict[str, str]:
    """A digest of everything that a run reads, by the setting that names it.

    given: by kind, the object that was passed instead of what the config names, or None; it has no
    digest. Weights that are not on this machine have none either.
    """
    found = {"prompts": digest_prompts(prompts)}
    if evaluation_prompts is not prompts:
        found["evaluation.prompts"] = digest_prompts(evaluation_prompts)
    places = {}
    if given["generator"] is None:
        places["generator.path"] = config.generator.path
        if config.generator.lora:
            places["generator.lora"] = config.generator.lora
    lists = {"evaluation.held_out": config.evaluation.held_out}
    if given["reward"] is None:
        lists["reward"] = config.reward
    for key, rewards in lists.items():
        for number, reward in enumerate(rewards):
            name = f"{key}.{number}.path" if len(rewards) > 1 else f"{key}.path"
            places[name] = reward.path or published_weights(reward.name)
    for key, place in places.items():
        digest = digest_place(place) if place else None
        if digest is not None:
            found[key] = digest
    return found | _digest_code(config, given)


def digest_prompts(prompts: list[str]) -> str:
    """A digest of the texts, images and further columns of prompts, in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        columns = sorted(getattr(prompt, "columns", {}).items())
        digest.update(repr((key_of(prompt), columns)).encode())
    return digest.hexdigest()


def digest_place(name: str | Path) -> str | None:
    """A digest of a file, or of the weights and settings in a folder, shipped or at any path.

    For a hub id it is the name of the revision in the hub's cache; None if it is not there.
    """
    try:
        place = resolve(name)
    except FileNotFoundError:
        return None
    if not isinstance(place, Path):
        snapshot = cached_snapshot(place)
        return None if snapshot is None else snapshot.name
    if place.is_file():
        return _digest_file(place)
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*")):
        relative = file.relative_to(place)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and not hidden and file.suffix != ".md":
            digest.update(f"{relative.as_posix()} {_digest_file(file)}\n".encode())
    return digest.hexdigest()


def _digest_file(file: Path) -> str:
    status = file.stat()
    stored = None
    if status.st_size >= LARGE:
        stored = cache_file("digest", [str(file.resolve()), status.st_size, status.st_mtime_ns])
        if stored.is_file():
            return stored.read_text(encoding="utf-8")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(stored, digest)
    return digest


def _digest_code(config: Config, given: dict[str, object]) -> dict[str, str]:
    """Digests of the modules of everything that is named as module:attribute."""
    names = [("objective", config.objective.name), ("prior", config.prior.name)]
    names += [("reward", reward.name) for reward in config.reward]
    names = [(kind, name) for kind, name in names if given[kind] is None]
    names += [("reward", reward.name) for reward in config.evaluation.held_out]
    names += [("metric", name) for name in config.evaluation.metrics]
    found = {}
    for kind, name in names:
        if name in TABLES[kind]:
            continue
        module = inspect.getmodule(find(kind, name))
        source = getattr(module, "__file__", None)
        if source and Path(source).is_file():
            found[f"{CODE}{name}"] = _digest_file(Path(source))
    return found


# -------------------------------------------------------------------------------------- comparing


def write_identity(folder: Path, identity: dict[str, str]) -> None:
    """Store the identity in the folder of a run."""
    write_atomic(folder / FILE, json.dumps(identity, indent=1) + "\n")


def changed_data(folder: Path, identity: dict[str, str]) -> list[str]:
    """The settings whose data have changed since the run in a folder began.

    A run of an earlier version has no identity, so nothing has changed. What has a digest only
    before or only now is not compared. Warns if code has changed, or if identity.json is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return []
    try:
        before = dict(read_json(file))
    except (ValueError, TypeError):
        warnings.warn(
            f"{file} is damaged and will be written anew: whether data have changed since the run "
            f"began is not known",
            stacklevel=2,
        )
        return []
    changed = [key for key in before if key in identity and before[key] != identity[key]]
    code = [key for key in changed if key.startswith(CODE)]
    if code:
        warnings.warn(
            f"the {', '.join(code)} has changed since the run in {folder} began. The run continues "
            f"with the new code",
            stacklevel=2,
        )
    return [key for key in changed if key not in code]

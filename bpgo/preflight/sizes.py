"""The size of a pipeline or a reward, from the headers of its files or as published."""

from __future__ import annotations

import json
import math
from pathlib import Path

from bpgo.files import resolve
from bpgo.preflight.published import FLOAT32_LAYERS, PIPELINES, REWARDS, Part, Pipeline

MAX_TEXT_TOKENS = 512  # what the pipelines use when the tokenizer allows more


def pipeline_of(path: str) -> Pipeline | None:
    """Sizes of a generator: of its files, else the published ones, else None."""
    published = PIPELINES.get(path)
    try:
        folder = pipeline_folder(path)
        if folder is not None:
            return read_pipeline(folder)
    except (FileNotFoundError, KeyError, ValueError):  # incomplete or damaged
        pass
    return published.sizes if published else None


def reward_bytes(name: str, path: str | None) -> int | None:
    """Bytes of a reward's parameters on its device, in float32. None if they are not known."""
    try:
        place = local_path(path) if path is not None else None
        if place is None:
            return 4 * REWARDS[name].parameters if name in REWARDS else None
        if place.is_file() and place.suffix != ".safetensors":
            return place.stat().st_size
        files = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
        return 4 * sum(_parameters(file) for file in files) or None
    except (FileNotFoundError, ValueError):  # absent or damaged
        return None


def read_pipeline(folder: Path) -> Pipeline:
    """Sizes of a diffusers folder. Raises FileNotFoundError for a part that is not there."""
    index = _read(folder / "model_index.json")
    models = [name for name in component_names(index) if not _has_no_weights(name)]
    tokenizer = "tokenizer_2" if "tokenizer_2" in index else "tokenizer"
    longest = _read(folder / tokenizer / "tokenizer_config.json").get("model_max_length")
    return Pipeline(
        class_name=index["_class_name"],
        parts={name: _read_part(folder / name) for name in models},
        transformer=_read(folder / "transformer" / "config.json"),
        vae=_read(folder / "vae" / "config.json"),
        text_tokens=min(MAX_TEXT_TOKENS, int(longest or MAX_TEXT_TOKENS)),
    )


def component_names(index: dict) -> list[str]:
    """The components that a model_index.json names: models, tokenizers and scheduler."""
    return [name for name, entry in index.items() if isinstance(entry, list) and all(entry)]


def local_path(path: str) -> Path | None:
    """The folder or file of a path or shipped name, None for a hub id.

    Raises FileNotFoundError for anything else.
    """
    place = resolve(path)
    return place if isinstance(place, Path) else None


def pipeline_folder(path: str) -> Path | None:
    """The folder of a pipeline, in the hub's cache for a hub id; None if nothing was downloaded."""
    place = local_path(path)
    if place is None:
        index = cached_file(path, "model_index.json")
        place = index and index.parent
    return place


def cached_file(hub_id: str, name: str) -> Path | None:
    """A file of a hub id that was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def _read_part(folder: Path) -> Part:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .safetensors file")
    class_name = _read(folder / "config.json").get("_class_name")
    float32_layers = FLOAT32_LAYERS.get(class_name, frozenset())
    parameters = float32_parameters = 0
    for file in files:
        for name, entry in read_header(file).items():
            count = math.prod(entry["shape"])
            parameters += count
            if float32_layers.intersection(name.split(".")):
                float32_parameters += count
    return Part(parameters, float32_parameters, sum(file.stat().st_size for file in files))


def read_header(file: Path) -> dict[str, dict]:
    """Name -> dtype and shape of every tensor in a .safetensors file.

    Raises ValueError if the header is truncated.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _parameters(file: Path) -> int:
    return sum(math.prod(entry["shape"]) for entry in read_header(file).values())


def _has_no_weights(name: str) -> bool:
    return name == "scheduler" or "tokenizer" in name or "processor" in name


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))

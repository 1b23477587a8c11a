"""LoRA files in diffusers' format, to start a run from: finding, reading and checking them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bpgo.files import check_safetensors, from_hub, resolve
from bpgo.generators.lora import add_lora

NAME = "pytorch_lora_weights.safetensors"
SHOWN = 3  # layers in a message
KEY = re.compile(r"(?:transformer\.)?(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
# What these metadata change is not supported. An empty or false value changes nothing.
UNSUPPORTED = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora")


class Adapters(NamedTuple):
    """The adapters of one module: the shapes of the matrices A and B of each layer, by its name."""

    file: Path
    rank: int
    alpha: float
    layers: dict[str, dict[str, tuple[int, ...]]]
    keys: dict[tuple[str, str], str]  # (layer, "A" or "B") -> the name of the tensor in the file


def find_lora(path_or_hub_id: str | Path, part: str = "transformer") -> Path:
    """The file with the adapters of one part of a pipeline.

    path_or_hub_id: a file, a folder or a hub id. In the last two the file has diffusers' name, and
    that of the second expert is in `transformer_2/`, as bpgo exports them. Raises FileNotFoundError
    if there is no such file, OSError if it cannot be fetched.
    """
    place = resolve(path_or_hub_id)
    name = NAME if part == "transformer" else f"{part}/{NAME}"
    if isinstance(place, str):
        from huggingface_hub import hf_hub_download

        with from_hub(place, "generator.lora"):
            return Path(hf_hub_download(place, name))
    if place.is_file():
        if part == "transformer":
            return place
        raise FileNotFoundError(
            f"{place} has the adapters of one transformer only, and the generator has two experts: "
            f"give a folder with {NAME} and {name}"
        )
    if (place / name).is_file():
        return place / name
    if (place / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{place} is a whole pipeline, not LoRA adapters: set generator.path to it"
        )
    if (place / "final" / name).is_file():
        raise FileNotFoundError(f"{place} is a run: its adapters are in {place / 'final'}")
    found = ", ".join(sorted(file.name for file in place.glob("*.safetensors"))) or "none"
    raise FileNotFoundError(f"{place} has no file {name} (.safetensors files in it: {found})")


def read_adapters(file: Path) -> Adapters:
    """Rank, alpha and shapes of a LoRA file, from its header.

    Without metadata alpha is the rank, as in diffusers. Raises ValueError for a damaged file, for
    another format, and for adapters of several ranks or of another kind (DoRA, rsLoRA).
    """
    from safetensors import safe_open

    check_safetensors(file)
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    keys = {}
    with safe_open(file, framework="pt") as stored:
        metadata = _metadata(stored.metadata() or {}, file)
        for key in stored.keys():
            match = KEY.fullmatch(key)
            if match is None:
                raise ValueError(
                    f"{file} is not a LoRA file in diffusers' format: it contains {key!r}. If "
                    f"diffusers can load it, convert it: pipeline.load_lora_weights(FILE, "
                    f"adapter_name='default'), then pipeline.transformer.save_lora_adapter(FOLDER)"
                )
            layer, side = match["layer"], match["side"]
            layers.setdefault(layer, {})[side] = tuple(stored.get_slice(key).get_shape())
            keys[layer, side] = key
    halves = [layer for layer, shapes in layers.items() if len(shapes) < 2]
    if halves:
        raise ValueError(f"{file} is incomplete: matrix A or B is missing for {_some(halves)}")
    if not layers:
        raise ValueError(f"{file} is empty: it has no adapters")
    ranks = sorted({shapes["A"][0] for shapes in layers.values()})
    changed = [name for name in UNSUPPORTED if metadata.get(name)]
    if len(ranks) > 1 or changed:
        found = f"ranks {', '.join(map(str, ranks))}" if len(ranks) > 1 else ", ".join(changed)
        raise ValueError(
            f"{file} has {found}: only plain LoRA adapters with one rank and one alpha are "
            f"supported. Merge them into the weights (pipeline.fuse_lora), save the pipeline, and "
            f"set generator.path to it"
        )
    return Adapters(file, ranks[0], float(metadata.get("lora_alpha", ranks[0])), layers, keys)


def load_adapters(modules: dict[str, nn.Module], path_or_hub_id: str | Path) -> None:
    """Add the adapters of a file or folder to modules, by name, and train only these.

    Raises ValueError or OSError, as `find_lora` and `read_adapters` do, and ValueError for adapters
    of another model.
    """
    found = {name: read_adapters(find_lora(path_or_hub_id, name)) for name in modules}
    first, *others = found.values()
    for other in others:
        if (other.rank, other.alpha) != (first.rank, first.alpha):
            raise ValueError(
                f"the adapters of all experts must have one rank and one alpha, but {first.file} "
                f"has {first.rank} and {first.alpha:g}, {other.file} {other.rank} and "
                f"{other.alpha:g}"
            )
    for name, adapters in found.items():
        _refuse_other_model(modules[name], adapters)
    for name, adapters in found.items():
        _load(modules[name], adapters)


# ------------------------------------------------------------------------------------------ parts


def _metadata(stored: dict[str, str], file: Path) -> dict:
    """peft's settings of the adapters, if the file has them."""
    try:
        settings = json.loads(stored.get("lora_adapter_metadata", "{}"))
        return {name.removeprefix("transformer."): value for name, value in settings.items()}
    except (ValueError, AttributeError):
        raise ValueError(f"{file}: its metadata are damaged. Copy it or export it again") from None


def _refuse_other_model(module: nn.Module, adapters: Adapters) -> None:
    """Raise ValueError unless each layer exists, and the file covers all blocks of the model."""
    linear = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    kinds = {_kind(layer) for layer in adapters.layers}
    unexpected = [name for name in adapters.layers if name not in linear]
    missing = [
        name for name in linear if _kind(name) in kinds and name not in adapters.layers
    ]  # of the same kind in other blocks
    wide = []
    for name, shapes in adapters.layers.items():
        if name not in linear:
            continue
        inputs, outputs = linear[name].in_features, linear[name].out_features
        expected = {"A": (adapters.rank, inputs), "B": (outputs, adapters.rank)}
        if shapes != expected:
            wide.append(
                f"{name} ({shapes['A']} and {shapes['B']}, not {(adapters.rank, inputs)} "
                f"and {(outputs, adapters.rank)})"
            )
    faults = []
    if unexpected:
        faults.append(f"the model has no layers {_some(unexpected)}")
    if missing:
        faults.append(f"the file has no adapters for {_some(missing)}")
    if wide:
        faults.append(f"the shapes differ for {_some(wide)}")
    if faults:
        raise ValueError(
            f"the adapters in {adapters.file} are not of this {type(module).__name__}: "
            f"{'; '.join(faults)}. Use adapters that were trained on the model in generator.path"
        )


def _kind(layer: str) -> str:
    """The name of a layer without its numbers: the same layer in another block has the same one."""
    return re.sub(r"\d+", "*", layer)


def _some(names: list[str]) -> str:
    """The first names, and how many there are besides."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@torch.no_grad()
def _load(module: nn.Module, adapters: Adapters) -> None:
    from safetensors import safe_open

    add_lora(module, adapters.rank, adapters.alpha, tuple(sorted(adapters.layers)))
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    with safe_open(adapters.file, framework="pt") as stored:
        for (layer, side), key in adapters.keys.items():
            parameters[f"{layer}.lora_{side}.default.weight"].copy_(stored.get_tensor(key))

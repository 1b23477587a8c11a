"""Published weights, read without running code in the files and checked to be complete."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.files import read_pt


def read_tensors(file: Path, within: str | None = None) -> dict[str, Tensor]:
    """The tensors of a published .pt, .pth or .bin file by name, on the CPU.

    within: the dictionary in the file that holds the tensors; None if they are at the top level.
    Raises ValueError if the file is damaged, contains code (which is not run), or has no such
    dictionary.
    """
    content = read_pt(file)
    if within is not None:
        content = content.get(within)
        if not isinstance(content, dict):
            raise ValueError(
                f"{file} has no dictionary {within!r} of tensors: check that it is the published "
                f"file, or download it again"
            )
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def fill(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load weights into a model, as float32 and for inference.

    source: where the weights come from, for the message. Raises ValueError, naming one of them, if
    tensors are missing, unknown or of another shape.
    """
    needed, found = _shapes(model.state_dict()), _shapes(weights)
    wrong = {name for name, _ in needed ^ found}
    if wrong:
        raise _incomplete(source, type(model), wrong)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.eval().requires_grad_(False)


def read_pretrained(kind: type, path: str | Path) -> nn.Module:
    """The transformers model of a folder or hub id, in float32 and for inference.

    kind: its class. Raises ValueError, naming one of them, if tensors are missing or of another
    shape, where transformers would initialise them at random.
    """
    model, report = kind.from_pretrained(
        path, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    wrong = report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]}
    if wrong:
        raise _incomplete(path, kind, wrong)
    return model.eval().requires_grad_(False)


def renamed(name: str, patterns: dict[str, str]) -> str:
    """The name after all substitutions (pattern: replacement), applied in order."""
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def split_attention(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Query, key and value of an `in_proj_weight` or `in_proj_bias`, as transformers names them."""
    parts = {}
    for letter, part in zip("qkv", tensor.chunk(3), strict=True):
        parts[name.replace("in_proj_", f"{letter}_proj.")] = part
    return parts


def _shapes(tensors: dict[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in tensors.items()}


def _incomplete(source: str | Path, kind: type, wrong: set[str]) -> ValueError:
    return ValueError(
        f"{source} is not a complete {kind.__name__}: {len(wrong)} tensors are missing or do not "
        f"fit, such as {min(wrong)}. Check the path, or download it again"
    )

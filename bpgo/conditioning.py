"""Encoded prompts, called conditions, which are computed once per prompt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bpgo.files import write_atomic
from bpgo.prompts import images_of, key_of


def encode(policy, prompts: list[str]) -> dict[str, Tensor]:
    """Encode prompts and the images that they carry, one row per prompt."""
    images = images_of(prompts)
    return policy.encode(prompts) if images is None else policy.encode(prompts, images)


class Conditions:
    """`conditions(prompts)` returns the conditions of prompts, one row per prompt.

    Each prompt is encoded once and alone, so its row has the same bits in any batch. The rows are
    kept in memory, on the policy's device. With a folder they are kept on disk instead, as
    safetensors, and the encoders can leave the device for good. A damaged file is written anew.
    """

    def __init__(self, policy, folder: Path | None = None):
        self.policy, self.folder = policy, folder
        self.rows: dict[str, dict[str, Tensor]] = {}
        self.intact: set[Path] = set()  # files of this folder that can be read
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        self.prepare(prompts)
        rows = [self._read(prompt) for prompt in prompts]
        device = self.policy.device
        return {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}

    def prepare(self, prompts: list[str]) -> None:
        """Encode the prompts that have not been encoded yet."""
        for prompt in prompts:
            if not self._known(prompt):
                self._keep(prompt, encode(self.policy, [prompt]))

    def _known(self, prompt: str) -> bool:
        if not self.folder:
            return key_of(prompt) in self.rows
        file = self._file(prompt)
        if file not in self.intact and file.exists() and _is_intact(file):
            self.intact.add(file)
        return file in self.intact

    def _keep(self, prompt: str, row: dict[str, Tensor]) -> None:
        if self.folder:
            write_atomic(self._file(prompt), _pack(row))
        else:
            self.rows[key_of(prompt)] = row

    def _read(self, prompt: str) -> dict[str, Tensor]:
        return _unpack(self._file(prompt)) if self.folder else self.rows[key_of(prompt)]

    def _file(self, prompt: str) -> Path:
        name = hashlib.sha256(key_of(prompt).encode()).hexdigest()[:32]
        return self.folder / f"{name}.safetensors"


def _pack(row: dict[str, Tensor]) -> bytes:
    """A row as safetensors, with text embeddings (1, L, D) cut after their last nonzero position.

    Wan's embeddings are zero after the end of the prompt, at most of their 512 positions.
    """
    row = {name: value.cpu() for name, value in row.items()}
    lengths = {name: str(value.shape[1]) for name, value in row.items() if value.ndim == 3}
    for name in lengths:
        nonzero = row[name][0].any(-1).nonzero()
        end = int(nonzero[-1]) + 1 if len(nonzero) else 0
        row[name] = row[name][:, :end].contiguous()
    return save(row, {"lengths": json.dumps(lengths)})


def _is_intact(file: Path) -> bool:
    try:
        _unpack(file)
    except (SafetensorError, KeyError, TypeError, ValueError):
        return False
    return True


def _unpack(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as stored:
        lengths = json.loads(stored.metadata()["lengths"])
        row = {name: stored.get_tensor(name) for name in stored.keys()}
    for name, length in lengths.items():
        missing = int(length) - row[name].shape[1]
        row[name] = torch.nn.functional.pad(row[name], (0, 0, 0, missing))
    return row

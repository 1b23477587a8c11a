"""What a policy makes of prompts, made once for each: kept in memory, or on disk so that the encoders can leave the device for good."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from bpgo.evaluation import encode
from bpgo.files import write_atomic
from bpgo.prompts import key_of


class Conditions:
    """`conditions(prompts)`: the rows of each prompt, encoded by itself, so that its bits do not depend on its company.

    folder: where each prompt's row lies, as safetensors; None keeps the rows in memory, on the policy's device.
    """

    def __init__(self, policy, folder: Path | None = None):
        self.policy, self.folder, self.rows = policy, folder, {}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        self.prepare(prompts)
        rows = [self._read(p) if self.folder else self.rows[key_of(p)] for p in prompts]
        return {
            name: torch.cat([row[name] for row in rows]).to(self.policy.device) for name in rows[0]
        }

    def prepare(self, prompts: list[str]) -> None:
        """Encode what is not there yet."""
        for prompt in prompts:
            if self.folder is None and key_of(prompt) not in self.rows:
                self.rows[key_of(prompt)] = encode(self.policy, [prompt])
            elif self.folder and not self._place(prompt).exists():
                row = {name: value.cpu() for name, value in encode(self.policy, [prompt]).items()}
                lengths = {
                    name: str(value.shape[1]) for name, value in row.items() if value.ndim == 3
                }
                row = {
                    name: _without_zeros(value) if name in lengths else value
                    for name, value in row.items()
                }
                write_atomic(self._place(prompt), save(row, {"lengths": json.dumps(lengths)}))

    def _place(self, prompt: str) -> Path:
        return (
            self.folder / f"{hashlib.sha256(key_of(prompt).encode()).hexdigest()[:32]}.safetensors"
        )

    def _read(self, prompt: str) -> dict[str, Tensor]:
        with safe_open(self._place(prompt), framework="pt") as file:
            lengths = json.loads(file.metadata()["lengths"])
            row = {name: file.get_tensor(name) for name in file.keys()}
        for name, length in lengths.items():
            row[name] = torch.nn.functional.pad(
                row[name], (0, 0, 0, int(length) - row[name].shape[1])
            )
        return row


def _without_zeros(value: Tensor) -> Tensor:
    """(1, L, D) without the rows at its end that are all zero: what Wan has past a prompt's end, most of 512 rows."""
    used = value[0].any(-1).nonzero()
    return value[:, : int(used[-1]) + 1 if len(used) else 0].contiguous()

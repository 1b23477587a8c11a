"""How the tiny checkpoints were trained: `bpgo pretrain [STAGE ...] --output FOLDER`.

`bpgo.worlds.pretrain.stages` lists the stages. Each trains from a fixed seed. The captions of a
generator are partly wrong, so the supervised fine-tuned model has something left to learn. Weights
are stored in half precision, and the numbers on each card are measured with the stored weights.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from bpgo.worlds.pretrain.stages import DEFAULT, DIGITS, STAGES


def pretrain(stages: list[str], output: Path, scale: float = 1.0) -> None:
    """Train the named stages, or the default ones, into folders in `output`.

    scale: below 1 it shortens every stage, for tests. Raises ValueError for an unknown stage.
    """
    names: list[str] = []
    for name in stages or DEFAULT:
        names += DIGITS if name == "digits" else [name]
    for name in names:
        if name not in STAGES:
            known = ", ".join([*STAGES, "digits"])
            raise ValueError(f"unknown stage {name!r}: known stages are {known}")
    for name in names:
        module, function = STAGES[name].function.split(":")
        torch.manual_seed(STAGES[name].seed)
        getattr(import_module(f"{__name__}.{module}"), function)(Path(output), scale)

"""How the tiny checkpoints were trained: `python -m bpgo pretrain [STAGE ...] --output FOLDER`.

Stages, in order: `autoencoder`, `flux` and `refine` (once for each further pass) make the pipeline tiny-flux, `reward` the CLIP-type
training reward, `held_out` an ImageReward-type model that no policy is trained on, `prompts` the graded prompt files. All from
fixed seeds. The generator's captions are partly wrong (each named attribute replaced with probability WRONG), so the SFT model has
something left to learn. Weights are stored in half precision; the figures of each card are measured on what was stored.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..files import write_atomic
from .captions import graded_prompts
from .fit import SEEDS
from .pretrain_flux import PASSES, train_autoencoder, train_flux, train_refine
from .pretrain_rewards import train_held_out, train_reward


def pretrain(stages: list[str], output: Path, scale: float = 1.0) -> None:
    """Train the named stages into folders under `output`. scale < 1 shortens every stage (for tests)."""
    run = {"autoencoder": train_autoencoder, "flux": train_flux, "refine": train_refine, "reward": train_reward,
           "held_out": train_held_out, "prompts": write_prompts}  # fmt: skip
    whole = ["autoencoder", "flux", *["refine"] * (len(PASSES) - 1), "reward", "held_out", "prompts"]
    for stage in stages or whole:
        if stage not in run:
            raise ValueError(f"unknown stage {stage!r}; stages are {', '.join(run)}")
        torch.manual_seed(SEEDS.get(stage, SEEDS["flux"]))
        run[stage](Path(output), scale)


def write_prompts(output: Path, _: float) -> None:
    """The graded prompts that the tiny presets train on and evaluate on: JSON lines {prompt, level, bits, kind}."""
    folder = output / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, seed, specified in (("train", 1024, SEEDS["prompts"], 0.75), ("evaluation", 96, SEEDS["prompts"] + 1, 0.5)):
        rows = graded_prompts(n, seed, specified=specified)
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

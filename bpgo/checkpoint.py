"""A run's whole state on disk: tensors in safetensors, the rest in JSON, written beside its place and moved there when whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpgo.distributed import gathered, like


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another run."""


def pack(
    parameters: dict[str, Tensor], averages: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Everything that training moves, whole and by name, on the CPU of the main process. Every process of a run must call it.

    The others get nothing: they lend their shards of one tensor after the other.
    """
    tensors = {f"weights/{name}": p for name, p in parameters.items()} | {
        f"ema/{name}": p for name, p in averages.items()
    }
    for name, p in parameters.items():
        tensors |= {f"optimiser/{key}/{name}": value for key, value in optimiser.state[p].items()}
    found = ((name, gathered(t)) for name, t in tensors.items())
    return {name: t for name, t in (*found, ("rng", torch.get_rng_state())) if t is not None}


@torch.no_grad()
def unpack(
    tensors: dict[str, Tensor],
    parameters: dict[str, Tensor],
    averages: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Put back what `pack` took, on any number of processes."""
    for name, p in parameters.items():
        p.copy_(like(tensors[f"weights/{name}"], p))
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"optimiser/{key}/{name}")) is not None:
                optimiser.state[p][key] = (
                    like(value, p) if value.shape == p.shape else value.to(p.device)
                )
    for name, p in averages.items():
        p.copy_(like(tensors[f"ema/{name}"], p))
    torch.set_rng_state(tensors["rng"])


def save_state(folder: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Write a checkpoint. A kill or a full disk at any moment leaves either no such folder or a whole one. Raises OSError."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(
            {name: t.detach().contiguous() for name, t in tensors.items()},
            partial / "state.safetensors",
        )
        state = state | {"sha256": _digest(partial / "state.safetensors")}
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"cannot write {folder}: {error}") from error
        raise


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Read a checkpoint back. Raises CheckpointError if it is missing or not as it was written."""
    try:
        state = json.loads((folder / "state.json").read_text())
        whole = _digest(folder / "state.safetensors") == state["sha256"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no checkpoint: {error.filename} is missing") from None
    except (ValueError, KeyError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"{folder} is damaged (its contents are not what was written): delete it to go on from the one before"
        )
    return load_file(folder / "state.safetensors"), state


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(run.glob("checkpoint-[0-9]*"))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

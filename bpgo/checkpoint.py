"""A run's complete state on disk: tensors as safetensors, everything else as JSON."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpgo.distributed import gather_tensor, place_like
from bpgo.files import atomic_folder

KEPT = 2  # how many of a run's newest checkpoints are kept


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or from another run."""


def pack(
    parameters: dict[str, Tensor], average: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Everything that training changes, by name, on the CPU of the main process.

    All processes must call it; the others get no weights. Shards are gathered one tensor at a time.
    """
    tensors = {f"weights/{name}": p for name, p in parameters.items()}
    tensors |= {f"ema/{name}": p for name, p in average.items()}
    for name, p in parameters.items():
        for key, value in optimiser.state[p].items():
            tensors[f"optimiser/{key}/{name}"] = value
    gathered = {name: gather_tensor(tensor) for name, tensor in tensors.items()}
    packed = {name: tensor for name, tensor in gathered.items() if tensor is not None}
    return packed | {"rng": torch.get_rng_state()}


@torch.no_grad()
def unpack(
    tensors: dict[str, Tensor],
    parameters: dict[str, Tensor],
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Restore what `pack` returned, on any number of processes."""
    for name, p in parameters.items():
        p.copy_(place_like(tensors[f"weights/{name}"], p))
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"optimiser/{key}/{name}")
            if value is None:
                continue
            sharded = value.shape == p.shape
            optimiser.state[p][key] = place_like(value, p) if sharded else value.to(p.device)
    for name, p in average.items():
        p.copy_(place_like(tensors[f"ema/{name}"], p))
    torch.set_rng_state(tensors["rng"])


def save_state(folder: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Write a checkpoint folder, which is never incomplete, even after a kill.

    Raises OSError if it cannot be written.
    """
    with atomic_folder(folder) as partial:
        file = partial / "state.safetensors"
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, file)
        state = state | {"sha256": _digest(file)}
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the state of a checkpoint.

    Raises CheckpointError if a file is missing or has changed since it was written.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        intact = _digest(folder / "state.safetensors") == state["sha256"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a checkpoint: {error.filename} is missing"
        ) from None
    except (ValueError, KeyError):
        intact = False
    if not intact:
        raise CheckpointError(
            f"{folder} is damaged (its content has changed since it was written): "
            f"delete it to resume from the previous checkpoint"
        )
    return load_file(folder / "state.safetensors"), state


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Folders with any other name are ignored."""
    folders = [f for f in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6,}", f.name)]
    return sorted(folders, key=iteration_of)


def checkpoint_folder(run: Path, iteration: int) -> Path:
    """Where the checkpoint after this many iterations is saved."""
    return run / f"checkpoint-{iteration:06d}"


def iteration_of(folder: Path) -> int:
    """The iteration of a checkpoint's folder."""
    return int(folder.name.removeprefix("checkpoint-"))


def to_delete(checkpoints: list[Path], keep: int, best: Path | None = None) -> list[Path]:
    """All checkpoints but the newest `keep` of them and the best one.

    checkpoints: oldest first. best: as from `best_checkpoint`. Raises ValueError unless keep >= 1.
    """
    if keep < 1:
        raise ValueError(f"at least one checkpoint must be kept, not {keep}")
    return [folder for folder in checkpoints[:-keep] if folder != best]


def best_checkpoint(checkpoints: list[Path], evaluations: list[dict], metric: str) -> Path | None:
    """The checkpoint with the highest value of a metric; of equal ones, the oldest.

    checkpoints: oldest first. evaluations: the rows of evaluations.jsonl. A checkpoint is judged by
    the evaluation at its own iteration. One without such an evaluation, or whose value is not
    defined, cannot be the best. Returns None if there is no candidate.
    """
    values = {row["iteration"]: row.get(metric) for row in evaluations}
    candidates = [c for c in checkpoints if values.get(iteration_of(c)) is not None]
    return max(candidates, key=lambda c: values[iteration_of(c)], default=None)


def delete_old(run: Path) -> None:
    """Delete all checkpoints of a run except the newest."""
    for folder in checkpoints(run)[:-KEPT]:
        shutil.rmtree(folder)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

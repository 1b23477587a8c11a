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
from bpgo.files import atomic_folder, read_log


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


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raise FloatingPointError, naming the first, if weights or states of the optimiser are not."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FloatingPointError(f"{name} has values that are not finite")


@torch.no_grad()
def unpack(
    tensors: dict[str, Tensor],
    parameters: dict[str, Tensor],
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Restore what `pack` returned, on any number of processes.

    An average that was not kept starts from the weights. Raises CheckpointError, before anything is
    changed, if the weights are not those of these parameters.
    """
    _check_fit(tensors, parameters)
    for name, p in parameters.items():
        p.copy_(place_like(tensors[f"weights/{name}"], p))
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"optimiser/{key}/{name}")
            if value is None:
                continue
            sharded = value.shape == p.shape
            optimiser.state[p][key] = place_like(value, p) if sharded else value.to(p.device)
    for name, p in average.items():
        p.copy_(place_like(tensors.get(f"ema/{name}", tensors[f"weights/{name}"]), p))
    torch.set_rng_state(tensors["rng"])


def _check_fit(tensors: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    stored = {
        name.removeprefix("weights/"): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith("weights/")
    }
    for name in different_shapes(stored, parameters):
        shape = tuple(parameters[name].shape) if name in parameters else "missing"
        raise CheckpointError(
            f"the checkpoint does not fit this model: {name} is {stored.get(name, 'missing')} "
            f"in the checkpoint and {shape} in the model. The generator, its lora_rank and its "
            f"lora cannot change with a checkpoint"
        )


def different_shapes(
    stored: dict[str, tuple[int, ...]], parameters: dict[str, Tensor]
) -> list[str]:
    """The names, in order, of weights that a checkpoint has in another shape or not at all."""
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    names = sorted(stored.keys() | expected.keys())
    return [name for name in names if stored.get(name) != expected.get(name)]


def save_state(folder: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Write a checkpoint folder, which is never incomplete, even after a kill.

    Raises OSError if it cannot be written.
    """
    with atomic_folder(folder) as partial:
        file = partial / "state.safetensors"
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, file)
        state = state | {"sha256": _digest(file)}
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the state of a checkpoint.

    Raises CheckpointError if a file is missing or has changed since it was written.
    """
    state = check_state(folder)
    return load_file(folder / "state.safetensors"), state


def check_state(folder: Path) -> dict:
    """`read_state`, for a checkpoint whose tensors are there and have not changed either."""
    state, file = read_state(folder), folder / "state.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: {file} is missing")
    if _digest(file) != state["sha256"]:
        raise CheckpointError(_damaged(folder))
    return state


def read_state(folder: Path) -> dict:
    """The state of a checkpoint without its tensors: iteration, prior and settings.

    Raises CheckpointError if it is missing or damaged.
    """
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: {file} is missing") from None
    except ValueError:
        state = None
    if not isinstance(state, dict) or not {"iteration", "prior", "sha256"} <= state.keys():
        raise CheckpointError(_damaged(folder))
    return state


def _damaged(folder: Path) -> str:
    return (
        f"{folder} is damaged (its content has changed since it was written): rename it, for "
        f"example to {folder.name}-damaged, and rerun the command to resume from the checkpoint "
        f"before it"
    )


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first.

    Everything else is ignored, such as a copy called `checkpoint-000001-best`.
    """
    found = []
    for place in run.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", place.name, re.ASCII)
        if number and place == checkpoint_folder(run, int(number[1])) and place.is_dir():
            found.append(place)
    return sorted(found, key=iteration_of)


def find_checkpoint(run: Path, at: int | None = None) -> Path:
    """The checkpoint of a run after `at` iterations (None: the newest).

    Raises CheckpointError, which lists the checkpoints that there are.
    """
    found = checkpoints(run)
    if not run.is_dir():
        raise CheckpointError(f"there is no run in {run}: the folder does not exist")
    if not found:
        raise CheckpointError(f"{run} has no checkpoint yet")
    if at is None:
        return found[-1]
    place = checkpoint_folder(run, at)
    if place not in found:
        listed = ", ".join(str(iteration_of(other)) for other in found)
        raise CheckpointError(
            f"{run} has no checkpoint of iteration {at}. Its checkpoints: {listed}"
        )
    return place


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


def delete_old(run: Path, keep: int, metric: str | None = None) -> None:
    """Delete the checkpoints of a run, except the newest `keep` and the best one by a metric."""
    found, best = checkpoints(run), None
    evaluations = run / "evaluations.jsonl"
    if metric is not None and evaluations.exists():
        best = best_checkpoint(found, read_log(evaluations), metric)
    for folder in to_delete(found, keep, best):
        shutil.rmtree(folder)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

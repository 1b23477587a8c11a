"""The model of a run at a checkpoint, without the trainer, its rewards and its optimiser."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bpgo.checkpoint import (
    CheckpointError,
    check_state,
    checkpoint_folder,
    checkpoints,
    iteration_of,
)
from bpgo.config import Config
from bpgo.run_folder import read_settings
from bpgo.setup import make_policy

SHOWN = 3  # names in a message


def read_run(run: Path) -> Config:
    """The settings of a run. Raises FileNotFoundError for a folder that contains no run.

    Raises CheckpointError if they are damaged.
    """
    if not (run / "config.json").is_file() and not checkpoints(run):
        what = "there is no such folder" if not run.exists() else "it contains no config.json"
        raise FileNotFoundError(f"{run} is not the folder of a run: {what}")
    return read_settings(run)


def find_iteration(run: Path, at: int | None) -> int:
    """The iteration of a checkpoint: `at` itself, or that of the newest one for None.

    0 is always valid: it is the model that the run started from. Raises CheckpointError, listing
    the checkpoints, if there is none of this iteration.
    """
    there = [iteration_of(folder) for folder in checkpoints(run)]
    if at == 0 or at in there:
        return at
    start = "--at 0 stands for the model that the run started from"
    if not there:
        raise CheckpointError(f"{run} has no checkpoint yet; {start}")
    if at is None:
        return there[-1]
    listed = ", ".join(map(str, there))
    raise CheckpointError(
        f"{run} has no checkpoint of iteration {at}. Its checkpoints: {listed}; {start}"
    )


def load_trained(run: Path, config: Config, at: int, device: str, policy=None):
    """The policy of a run with the weights of its checkpoint of iteration `at`.

    These are the averaged weights if the run keeps any. policy: the object that was passed to
    Trainer, if there was one; otherwise the policy is made from the config. Raises ValueError or
    OSError if that fails, and CheckpointError for a damaged checkpoint or one of another model.
    """
    policy = policy or _make(run, config, device)
    if at:
        _load_weights(policy, checkpoint_folder(run, at), bool(config.optimiser.ema_decay))
    return policy


def evaluations_of(run: Path, at: int) -> list[dict]:
    """The rows of a run's evaluations.jsonl up to this iteration.

    Raises ValueError, naming the line, if it is damaged. A last line without an end is still being
    written, or was cut by a kill, and is left out.
    """
    file, rows = run / "evaluations.jsonl", []
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            if row["iteration"] <= at:
                rows.append(row)
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{file}, line {number} is damaged: remove this line, or restore the file"
            ) from None
    return rows


# ------------------------------------------------------------------------------------------ parts


def _make(run: Path, config: Config, device: str):
    try:
        return make_policy(config, device)
    except (ValueError, FileNotFoundError) as error:
        if config.generator.policy is None and not isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"the generator of {run} cannot be loaded: {error} (If a policy was passed to Trainer "
            f"as an object, pass one to bpgo.export.export_run or bpgo.sample.sample_run too.)"
        ) from error


@torch.no_grad()
def _load_weights(policy, folder: Path, averaged: bool) -> None:
    """Copy the weights of a checkpoint, or their averages. The optimiser's state is not read."""
    check_state(folder)
    parameters = {
        f"{part}.{name}": p
        for part, module in policy.modules.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    with safe_open(folder / "state.safetensors", framework="pt") as stored:
        kinds = {name.partition("/")[0] for name in stored.keys()}
        # A run that was branched from one without averages has none at its first checkpoint.
        kind = "ema/" if averaged and "ema" in kinds else "weights/"
        names = [name for name in stored.keys() if name.startswith(kind)]
        shapes = {
            name.removeprefix(kind): tuple(stored.get_slice(name).get_shape()) for name in names
        }
        _refuse_other_model(folder, shapes, parameters)
        for name, p in parameters.items():
            p.copy_(stored.get_tensor(kind + name))


def _refuse_other_model(folder: Path, shapes: dict, parameters: dict[str, Tensor]) -> None:
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    other = [
        name
        for name in sorted(shapes.keys() | expected.keys())
        if shapes.get(name) != expected.get(name)
    ]
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        raise CheckpointError(
            f"{folder} was not made with the model that the run's generator settings name now: "
            f"weights are missing or have other shapes ({', '.join(other[:SHOWN])}{more})"
        )

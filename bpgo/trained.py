"""The model of a run at a checkpoint, without the trainer, its rewards and its optimiser."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bpgo.checkpoint import (
    CheckpointError,
    check_state,
    checkpoint_folder,
    checkpoints,
    different_shapes,
    find_checkpoint,
    iteration_of,
)
from bpgo.config import Config
from bpgo.files import read_log
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
    if at == 0:
        return at
    try:
        return iteration_of(find_checkpoint(run, at))
    except CheckpointError as error:
        start = "--at 0 stands for the model that the run started from"
        raise CheckpointError(f"{error}; {start}") from None


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
    """The rows of a run's evaluations.jsonl up to this iteration. Raises errors as `read_log`."""
    file = run / "evaluations.jsonl"
    rows = read_log(file) if file.is_file() else []
    return [row for row in rows if row["iteration"] <= at]


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
    other = different_shapes(shapes, parameters)
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        raise CheckpointError(
            f"{folder} was not made with the model that the run's generator settings name now: "
            f"weights are missing or have other shapes ({', '.join(other[:SHOWN])}{more})"
        )

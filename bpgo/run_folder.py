"""The folder of a run: opened by one process at a time, and only for the run that is in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from bpgo.checkpoint import CheckpointError, checkpoints, iteration_of, read_state
from bpgo.config import Config, build_config, to_dict
from bpgo.files import write_atomic
from bpgo.identity import changed_data
from bpgo.learning_rate import depends_on_iterations
from bpgo.logs import has_rows
from bpgo.settings import as_text, flatten
from bpgo.text_files import read_json

LOCK, OWNER = ".lock", ".lock-owner"
# Settings that do not change what is computed, so they may change when a run is resumed. Those of
# rewards hold for each entry of `reward` and `evaluation.held_out`.
CHANGEABLE = {
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "tracker",
    "guards",
    "evaluation.pictures",
    "generator.gradient_checkpointing",
    "generator.offload",
    "generator.vae_tiling",
}
CHANGEABLE_OF_REWARDS = {"device", "process", "retries", "time_limit"}
# The content of these is compared (bpgo.identity), so that a run can be moved to another place.
PATHS = re.compile(r"prompts|evaluation\.prompts|generator\.(path|lora)|reward(\.\d+)?\.path")


class RunLockedError(OSError):
    """Another process is using the folder of a run."""


# ---------------------------------------------------------------------------------------- opening


def open_run(folder: Path) -> FileLock:
    """Create the folder of a run, if it does not exist, and lock it. See `close_run`.

    Raises RunLockedError if another process is using the folder, and OSError if it cannot be
    written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock_run(folder)
    except RunLockedError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder}: {error.strerror}. Choose another folder"
        ) from error


def check_same_run(folder: Path, config: Config, identity: dict[str, str]) -> None:
    """Check that a run with this config may be resumed in its folder, or started there.

    identity: of its data, as `bpgo.identity.data_identity` returns it. A run that has not completed
    an iteration may be replaced by one with other settings or data; its checkpoint is removed.
    Raises CheckpointError for a run with other settings or data that has.
    """
    problem = _other_settings(folder, config, identity) or _other_data(folder, identity)
    if problem and _has_begun(folder):
        raise CheckpointError(problem)
    if problem:
        for place in checkpoints(folder):  # after 0 iterations
            shutil.rmtree(place)


def _has_begun(folder: Path) -> bool:
    """Whether the run in a folder has completed an iteration."""
    trained = any(iteration_of(place) for place in checkpoints(folder))
    return trained or has_rows(folder, "metrics")


def lock_run(folder: Path) -> FileLock:
    """Lock the folder of a run. The lock ends with its process, also if that is killed.

    The same process may lock a folder several times. Raises RunLockedError, which names the process
    that holds the lock.
    """
    lock = FileLock(folder / LOCK, timeout=0, is_singleton=True, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunLockedError(
            f"{folder} is in use by {_read_owner(folder)}: wait until that run has ended, stop it, "
            f"or choose another output folder"
        ) from None
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    write_atomic(folder / OWNER, json.dumps(owner) + "\n")
    return lock


def close_run(lock: FileLock) -> None:
    """Release the lock of `open_run`, and remove its files."""
    if lock.is_locked:
        file = Path(lock.lock_file)
        file.with_name(OWNER).unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        lock.release(force=True)


def _read_owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # that process has not written it yet
        return "another process"


# --------------------------------------------------------------------------------------- comparing


def read_settings(folder: Path) -> Config:
    """The config of the run in a folder, from config.json or, if damaged, its newest checkpoint.

    Raises CheckpointError if neither can be read.
    """
    file = folder / "config.json"
    try:
        return build_config(read_json(file))
    except (OSError, ValueError) as error:
        for place in reversed(checkpoints(folder)):
            settings = read_state(place).get("settings")
            if settings:
                return build_config(settings)
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise CheckpointError(
            f"{file} {reason}, and no checkpoint of the run contains its settings: restore this "
            f"file, or choose another output folder"
        ) from None


def differences(old: dict, new: dict) -> dict[str, tuple]:
    """The old and the new value of every setting that differs between two nested dicts.

    Keys are those of overrides: `optimiser.learning_rate`, `reward.1.scale`. A list of one entry
    has no number: `reward.scale`.
    """
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def may_change(key: str, config: Config) -> bool:
    """Whether a run may be resumed with another value of this setting."""
    if key == "iterations":
        return not depends_on_iterations(config)
    return changes_nothing(key)


def changes_nothing(key: str) -> bool:
    """Whether a run computes the same with any value of this setting."""
    of_reward = re.fullmatch(r"(?:reward|evaluation\.held_out)(?:\.\d+)?\.(\w+)", key)
    if of_reward:
        return of_reward[1] in CHANGEABLE_OF_REWARDS
    return key in CHANGEABLE


def _other_settings(folder: Path, config: Config, identity: dict[str, str]) -> str:
    """What is wrong if the run in a folder has other settings; "" if they are the same."""
    if not (folder / "config.json").exists() and not checkpoints(folder):
        return ""
    old, changed = to_dict(read_settings(folder)), {}  # new settings get their defaults
    for key, values in differences(old, to_dict(config)).items():
        compared_by_content = PATHS.fullmatch(key) and key in identity
        if not may_change(key, config) and not compared_by_content:
            changed[key] = values
    if not changed:
        return ""
    listed = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
    overrides = " ".join(f"{key}={as_text(new)}" for key, (_, new) in changed.items())
    return (
        f"{folder} contains a run with other settings ({listed}): "
        f"choose another output folder{branch_hint(folder, overrides)}"
    )


def _other_data(folder: Path, identity: dict[str, str]) -> str:
    """What is wrong if the data of the run in a folder have changed; "" if they have not."""
    changed = changed_data(folder, identity)
    if not changed:
        return ""
    return (
        f"the content of {', '.join(changed)} has changed since the run in {folder} began: "
        f"restore it, or choose another output folder{branch_hint(folder)}"
    )


def branch_hint(folder: Path, overrides: str = "") -> str:
    """The command that starts a new run from the newest checkpoint, as the end of a sentence."""
    found = checkpoints(folder)
    if not found:
        return ""
    command = f"bpgo branch {folder} --at {iteration_of(found[-1])} --output NEW {overrides}"
    return f", or start a new run from its newest checkpoint: {command.strip()}"

"""A new run that continues from a checkpoint of another one, with other settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from bpgo.checkpoint import CheckpointError, find_checkpoint, iteration_of, read_state
from bpgo.config import Config, build_config, to_dict
from bpgo.files import atomic_folder, expand
from bpgo.logs import FILES, drop_rows_after
from bpgo.overrides import apply_overrides
from bpgo.run_folder import differences, read_settings
from bpgo.text_files import read_json

ANCESTRY = "ancestry.json"


def branch(run: Path, output: Path, at: int | None, overrides: Iterable[str]) -> None:
    """Make a new run from a checkpoint of another one, and train it.

    at: the iteration of the checkpoint (None: the newest). overrides: `key=value`, as for
    `read_config`. The new folder gets the checkpoint, the logs up to it and ancestry.json: the
    parent's folder, the iteration, what has changed, and the parent's own ancestry. Running the
    same command again resumes the new run.

    Raises CheckpointError if there is no such checkpoint, or if the folder contains another run;
    and errors as `Trainer` does.
    """
    from bpgo.trainer import Trainer

    config = make_branch(run, output, at, overrides)
    Trainer(config, output).train()


def make_branch(run: Path, output: Path, at: int | None, overrides: Iterable[str]) -> Config:
    """Make the folder of the new run, if it does not exist, and return its config."""
    run, output = expand(run), expand(output)
    source = find_checkpoint(run, at)
    old = read_settings(run)
    tree = to_dict(old)
    apply_overrides(tree, list(overrides))
    config = build_config(tree)
    changed = {
        key: list(values) for key, values in differences(to_dict(old), to_dict(config)).items()
    }
    ancestry = {
        "parent": str(run.resolve()),
        "iteration": iteration_of(source),
        "sha256": read_state(source)["sha256"],
        "changed": changed,
    }
    if (run / ANCESTRY).is_file():
        ancestry["ancestry"] = read_json(run / ANCESTRY)
    if output.exists() and any(output.iterdir()):
        _check_same_branch(output, ancestry)
        return config
    with atomic_folder(output) as partial:
        _copy(run, source, config, changed, partial)
        (partial / ANCESTRY).write_text(json.dumps(ancestry, indent=1) + "\n", encoding="utf-8")
    return config


def _copy(run: Path, source: Path, config: Config, changed: dict, target: Path) -> None:
    """Copy a checkpoint and the logs up to it, with the settings of the new run."""
    copied = target / source.name
    shutil.copytree(source, copied)
    state = read_state(source) | {"settings": to_dict(config)}
    if any(key.startswith(("prior.", "reward.")) for key in changed):
        state["prior"] = None  # it is not that of the new prior or reward
    for file, content in (
        (copied / "state.json", state),
        (target / "config.json", to_dict(config)),
    ):
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name in FILES:
        if (run / f"{name}.jsonl").is_file():
            shutil.copy(run / f"{name}.jsonl", target)
    drop_rows_after(target, iteration_of(source))


def _check_same_branch(output: Path, ancestry: dict) -> None:
    """Raise CheckpointError unless the folder contains the branch that this command made."""
    file = output / ANCESTRY
    if file.is_file() and read_json(file) == ancestry:
        return
    raise CheckpointError(f"{output} is not empty and contains another run: choose another folder")

"""Whether the prompts of a run can be used, and how many there are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from bpgo import setup
from bpgo.checks import describe, errors_of
from bpgo.config import Config
from bpgo.files import FILE_TYPES
from bpgo.generators.wan_checks import refuse_images
from bpgo.preflight.footprints import Footprint
from bpgo.preflight.sizes import local_path
from bpgo.prompt_files import read_prompts
from bpgo.prompts import images_of, key_of
from bpgo.reference import first_frames


class PromptCounts(NamedTuple):
    """How many prompts there are for training and for evaluation, and how many different ones."""

    training: int
    evaluation: int
    different: int


def check_prompts(
    config: Config, footprint: Footprint | None, policy
) -> tuple[PromptCounts, list[str]]:
    """Read all prompts. Returns their counts, and what is wrong with them.

    footprint: of the generator, which says whether prompts need images; None if it is not known.
    policy: without weights, which checks the prompts as in training; None if there is none.
    """
    problems = []
    training = _read("prompts", config.prompts, footprint, problems)
    if training and len(training) < config.groups:
        problems.append(
            f"prompts: {config.prompts} has {len(training)} of the {config.groups} prompts that an "
            f"iteration takes. Lower groups, or add prompts"
        )
    evaluation = training
    if config.evaluation.prompts:
        path = config.evaluation.prompts
        evaluation = _read("evaluation.prompts", path, footprint, problems)
    checks = []
    if training and config.prior.name == "first_frame":
        checks.append(partial(first_frames, training))
    for key, prompts in (("prompts", training), ("evaluation.prompts", evaluation)):
        if prompts and policy is not None:
            checks.append(partial(setup.check_prompts, policy, prompts, key))
    checks += setup.all_column_checks(config, training, evaluation)
    problems += map(describe, errors_of(checks))
    different = {key_of(prompt) for prompt in (*training, *evaluation)}
    counts = PromptCounts(len(training), len(evaluation or training), len(different))
    return counts, problems


def _read(key: str, path: str, footprint: Footprint | None, problems: list[str]) -> list[str]:
    """The prompts of one file. If they cannot be used, adds a problem and returns no prompts."""
    takes_images = footprint is not None and footprint.takes_images
    try:
        prompts = read_prompts(path)
        if takes_images:
            _check_images(path, prompts, footprint)
        return prompts
    except (OSError, ValueError) as error:
        reason = f"there is no file {path}" if _is_absent_file(path) else str(error)
        form = "one prompt per line"
        if takes_images:
            form = 'lines of {"prompt": "...", "image": "path relative to this file"}'
        problems.append(f"{key}: {reason}. Set {key} to a file with {form}")
        return []


def _check_images(path: str, prompts: list[str], footprint: Footprint) -> None:
    images = images_of(prompts)
    if images is None:
        raise ValueError(f"{path} has no images")
    refuse_images(images, footprint.sample.width, footprint.sample.height, prompts)


def _is_absent_file(path: str) -> bool:
    if Path(path).suffix not in FILE_TYPES:
        return False
    try:
        local_path(path)
    except FileNotFoundError:
        return True
    return False

"""The report on a run before it starts: files, prompts, memory, disk space and time.

No model is loaded, and nothing is downloaded unless asked for.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from bpgo.checks import describe, errors_of
from bpgo.config import Config
from bpgo.preflight.files import generator_files, present
from bpgo.preflight.footprints import footprint_of
from bpgo.preflight.launch import Launch, read_launch
from bpgo.preflight.machine import has_gpu
from bpgo.preflight.prompts import check_prompts
from bpgo.preflight.samples import sample_problems
from bpgo.preflight.sections import (
    Section,
    files_section,
    memory_section,
    time_section,
    without_memory,
)
from bpgo.preflight.sizes import pipeline_of
from bpgo.preflight.skeleton import policy_without_weights
from bpgo.setup import setting_errors, with_lora

# as for `bpgo train`
NOTHING_GIVEN = {"generator": None, "objective": None, "prior": None, "reward": None}


class Report(NamedTuple):
    """text: what to print. missing: each reason why the run cannot start, with its remedy."""

    text: str
    missing: list[str]


def preflight(
    config: Config,
    download: bool = False,
    launch: Launch | None = None,
    device_bytes: int | None = None,
    rate: float | None = None,
) -> Report:
    """Check everything that a run with this config needs.

    Whatever training refuses before its first step is listed, as far as it can be found without
    loading weights.

    download: fetch missing files first. launch: by default one process. device_bytes, rate: memory
    of the device to plan for, and operations per second of its matrix products; by default those of
    this machine's GPU or, if it has none, of its RAM and CPU.
    """
    launch, here = launch or Launch(), device_bytes is None
    sections = [files_section(config, download)]
    errors = setting_errors(config, NOTHING_GIVEN, launch.processes, on_this_machine=here)
    policy, policy_errors = _policy(config)
    sections.append(Section([], [describe(error) for error in (*errors, *policy_errors)]))
    if not errors:
        config = with_lora(config)
    pipeline = pipeline_of(config.generator.path)
    footprint = footprint_of(config, pipeline) if pipeline else None
    prompts, problems = check_prompts(config, footprint, policy)
    sections.append(Section([], problems))
    if footprint is None:
        sections.append(Section(without_memory(config, pipeline), []))
    else:
        sections.append(Section([], sample_problems(config, footprint)))
        if not errors:  # without valid settings there is nothing to count
            counted = config if not here or has_gpu() else _without_offloading(config)
            sections.append(memory_section(counted, footprint, prompts, launch, device_bytes))
            sections.append(time_section(config, footprint, prompts, launch, rate))
    lines = [line for section in sections for line in section.lines]
    missing = [problem for section in sections for problem in section.missing]
    lines += [f"Missing: {problem}" for problem in missing] or ["Nothing is missing."]
    return Report("\n".join(lines), missing)


def _policy(config: Config) -> tuple[object | None, list[Exception]]:
    """The policy without weights, if it can be made, and what is wrong with its settings."""
    generator, made = config.generator, []
    if not all(map(present, generator_files(generator.path, generator.policy))):
        return None, []  # the files are listed as missing
    errors = errors_of([lambda: made.append(policy_without_weights(config))])
    return (made[0] if made else None), errors


def _without_offloading(config: Config) -> Config:
    """What a run does where the CPU and the device share their memory (`offload.offloads`)."""
    generator = dataclasses.replace(config.generator, offload=False)
    return dataclasses.replace(config, generator=generator)


def run(
    config: Config,
    download: bool = False,
    launch: str | None = None,
    gigabytes: float | None = None,
    teraflops: float | None = None,
) -> int:
    """Print the report. Returns the exit code: 0 if the run can start, 1 if something is missing.

    launch: a file for `read_launch`. gigabytes, teraflops: the device to plan for, see `preflight`.
    """
    report = preflight(
        config,
        download,
        read_launch(launch) if launch else None,
        round(gigabytes * 1e9) if gigabytes else None,
        teraflops * 1e12 if teraflops else None,
    )
    print(report.text)
    return 1 if report.missing else 0

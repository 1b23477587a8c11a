"""The report on a run before it starts: files, prompts, memory, disk space and time.

No model is loaded, and nothing is downloaded unless asked for.
"""

from __future__ import annotations

from typing import NamedTuple

from bpgo.batching import check_divisible
from bpgo.config import Config
from bpgo.preflight.footprints import footprint_of
from bpgo.preflight.launch import Launch, read_launch
from bpgo.preflight.prompts import check_prompts
from bpgo.preflight.sections import (
    Section,
    files_section,
    memory_section,
    no_memory_section,
    time_section,
)
from bpgo.preflight.sizes import pipeline_of


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

    download: fetch missing files first. launch: by default one process. device_bytes, rate: memory
    of the device to plan for, and operations per second of its matrix products; by default those of
    this machine's GPU or, if it has none, of its RAM and CPU.
    Raises ValueError if the groups cannot be divided evenly over the processes.
    """
    launch = launch or Launch()
    check_divisible(config.groups, config.optimiser.updates, launch.processes)
    sections = [files_section(config, download)]
    pipeline = pipeline_of(config.generator.path)
    footprint = footprint_of(config, pipeline) if pipeline else None
    prompts, problems = check_prompts(config, footprint)
    sections.append(Section([], problems))
    if footprint is None:
        sections.append(no_memory_section(config, pipeline))
    else:
        sections.append(memory_section(config, footprint, prompts, launch, device_bytes))
        sections.append(time_section(config, footprint, prompts, launch, rate))
    lines = [line for section in sections for line in section.lines]
    missing = [problem for section in sections for problem in section.missing]
    lines += [f"Missing: {problem}" for problem in missing] or ["Nothing is missing."]
    return Report("\n".join(lines), missing)


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

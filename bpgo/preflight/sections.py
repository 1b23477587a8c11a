"""The sections of the report: files, memory and time."""

from __future__ import annotations

from typing import NamedTuple

from bpgo.batching import micro_batch_size, rows_per_update, small_micro_batch
from bpgo.config import Config
from bpgo.preflight.files import absence, fetch, needed_files, present
from bpgo.preflight.flops import flops, flops_outside_iterations
from bpgo.preflight.footprints import Footprint, footprint_of
from bpgo.preflight.launch import Launch
from bpgo.preflight.machine import (
    device_memory,
    format_bytes,
    free_bytes,
    has_gpu,
    hub_cache,
    matmul_rate,
    ram,
)
from bpgo.preflight.memory import Memory, condition_bytes, encodes_first, memory
from bpgo.preflight.prompts import PromptCounts
from bpgo.preflight.published import Pipeline
from bpgo.preflight.remedies import host_remedies, remedies
from bpgo.preflight.sizes import reward_bytes
from bpgo.reference import cache_file
from bpgo.registry import TABLES

UTILISATION = 0.4  # assumed: the share of the matmul rate that a training iteration reaches
# The share of a device's memory that a plan may use. The allocator, CUDA and the activations of the
# rewards need the rest.
USABLE = 0.9


OTHER_DEVICE = "a device with more memory"


class Section(NamedTuple):
    """lines: what to print. missing: each reason why the run cannot start, with its remedy."""

    lines: list[str]
    missing: list[str]


def files_section(config: Config, download: bool) -> Section:
    """The files of the generator and of the rewards. download: fetch those that are missing."""
    lines, missing, to_download = ["Files"], [], 0
    for files in needed_files(config):
        failure = None
        if download and files.patterns and not present(files):
            failure = fetch(files)
        here = present(files)
        size, state = format_bytes(files.stored), "here" if here else "missing"
        lines.append(f"  {files.source:44}{size:>10}  {files.licence:38}{state}")
        if not here:
            to_download += files.stored
            missing.append(failure or absence(files))
    free = free_bytes(hub_cache())
    lines.append(
        f"  to download: {format_bytes(to_download)}, free on that disk: {format_bytes(free)}"
    )
    if to_download > free:
        missing.append(
            f"disk: {hub_cache()} lacks {format_bytes(to_download - free)} for the downloads. "
            f"Make room, or set HF_HOME to a folder on another disk"
        )
    return Section(lines, missing)


# ----------------------------------------------------------------------------------- memory


def without_memory(config: Config, pipeline: Pipeline | None) -> list[str]:
    """What to print in place of memory and time if the generator's footprint is not known."""
    policy = config.generator.policy
    if policy is not None and policy not in TABLES["generator"]:
        return [f"Memory and time: not counted, because {policy} is your own policy"]
    if pipeline is None:
        return ["Memory and time: not known without the generator's files"]
    name = policy or pipeline.class_name
    return [f"Memory and time: not counted, because the footprint of a {name} is not known"]


def memory_section(
    config: Config,
    footprint: Footprint,
    prompts: PromptCounts,
    launch: Launch,
    planned: int | None,
) -> Section:
    """Memory of each process by part, and whether it fits. planned: bytes of another device."""
    _, _, uncounted = _reward_memory(config)
    needs = _needs(config, footprint.pipeline, prompts, launch)
    size, rows = (
        micro_batch_size(config, launch.processes),
        rows_per_update(config, launch.processes),
    )
    lines = [
        f"Samples per model call: {size} of the {rows} of an update",
        f"Memory per process ({launch})",
    ]
    warning = small_micro_batch(config, launch.processes)
    if warning:
        lines.insert(1, f"  Warning: {warning}")
    for label, size in (*needs.permanent.listed(), *needs.phases.listed()):
        lines.append(f"  {label:28}{format_bytes(size):>10}")
    for label, size in needs.host.listed():
        lines.append(f"  {'on the CPU: ' + label:28}{format_bytes(size):>10}")
    if uncounted:
        lines.append(f"  not counted, size not known: {', '.join(uncounted)}")
    fit = _fit(config, footprint, prompts, launch, planned)
    stored = Section([], [])
    if encodes_first(config, launch) and prompts.different:
        stored = _stored_conditions(config, footprint, prompts.different)
    return Section([*lines, *fit.lines, *stored.lines], [*stored.missing, *fit.missing])


def _reward_memory(config: Config) -> tuple[int, int, list[str]]:
    """Bytes of the rewards on the policy's device and on the CPU, and which are not counted."""
    device = host = 0
    uncounted = []
    for reward in (*config.reward, *config.evaluation.held_out):
        size = reward_bytes(reward.name, reward.path)
        if size is None:
            uncounted.append(f"reward {reward.name}")
        elif reward.device is None:
            device += size
        elif reward.device == "cpu":
            host += size
    return device, host, uncounted


def _needs(config: Config, pipeline: Pipeline, prompts: PromptCounts, launch: Launch) -> Memory:
    rewards, host_rewards, _ = _reward_memory(config)
    footprint = footprint_of(config, pipeline)
    return memory(config, footprint, rewards, prompts.different, launch, host_rewards)


def _fit(
    config: Config,
    footprint: Footprint,
    prompts: PromptCounts,
    launch: Launch,
    planned: int | None,
) -> Section:
    """Whether a process fits its device, and all processes together fit the RAM."""
    on_cpu, missing = planned is None and not has_gpu(), []

    def on_device(config: Config, launch: Launch) -> int:
        needs = _needs(config, footprint.pipeline, prompts, launch)
        return needs.device + (needs.host.total if on_cpu else 0)

    needs, required = _needs(config, footprint.pipeline, prompts, launch), on_device(config, launch)
    available = planned or device_memory()
    where = "the planned device" if planned else "this machine's GPU"
    if on_cpu:
        where = "this machine's RAM, as it has no GPU"
    usable = USABLE * available
    line = f"  needs {format_bytes(required)} of {format_bytes(usable)} ({USABLE:.0%} of {where})"
    if required > usable:
        excess = format_bytes(required - usable)
        choices = remedies(config, footprint, launch, on_cpu, on_device)
        missing.append(f"memory: {excess} too much. Try {', or '.join(choices) or OTHER_DEVICE}")
    on_host = needs.host.total * launch.processes
    if not on_cpu and not planned and on_host > ram():
        missing.append(
            f"memory: {format_bytes(on_host)} of RAM are needed, and this machine has "
            f"{format_bytes(ram())}. Try {', or '.join(host_remedies(config, launch))}"
        )
    return Section([line], missing)


def _stored_conditions(config: Config, footprint: Footprint, prompts: int) -> Section:
    """The encoded prompts that are kept on disk, and whether they fit."""
    size = condition_bytes(config, footprint) * prompts
    folder = cache_file("conditions", []).parent
    what = f"{prompts} encoded prompts, up to {format_bytes(size)}"
    lines = [f"  on disk in {folder} ($BPGO_CACHE): {what}"]
    free = free_bytes(folder)
    if size <= free:
        return Section(lines, [])
    problem = (
        f"disk: {folder} lacks {format_bytes(size - free)} for the encoded prompts. "
        f"Set BPGO_CACHE to a folder on another disk"
    )
    return Section(lines, [problem])


# ------------------------------------------------------------------------------------- time


def time_section(
    config: Config,
    footprint: Footprint,
    prompts: PromptCounts,
    launch: Launch,
    planned: float | None,
) -> Section:
    """Time of an iteration and of the run. planned: operations per second of another device."""
    half = config.precision == "bf16" or config.generator.dtype == "bfloat16"
    rate = planned or matmul_rate(half)
    operations = flops(config, footprint, launch.processes)
    outside = flops_outside_iterations(
        config, footprint, prompts.training, prompts.evaluation, launch.processes
    )
    seconds = operations / rate / UTILISATION
    hours = seconds * config.iterations * launch.processes / 3600
    hours_outside = outside / rate / UTILISATION / 3600
    origin = "the planned device" if planned else "a matrix product on this machine"
    reached = f"{UTILISATION:.0%} (assumed) of the {rate / 1e12:.3g} TFLOP/s of {origin}"
    lines = [
        f"Time, at {reached}",
        f"  {operations:.2g} operations of the transformer per iteration and process "
        f"(decoding and rewards not counted)",
        f"  {seconds:.3g} s per iteration, "
        f"{hours:.3g} device hours for {config.iterations} iterations",
        f"  {hours_outside:.3g} device hours for evaluations and the prior, "
        f"{hours + hours_outside:.3g} in all",
    ]
    return Section(lines, [])

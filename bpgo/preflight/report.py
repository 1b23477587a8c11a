"""Before a run: which files are missing, whether disk and device can hold it, how long an iteration takes. Nothing is loaded."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from bpgo.config import Config
from bpgo.files import FILE_TYPES, LOGIN
from bpgo.generators.wan import refuse_images
from bpgo.preflight.memory import flops, flops_beside, memory, rows
from bpgo.preflight.published import Files, Pipeline, damage, needed, pipeline_of, present, weight
from bpgo.prompts import images_of, key_of, read_prompts
from bpgo.reference import cache

UTILISATION = 0.4  # assumed: share of the measured matmul rate that a training iteration reaches
SPARE = 0.9  # share of a device's memory that is planned with: the rest is the allocator's, CUDA's and the rewards' own work


class Report(NamedTuple):
    """text: what to print. missing: each thing that keeps the run from starting, with its remedy; empty if there is none."""

    text: str
    missing: list[str]


class Launch(NamedTuple):
    """How a run is started: processes, and whether FSDP2 shards the weights over them."""

    processes: int = 1
    sharded: bool = False


def read_launch(file: str | Path) -> Launch:
    """Of a configuration of `accelerate launch`, as in reproduce/accelerate/."""
    found = yaml.safe_load(Path(file).read_text())
    return Launch(int(found.get("num_processes", 1)), found.get("distributed_type") == "FSDP")


def preflight(
    config: Config,
    download: bool = False,
    launch: Launch | None = None,
    device_bytes: int | None = None,
    rate: float | None = None,
) -> Report:
    """Look at everything that a run of this config needs. download: fetch what is missing first; otherwise nothing is.

    launch: by default one process. device_bytes, rate: memory of the device that is planned for, and operations a second of its matrix
    products; by default this machine's (a GPU's, else RAM and CPU).
    Raises ValueError for groups that these processes cannot share.
    """
    launch = launch or Launch()
    if config.groups % (launch.processes * config.optimiser.updates):
        raise ValueError(
            f"groups={config.groups} cannot be split over optimiser.updates={config.optimiser.updates} times "
            f"{launch.processes} processes"
        )
    lines, missing = ["Files"], []
    asked = [
        (None, config.generator.path),
        *((r.name, r.path) for r in (*config.reward, *config.evaluation.held_out)),
    ]
    files = list(dict.fromkeys(f for each in asked for f in needed(*each)))
    failed = {
        f: problem
        for f in files
        if download and f.patterns and not present(f)
        for problem in _fetch(f)
    }
    wanted = 0
    for f in files:
        here = present(f)
        lines.append(
            f"  {f.hub_id:44}{_size(f.stored):>10}  {f.licence:38}{'here' if here else 'missing'}"
        )
        if not here:
            wanted += f.stored
            how = (
                "run this again with --download"
                if f.patterns
                else "give a folder that exists, a shipped name or a hub id (owner/name)"
            )
            missing.append(
                failed.get(f)
                or damage(f)
                or f"{f.hub_id} is not here: {LOGIN + ', then ' if f.gated else ''}{how}"
            )
    free = shutil.disk_usage(_existing(_hub_cache())).free
    lines.append(f"  to download {_size(wanted)}, free on that disk {_size(free)}")
    if wanted > free:
        missing.append(
            f"the disk lacks {_size(wanted - free)}: make room, or point HF_HOME at another disk"
        )
    pipeline = pipeline_of(config.generator.path)
    training, evaluation, different = _prompts(config, pipeline, missing)
    if pipeline is None:
        return Report(
            "\n".join(
                [
                    *lines,
                    "Memory and time: not known without the generator's files",
                    *_listed(missing),
                ]
            ),
            missing,
        )
    lines += _memory_lines(config, pipeline, different, launch, device_bytes, missing)
    lines += _time_lines(config, pipeline, training, evaluation, launch, rate)
    return Report("\n".join([*lines, *_listed(missing)]), missing)


def run(
    config: Config,
    download: bool = False,
    launch: str | None = None,
    gigabytes: float | None = None,
    teraflops: float | None = None,
) -> int:
    """Print the report. Returns the exit code: 0 if the run can start, 1 if something is missing. launch: a file for `read_launch`."""
    given = read_launch(launch) if launch else None
    report = preflight(
        config,
        download,
        given,
        gigabytes and round(gigabytes * 1e9),
        teraflops and teraflops * 1e12,
    )
    print(report.text)
    return int(bool(report.missing))


def _fetch(f: Files) -> list[str]:
    """Download; returns what went wrong."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(f.hub_id, allow_patterns=list(f.patterns))
    except OSError as error:  # what all of the hub's errors are
        return [
            f"{f.hub_id} could not be downloaded{': ' + LOGIN if f.gated else ''} ({str(error).strip().splitlines()[0]})"
        ]
    return []


def _prompts(config: Config, pipeline: Pipeline | None, missing: list[str]) -> tuple[int, int, int]:
    """How many prompts there are for training and for evaluation, and how many different ones; what cannot be used goes to `missing`."""
    found, counts, g, with_images = (
        set(),
        {},
        config.generator,
        pipeline is not None and pipeline.class_name == "WanImageToVideoPipeline",
    )
    for key, path in (
        ("prompts", config.prompts),
        ("evaluation.prompts", config.evaluation.prompts),
    ):
        try:
            read = read_prompts(path) if path else []
            if path and with_images:
                if (images := images_of(read)) is None:
                    raise ValueError(f"{path} has no images")
                refuse_images(images, g.width or 832, g.height or 480, read)
        except (FileNotFoundError, ValueError) as error:
            says = (
                f"there is no file {path}"
                if Path(path).suffix in FILE_TYPES and "not shipped" in str(error)
                else str(error)
            )
            form = (
                ' a line {"prompt": "...", "image": "path from this file"} each'
                if with_images
                else " a prompt a line"
            )
            missing.append(f"{key}: {says}. Give a file with{form}, by {key}=FILE")
            continue
        counts[key] = len(read)
        if key == "prompts" and len(read) < config.groups:
            missing.append(
                f"prompts: groups={config.groups} an iteration, and {path} has {len(read)}: lower groups, or add prompts"
            )
        found |= set(map(key_of, read))
    training = counts.get("prompts", 0)
    return training, counts.get("evaluation.prompts") or training, len(found)


def _memory_lines(
    config: Config,
    p: Pipeline,
    prompts: int,
    launch: Launch,
    planned: int | None,
    missing: list[str],
) -> list[str]:
    scorers = [*config.reward, *config.evaluation.held_out]
    shared = sum(weight(r.name, r.path) for r in scorers if r.device is None)
    on_cpu = sum(weight(r.name, r.path) for r in scorers if r.device == "cpu")
    always, phases, host = memory(config, p, shared, prompts, *launch)
    here = device_memory()
    device, needs = planned or here, sum(always.values()) + max(phases.values())
    host |= {"rewards": on_cpu} if on_cpu else {}
    cuda = torch.cuda.is_available()
    where = (
        "a device as planned"
        if planned
        else "this machine's GPU"
        if cuda
        else "this machine's RAM (no GPU here)"
    )
    lines = [
        f"Memory of each of {launch.processes} process{'es' * (launch.processes > 1)}{', sharded' * launch.sharded}"
    ]
    lines += [f"  {name:24}{_size(size):>10}" for name, size in always.items() if size]
    lines += [
        f"  while it {name + 's':15}{_size(size):>10}" for name, size in phases.items() if size
    ]
    on_host = sum(host.values()) * launch.processes
    needs += 0 if cuda or planned else sum(host.values())  # then both are the same memory
    lines += [f"  on the CPU: {name:12}{_size(size):>10}" for name, size in host.items()]
    lines.append(f"  needs {_size(needs)} of {SPARE:.0%} of {_size(device)}, {where}")
    if config.generator.offload or launch.processes > 1:  # encoded once, to disk
        stored, place = always["conditions"] // config.groups * prompts, cache("conditions", [])
        lines.append(
            f"  in {place.parent} ($BPGO_CACHE): conditions of {prompts} prompts, up to {_size(stored)}"
        )
        if stored > (free := shutil.disk_usage(_existing(place)).free):
            missing.append(
                f"the disk of {place.parent} lacks {_size(stored - free)} for conditions: point BPGO_CACHE at another disk"
            )
    if needs > SPARE * device:
        missing.append(
            f"memory: {_size(needs - SPARE * device)} too much: try {', or '.join(remedies(config, always, phases, launch))}"
        )
    if cuda and not planned and on_host > (ram := _ram()):
        remedy = "start fewer processes" if launch.sharded else "give rewards a GPU (their device)"
        missing.append(f"memory: the CPU needs {_size(on_host)} and has {_size(ram)}: {remedy}")
    return lines


def remedies(
    config: Config, always: dict[str, int], phases: dict[str, int], launch: Launch
) -> list[str]:
    """Which settings to change, those first that save most."""
    g, largest = config.generator, max(phases, key=phases.get)
    saves = {
        "generator.gradient_checkpointing=true": phases["update"]
        * (largest == "update" and not g.gradient_checkpointing)
    }
    saves["generator.vae_tiling=true"] = phases["decode"] * (
        largest == "decode" and not g.vae_tiling
    )
    saves["generator.lora_rank=32"] = sum(
        always[n] for n in ("gradients", "AdamW's moments", "averaged weights")
    ) * (not g.lora_rank)
    kept = sum(
        always.get(name, 0)
        for name in ("frozen transformers", "text encoders", "autoencoder", "rollout", "conditions")
    )
    saves["generator.offload=true"] = kept * (not g.offload and launch.processes == 1)
    sharding = "accelerate launch --config_file reproduce/accelerate/fsdp2.yaml"
    saves[sharding] = (always["trained weights"] * 4 + always.get("frozen transformers", 0)) * (
        not launch.sharded and not g.offload
    )
    batch = rows(config, launch.processes)[1]
    saves[f"sampling.micro_batch below {batch}"] = phases[largest] // 2 * (batch > 1)
    saves["a smaller generator.height, width" + (" or frames" if g.frames else "")] = (
        phases[largest] // 4
    )
    saves["another device for the rewards (reward.device, evaluation.held_out.device)"] = always[
        "rewards"
    ]
    return [name for name in sorted(saves, key=saves.get, reverse=True) if saves[name]]


def _time_lines(
    config: Config,
    p: Pipeline,
    training: int,
    evaluation: int,
    launch: Launch,
    planned: float | None,
) -> list[str]:
    rate = planned or matmul_rate(
        config.precision == "bf16" or config.generator.dtype == "bfloat16"
    )
    work, beside = (
        flops(config, p, launch.processes),
        flops_beside(config, p, training, evaluation, launch.processes),
    )
    seconds = work / rate / UTILISATION
    hours, more = (
        seconds * config.iterations * launch.processes / 3600,
        beside / rate / UTILISATION / 3600,
    )
    origin = "planned" if planned else "of a matrix product here"
    return [
        f"Time, if {UTILISATION:.0%} (assumed) of the {rate / 1e12:.3g} TFLOP/s {origin} is reached",
        f"  {work:.2g} operations of the transformer an iteration and process (decoding and rewards not counted)",
        f"  {seconds:.3g} s an iteration, {hours:.3g} device hours for {config.iterations} iterations",
        f"  {more:.3g} device hours more for evaluations and prior, {hours + more:.3g} in all",
    ]


def matmul_rate(half: bool) -> float:
    """Operations a second of a square matrix product on this machine, the best of three."""
    cuda = torch.cuda.is_available()
    n, device = (8192, "cuda") if cuda else (512, "cpu")
    a = torch.ones(n, n, device=device, dtype=torch.bfloat16 if half else torch.float32)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def device_memory() -> int:
    """Bytes of this process's GPU, else of the machine's RAM."""
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else _ram()


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _existing(place: Path) -> Path:
    return next(p for p in (place, *place.resolve().parents) if p.exists())


def _size(count: float) -> str:
    unit, name = next(
        ((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= u), (1, "B")
    )
    return f"{count / unit:.1f} {name}" if unit > 1 else f"{count:.0f} B"


def _listed(missing: list[str]) -> list[str]:
    return [f"Missing: {problem}" for problem in missing] or ["Nothing is missing."]

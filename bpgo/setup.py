"""From a config to what a run works with: its folder, the policy, set up to be trained, and the conditions of its prompts."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator

from bpgo.checkpoint import CheckpointError
from bpgo.conditioning import Conditions
from bpgo.config import Config, build_config, differences, to_dict
from bpgo.distributed import sharded
from bpgo.files import write_atomic
from bpgo.generators import load_generator
from bpgo.reference import cache, weights_fingerprint

POLICY_SETTINGS = (
    "height",
    "width",
    "frames",
    "guidance",
    "guidance_2",
    "cfg_gradient",
    "negative_prompt",
    "max_sequence_length",
)
EXTENDABLE = (
    "iterations:",
    "checkpoint_every:",
    "tracker:",
    "guards:",
)  # settings that may change when a run is gone on with


def open_output(output: Path, config: Config) -> None:
    """Refuse at the door a folder that cannot be written to (OSError), or that holds a run of another config (CheckpointError)."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".writable-{os.getpid()}"  # each process of a run its own
        write_atomic(probe, "")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {output}: {error.strerror}. Choose another"
        ) from error
    place = output / "config.json"
    if place.exists():
        old = to_dict(
            build_config(json.loads(place.read_text()))
        )  # settings that have come since are at their defaults
        changed = [d for d in differences(old, to_dict(config)) if not d.startswith(EXTENDABLE)]
        if changed:
            raise CheckpointError(
                f"{output} holds a run with other settings ({'; '.join(changed)}): choose another output folder, or delete it"
            )


def load_policy(config: Config, accelerator: Accelerator):
    """The policy of config.generator with what is to be trained, on this process's device. Raises ValueError, FileNotFoundError."""
    g, device, shards = config.generator, str(accelerator.device), sharded(accelerator)
    if g.offload and accelerator.num_processes > 1:
        raise ValueError(
            "generator.offload is for a single process: shard the weights instead (reproduce/accelerate/fsdp2.yaml)"
        )
    given = {name: getattr(g, name) for name in POLICY_SETTINGS if getattr(g, name) is not None}
    policy = load_generator(
        g.path, dtype=g.dtype, device="cpu" if g.offload or shards else device, **given
    )
    for name in (
        ("vae", *policy.encoders) if shards else ()
    ):  # what is sharded goes to the device a block at a time
        getattr(policy.pipeline, name).to(device)
    for module in policy.modules.values():
        if g.gradient_checkpointing:
            module.enable_gradient_checkpointing()
        if not g.lora_rank:
            module.float().requires_grad_(True)
    if g.lora_rank:
        torch.manual_seed(config.seed)  # adapters start from the seed
        policy.add_lora(g.lora_rank, g.lora_alpha or 2 * g.lora_rank)
    if g.vae_tiling:
        policy.pipeline.vae.enable_tiling()
    if g.compile:
        for module in policy.modules.values():
            module.compile()
    if g.offload:
        policy.offload(device)
    return policy


def make_conditions(
    config: Config, policy, prompts: list[str], accelerator: Accelerator
) -> Conditions:
    """What encodes prompts, each once.

    With generator.offload, or with several processes, all of these now, to disk: then the encoders leave the device for good. Processes
    share the work, and the main one keeps the encoders, on the CPU, to export them with the rest.
    """
    several = accelerator.num_processes > 1
    if not (config.generator.offload or several):
        return Conditions(policy)
    given = to_dict(config)["generator"]
    encoders = {name: getattr(policy.pipeline, name) for name in policy.encoders}
    folder = cache(
        "conditions",
        [
            [given[name] for name in ("path", "dtype", *POLICY_SETTINGS)],
            weights_fingerprint(encoders),
        ],
    )
    conditions = Conditions(policy, folder)
    conditions.prepare(prompts[accelerator.process_index :: accelerator.num_processes])
    accelerator.wait_for_everyone()
    conditions.prepare(prompts)  # what another machine has encoded onto a disk of its own
    if several:
        for encoder in encoders.values():
            encoder.to("cpu" if accelerator.is_main_process else "meta")
    return conditions


@contextmanager
def memory_explained(config: Config):
    """Raise MemoryError with what to change, where memory runs out within."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(
            error, (torch.OutOfMemoryError, MemoryError)
        ) and "can't allocate memory" not in str(error):
            raise
        g, rows = (
            config.generator,
            config.sampling.micro_batch
            or config.groups * config.group_size // config.optimiser.updates,
        )
        knobs = [f"sampling.micro_batch below {rows}"] if rows > 1 else []
        knobs += [
            f"generator.{name}=true"
            for name in ("gradient_checkpointing", "vae_tiling", "offload")
            if not getattr(g, name)
        ]
        knobs += [] if g.lora_rank else ["generator.lora_rank=32"]
        knobs += ["a smaller generator.height, width" + (" or frames" if g.frames else "")]
        raise MemoryError(
            f"out of memory: try {', '.join(knobs)} (first line of the error: {str(error).splitlines()[0]})"
        ) from error

"""Which settings to change when a run needs too much memory."""

from __future__ import annotations

from collections.abc import Callable

from bpgo.batching import check_divisible, micro_batch_size
from bpgo.config import Config, build_config, named_rewards, to_dict
from bpgo.overrides import apply_overrides
from bpgo.preflight.footprints import Footprint
from bpgo.preflight.launch import Launch

SHARDING = "accelerate launch --config_file reproduce/accelerate/fsdp2.yaml"
SHARDED = Launch(8, sharded=True)  # what that file says

Required = Callable[[Config, Launch], int]  # bytes that a device needs


def remedies(
    config: Config, footprint: Footprint, launch: Launch, on_cpu: bool, required: Required
) -> list[str]:
    """What to change, the largest saving first: overrides of this config, and a way to start it.

    Only what lowers the need is listed. on_cpu: whether the device is the CPU, where moving
    something to the CPU saves nothing.
    """
    now, saved = required(config, launch), {}
    for remedy in _overrides(config, footprint, launch, on_cpu):
        saved[remedy] = now - required(_changed(config, remedy), launch)
    if not on_cpu and not config.generator.offload and not launch.sharded and _divides(config):
        saved[SHARDING] = now - required(config, SHARDED)
    return sorted((remedy for remedy in saved if saved[remedy] > 0), key=saved.get, reverse=True)


def host_remedies(config: Config, launch: Launch) -> list[str]:
    """What to change if the RAM beside a GPU is too small."""
    choices = ["fewer processes"] if launch.processes > 1 else []
    rewards = named_rewards(config)
    on_cpu = [f"{key}.device=null" for key, reward in rewards if reward.device == "cpu"]
    if on_cpu:
        choices.append(" ".join(on_cpu))
    if config.generator.offload:
        choices.append("generator.offload=false")
    return choices


def _overrides(config: Config, footprint: Footprint, launch: Launch, on_cpu: bool) -> list[str]:
    """Overrides that may lower the need and are not in force, several of them with spaces."""
    generator, found = config.generator, []
    for name in ("gradient_checkpointing", "vae_tiling"):
        if not getattr(generator, name):
            found.append(f"generator.{name}=true")
    if not generator.lora_rank:
        found.append("generator.lora_rank=32")
    micro_batch = micro_batch_size(config, launch.processes)
    if micro_batch > 1:
        found.append(f"sampling.micro_batch={micro_batch // 2}")
    found += _smaller_samples(footprint)
    if on_cpu:
        return found
    if not generator.offload and launch.processes == 1:
        found.append("generator.offload=true")
    here = [f"{key}.device=cpu" for key, reward in named_rewards(config) if reward.device is None]
    return [*found, " ".join(here)] if here else found


def _smaller_samples(footprint: Footprint) -> list[str]:
    """Settings for samples of about half the size. Images of image-to-video must keep theirs."""
    sample = footprint.sample
    if footprint.takes_images:
        frames = (sample.frames // 2 - 1) // 4 * 4 + 1
        return [f"generator.frames={frames}"] if frames > 0 else []
    multiple = footprint.size_multiple
    height, width = (side * 3 // 4 // multiple * multiple for side in (sample.height, sample.width))
    return [f"generator.height={height} generator.width={width}"] if height and width else []


def _changed(config: Config, overrides: str) -> Config:
    tree = to_dict(config)
    apply_overrides(tree, overrides.split())
    return build_config(tree)


def _divides(config: Config) -> bool:
    try:
        check_divisible(config.groups, config.optimiser.updates, SHARDED.processes)
    except ValueError:
        return False
    return True

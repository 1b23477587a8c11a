"""Which settings to change when a run needs too much memory."""

from __future__ import annotations

from bpgo.batching import micro_batch_size
from bpgo.config import Config
from bpgo.preflight.launch import Launch
from bpgo.preflight.memory import Memory

SHARDING = "accelerate launch --config_file reproduce/accelerate/fsdp2.yaml"
OTHER_DEVICE = "another device for the rewards (reward.device, evaluation.held_out.device)"


def remedies(config: Config, memory: Memory, launch: Launch) -> list[str]:
    """Settings to change, the largest saving first. Those already in force are not listed."""
    generator = config.generator
    permanent, phases = memory.permanent, memory.phases
    largest = phases.largest
    saved = {}
    if largest == phases.update and not generator.gradient_checkpointing:
        saved["generator.gradient_checkpointing=true"] = phases.update
    if largest == phases.decode and not generator.vae_tiling:
        saved["generator.vae_tiling=true"] = phases.decode
    if not generator.lora_rank:
        saved["generator.lora_rank=32"] = (
            permanent.gradients + permanent.moments + permanent.averaged_weights
        )
    if not generator.offload and launch.processes == 1:
        saved["generator.offload=true"] = (
            permanent.frozen_transformers
            + permanent.text_encoders
            + permanent.autoencoder
            + permanent.rollout
            + permanent.conditions
        )
    if not generator.offload and not launch.sharded:
        saved[SHARDING] = 4 * permanent.trained_weights + permanent.frozen_transformers
    micro_batch = micro_batch_size(config, launch.processes)
    if micro_batch > 1:
        saved[f"sampling.micro_batch below {micro_batch}"] = largest // 2
    sizes = "height, width or frames" if generator.frames else "height or width"
    saved[f"a smaller generator.{sizes}"] = largest // 4
    saved[OTHER_DEVICE] = permanent.rewards
    worthwhile = [remedy for remedy, size in saved.items() if size]
    return sorted(worthwhile, key=saved.get, reverse=True)

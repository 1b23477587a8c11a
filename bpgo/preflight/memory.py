"""Bytes that one process of a run needs on its device and on the CPU. No model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from bpgo.batching import micro_batch_size, rows_per_process
from bpgo.config import Config
from bpgo.preflight.activations import (
    decoding_activations,
    sampling_activations,
    update_activations,
)
from bpgo.preflight.flops import trained_steps
from bpgo.preflight.footprints import Footprint
from bpgo.preflight.launch import Launch


class Bytes:
    """Base class of dataclasses that hold the bytes of each part."""

    def listed(self) -> list[tuple[str, int]]:
        """Label and bytes of each part that needs any."""
        labels = [f.metadata.get("label", f.name.replace("_", " ")) for f in fields(self)]
        sizes = [getattr(self, f.name) for f in fields(self)]
        return [(label, size) for label, size in zip(labels, sizes, strict=True) if size]

    @property
    def total(self) -> int:
        return sum(size for _, size in self.listed())


@dataclass(frozen=True, kw_only=True)
class Permanent(Bytes):
    """What stays on the device from one iteration to the next."""

    trained_weights: int
    gradients: int
    moments: int = field(metadata={"label": "AdamW's moments"})
    averaged_weights: int
    starting_weights: int
    ddp_buckets: int = field(metadata={"label": "buckets of DDP"})
    gathered_blocks: int
    rewards: int
    conditions: int
    frozen_transformers: int
    text_encoders: int
    autoencoder: int
    rollout: int


@dataclass(frozen=True, kw_only=True)
class Phases(Bytes):
    """What each phase needs in addition, while it lasts."""

    encode: int = field(metadata={"label": "while encoding"})
    sample: int = field(metadata={"label": "while sampling"})
    decode: int = field(metadata={"label": "while decoding"})
    update: int = field(metadata={"label": "while updating"})

    @property
    def largest(self) -> int:
        return max(self.encode, self.sample, self.decode, self.update)


@dataclass(frozen=True, kw_only=True)
class Host(Bytes):
    """What is on the CPU.

    With several processes, the main one also keeps the text encoders, which are not counted.
    """

    parked_weights: int
    rollout: int
    loading: int
    rewards: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Saving a checkpoint adds nothing. It gathers one tensor at a time, which is less than the
    gathered blocks, onto the CPU of the main process.
    """

    permanent: Permanent
    phases: Phases
    host: Host

    @property
    def device(self) -> int:
        """What the device must hold at its peak."""
        return self.permanent.total + self.phases.largest


def memory(
    config: Config,
    footprint: Footprint,
    rewards: int,
    prompts: int,
    launch: Launch | None = None,
    host_rewards: int = 0,
) -> Memory:
    """What one process needs.

    rewards, host_rewards: bytes of the rewards on the same device and on the CPU. prompts: how many
    different prompts there are.
    """
    launch, weights = launch or Launch(), _weights(config, footprint)
    offload = config.generator.offload
    rollout = _rollout(config, footprint, launch)
    permanent = Permanent(
        **_of_training(config, footprint, weights, launch),
        rewards=rewards,
        conditions=_conditions(config, footprint, prompts, launch),
        frozen_transformers=0 if offload else weights.frozen // launch.shards,
        text_encoders=0 if encodes_first(config, launch) else weights.text_encoders,
        autoencoder=0 if offload else weights.autoencoder,
        rollout=0 if offload else rollout,
    )
    host = Host(
        parked_weights=weights.parked if offload else 0,
        rollout=rollout if offload else 0,
        loading=weights.transformers if launch.sharded else 0,
        rewards=host_rewards,
    )
    return Memory(permanent, _phases(config, footprint, weights, launch), host)


def encodes_first(config: Config, launch: Launch) -> bool:
    """Whether all prompts are encoded up front, to disk. The encoders then leave the device."""
    return config.generator.offload or launch.processes > 1


def lora_parameters(config: Config, footprint: Footprint) -> int:
    """Parameters of one transformer's adapters: rank x (in + out) of each projection."""
    return config.generator.lora_rank * 2 * footprint.width * footprint.lora_projections


# ---------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Weights:
    """Bytes of the models as they are loaded.

    transformer: one of them; Wan2.2 has two. transformers: all of them. frozen, largest_frozen: all
    of them and the largest, if only adapters are trained; else 0.
    """

    transformer: int
    transformers: int
    frozen: int
    largest_frozen: int
    text_encoders: int
    autoencoder: int

    @property
    def parked(self) -> int:
        """What waits on the CPU with offloading."""
        return self.frozen + self.text_encoders + self.autoencoder


def _weights(config: Config, footprint: Footprint) -> Weights:
    parts = footprint.pipeline.parts
    number = _bytes_per_number(config)
    held = {}
    for name, part in parts.items():
        half_able = part.parameters - part.float32_parameters
        held[name] = half_able * number + part.float32_parameters * 4
    lora = config.generator.lora_rank > 0
    transformers = [
        held[name] if lora else 4 * parts[name].parameters  # trained weights are float32
        for name in transformer_names(footprint)
    ]
    encoders = [size for name, size in held.items() if name.startswith("text_encoder")]
    return Weights(
        transformer=transformers[0],
        transformers=sum(transformers),
        frozen=sum(transformers) if lora else 0,
        largest_frozen=max(transformers) if lora else 0,
        text_encoders=sum(encoders),
        autoencoder=parts["vae"].parameters * (4 if footprint.float32_autoencoder else number),
    )


def transformer_names(footprint: Footprint) -> list[str]:
    """The parts that are trained: one transformer, or two experts."""
    return sorted(name for name in footprint.pipeline.parts if name.startswith("transformer"))


def _of_training(
    config: Config, footprint: Footprint, weights: Weights, launch: Launch
) -> dict[str, int]:
    """Bytes of the trained weights, their gradients, moments, averages, copies and buffers."""
    each = footprint.pipeline.parts["transformer"].parameters
    if config.generator.lora_rank:
        each = lora_parameters(config, footprint)
    trained = each * len(transformer_names(footprint))
    copies = launch.processes > 1 and not launch.sharded
    gathered = 2 * weights.transformer // footprint.full_size_blocks  # the running one and the next
    return {
        "trained_weights": 4 * trained // launch.shards,
        "gradients": 4 * trained // launch.shards,
        "moments": 8 * trained // launch.shards,
        "averaged_weights": 4 * trained // launch.shards if config.optimiser.ema_decay else 0,
        "starting_weights": 4 * trained // launch.shards if config.objective.kl else 0,
        "ddp_buckets": 4 * trained if copies else 0,
        "gathered_blocks": gathered if launch.sharded else 0,
    }


# ----------------------------------------------------------------------------------- samples


def _phases(config: Config, footprint: Footprint, weights: Weights, launch: Launch) -> Phases:
    samples = micro_batch_size(config, launch.processes)
    offload = config.generator.offload
    transformer = weights.largest_frozen if offload else 0  # the running one
    autoencoder = weights.autoencoder if offload else 0
    return Phases(
        encode=weights.text_encoders if encodes_first(config, launch) else 0,
        sample=transformer + sampling_activations(config, footprint, samples),
        decode=autoencoder + decoding_activations(config, footprint, samples),
        update=transformer + update_activations(config, footprint, samples),
    )


def _rollout(config: Config, footprint: Footprint, launch: Launch) -> int:
    """Bytes of the samples of an iteration, and of their states around each trained step.

    With a KL term there is also the mean of each trained step of the starting model.
    """
    per_trained_step = 3 if config.objective.kl else 2
    states = 1 + per_trained_step * trained_steps(config)
    rows = rows_per_process(config, launch.processes)
    return 4 * rows * footprint.sample.latent * states


def _conditions(config: Config, footprint: Footprint, prompts: int, launch: Launch) -> int:
    """Bytes of the encoded prompts: of all of them, or of one iteration's if they are on disk."""
    kept = config.groups if encodes_first(config, launch) else prompts
    return condition_bytes(config, footprint) * kept


def condition_bytes(config: Config, footprint: Footprint) -> int:
    """Bytes of one encoded prompt, with that of the negative prompt and the image, if any."""
    sample = footprint.sample
    text = sample.text_tokens * footprint.text_width * sample.rows
    return text * _bytes_per_number(config) + footprint.image_condition


def _bytes_per_number(config: Config) -> int:
    return 4 if config.generator.dtype == "float32" else 2

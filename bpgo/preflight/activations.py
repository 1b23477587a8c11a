"""Bytes of one model call beyond weights and gradients: in the update, in sampling, in decoding."""

from __future__ import annotations

from bpgo.config import Config
from bpgo.preflight.footprints import Footprint


def update_activations(config: Config, footprint: Footprint, samples: int) -> int:
    """Bytes of the forward and backward pass of a micro-batch."""
    generator = config.generator
    lora = generator.lora_rank > 0
    half = config.precision == "bf16" or (lora and generator.dtype != "float32")
    rows = samples * footprint.sample.rows
    kept = footprint.kept(rows, lora, half)
    working = footprint.working(rows, lora, half)
    # Autocast copies float32 weights. It keeps all copies of trained weights until the pass ends,
    # and of frozen ones those that the backward pass needs.
    casts = 0
    if half and (not lora or generator.dtype == "float32"):
        casts = 2 * footprint.pipeline.parts["transformer"].parameters
    blocks = footprint.blocks
    if not generator.gradient_checkpointing:
        all_kept = sum(count * each for count, each in zip(blocks, kept, strict=True))
        return round(all_kept + working + casts)
    # Checkpointing keeps the input of each block, and all of the one block that it recomputes. The
    # peak is in the last block, when all inputs are kept, or in the forward pass.
    inputs = sum(blocks) * footprint.block_input(rows) * (2 if half else 4)
    last_kind = max(i for i, count in enumerate(blocks) if count)
    casts_of_block = casts / sum(blocks)
    backward = kept[last_kind] + working + casts_of_block
    forward = footprint.working_without_gradients(rows, half) + (casts_of_block if lora else casts)
    return round(inputs + max(backward, forward))


def sampling_activations(config: Config, footprint: Footprint, samples: int) -> int:
    """Bytes of a model call without gradients, and of the noise that is drawn before it."""
    generator, autocast = config.generator, config.precision == "bf16"
    half = autocast or generator.dtype != "float32"
    rows = samples * footprint.sample.rows
    working = footprint.working_without_gradients(rows, half)
    casts = 0
    if autocast and not generator.lora_rank:
        casts = 2 * footprint.pipeline.parts["transformer"].parameters
    noise = 4 * samples * footprint.sample.latent * config.sampling.steps
    return round(working + casts + noise)


def decoding_activations(config: Config, footprint: Footprint, samples: int) -> int:
    """Bytes of decoding a micro-batch: inside the decoder, or of three copies of its pixels."""
    sample = footprint.sample
    float32 = footprint.float32_autoencoder or config.generator.dtype == "float32"
    decoder = footprint.decoder_numbers * sample.tile * (4 if float32 else 2)
    pixels = 3 * 3 * 4 * sample.pixels * sample.frames
    return round(samples * max(decoder, pixels))

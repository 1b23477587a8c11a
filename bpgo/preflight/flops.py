"""Floating-point operations of the transformer.

Those of decoding, rewards and text encoders are not counted.
"""

from __future__ import annotations

import math

from bpgo.batching import rows_per_process
from bpgo.config import Config
from bpgo.preflight.footprints import Footprint

SAMPLES_ITS_REFERENCE = ("sft", "sft_per_prompt")


def flops(config: Config, footprint: Footprint, processes: int = 1) -> float:
    """Operations of one process in one iteration: rollout and updates."""
    generator = config.generator
    passes_per_trained_step = 3  # forward, and the gradients of activations and of weights
    if generator.lora_rank:
        passes_per_trained_step -= 1  # the weights are frozen
    if generator.gradient_checkpointing:
        passes_per_trained_step += 1  # the forward pass again
    updates = trained_steps(config) * config.optimiser.epochs * passes_per_trained_step
    passes = config.sampling.steps + updates
    if config.objective.kl:
        passes += trained_steps(config)  # of the starting model
    return _flops_per_pass(footprint) * rows_per_process(config, processes) * passes


def flops_outside_iterations(
    config: Config, footprint: Footprint, training: int, evaluation: int, processes: int = 1
) -> float:
    """Operations of the evaluations and of an SFT prior in a run, summed over all processes.

    training, evaluation: how many prompts there are of each. The processes share the evaluations.
    For an SFT prior each of them samples once, and the result is cached for later runs.
    """
    e = config.evaluation
    evaluations = math.ceil(config.iterations / (e.every or config.iterations)) + 1
    samples = evaluations * evaluation * e.samples
    if config.prior.name in SAMPLES_ITS_REFERENCE:
        samples += training * config.prior.samples * processes
    return _flops_per_pass(footprint) * e.steps * samples


def trained_steps(config: Config) -> int:
    """How many steps of a rollout are trained."""
    sampling = config.sampling
    return sampling.window or max(1, round(sampling.trained_share * (sampling.steps - 1)))


def _flops_per_pass(footprint: Footprint) -> float:
    return float(footprint.operations * footprint.sample.rows)

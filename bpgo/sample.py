"""Samples of a run's model, before, during or after training, as one picture or animation."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from bpgo import setup
from bpgo.conditioning import Conditions
from bpgo.config import Config
from bpgo.distributed import distribute
from bpgo.images import open_image
from bpgo.memory import memory_explained
from bpgo.pictures import ANIMATION_FILES, GRID_FILES, check_ending, save_animation, save_grid
from bpgo.prompts import Prompt, key_of
from bpgo.rollout import integrate, micro_batches, row_noise, seed_of, select
from bpgo.sde import sigma_grid
from bpgo.trained import find_iteration, load_trained, read_run

FPS = 16  # Wan's frames per second


def sample_run(
    run: Path,
    prompts: list[str],
    output: Path | None = None,
    at: int | None = None,
    seed: int = 0,
    samples: int = 8,
    steps: int | None = None,
    policy=None,
) -> Path:
    """Sample prompts with the model of a run, and save a row of samples for each prompt.

    The noise depends only on the prompt, the seed and the number of the sample, so that pictures of
    several checkpoints can be compared. prompts: texts, or `bpgo.prompts.Prompt` with images for
    image-to-video. output: by default in the run's folder, a PNG, or a GIF of videos; see
    `bpgo.pictures` for other endings. at: the iteration of the checkpoint; None for the newest, 0
    for the model that the run started from. steps: ODE steps; None for those of evaluations.
    policy: the object that was passed to Trainer, if there was one.

    Returns the file. Raises ValueError or OSError, as `load_trained` does, also for prompts that
    the generator refuses and for a file that cannot be written.
    """
    config, at = read_run(run), find_iteration(run, at)
    _check_counts(prompts, samples, steps)
    if output is not None:
        check_ending(output, (*GRID_FILES, *ANIMATION_FILES))  # before anything is loaded
    accelerator = Accelerator(mixed_precision="no")  # `distribute` applies the run's
    with memory_explained(config):
        policy = load_trained(run, config, at, str(accelerator.device), policy)
        setup.check_prompts(policy, prompts, "prompts")
        is_video = len(policy.latent_shape()) > 3
        if output is None:
            output = run / _file_name(prompts[0], at, seed, ".gif" if is_video else ".png")
        check_ending(output, ANIMATION_FILES if is_video else GRID_FILES)
        policy.modules = distribute(
            accelerator, policy.modules, config.precision, keep_device=config.generator.offload
        )
        pixels = sample(policy, config, prompts, seed, samples, steps or config.evaluation.steps)
    if is_video:
        save_animation(pixels, output, min(FPS, pixels.shape[2]))  # short clips last a second
    else:
        save_grid(pixels, output)
    return output


def sample(
    policy, config: Config, prompts: list[str], seed: int, samples: int, steps: int
) -> Tensor:
    """Pixels (P, S, 3, H, W), for videos (P, S, F, 3, H, W), of P prompts with S samples each."""
    conditions, sigmas = Conditions(policy), sigma_grid(steps, config.sampling.shift)
    pixels = []
    for prompt in prompts:
        cond = conditions([prompt])
        seeds = [seed_of("sample", seed, key_of(prompt), i) for i in range(samples)]
        parts = []
        for rows in micro_batches(samples, config.sampling.micro_batch):
            noise = row_noise(seeds[rows], policy.latent_shape(), 1, policy.device)[0]
            latents = integrate(policy, noise, select(cond, rows, samples), sigmas)
            parts.append(policy.decode(latents).cpu())
        pixels.append(torch.cat(parts))
    return torch.stack(pixels)


def with_image(prompts: list[str], file: Path) -> list[str]:
    """Prompts for image-to-video that all start from the image in a file.

    Raises ValueError or OSError if it cannot be read.
    """
    image = open_image(file.name, file.parent, "the image to start from")
    return [Prompt(prompt, image) for prompt in prompts]


def _check_counts(prompts: list[str], samples: int, steps: int | None) -> None:
    if not prompts:
        raise ValueError("there is no prompt to sample: give at least one")
    if samples < 1:
        raise ValueError(f"the number of samples (-n) must be at least 1, not {samples}")
    if steps is not None and steps < 1:
        raise ValueError(f"the number of steps (--steps) must be at least 1, not {steps}")


def _file_name(prompt: str, at: int, seed: int, ending: str) -> str:
    """A name that says what was sampled, in characters that every file system has."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return "-".join(part for part in ("sample", words, f"{at:06d}", f"seed{seed}") if part) + ending

"""Pictures of a run while it trains, in its folder samples/ and in its tracker.

The evaluation at iteration 25 writes samples/000025.png, or samples/000025.gif for videos, with one
row of samples per prompt, and samples/000025.json with the prompts and the rewards of the samples.
The noise of a sample depends only on its prompt, so the same place in two of these pictures shows
what the training between them has changed. With several processes, the prompts are the first ones
that the main process evaluates.

Nothing here draws random numbers or ends a run.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bpgo.evaluation import Scores
from bpgo.files import write_atomic
from bpgo.pictures import GAP, grid, save_animation, save_grid

if TYPE_CHECKING:
    from PIL import Image

    from bpgo.trainer import Trainer

FOLDER = "samples"
SAMPLES = 4  # of each prompt
LARGEST = 512  # pixels: longer sides of images are reduced to this
LARGEST_VIDEO = 256
FRAMES = 8  # of a video that a tracker shows, side by side


def show(trainer: Trainer, found: Scores) -> None:
    """Save and track the pictures of an evaluation, and track histograms.

    found: the evaluation. Its first `evaluation.pictures` prompts are shown, with up to SAMPLES
    samples each. If that fails (disk full, a policy whose pixels are not RGB), a warning says so.
    """
    if not trainer.accelerator.is_main_process:
        return
    picture = None
    if trainer.config.evaluation.pictures and found.pixels.numel():
        try:
            picture = _save_first(trainer, found)
        except (OSError, ValueError) as error:
            warnings.warn(
                f"the pictures of iteration {trainer.iteration} could not be saved ({error}). "
                f"Training continues; evaluation.pictures=0 turns them off",
                stacklevel=2,
            )
    histograms = {f"evaluation/{name}": values for name, values in found.scores.items()}
    histograms |= trainer.groups
    for tracker in trainer.accelerator.trackers:
        track(tracker, trainer.iteration, picture, histograms)


def _save_first(trainer: Trainer, found: Scores) -> Image.Image:
    """Save the samples of the first prompts. Returns a still picture of them."""
    pixels = reduced(found.pixels[: trainer.config.evaluation.pictures, :SAMPLES])
    own = trainer.own_evaluation_prompts()[: len(pixels)]
    prompts = [trainer.evaluation_prompts[i] for i in own]
    rewards = found.scores["reward"][own, :SAMPLES].tolist()
    save(trainer.output / FOLDER, trainer.iteration, pixels, prompts, rewards)
    return film(pixels)


def save(
    folder: Path, iteration: int, pixels: Tensor, prompts: list[str], rewards: list[list[float]]
) -> None:
    """Write images (P, S, 3, H, W) or videos (P, S, F, 3, H, W), and what they show.

    prompts: P. rewards: (P, S). Files of the same iteration are replaced. Raises OSError if they
    cannot be written, and ValueError for pixels of another shape.
    """
    name = f"{iteration:06d}"
    if pixels.ndim == 6:
        save_animation(pixels, folder / f"{name}.gif")
    else:
        save_grid(pixels, folder / f"{name}.png")
    shown = {"iteration": iteration, "prompts": prompts, "rewards": rewards, "gap": GAP}
    write_atomic(folder / f"{name}.json", json.dumps(shown, indent=1) + "\n")


def reduced(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) in [0, 1]. If a side is too long, both are reduced by averaging."""
    pixels = pixels.float().nan_to_num(0.0).clamp(0, 1)
    height, width = pixels.shape[-2:]
    scale = (LARGEST_VIDEO if pixels.ndim == 6 else LARGEST) / max(height, width)
    if scale >= 1:
        return pixels
    size = round(scale * height), round(scale * width)
    smaller = torch.nn.functional.interpolate(pixels.flatten(0, -4), size=size, mode="area")
    return smaller.unflatten(0, pixels.shape[:-3])


def film(pixels: Tensor) -> Image.Image:
    """One still picture: all images, or some frames of the first video of each prompt."""
    if pixels.ndim == 6:
        frames = np.linspace(0, pixels.shape[2] - 1, min(FRAMES, pixels.shape[2]))
        pixels = pixels[:, 0, frames.round().astype(int)]
    return grid(pixels)


def track(tracker, iteration: int, picture: Image.Image | None, histograms: dict) -> None:
    """Send a picture and histograms, {name: tensor}, to one of accelerate's trackers."""
    finite = {name: v[v.isfinite()].float().cpu().numpy() for name, v in histograms.items()}
    finite = {name: values for name, values in finite.items() if values.size}
    if tracker.name == "tensorboard":
        if picture is not None:
            batch = {FOLDER: np.asarray(picture)[None]}
            tracker.log_images(batch, step=iteration, dataformats="NHWC")
        for name, values in finite.items():
            tracker.tracker.add_histogram(name, values, iteration)
        tracker.tracker.flush()
    elif tracker.name == "wandb":
        import wandb

        if picture is not None:
            tracker.log_images({FOLDER: [picture]}, step=iteration)
        tracker.log({name: wandb.Histogram(v) for name, v in finite.items()}, step=iteration)

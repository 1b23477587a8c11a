"""Checks of the Wan policy for pipelines and options that it does not support, and for images."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from bpgo.images import as_rgb
from bpgo.prompts import list_problems


def refuse_other_pipelines(pipeline) -> None:
    """Raise ValueError for a pipeline that `WanPolicy` cannot run as published."""
    name, config = type(pipeline).__name__, pipeline.config
    if name not in ("WanPipeline", "WanImageToVideoPipeline"):
        raise ValueError(f"{name} is not a WanPipeline or WanImageToVideoPipeline")
    if config.expand_timesteps:
        raise ValueError(
            "expand_timesteps (Wan2.2-TI2V-5B) is not supported: use Wan2.1-T2V, Wan2.2-T2V-A14B "
            "or Wan2.2-I2V-A14B"
        )
    if pipeline.transformer is None:
        raise ValueError(
            "the pipeline has no transformer (of two experts, the one for high noise): "
            "copy it into the pipeline's folder"
        )
    _refuse_half_of_two_experts(pipeline)
    has_image_encoder = getattr(pipeline, "image_encoder", None) is not None
    if has_image_encoder or pipeline.transformer.config.image_dim is not None:
        raise ValueError(
            "image-to-video with an image encoder (Wan2.1-I2V) is not supported: "
            "use Wan2.2-I2V-A14B"
        )
    latent = pipeline.vae.config.z_dim
    expected = latent if name == "WanPipeline" else 2 * latent + pipeline.vae_scale_factor_temporal
    for part in (pipeline.transformer, pipeline.transformer_2):
        if part is not None and part.config.in_channels != expected:
            raise ValueError(
                f"a {name} with {latent} latent channels needs in_channels {expected}, "
                f"not {part.config.in_channels}"
            )


def _refuse_half_of_two_experts(pipeline) -> None:
    boundary, second = pipeline.config.boundary_ratio, pipeline.transformer_2
    both = "two experts need both, one expert needs neither"
    if boundary is None and second is not None:
        raise ValueError(
            f"the pipeline's model_index.json has transformer_2 but no boundary_ratio: {both}"
        )
    if boundary is not None and second is None:
        raise ValueError(
            f"the pipeline's model_index.json has boundary_ratio {boundary} but no transformer_2: "
            f"{both}"
        )
    if boundary is not None and not 0 < boundary < 1:
        raise ValueError(
            f"boundary_ratio in the pipeline's model_index.json must lie between 0 and 1, "
            f"not {boundary}"
        )


def check_parts(folder: Path) -> None:
    """Raise FileNotFoundError if the folder lacks a part that its model_index.json names."""
    index = folder / "model_index.json"
    if not index.is_file():  # a hub id
        return
    for name, entry in json.loads(index.read_text(encoding="utf-8")).items():
        is_part = isinstance(entry, list) and all(entry)
        if is_part and not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{index} names {name} ({entry[1]}), but there is no folder {folder / name}: "
                f"copy it too"
            )


def check_guidance(pipeline, guidance: float, guidance_2: float | None, cfg_gradient: str) -> None:
    """Raise ValueError for a guidance setting that does not exist or has no effect."""
    if cfg_gradient not in ("both", "conditional"):
        raise ValueError(f'cfg_gradient must be "both" or "conditional", not {cfg_gradient!r}')
    if guidance_2 is None:
        return
    if pipeline.transformer_2 is None or guidance <= 1 < guidance_2:
        raise ValueError(
            f"guidance_2={guidance_2} would have no effect: it needs a second expert, "
            f"and guidance above 1, not {guidance}"
        )


def refuse_images(images, width: int, height: int, prompts: list[str]) -> None:
    """Raise ValueError for images that are not of this size or cannot be used as they are.

    images: PIL images, which `bpgo.images.as_rgb` converts, or a float tensor (B, 3, H, W) in
    [0, 1]. The message lists all prompts whose image cannot be used.
    """
    if isinstance(images, Tensor):
        _refuse_tensor(images, width, height)
        return
    problems = []
    for image, prompt in zip(images, prompts, strict=False):
        try:
            size = as_rgb(image).size
            if size != (width, height):
                problems.append((prompt, f"its image is {size[0]} x {size[1]} pixels"))
        except ValueError as error:
            problems.append((prompt, str(error)))
    if problems:
        what = (
            f"images must be {width} x {height} pixels (use image.resize(({width}, {height})), or "
            f"another height and width)"
        )
        raise ValueError(list_problems(problems, what, prompts))


def _refuse_tensor(images: Tensor, width: int, height: int) -> None:
    if images.shape[1:] != (3, height, width) or not images.is_floating_point():
        raise ValueError(
            f"images must be float (B, 3, {height}, {width}), "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    low, high = images.amin(), images.amax()
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise ValueError(
            f"images must lie in [0, 1], not [{low:g}, {high:g}]: divide by 255, or clamp"
        )

"""The size and the patches of frames, for all rewards that read videos with a Qwen-VL."""

from __future__ import annotations

from math import ceil, floor, inf, sqrt
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bpgo.prompts import list_problems
from bpgo.tokenization import each_once

VIDEO = "<|video_pad|>"  # the token that stands for a part of a video


def check_rate(name: str, value: float) -> None:
    """Raise ValueError for frames per second that are not a positive, finite number."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < inf:
        raise ValueError(
            f"the reward's option {name} must be a positive number of frames per second, "
            f"not {value!r}"
        )


def refuse_special_tokens(tokens: tuple[str, ...], prompts: list[str]) -> None:
    """Raise ValueError, listing all prompts that contain a token that stands for something else."""
    problems = []
    for prompt in each_once(prompts):
        found = [token for token in tokens if token in prompt]
        if found:
            problems.append((prompt, ", ".join(found)))
    if problems:
        what = "these prompts contain special tokens of the reward's model, so remove them"
        raise ValueError(list_problems(problems, what, prompts))


def smart_resize(height: int, width: int, side: int, low: int, high: int) -> tuple[int, int]:
    """The size to which Qwen-VL resizes a frame: near its aspect ratio, with low..high pixels.

    Returns (height, width) as multiples of `side`. Raises ValueError for an aspect ratio above 200.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"Qwen-VL takes frames with an aspect ratio of up to 200, not {height} x {width}"
        )
    fitted = [max(side, round(n / side) * side) for n in (height, width)]
    if fitted[0] * fitted[1] > high:
        shrink = sqrt(height * width / high)
        fitted = [floor(n / shrink / side) * side for n in (height, width)]
    elif fitted[0] * fitted[1] < low:
        enlarge = sqrt(low / (height * width))
        fitted = [ceil(n * enlarge / side) * side for n in (height, width)]
    return fitted[0], fitted[1]


def fit(pixels: Tensor, side: int, low: int, high: int) -> Tensor:
    """Resize frames (..., 3, H, W) in [0, 1] to the size of `smart_resize`; returns [0, 1] again.

    The resize is bicubic and antialiased. Values are rounded to bytes before and after it.
    """
    size = smart_resize(*pixels.shape[-2:], side, low, high)
    levels = pixels.float().clamp(0, 1).mul(255).round()
    if levels.shape[-2:] != size:
        frames = levels.flatten(0, -4)
        resized = interpolate(frames, size=size, mode="bicubic", antialias=True)
        levels = resized.clamp(0, 255).round()
    return levels.div(255).reshape(*pixels.shape[:-2], *size)


def patchify(frames: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Cut frames (B, T, 3, H, W), with T even, into Qwen-VL's patches.

    Returns the patches, (B T/2 H/patch W/patch, 6 patch²), and the grid of each video, (B, 3): T/2,
    H/patch, W/patch.
    """
    batch, count, _, height, width = frames.shape
    time, down, right = count // 2, height // patch, width // patch
    # The four patches that become one token follow each other.
    parts = frames.reshape(batch, time, 2, 3, down // 2, 2, patch, right // 2, 2, patch)
    patches = parts.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(batch * time * down * right, -1)
    return patches, torch.tensor([[time, down, right]] * batch, device=frames.device)

"""What a reward may be given and what it may return.

The checks name what was found and its likely cause. Otherwise pixels from 0 to 255, or in [-1, 1],
would get scores that are finite and wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-3  # pixels may be outside [0, 1] by this much, for the rounding of half precision
SHAPES = "(B, 3, H, W) images or (B, F, 3, H, W) videos"


class RewardError(ValueError):
    """A reward raised an error, returned something that cannot be trained on, or was given pixels
    or prompts that it cannot score."""


class CallError(RewardError):
    """A reward raised an error, or its process ended: a repeated call may succeed."""


def check_samples(pixels: Tensor, prompts: list[str], what: str) -> None:
    """Check pixels and prompts completely: `check_form`, and values that are finite and in [0, 1].

    what: the start of messages, such as "reward 'clip'". Values may be outside [0, 1] by TOLERANCE.
    Raises RewardError.
    """
    check_form(pixels, prompts, what)
    pixels = pixels.detach().float()
    # One transfer from the device instead of three.
    finite, low, high = torch.stack(
        [pixels.isfinite().all().float(), pixels.min(), pixels.max()]
    ).tolist()
    if not finite:
        raise RewardError(f"{what}: {_not_finite(pixels, prompts)}")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise RewardError(
            f"{what}: pixels must be in [0, 1], but they are from {low:g} to {high:g}: "
            f"{_range_remedy(low, high)}"
        )


def check_form(pixels: Tensor, prompts: list[str], what: str) -> None:
    """Check types, shapes and counts, which needs no transfer from the device.

    Pixels are a floating-point tensor, (B, 3, H, W) images or (B, F, 3, H, W) videos, and prompts
    a list of B strings. what: the start of messages. Raises RewardError.
    """
    if not isinstance(pixels, Tensor):
        raise RewardError(
            f"{what}: pixels must be a tensor, {SHAPES} in [0, 1], not {type(pixels).__name__} "
            f"(bpgo.prompts.pixels_of turns a list of RGB PIL images into such a tensor)"
        )
    shape = tuple(pixels.shape)
    if pixels.ndim not in (4, 5) or shape[-3] != 3 or pixels.numel() == 0:
        raise RewardError(f"{what}: pixels must be {SHAPES}, not {shape}{_shape_remedy(shape)}")
    if not pixels.is_floating_point():
        raise RewardError(
            f"{what}: pixels must be floating-point numbers in [0, 1], not {pixels.dtype}"
            f"{_dtype_remedy(pixels.dtype)}"
        )
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        remedy = "[prompt]" if isinstance(prompts, str) else "list(prompts)"
        raise RewardError(
            f"{what}: prompts must be a list of strings, not {type(prompts).__name__}: "
            f"pass {remedy}"
        )
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise RewardError(
                f"{what}: prompts must be strings, but prompts[{number}] is "
                f"{type(prompt).__name__}: {repr(prompt)[:60]}"
            )
    if len(pixels) != len(prompts):
        samples = "videos" if pixels.ndim == 5 else "images"
        raise RewardError(f"{what}: {len(pixels)} {samples} for {len(prompts)} prompts")


def numbers(values: object) -> Tensor:
    """What a reward returned, as a tensor of its own without gradients. Truth values are 0 and 1.

    Raises TypeError for anything but real numbers.
    """
    try:
        found = torch.as_tensor(values).detach().clone()
    except Exception as error:  # `values` comes from any user's code
        raise TypeError(f"returned {type(values).__name__}, not numbers ({error})") from error
    if found.is_complex():
        raise TypeError("returned complex numbers")
    if found.layout != torch.strided:
        raise TypeError(f"returned a {found.layout} tensor: use to_dense()")
    return found


def _shape_remedy(shape: tuple[int, ...]) -> str:
    """The likely cause of a wrong shape, as the end of a message."""
    if 0 in shape:
        return ": there is nothing to score"
    if len(shape) in (4, 5) and shape[-1] == 3:
        order = "0, 3, 1, 2" if len(shape) == 4 else "0, 1, 4, 2, 3"
        return f": the colours come last, so use pixels.permute({order})"
    if len(shape) == 5 and shape[1] == 3:
        return ": the frames come after the colours, so use pixels.transpose(1, 2)"
    if len(shape) == 3 and 3 in (shape[0], shape[-1]):
        one = "pixels[None]" if shape[0] == 3 else "pixels.permute(2, 0, 1)[None]"
        return f": for a single image, use {one}"
    if len(shape) in (4, 5) and shape[-3] == 1:
        sizes = ", ".join("3" if i == len(shape) - 3 else "-1" for i in range(len(shape)))
        return f": for grey pixels, use pixels.expand({sizes})"
    if len(shape) in (4, 5) and shape[-3] == 4:
        return ": for pixels with transparency, use pixels[..., :3, :, :]"
    return ""


def _dtype_remedy(dtype: torch.dtype) -> str:
    if dtype == torch.uint8:
        return ": divide by 255"
    if dtype == torch.bool:
        return ": use pixels.float()"
    return ": if they are from 0 to 255, divide by 255"


def _range_remedy(low: float, high: float) -> str:
    """The likely cause of pixels outside [0, 1], as the end of a message."""
    if low < 0 and low >= -1 - TOLERANCE and high <= 1 + TOLERANCE:
        return "if they are in [-1, 1], use (x + 1) / 2"
    if low >= 0 and high <= 255:
        return "if they are from 0 to 255, divide by 255"
    return "undo a normalisation by mean and standard deviation, or use x.clamp(0, 1)"


def _not_finite(pixels: Tensor, prompts: list[str]) -> str:
    """Which samples have values that are not finite, and why the reward is not at fault."""
    bad = (~pixels.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    value = "nan" if pixels[bad[0]].isnan().any() else "inf"
    return (
        f"the pixels that it was given are not finite: sample {bad[0]}, for prompt "
        f"{str(prompts[bad[0]])[:60]!r}, contains {value} ({len(bad)} of {len(pixels)} samples). "
        f"The fault lies in what made the pixels, such as a policy with weights that are not finite"
    )

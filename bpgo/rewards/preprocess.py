"""From pixels in [0, 1] to the input of a vision encoder, in torch alone (without torchvision)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import interpolate


def check_images(pixels: Tensor) -> None:
    """Raise ValueError for pixels that are not (B, 3, H, W), such as videos."""
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"this reward takes images (batch, 3, height, width) in [0, 1], "
            f"not {tuple(pixels.shape)}"
        )


def check_videos(pixels: Tensor, reward: str) -> None:
    """Raise ValueError, with the name of the reward, for pixels that are not (B, F, 3, H, W)."""
    if pixels.ndim != 5 or pixels.shape[2] != 3:
        raise ValueError(
            f"{reward} takes videos (batch, frames, 3, height, width) in [0, 1], "
            f"not {tuple(pixels.shape)}"
        )


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels (..., 3, H, W) minus the mean of their colour channel, divided by its std."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def centre_crop(
    pixels: Tensor,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    half: Callable[[int], int],
) -> Tensor:
    """Resize the shorter side to `side` pixels, crop the centre and normalise, as CLIP does.

    pixels: (B, 3, H, W) in [0, 1]. half: `rounded_half` or `floored_half`, how many of the rows or
    columns that are left over are cut off at the top or on the left. Returns (B, 3, side, side).
    The resize is bicubic, antialiased and clamped to [0, 1]. The longer side is rounded down, as
    upstream everywhere. Upstream resizes with PIL, which also rounds to bytes after each of its two
    passes. Raises ValueError for another shape, such as videos.
    """
    check_images(pixels)
    shortest = min(pixels.shape[-2:])
    if shortest != side:
        size = [n * side // shortest for n in pixels.shape[-2:]]
        pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (half(n - side) for n in pixels.shape[-2:])
    return normalise(pixels[..., top : top + side, left : left + side], mean, std)


def rounded_half(number: int) -> int:
    """Half of a number, rounded as torchvision's CenterCrop does: ties go to the even number."""
    return round(number / 2)


def floored_half(number: int) -> int:
    """Half of a number, rounded down as the image processors of transformers do."""
    return number // 2


def stretch(pixels: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Resize to side x side, ignoring the aspect ratio, and normalise.

    pixels: (B, 3, H, W) in [0, 1]. Returns (B, 3, side, side). The resize is bilinear without
    antialiasing, the default of cv2.resize. cv2 also rounds bytes to 1/255, which is not done here.
    """
    if pixels.shape[-2:] != (side, side):
        pixels = interpolate(
            pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=False
        )
    return normalise(pixels, mean, std)

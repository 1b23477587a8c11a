"""From pixels in [0, 1] to what a vision encoder expects, in torch alone (no torchvision)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate


def centre_crop(
    pixels: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Shortest side to `side` pixels (bicubic, antialiased, clamped to [0, 1]), centre crop, normalise: CLIP's own steps.

    pixels: (B, 3, H, W) in [0, 1]. Returns (B, 3, side, side). Raises ValueError for another shape, such as videos.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"this reward takes pictures (batch, 3, height, width) in [0, 1], not {tuple(pixels.shape)}"
        )
    shortest = min(pixels.shape[-2:])
    if shortest != side:
        size = [n * side // shortest for n in pixels.shape[-2:]]
        pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((n - side) // 2 for n in pixels.shape[-2:])
    pixels = pixels[..., top : top + side, left : left + side]
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def stretch(pixels: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """To side x side without keeping the aspect, bilinear without antialias (cv2.resize's default), then normalise.

    pixels: (B, 3, H, W) in [0, 1]. Returns (B, 3, side, side). cv2 on bytes also rounds to 1/255, which is not done here.
    """
    if pixels.shape[-2:] != (side, side):
        pixels = interpolate(
            pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=False
        )
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]

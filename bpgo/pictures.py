"""Grids of images and animations of videos, for people to look at.

A row shows the samples of one prompt. Tiny pictures are enlarged without smoothing.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bpgo.files import write_atomic

if TYPE_CHECKING:
    from PIL import Image

SMALLEST = 128  # pixels: smaller sides are enlarged to at least this
GAP = 4  # white pixels between two pictures
PALETTE_FRAMES = 16  # a GIF's colours are chosen from at most about this many of its frames
GRID_FILES = (".png", ".webp", ".jpg", ".jpeg")
ANIMATION_FILES = (".gif", ".webp", ".mp4")


def grid(pixels: Tensor) -> Image.Image:
    """Images (P, S, 3, H, W) in [0, 1] as one RGB picture of P rows and S columns.

    Raises ValueError for another shape and for values outside [0, 1].
    """
    if pixels.ndim != 5:
        raise ValueError(f"a grid is made of (P, S, 3, H, W) pixels, not {tuple(pixels.shape)}")
    (frame,) = animation(pixels.unsqueeze(2))
    return frame


def animation(pixels: Tensor) -> list[Image.Image]:
    """Videos (P, S, F, 3, H, W) in [0, 1] as F RGB frames, each of P rows and S columns.

    Raises ValueError for another shape and for values outside [0, 1].
    """
    if pixels.ndim != 6 or pixels.shape[3] != 3 or not pixels.numel():
        raise ValueError(
            f"an animation is made of (P, S, F, 3, H, W) pixels, not {tuple(pixels.shape)}"
        )
    low, high = pixels.amin().item(), pixels.amax().item()
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise ValueError(f"pixels must lie in [0, 1], not [{low:g}, {high:g}]")
    return [_tiled(pixels[:, :, i]) for i in range(pixels.shape[2])]


def save_grid(pixels: Tensor, file: str | Path) -> None:
    """Write images (P, S, 3, H, W) as one picture, and create its folder if needed.

    The ending of the file names the format, which is PNG, WebP (both exact) or JPEG. Raises
    ValueError as `grid` and `check_ending` do, and OSError if the file cannot be written.
    """
    file = Path(file)
    check_ending(file, GRID_FILES)
    exact = {"lossless": True} if file.suffix.lower() == ".webp" else {}
    _write(file, _encoded(grid(pixels), file, **exact))


def save_animation(pixels: Tensor, file: str | Path, fps: float = 8) -> None:
    """Write videos (P, S, F, 3, H, W) as one animation, and create its folder if needed.

    The ending of the file names the format: .webp (exact), .gif (256 colours, chosen for the whole
    animation and not dithered; delays are multiples of 10 ms) or .mp4 (H.264, which needs the
    package `av`). fps: frames per second. GIF and WebP repeat forever.

    Raises ValueError as `animation` and `check_ending` do, and OSError if the file cannot be
    written.
    """
    file = Path(file)
    check_ending(file, ANIMATION_FILES)
    frames = animation(pixels)
    kind = file.suffix.lower()
    if kind == ".mp4":
        _write(file, _mp4(frames, fps))
        return
    named = {"save_all": True, "duration": round(1000 / fps), "loop": 0}
    if kind == ".gif":
        frames = _with_one_palette(frames)
    else:
        named["lossless"] = True
    _write(file, _encoded(frames[0], file, append_images=frames[1:], **named))


def check_ending(file: Path, endings: tuple[str, ...]) -> None:
    """Raise ValueError unless the file's ending is one of these and can be written here."""
    kind = file.suffix.lower()
    if kind not in endings:
        raise ValueError(
            f"{file}: the ending of the file must be one of {', '.join(endings)}, "
            f"not {file.suffix!r}"
        )
    if kind == ".mp4":
        _import_av()


# ------------------------------------------------------------------------------------------ parts


def _tiled(pixels: Tensor) -> Image.Image:
    """Images (P, S, 3, H, W) side by side, with white gaps."""
    from PIL import Image

    rows, columns, _, height, width = pixels.shape
    factor = -(-SMALLEST // min(height, width))  # rounded up; 1 for pictures that are large enough
    height, width = factor * height, factor * width
    size = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    whole = Image.new("RGB", size, "white")
    values = (pixels.detach().float() * 255).round().to("cpu", torch.uint8)
    for row in range(rows):
        for column in range(columns):
            image = Image.fromarray(values[row, column].permute(1, 2, 0).contiguous().numpy())
            image = image.resize((width, height), Image.Resampling.NEAREST)
            whole.paste(image, (column * (width + GAP), row * (height + GAP)))
    return whole


def _with_one_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """RGB frames with 256 colours that they share, so that still parts do not flicker."""
    from PIL import Image

    chosen = frames[:: max(1, len(frames) // PALETTE_FRAMES)]
    width, height = (max(1, side // 2) for side in frames[0].size)
    chosen = [frame.resize((width, height), Image.Resampling.NEAREST) for frame in chosen]
    together = Image.new("RGB", (width, height * len(chosen)))
    for i, frame in enumerate(chosen):
        together.paste(frame, (0, i * height))
    # MAXCOVERAGE keeps rare colours, which MEDIANCUT would move by up to 50 of 255.
    palette = together.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def _encoded(image: Image.Image, file: Path, **named) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[file.suffix.lower()], **named)
    return buffer.getvalue()


def _import_av():
    try:
        import av
    except ImportError:
        raise ValueError(
            "an .mp4 file needs the package av: run `pip install av`, or write a .gif or .webp file"
        ) from None
    return av


def _mp4(frames: list[Image.Image], fps: float) -> bytes:
    """H.264 in MP4. Its colours are stored for 2 x 2 pixels, so the sides must be even."""
    from fractions import Fraction

    from PIL import ImageOps

    av, buffer = _import_av(), io.BytesIO()
    width, height = frames[0].size
    border = (0, 0, width % 2, height % 2)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "17"}  # hardly distinguishable from the original
        for frame in frames:
            even = ImageOps.expand(frame, border, "white")
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, data)

"""Pictures as people have them, as the upright 8-bit RGB that generators and rewards take.

- The orientation that a camera recorded (EXIF) is applied.
- Transparent pixels are laid over white.
- Of an animation or a file of several pages, the first picture is taken.
- Greyscale with 16 bits keeps its range: 65535 is white. For 32-bit integers and floating-point
  numbers no file states a range. White is then the smallest of 1 (only for floating-point numbers),
  255 and 65535 that no value exceeds.
- Colour profiles are ignored, as by `diffusers.utils.load_image`.
"""

from __future__ import annotations

import base64
import io
import struct
from pathlib import Path

import numpy as np

from bpgo.files import expand

ORIENTATION = 0x0112  # the EXIF tag
WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # modes with more than 8 bits per pixel
# What Pillow raises for a damaged file, besides OSError.
DAMAGED = (
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    NotImplementedError,
    struct.error,
)


def open_image(source: str | bytes, folder: Path, where: str):
    """An RGB PIL image from a path (relative to `folder`), a `data:` URI or the bytes of a file.

    where: the start of error messages. No file stays open. Raises FileNotFoundError for a missing
    file and ValueError, with the reason, for one that cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(_content(source, folder))) as image:
            return as_rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: there is no image {error.filename}") from error
    except UnidentifiedImageError as error:
        reason = "it is empty, damaged or of a format that Pillow does not read. Save it as PNG"
        raise ValueError(_refusal(where, source, reason)) from error
    except (OSError, *DAMAGED, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(_refusal(where, source, reason)) from error


def as_rgb(image):
    """A PIL image of any mode as an upright RGB image of 8 bits, as this module describes.

    An image that is so already is returned itself, unless it may hold an open file. Raises
    ValueError for what is not a PIL image, and for values that are negative, above 65535 or NaN.
    """
    from PIL import Image, ImageFile, ImageOps

    if not isinstance(image, Image.Image):
        raise ValueError(
            f"its image is a {type(image).__name__}, not a PIL image: open it with PIL.Image.open"
        )
    upright = image.getexif().get(ORIENTATION, 1) == 1
    is_file = isinstance(image, ImageFile.ImageFile)
    if image.mode == "RGB" and upright and not is_file and not image.has_transparency_data:
        return image
    white = 65535 if image.format == "PPM" or image.mode.startswith("I;16") else None
    image = ImageOps.exif_transpose(image)
    if image.mode in WIDE:
        image = _eight_bits(image, white)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way from La to RGBA
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(image, white: int | None):
    """Greyscale of 8 bits. white: the value of white; None to choose it as the module describes."""
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # written so that NaN is refused too
        raise ValueError(
            f"the values of its image range from {low:g} to {high:g}, so what is white is unknown. "
            f"Save it as PNG with 8 or 16 bits"
        )
    if white is None:
        candidates = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        white = next(value for value in candidates if high <= value)
    return Image.fromarray((values / white * 255).round().astype(np.uint8))


def _content(source: str | bytes, folder: Path) -> bytes:
    """The bytes of an image file. Raises OSError and ValueError."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str):
        raise ValueError("it must be a text: a path or a data: URI")
    if source.startswith("data:"):
        header, _, content = source.partition(",")
        if not header.endswith(";base64"):
            raise ValueError("a data: URI must start with data:image/png;base64, or similar")
        return base64.b64decode(content, validate=True)
    if source.startswith(("http://", "https://")):
        raise ValueError("images are not downloaded: save it in a file, and give its path")
    return (folder / expand(source)).read_bytes()


def _refusal(where: str, source: str | bytes, reason: str) -> str:
    shown = f"{str(source)[:60]!r}"
    if isinstance(source, bytes):
        shown = f"its {len(source)} bytes"
    return f"{where}: {shown} cannot be read as an image: {reason[:200]}"

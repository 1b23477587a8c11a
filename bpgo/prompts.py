"""Prompts: words and, for image-to-video, the picture that the video starts from."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import resolve


class Prompt(str):
    """A prompt that may carry a picture (`image`, a PIL image or None); a plain string otherwise.

    `key` tells prompts of equal words and different pictures apart; without a picture it is the prompt itself.
    """

    image: object
    key: str

    def __new__(cls, text: str, image=None):
        prompt = super().__new__(cls, text)
        prompt.image = image
        prompt.key = str(text)
        if image is not None:
            look = repr((image.mode, image.size)).encode() + image.tobytes()
            prompt.key += f" [{hashlib.sha256(look).hexdigest()[:16]}]"
        return prompt


def key_of(prompt: str) -> str:
    """A prompt's key; a plain string is its own."""
    return getattr(prompt, "key", prompt)


def images_of(prompts: list[str]) -> list | None:
    """The pictures of prompts, None if none has one. Raises ValueError naming the first without, if others have one."""
    images = [getattr(p, "image", None) for p in prompts]
    without = [p for p, image in zip(prompts, images, strict=True) if image is None]
    if without and len(without) < len(prompts):
        raise ValueError(f"prompt {without[0]!r} has no image, and others have ({len(without)} of {len(prompts)} without)")
    return None if without or not images else images


def read_prompts(path: str) -> list[str]:
    """Prompts of a text file (one a line, blank lines skipped) or of JSON lines (`prompt` and, for image-to-video, `image`).

    image: a path, from the file's own folder, or a `data:` URI. Raises FileNotFoundError for a missing file, ValueError, with the file and
    the line, for what cannot be read, or if there is no prompt.
    """
    place = resolve(path)
    if not isinstance(place, Path) or not place.is_file():
        raise FileNotFoundError(f"no prompt file {path!r}")
    try:
        text = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"the prompt file {place} is not UTF-8 text") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    prompts = [_row(line, place, number) if place.suffix == ".jsonl" else Prompt(line) for number, line in lines]
    if not prompts:
        raise ValueError(f"the prompt file {place} has no prompts")
    return prompts


def _row(line: str, place: Path, number: int) -> Prompt:
    try:
        row = json.loads(line)
        text, image = row["prompt"], row.get("image")
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{place} is not JSON lines with the key "prompt", a text (line {number})') from None
    return Prompt(text, None if image is None else open_image(image, place.parent, f"{place}, line {number}"))


def open_image(source: str, folder: Path, where: str):
    """A PIL image from a path (relative: to `folder`) or a `data:` URI. Raises FileNotFoundError, ValueError; `where` goes into both."""
    from PIL import Image

    try:
        if source.startswith("data:"):
            image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
        else:
            image = Image.open(folder / source)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: there is no image {folder / source}") from None
    except (OSError, ValueError, SyntaxError, AttributeError, Image.DecompressionBombError):
        raise ValueError(f"{where}: {str(source)[:60]!r} is no image that can be read") from None
    return image


def pixels_of(images) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] of RGB PIL images of one size; a tensor is returned as it is."""
    if isinstance(images, Tensor):
        return images
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255

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

from bpgo.files import resolve


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
        raise ValueError(
            f"prompt {without[0]!r} has no image, and others have ({len(without)} of {len(prompts)} without)"
        )
    return None if without or not images else images


def read_prompts(path: str) -> list[str]:
    """Prompts of a text file (one a line, blank lines skipped), of JSON lines (`prompt` and, for image-to-video, `image`) or of a dataset.

    image: a path, from the file's own folder, or a `data:` URI. A dataset is a hub id, a folder that `Dataset.save_to_disk` wrote or a
    parquet file, read by the package `datasets`; a split and a column may follow: `owner/name`, `owner/name:test`,
    `owner/name:train:caption`, `owner/name::caption`. Without: the split train, or the only one; the column prompt, or else text or caption
    if just one of them is there. Its pictures are the column image. Raises FileNotFoundError for a missing file or dataset and if
    `datasets` is not installed, ValueError, with the file and the line or row, for what cannot be read, or if there is no prompt.
    """
    pieces = str(path).split(":")  # of which the name of a file may have some
    cut = next(
        (n for n in range(len(pieces), 0, -1) if Path(":".join(pieces[:n])).expanduser().exists()),
        1,
    )
    place, parts = resolve(":".join(pieces[:cut])), pieces[cut:]
    if (
        not isinstance(place, Path)
        or place.suffix == ".parquet"
        or any((place / f).is_file() for f in ("state.json", "dataset_dict.json"))
    ):
        return _dataset_prompts(place, *parts)
    if parts or not place.is_file():
        raise FileNotFoundError(f"no prompt file {path!r}")
    try:
        text = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"the prompt file {place} is not UTF-8 text") from None
    lines = [
        (number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    prompts = [
        _row(line, place, number) if place.suffix == ".jsonl" else Prompt(line)
        for number, line in lines
    ]
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
        raise ValueError(
            f'{place} is not JSON lines with the key "prompt", a text (line {number})'
        ) from None
    return Prompt(
        text, None if image is None else open_image(image, place.parent, f"{place}, line {number}")
    )


def _dataset_prompts(
    place: Path | str, split: str = "", column: str = "", *more: str
) -> list[Prompt]:
    if more:
        raise ValueError(
            f"{place}:{split}:{column}:{':'.join(more)} is no dataset: write name, name:split or name:split:column"
        )
    try:
        import datasets
    except ImportError:
        raise FileNotFoundError(
            f"{str(place)!r} is no text or JSON-lines file; to read it as a dataset: pip install datasets"
        ) from None
    try:
        if isinstance(place, str):
            found = datasets.load_dataset(place)
        else:
            found = (
                datasets.load_from_disk(place)
                if place.is_dir()
                else datasets.Dataset.from_parquet(str(place))
            )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        hint = (
            "; if it is gated, accept its terms on its page, then: hf auth login"
            if isinstance(place, str)
            else ""
        )
        raise (FileNotFoundError if hint else ValueError)(
            f"cannot read the dataset {str(place)!r}: {error}{hint}"
        ) from error
    tables = found if isinstance(found, dict) else {str(found.split or "train"): found}
    split = split or (next(iter(tables)) if len(tables) == 1 else "train")
    if split not in tables:
        raise ValueError(f"the dataset {place} has no split {split!r}; it has {', '.join(tables)}")
    table, columns = tables[split], tables[split].column_names
    others = [c for c in ("text", "caption") if c in columns]
    column = column or (others[0] if "prompt" not in columns and len(others) == 1 else "prompt")
    if column not in columns:
        raise ValueError(
            f"the dataset {place}, split {split}, has no column {column!r}; it has {', '.join(columns)}"
        )
    if isinstance(
        table.features.get("image"), datasets.Image
    ):  # encoded: open_image decodes, and names what it cannot
        table = table.cast_column("image", datasets.Image(decode=False))
    folder, prompts = Path(place).parent, []
    for i, (text, image) in enumerate(
        zip(
            table[column],
            table["image"] if "image" in columns else [None] * len(table),
            strict=True,
        )
    ):
        where = f"the dataset {place}, split {split}, row {i}"
        if not isinstance(text, str):
            raise ValueError(f"{where}: {column} is {str(text)[:60]!r}, not a text")
        source = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
        prompts.append(Prompt(text, None if image is None else open_image(source, folder, where)))
    if not prompts:
        raise ValueError(f"the dataset {place}, split {split}, has no prompts")
    return prompts


def open_image(source: str | bytes, folder: Path, where: str):
    """A PIL image from a path (relative: to `folder`), a `data:` URI or a file's bytes.

    Raises FileNotFoundError, ValueError; `where` goes into both.
    """
    from PIL import Image

    try:
        if isinstance(source, bytes):
            image = Image.open(io.BytesIO(source))
        elif source.startswith("data:"):
            image = Image.open(
                io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True))
            )
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

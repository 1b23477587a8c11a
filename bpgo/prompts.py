"""Prompts: a text and, for image-to-video, the image that the video starts from."""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bpgo.files import resolve


class Prompt(str):
    """A prompt that may carry an image and columns; otherwise a plain string.

    image: a PIL image or None. where: the place that it was read from, such as
    "prompts.csv, line 12", or None. columns: the further columns of its prompt file, by name.

    key: distinguishes prompts with the same text and different images; it is the text itself if
    there is no image. Columns are not part of it.

    All of these survive pickling.
    """

    image: object
    key: str
    where: str | None
    columns: dict[str, object]

    def __new__(cls, text: str, image=None, where: str | None = None, columns: dict | None = None):
        prompt = super().__new__(cls, text)
        prompt.image, prompt.where = image, where
        prompt.columns = dict(columns or {})
        prompt.key = str(text)
        if image is not None:
            content = repr((image.mode, image.size)).encode() + image.tobytes()
            prompt.key += f" [{hashlib.sha256(content).hexdigest()[:16]}]"
        return prompt


def key_of(prompt: str) -> str:
    """The key of a prompt. A plain string is its own key."""
    return getattr(prompt, "key", prompt)


def images_of(prompts: list[str]) -> list | None:
    """The images of prompts, or None if none of them has one.

    Raises ValueError, naming the first prompt without an image, if only some have one.
    """
    images = [getattr(prompt, "image", None) for prompt in prompts]
    without = [p for p, image in zip(prompts, images, strict=True) if image is None]
    if len(without) == len(prompts):
        return None
    if without:
        raise ValueError(
            f"prompt {without[0]!r} has no image, but others have one "
            f"({len(without)} of {len(prompts)} without): give all of them an image, or none"
        )
    return images


def pixels_of(images) -> Tensor:
    """RGB PIL images of one size as (B, 3, H, W) float32 in [0, 1]; a tensor is returned as is."""
    if isinstance(images, Tensor):
        return images
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


# ---------------------------------------------------------------------------------------- columns


def required_columns(function: Callable) -> list[str]:
    """The columns that a reward or metric needs: its parameters after (pixels, prompts).

    Those with a default are left out, because it can do without them.
    """
    return [p.name for p in _further_parameters(function) if p.default is p.empty]


def with_columns(function: Callable, what: str) -> Callable:
    """A function (pixels, prompts) that passes columns of the prompt file to a reward or metric.

    Each parameter of `function` after (pixels, prompts) gets the column of its name, as a list with
    one entry per prompt:

        def reward(pixels, prompts, answer, language="en"): ...

    A parameter with a default gets its column only if all prompts have it. A function without
    further parameters is returned as it is. what: how messages refer to the function, such as
    "reward 'my_module:reward'". The function that is returned raises ValueError as `columns_for`.
    """
    if not _further_parameters(function):
        return function
    return partial(_call_with_columns, function, what)


def columns_for(function: Callable, prompts: list[str], what: str) -> dict[str, list]:
    """The columns that `with_columns` passes to this function, one entry per prompt.

    Raises ValueError for a prompt without a column that the function needs. The message names the
    column, the place of the prompt and the columns that it has.
    """
    found = {}
    for parameter in _further_parameters(function):
        name = parameter.name
        without = [p for p in prompts if name not in getattr(p, "columns", {})]
        if not without:
            found[name] = [prompt.columns[name] for prompt in prompts]
        elif parameter.default is parameter.empty:
            first = without[0]
            place = f" ({first.where})" if getattr(first, "where", None) else ""
            there = ", ".join(getattr(first, "columns", {})) or "none"
            raise ValueError(
                f"{what} takes the column {name!r} of the prompts, but the prompt "
                f"{shortened(first)}{place} does not have it; its further columns: {there} "
                f"({len(without)} of {len(prompts)} prompts without). Add the column to the prompt "
                f"file, or give the parameter {name!r} a default"
            )
    return found


def _call_with_columns(function: Callable, what: str, pixels: Tensor, prompts: list[str]):
    return function(pixels, prompts, **columns_for(function, prompts, what))


def _further_parameters(function: Callable) -> list[inspect.Parameter]:
    """The parameters after the first two positional ones, without *args and **kwargs."""
    if isinstance(function, torch.nn.Module):
        function = function.forward  # the signature of a module itself is (*args, **kwargs)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions that are written in C have no signature
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return positional[2:] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]


# --------------------------------------------------------------------------------------- messages


def shortened(text: object, length: int = 60) -> str:
    """A text in quotes, at most this long, for error messages."""
    shown = repr(str(text)) if isinstance(text, str) else repr(text)
    return shown if len(shown) <= length else f"{shown[: length - 4]}...{shown[-1]}"


def list_problems(
    problems: list[tuple[str, str]], what: str, prompts: list[str] | tuple[str, ...] = ()
) -> str:
    """A message that lists the prompts that cannot be used, each with its place and what is wrong.

    problems: (prompt, what is wrong with it). what: the start of the message. prompts: the list
    that they are from, by which a prompt without a place is numbered, from 1. The message has one
    line per prompt, at most 20; a single one is on the first line.
    """
    lines = []
    for prompt, fault in problems[:20]:
        place = getattr(prompt, "where", None)
        if place is None:
            number = [i for i, other in enumerate(prompts, 1) if other is prompt][:1]
            place = f"prompt {number[0]}" if number else "prompt"
        lines.append(f"{place}, {shortened(prompt)}: {fault}")
    if len(problems) == 1:
        return f"{what}: {lines[0]}"
    if len(problems) > len(lines):
        lines.append(f"and {len(problems) - len(lines)} more")
    return "\n  ".join([f"{what} ({len(problems)} prompts):", *lines])


# ------------------------------------------------------------------------------------------ files


def read_prompts(path: str) -> list[str]:
    """The prompts of a text file, of JSON lines or of a dataset.

    A text file has one prompt per line; blank lines are skipped. JSON lines (.jsonl) have the keys
    `prompt` and, for image-to-video, `image`: a path, relative to the file's folder, or a `data:`
    URI.

    A dataset is a hub id, a folder that `Dataset.save_to_disk` wrote or a parquet file, and needs
    the package `datasets`. A split and a column may follow it: `owner/name`, `owner/name:test`,
    `owner/name:train:caption`, `owner/name::caption`. The default split is train, or the only one.
    The default column is prompt, or else text or caption if the dataset has just one of these.
    Images are read from the column image.

    Raises FileNotFoundError for a missing file or dataset and if `datasets` is not installed;
    ValueError, naming the file and the line or row, for content that cannot be read, and if there
    are no prompts.
    """
    name, parts = _split_name(str(path))
    place = resolve(name)
    if isinstance(place, str) or _is_dataset(place):
        return _read_dataset(place, *parts)
    if parts or not place.is_file():
        raise FileNotFoundError(
            f"no prompt file {path!r}: give a text file, a .jsonl file or a dataset"
        )
    try:
        text = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"the prompt file {place} is not UTF-8 text: save it as UTF-8") from None
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and place.suffix == ".jsonl":
            prompts.append(_read_row(line, place, number))
        elif line:
            prompts.append(Prompt(line))
    if not prompts:
        raise ValueError(f"the prompt file {place} has no prompts")
    return prompts


def open_image(source: str | bytes, folder: Path, where: str):
    """A PIL image from a path (relative to `folder`), a `data:` URI or the bytes of a file.

    where: the start of error messages. Raises FileNotFoundError for a missing file and ValueError
    for one that cannot be read.
    """
    from PIL import Image

    try:
        if isinstance(source, bytes):
            image = Image.open(io.BytesIO(source))
        elif source.startswith("data:"):
            content = base64.b64decode(source.partition(",")[2], validate=True)
            image = Image.open(io.BytesIO(content))
        else:
            image = Image.open(folder / source)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: there is no image {folder / source}") from None
    except (OSError, ValueError, SyntaxError, AttributeError, Image.DecompressionBombError):
        raise ValueError(f"{where}: {str(source)[:60]!r} cannot be read as an image") from None
    return image


def _split_name(path: str) -> tuple[str, list[str]]:
    """The name of a file or dataset, and the split and column that follow it after colons.

    The name of an existing file may contain colons; the longest one is taken.
    """
    pieces = path.split(":")
    for count in range(len(pieces), 1, -1):
        if Path(":".join(pieces[:count])).expanduser().exists():
            return ":".join(pieces[:count]), pieces[count:]
    return pieces[0], pieces[1:]


def _is_dataset(place: Path) -> bool:
    markers = ("state.json", "dataset_dict.json")  # `Dataset.save_to_disk` writes one of them
    return place.suffix == ".parquet" or any((place / name).is_file() for name in markers)


def _read_row(line: str, place: Path, number: int) -> Prompt:
    try:
        row = json.loads(line)
        text, image = row["prompt"], row.get("image")
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f'{place} is not JSON lines with a text under the key "prompt" (line {number})'
        ) from None
    if image is None:
        return Prompt(text)
    return Prompt(text, open_image(image, place.parent, f"{place}, line {number}"))


# --------------------------------------------------------------------------------------- datasets


def _read_dataset(place: Path | str, split: str = "", column: str = "", *more: str) -> list[Prompt]:
    if more:
        name = ":".join([str(place), split, column, *more])
        raise ValueError(f"{name} is not a dataset: write name, name:split or name:split:column")
    try:
        import datasets
    except ImportError:
        raise FileNotFoundError(
            f"{str(place)!r} is not a text or JSON-lines file. To read it as a dataset: "
            f"pip install datasets"
        ) from None
    table, split = _table(_load_dataset(place), split, place)
    column = _column(table.column_names, column, f"the dataset {place}, split {split},")
    images = [None] * len(table)
    if "image" in table.column_names:
        if isinstance(table.features["image"], datasets.Image):
            # Not decoded here, because open_image names the row that it cannot decode.
            table = table.cast_column("image", datasets.Image(decode=False))
        images = table["image"]
    folder, prompts = Path(place).parent, []
    for i, (text, image) in enumerate(zip(table[column], images, strict=True)):
        where = f"the dataset {place}, split {split}, row {i}"
        if not isinstance(text, str):
            raise ValueError(f"{where}: {column} is {str(text)[:60]!r}, not a text")
        source = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
        prompts.append(Prompt(text, None if image is None else open_image(source, folder, where)))
    if not prompts:
        raise ValueError(f"the dataset {place}, split {split}, has no prompts")
    return prompts


def _load_dataset(place: Path | str):
    """The dataset of a hub id, a saved folder or a parquet file."""
    import datasets

    try:
        if isinstance(place, str):
            return datasets.load_dataset(place)
        if place.is_dir():
            return datasets.load_from_disk(place)
        return datasets.Dataset.from_parquet(str(place))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        message = f"cannot read the dataset {str(place)!r}: {error}"
        if isinstance(place, str):
            raise FileNotFoundError(
                f"{message}; if it is gated, accept its terms on its page, then: hf auth login"
            ) from error
        raise ValueError(message) from error


def _table(dataset, split: str, place: Path | str):
    """The split of a dataset, and its name."""
    tables = dataset if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}
    if not split:
        split = next(iter(tables)) if len(tables) == 1 else "train"
    if split not in tables:
        raise ValueError(f"the dataset {place} has no split {split!r}; it has {', '.join(tables)}")
    return tables[split], split


def _column(columns: list[str], column: str, which: str) -> str:
    """The name of the column with the prompts."""
    if not column:
        others = [name for name in ("text", "caption") if name in columns]
        column = others[0] if "prompt" not in columns and len(others) == 1 else "prompt"
    if column not in columns:
        raise ValueError(f"{which} has no column {column!r}; it has {', '.join(columns)}")
    return column

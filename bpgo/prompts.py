"""Prompts: a text and, for image-to-video, the image that the video starts from.

`bpgo.prompt_files` reads them from files.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bpgo.images import as_rgb


class Prompt(str):
    """A prompt that may carry an image and columns; otherwise a plain string.

    image: an upright RGB PIL image or None; others are converted by `bpgo.images.as_rgb`. where:
    the place that it was read from, such as "prompts.csv, line 12", or None. columns: the further
    columns of its prompt file, by name.

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
        prompt.image = None if image is None else as_rgb(image)
        prompt.where = where
        prompt.columns = dict(columns or {})
        prompt.key = str(text)
        if image is not None:
            content = repr((prompt.image.mode, prompt.image.size)).encode() + prompt.image.tobytes()
            prompt.key += f" [{hashlib.sha256(content).hexdigest()[:16]}]"
        return prompt


def key_of(prompt: str) -> str:
    """The key of a prompt. A plain string is its own key."""
    return getattr(prompt, "key", prompt)


def images_of(prompts: list[str]) -> list | None:
    """The images of prompts, or None if none of them has one.

    Raises ValueError, listing the prompts without an image, if only some have one.
    """
    images = [getattr(prompt, "image", None) for prompt in prompts]
    without = [p for p, image in zip(prompts, images, strict=True) if image is None]
    if len(without) == len(prompts):
        return None
    if without:
        what = f"{len(without)} of {len(prompts)} prompts have no image: give all one, or none"
        raise ValueError(list_problems([(p, "no image") for p in without], what, prompts))
    return images


def pixels_of(images) -> Tensor:
    """PIL images of one size as (B, 3, H, W) float32 in [0, 1]; a tensor is returned as is.

    They are converted by `bpgo.images.as_rgb`.
    """
    if isinstance(images, Tensor):
        return images
    pixels = np.stack([np.asarray(as_rgb(image)) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


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
    for prompt, fault in problems:
        place = getattr(prompt, "where", None)
        if place is None:
            number = [i for i, other in enumerate(prompts, 1) if other is prompt][:1]
            place = f"prompt {number[0]}" if number else "prompt"
        lines.append(f"{place}, {shortened(prompt)}: {fault}")
    return list_lines(what, lines)


def list_lines(what: str, lines: list[str], most: int = 20) -> str:
    """A message that lists what is wrong, at most this many; a single one is on the first line."""
    if len(lines) == 1:
        return f"{what}: {lines[0]}"
    further = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n  ".join([f"{what}:", *lines[:most], *further])

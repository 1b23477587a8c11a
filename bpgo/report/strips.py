"""Pictures of one prompt over the iterations of a run, from the files in its folder samples/."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from bpgo.report.folders import number

MOST_ITERATIONS = 6  # of a strip
SIDE = 192  # pixels of a picture in the report; smaller pictures keep their size


class Cell(NamedTuple):
    """One sample: its iteration, its image as a data URI, and its reward as text."""

    iteration: int
    image: str
    reward: str


def read_strips(folder: Path, problems: list[str]) -> dict[str, list[Cell]]:
    """The first sample of each prompt at up to MOST_ITERATIONS evaluations, by prompt.

    Files that cannot be read are noted in `problems`.
    """
    files = sorted(folder.glob("[0-9]*.json"))
    if len(files) > MOST_ITERATIONS:
        chosen = np.linspace(0, len(files) - 1, MOST_ITERATIONS).round().astype(int)
        files = [files[i] for i in chosen]
    strips: dict[str, list[Cell]] = {}
    for file in files:
        try:
            found = _read(file)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            problems.append(f"samples/{file.stem} cannot be shown ({type(error).__name__}).")
            continue
        for prompt, cell in found.items():
            strips.setdefault(prompt, []).append(cell)
    return strips


def _read(file: Path) -> dict[str, Cell]:
    """The first sample of each prompt of one evaluation."""
    shown = json.loads(file.read_text(encoding="utf-8"))
    gap, prompts, rewards = int(shown["gap"]), shown["prompts"], shown["rewards"]
    place = file.with_suffix(".gif")
    place = place if place.is_file() else file.with_suffix(".png")
    with Image.open(place) as image:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        duration = image.info.get("duration", 125)
    rows, columns = len(prompts), len(rewards[0])
    width = (frames[0].width - (columns - 1) * gap) // columns
    height = (frames[0].height - (rows - 1) * gap) // rows
    cells = {}
    for row, prompt in enumerate(prompts):
        top = row * (height + gap)
        parts = [frame.crop((0, top, width, top + height)) for frame in frames]
        reward = number(rewards[row][0])
        text = "" if np.isnan(reward) else f"{reward:.3g}"
        cells.setdefault(str(prompt), Cell(int(shown["iteration"]), _uri(parts, duration), text))
    return cells


def _uri(frames: list[Image.Image], duration: int) -> str:
    """A still or moving picture as WebP in a data URI."""
    scale = SIDE / max(frames[0].size)
    exact = scale >= 1  # enlarged pictures have sharp edges, which compression would blur
    if not exact:
        size = tuple(max(1, round(scale * side)) for side in frames[0].size)
        frames = [frame.resize(size, Image.Resampling.BOX) for frame in frames]
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0}
    still = len(frames) == 1
    frames[0].save(stream, "WEBP", lossless=exact, quality=85, **({} if still else more))
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()

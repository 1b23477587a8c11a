"""The graded prompt files of the worlds, on which the tiny presets are trained and evaluated."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import torch

from bpgo.files import write_atomic
from bpgo.worlds.clips import captions as clips_captions
from bpgo.worlds.clips import scenes as clips_scenes
from bpgo.worlds.digits import captions as digits_captions
from bpgo.worlds.pretrain.stages import STAGES
from bpgo.worlds.shapes import captions as shapes_captions

DIGITS_SEED = 35


def write_prompts(output: Path, _: float) -> None:
    """Prompts of drawings and digits: JSON lines {prompt, level, bits}, and {kind} for drawings."""
    seed = STAGES["prompts"].seed
    rows = shapes_captions.graded_prompts(1024, seed, specified=0.75)
    write_rows(output, "train", rows)
    rows = shapes_captions.graded_prompts(96, seed + 1, specified=0.5)
    write_rows(output, "evaluation", rows)
    write_rows(output, "digits-train", digits_captions.graded_prompts(256, DIGITS_SEED))
    write_rows(output, "digits-evaluation", digits_captions.graded_prompts(64, DIGITS_SEED + 1))


def write_video_prompts(output: Path, _: float) -> None:
    """Prompts of clips: JSON lines {prompt, level, bits} and, for image-to-video, {image}.

    The image is a PNG as a data URI.
    """
    seed = STAGES["video_prompts"].seed
    _write_video_prompts(output, "train", 512, seed, 0.75)
    _write_video_prompts(output, "evaluation", 64, seed + 1, 0.5)


def _write_video_prompts(output: Path, name: str, n: int, seed: int, specified: float) -> None:
    write_rows(output, f"clip-{name}", clips_captions.graded_prompts(n, seed, specified))
    graded = clips_captions.graded_scenes(n, seed, specified, images=True)
    generator = torch.Generator().manual_seed(seed)
    images = clips_scenes.sample_pixels([scene for scene, _ in graded], generator)[:, 0]
    rows = []
    for (_, row), image in zip(graded, images, strict=True):
        rows.append(row | {"image": data_uri(image)})
    write_rows(output, f"image-clip-{name}", rows)


def write_rows(output: Path, name: str, rows: list[dict]) -> None:
    """Write rows as JSON lines to `prompts/<name>.jsonl` in the output folder."""
    folder = output / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def data_uri(image: torch.Tensor) -> str:
    """An image (3, H, W) in [0, 1] as a PNG in a `data:` URI."""
    from PIL import Image

    stream = io.BytesIO()
    levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

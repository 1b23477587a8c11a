"""How the tiny checkpoints were trained: `python -m bpgo pretrain [STAGE ...] --output FOLDER`.

Stages of the picture world, in order: `autoencoder`, `flux` and `refine` (once for each further pass) make the pipeline tiny-flux,
`reward` the CLIP-type training reward, `held_out` an ImageReward-type model that no policy is trained on, `prompts` the graded prompt
files. Of the world of clips: `video_autoencoder`, `video_reward`, `video_held_out`, `video_decoder` (the autoencoder's decoder, trained
on), `wan`, `wan_image` and `video_prompts`. Of the world of digits, only if asked for: `digits`, or its stages one by one (see
bpgo/digits/pretrain.py). All from fixed seeds. A generator's captions are partly wrong (each named attribute replaced
with probability WRONG), so the SFT model has something left to learn. Weights are stored in half precision; the figures of each card
are measured on what was stored.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import torch

from bpgo.files import write_atomic
from bpgo.worlds.clips import captions as clip_captions
from bpgo.worlds.clips.scenes import sample_videos
from bpgo.worlds.pretrain.digits import STAGES as DIGITS
from bpgo.worlds.pretrain.digits import write_digit_prompts
from bpgo.worlds.pretrain.fit import SEEDS
from bpgo.worlds.pretrain.flux import PASSES, train_autoencoder, train_flux, train_refine
from bpgo.worlds.pretrain.rewards import train_held_out, train_reward
from bpgo.worlds.pretrain.video_rewards import train_video_held_out, train_video_reward
from bpgo.worlds.pretrain.wan import (
    train_image_to_video,
    train_text_to_video,
    train_video_autoencoder,
    train_video_decoder,
)
from bpgo.worlds.shapes.captions import graded_prompts


def pretrain(stages: list[str], output: Path, scale: float = 1.0) -> None:
    """Train the named stages into folders under `output`. scale < 1 shortens every stage (for tests)."""
    run = {
        "autoencoder": train_autoencoder,
        "flux": train_flux,
        "refine": train_refine,
        "reward": train_reward,
        "held_out": train_held_out,
        "prompts": write_prompts,
        "video_autoencoder": train_video_autoencoder,
        "video_reward": train_video_reward,
        "video_held_out": train_video_held_out,
        "video_decoder": train_video_decoder,
        "wan": train_text_to_video,
        "wan_image": train_image_to_video,
        "video_prompts": write_video_prompts,
    }
    whole = [
        stage for name in run for stage in [name] * (len(PASSES) - 1 if name == "refine" else 1)
    ]
    run |= DIGITS
    for stage in [
        part for name in stages or whole for part in (DIGITS if name == "digits" else [name])
    ]:
        if stage not in run:
            raise ValueError(f"unknown stage {stage!r}; stages are {', '.join([*run, 'digits'])}")
        torch.manual_seed(SEEDS.get(stage, SEEDS["flux"]))
        run[stage](Path(output), scale)


def write_prompts(output: Path, _: float) -> None:
    """The graded prompts that the tiny presets train on and evaluate on: JSON lines {prompt, level, bits, kind}."""
    folder = output / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, seed, specified in (
        ("train", 1024, SEEDS["prompts"], 0.75),
        ("evaluation", 96, SEEDS["prompts"] + 1, 0.5),
    ):
        rows = graded_prompts(n, seed, specified=specified)
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_digit_prompts(folder)


def write_video_prompts(output: Path, _: float) -> None:
    """The graded prompts of clips: JSON lines {prompt, level, bits} and, for image-to-video, {image}, a PNG as a data URI."""
    folder = output / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("clip", "image-clip"):
        for name, n, seed, specified in (
            ("train", 512, SEEDS["video_prompts"], 0.75),
            ("evaluation", 64, SEEDS["video_prompts"] + 1, 0.5),
        ):
            found = clip_captions.graded_prompts(n, seed, specified, pictures=kind == "image-clip")
            rows = [row for _, row in found]
            if kind == "image-clip":
                frames = sample_videos(
                    [clip for clip, _ in found], torch.Generator().manual_seed(seed)
                )[:, 0]
                rows = [
                    row | {"image": data_uri(frame)}
                    for row, frame in zip(rows, frames, strict=True)
                ]
            write_atomic(
                folder / f"{kind}-{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
            )


def data_uri(picture: torch.Tensor) -> str:
    """A picture (3, H, W) in [0, 1] as a PNG in a `data:` URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(
        stream, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

"""Whether rewards and metrics can score what the generator makes: images or videos, and their size.

Training finds this out by scoring decoded noise, which needs the weights.
"""

from __future__ import annotations

from bpgo.config import Config, named_rewards
from bpgo.preflight.footprints import Footprint
from bpgo.preflight.sizes import local_path, read_header
from bpgo.worlds.clips.scenes import FRAMES
from bpgo.worlds.forms import SIDE

LEAST_FRAMES = {  # of the rewards of videos; those that are not listed here take images
    "image_grid": 1,
    "video_clip_xl": 8,
    "video_align": 2,
    "video_align_vq": 2,
    "video_align_mq": 2,
    "video_align_ta": 2,
    "qwen3_vl_embedding": 2,
}
IMAGE_REWARDS = ("clip", "pickscore", "hpsv2", "hpsv2.0", "image_reward")
WORLDS = {  # shape of a sample that the oracle of each embedded world reads
    "shapes": (3, SIDE, SIDE),
    "clips": (FRAMES, 3, SIDE, SIDE),
    "digits": (3, SIDE, SIDE),
}


def sample_problems(config: Config, footprint: Footprint) -> list[str]:
    """Which rewards and metrics of the package cannot score the generator's samples, and why."""
    problems = []
    frames = footprint.sample.frames if footprint.makes_videos else None
    for key, reward in named_rewards(config):
        why = _refusal(reward.name, reward.path, frames)
        if why:
            problems.append(f"{key}.name={reward.name} {why}. Choose another reward")
    size = (3, footprint.sample.height, footprint.sample.width)
    shape = size if frames is None else (frames, *size)
    for name in config.evaluation.metrics:
        if WORLDS.get(name, shape) != shape:
            problems.append(
                f"evaluation.metrics: the oracle of the {name} world reads samples of shape "
                f"{WORLDS[name]}, and this generator makes {shape}. Name the world that the "
                f"generator shows"
            )
    return problems


def _refusal(name: str, path: str | None, frames: int | None) -> str | None:
    """Why a reward cannot score videos of so many frames, or images (None)."""
    if name in IMAGE_REWARDS and frames is not None:
        return "scores images, and this generator makes videos"
    if name not in LEAST_FRAMES:
        return None
    if frames is None:
        return "scores videos, and this generator makes images"
    least = LEAST_FRAMES[name]
    if name == "video_clip_xl" and path is not None:
        least = _frames_of(path) or least
    if frames < least:
        return f"needs videos of at least {least} frames, and these have {frames}"
    return None


def _frames_of(path: str) -> int | None:
    """How many frames a VideoCLIP sees, from the header of its weights; None if not known."""
    try:
        place = local_path(path)
        return read_header(place / "model.safetensors")["temporal"]["shape"][1]
    except (OSError, ValueError, KeyError, TypeError):
        return None

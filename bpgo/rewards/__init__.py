"""Rewards: `reward(pixels, prompts) -> (B,)` float32, higher is better. They know pixels and prompts, nothing of training."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ..files import check_safetensors, resolve

Reward = Callable[[Tensor, list[str]], Tensor]


class RewardError(ValueError):
    """A reward raised, or returned something that cannot be trained on."""


REWARDS = {  # name: the module that loads it, with these options, and the published weights
    "clip": ("clip", {}, "openai/clip-vit-large-patch14"),
    "pickscore": ("clip", {"logit_scale": True}, "yuvalkirstain/PickScore_v1"),
    "image_reward": ("image_reward", {}, None),
    "image_grid": ("image_grid", {}, None),
    "video_clip_xl": ("video_clip_xl", {}, "alibaba-pai/VideoCLIP-XL"),
}


def load_reward(name: str, path_or_hub_id: str | Path | None = None, device: str = "cpu") -> Reward:
    """A reward by name, with its weights from a folder, a shipped name (`tiny-reward`) or a hub id (None: the published one).

    Raises ValueError for an unknown name (with the nearest) or damaged weights, FileNotFoundError for missing ones. The
    reward it returns raises RewardError when it is given a wrong shape or gives one back, or a value that is not finite.
    """
    if name not in REWARDS:
        near = get_close_matches(name, REWARDS, 1)
        raise ValueError(
            f"unknown reward {name!r}" + (f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(REWARDS)}")
        )
    module, options, published = REWARDS[name]
    if path_or_hub_id is None and published is None:
        raise FileNotFoundError(f"the reward {name!r} needs a folder of weights: give its path")
    place = resolve(path_or_hub_id or published)
    if isinstance(place, Path):
        check_safetensors(place)
    model, score = import_module(f".{module}", __package__).load(place, **options)
    model.to(device)
    return partial(checked, score, name)


def checked(reward: Reward, name: str, pixels: Tensor, prompts: list[str]) -> Tensor:
    """Call a reward and refuse, with RewardError, anything but B finite numbers. The result is float32 on the pixels' device.

    pixels: (B, 3, H, W) pictures or (B, F, 3, H, W) videos in [0, 1].
    """
    samples = "videos" if pixels.ndim == 5 else "pictures"
    if len(pixels) != len(prompts):
        raise RewardError(f"reward {name!r}: {len(pixels)} {samples} for {len(prompts)} prompts")
    try:
        values = torch.as_tensor(reward(pixels, prompts), dtype=torch.float32, device=pixels.device)
    except RewardError:
        raise
    except Exception as error:  # a reward is anyone's code: whatever it raises, the run must say which reward it was
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if values.shape != (len(prompts),):
        raise RewardError(
            f"reward {name!r} returned shape {tuple(values.shape)} for {len(prompts)} {samples}; it must be ({len(prompts)},)"
        )
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward {name!r} returned {values[bad[0]].item()} for prompt {prompts[bad[0]]!r} ({len(bad)} of {len(values)} not finite)"
        )
    return values

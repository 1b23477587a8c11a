"""Rewards: `reward(pixels, prompts) -> (B,)` float32, higher is better. They know pixels and prompts, nothing of training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from bpgo.files import cached_snapshot, check_weights, from_hub, resolve

Reward = Callable[[Tensor, list[str]], Tensor]


class RewardError(ValueError):
    """A reward raised, or returned something that cannot be trained on."""


REWARDS = {  # name: the module (or function) that loads it, with these options, and the published weights
    "clip": ("clip", {}, "openai/clip-vit-large-patch14"),
    "pickscore": ("clip", {"logit_scale": True}, "yuvalkirstain/PickScore_v1"),
    "hpsv2": ("hpsv2", {"version": "v2.1"}, "xswu/HPSv2"),
    "hpsv2.0": ("hpsv2", {"version": "v2.0"}, "xswu/HPSv2"),
    "image_reward": ("image_reward", {}, "THUDM/ImageReward"),
    "image_grid": ("image_grid", {}, None),
    "video_clip_xl": ("video_clip_xl", {}, "alibaba-pai/VideoCLIP-XL"),
    "video_align": ("video_align", {}, "KwaiVGI/VideoReward"),
    "video_align_vq": ("video_align", {"dimension": "vq"}, "KwaiVGI/VideoReward"),
    "video_align_mq": ("video_align", {"dimension": "mq"}, "KwaiVGI/VideoReward"),
    "video_align_ta": ("video_align", {"dimension": "ta"}, "KwaiVGI/VideoReward"),
    "qwen3_vl_embedding": ("qwen3_vl_embedding", {}, "Qwen/Qwen3-VL-Embedding-2B"),
}


def load_reward(
    name: str, path_or_hub_id: str | Path | None = None, device: str = "cpu", scale: float = 1.0
) -> Reward:
    """A reward by name, with its weights from a folder, a shipped name (`tiny-reward`) or a hub id (None: the published one).

    Its values are multiplied by scale. Raises ValueError for an unknown name (with the nearest) or damaged weights, FileNotFoundError for
    missing ones, OSError for a hub id that cannot be fetched. The reward it returns raises as `checked`.
    """
    if name not in REWARDS:
        near = get_close_matches(name, REWARDS, 1)
        raise ValueError(
            f"unknown reward {name!r}"
            + (f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(REWARDS)}")
        )
    module, options, published = REWARDS[name]
    if path_or_hub_id is None and published is None:
        raise FileNotFoundError(f"the reward {name!r} needs a folder of weights: give its path")
    place = resolve(path_or_hub_id or published)
    if (folder := place if isinstance(place, Path) else cached_snapshot(place)) is not None:
        check_weights(folder)
    load = module if callable(module) else import_module(f".{module}", __package__).load
    with from_hub(place, f"reward {name!r}") if isinstance(place, str) else nullcontext():
        model, score = load(place, **options)
    model.to(device)
    return partial(
        checked,
        score if scale == 1 else lambda pixels, prompts: scale * score(pixels, prompts),
        name,
    )


def load_rewards(settings: list, device: str = "cpu") -> dict[str, Reward]:
    """By name, the rewards that settings (config.Reward) describe; a second of one name is `name-2`. Raises as `load_reward`."""
    from bpgo.rewards.worker import Worker

    rewards = {}
    for s in settings:
        name = next(
            n for n in (s.name, *(f"{s.name}-{i}" for i in range(2, 99))) if n not in rewards
        )
        given = s.name, s.path, s.device or device, s.scale
        rewards[name] = Worker(*given, s.time_limit) if s.process else load_reward(*given)
    return rewards


def submit(
    rewards: dict[str, Reward], pixels: Tensor, prompts: list[str]
) -> Callable[[], dict[str, Tensor]]:
    """Have all rewards score the same samples, those in processes of their own meanwhile; call the result for (B,) scores by name."""
    elsewhere = {
        name: reward.submit(pixels, prompts)
        for name, reward in rewards.items()
        if hasattr(reward, "submit")
    }
    here = {
        name: reward(pixels, prompts) for name, reward in rewards.items() if name not in elsewhere
    }
    return lambda: {name: here[name] if name in here else elsewhere[name]() for name in rewards}


def total(rewards: dict[str, Reward]) -> Reward:
    """The sum of several rewards, as one."""
    return lambda pixels, prompts: sum(submit(rewards, pixels, prompts)().values())


def checked(reward: Reward, name: str, pixels: Tensor, prompts: list[str]) -> Tensor:
    """Call a reward and refuse, with RewardError, anything but B finite numbers. The result is float32 on the pixels' device.

    pixels: (B, 3, H, W) pictures or (B, F, 3, H, W) videos in [0, 1]. Where memory runs out, the error is MemoryError.
    """
    samples = "videos" if pixels.ndim == 5 else "pictures"
    if len(pixels) != len(prompts):
        raise RewardError(f"reward {name!r}: {len(pixels)} {samples} for {len(prompts)} prompts")
    try:
        values = torch.as_tensor(reward(pixels, prompts), dtype=torch.float32, device=pixels.device)
    except RewardError:
        raise
    except Exception as error:  # a reward is anyone's code: whatever it raises, the run must say which reward it was
        if isinstance(
            error, (torch.OutOfMemoryError, MemoryError)
        ) or "can't allocate memory" in str(error):  # the run names its knobs
            raise MemoryError(
                f"reward {name!r} (reward.device puts it elsewhere, such as cpu): {error}"
            ) from error
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

"""Priors that are rewards of a reference: the starting (SFT) model's samples, or a still image.

The rewards of the starting model are computed once and cached under a fingerprint of everything
that they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from bpgo.caches import cache_folder
from bpgo.config import Config, to_dict
from bpgo.devices import as_float64
from bpgo.distributed import full_number
from bpgo.evaluation import evaluate
from bpgo.files import write_atomic
from bpgo.priors import Constant, PerPrompt
from bpgo.prompts import images_of, key_of, pixels_of
from bpgo.rewards import Reward
from bpgo.rollout import row_noise
from bpgo.text_files import read_json


def sft(
    config: Config, policy, reward: Reward, prompts: list[str], conditions: Callable | None
) -> Constant:
    """The starting model's mean reward over all prompts. Call it before any training."""
    table = reference_rewards(config, policy, reward, prompts, conditions)
    return Constant(sum(table.values()) / len(table))


def sft_per_prompt(
    config: Config, policy, reward: Reward, prompts: list[str], conditions: Callable | None
) -> PerPrompt:
    """The starting model's mean reward for each prompt. Call it before any training."""
    return PerPrompt(reference_rewards(config, policy, reward, prompts, conditions))


def first_frame(policy, reward: Reward, prompts: list[str]) -> PerPrompt:
    """For image-to-video, the reward of each prompt's image (see `first_frame_rewards`)."""
    return PerPrompt(first_frame_rewards(policy, reward, prompts))


def reference_rewards(
    config: Config,
    policy,
    reward: Reward,
    prompts: list[str],
    conditions: Callable | None = None,
) -> dict[str, float]:
    """Mean reward of `prior.samples` samples of each prompt, with `evaluation.steps` ODE steps.

    The result is cached (see `cache_file`), and nothing is sampled if it is found there. The
    fingerprint covers the policy's weights, the prompts and the sampling. The reward and the
    decoder enter it through the score of decoded noise.
    """
    by_key = {key_of(prompt): prompt for prompt in prompts}
    keys = sorted(by_key)
    prompts = [by_key[key] for key in keys]
    noise = row_noise([0, 1], policy.latent_shape(), 1, policy.device)[0]
    probe = reward(policy.decode(noise), [prompts[0], prompts[-1]])
    settings = to_dict(config)
    identity = [settings[name] for name in ("generator", "reward", "sampling")]
    identity += [config.prior.samples, config.evaluation.steps, keys]
    identity += [weights_fingerprint(policy.modules), probe.tolist()]
    file = cache_file("reference", identity).with_suffix(".json")
    found = _read_table(file)
    (found,) = broadcast_object_list([found])  # either all processes sample, or none does
    if found is not None:
        return found
    table = _sample_rewards(config, policy, reward, prompts, conditions)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(table))
    return table


def _read_table(file: Path) -> dict[str, float] | None:
    """The cached rewards; None if there are none or the file is damaged."""
    try:
        return {key: float(mean) for key, mean in read_json(file).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _sample_rewards(
    config: Config, policy, reward: Reward, prompts: list[str], conditions: Callable | None
) -> dict[str, float]:
    samples, table = config.prior.samples, {}
    chunk = max(1, config.groups * config.group_size // samples)
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        scores = evaluate(
            policy,
            part,
            {"reward": reward},
            samples,
            config.evaluation.steps,
            config.sampling.shift,
            config.sampling.micro_batch,
            conditions,
            keep=0,
        )
        means = scores.scores["reward"].mean(1).tolist()
        table |= dict(zip(map(key_of, part), means, strict=True))
    return table


def first_frame_rewards(
    policy, reward: Reward, prompts: list[str], chunk: int = 32
) -> dict[str, float]:
    """For each image-to-video prompt, the reward of its image held still as a video.

    This is the text alignment of the conditioning image (arXiv 2511.18919, table 1), on the scale
    of the video reward, because it is the same reward of the same kind of input. A video is then
    expected to fit its prompt as well as its first frame does. Raises ValueError for prompts
    without images.
    """
    images, table = first_frames(prompts), {}
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        frame = pixels_of(images[start : start + chunk])[:, None]
        video = frame.expand(-1, policy.frames, -1, -1, -1).to(policy.device)
        table |= dict(zip(map(key_of, part), reward(video, part).tolist(), strict=True))
    return table


def first_frames(prompts: list[str]) -> list:
    """The images of image-to-video prompts. Raises ValueError for prompts without images."""
    images = images_of(prompts)
    if images is None:
        raise ValueError(
            "prior.name=first_frame is for image-to-video, and these prompts carry no images: "
            "use sft or running_mean"
        )
    return images


def cache_file(kind: str, identity: list) -> Path:
    """The cache file of a result that depends on `identity`, a list of JSON values.

    The folder is that of `bpgo.caches.cache_folder`: $BPGO_CACHE, or ~/.cache/bpgo.
    """
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / f"{kind}-{name}"


def weights_fingerprint(modules: dict[str, torch.nn.Module]) -> str:
    """A hash of the name, shape, sum and sum of squares of every parameter.

    It is cheap at any size, and every training step changes it.
    """
    digest = hashlib.sha256()
    for part, module in modules.items():
        for name, p in module.named_parameters():
            values = as_float64(p.detach())
            moments = full_number(values.sum()).item(), full_number(values.square().sum()).item()
            digest.update(repr((part, name, tuple(p.shape), moments)).encode())
    return digest.hexdigest()

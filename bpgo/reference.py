"""Rewards of the starting (SFT) model's own samples, from which two priors are made: computed once, kept with a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from bpgo.config import Config, to_dict
from bpgo.distributed import whole
from bpgo.evaluation import evaluate
from bpgo.files import write_atomic
from bpgo.priors import Constant, EmpiricalBayes, PerPrompt, Prior, RunningMean
from bpgo.prompts import images_of, key_of, pixels_of
from bpgo.rewards import Reward
from bpgo.rollout import row_noise


def make_prior(
    config: Config, policy, reward: Reward, prompts: list[str], conditions: Callable | None = None
) -> Prior:
    """The prior that config.prior names. For the SFT kinds, policy must still be the starting model. conditions: as `evaluate` takes it."""
    p = config.prior
    if p.kind == "running_mean":
        return RunningMean(p.momentum)
    if p.kind == "empirical_bayes":
        return EmpiricalBayes(p.momentum)
    if p.kind == "constant":
        return Constant(p.value)
    if p.kind == "first_frame":
        return PerPrompt(first_frame_rewards(policy, reward, prompts))
    table = reference_rewards(config, policy, reward, prompts, conditions)
    return (
        PerPrompt(table)
        if p.kind == "sft_per_prompt"
        else Constant(sum(table.values()) / len(table))
    )


def reference_rewards(
    config: Config, policy, reward: Reward, prompts: list[str], conditions: Callable | None = None
) -> dict[str, float]:
    """Mean reward of config.prior.samples pictures of each prompt, by config.evaluation.steps ODE steps of this policy.

    Kept in $BPGO_CACHE (or ~/.cache/bpgo) under a fingerprint of weights, reward, prompts and sampling; found there, nothing is sampled.
    The reward and the decoder have no weights of their own here: what they make of noise stands for them.
    """
    unique, settings = {key_of(p): p for p in prompts}, to_dict(config)
    prompts, keys = [unique[key] for key in sorted(unique)], sorted(unique)
    probe = reward(
        policy.decode(row_noise([0, 1], policy.latent_shape(), 1, policy.device)[0]),
        [prompts[0], prompts[-1]],
    )
    identity = [settings[k] for k in ("generator", "reward", "sampling")]
    identity += [
        config.prior.samples,
        config.evaluation.steps,
        keys,
        weights_fingerprint(policy.modules),
        probe.tolist(),
    ]
    place = cache("reference", identity).with_suffix(".json")
    known = json.loads(place.read_text()) if place.is_file() else None
    (known,) = broadcast_object_list([known])  # all processes sample, or none does
    if known is not None:
        return known
    table = {}
    micro = config.sampling.micro_batch
    chunk = max(1, config.groups * config.group_size // config.prior.samples)
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        scores = evaluate(
            policy,
            part,
            {"reward": reward},
            config.prior.samples,
            config.evaluation.steps,
            config.sampling.shift,
            micro,
            conditions,
            keep=False,
        )
        table |= dict(zip(map(key_of, part), scores.scores["reward"].mean(1).tolist(), strict=True))
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, json.dumps(table))
    return table


def cache(kind: str, identity: list) -> Path:
    """Where what depends on this identity (anything JSON can write) is kept: in $BPGO_CACHE, or ~/.cache/bpgo."""
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    return Path(os.environ.get("BPGO_CACHE", Path.home() / ".cache" / "bpgo")) / f"{kind}-{name}"


def first_frame_rewards(
    policy, reward: Reward, prompts: list[str], chunk: int = 32
) -> dict[str, float]:
    """For each image-to-video prompt, the reward of its picture held still for as many frames as the policy makes.

    The text alignment of the conditioning image (arXiv 2511.18919, table 1), on the video reward's own scale because it is the same
    reward of the same kind of input; a video is then expected to fit its prompt as well as its first frame does. Raises ValueError for
    prompts without pictures.
    """
    images, table = images_of(prompts), {}
    if images is None:
        raise ValueError(
            "prior.name=first_frame is for image-to-video, and these prompts carry no images: use sft or running_mean"
        )
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        still = pixels_of(images[start : start + chunk])[:, None].expand(
            -1, policy.frames, -1, -1, -1
        )
        table |= dict(
            zip(map(key_of, part), reward(still.to(policy.device), part).tolist(), strict=True)
        )
    return table


def weights_fingerprint(modules: dict[str, torch.nn.Module]) -> str:
    """A hash of the name, shape, sum and sum of squares of every parameter: cheap at any size, changed by any training step."""
    digest = hashlib.sha256()
    for part, module in modules.items():
        for name, p in module.named_parameters():
            moments = (
                whole(p.detach().double().sum()).item(),
                whole(p.detach().double().square().sum()).item(),
            )
            digest.update(repr((part, name, tuple(p.shape), moments)).encode())
    return digest.hexdigest()

"""Rewards of the starting (SFT) model's own samples, from which two priors are made: computed once, kept with a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from .config import Config, to_dict
from .evaluation import evaluate
from .files import write_atomic
from .priors import Constant, PerPrompt, Prior, RunningMean
from .rewards import Reward
from .rollout import row_noise


def make_prior(config: Config, policy, reward: Reward, prompts: list[str]) -> Prior:
    """The prior that config.prior names. For the SFT kinds, policy must still be the starting model."""
    p = config.prior
    if p.kind == "running_mean":
        return RunningMean(p.momentum)
    if p.kind == "constant":
        return Constant(p.value)
    table = reference_rewards(config, policy, reward, prompts)
    return PerPrompt(table) if p.kind == "sft_per_prompt" else Constant(sum(table.values()) / len(table))


def reference_rewards(config: Config, policy, reward: Reward, prompts: list[str]) -> dict[str, float]:
    """Mean reward of config.prior.samples pictures of each prompt, by config.evaluation.steps ODE steps of this policy.

    Kept in $BPGO_CACHE (or ~/.cache/bpgo) under a fingerprint of weights, reward, prompts and sampling; found there, nothing is sampled.
    The reward and the decoder have no weights of their own here: what they make of noise stands for them.
    """
    prompts, settings = sorted(set(prompts)), to_dict(config)
    probe = reward(policy.decode(row_noise([0, 1], policy.latent_shape(), 1, policy.device)[0]), [prompts[0], prompts[-1]])
    identity = [settings[k] for k in ("generator", "reward", "sampling")]
    identity += [config.prior.samples, config.evaluation.steps, prompts, weights_fingerprint(policy.modules), probe.tolist()]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    place = Path(os.environ.get("BPGO_CACHE", Path.home() / ".cache" / "bpgo")) / f"reference-{name}.json"
    if place.is_file():
        return json.loads(place.read_text())
    table = {}
    chunk = max(1, config.groups * config.group_size // config.prior.samples)
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        scores = evaluate(policy, part, {"reward": reward}, config.prior.samples, config.evaluation.steps, config.sampling.shift)
        table |= dict(zip(part, scores.scores["reward"].mean(1).tolist(), strict=True))
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, json.dumps(table))
    return table


def weights_fingerprint(modules: dict[str, torch.nn.Module]) -> str:
    """A hash of the name, shape, sum and sum of squares of every parameter: cheap at any size, changed by any training step."""
    digest = hashlib.sha256()
    for part, module in modules.items():
        for name, p in module.named_parameters():
            moments = (p.detach().double().sum().item(), p.detach().double().square().sum().item())
            digest.update(repr((part, name, tuple(p.shape), moments)).encode())
    return digest.hexdigest()

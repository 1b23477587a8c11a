"""What the study adds to a trainer: corrupted rewards, weights from the truth, and measured groups.

A corruption is applied to the training reward only. Metrics and priors use the reward as it is.
"""

import json

import numpy as np
import torch

from bpgo.analysis.statistics import agreement, variance_share
from bpgo.diagnostics import group_diagnostics
from bpgo.files import resolve
from bpgo.objective import group_advantages
from bpgo.prompt_files import read_prompts
from bpgo.prompts import key_of
from bpgo.rollout import seed_of
from bpgo.trainer import Trainer
from bpgo.worlds import load_world

MIXED = 200  # prompts of a mix
# Mean and standard deviation of the rewards of the tiny models. Corruptions are in these units.
MEAN, STD = 0.57, 0.08


class StudyTrainer(Trainer):
    """A trainer whose reward may be corrupted and whose advantages may follow another rule.

    rule: a name of RULES, or None for the config's objective. corruption, level: a name of
    CORRUPTIONS, or None, and its strength. The config must name a world in `evaluation.metrics`.
    """

    def __init__(self, config, output, *, rule=None, corruption=None, level=2.0, **given):
        share_right = load_world(config.evaluation.metrics[0]).oracle.share_right
        super().__init__(config, output, metrics={"truth": share_right}, **given)
        self.rule = rule
        if corruption is not None:
            corrupted = Corrupted(self.reward, corruption, level, graded(config.prompts))
            self.rewards = {corruption: corrupted}
        if rule == "ceiling":
            self.rewards = self.rewards | {"truth": share_right}

    def compute_advantages(self, batch, scores):
        scores = dict(scores)
        truth = scores.pop("truth", None)
        advantages, metrics = super().compute_advantages(batch, scores)
        if self.rule is None:
            return advantages, metrics
        rewards = sum(scores.values()).view(-1, batch.group_size)
        advantages = RULES[self.rule](self.config.objective, rewards, advantages, truth)
        return advantages, metrics | group_diagnostics(rewards, advantages)


class Corrupted:
    """A reward that is made wrong on purpose. `left_open`: as `graded` returns it."""

    def __init__(self, reward, corruption, level, left_open):
        self.reward, self.corrupt, self.level = reward, CORRUPTIONS[corruption], level
        self.left_open = left_open

    def __call__(self, pixels, prompts):
        ambiguous = [self.left_open[key_of(prompt)] for prompt in prompts]
        return self.corrupt(self.reward(pixels, prompts), pixels, ambiguous, self.level)


# -------------------------------------------------------------------------------------------- rules


def ceiling(settings, rewards, advantages, truth):
    """Weights from the true reliability of each group, in place of those of RAS.

    A weight is 1 + alpha times the agreement of the reward with the truth (B,).
    """
    reliability = agreement(rewards.double().numpy(), truth.view_as(rewards).double().numpy())
    weights = 1 + settings.alpha * torch.from_numpy(reliability).to(rewards)
    return advantages._replace(main=weights[:, None] * group_advantages(rewards), weights=weights)


def raw(settings, rewards, advantages, truth):
    """No normalisation within groups, neither of the rewards nor of the transformed rewards.

    They are centred on their group's mean and divided by the standard deviation of the whole batch.
    """
    auxiliary = None
    if advantages.auxiliary is not None:
        auxiliary = settings.beta * _over_batch_std(advantages.transformed)
    main = advantages.weights[:, None] * _over_batch_std(rewards)
    return advantages._replace(main=main, auxiliary=auxiliary)


def _over_batch_std(values):
    centred = values - values.mean(1, keepdim=True)
    return centred / centred.std()


RULES = {"ceiling": ceiling, "raw": raw}

# -------------------------------------------------------------------------------- corrupted rewards
#
# Each takes the rewards (B,), pixels, whether each prompt is ambiguous, and a level, and returns
# rewards (B,). It is a function of the sample, so that a resumed run gets the same rewards.


def noise(rewards, pixels, ambiguous, level, draw=torch.randn):
    """Noise with a standard deviation of `level` STD. draw: unit noise by (n, generator=...)."""
    values = []
    for reward, image in zip(rewards, pixels, strict=True):
        seed = seed_of(float(reward), float(image.double().sum()))
        values.append(draw(1, generator=torch.Generator().manual_seed(seed)))
    return rewards + level * STD * torch.cat(values)


def noise_ambiguous(rewards, pixels, ambiguous, level):
    """Noise only where the prompt leaves something open."""
    noisy = noise(rewards, pixels, ambiguous, level)
    return torch.where(torch.tensor(ambiguous), noisy, rewards)


def heavy_tails(rewards, pixels, ambiguous, level):
    """Cauchy noise, cut off at 50, times `level` / 4 STD."""

    def cauchy(n, generator):
        return torch.tan(torch.pi * (torch.rand(n, generator=generator) - 0.5)).clamp(-50, 50)

    return noise(rewards, pixels, ambiguous, 0.25 * level, cauchy)


def flipped(rewards, pixels, ambiguous, level):
    """Rewards mirrored at MEAN for a fraction `level` / 10 of the samples."""
    drawn = noise(torch.zeros_like(rewards), pixels, ambiguous, 1.0) / STD
    threshold = torch.special.ndtri(torch.tensor(level / 10))
    return torch.where(drawn < threshold, 2 * MEAN - rewards, rewards)


def biased(rewards, pixels, ambiguous, level):
    """A preference for red: `level` STD more for an image of which a tenth is red."""
    red = (pixels.select(-3, 0) - pixels.select(-3, 1)).clamp_min(0).flatten(1).mean(1)
    return rewards + 10 * level * STD * red


def stretched(rewards, pixels, ambiguous, level):
    """Another scale, 5 `level` times as wide."""
    return MEAN + 5 * level * (rewards - MEAN)


def shifted(rewards, pixels, ambiguous, level):
    """Another origin: rewards minus 2 `level`, so that all are strongly negative."""
    return rewards - 2 * level


def saturated(rewards, pixels, ambiguous, level):
    """No reward above MEAN, so that the better half cannot be distinguished."""
    return rewards.clamp_max(MEAN)


CORRUPTIONS = {
    function.__name__: function
    for function in (
        noise,
        noise_ambiguous,
        heavy_tails,
        flipped,
        biased,
        stretched,
        shifted,
        saturated,
    )
}

# ------------------------------------------------------------------------------------------ prompts


def graded(file):
    """{key of a prompt: whether it leaves anything open} of a graded prompt file."""
    rows = [json.loads(line) for line in resolve(file).read_text(encoding="utf-8").splitlines()]
    by_text = {row["prompt"]: row["bits"] > 0 for row in rows}
    return by_text | {key_of(prompt): by_text[str(prompt)] for prompt in read_prompts(file)}


def left_open(trainer):
    """For each evaluation prompt of a run, whether it leaves anything open."""
    found = graded(trainer.config.evaluation.prompts)
    return [found[key_of(prompt)] for prompt in trainer.evaluation_prompts]


def mixed(file, share):
    """The first MIXED prompts of a graded file, this share of them ambiguous.

    Raises ValueError if there are not enough prompts of a kind.
    """
    ambiguous = graded(file)
    prompts = list(dict.fromkeys(read_prompts(file)))
    wanted = {True: round(share * MIXED), False: MIXED - round(share * MIXED)}
    chosen = []
    for kind, count in wanted.items():
        chosen += [prompt for prompt in prompts if ambiguous[key_of(prompt)] == kind][:count]
    if len(chosen) < MIXED:
        raise ValueError(f"{file} has too few prompts for a mix with {share:.0%} ambiguous ones")
    return chosen


# ------------------------------------------------------------------------------------------- groups


def measure_groups(scores):
    """What the reward, the held-out reward and the truth say about samples of each prompt.

    scores: {metric: one row of samples per prompt}, as in evaluations.jsonl. Returns columns with
    one value per prompt, None where a value is not defined.
    """
    reward = np.array(scores["reward"], dtype=float)
    truth = np.array(scores["truth"], dtype=float)
    columns = {
        "reward_mean": reward.mean(1),
        "reward_std": reward.std(1, ddof=1),
        "truth_mean": truth.mean(1),
        "agreement": agreement(reward, truth),
        "signal": variance_share(reward, truth),
    }
    if "held_out" in scores:
        columns["judges_agree"] = agreement(reward, np.array(scores["held_out"], dtype=float))
    return {
        name: [None if np.isnan(value) else float(f"{value:.4g}") for value in values]
        for name, values in columns.items()
    }

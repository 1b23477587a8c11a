"""What the study adds to a trainer: rewards corrupted on purpose, weights from the truth, and groups measured against it."""

import json

import numpy as np
import torch

from bpgo import objective
from bpgo.analysis.statistics import agreement, variance_share
from bpgo.files import resolve
from bpgo.objective import group_advantages
from bpgo.prompts import key_of, read_prompts
from bpgo.rewards import load_rewards, total
from bpgo.rollout import seed_of
from bpgo.trainer import Trainer
from bpgo.worlds.clips import oracle as clip_oracle
from bpgo.worlds.digits import judge
from bpgo.worlds.shapes import oracle

MIXED = 200  # prompts of a mix
MIDDLE, SPREAD = (
    0.57,
    0.08,
)  # mean and standard deviation of the tiny rewards, of which corruptions are multiples


class StudyTrainer(Trainer):
    """A trainer whose reward may be corrupted (`corruption`, `level`) and whose advantages may be made by another `rule`.

    Measures use the reward as it is. The finer truth of each sample of an iteration is kept in `truth` if the rule asks for it.
    """

    def __init__(
        self,
        config,
        output,
        *,
        rule=None,
        corruption=None,
        level=2.0,
        prompts=None,
        metrics=None,
        **named,
    ):
        self.rule, self.truth = rule, []
        world = (
            judge
            if config.evaluation.oracle == "digits"
            else clip_oracle
            if config.generator.frames
            else oracle
        )
        self.share_right = world.share_right
        ambiguous = graded(config.prompts)
        clean = total(load_rewards(config.reward, "cpu"))
        self.training = False

        def reward(pixels, texts):
            values = clean(pixels, texts)
            if not self.training:
                return values
            if rule == "ceiling":
                self.truth.append(self.share_right(pixels, texts))
            return (
                CORRUPTIONS[corruption](
                    values, pixels, [ambiguous[key_of(t)] for t in texts], level
                )
                if corruption
                else values
            )

        super().__init__(
            config,
            output,
            reward=reward,
            prompts=prompts,
            metrics=(metrics or {}) | {"truth": self.share_right},
            **named,
        )

    def step(self):
        self.training, self.truth = True, []
        try:
            return super().step()
        finally:
            self.training = False

    def weigh(self, prompts, rewards):
        advantages, metrics = super().weigh(prompts, rewards)
        if self.rule is None:
            return advantages, metrics
        advantages = RULES[self.rule](self, rewards, advantages)
        return advantages, metrics | objective.group_diagnostics(rewards, advantages)


def ceiling(trainer, rewards, advantages):
    """Weights from the groups' true reliability: 1 + alpha times the agreement of the reward with the oracle, in place of RAS's."""
    truth = torch.cat(trainer.truth).view_as(rewards)
    reliable = torch.from_numpy(agreement(rewards.double().numpy(), truth.double().numpy())).to(
        rewards
    )
    weights = 1 + trainer.config.objective.alpha * reliable
    return advantages._replace(main=weights[:, None] * group_advantages(rewards), weights=weights)


def raw(trainer, rewards, advantages):
    """No group normalisation: rewards and transformed rewards less their group mean, over the spread of the whole batch."""

    def centred(values):
        return (values - values.mean(1, keepdim=True)) / (
            values - values.mean(1, keepdim=True)
        ).std()

    auxiliary = (
        None
        if advantages.auxiliary is None
        else trainer.config.objective.beta * centred(advantages.transformed)
    )
    return advantages._replace(
        main=advantages.weights[:, None] * centred(rewards), auxiliary=auxiliary
    )


RULES = {"ceiling": ceiling, "raw": raw}

# ------------------------------------------------------------------------------------------------------- corrupted rewards


def noise(values, pixels, ambiguous, level, draw=torch.randn):
    """`level` standard deviations of noise that is a function of the sample, so that a resumed run draws the same."""
    seeds = [
        seed_of(float(v), float(p.double().sum())) for v, p in zip(values, pixels, strict=True)
    ]
    return values + level * SPREAD * torch.cat(
        [draw(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def noise_ambiguous(values, pixels, ambiguous, level):
    """Noise where the prompt leaves something open."""
    return torch.where(torch.tensor(ambiguous), noise(values, pixels, ambiguous, level), values)


def heavy_tails(values, pixels, ambiguous, level):
    """`level` / 4 standard deviations times Cauchy's noise, which is cut off at 50."""

    def cauchy(n, generator):
        return torch.tan(torch.pi * (torch.rand(n, generator=generator) - 0.5)).clamp(-50, 50)

    return noise(values, pixels, ambiguous, 0.25 * level, cauchy)


def flipped(values, pixels, ambiguous, level):
    """The order turned round for samples of a share of level / 10, drawn by sample."""
    drawn = noise(torch.zeros_like(values), pixels, ambiguous, 1.0) / SPREAD
    return torch.where(
        drawn < torch.special.ndtri(torch.tensor(level / 10)), 2 * MIDDLE - values, values
    )


def biased(values, pixels, ambiguous, level):
    """A liking for red: `level` standard deviations for a picture of which a tenth is red."""
    red = (pixels.select(-3, 0) - pixels.select(-3, 1)).clamp_min(0).flatten(1).mean(1)
    return values + 10 * level * SPREAD * red


def stretched(values, pixels, ambiguous, level):
    """Another scale: 5 times `level` as wide."""
    return MIDDLE + 5 * level * (values - MIDDLE)


def shifted(values, pixels, ambiguous, level):
    """Another origin, by 2 times `level` in the reward's own unit: all rewards strongly negative."""
    return values - 2 * level


def saturated(values, pixels, ambiguous, level):
    """No reward above the mean: the better half cannot be told apart."""
    return values.clamp_max(MIDDLE)


CORRUPTIONS = {
    f.__name__: f
    for f in (noise, noise_ambiguous, heavy_tails, flipped, biased, stretched, shifted, saturated)
}

# ---------------------------------------------------------------------------------------------------------------- prompts


def graded(file):
    """{prompt: whether it leaves anything open} of a graded prompt file."""
    rows = [json.loads(line) for line in resolve(file).read_text().splitlines()]
    found = {row["prompt"]: row["bits"] > 0 for row in rows}
    return found | {key_of(p): found[str(p)] for p in read_prompts(file)}


def opened(trainer):
    """For each evaluation prompt of a run, whether it leaves anything open."""
    found = graded(trainer.config.evaluation.prompts)
    return [found[key_of(p)] for p in trainer.evaluation_prompts]


def mixed(file, share):
    """The first MIXED prompts of a graded file, with this share of ambiguous ones."""
    open_ones, prompts = graded(file), list(dict.fromkeys(read_prompts(file)))
    wanted = {True: round(share * MIXED), False: MIXED - round(share * MIXED)}
    parts = [
        [p for p in prompts if open_ones[key_of(p)] == kind][:count]
        for kind, count in wanted.items()
    ]
    if sum(map(len, parts)) < MIXED:
        raise ValueError(f"{file} has not enough prompts for a mix of {share:.0%} ambiguous ones")
    return [p for part in parts for p in part]


def by_group(scores):
    """Each evaluation prompt's group of samples: what the reward, its judges and the truth make of it.

    scores: metric -> rows of a prompt's samples, as evaluations.jsonl has them.
    """
    reward, truth = (np.array(scores[name], dtype=float) for name in ("reward", "truth"))
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
        name: [None if np.isnan(v) else float(f"{v:.4g}") for v in values]
        for name, values in columns.items()
    }

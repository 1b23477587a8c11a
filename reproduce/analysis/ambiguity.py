"""What a reward says of prompts that leave things open, and whether its deviation from a prior tells how reliable it is (H5 of PLAN.md).

Live, on drawings: `omissions` leaves ever more open, `wordings` says the same in other words, `measure` takes the same numbers of both. Of
records: `groups` has every group of the study's `ambiguity` runs, `reliability` how well the deviation from each prior ranks them.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from bpgo.analysis.runs import prompt_facts
from bpgo.analysis.statistics import agreement, auroc, rank_correlation, variance_share
from bpgo.config import read_config
from bpgo.prompts import images_of, key_of, read_prompts
from bpgo.reference import first_frame_rewards
from bpgo.rewards import Reward, load_rewards, total
from bpgo.worlds.clips import captions as clip_captions
from bpgo.worlds.clips import scenes as clips
from bpgo.worlds.shapes import captions, scenes

TASKS = ("t2i", "t2v", "i2v")
STAGES = ("before training", "half-way", "after training")
DEVIATIONS = (
    "mean reward",
    "SFT per prompt",
    "first frame",
)  # of the group's mean reward from these priors
OTHERS = (
    "spread",
    "two rewards agree",
)  # known without the truth too, but no deviation from a prior, and not planned beforehand

# ------------------------------------------------------------------------------------------------------- live, on drawings


class World(NamedTuple):
    """What can be shown, how it is said (a module), whether it is so, how it is drawn; pictured: what it looks like is given (I2V)."""

    subjects: tuple
    language: ModuleType
    says: Callable
    draw: Callable
    pictured: bool


class Case(NamedTuple):
    """A caption and drawings: S of them, (S, 3, 32, 32) or (S, 9, 3, 32, 32) in [0, 1]; right: (S,) bool, which show all that it says.

    subject: the number of the scene that it began with; bits: log2 of how many scenes fit; open: how many attributes it leaves out.
    """

    caption: str
    subject: int
    bits: float
    open: int
    pictures: Tensor
    right: np.ndarray


def world(task: str) -> World:
    """Scenes of one thing for t2i, clips for t2v and i2v. ValueError for another task."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: there are {', '.join(TASKS)}")
    if task == "t2i":
        return World(scenes.all_scenes(1), captions, scenes.says, scenes.sample_pictures, False)
    return World(clips.all_clips(), clip_captions, clips.says, clips.sample_videos, task == "i2v")


@cache
def rewards_of(task: str) -> list[Reward]:
    """The task's training reward and the one held out, which were trained apart from each other."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = read_config(f"{task}-tiny")
    return [
        total(load_rewards(settings)) for settings in (config.reward, config.evaluation.held_out)
    ]


def synonyms(caption: str, language: ModuleType) -> int:
    """How many of a caption's phrases are the second of the two that the world has for the same thing."""
    second = {
        words[1] for table in language.WORDS.values() for words in table.values() if len(words) > 1
    } | {"thing"}
    phrases = "|".join(
        sorted(language.MEANING, key=len, reverse=True)
    )  # the longest first: "moves left" before "moves"
    return sum(phrase in second for phrase in re.findall(rf"\b(?:{phrases})\b", caption.lower()))


def case(of: World, number: int, left_open: Iterable[str], size: int, seed: int = 0) -> Case:
    """The description of a subject (by its number) that leaves these attributes open, in its usual words, with drawings of it.

    `size` are right, of scenes drawn uniformly from those that fit; as many are near misses, right in all that is named but one thing.
    Where none can be (nothing is named), there are right ones alone.
    """
    subject, left_open = of.subjects[number], set(left_open)
    names = list(subject.attributes)
    named = [
        of.language.leave_out(subject, set(names) - {name})
        for name in names
        if name not in left_open
    ]
    possible = [
        s
        for s in of.subjects
        if not of.pictured or (s.shape, s.colour) == (subject.shape, subject.colour)
    ]
    missed = np.array([sum(not of.says(each, s) for each in named) for s in possible])
    fit, near = (
        [s for s, m in zip(possible, missed, strict=True) if m == wrong] for wrong in (0, 1)
    )
    generator = torch.Generator().manual_seed(seed)
    shown = [
        kind[i]
        for kind in (fit, near)
        if kind
        for i in torch.randint(len(kind), (size,), generator=generator).tolist()
    ]
    caption = next(iter(of.language.wordings(of.language.leave_out(subject, left_open))))
    return Case(
        caption,
        number,
        math.log2(len(fit)),
        len(left_open),
        of.draw(shown, generator),
        np.arange(len(shown)) < size,
    )


def subjects(of: World, n: int, seed: int = 0) -> list[int]:
    """Numbers of n subjects with all four attributes (what is still has no speed), drawn uniformly."""
    return random.Random(seed).choices(
        [i for i, s in enumerate(of.subjects) if len(s.attributes) == 4], k=n
    )


def omissions(of: World, n: int, size: int = 12, seed: int = 0) -> Iterator[Case]:
    """n subjects, of each five descriptions: all named, then one attribute after the other left out, in random order."""
    for i, number in enumerate(subjects(of, n, seed)):
        names = list(of.subjects[number].attributes)
        random.Random(f"{seed} {i}").shuffle(names)
        yield from (case(of, number, names[:k], size, seed + i) for k in range(len(names) + 1))


def wordings(of: World, n: int, size: int = 12, seed: int = 0) -> Iterator[Case]:
    """The same subjects with all named, and the same drawings, in ten wordings each: none to four synonyms, in two word orders."""
    for i, number in enumerate(subjects(of, n, seed)):
        usual = case(of, number, (), size, seed + i)
        said = [
            (_turned(c), synonyms(c, of.language), c)
            for c in of.language.wordings(of.subjects[number])
        ]
        for kind in sorted({row[:2] for row in said}):
            yield usual._replace(
                caption=random.Random(f"{seed} {i}").choice(
                    [c for *found, c in said if tuple(found) == kind]
                )
            )


def measure(of: World, cases: Iterable[Case], rewards: list[Reward]) -> pd.DataFrame:
    """A row a case; the first of two rewards is measured, the second compared with it. Units of the reward where nothing else is said.

    mean, spread: of the right drawings, mean and standard deviation (noise, since all are right). gap: mean of the right less that of near
    misses. error: share of pairs in which the near miss has the higher reward, .5 by chance. disagreement: 1 - rank correlation of the two
    rewards over all drawings, and disagreement_right over right ones alone; 0 to 2, 1 by chance. std: over all drawings. signal: share
    of that variance which lies between right and wrong. rewards: (S,). NaN where there is no near miss, but signal is then 0.
    """
    rows = []
    for c in cases:
        first, other = (
            reward(c.pictures, [c.caption] * len(c.right)).double().numpy() for reward in rewards
        )
        right, wrong = first[c.right], first[~c.right]
        pairs = np.sign(wrong[None] - right[:, None]) / 2 + 0.5
        rows.append(
            {
                "caption": c.caption,
                "subject": c.subject,
                "bits": c.bits,
                "open": c.open,
                "synonyms": synonyms(c.caption, of.language),
                "turned": _turned(c.caption),
                "mean": right.mean(),
                "spread": right.std(ddof=1),
                "gap": right.mean() - wrong.mean() if wrong.size else np.nan,
                "error": pairs.mean() if wrong.size else np.nan,
                "disagreement": _disagreement(first, other) if wrong.size else np.nan,
                "disagreement_right": _disagreement(right, other[c.right]),
                "std": first.std(ddof=1),
                "signal": variance_share(first[None], c.right[None])[0],
                "rewards": first,
            }
        )
    return pd.DataFrame(rows)


def _turned(
    caption: str,
) -> bool:  # begins with where its thing is, or how fast it moves, not with the thing itself
    return not caption.startswith(("a ", "it"))


def _disagreement(a: np.ndarray, b: np.ndarray) -> float:
    return (
        np.nan
        if np.ptp(a) == 0 or np.ptp(b) == 0
        else 1 - agreement(rankdata(a)[None], rankdata(b)[None])[0]
    )


def over_wordings(said: pd.DataFrame, size: int) -> pd.DataFrame:
    """Of `measure` over `wordings` with `size` right drawings, a row a subject: standard deviations in units of the reward.

    picture: over the wordings of one picture; group: over the wordings of the group's mean, which RAS sees and a group's advantages do not;
    within: over the right pictures of one wording.
    """
    tables = {
        number: np.stack(list(rows["rewards"]))[:, :size]
        for number, rows in said.groupby("subject")
    }
    return pd.DataFrame(
        {
            number: {
                "picture": t.std(0, ddof=1).mean(),
                "group": t.mean(1).std(ddof=1),
                "within": t.std(1, ddof=1).mean(),
            }
            for number, t in tables.items()
        }
    ).T


def mixed(measured: pd.DataFrame, size: int) -> pd.DataFrame:
    """Groups of `size` with 0 to `size` near misses in place of right drawings, from what `measure` made of `size` of each; a row a group.

    wrong: how many; mean, std: of the group's rewards; signal: share of its variance between right and wrong, 0 where all are alike.
    """
    tables = np.stack([r for r in measured["rewards"] if len(r) == 2 * size])
    rows = []
    for wrong in range(size + 1):
        rewards = np.concatenate([tables[:, : size - wrong], tables[:, size : size + wrong]], 1)
        truth = np.broadcast_to(np.arange(size) < size - wrong, rewards.shape)
        columns = {
            "mean": rewards.mean(1),
            "std": rewards.std(1, ddof=1),
            "signal": variance_share(rewards, truth),
        }
        rows.append(pd.DataFrame({"wrong": wrong} | columns))
    return pd.concat(rows, ignore_index=True)


# -------------------------------------------------------------------------------------------------------------- of records


def groups(plan: pd.DataFrame, records: dict[str, dict]) -> pd.DataFrame:
    """Every group of the recorded `ambiguity` runs: a row a task, seed, stage (0 before training, 1, 2 after it) and evaluation prompt.

    prompt: its key; level: share of attributes it names; bits: left open; synonyms: as above; agreement: the true reliability, in [-1, 1];
    flat: no sample is truer than another, which makes agreement 0 by definition. Then what may tell the reliability, higher for more: the
    DEVIATIONS, NaN where there is no such prior, and OTHERS. "mean reward" is the mean less a number that all groups share at a time
    (constant, SFT mean, running mean, hierarchy: their weights increase with the mean), so, as far as ranks go, the mean itself. "SFT per
    prompt" is the mean less that at stage 0, from the same noise. No records give no rows.
    """
    rows = plan[(plan["experiment"] == "ambiguity") & plan["run"].isin(list(records))]
    tables = [_groups(row.task, row.seed, records[row.run]) for row in rows.itertuples()]
    names = [
        "task",
        "seed",
        "stage",
        "iteration",
        "prompt",
        "level",
        "bits",
        "synonyms",
        "reward_mean",
        "reward_std",
        "truth_mean",
        "agreement",
        "signal",
        "flat",
        *DEVIATIONS,
        *OTHERS,
    ]
    return pd.concat(tables, ignore_index=True)[names] if tables else pd.DataFrame(columns=names)


def _groups(task: str, seed: int, record: dict) -> pd.DataFrame:
    config = read_config(f"{task}-tiny")
    file = record["settings"].get("evaluation.prompts", config.evaluation.prompts)
    prompts, language = read_prompts(file), captions if task == "t2i" else clip_captions
    first = np.nan
    if images_of(prompts):
        policy = SimpleNamespace(
            frames=config.generator.frames, device="cpu"
        )  # a still picture needs no generator
        table = first_frame_rewards(policy, rewards_of(task)[0], prompts)
        first = np.array([table[key_of(p)] for p in prompts])
    known = {
        "task": task,
        "seed": seed,
        "prompt": [key_of(p) for p in prompts],
        "synonyms": [synonyms(p, language) for p in prompts],
    }
    known |= prompt_facts(file, prompts)
    parts: list[pd.DataFrame] = []
    for stage, iteration in enumerate(sorted(record["groups"], key=int)):
        found = pd.DataFrame(record["groups"][iteration], dtype=float)
        if len(found) != len(prompts):
            raise ValueError(
                f"{record['run']} has {len(found)} groups, but {file} {len(prompts)} prompts: run it again with these"
            )
        mean, known = (
            found["reward_mean"],
            known | {"stage": stage, "iteration": int(iteration), "flat": found["signal"] == 0},
        )
        signals = {
            "mean reward": mean,
            "SFT per prompt": mean - parts[0]["reward_mean"] if parts else np.nan,
            "first frame": mean - first,
            "spread": found["reward_std"],
            "two rewards agree": found.get("judges_agree", np.nan),
        }
        parts.append(found.assign(**known, **signals))
    return pd.concat(parts)


def reliability(
    found: pd.DataFrame, signals: Iterable[str] = (*DEVIATIONS, *OTHERS)
) -> pd.DataFrame:
    """How well each signal ranks `groups` by true reliability: a row a task, stage and signal, for all groups and without the flat.

    rho, low, high: rank correlation with the agreement. auroc, auroc_low, auroc_high: chance that a group whose agreement is above the
    median of these has the higher signal than one whose is not. Intervals (95 %) resample prompts: the runs of all seeds sample the same
    prompts from the same noise, so prompts are what is independent, n of them. seed_low, seed_high: least and largest rho of a seed.
    """
    rows, names = (
        [],
        [
            "task",
            "stage",
            "signal",
            "groups",
            "rho",
            "low",
            "high",
            "auroc",
            "auroc_low",
            "auroc_high",
            "n",
            "seeds",
            "seed_low",
            "seed_high",
        ],
    )
    for (task, stage), part in found.groupby(["task", "stage"], sort=False):
        for name, which in itertools.product(signals, ("all", "not flat")):
            kept = (part if which == "all" else part[~part["flat"].astype(bool)]).dropna(
                subset=[name]
            )
            if len(kept) > 2:
                score, truth, prompts = (
                    kept[column].to_numpy() for column in (name, "agreement", "prompt")
                )
                rank, area = (
                    rank_correlation(score, truth, prompts),
                    auroc(score, truth > np.median(truth), prompts),
                )
                own = [
                    rank_correlation(s[name], s["agreement"], resamples=1).mean
                    for _, s in kept.groupby("seed")
                ]
                rows.append(
                    [
                        task,
                        stage,
                        name,
                        which,
                        *rank[:3],
                        *area[:3],
                        rank.n,
                        len(own),
                        min(own),
                        max(own),
                    ]
                )
    return pd.DataFrame(rows, columns=names)

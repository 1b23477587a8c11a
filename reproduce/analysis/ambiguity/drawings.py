"""A reward measured on drawings whose truth is known.

`omissions` describes a scene and leaves more and more open. `wordings` describes it completely in
other words. `measure` computes the same numbers for both.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from bpgo.analysis.statistics import agreement, variance_share
from bpgo.config import read_config
from bpgo.rewards import Reward, load_rewards, total
from bpgo.worlds import load_world

TASKS = ("t2i", "t2v", "i2v")


class World(NamedTuple):
    """The scenes that a task can describe, and the modules of their world (see `bpgo.worlds`).

    given_image: whether the appearance of the thing is given (image-to-video).
    """

    subjects: tuple
    scenes: ModuleType
    captions: ModuleType
    oracle: ModuleType
    given_image: bool


class Case(NamedTuple):
    """A caption and S drawings.

    subject: the number of the scene that the caption was made for. bits: log2 of how many scenes
    fit the caption. open: how many attributes it leaves out. pictures: (S, 3, 32, 32) or
    (S, 9, 3, 32, 32) in [0, 1]. right: (S,) bool, whether each shows all that the caption names.
    """

    caption: str
    subject: int
    bits: float
    open: int
    pictures: Tensor
    right: np.ndarray


def world(task: str) -> World:
    """Scenes of one thing for t2i, clips for t2v and i2v. Raises ValueError for another task."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: there are {', '.join(TASKS)}")
    if task == "t2i":
        modules = load_world("shapes")
        return World(modules.scenes.all_scenes(1), *modules, given_image=False)
    modules = load_world("clips")
    return World(modules.scenes.all_scenes(), *modules, given_image=task == "i2v")


@cache
def rewards_of(task: str) -> list[Reward]:
    """The training reward and the held-out reward of a task, which were trained separately."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = read_config(f"{task}-tiny")
    return [
        total(load_rewards(settings)) for settings in (config.reward, config.evaluation.held_out)
    ]


# -------------------------------------------------------------------------------------------- cases


def case(of: World, number: int, left_open: Iterable[str], size: int, seed: int = 0) -> Case:
    """A description of a subject in its usual words, with drawings.

    number: of the subject. left_open: the attributes that the description leaves out. `size`
    drawings are right: their scenes are drawn uniformly from those that fit. As many are near
    misses: all is right except one named attribute. If nothing is named, there are no near misses.
    """
    subject, left_open = of.subjects[number], set(left_open)
    fit, near = _by_misses(of, subject, left_open)
    generator = torch.Generator().manual_seed(seed)
    shown = []
    for scenes in (fit, near):
        if scenes:
            drawn = torch.randint(len(scenes), (size,), generator=generator).tolist()
            shown += [scenes[i] for i in drawn]
    description = of.captions.leave_out(subject, left_open)
    caption = next(iter(of.captions.wordings(description)))
    pictures = of.scenes.sample_pixels(shown, generator)
    right = np.arange(len(shown)) < size
    return Case(caption, number, math.log2(len(fit)), len(left_open), pictures, right)


def _by_misses(of: World, subject, left_open: set[str]) -> tuple[list, list]:
    """The scenes that have all named attributes of the subject, and those that miss exactly one."""
    names = list(subject.attributes)
    named = [
        of.captions.leave_out(subject, set(names) - {name})
        for name in names
        if name not in left_open
    ]
    fit, near = [], []
    for scene in of.subjects:
        if of.given_image and (scene.shape, scene.colour) != (subject.shape, subject.colour):
            continue
        missed = sum(not of.scenes.describes(attribute, scene) for attribute in named)
        if missed < 2:
            (near if missed else fit).append(scene)
    return fit, near


def subjects(of: World, n: int, seed: int = 0) -> list[int]:
    """Numbers of n subjects with four attributes, drawn uniformly. Still things have no speed."""
    complete = [i for i, subject in enumerate(of.subjects) if len(subject.attributes) == 4]
    return random.Random(seed).choices(complete, k=n)


def omissions(of: World, n: int, size: int = 12, seed: int = 0) -> Iterator[Case]:
    """Five descriptions of each of n subjects: all named, then one attribute after the other left
    out, in random order."""
    for i, number in enumerate(subjects(of, n, seed)):
        names = list(of.subjects[number].attributes)
        random.Random(f"{seed} {i}").shuffle(names)
        for count in range(len(names) + 1):
            yield case(of, number, names[:count], size, seed + i)


def wordings(of: World, n: int, size: int = 12, seed: int = 0) -> Iterator[Case]:
    """Ten complete descriptions of each of the same subjects, with the same drawings.

    They have zero to four synonyms, in two word orders.
    """
    for i, number in enumerate(subjects(of, n, seed)):
        usual = case(of, number, (), size, seed + i)
        by_kind: dict[tuple, list[str]] = {}
        for caption in of.captions.wordings(of.subjects[number]):
            kind = turned(caption), synonyms(caption, of.captions)
            by_kind.setdefault(kind, []).append(caption)
        for _, captions in sorted(by_kind.items()):
            yield usual._replace(caption=random.Random(f"{seed} {i}").choice(captions))


def synonyms(caption: str, captions: ModuleType) -> int:
    """How many phrases of a caption are the second of the two synonyms that its world has."""
    second = {"thing"}
    for table in captions.WORDS.values():
        second |= {words[1] for words in table.values() if len(words) > 1}
    # The longest first: "moves left" before "moves".
    phrases = "|".join(sorted(captions.MEANING, key=len, reverse=True))
    found = re.findall(rf"\b(?:{phrases})\b", caption.lower())
    return sum(phrase in second for phrase in found)


def turned(caption: str) -> bool:
    """Whether a caption starts with the place or the speed of its thing, not with the thing."""
    return not caption.startswith(("a ", "it"))


# ------------------------------------------------------------------------------------- measurements


def measure(of: World, cases: Iterable[Case], rewards: list[Reward]) -> pd.DataFrame:
    """One row per case. The first of two rewards is measured, the second is compared with it.

    mean, spread: mean and standard deviation over the right drawings. The latter is noise, because
    all are right. gap: the mean of the right drawings minus that of the near misses. error: share
    of pairs in which the near miss has the higher reward, .5 by chance. disagreement: 1 minus the
    rank correlation of the two rewards over all drawings, 1 by chance; disagreement_right: the same
    over the right ones. std: over all drawings. signal: share of that variance which lies between
    right and wrong. rewards: (S,). Units are those of the reward. Without near misses gap, error
    and disagreement are NaN.
    """
    rows = []
    for of_case in cases:
        prompts = [of_case.caption] * len(of_case.right)
        first, other = (reward(of_case.pictures, prompts).double().numpy() for reward in rewards)
        right, wrong = first[of_case.right], first[~of_case.right]
        row = {
            "caption": of_case.caption,
            "subject": of_case.subject,
            "bits": of_case.bits,
            "open": of_case.open,
            "synonyms": synonyms(of_case.caption, of.captions),
            "turned": turned(of_case.caption),
            "mean": right.mean(),
            "spread": right.std(ddof=1),
            "gap": np.nan,
            "error": np.nan,
            "disagreement": np.nan,
            "disagreement_right": _disagreement(right, other[of_case.right]),
            "std": first.std(ddof=1),
            "signal": variance_share(first[None], of_case.right[None])[0],
            "rewards": first,
        }
        if wrong.size:
            row["gap"] = right.mean() - wrong.mean()
            row["error"] = (np.sign(wrong[None] - right[:, None]) / 2 + 0.5).mean()
            row["disagreement"] = _disagreement(first, other)
        rows.append(row)
    return pd.DataFrame(rows)


def _disagreement(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return 1 - agreement(rankdata(a)[None], rankdata(b)[None])[0]


def over_wordings(measured: pd.DataFrame, size: int) -> pd.DataFrame:
    """Standard deviations of the reward over wordings and drawings, one row per subject.

    measured: `measure` of `wordings` with `size` right drawings. picture: over the wordings of one
    drawing. group: over the wordings, of the group's mean, which RAS sees and a group's advantages
    do not. within: over the right drawings of one wording. Units are those of the reward.
    """
    found = {}
    for number, rows in measured.groupby("subject"):
        rewards = np.stack(list(rows["rewards"]))[:, :size]  # (wordings, drawings)
        found[number] = {
            "picture": rewards.std(0, ddof=1).mean(),
            "group": rewards.mean(1).std(ddof=1),
            "within": rewards.std(1, ddof=1).mean(),
        }
    return pd.DataFrame(found).T


def mixed(measured: pd.DataFrame, size: int) -> pd.DataFrame:
    """Groups of `size` drawings in which 0 to `size` are near misses, one row per group.

    measured: `measure` of cases with `size` right drawings and as many near misses. wrong: how many
    near misses the group has. mean, std: of the group's rewards. signal: share of their variance
    between right and wrong.
    """
    rewards = np.stack([row for row in measured["rewards"] if len(row) == 2 * size])
    parts = []
    for wrong in range(size + 1):
        group = np.concatenate([rewards[:, : size - wrong], rewards[:, size : size + wrong]], 1)
        truth = np.broadcast_to(np.arange(size) < size - wrong, group.shape)
        part = {
            "wrong": wrong,
            "mean": group.mean(1),
            "std": group.std(1, ddof=1),
            "signal": variance_share(group, truth),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)

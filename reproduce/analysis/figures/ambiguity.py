"""Figures of what ambiguity does to a reward, and of signals of a group's reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from bpgo.analysis import plots, statistics
from reproduce.analysis import ambiguity

KINDS = ("nothing open", "something open", "nothing named")
MARKERS = {
    "nothing open": {"marker": "o", "c": "black", "ec": "black"},
    "something open": {"marker": "o", "c": "white", "ec": "black"},
    "nothing named": {"marker": "^", "c": "0.7", "ec": "black"},
    "flat truth": {"marker": "x", "c": "black"},
}


def drawings(cases: Sequence[ambiguity.Case]) -> None:
    """Some right drawings of each case, one row per case. Every fourth frame of a video."""
    titles = [f"{case.caption}\n{case.bits:.1f} bits open" for case in cases]
    if cases[0].pictures.ndim == 4:
        rows = [case.pictures[:8] for case in cases]
    else:
        rows = [torch.stack([plots.film(v[::4]) for v in case.pictures[:3]]) for case in cases]
    plots.show_images(rows, titles, 0.75)


def rewards_of_cases(measured: pd.DataFrame, size: int) -> None:
    """The rewards of right drawings (solid) and near misses (hollow), one row per case."""
    values = np.full((len(measured), 2 * size), np.nan)  # without near misses, half of it stays NaN
    for row, rewards in zip(values, measured["rewards"], strict=True):
        row[: len(rewards)] = rewards
    right = np.tile(np.arange(2 * size) < size, (len(measured), 1))
    _, [[ax]] = plots.new_figure(size=(8, 2.8))
    plots.strips(ax, values, right, [f"{bits:.1f} bits" for bits in measured["bits"]])
    title = "solid: all that is said is right; hollow: near misses (none if all is open)"
    plots.label(ax, title, "reward (no unit)")


def effects(left_out: pd.DataFrame, reworded: pd.DataFrame) -> None:
    """Four properties of a reward by attributes left open and by synonyms, with 95 % intervals."""
    lines = {
        "attributes left open": (left_out, "open", "o-", "black"),
        "synonyms": (reworded[~reworded["turned"]], "synonyms", "s--", "0.4"),
        "synonyms, other word order": (reworded[reworded["turned"]], "synonyms", "^:", "0.6"),
    }
    titles = {
        "mean": ("mean reward of right drawings", "reward (no unit)"),
        "spread": ("their standard deviation", "reward (no unit)"),
        "error": ("error: near miss preferred", "share of pairs"),
        "disagreement": ("disagreement of two rewards", "1 - rank correlation"),
    }
    chance = {"error": 0.5, "disagreement": 1.0}  # a dotted line
    _, [axes] = plots.new_figure(1, 4, (12, 3.2))
    for ax, (name, (title, unit)) in zip(axes, titles.items(), strict=True):
        for label, (rows, by, style, colour) in lines.items():
            groups = rows.dropna(subset=[name]).groupby(by)[name]
            found = {at: statistics.bootstrap_mean(part.to_numpy()) for at, part in groups}
            look = {"fmt": style, "color": colour, "capsize": 2, "markersize": 5, "label": label}
            plots.error_bars(ax, list(found), list(found.values()), **look)
        ax.set_xticks(range(5))
        ax.set_ylim(0, chance.get(name, ax.get_ylim()[1]) * 1.05)
        ax.axhline(chance.get(name, -1), color="black", ls=(0, (1, 3)))
        plots.label(ax, title, "attributes left open, or synonyms", unit)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")


def signal_and_noise(by_wrong: pd.DataFrame, size: int) -> None:
    """Groups with 0 to `size` near misses: mean reward, and the variance of rewards and advantages.

    by_wrong: means over groups by the number of near misses, with columns mean, signal (its share)
    and signal and noise variance.
    """
    x, share = by_wrong.index, by_wrong["signal"]
    variances = by_wrong["signal variance"], by_wrong["noise variance"]
    _, [axes] = plots.new_figure(1, 3, (12, 3.0))
    axes[0].plot(x, by_wrong["mean"], "ko-")
    hatched = {"color": "white", "edgecolor": "black", "hatch": "////"}
    for ax, (signal, noise) in zip(axes[1:], (variances, (share, 1 - share)), strict=True):
        ax.bar(x, signal, color="black", label="signal: right or wrong")
        ax.bar(x, noise, bottom=signal, label="noise: everything else", **hatched)
    axes[1].legend(frameon=False, fontsize=8, loc="upper left")
    axes[1].set_ylim(top=1.35 * sum(variances).max())
    titles = {
        "mean reward, which RAS sees": "reward (no unit)",
        "variance of the rewards": "reward squared",
        "variance of the advantages": "share",
    }
    for ax, (title, unit) in zip(axes, titles.items(), strict=True):
        plots.label(ax, title, f"near misses among {size} drawings", unit)
        ax.set_xticks(range(0, size + 1, 2))


def kind_of(groups: pd.DataFrame) -> pd.Series:
    """What the prompt of each group leaves open: one of KINDS."""
    choices = [groups["level"] == 1, groups["level"] == 0]
    return pd.Series(np.select(choices, (KINDS[0], KINDS[2]), KINDS[1]), groups.index)


def reliability_by_reward(groups: pd.DataFrame, task: str) -> None:
    """The true reliability of each group by its mean reward, one panel per stage of training."""
    mark = kind_of(groups).mask(groups["flat"], "flat truth")
    _, [axes] = plots.new_figure(1, 3, (12, 3.4), sharey=True, sharex=True)
    for ax, (stage, part) in zip(axes, groups.groupby("stage"), strict=True):
        for name, style in MARKERS.items():
            chosen = part[mark[part.index] == name]
            ax.scatter(chosen["reward_mean"], chosen["agreement"], s=18, label=name, **style)
        iteration = part["iteration"].iloc[0]
        title = f"{task}, {ambiguity.STAGES[stage]} (iteration {iteration})"
        plots.label(ax, title, "mean reward of the group", "" if stage else "true reliability")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")


def rank_correlations(table: pd.DataFrame, signals: Sequence[str]) -> None:
    """The rank correlation of each signal with true reliability, with intervals, by stage.

    table: of `ambiguity.reliability`. Solid marks are for all groups, hollow ones without groups
    whose truth is flat.
    """
    looks: Mapping[str, tuple] = {"all": (-0.15, "black"), "not flat": (0.15, "white")}
    _, [axes] = plots.new_figure(1, 3, (12, 4.6), sharey=True, sharex=True)
    for ax, task in zip(axes, ambiguity.TASKS, strict=True):
        part = table[table["task"] == task]
        for row in part.itertuples():
            shift, face = looks[row.groups]
            y = 4 * signals.index(row.signal) + row.stage + shift
            ax.plot([row.low, row.high], [y, y], color="black", lw=1)
            ax.plot(row.rho, y, "o", color="black", mfc=face, ms=5)
        ax.axvline(0, color="black", lw=1, ls="--")
        if part.empty:
            ax.text(0, 9, "not run", ha="center", backgroundcolor="white")
        title = f"{task} (hollow: without flat groups)"
        plots.label(ax, title, "rank correlation with true reliability")
    stages = [name.split()[0] for name in ambiguity.STAGES]
    at = [4 * i + stage for i in range(len(signals)) for stage in range(len(stages))]
    names = [f"{signal}, {stage}" for signal in signals for stage in stages]
    axes[0].set(xlim=(-1, 1), ylim=(4 * len(signals) - 1, -1))
    axes[0].set_yticks(at, names, fontsize=8)

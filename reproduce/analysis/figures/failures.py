"""Figures of training with rewards that were made wrong on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bpgo.analysis import plots
from bpgo.analysis.runs import smooth
from reproduce.analysis import evidence

OBJECTIVES = ("grpo", "ras", "crt", "bpgo")
LEVELS = (0.0, 0.5, 1.0, 2.0, 4.0)  # standard deviations of the reward
GRADIENT = ("grad_norm", "effective_sample_size", "weight_max", "weight_min")


def corrupted(objective: str, corruption: str) -> str:
    """The name of an arm of the experiments with wrong rewards."""
    return f"name={objective} corruption={corruption}"


def noise_levels(plan: pd.DataFrame, records: dict, metric: str) -> dict[str, pd.DataFrame]:
    """The metric after training by the level of noise in the reward, one line per objective.

    A mark is a run, and a line connects the means. Returns {objective: table (seeds, levels)} of
    gains over the untrained model, NaN without a run.
    """
    start = evidence.before(records, "t2i", metric)
    clean = evidence.so_far(plan, records, "ablation", "t2i", metric)
    level_2 = evidence.so_far(plan, records, "failure_noise", "t2i", metric)
    others = evidence.so_far(plan, records, "failure_levels", "t2i", metric)
    _, [[ax]] = plots.new_figure(size=(6, 3.2))
    found = {}
    for arm, shift in zip(OBJECTIVES, (-0.09, -0.03, 0.03, 0.09), strict=True):
        noisy = corrupted(arm, "noise")
        columns = [clean[arm]]
        for level in LEVELS[1:]:
            columns.append(level_2[noisy] if level == 2 else others[f"{noisy} level={level}"])
        gains = pd.concat(columns, axis=1, keys=LEVELS) - start
        style = plots.method_style(arm)
        line = {key: style.pop(key) for key in ("label", "linestyle")}
        for level in LEVELS:
            runs = gains[level].dropna() + start
            where = np.full(len(runs), level + shift)
            ax.plot(where, runs, linestyle="none", alpha=0.35, markersize=4, **style)
        ax.plot(np.array(LEVELS) + shift, gains.mean() + start, color=style["color"], **line)
        found[arm] = gains
    ax.axhline(start, color="0.4", linestyle="--", label="before training")
    ax.legend(frameon=False, fontsize=8, ncols=2)
    x = "noise, in standard deviations of the reward"
    plots.label(ax, "a mark is a run, a line the mean", x, evidence.axis(metric))
    return found


def given_and_right_reward(
    plan: pd.DataFrame, records: dict, corruptions: Sequence[str], seeds: Sequence[int]
) -> Figure:
    """Above: the reward in training, as it was made wrong. Below: the right reward of these runs.

    One column per corruption; "clean" is the reward as it is. The reward in training is a running
    mean over a tenth of a run, and its panels have different scales.
    """
    figure, axes = plots.new_figure(2, len(corruptions), (14, 3.8), sharex=True)
    for (above, below), corruption in zip(axes.T, corruptions, strict=True):
        for arm in OBJECTIVES:
            done = _runs(plan, records, arm, corruption, seeds)
            if done:
                style = plots.method_style(arm) | {"markersize": 4}
                given = np.mean([run["curves"]["reward"] for run in done], axis=0)
                at, given = smooth(np.arange(len(given)), given, max(1, len(given) // 10))
                above.plot(at, given, markevery=10, **style)
                evaluations = [[e["reward"] for e in run["evaluations"]] for run in done]
                at = [e["iteration"] for e in done[0]["evaluations"]]
                below.plot(at, np.mean(evaluations, axis=0), **style)
        above.set_yticks([])
        below.sharey(axes[1, 0])
        first = above is axes[0, 0]
        title = corruption.replace("_", " ")
        plots.label(above, title, "", "reward in training" if first else "")
        plots.label(below, "", "iteration", "right reward (no unit)" if first else "")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, loc="outside upper right", ncols=4)
    return figure


def _runs(
    plan: pd.DataFrame, records: dict, objective: str, corruption: str, seeds: Sequence[int]
) -> list[dict]:
    """The records of an objective trained on text-to-image with this reward."""
    experiment, arm = "failure_modes", corrupted(objective, corruption)
    if corruption == "clean":
        experiment, arm = "ablation", objective
    chosen = (plan["experiment"] == experiment) & (plan["task"] == "t2i") & (plan["arm"] == arm)
    runs = plan["run"][chosen & plan["seed"].isin(seeds)]
    return [records[run] for run in runs if run in records]


def gradients(plan: pd.DataFrame, records: dict) -> Figure:
    """How the gradient and the weights react to heavy tails, one dot per run.

    From left to right: standard deviation of the gradient norm over its mean; largest norm over the
    median of clean GRPO runs; mean effective sample size; mean range of the weights. The arms below
    the line are without group normalisation.
    """
    arms = [corrupted(o, c) for c in ("clean", "heavy_tails") for o in OBJECTIVES]
    arms += [
        f"name={o} rule=raw corruption={c}"
        for c in ("clean", "heavy_tails")
        for o in ("crt", "bpgo")
    ]
    curves = {name: _gradient_curves(plan, records, name) for name in GRADIENT}
    missing = np.full((1, 2), np.nan)
    usual = np.median(curves["grad_norm"].get(corrupted("grpo", "clean"), missing))
    figure, [axes] = plots.new_figure(1, 4, (12, 3.4), sharey=True)
    for y, arm in enumerate(arms):
        norm, size, largest, smallest = (curves[name].get(arm, missing) for name in GRADIENT)
        variation, jump = norm.std(1) / norm.mean(1), norm.max(1) / usual
        shown = (variation, jump, size.mean(1), (largest - smallest).mean(1))
        for ax, runs in zip(axes, shown, strict=True):
            ax.plot(runs, np.full(len(runs), y), "o", color="black", markersize=5, clip_on=False)
    axes[0].set_yticks(range(len(arms)), [_short(arm) for arm in arms])
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    names = {
        "variation of\nthe gradient norm": None,
        "largest norm /\nGRPO's usual one": None,
        "effective sample size\n(of 12)": 12,
        "largest minus\nsmallest weight": 1,
    }
    for ax, (name, limit) in zip(axes, names.items(), strict=True):
        ax.axhline(len(arms) - 4.5, color="black", linewidth=1)
        ax.set_xlim(0, limit)
        plots.label(ax, "one dot per run" if ax is axes[0] else "", name)
    for x in (4 * 11 / 12, 24 / np.pi):  # one sample against eleven; normal rewards
        axes[2].axvline(x, color="black", linestyle=":")
    return figure


def _gradient_curves(plan: pd.DataFrame, records: dict, name: str) -> dict[str, np.ndarray]:
    """What each iteration logged, by arm: wrong rewards, the right one, and no normalisation."""
    found = evidence.curves(plan, records, "failure_noise", "t2i", name)
    for arm, values in evidence.curves(plan, records, "ablation", "t2i", name).items():
        found[corrupted(arm, "clean")] = values
    raw = evidence.curves(plan, records, "failure_normalisation", "t2i", name)
    return found | {arm.replace("none", "clean"): values for arm, values in raw.items()}


def _short(arm: str) -> str:
    words = [setting.partition("=")[2] for setting in arm.split()]
    return " ".join(words).replace("_", " ")

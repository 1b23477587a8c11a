"""The figures that the training notebooks share: learning curves, what is learned at which level of ambiguity, and RAS weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bpgo.analysis import plots, runs
from bpgo.evaluation import Scores
from bpgo.objective import group_advantages
from bpgo.prompts import pixels_of

MEASURES = {  # metric: what to call it, and its unit
    "reward": ("reward", "no unit"),
    "held_out": ("held-out reward", "no unit"),
    "accuracy": ("oracle accuracy", "share of samples"),
    "motion": ("motion quality", "1 = as in the world"),
    "visual": ("visual quality", "1 = as in the world"),
    "diversity": ("diversity", "1 = as in the world"),
}


def strip(video: Tensor, prompt: str) -> Tensor:
    """A video as a film, after the picture that its prompt carries if it does."""
    image = getattr(prompt, "image", None)
    return plots.film(video, None if image is None else pixels_of([image])[0])


def groups(
    scores: Scores, prompts: Sequence[str], indices: Sequence[int], scale: float = 0.48
) -> Figure:
    """Every video of some prompts, a column a prompt, with its reward and group advantage (equation 1)."""
    films = [
        torch.stack([strip(scores.pixels[i, j], prompts[i]) for i in indices])
        for j in range(scores.pixels.shape[1])
    ]
    figure = plots.show_pictures(films, scale=scale, space=0.3)
    rewards = scores.scores["reward"][list(indices)]
    for ax, r, a in zip(
        figure.axes, rewards.T.flatten(), group_advantages(rewards).T.flatten(), strict=True
    ):
        ax.set_xlabel(f"R {r:.2f}   A {a:+.1f}", fontsize=8, labelpad=1)
    for ax, i in zip(figure.axes, indices, strict=False):
        ax.set_title(prompts[i], fontsize=10)
    return figure


def films(
    columns: Mapping[str, Scores],
    prompts: Sequence[str],
    indices: Sequence[int],
    scale: float = 0.48,
) -> Figure:
    """The first video of each prompt, two prompts side by side, a line for each of `columns` (an objective, or "before"), with its reward
    and whether the oracle finds all in it that the prompt says."""
    pairs = [indices[i : i + 2] for i in range(0, len(indices), 2)]
    rows = [
        torch.stack([strip(scores.pixels[i, 0], prompts[i]) for i in pair])
        for pair in pairs
        for scores in columns.values()
    ]
    labels = [plots.METHODS.get(name, {"label": name})["label"] for name in columns]
    figure = plots.show_pictures(rows, labels * len(pairs), scale, 0.32)
    for line, axes in enumerate(figure.axes[n : n + 2] for n in range(0, len(figure.axes), 2)):
        pair, scores = (
            pairs[line // len(columns)],
            list(columns.values())[line % len(columns)].scores,
        )
        for i, ax in zip(pair, axes, strict=False):
            right = (
                ("   right" if scores["accuracy"][i, 0] else "   wrong")
                if "accuracy" in scores
                else ""
            )
            ax.set_xlabel(f"R {scores['reward'][i, 0]:.2f}{right}", fontsize=8, labelpad=1)
            if line % len(columns) == 0:
                ax.set_title(prompts[i], fontsize=10)
    return figure


def curves(
    logs: Mapping[str, Sequence[runs.Run]], metrics: Sequence[str], columns: int = 6
) -> Figure:
    """The training reward, as means over a tenth of the run, then each metric's evaluations; with several seeds, 95 % t bands."""
    panels = [("metrics", "reward"), *(("evaluations", m) for m in metrics)]
    columns = min(columns, len(panels))
    figure, axes = plots.new_figure(
        rows := -(-len(panels) // columns), columns, (2.9 * columns, 2.7 * rows)
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (log, metric) in zip(axes.flat, panels, strict=False):
        whole = {name: runs.curve(found, log, metric) for name, found in logs.items()}
        width = (
            max(1, min(len(steps) for steps, _ in whole.values()) // 10) if log == "metrics" else 1
        )
        whole = {name: runs.smooth(*curve, width) for name, curve in whole.items()}
        _means(
            ax, next(iter(whole.values()))[0], {name: values for name, (_, values) in whole.items()}
        )
        title, unit = MEASURES[metric]
        plots.labelled(
            ax,
            f"{title}, training" if log == "metrics" else f"{title}, evaluation",
            "iteration",
            unit,
        )
        if ax is not axes.flat[0]:
            ax.get_legend().remove()
    return figure


def by_level(
    first: Mapping, parts: Mapping, level: np.ndarray, metrics: Sequence[str]
) -> Figure | None:
    """Each metric by level of ambiguity, before and after; None, and a line that says so, where the prompts are not graded."""
    if np.isnan(level).all():
        print("the prompt file grades no level of ambiguity: no figure")
        return None
    figure, [axes] = plots.new_figure(1, len(metrics), (4.5 * len(metrics), 3.4))
    for ax, metric in zip(axes, metrics, strict=True):
        levels, (mean,), count = runs.by_level(first[metric], level)
        ax.plot(levels, mean, color="0.6", linewidth=4, label="before")
        _means(
            ax,
            levels,
            {name: runs.by_level(scores[metric], level)[1] for name, scores in parts.items()},
        )
        plots.labelled(
            ax,
            f"{MEASURES[metric][0]} by level",
            "level: share of attributes named (prompts)",
            MEASURES[metric][1],
        )
        ax.set_xticks(levels, [f"{at:g}\n({n})" for at, n in zip(levels, count, strict=True)])
    return figure


def weights(
    logs: Mapping[str, Sequence[runs.Run]], given: np.ndarray, level: np.ndarray, accuracy=None
) -> Figure:
    """Left, the weights of training: mean over groups, and range. Right, `given` (P,) of the evaluation prompts by level; darker where
    more of a prompt's samples are right."""
    figure, [[left, right]] = plots.new_figure(1, 2, (9, 3.3))
    for name in (name for name in logs if name in ("ras", "bpgo", "teleboost")):
        steps = runs.curve(logs[name], "metrics", "weight_mean")[0]
        low, mean, high = (
            runs.curve(logs[name], "metrics", f"weight_{part}")[1].mean(0)
            for part in ("min", "mean", "max")
        )
        plots.plot_methods(left, steps, {name: mean}, {name: (low, high)})
    plots.labelled(left, "weights in training: mean and range", "iteration", "weight w of a group")
    right.scatter(level, given, c=accuracy, cmap="gray_r", vmin=0, vmax=1, edgecolors="black", s=30)
    plots.labelled(
        right,
        "weights of the evaluation prompts",
        "level: share of attributes named",
        "weight w of a group",
    )
    for ax in (left, right):
        ax.axhline(1, color="0.4", ls="--", lw=1)
    return figure


def _means(ax, x: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    """Means over the seeds of curves {objective: (seeds, X)}, with t bands where there are several."""
    found = {name: runs.t_interval(values) for name, values in curves.items()}
    bands = {
        name: (mean - half, mean + half)
        for name, (mean, half) in found.items()
        if len(curves[name]) > 1
    }
    plots.plot_methods(ax, x, {name: mean for name, (mean, _) in found.items()}, bands)


def two_by_two(ax, values: np.ndarray, title: str, rows: str, columns: str) -> None:
    """A square of four numbers, values[i, j] for rows before (0) and after (1) and columns before and after, darker where higher."""
    span = np.ptp(values) or 1.0
    ax.imshow(values, cmap="gray_r", vmin=values.min() - 0.3 * span, vmax=values.max() + 2 * span)
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=11)
    plots.labelled(ax, title, columns, rows)
    ax.set_xticks([0, 1], ["before", "after"])
    ax.set_yticks([0, 1], ["before", "after"])
    ax.grid(False)

"""The figures that the training notebooks share: samples, learning curves, levels and weights.

The module is over 300 lines because each notebook takes all of its figures from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bpgo.analysis import plots, runs
from bpgo.evaluation import Scores
from bpgo.objective import Advantages, group_advantages
from bpgo.prompts import pixels_of

METRICS = {  # metric: its name in figures, and its unit
    "reward": ("reward", "no unit"),
    "held_out": ("held-out reward", "no unit"),
    "accuracy": ("oracle accuracy", "share of samples"),
    "motion": ("motion quality", "1 = as in the world"),
    "visual": ("visual quality", "1 = as in the world"),
    "diversity": ("diversity", "1 = as in the world"),
}
JUDGES = ("reward", "held_out", "accuracy", "motion", "visual")
ORACLE = ("accuracy", "motion", "visual")


def available(metrics: Sequence[str], measured: Mapping[str, object]) -> list[str]:
    """Those of `metrics` that were measured; only the reward if none of them was."""
    return [metric for metric in metrics if metric in measured] or ["reward"]


# ------------------------------------------------------------------------------------------ samples


def image_groups(start: runs.Start, indices: Sequence[int], scale: float = 1.1) -> Figure:
    """All images of some prompts, one row per prompt, with their rewards and advantages."""
    rows = [start.scores.pixels[i] for i in indices]
    figure = plots.show_images(rows, [start.prompts[i] for i in indices], scale)
    rewards = start.rewards[list(indices)]
    _label_groups(figure.axes, rewards, group_advantages(rewards))
    return figure


def video_groups(start: runs.Start, indices: Sequence[int], scale: float = 0.48) -> Figure:
    """All videos of some prompts, one column per prompt, with their rewards and advantages."""
    pixels = start.scores.pixels
    rows = []
    for sample in range(pixels.shape[1]):
        films = [_film(pixels[i, sample], start.prompts[i]) for i in indices]
        rows.append(torch.stack(films))
    figure = plots.show_images(rows, scale=scale, space=0.3)
    rewards = start.rewards[list(indices)]
    _label_groups(figure.axes, rewards.T, group_advantages(rewards).T, labelpad=1)
    for ax, i in zip(figure.axes, indices, strict=False):
        ax.set_title(start.prompts[i], fontsize=10)
    return figure


def framed_group(
    axes: Sequence[Axes], images: Tensor, rewards: Tensor, advantages: Tensor, title: str
) -> None:
    """The images (G, 3, H, W) of one group on G axes, best reward first, with their rewards.

    Images with a positive advantage have a frame, which is wider for a larger advantage.
    """
    for ax, j in zip(axes, rewards.argsort(descending=True).tolist(), strict=True):
        ax.imshow(images[j].clamp(0, 1).permute(1, 2, 0))
        ax.set(xticks=[], yticks=[], xlabel=f"{rewards[j]:.2f}")
        push = advantages[j].clamp(0, 2).item()
        ax.spines[:].set(visible=push > 0, linewidth=0.5 + 3 * push, color="#D55E00")
    axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)


def weights_and_advantages(
    axes: Sequence[Axes],
    prompts: Sequence[str],
    rewards: Tensor,
    advantages: Advantages,
    prior: float,
    group: int,
) -> None:
    """Left: the weight of each group. Right: its effective advantages by reward, one line each.

    rewards: (N, G). One group is black, and all others are grey.
    """
    left, right = axes
    colours = ["black" if i == group else "0.75" for i in range(len(prompts))]
    left.barh(range(len(prompts)), advantages.weights, color=colours)
    left.axvline(1, color="black", linestyle=":")
    left.set_yticks(range(len(prompts)), prompts, fontsize=8)
    left.set_xlim(0, 2)
    for i, colour in enumerate(colours):
        by = rewards[i].argsort()
        order = 3 if i == group else 1
        effective = advantages.effective[i, by]
        right.plot(rewards[i, by], effective, "o-", color=colour, markersize=3, zorder=order)
    right.axvline(prior, color="black", linestyle="--", linewidth=1)
    plots.label(left, "RAS", "weight of the group")
    plots.label(right, "dashed: the prior", "reward (no unit)", "effective advantage")


def image_samples(
    columns: Mapping[str, Scores],
    prompts: Sequence[str],
    indices: Sequence[int],
    scale: float = 1.25,
) -> Figure:
    """The images of some prompts, one row per prompt and one column per objective (or "before").

    Each column shows the samples of a prompt in two rows. Below are their mean reward and, if there
    is an oracle, the share of samples that show all that the prompt says.
    """
    rows = []
    for i in indices:
        rows.append(torch.stack([_mosaic(scores.pixels[i]) for scores in columns.values()]))
    figure = plots.show_images(rows, [prompts[i] for i in indices], scale)
    for n, ax in enumerate(figure.axes):
        row, column = divmod(n, len(columns))
        scores = list(columns.values())[column].scores
        text = f"R {scores['reward'][indices[row]].mean():.2f}"
        if "accuracy" in scores:
            text += f"   right {scores['accuracy'][indices[row]].mean():.0%}"
        ax.set_xlabel(text, fontsize=8)
        if row == 0:
            ax.set_title(plots.method_label(list(columns)[column]), fontsize=10)
    return figure


def video_samples(
    columns: Mapping[str, Scores],
    prompts: Sequence[str],
    indices: Sequence[int],
    scale: float = 0.48,
) -> Figure:
    """The first video of some prompts, two prompts side by side.

    There is one row for each of `columns`, which is an objective or "before". Below each video are
    its reward and, if there is an oracle, whether the video shows all that the prompt says.
    """
    pairs = [indices[i : i + 2] for i in range(0, len(indices), 2)]
    rows, labels = [], []
    for pair in pairs:
        for name, scores in columns.items():
            rows.append(torch.stack([_film(scores.pixels[i, 0], prompts[i]) for i in pair]))
            labels.append(plots.method_label(name))
    figure = plots.show_images(rows, labels, scale, 0.32)
    for n, ax in enumerate(figure.axes):
        row, place = divmod(n, 2 if len(indices) > 1 else 1)
        pair = pairs[row // len(columns)]
        if place >= len(pair):
            continue
        i, scores = pair[place], list(columns.values())[row % len(columns)].scores
        text = f"R {scores['reward'][i, 0]:.2f}"
        if "accuracy" in scores:
            text += "   right" if scores["accuracy"][i, 0] else "   wrong"
        ax.set_xlabel(text, fontsize=8, labelpad=1)
        if row % len(columns) == 0:
            ax.set_title(prompts[i], fontsize=10)
    return figure


def moving_samples(
    columns: Mapping[str, Scores], prompts: Sequence[str], indices: Sequence[int]
) -> bytes:
    """The first video of some prompts as an animated GIF, with one column for each of `columns`."""
    rows = [[scores.pixels[i, 0] for scores in columns.values()] for i in indices]
    heads = [plots.method_label(name) for name in columns]
    return plots.animation(rows, [prompts[i] for i in indices], heads)


def _film(video: Tensor, prompt: str) -> Tensor:
    """A video as a film, after the image that its prompt contains, if there is one."""
    image = getattr(prompt, "image", None)
    return plots.film(video, None if image is None else pixels_of([image])[0])


def _mosaic(pixels: Tensor) -> Tensor:
    """The samples (S, 3, H, W) of one prompt as one image of two rows, with white lines between."""
    framed = torch.nn.functional.pad(pixels, [2] * 4, value=1.0)
    even = framed[: max(1, len(framed) // 2 * 2)]
    return torch.cat([torch.cat(list(row), -1) for row in even.chunk(2)], -2)


def _label_groups(axes: Sequence[Axes], rewards: Tensor, advantages: Tensor, **style) -> None:
    for ax, r, a in zip(axes, rewards.flatten(), advantages.flatten(), strict=True):
        ax.set_xlabel(f"R {r:.2f}   A {a:+.1f}", fontsize=8, **style)


# ------------------------------------------------------------------------------ curves and weights


def curves(
    logs: Mapping[str, Sequence[runs.Run]], metrics: Sequence[str] = JUDGES, columns: int = 6
) -> Figure:
    """Learning curves: the training reward first, then the evaluations of each metric.

    The training reward is a running mean over a tenth of the run. Metrics that were not measured
    are left out. With several seeds, bands are 95 % t intervals.
    """
    measured = next(iter(logs.values()))[0].evaluations[0]["scores"]
    panels = [("metrics", "reward")]
    panels += [("evaluations", metric) for metric in available(metrics, measured)]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plots.new_figure(rows, columns, (2.9 * columns, 2.7 * rows))
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (log, metric) in zip(axes.flat, panels, strict=False):
        found = {name: runs.curve(each, log, metric) for name, each in logs.items()}
        if log == "metrics":
            width = max(1, min(len(steps) for steps, _ in found.values()) // 10)
            found = {name: runs.smooth(*each, width) for name, each in found.items()}
        steps = next(iter(found.values()))[0]
        _plot_means(ax, steps, {name: values for name, (_, values) in found.items()})
        title, unit = METRICS[metric]
        kind = "training" if log == "metrics" else "evaluation"
        plots.label(ax, f"{title}, {kind}", "iteration", unit)
        if ax is not axes.flat[0]:
            ax.get_legend().remove()
    return figure


def by_level(
    first: Mapping[str, np.ndarray],
    parts: runs.Parts,
    level: np.ndarray,
    metrics: Sequence[str] = ("accuracy", "diversity"),
) -> Figure | None:
    """Each metric by level of ambiguity, before and after training.

    Metrics that were not measured are left out. If the prompts are not graded, prints a line that
    says so and returns None.
    """
    if np.isnan(level).all():
        print("the prompt file does not grade the ambiguity of its prompts: no figure")
        return None
    metrics = available(metrics, first)
    figure, [axes] = plots.new_figure(1, len(metrics), (4.5 * len(metrics), 3.4))
    for ax, metric in zip(axes, metrics, strict=True):
        title, unit = METRICS[metric]
        levels, (mean,), count = runs.by_level(first[metric], level)
        ax.plot(levels, mean, color="0.6", linewidth=4, label="before")
        after = {name: runs.by_level(table[metric], level)[1] for name, table in parts.items()}
        _plot_means(ax, levels, after)
        plots.label(ax, f"{title} by level", "level: share of attributes named (prompts)", unit)
        ax.set_xticks(levels, [f"{at:g}\n({n})" for at, n in zip(levels, count, strict=True)])
    return figure


def weights(
    logs: Mapping[str, Sequence[runs.Run]],
    given: np.ndarray,
    level: np.ndarray,
    accuracy: np.ndarray | None = None,
) -> Figure:
    """Left: the weights of training, as their mean over groups and their range.

    Right: the weights `given` (P,) of the evaluation prompts by level (P,). A dot is darker if more
    samples of the prompt are right.
    """
    figure, [[left, right]] = plots.new_figure(1, 2, (9, 3.3))
    for name in ("ras", "bpgo", "teleboost"):
        if name in logs:
            steps = runs.curve(logs[name], "metrics", "weight_mean")[0]
            low, mean, high = (
                runs.curve(logs[name], "metrics", f"weight_{part}")[1].mean(0)
                for part in ("min", "mean", "max")
            )
            plots.plot_methods(left, steps, {name: mean}, {name: (low, high)})
    unit = "weight w of a group"
    plots.label(left, "weights in training: mean and range", "iteration", unit)
    right.scatter(level, given, c=accuracy, cmap="gray_r", vmin=0, vmax=1, edgecolors="black", s=30)
    plots.label(
        right, "weights of the evaluation prompts", "level: share of attributes named", unit
    )
    for ax in (left, right):
        ax.axhline(1, color="0.4", ls="--", lw=1)
    return figure


def two_by_two(ax: Axes, values: np.ndarray, title: str, rows: str, columns: str) -> None:
    """Four numbers (2, 2) as a square, darker for higher numbers.

    values[i, j]: i is 0 before and 1 after the training of `rows`, and j that of `columns`.
    """
    span = np.ptp(values) or 1.0
    ax.imshow(values, cmap="gray_r", vmin=values.min() - 0.3 * span, vmax=values.max() + 2 * span)
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=11)
    plots.label(ax, title, columns, rows, grid=False)
    ax.set_xticks([0, 1], ["before", "after"])
    ax.set_yticks([0, 1], ["before", "after"])


def _plot_means(ax: Axes, x: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    """Means over seeds of curves {objective: (seeds, X)}, with t bands for several seeds."""
    means, bands = {}, {}
    for name, values in curves.items():
        mean, half = runs.t_interval(values)
        means[name] = mean
        if len(values) > 1:
            bands[name] = (mean - half, mean + half)
    plots.plot_methods(ax, x, means, bands)

"""Figures of arms: runs after training, learning curves relative to GRPO, costs and weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bpgo.analysis import plots, runs, statistics
from reproduce.analysis import evidence


def final_by_task(
    plan: pd.DataFrame,
    records: dict,
    experiments: Mapping[str, str],
    metric: str,
    x: str,
    rows: int = 1,
    size: tuple[float, float] = (10, 3.0),
) -> dict[str, pd.DataFrame]:
    """One panel per task with the runs of each arm after training, as `plots.runs_by_arm`.

    experiments: {task: experiment}. x: what the arms are. An arm named "setting=value" is labelled
    by its value. Returns {task: table (seeds, arms)}.
    """
    columns = len(experiments) // rows
    _, axes = plots.new_figure(rows, columns, size)
    tables = {}
    for n, (task, experiment) in enumerate(experiments.items()):
        ax = axes.flat[n]
        table = evidence.so_far(plan, records, experiment, task, metric)
        tables[task] = table
        values = table.rename(columns=lambda arm: arm.rpartition("=")[2])
        plots.runs_by_arm(ax, values, evidence.before(records, task, metric))
        x_label = x if n >= len(experiments) - columns else ""
        y_label = evidence.axis(metric) if n % columns == 0 else ""
        plots.label(ax, f"{task} after training", x_label, y_label)
        if values.shape[1] > 4:
            ax.tick_params(axis="x", labelsize=8)
    return tables


def rewards_in_training(plan: pd.DataFrame, records: dict, experiment: str, task: str) -> Figure:
    """Left: the training reward of each objective, mean over seeds.

    Right: each other objective minus GRPO of the same seed, with the 95 % interval over seeds. All
    curves are running means over a tenth of a run.
    """
    logged = evidence.curves(plan, records, experiment, task, "reward")
    width = max(1, min(values.shape[1] for values in logged.values()) // 10)
    at, means = np.empty(0), {}
    for arm, values in logged.items():
        at, smooth = runs.smooth(np.arange(1, values.shape[1] + 1), values, width)
        means[arm] = smooth.mean(0)
    others = [arm for arm in logged if arm != "grpo"]
    figure, [axes] = plots.new_figure(1, 5, (13, 3.2), width_ratios=(2, 1, 1, 1, 1))
    plots.plot_methods(axes[0], at, means)
    plots.label(axes[0], "mean over seeds", "iteration", "reward in training (no unit)")
    plots.label(axes[1], "minus GRPO, by seed", "iteration", "reward minus GRPO's (no unit)")
    for ax, arm in zip(axes[1:], others, strict=False):
        difference = evidence.less(plan, records, experiment, task, "reward", arm, "grpo")
        smooth = np.full((1, len(at)), np.nan)
        if len(difference):
            _, smooth = runs.smooth(np.arange(difference.shape[1]), difference, width)
        mean, low, high = np.array([statistics.bootstrap_mean(each)[:3] for each in smooth.T]).T
        plots.plot_methods(ax, at, {arm: mean}, {arm: (low, high)})
        ax.axhline(0, color="black", linewidth=1)
        if ax is not axes[1]:
            ax.sharey(axes[1])
            plots.label(ax, "", "iteration")
    return figure


def gains_by_share(table: pd.DataFrame, title: str) -> Figure:
    """BPGO minus GRPO by the share of ambiguous prompts in training.

    table: (seeds, arms) with arms "name=grpo mix=0.25" and so on. One dot per seed; a diamond marks
    the mean, with its 95 % interval.
    """
    shares = [float(arm.rpartition("=")[2]) for arm in table if arm.startswith("name=grpo")]
    figure, [[ax]] = plots.new_figure(size=(5.5, 3.0))
    for share in shares:
        gain = table[f"name=bpgo mix={share}"] - table[f"name=grpo mix={share}"]
        ax.plot(np.full(len(gain), 100 * share), gain, "o", color="0.6")
        mean = statistics.bootstrap_mean(gain.to_numpy(float))
        colour = plots.METHODS["bpgo"]["color"]
        plots.error_bars(ax, [100 * share + 2], [mean], fmt="D", color=colour)
    ax.axhline(0, color="black", linewidth=1)
    ax.set_xticks([100 * share for share in shares])
    plots.label(ax, title, "ambiguous prompts in training (%)", "difference")
    return figure


def reward_against_held_out(
    plan: pd.DataFrame, records: dict, experiment: str, task: str
) -> Figure:
    """Held-out reward by training reward after training, one mark per run; a cross before it."""
    names = ("reward", "held_out")
    reward, held_out = (evidence.final(plan, records, experiment, task, name) for name in names)
    figure, [[ax]] = plots.new_figure(size=(5.5, 3.4))
    for arm in reward:
        style = plots.method_style(arm)
        del style["linestyle"]
        ax.scatter(reward[arm], held_out[arm], **style)
    start = [evidence.before(records, task, name) for name in names]
    ax.scatter(*start, marker="x", color="black", s=60, label="untrained")
    ax.legend(frameon=False, fontsize=9)
    title = "after training, one mark per run"
    plots.label(ax, title, "training reward (no unit)", "held-out reward (no unit)")
    return figure


def weight_ranges(plan: pd.DataFrame, records: dict, experiment: str, task: str) -> Figure:
    """The largest and the smallest weight of each iteration, mean over seeds, one panel per arm.

    Dotted lines mark 0.5 and 1.5, the range of the weights for alpha = 0.5.
    """
    low = evidence.curves(plan, records, experiment, task, "weight_min")
    high = evidence.curves(plan, records, experiment, task, "weight_max")
    size = (1.9 * max(2, len(low)), 2.6)
    figure, [axes] = plots.new_figure(1, max(1, len(low)), size, sharey=True)
    for ax, arm in zip(axes, low, strict=False):
        at = np.arange(1, low[arm].shape[1] + 1)
        ax.fill_between(at, low[arm].mean(0), high[arm].mean(0), color="0.6", linewidth=0)
        for level, dashes in ((1, "--"), (0.5, ":"), (1.5, ":")):
            ax.axhline(level, color="black", lw=1, ls=dashes)
        plots.label(ax, plots.method_label(arm), "iteration", "weight w" if ax is axes[0] else "")
    return figure

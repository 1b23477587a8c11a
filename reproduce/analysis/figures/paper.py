"""Figures of the paper's published numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bpgo.analysis import plots
from bpgo.analysis.statistics import Interval
from reproduce.analysis import paper

MOVES = {"grpo": "grpo - base", "bpgo": "bpgo - base"}
LIMIT = 3  # a move outside is drawn as a triangle at the edge
Move = dict[str, Interval]  # method -> how far it moved from the untrained model


def moves_of(
    task: str, main: pd.DataFrame, plan: pd.DataFrame, records: dict, real: pd.DataFrame
) -> dict[str, Move]:
    """How far GRPO and BPGO moved from the untrained model, by metric.

    First come the published metrics (each n = 1, without interval), then ours, then that of real
    runs. Ours are over the seeds that both methods have. main: `paper.beside` of the main table.
    """
    published = main[main["task"] == task].set_index(["metric", "line"])["published"]
    found = {}
    for metric in published.index.unique("metric"):
        found[metric] = {
            method: Interval(published[metric, line], np.nan, np.nan, 1)
            for method, line in MOVES.items()
        }
    metrics = ["reward", "held_out", "accuracy_specified"]
    if task != "t2i":
        metrics.insert(2, "overall")
    tables = {f"ours: {m}": paper.of_study(plan, records, "trust", task, m) for m in metrics}
    trained = paper.TRAINED[task]
    tables[f"paper scale:\n{trained}"] = paper.of_real(real, task, trained)
    for name, table in tables.items():
        both = table.dropna(subset=table.columns.intersection(list(MOVES)))
        state = f"n = {len(both)}"
        if both.empty:
            state = "not run" if table.empty else "no shared seed"
        row = {method: paper.estimate(both, line) for method, line in MOVES.items()}
        found[f"{name}, {state}"] = row
    return found


def moves(rows_of_task: Mapping[str, Mapping[str, Move]]) -> None:
    """The moves of GRPO and BPGO in units of the size of GRPO's, one panel per task.

    The right edge shows the move of GRPO itself. Lines separate the published rows, ours, and the
    row of real runs.
    """
    figure, [axes] = plots.new_figure(1, len(rows_of_task), (13, 4.4))
    for ax, (task, rows) in zip(axes, rows_of_task.items(), strict=True):
        names = list(rows)
        for y, name in enumerate(names):
            _draw_move(ax, y, rows[name])
        published = sum(":" not in name for name in names)
        for y in (published, len(names) - 1):
            ax.axhline(y - 0.5, color="0.4", linewidth=1)
        ax.axvline(0, color="black", linestyle=":")
        trained = paper.TRAINED.values()
        labels = [f"{name} (trained)" if name in trained else name for name in names]
        ax.set_yticks(range(len(names)), labels, fontsize=9)
        ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(-LIMIT, LIMIT))
        plots.label(ax, task, "move from the untrained model / size of GRPO's")
    handles, labels = axes[0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    place = {"loc": "outside upper right", "ncols": 2}
    figure.legend(entries.values(), entries, frameon=False, fontsize=9, **place)


def _draw_move(ax: Axes, y: int, move: Move) -> None:
    """One row: both methods with their intervals, and the move of GRPO as a number."""
    unit = abs(move["grpo"].mean)
    if move["grpo"].n:
        ax.text(LIMIT + 0.05, y, f"{move['grpo'].mean:+.3f}", va="center", fontsize=8)
    for method, shift in (("grpo", -0.16), ("bpgo", 0.16)):
        if not (move[method].n and move["grpo"].n):
            continue
        style = plots.method_style(method)
        x, low, high = np.array(move[method][:3]) / unit
        ax.plot([low, high], [y + shift] * 2, color=style["color"], linewidth=2)
        look = {"marker": style["marker"], "label": style["label"]}
        if abs(x) > LIMIT:
            look = {"marker": ">" if x > 0 else "<", "mfc": "white"}
        at = np.clip(x, 0.1 - LIMIT, LIMIT - 0.1)
        ax.plot(at, y + shift, color=style["color"], linestyle="", **look)


def alpha_sweeps(plan: pd.DataFrame, records: dict) -> None:
    """Two panels of the published sweep of alpha (RAS, text-to-video), and one of ours (BPGO)."""
    alpha = paper.published("alpha").pivot(index="method", columns="metric", values="value")
    rows = paper.published("main").query("task == 't2v' and method == 'base'")
    base = rows.set_index("metric")["value"]
    _, [axes] = plots.new_figure(1, 3, (11, 3.0))
    y = "move from the untrained"
    at = [float(method.partition("=")[2]) for method in alpha.index]
    for ax, metric in zip(axes, ("VideoCLIP-XL", "VideoAlign-overall"), strict=False):
        ax.plot(at, alpha[metric] - base[metric], "ko-")
        plots.label(ax, f"published, RAS, t2v:\n{metric}", "alpha", y)
    looks = {"t2i": "o-", "t2v": "s--", "i2v": "^:"}
    for i, (task, look) in enumerate(looks.items()):
        experiment = "alpha_image" if task == "t2i" else "alpha_video"
        table = paper.of_study(plan, records, experiment, task, "reward")
        at = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
        found = [paper.estimate(table, f"alpha={a} - base") for a in at]
        n = max(one.n for one in found)
        style = {"fmt": look, "color": "black", "mfc": "white", "capsize": 0}
        style["label"] = f"{task}: {f'n = {n}' if n else 'not run'}"
        plots.error_bars(axes[2], at + 0.02 * (i - 1), found, **style)
    axes[2].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.label(axes[2], "ours, BPGO:\ntraining reward (no unit)", "alpha", y)
    for ax in axes:
        ax.axhline(0, color="black", linestyle=":")
        ax.set_xlim(0, 1)

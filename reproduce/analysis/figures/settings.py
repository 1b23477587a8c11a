"""Figures of the settings of BPGO: maps of two settings, and one setting at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bpgo.analysis import plots
from bpgo.analysis.runs import oscillation
from reproduce.analysis import evidence

SYMBOLS = {"lam": "lambda"}


def maps_of_two(
    tables: Mapping[str, pd.DataFrame],
    defaults: Mapping[str, str],
    titles: Mapping[str, str],
) -> None:
    """One heat map per table (seeds, arms) with arms "a=1 b=2": a in rows, b in columns.

    Cells that are level with the best one are framed. A dot marks the default arm.
    """
    _, [axes] = plots.new_figure(1, len(tables), (4.5 * len(tables), 3.2))
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        mean, level = evidence.grid(table)
        plots.heat_map(ax, mean, level)
        row, column = (setting.partition("=")[2] for setting in defaults[name].split())
        x, y = list(mean.columns).index(column), list(mean.index).index(row)
        ax.plot(x, y - 0.3, "o", color="black", markersize=4)
        columns, rows = symbol(mean.columns.name), symbol(mean.index.name)
        plots.label(ax, titles[name], columns, rows, grid=False)


def averages(tables: Mapping[str, pd.DataFrame], start: float, y: str) -> dict[str, pd.DataFrame]:
    """The runs by each setting, averaged over the other setting of its table, one panel each.

    tables: (seeds, arms) with arms "a=1 b=2". start: the value before training. Returns a table
    (seeds, values) for each setting.
    """
    _, [axes] = plots.new_figure(1, 2 * len(tables), (5 * len(tables), 2.8), sharey=True)
    found = {}
    for table in tables.values():
        for place in (0, 1):
            ax = axes[len(found)]
            settings = {arm: arm.split()[place].split("=") for arm in table}
            values = {arm: value for arm, (_, value) in settings.items()}
            averaged = table.T.groupby(values, sort=False).mean().T
            name = symbol(next(iter(settings.values()))[0])
            plots.runs_by_arm(ax, averaged, start)
            plots.label(ax, "", name, "" if found else y)
            found[name] = averaged
    return found


def group_size_maps(
    plan: pd.DataFrame, records: dict, metric: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two heat maps over group size and alpha: the metric after training, and the oscillation.

    The oscillation of the training reward is divided by the mean gain of all these runs, from the
    first to the last ten iterations. Returns both tables (group sizes, alphas).
    """
    ended = evidence.so_far(plan, records, "size_alpha", "t2i", metric)
    logged = evidence.curves(plan, records, "size_alpha", "t2i", "reward")
    mean, level = evidence.grid(ended)
    gains = [values[:, -10:].mean() - values[:, :10].mean() for values in logged.values()]
    unsteady = pd.DataFrame(np.nan, index=[0], columns=ended.columns)
    for arm, values in logged.items():
        unsteady[arm] = oscillation(values, np.mean(gains)).mean()
    steadiness, _ = evidence.grid(unsteady)
    _, [[left, right]] = plots.new_figure(1, 2, (9, 2.8))
    plots.heat_map(left, mean, level)
    plots.heat_map(right, steadiness, np.zeros(steadiness.shape, bool), "{:.1f}")
    plots.label(left, f"{metric} after training", "alpha", "group size G", grid=False)
    plots.label(right, "oscillation (no unit)", "alpha", "group size G", grid=False)
    return mean, steadiness


def symbol(name: str) -> str:
    """A setting as figures and tables write it."""
    return SYMBOLS.get(name, name)

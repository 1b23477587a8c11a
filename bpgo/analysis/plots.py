"""One look for all figures: a colour, line style and marker for each method, and plots that notebooks share.

The colours are told apart with any colour vision (after Okabe and Ito) and differ in lightness; the line
style and the marker say the same once more, so a figure reads in greyscale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 80  # a figure of 9 x 4 inches is then a PNG of 20 to 40 kB
METHODS: dict[str, dict[str, object]] = {
    "grpo": {"label": "GRPO", "color": "#000000", "linestyle": "-", "marker": "o"},
    "ras": {"label": "RAS", "color": "#0072B2", "linestyle": "--", "marker": "s"},
    "crt": {"label": "CRT", "color": "#E69F00", "linestyle": "-.", "marker": "^"},
    "bpgo": {"label": "BPGO", "color": "#D55E00", "linestyle": (0, (9, 2)), "marker": "D"},
    "bgpo": {"label": "BGPO", "color": "#CC79A7", "linestyle": ":", "marker": "v"},
}


def method_style(name: str) -> dict[str, object]:
    """The keywords of `ax.plot` for a method. Raises KeyError, with the known names, for another one."""
    if name not in METHODS:
        raise KeyError(f"no style for method {name!r}: there are {', '.join(METHODS)}")
    return dict(METHODS[name])


def new_figure(rows=1, columns=1, size=(9.0, 3.6), **keywords) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes, always (rows, columns); `keywords` go to `plt.subplots`."""
    return plt.subplots(rows, columns, figsize=size, dpi=DPI, layout="constrained", squeeze=False, **keywords)


def labelled(ax: Axes, title: str = "", x: str = "", y: str = "") -> Axes:
    """Title and axis labels (say the unit), a light grid, no box on the right and above. Returns the axes."""
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_methods(ax: Axes, x, curves: Mapping[str, object], intervals: Mapping[str, tuple] | None = None):
    """A line per method, {name: (T,)} over x (T,), with a band where `intervals` has {name: (low, high)}."""
    x = np.asarray(x)
    for name, curve in curves.items():
        style = method_style(name)
        ax.plot(x, np.asarray(curve), markersize=5, markevery=max(1, len(x) // 8), **style)
        if intervals and name in intervals:
            low, high = map(np.asarray, intervals[name])
            ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.legend(frameon=False, fontsize=9)


def strips(ax: Axes, values, filled, names: Sequence[str]) -> None:
    """A horizontal strip of dots per group: values (N, G), the first on top; solid if `filled`, else hollow.

    Dots are moved up and down a little, always in the same way, so that close ones stay apart.
    """
    values, filled = np.asarray(values), np.asarray(filled)
    rows = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
    offsets = np.linspace(-0.18, 0.18, values.shape[1])
    faces = np.where(filled, "black", "white").ravel()
    ax.scatter(values, rows + offsets, c=faces, edgecolors="black", s=34, linewidths=1.0)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def show_pictures(rows: Sequence, titles: Sequence[str] = (), scale: float = 1.0) -> Figure:
    """A grid of pictures: each of `rows` is a tensor (B, 3, H, W) in [0, 1], or the frames of one video.

    A row's title stands on its left; `scale` is the side of a picture in inches. ValueError for another
    shape, or where titles and rows differ in number.
    """
    for index, row in enumerate(rows):
        if row.ndim != 4 or row.shape[1] != 3:
            raise ValueError(f"rows[{index}] must be pictures (B, 3, H, W), not {tuple(row.shape)}")
    if titles and len(titles) != len(rows):
        raise ValueError(f"{len(titles)} titles for {len(rows)} rows of pictures: give one each, or none")
    columns = max(len(row) for row in rows)
    margin = 0.085 * max(map(len, titles), default=0)  # inches; a letter of size 9 is about this wide
    figure, axes = new_figure(len(rows), columns, (scale * columns + margin, scale * len(rows)))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for line, row in zip(axes, rows, strict=True):
        pixels = row.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
        for ax, picture in zip(line, pixels, strict=False):
            ax.imshow(picture, interpolation="nearest")
    for line, title in zip(axes, titles, strict=False):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    return figure

"""One style for all figures, and the plots that several notebooks share.

Each method has a colour, a line style and a marker. The colours can be distinguished with any
colour vision (after Okabe and Ito) and differ in lightness. Line style and marker repeat the
information, so a figure can also be read in greyscale.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from bpgo.analysis.statistics import Interval

DPI = 80  # a figure of 9 x 4 inches is then a PNG of 20 to 40 kB
METHODS: dict[str, dict[str, object]] = {
    "grpo": {"label": "GRPO", "color": "#000000", "linestyle": "-", "marker": "o"},
    "ras": {"label": "RAS", "color": "#0072B2", "linestyle": "--", "marker": "s"},
    "crt": {"label": "CRT", "color": "#E69F00", "linestyle": "-.", "marker": "^"},
    "bpgo": {"label": "BPGO", "color": "#D55E00", "linestyle": (0, (9, 2)), "marker": "D"},
    "teleboost": {"label": "TeleBoost", "color": "#CC79A7", "linestyle": ":", "marker": "v"},
}
OTHER_METHOD = {"color": "black", "marker": "o"}


def method_style(name: str) -> dict[str, object]:
    """Keyword arguments of `ax.plot` for a method. Raises KeyError for an unknown name."""
    if name not in METHODS:
        raise KeyError(f"no style for method {name!r}: the known methods are {', '.join(METHODS)}")
    return dict(METHODS[name])


def method_label(name: str) -> str:
    """The name of a method in figures. In other names, underscores become spaces."""
    return str(METHODS[name]["label"]) if name in METHODS else name.replace("_", " ")


def new_figure(rows=1, columns=1, size=(9.0, 3.6), **keywords) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes as an array (rows, columns).

    The other keyword arguments are those of `plt.subplots`.
    """
    return plt.subplots(
        rows, columns, figsize=size, dpi=DPI, layout="constrained", squeeze=False, **keywords
    )


def label(ax: Axes, title: str = "", x: str = "", y: str = "", grid: bool = True) -> Axes:
    """Set the title and the axis labels, draw a light grid, and remove the upper and right border.

    Write the unit into the axis labels. Returns the axes.
    """
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if grid:
        ax.grid(color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_methods(
    ax: Axes, x, curves: Mapping[str, object], intervals: Mapping[str, tuple] | None = None
) -> None:
    """Draw one line per method, {name: (T,)} over x (T,).

    A method that is in `intervals`, {name: (low, high)}, also gets a band.
    """
    x = np.asarray(x)
    for name, curve in curves.items():
        style = method_style(name)
        ax.plot(x, np.asarray(curve), markersize=5, markevery=max(1, len(x) // 8), **style)
        if intervals and name in intervals:
            low, high = map(np.asarray, intervals[name])
            ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.legend(frameon=False, fontsize=9)


def error_bars(ax: Axes, x, intervals: Sequence[Interval], **style) -> None:
    """Draw estimates with their intervals at positions x (T,); `style` goes to `ax.errorbar`."""
    mean = np.array([i.mean for i in intervals])
    low = np.array([i.low for i in intervals])
    high = np.array([i.high for i in intervals])
    ax.errorbar(x, mean, [mean - low, high - mean], **({"capsize": 3} | style))


def runs_by_arm(ax: Axes, table, start: float) -> None:
    """Draw one dot per run of a table (seeds, arms).

    A grey line connects the runs of one seed, a bar marks the mean of an arm, and a dashed line
    marks `start`, the value before training. Arms that are methods have the colour and the marker
    of the method. An arm without runs is labelled "not run".
    """
    values = table.to_numpy(float)
    known = np.isfinite(values).any(0)
    ax.plot(values.T, color="0.8", linewidth=1, zorder=1)
    names = []
    for x, arm in enumerate(table):
        style = METHODS.get(arm, OTHER_METHOD)
        column = values[:, x]
        where = np.full(len(column), x)
        ax.scatter(where, column, color=style["color"], marker=style["marker"], zorder=2)
        if known[x]:
            ax.hlines(np.nanmean(column), x - 0.25, x + 0.25, color="black", linewidth=2)
        names.append(method_label(arm) if known[x] else f"{method_label(arm)}\n(not run)")
    ax.axhline(start, color="0.4", linestyle="--")
    ax.set_xticks(range(len(names)), names)


def heat_map(ax: Axes, table, marked, form: str = "{:.2f}") -> None:
    """Draw one cell per value of a table (rows, columns), darker for higher values.

    Each cell shows its number. A cell is framed where `marked` (rows, columns) is true. A cell
    that is NaN is labelled "not run". The axes carry the names of the table's rows and columns.
    """
    values, marked = table.to_numpy(float), np.asarray(marked)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0, 1)
    span = high - low
    ax.imshow(
        values, cmap="Greys", vmin=low - 0.1 * span, vmax=high + 0.6 * span or 1, aspect="auto"
    )
    for (i, j), value in np.ndenumerate(values):
        text = form.format(value) if np.isfinite(value) else "not run"
        ax.text(j, i, text, ha="center", va="center", fontsize=9)
        if marked[i, j]:
            corner = (j - 0.46, i - 0.46)
            frame = plt.Rectangle(corner, 0.92, 0.92, fill=False, ec="black", lw=1.5)
            ax.add_patch(frame)
    ax.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    ax.set_yticks(range(table.shape[0]), [str(name) for name in table.index])


def strips(ax: Axes, values, filled, names: Sequence[str]) -> None:
    """Draw one horizontal strip of dots per group: values (N, G), the first group at the top.

    A dot is solid where `filled` is true and hollow elsewhere. The dots of a group are shifted up
    or down by fixed small amounts, so that close ones do not overlap.
    """
    values, filled = np.asarray(values), np.asarray(filled)
    rows = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
    offsets = np.linspace(-0.18, 0.18, values.shape[1])
    faces = np.where(filled, "black", "white").ravel()
    ax.scatter(values, rows + offsets, c=faces, edgecolors="black", s=34, linewidths=1.0)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def point_panels(points, titles: Sequence[str]) -> Figure:
    """Draw points (P, n, 2) in [-2, 2] as P panels side by side, one title per panel."""
    figure, [axes] = new_figure(1, len(points), (2 * len(points), 2.3))
    for ax, panel, title in zip(axes, points, titles, strict=True):
        ax.scatter(*np.asarray(panel).T, s=3, color="black")
        ax.set(xlim=(-2, 2), ylim=(-2, 2), xticks=[-1, 1], yticks=[-1, 1], aspect="equal")
        label(ax, title)
    return figure


# ------------------------------------------------------------------------------ images and videos


def show_images(
    rows: Sequence[Tensor], titles: Sequence[str] = (), scale: float = 1.0, space: float = 0.0
) -> Figure:
    """Draw a grid of images. A row is a tensor (B, 3, H, W) in [0, 1], such as a video's frames.

    titles: one per row, written on its left. scale: height of an image in inches. space: height
    left free for labels below each row, in inches. Raises ValueError for another shape, and if
    there are titles but not one per row.
    """
    for index, row in enumerate(rows):
        if row.ndim != 4 or row.shape[1] != 3:
            raise ValueError(
                f"rows[{index}] has shape {tuple(row.shape)}: give images (B, 3, H, W)"
            )
    if titles and len(titles) != len(rows):
        raise ValueError(f"{len(titles)} titles for {len(rows)} rows: give one per row, or none")
    columns = max(len(row) for row in rows)
    height, width = rows[0].shape[-2:]
    letters = max((len(line) for title in titles for line in title.splitlines()), default=0)
    margin = 0.085 * letters  # a letter of size 9 is 0.085 inches wide
    size = (scale * columns * max(1, width / height) + margin, (scale + space) * len(rows))
    figure, axes = new_figure(len(rows), columns, size)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for line, row in zip(axes, rows, strict=True):
        pixels = row.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
        for ax, image in zip(line, pixels, strict=False):
            ax.imshow(image, interpolation="nearest")
    for line, title in zip(axes, titles, strict=False):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def film(video: Tensor, given: Tensor | None = None) -> Tensor:
    """Place the frames of a video (F, 3, H, W) side by side in one image (3, H, W').

    A white line separates the frames. `given` (3, H, W) is the image that the video started from.
    It is placed first, with a wider gap.
    """
    line = torch.ones_like(video[0][..., :2])
    parts = [] if given is None else [given, line.repeat(1, 1, 4)]
    for frame in video:
        parts += [frame, line]
    return torch.cat(parts[:-1], -1)


def animation(
    rows: Sequence[Sequence[Tensor]], titles: Sequence[str], heads: Sequence[str], scale: int = 2
) -> bytes:
    """An animated GIF of rows of videos (F, 3, H, W) in [0, 1], all of one size.

    titles: one per row, written on its left. heads: one per column, written above it. scale: the
    factor by which videos are enlarged. The GIF has 32 colours: four rows of two videos of 32 x 32
    pixels and nine frames take about 20 kB.
    """
    height, width = (scale * side + 2 for side in rows[0][0].shape[-2:])
    margin = round(5.3 * max(map(len, titles))) + 8  # pixels
    canvas = Image.new("RGB", (margin + width * len(heads), 14 + height * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for j, head in enumerate(heads):
        draw.text((margin + j * width, 1), head, fill="black")
    for i, title in enumerate(titles):
        draw.text((2, 14 + i * height + height // 2 - 6), title, fill="black")
    pages = []
    for frame in range(len(rows[0][0])):
        page = canvas.copy()
        for i, row in enumerate(rows):
            for j, video in enumerate(row):
                image = Image.fromarray((video[frame] * 255).byte().permute(1, 2, 0).numpy())
                larger = image.resize((width - 2, height - 2), Image.Resampling.NEAREST)
                page.paste(larger, (margin + j * width, 14 + i * height))
        pages.append(page)
    everything = Image.fromarray(np.concatenate([np.asarray(page) for page in pages]))
    palette = everything.quantize(32, dither=Image.Dither.NONE)
    first, *others = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages)
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others, duration=160, loop=0)
    return stream.getvalue()

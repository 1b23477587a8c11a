"""One look for all figures: a colour, line style and marker for each method, and plots that notebooks share.

The colours are told apart with any colour vision (after Okabe and Ito) and differ in lightness; the line
style and the marker say the same once more, so a figure reads in greyscale.
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

DPI = 80  # a figure of 9 x 4 inches is then a PNG of 20 to 40 kB
METHODS: dict[str, dict[str, object]] = {
    "grpo": {"label": "GRPO", "color": "#000000", "linestyle": "-", "marker": "o"},
    "ras": {"label": "RAS", "color": "#0072B2", "linestyle": "--", "marker": "s"},
    "crt": {"label": "CRT", "color": "#E69F00", "linestyle": "-.", "marker": "^"},
    "bpgo": {"label": "BPGO", "color": "#D55E00", "linestyle": (0, (9, 2)), "marker": "D"},
    "teleboost": {"label": "TeleBoost", "color": "#CC79A7", "linestyle": ":", "marker": "v"},
}


def method_style(name: str) -> dict[str, object]:
    """The keywords of `ax.plot` for a method. Raises KeyError, with the known names, for another one."""
    if name not in METHODS:
        raise KeyError(f"no style for method {name!r}: there are {', '.join(METHODS)}")
    return dict(METHODS[name])


def new_figure(rows=1, columns=1, size=(9.0, 3.6), **keywords) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes, always (rows, columns); `keywords` go to `plt.subplots`."""
    return plt.subplots(
        rows, columns, figsize=size, dpi=DPI, layout="constrained", squeeze=False, **keywords
    )


def labelled(ax: Axes, title: str = "", x: str = "", y: str = "") -> Axes:
    """Title and axis labels (say the unit), a light grid, no box on the right and above. Returns the axes."""
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_methods(
    ax: Axes, x, curves: Mapping[str, object], intervals: Mapping[str, tuple] | None = None
):
    """A line per method, {name: (T,)} over x (T,), with a band where `intervals` has {name: (low, high)}."""
    x = np.asarray(x)
    for name, curve in curves.items():
        style = method_style(name)
        ax.plot(x, np.asarray(curve), markersize=5, markevery=max(1, len(x) // 8), **style)
        if intervals and name in intervals:
            low, high = map(np.asarray, intervals[name])
            ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.legend(frameon=False, fontsize=9)


def runs_by_arm(ax: Axes, table, start: float) -> None:
    """A dot for each run of a table (seeds, arms), a grey line through the runs of a seed, a bar for an arm's mean; dashed, the start.

    Arms that are methods have their colour and marker; others are black.
    """
    values = table.to_numpy(float)
    ax.plot(values.T, color="0.8", linewidth=1, zorder=1)
    for x, arm in enumerate(table):
        style = METHODS.get(arm, {"color": "black", "marker": "o"})
        ax.scatter(
            np.full(len(values), x),
            values[:, x],
            color=style["color"],
            marker=style["marker"],
            zorder=2,
        )
    known = np.isfinite(values).any(0)
    for x in np.flatnonzero(known):
        ax.hlines(np.nanmean(values[:, x]), x - 0.25, x + 0.25, color="black", linewidth=2)
    ax.axhline(start, color="0.4", linestyle="--")
    names = [
        str(METHODS[arm]["label"]) if arm in METHODS else arm.replace("_", " ") for arm in table
    ]
    ax.set_xticks(
        range(len(names)),
        [name if ok else f"{name}\n(not run)" for name, ok in zip(names, known, strict=True)],
    )


def heat_map(ax: Axes, table, marked, form: str = "{:.2f}") -> None:
    """A cell for each value of a table (rows, columns), darker for more, with its number; framed where `marked` (rows, columns) is true.

    Rows and columns keep their names; a cell that is NaN is empty and says so.
    """
    values, marked = table.to_numpy(float), np.asarray(marked)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0, 1)
    ax.imshow(
        values,
        cmap="Greys",
        vmin=low - 0.1 * (high - low),
        vmax=high + 0.6 * (high - low) or 1,
        aspect="auto",
    )
    for (i, j), value in np.ndenumerate(values):
        ax.text(
            j,
            i,
            form.format(value) if np.isfinite(value) else "not run",
            ha="center",
            va="center",
            fontsize=9,
        )
        if marked[i, j]:
            ax.add_patch(
                plt.Rectangle(
                    (j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor="black", linewidth=1.5
                )
            )
    ax.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    ax.set_yticks(range(table.shape[0]), [str(name) for name in table.index])


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


def show_pictures(
    rows: Sequence, titles: Sequence[str] = (), scale: float = 1.0, space: float = 0.0
) -> Figure:
    """A grid of pictures of one size: each of `rows` is a tensor (B, 3, H, W) in [0, 1], or the frames of one video.

    A row's title stands on its left; `scale` is the height of a picture in inches, `space` what a row has beside it for
    labels. ValueError for another shape, or where titles and rows differ in number.
    """
    for index, row in enumerate(rows):
        if row.ndim != 4 or row.shape[1] != 3:
            raise ValueError(f"rows[{index}] must be pictures (B, 3, H, W), not {tuple(row.shape)}")
    if titles and len(titles) != len(rows):
        raise ValueError(
            f"{len(titles)} titles for {len(rows)} rows of pictures: give one each, or none"
        )
    columns = max(len(row) for row in rows)
    width = scale * columns * max(1, rows[0].shape[-1] / rows[0].shape[-2])
    margin = 0.085 * max(
        (len(line) for title in titles for line in title.splitlines()), default=0
    )  # a letter of size 9, in inches
    figure, axes = new_figure(len(rows), columns, (width + margin, (scale + space) * len(rows)))
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


def film(video: Tensor, given: Tensor | None = None) -> Tensor:
    """The frames of a video (F, 3, H, W) side by side in one picture (3, H, W'), a white line between them; before them,
    and well apart, the picture (3, H, W) that it was given."""
    line = torch.ones_like(video[0][..., :2])
    parts = [] if given is None else [given, line.repeat(1, 1, 4)]
    return torch.cat([*parts, *(part for frame in video for part in (frame, line))][:-1], -1)


def animation(
    rows: Sequence[Sequence[Tensor]], titles: Sequence[str], heads: Sequence[str], scale: int = 2
) -> bytes:
    """An animated GIF of rows of videos (F, 3, H, W) of one size in [0, 1], `scale` times their size: a title left of each row, a
    head above each column. 32 colours: four rows of two videos of 32 x 32 pixels and nine frames are about 20 kB."""
    height, width = (scale * side + 2 for side in rows[0][0].shape[-2:])
    margin = round(5.3 * max(map(len, titles))) + 8  # pixels
    canvas = Image.new("RGB", (margin + width * len(heads), 14 + height * len(rows)), "white")
    draw, pages = ImageDraw.Draw(canvas), []
    for j, head in enumerate(heads):
        draw.text((margin + j * width, 1), head, fill="black")
    for i, title in enumerate(titles):
        draw.text((2, 14 + i * height + height // 2 - 6), title, fill="black")
    for frame in range(len(rows[0][0])):
        pages.append(canvas.copy())
        for i, row in enumerate(rows):
            for j, video in enumerate(row):
                picture = Image.fromarray((video[frame] * 255).byte().permute(1, 2, 0).numpy())
                larger = picture.resize((width - 2, height - 2), Image.Resampling.NEAREST)
                pages[-1].paste(larger, (margin + j * width, 14 + i * height))
    palette = Image.fromarray(np.concatenate([np.asarray(page) for page in pages])).quantize(
        32, dither=Image.Dither.NONE
    )
    first, *others = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages)
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others, duration=160, loop=0)
    return stream.getvalue()

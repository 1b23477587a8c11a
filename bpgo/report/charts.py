"""Charts as inline SVG that take their colours and fonts from the page's style sheet."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bpgo.analysis.runs import smooth, t_interval

SIZE = (4.4, 2.5)  # inches
AREA = (0.17, 0.19, 0.81, 0.77)  # of the axes; a computed layout would take twice the time
COLOURS = 6  # of series; further series have other dashes
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
POINTS = 300  # longer curves are averaged over neighbouring iterations
INK, GRID = "#010101", "#020202"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bpgo",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 4),
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_numbers = itertools.count()


class Series(NamedTuple):
    """A group of runs in a chart. curves: of each run, iterations (T,) and values (T,)."""

    label: str
    index: int
    curves: list[tuple[np.ndarray, np.ndarray]]


@rc_context(STYLE)
def line_chart(title: str, groups: Sequence[Series]) -> str:
    """One line per group: the mean of its runs, with a thin line for each of them.

    Three or more runs get a band, the 95 % t interval. That of two is 12.7 standard errors wide to
    each side, and would cover the chart.
    """
    figure, axes = _new()
    drawn = []
    for group in groups:
        style = {"color": _colour(group.index), "linestyle": _dash(group.index)}
        steps, mean, half = band(group.curves)
        several = len(group.curves) > 1 and len(steps)
        for x, y in group.curves:
            x, y = thinned(x, y)
            drawn.append(y[np.isfinite(y)])
            thin = {"linewidth": 0.6, "alpha": 0.55} if several else {"linewidth": 1.6}
            axes.plot(x, y, marker="o" if len(x) == 1 else None, markersize=4, **style, **thin)
        if several:
            x, y = thinned(steps, mean)
            _, width = thinned(steps, half)
            if len(group.curves) > 2:
                axes.fill_between(x, y - width, y + width, color=style["color"], alpha=0.15, lw=0)
            axes.plot(x, y, marker="o" if len(x) == 1 else None, linewidth=1.9, **style)
    _limit(axes, np.concatenate(drawn))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("iteration")
    return _svg(figure, f"{title}. {describe(groups)}")


@rc_context(STYLE)
def scatter_chart(
    title: str, x_label: str, y_label: str, groups: Sequence[Series], level: float
) -> str:
    """Points of each group. level: of a horizontal line for comparison."""
    figure, axes = _new()
    axes.axhline(level, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    for group in groups:
        for x, y in group.curves:
            marker = "os^DvP"[group.index % 6]
            axes.plot(x, y, marker, color=_colour(group.index), markersize=4, alpha=0.7)
    axes.set(xlabel=x_label, ylabel=y_label)
    return _svg(figure, f"{title}: {y_label} against {x_label}, one point per prompt.")


def band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """The iterations (T,) that all curves have, their mean (T,) and half its 95 % t interval."""
    tables = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves]
    shared = sorted(set.intersection(*map(set, tables))) if tables else []
    if not shared:
        return np.array([]), np.array([]), np.array([])
    values = np.array([[table[i] for i in shared] for table in tables])
    return np.array(shared), *t_interval(values)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most 2 POINTS points: a longer one is averaged over equal windows."""
    width = len(x) // POINTS
    if width < 2:
        return x, y
    steps, means = smooth(x, y, width)
    return steps[::width], means[::width]


def describe(groups: Sequence[Series]) -> str:
    """What a chart shows, in words."""
    sentences = []
    for group in groups:
        steps, mean, _ = band(group.curves)
        if not len(steps):
            sentences.append(f"{group.label}: no iteration that all of its runs have.")
            continue
        over = f", mean of {len(group.curves)} runs" if len(group.curves) > 1 else ""
        sentences.append(
            f"{group.label}: {mean[0]:.4g} at iteration {steps[0]}, "
            f"{mean[-1]:.4g} at iteration {steps[-1]}{over}."
        )
    return " ".join(sentences)


@rc_context(STYLE)
def swatch(index: int) -> str:
    """A short line in the style of a series, for a legend."""
    figure = Figure(figsize=(0.4, 0.14))
    axes = figure.add_axes((0, 0, 1, 1))
    style = {"color": _colour(index), "linestyle": _dash(index)}
    axes.plot([0, 1], [0, 0], linewidth=2.2, clip_on=False, **style)
    axes.set_axis_off()
    return re.sub(r' id="[^"]*"', "", _svg(figure, ""))  # it occurs several times on a page


# ------------------------------------------------------------------------------------------ parts


def _new():
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes(AREA)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _limit(axes, values: np.ndarray) -> None:
    """Fit the axis to the lines of the runs. Intervals of few seeds may be cut."""
    if not len(values):
        return
    low, high = values.min(), values.max()
    margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _colour(index: int) -> str:
    return f"#0000{16 + index % COLOURS:02x}"


def _dash(index: int):
    return DASHES[index // COLOURS % len(DASHES)]


def _svg(figure: Figure, words: str) -> str:
    """The figure as an <svg> element. Its ids are unique within the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=NO_METADATA)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    prefix = f"c{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    for i in range(COLOURS):
        text = text.replace(_colour(i), f"var(--series-{i})")
    text = text.replace(INK, "var(--soft)").replace(GRID, "var(--line)")
    label = words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    role = f'role="img" aria-label="{label}"' if words else 'aria-hidden="true"'
    return text.replace("<svg", f"<svg {role}", 1)

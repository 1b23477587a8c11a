"""Run folders as tidy arrays: learning curves over seeds, scores by level of ambiguity, contrasts with t intervals.

Arrays keep seeds first and prompts last. A prompt's score is the mean over its samples; what is not defined is NaN and left out of means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from bpgo.files import read_log, resolve
from bpgo.records import aligned

Parts = dict[str, dict[str, np.ndarray]]  # objective -> metric -> (seeds, prompts)


class Run(NamedTuple):
    """The rows of a run's metrics.jsonl, timing.jsonl (one an iteration) and evaluations.jsonl."""

    metrics: list[dict]
    timing: list[dict]
    evaluations: list[dict]


def read_run(folder: str | Path) -> Run:
    """The logs of one run folder. Raises FileNotFoundError where it holds no run."""
    return Run(*(read_log(Path(folder) / f"{name}.jsonl") for name in Run._fields))


def curve(runs: Sequence[Run], log: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations (T,) that all runs logged, and values (seeds, T) of one number there. log: a field of Run."""
    rows = [{row["iteration"]: row[name] for row in getattr(run, log)} for run in runs]
    shared = sorted(set.intersection(*(set(row) for row in rows)))
    return np.array(shared), np.array([[row[i] for i in shared] for row in rows], dtype=float)


def smooth(steps: np.ndarray, values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Running means of values (seeds, T) over `width` steps, at the last step of each: (T - width + 1,) and (seeds, T - width + 1)."""
    windows = np.lib.stride_tricks.sliding_window_view(values, width, axis=-1)
    return steps[width - 1 :], windows.mean(-1)


def oscillation(curve: np.ndarray, rise: np.ndarray | float | None = None) -> np.ndarray:
    """How restless learning curves (..., T) are: RMS of curve[t + 1] - 2 curve[t] + curve[t - 1] over the rise; (...), no unit, >= 0.

    Independent noise of standard deviation s has sqrt(6) s / rise, a straight curve 0. The rise is the mean of the last fifth minus that
    of the first, unsigned, unless (...) are given in the curve's unit: give one for all objectives where they are compared, or one that
    learns less will seem less steady. Infinite where the rise is 0, NaN for a constant curve. ValueError for T < 3.
    """
    curve = np.asarray(curve, dtype=float)
    if curve.ndim < 1 or curve.shape[-1] < 3:
        raise ValueError(f"a curve needs 3 points or more to oscillate, got shape {curve.shape}")
    fifth = max(curve.shape[-1] // 5, 1)
    own = np.abs(curve[..., -fifth:].mean(-1) - curve[..., :fifth].mean(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((np.diff(curve, 2) ** 2).mean(-1)) / (
            own if rise is None else np.asarray(rise, dtype=float)
        )


def first_reaching(iterations: np.ndarray, curve: np.ndarray, target: float, width: int) -> float:
    """The first of iterations (T,) at which the mean of the last `width` values of curve (T,) is `target` or more; NaN if it never is. A
    window with a NaN reaches nothing. ValueError for a width outside [1, T]."""
    iterations, curve = np.asarray(iterations), np.asarray(curve, dtype=float)
    if curve.ndim != 1 or iterations.shape != curve.shape or not 1 <= width <= len(curve):
        raise ValueError(
            f"expected iterations and curve (T,) and width in [1, T], got {iterations.shape}, {curve.shape} and {width}"
        )
    at, means = smooth(iterations, curve, width)
    return next(iter(at[means >= target].tolist()), np.nan)


def scores(runs: Sequence[Run], which: int = -1) -> dict[str, np.ndarray]:
    """{metric: (seeds, P)} of one evaluation: 0 is the one before training, -1 the last."""
    tables = [run.evaluations[which]["scores"] for run in runs]
    return {
        name: mean(np.array([table[name] for table in tables], dtype=float)) for name in tables[0]
    }


def prompt_facts(file: str, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """{"level", "bits"}: (P,) of these prompts as their JSON-lines file grades them, NaN where it does not (and for datasets)."""
    lines = resolve(file).read_text().splitlines() if str(file).endswith(".jsonl") else []
    rows = {row["prompt"]: row for row in map(json.loads, filter(str.strip, lines))}
    return {
        name: np.array([rows.get(p, {}).get(name, np.nan) for p in prompts], dtype=float)
        for name in ("level", "bits")
    }


def by_level(
    values: np.ndarray, level: np.ndarray, parts: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels (L,), rounded to 1 / parts; means (..., L) over the prompts of each, of values (..., P); and how many prompts, (L,)."""
    rounded = np.round(level * parts) / parts
    levels, count = np.unique(rounded[~np.isnan(rounded)], return_counts=True)
    return levels, np.stack([mean(values[..., rounded == at]) for at in levels], -1), count


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined, NaN where nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(-1) / defined.sum(-1)


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis of values (n, ...) and the half width of its 95 % t interval, NaN for n = 1."""
    n, middle = len(values), mean(np.moveaxis(values, 0, -1))
    if n < 2:
        return middle, np.full_like(middle, np.nan)
    return middle, student.ppf(0.975, n - 1) * values.std(0, ddof=1) / np.sqrt(n)


def contrast(after: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Mean of after - before, (seeds, P) or (1, P), paired, and the half width of its 95 % t interval.

    With several seeds the interval is over seeds: would another training say so too? With one it is over prompts, and says only
    whether other prompts would; what another seed would say stays open.
    """
    difference = after - before
    units = mean(difference) if len(difference) > 1 else difference[0]
    middle, half = t_interval(units[~np.isnan(units)])
    return float(middle), float(half)


def outcome(logs: dict[str, list[Run]], bits: np.ndarray) -> tuple[dict[str, np.ndarray], Parts]:
    """Scores before, {metric: (1, P)}, and after training, of every metric that is defined anywhere; `accuracy_specified` is the accuracy
    on prompts that leave nothing open."""
    first = scores(next(iter(logs.values()))[:1], 0)
    parts = {name: scores(found) for name, found in logs.items()}
    empty = [
        m for m in first if all(np.isnan(table[m]).all() for table in (first, *parts.values()))
    ]
    for table in (first, *parts.values()):
        for m in empty:
            del table[m]
        if "accuracy" in table:
            table["accuracy_specified"] = np.where(bits == 0, table["accuracy"], np.nan)
    return first, parts


def contrasts(parts: Parts, base: dict[str, np.ndarray], name: str) -> str:
    """A table of paired differences from `base`, called `name`, with 95 % t intervals: a line a metric, a column an objective."""
    lines = [["", *(f"{part} - {name}" for part in parts)]]
    for m in base:
        found = [contrast(table[m], base[m]) for table in parts.values()]
        lines.append([m, *(f"{middle:+.3f} ± {half:.3f}" for middle, half in found)])
    return aligned(lines)


def comparison(parts: Parts, first: dict[str, np.ndarray]) -> str:
    """Two tables of `contrasts`, of every objective with before training and with GRPO if it is there; and what the intervals are over."""
    seeds, prompts = next(iter(next(iter(parts.values())).values())).shape
    over = "intervals over " + ("seeds" if seeds > 1 else f"{prompts} prompts of a single seed")
    tables = [contrasts(parts, first, "before")]
    if others := {
        name: scores for name, scores in parts.items() if name != "grpo" and "grpo" in parts
    }:
        tables.append(contrasts(others, parts["grpo"], "grpo"))
    return f"{over}\n" + "\n\n".join(tables)


def clear_and_vague(level: np.ndarray, rewards) -> tuple[int, int]:
    """Two telling prompts, by level (P,) and rewards (P, S): of the clearer half one made well once and not always, and of the most
    ambiguous eighth the one whose rewards differ least."""
    order = np.argsort(-level, kind="stable")
    clear = max(order[: len(order) // 2], key=lambda i: rewards[i].max() + rewards[i].std())
    return clear, min(order[-(len(order) // 8) :], key=lambda i: rewards[i].std())


def seconds(logs: dict[str, list[Run]]) -> tuple[dict[str, float], str]:
    """Median seconds of an iteration by objective, and a table of its phases."""
    phases = ("sample", "decode", "score", "update", "seconds")
    time = {
        name: [float(np.median([row[p] for run in found for row in run.timing])) for p in phases]
        for name, found in logs.items()
    }
    lines = [[name, *(f"{value:.2f}" for value in row)] for name, row in time.items()]
    return {name: row[-1] for name, row in time.items()}, aligned(
        [["median s an iteration", *phases[:-1], "all"], *lines]
    )

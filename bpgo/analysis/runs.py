"""Run folders as arrays: learning curves, scores by level of ambiguity, and paired differences.

The first axis of an array is the seed and the last one the prompt. The score of a prompt is the
mean over its samples. A value that is not defined is NaN, and means leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

from bpgo.evaluation import Scores
from bpgo.files import expand, read_log, resolve
from bpgo.records import aligned

Parts = dict[str, dict[str, np.ndarray]]  # objective -> metric -> (seeds, prompts)


class Run(NamedTuple):
    """The rows of metrics.jsonl, timing.jsonl (both per iteration) and evaluations.jsonl."""

    metrics: list[dict]
    timing: list[dict]
    evaluations: list[dict]


def read_run(folder: str | Path) -> Run:
    """The logs of one run folder. Raises FileNotFoundError if the folder contains no run."""
    return Run(*(read_log(expand(folder) / f"{name}.jsonl") for name in Run._fields))


# ---------------------------------------------------------------------------------- learning curves


def curve(runs: Sequence[Run], log: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The iterations (T,) that all runs logged, and the values (seeds, T) of one number at them.

    log: a field of `Run`. name: a key of the rows of that log.
    """
    rows = [{row["iteration"]: row[name] for row in getattr(run, log)} for run in runs]
    shared = sorted(set.intersection(*(set(row) for row in rows)))
    return np.array(shared), np.array([[row[i] for i in shared] for row in rows], dtype=float)


def smooth(steps: np.ndarray, values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Running means of values (..., T) over `width` steps, each assigned to its last step.

    Returns steps (T - width + 1,) and means (..., T - width + 1).
    """
    windows = np.lib.stride_tricks.sliding_window_view(values, width, axis=-1)
    return steps[width - 1 :], windows.mean(-1)


def oscillation(curve: np.ndarray, rise: np.ndarray | float | None = None) -> np.ndarray:
    """(...,) how much learning curves (..., T) oscillate: no unit, >= 0.

    It is the root mean square of the second differences curve[t + 1] - 2 curve[t] + curve[t - 1],
    divided by the rise. It is 0 for a straight line and sqrt(6) s / rise for independent noise of
    standard deviation s. It is infinite if the rise is 0, and NaN for a constant curve.

    rise: (...,) or a number, in the unit of the curve. By default it is the absolute difference
    between the means of the last and the first fifth of the curve. To compare objectives, pass the
    same rise for all of them; otherwise an objective that learns less appears less steady. Raises
    ValueError for T < 3.
    """
    curve = np.asarray(curve, dtype=float)
    if curve.ndim < 1 or curve.shape[-1] < 3:
        raise ValueError(f"a curve needs at least 3 points to oscillate, got shape {curve.shape}")
    if rise is None:
        fifth = max(curve.shape[-1] // 5, 1)
        rise = np.abs(curve[..., -fifth:].mean(-1) - curve[..., :fifth].mean(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((np.diff(curve, 2) ** 2).mean(-1)) / np.asarray(rise, dtype=float)


def first_reaching(iterations: np.ndarray, curve: np.ndarray, target: float, width: int) -> float:
    """The first of iterations (T,) at which the running mean of curve (T,) is at least `target`.

    The mean is over the last `width` values. A window with a NaN does not reach the target. NaN if
    no window does. Raises ValueError for a width outside [1, T].
    """
    iterations, curve = np.asarray(iterations), np.asarray(curve, dtype=float)
    if curve.ndim != 1 or iterations.shape != curve.shape or not 1 <= width <= len(curve):
        raise ValueError(
            f"expected iterations and curve (T,) and width in [1, T], "
            f"got {iterations.shape}, {curve.shape} and {width}"
        )
    at, means = smooth(iterations, curve, width)
    reached = at[means >= target]
    return reached[0].item() if reached.size else np.nan


# ------------------------------------------------------------------------- prompts before training


class Start(NamedTuple):
    """The model before training, on P evaluation prompts with S samples each.

    scores: its evaluation. level: (P,) share of the attributes that a prompt names. bits: (P,)
    log2 of the number of scenes that fit the prompt. Both are NaN if the prompt file does not
    grade its prompts. order: (P,) indices from clear to ambiguous prompts. clear, vague: the two
    prompts of `clear_and_vague`.
    """

    scores: Scores
    prompts: list[str]
    level: np.ndarray
    bits: np.ndarray
    order: np.ndarray
    clear: int
    vague: int

    @property
    def rewards(self):
        """(P, S) rewards of the samples, a tensor."""
        return self.scores.scores["reward"]

    def examples(self, count: int) -> list[int]:
        """The clear prompt and the first prompt of each of the `count` most ambiguous levels.

        If the prompts are not graded, these are the last ones of the file.
        """
        _, of_each_level = np.unique(-np.round(4 * self.level), return_index=True)
        others = of_each_level if len(of_each_level) > 1 else self.order
        return list(dict.fromkeys([self.clear, *others[-count:].tolist()]))


def before_training(trainer) -> Start:
    """Evaluate a trainer's model, and look up how ambiguous the evaluation prompts are."""
    config, prompts = trainer.config, trainer.evaluation_prompts
    scores = trainer.evaluate()
    facts = prompt_facts(config.evaluation.prompts or config.prompts, prompts)
    order = np.argsort(-facts["level"], kind="stable")
    clear, vague = clear_and_vague(facts["level"], scores.scores["reward"])
    return Start(scores, prompts, facts["level"], facts["bits"], order, clear, vague)


def prompt_facts(file: str, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """{"level": (P,), "bits": (P,)} of these prompts, from the JSON-lines file that grades them.

    NaN for prompts that are not graded, for other files and for datasets.
    """
    lines = (
        resolve(file).read_text(encoding="utf-8").splitlines()
        if str(file).endswith(".jsonl")
        else []
    )
    rows = {row["prompt"]: row for row in map(json.loads, filter(str.strip, lines))}
    return {
        name: np.array([rows.get(p, {}).get(name, np.nan) for p in prompts], dtype=float)
        for name in ("level", "bits")
    }


def clear_and_vague(level: np.ndarray, rewards) -> tuple[int, int]:
    """Two instructive prompts, by level (P,) and rewards (P, S) of their samples.

    The first is from the clearer half: its best sample is good, and its samples differ. The second
    is from the most ambiguous eighth: its rewards differ least.
    """
    order = np.argsort(-level, kind="stable").tolist()
    clearer, vaguest = order[: len(order) // 2], order[-(len(order) // 8) :]
    clear = max(clearer, key=lambda i: rewards[i].max() + rewards[i].std())
    return clear, min(vaguest, key=lambda i: rewards[i].std())


def by_level(
    values: np.ndarray, level: np.ndarray, parts: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of values (..., P) over the prompts of each level.

    Levels (P,) are rounded to 1 / parts. Returns the levels (L,), the means (..., L) and the number
    of prompts per level (L,).
    """
    rounded = np.round(level * parts) / parts
    levels, count = np.unique(rounded[~np.isnan(rounded)], return_counts=True)
    return levels, np.stack([mean(values[..., rounded == at]) for at in levels], -1), count


# ------------------------------------------------------------------------- scores and differences


def scores(runs: Sequence[Run], which: int = -1) -> dict[str, np.ndarray]:
    """{metric: (seeds, P)} of one evaluation: 0 is the one before training, -1 the last one."""
    tables = [run.evaluations[which]["scores"] for run in runs]
    return {
        name: mean(np.array([table[name] for table in tables], dtype=float)) for name in tables[0]
    }


def means_of_prompts(tables: Sequence[Mapping], metrics: Iterable[str]) -> dict[str, np.ndarray]:
    """{metric: (seeds, P)} of evaluations {metric: tensor (P, S)}, one per seed.

    Only those of `metrics` that were evaluated are included.
    """
    return {
        metric: np.stack([mean(table[metric].double().numpy()) for table in tables])
        for metric in metrics
        if metric in tables[0]
    }


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, without NaN; NaN if all values are NaN."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(-1) / defined.sum(-1)


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of values (n, ...) over the first axis, and half the width of its 95 % t interval.

    The width is NaN for n = 1.
    """
    n, middle = len(values), mean(np.moveaxis(values, 0, -1))
    if n < 2:
        return middle, np.full_like(middle, np.nan)
    return middle, student.ppf(0.975, n - 1) * values.std(0, ddof=1) / np.sqrt(n)


def contrast(after: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Mean of the paired difference after - before, and half the width of its 95 % t interval.

    Both arguments are (seeds, P) or (1, P). With several seeds the interval is over seeds, and says
    what another training run would give. With one seed it is over prompts, and says only what other
    prompts would give.
    """
    difference = after - before
    units = mean(difference) if len(difference) > 1 else difference[0]
    middle, half = t_interval(units[~np.isnan(units)])
    return float(middle), float(half)


def outcome(logs: Mapping[str, list[Run]], bits: np.ndarray) -> tuple[dict[str, np.ndarray], Parts]:
    """Scores before training, {metric: (1, P)}, and after it, {objective: {metric: (seeds, P)}}.

    A metric that is undefined everywhere is left out. `accuracy_specified` is added: the accuracy
    on prompts that leave nothing open, bits (P,) = 0.
    """
    first = scores(next(iter(logs.values()))[:1], 0)
    parts = {name: scores(found) for name, found in logs.items()}
    tables = (first, *parts.values())
    for metric in list(first):
        if all(np.isnan(table[metric]).all() for table in tables):
            for table in tables:
                del table[metric]
    for table in tables:
        if "accuracy" in table:
            table["accuracy_specified"] = np.where(bits == 0, table["accuracy"], np.nan)
    return first, parts


def contrasts(parts: Parts, base: Mapping[str, np.ndarray], name: str) -> str:
    """A table of paired differences from `base` with their 95 % t intervals.

    One row per metric and one column per objective, titled "objective - name".
    """
    lines = [["", *(f"{part} - {name}" for part in parts)]]
    for metric in base:
        found = [contrast(table[metric], base[metric]) for table in parts.values()]
        lines.append([metric, *(f"{middle:+.3f} ± {half:.3f}" for middle, half in found)])
    return aligned(lines)


def comparison(parts: Parts, first: Mapping[str, np.ndarray]) -> str:
    """Every objective compared with the model before training, and with GRPO if it was trained.

    The first line says whether the intervals are over seeds or over prompts.
    """
    seeds, prompts = next(iter(next(iter(parts.values())).values())).shape
    over = "seeds" if seeds > 1 else f"{prompts} prompts of a single seed"
    tables = [contrasts(parts, first, "before")]
    if "grpo" in parts and len(parts) > 1:
        others = {name: table for name, table in parts.items() if name != "grpo"}
        tables.append(contrasts(others, parts["grpo"], "grpo"))
    return f"intervals over {over}\n" + "\n\n".join(tables)


def weight_correlations(weights: np.ndarray, **others: np.ndarray | None) -> str:
    """The rank correlation of weights (P,) with each of the named values (P,), one line each."""
    lines = []
    for name, values in others.items():
        if values is not None:
            found = spearmanr(weights, values).statistic
            lines.append(f"rank correlation of the weight with {name}: {found:+.2f}")
    return "\n".join(lines)


def seconds(logs: Mapping[str, list[Run]]) -> tuple[dict[str, float], str]:
    """Median seconds of an iteration by objective, and a table of its phases."""
    phases = ("sample", "decode", "score", "update", "seconds")
    lines, total = [["median s per iteration", *phases[:-1], "all"]], {}
    for name, found in logs.items():
        rows = [row for run in found for row in run.timing]
        medians = [float(np.median([row[phase] for row in rows])) for phase in phases]
        lines.append([name, *(f"{value:.2f}" for value in medians)])
        total[name] = medians[-1]
    return total, aligned(lines)

"""One study, as the training notebooks run it: objectives trained from one start, on the same prompts and noise, and what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..config import read_config
from ..evaluation import Metric, Scores
from ..priors import PerPrompt
from ..prompts import key_of
from ..records import aligned, record
from ..reference import make_prior
from ..trainer import Trainer
from . import plots, runs

Parts = dict[str, dict[str, np.ndarray]]  # objective -> metric -> (seeds, prompts)


@dataclass
class Study:
    """The parameters of a training notebook, in its order, and the oracle's metrics, which are used where the preset asks for an oracle.

    Without `output` the runs lie in a temporary folder that goes with the study.
    """

    preset: str
    objectives: list[str]
    seeds: list[int]
    iterations: int
    evaluate_every: int
    checkpoint: str
    overrides: list[str]
    output: str
    metrics: dict[str, Metric]
    scratch: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)

    def trainer(self, objective: str, seed: int, folder: Path | None = None) -> Trainer:
        """A run of one objective and seed. It goes on from what its folder holds, `runs/<objective>-<seed>` in `output` if none is given."""
        given = {"objective.name": objective, "seed": seed, "iterations": self.iterations, "evaluation.every": self.evaluate_every}
        given |= {"generator.path": self.checkpoint} if self.checkpoint else {}
        config = read_config(self.preset, [*(f"{key}={value}" for key, value in given.items()), *self.overrides])
        folder = folder or Path(self.output or self.scratch.name) / "runs" / f"{objective}-{seed}"
        quiet()
        return Trainer(config, folder, metrics=self.metrics if config.evaluation.oracle else {}, progress=False)

    def start(self) -> Trainer:
        """The trainer of a run that nobody trains: the model as it is before."""
        return self.trainer(self.objectives[0], self.seeds[0], Path(self.scratch.name) / "start")

    def train(self) -> tuple[dict[str, list[runs.Run]], dict[str, Scores]]:
        """Train what is not trained yet. By objective: the logs of each seed, and the first seed's evaluation after training."""
        logs, after = {name: [] for name in self.objectives}, {}
        for seed in self.seeds:
            for name in self.objectives:
                trainer = self.trainer(name, seed)
                trainer.train()
                logs[name].append(runs.read_run(trainer.output))
                if seed == self.seeds[0]:
                    after[name] = trainer.evaluate()
        return logs, after

    def keep(self, figure: Figure, name: str) -> None:
        """Show a figure, and leave it beside the record."""
        if self.output:
            figure.savefig(Path(self.output) / f"{name}.png", dpi=plots.DPI)
        plt.show()

    def record(self, name: str, first: dict[str, np.ndarray], parts: Parts, seconds: dict[str, float]) -> None:
        """Record means over prompts and seeds, before and by objective; those of each seed, uncompared, in the context."""
        values = {"before": {m: _plain(runs.mean(s[0])) for m, s in first.items()}}
        for part, scores in parts.items():
            values[part] = {m: _plain(runs.mean(runs.mean(s))) for m, s in scores.items()}
            values[part] |= {"seconds_per_iteration": seconds[part]} if part in seconds else {}
        per_seed = {part: {m: [_plain(v) for v in runs.mean(s)] for m, s in scores.items()} for part, scores in parts.items()}
        given = {key: getattr(self, key) for key in ("preset", "seeds", "iterations", "checkpoint", "overrides")}
        record(name, values, self.output, rtol=0.05, atol=0.02, context=given | {"per_seed": per_seed}, uncompared=["seconds_per_iteration"])


def quiet() -> None:
    """No bars and notices of the libraries."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def prior_of(trainer: Trainer, prompts: list[str], rewards) -> float | np.ndarray:
    """The run's prior for evaluation prompts with rewards (P, S): a number, or (P,) where each prompt has its own. Only before training."""
    prior = trainer.prior
    if isinstance(prior, PerPrompt):  # which knows the training prompts only
        prior = make_prior(trainer.config, trainer.policy, trainer.reward, prompts)
    return prior([key_of(p) for p in prompts], rewards)


def outcome(logs: dict[str, list[runs.Run]], bits: np.ndarray) -> tuple[dict[str, np.ndarray], Parts]:
    """Scores before, {metric: (1, P)}, and after training, of every metric that is defined anywhere; `accuracy_specified` is the accuracy
    on prompts that leave nothing open."""
    first = runs.scores(next(iter(logs.values()))[:1], 0)
    parts = {name: runs.scores(found) for name, found in logs.items()}
    for scores in (first, *parts.values()):
        for empty in [m for m in scores if all(np.isnan(other[m]).all() for other in (first, *parts.values()) if m in other)]:
            del scores[empty]
        if "accuracy" in scores:
            scores["accuracy_specified"] = np.where(bits == 0, scores["accuracy"], np.nan)
    return first, parts


def contrasts(parts: Parts, base: dict[str, np.ndarray], name: str) -> str:
    """A table of paired differences from `base`, called `name`, with 95 % t intervals: a line a metric, a column an objective."""
    lines = [["", *(f"{part} - {name}" for part in parts)]]
    for m in base:
        found = [runs.contrast(scores[m], base[m]) for scores in parts.values()]
        lines.append([m, *(f"{mean:+.3f} ± {half:.3f}" for mean, half in found)])
    return aligned(lines)


def seconds(logs: dict[str, list[runs.Run]]) -> tuple[dict[str, float], str]:
    """Median seconds of an iteration by objective, and a table of its phases."""
    phases = ("sample", "decode", "score", "update", "seconds")
    time = {name: [_median(row[p] for run in found for row in run.timing) for p in phases] for name, found in logs.items()}
    lines = [[name, *(f"{value:.2f}" for value in row)] for name, row in time.items()]
    return {name: row[-1] for name, row in time.items()}, aligned([["median s an iteration", *phases[:-1], "all"], *lines])


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _plain(value) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)

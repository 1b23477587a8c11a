"""One study, as the training notebooks run it: objectives trained from one start, on the same prompts and noise, and what came of it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from bpgo.analysis import plots, runs
from bpgo.config import Config, read_config, to_dict
from bpgo.evaluation import Metric, Scores
from bpgo.priors import PerPrompt
from bpgo.prompts import key_of
from bpgo.records import record
from bpgo.reference import make_prior
from bpgo.trainer import Trainer


class Remembering(Trainer):
    """A trainer that keeps its last evaluation, with the samples, as `last`."""

    last: Scores | None = None

    def evaluate(self, keep: bool = True) -> Scores:
        self.last = super().evaluate()
        return self.last


@dataclass
class Study:
    """The parameters of a training notebook, in its order, and the oracle's metrics, which are used where the preset asks for an oracle.

    processes: how many train a run together, one a GPU; with more than one, `start` trains all runs. Without `output` the runs lie in a
    temporary folder that goes with the study.
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
    processes: int = 1
    scratch: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)

    def settings(self, objective: str, seed: int) -> list[str]:
        """What the parameters say beside the preset, as `key=value`."""
        given = {
            "objective.name": objective,
            "seed": seed,
            "iterations": self.iterations,
            "evaluation.every": self.evaluate_every,
        }
        given |= {"generator.path": self.checkpoint} if self.checkpoint else {}
        return [*(f"{key}={value}" for key, value in given.items()), *self.overrides]

    def config(self, objective: str, seed: int) -> Config:
        """The settings of one run: the preset, with what the parameters say."""
        return read_config(self.preset, self.settings(objective, seed))

    def preflight(self) -> None:
        """Say that nothing is missing for these runs, or else print all that `python -m bpgo preflight` says and raise RuntimeError.

        That runs in a process of its own: this one may not have touched a GPU before training processes are launched from it.
        """
        command = [
            sys.executable,
            "-m",
            "bpgo",
            "preflight",
            self.preset,
            *self.settings(self.objectives[0], self.seeds[0]),
        ]
        if self.processes > 1:
            launch = Path(self.scratch.name) / "launch.yaml"
            launch.write_text(f"num_processes: {self.processes}\n")
            command += ["--launch", str(launch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, end="")
            missing = [
                line for line in done.stdout.splitlines() if line.startswith("Missing: ")
            ] or [done.stderr.strip()]
            raise RuntimeError("this study cannot run yet\n" + "\n".join(missing))
        print("preflight: nothing is missing")

    def folder(self, objective: str, seed: int) -> Path:
        """Where a run lies."""
        return Path(self.output or self.scratch.name) / "runs" / f"{objective}-{seed}"

    def trainer(self, objective: str, seed: int, folder: Path | None = None) -> Trainer:
        """One run. It goes on from what its folder holds, `runs/<objective>-<seed>` in `output` if none is given."""
        import diffusers
        import transformers

        for library in (diffusers, transformers):  # their bars and notices
            library.utils.logging.disable_progress_bar()
            library.utils.logging.set_verbosity_error()
        config, folder = self.config(objective, seed), folder or self.folder(objective, seed)
        return Remembering(
            config, folder, metrics=self.metrics if config.evaluation.oracle else {}, progress=False
        )

    def variant(self, name: str, *overrides: str) -> Study:
        """This study with further settings; its runs lie in the folder `name` of its output, and are trained in this process."""
        place = Path(self.output or self.scratch.name) / name
        return replace(self, overrides=[*self.overrides, *overrides], output=str(place))

    def start(self) -> Trainer:
        """The trainer of a run that nobody trains: the model as it is before. With several processes all runs are trained first."""
        if self.processes > 1:
            self.launch()
        return self.trainer(self.objectives[0], self.seeds[0], Path(self.scratch.name) / "start")

    def launch(self) -> None:
        """Train what is not trained yet, each run in several processes (`accelerate.notebook_launcher`).

        RuntimeError from a process that has used a GPU, ValueError from one that has made a Trainer: restart the notebook.
        """
        from accelerate import notebook_launcher

        for seed in self.seeds:
            for name in self.objectives:
                if not self.finished(name, seed):
                    with socket.socket() as free:
                        free.bind(("127.0.0.1", 0))
                        port = free.getsockname()[1]
                    notebook_launcher(
                        lambda *run: self.trainer(*run).train(),
                        (name, seed),
                        self.processes,
                        use_port=str(port),
                    )

    def finished(self, objective: str, seed: int) -> bool:
        """Whether a run has ended with these settings, by what its folder holds."""
        settings, folder = (
            json.loads(json.dumps(to_dict(self.config(objective, seed)))),
            self.folder(objective, seed),
        )
        return (folder / "final").exists() and json.loads(
            (folder / "config.json").read_text()
        ) == settings

    def train(self) -> tuple[dict[str, list[runs.Run]], dict[str, Scores]]:
        """Train what is not trained yet. By objective: the logs of each seed, and the first seed's evaluation after training."""
        logs, after = {name: [] for name in self.objectives}, {}
        for seed in self.seeds:
            for name in self.objectives:
                trainer = self.trainer(name, seed)
                trainer.train()
                logs[name].append(runs.read_run(trainer.output))
                if seed == self.seeds[0]:
                    after[name] = trainer.last or trainer.evaluate()
        return logs, after

    def keep(self, figure: Figure | bytes, name: str) -> None:
        """Show a figure, or an animated GIF, and leave it beside the record."""
        from IPython.display import Image, display

        if isinstance(figure, bytes):
            display(Image(figure, format="gif"))
            if self.output:
                (Path(self.output) / f"{name}.gif").write_bytes(figure)
            return
        if self.output:
            figure.savefig(Path(self.output) / f"{name}.png", dpi=plots.DPI)
        plt.show()

    def record(
        self,
        name: str,
        first: dict[str, np.ndarray],
        parts: dict[str, dict[str, np.ndarray]],
        seconds: dict[str, float],
    ) -> None:
        """Record means over prompts and seeds, before and by objective; those of each seed, uncompared, in the context."""
        values = {"before": {m: _plain(runs.mean(s[0])) for m, s in first.items()}}
        for part, scores in parts.items():
            values[part] = {m: _plain(runs.mean(runs.mean(s))) for m, s in scores.items()}
            values[part] |= {"seconds_per_iteration": seconds[part]} if part in seconds else {}
        per_seed = {
            part: {m: [_plain(v) for v in runs.mean(s)] for m, s in scores.items()}
            for part, scores in parts.items()
        }
        context = {
            key: getattr(self, key) for key in ("preset", "seeds", "iterations", "overrides")
        } | {"per_seed": per_seed}
        context["checkpoint"] = self.config(self.objectives[0], self.seeds[0]).generator.path
        record(
            name,
            values,
            self.output,
            rtol=0.05,
            atol=0.02,
            context=context,
            uncompared=["seconds_per_iteration"],
        )


def prior_of(trainer: Trainer, prompts: list[str], rewards) -> float | np.ndarray:
    """The run's prior for evaluation prompts with rewards (P, S): a number, or (P,) where each prompt has its own. Only before training."""
    prior = trainer.prior
    if isinstance(prior, PerPrompt):  # which knows the training prompts only
        prior = make_prior(trainer.config, trainer.policy, trainer.reward, prompts)
    return prior([key_of(p) for p in prompts], rewards)


def _plain(value) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)

"""A study as the training notebooks run it: objectives trained from one start, and what they did.

All objectives see the same prompts and the same noise.
"""

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
from bpgo.evaluation import Scores
from bpgo.priors import PerPrompt
from bpgo.prompts import key_of
from bpgo.records import record
from bpgo.setup import make_prior
from bpgo.trainer import Trainer


class KeepingTrainer(Trainer):
    """A trainer that keeps its last evaluation, with the samples, as `last`."""

    last: Scores | None = None

    def evaluate(self, keep: bool = True) -> Scores:
        self.last = super().evaluate()
        return self.last


@dataclass
class Study:
    """The parameters of a training notebook, in its order.

    processes: how many processes train a run, one per GPU. With more than one, `start` trains all
    runs. Without `output` the runs are in a temporary folder that is deleted with the study.
    """

    preset: str
    objectives: list[str]
    seeds: list[int]
    iterations: int
    evaluate_every: int
    checkpoint: str
    overrides: list[str]
    output: str
    processes: int = 1
    scratch: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)

    # -------------------------------------------------------------------------------- settings

    def settings(self, objective: str, seed: int) -> list[str]:
        """What the parameters change in the preset, as `key=value`."""
        given = {
            "objective.name": objective,
            "seed": seed,
            "iterations": self.iterations,
            "evaluation.every": self.evaluate_every,
        }
        if self.checkpoint:
            given["generator.path"] = self.checkpoint
        return [*(f"{key}={value}" for key, value in given.items()), *self.overrides]

    def config(self, objective: str, seed: int) -> Config:
        """The settings of one run."""
        return read_config(self.preset, self.settings(objective, seed))

    def preflight(self) -> None:
        """Check that nothing is missing for these runs, and say so.

        Otherwise print the output of `bpgo preflight` and raise RuntimeError. It runs in another
        process, because this one must not use a GPU before it launches training processes.
        """
        command = [sys.executable, "-m", "bpgo", "preflight", self.preset]
        command += self.settings(self.objectives[0], self.seeds[0])
        if self.processes > 1:
            launch = Path(self.scratch.name) / "launch.yaml"
            launch.write_text(f"num_processes: {self.processes}\n", encoding="utf-8")
            command += ["--launch", str(launch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, end="")
            lines = done.stdout.splitlines()
            missing = [line for line in lines if line.startswith("Missing: ")]
            reasons = missing or [done.stderr.strip()]
            raise RuntimeError("this study cannot run yet\n" + "\n".join(reasons))
        print("preflight: nothing is missing")

    # ------------------------------------------------------------------------------------ runs

    def folder(self, objective: str, seed: int) -> Path:
        """The folder of a run."""
        return Path(self.output or self.scratch.name) / "runs" / f"{objective}-{seed}"

    def trainer(self, objective: str, seed: int, folder: Path | None = None) -> Trainer:
        """The trainer of a run, which resumes from the checkpoint in its folder.

        folder: by default `runs/<objective>-<seed>` in `output`.
        """
        import diffusers
        import transformers

        for library in (diffusers, transformers):  # no progress bars and notices
            library.utils.logging.disable_progress_bar()
            library.utils.logging.set_verbosity_error()
        folder = folder or self.folder(objective, seed)
        return KeepingTrainer(self.config(objective, seed), folder, progress=False)

    def variant(self, name: str, *overrides: str) -> Study:
        """This study with further settings, in the folder `name` of its output.

        Its runs are trained in this process.
        """
        folder = Path(self.output or self.scratch.name) / name
        return replace(self, overrides=[*self.overrides, *overrides], output=str(folder))

    def start(self) -> Trainer:
        """A trainer that is not trained: the model before training.

        With several processes all runs are trained first.
        """
        if self.processes > 1:
            self.launch()
        return self.trainer(self.objectives[0], self.seeds[0], Path(self.scratch.name) / "start")

    def launch(self) -> None:
        """Train what is not trained yet, each run in several processes.

        Raises RuntimeError in a process that has used a GPU and ValueError in one that has made a
        Trainer: restart the notebook.
        """
        from accelerate import notebook_launcher

        for seed in self.seeds:
            for name in self.objectives:
                if not self.complete(name, seed):
                    run, port = (name, seed), _free_port()
                    notebook_launcher(self._train_one, run, self.processes, use_port=port)

    def _train_one(self, objective: str, seed: int) -> None:
        self.trainer(objective, seed).train()

    def complete(self, objective: str, seed: int) -> bool:
        """Whether the folder of a run contains its result with these settings."""
        folder = self.folder(objective, seed)
        if not (folder / "final").exists():
            return False
        settings = json.loads(json.dumps(to_dict(self.config(objective, seed))))
        return json.loads((folder / "config.json").read_text(encoding="utf-8")) == settings

    def train(self) -> tuple[dict[str, list[runs.Run]], dict[str, Scores]]:
        """Train what is not trained yet.

        Returns, by objective, the logs of each seed and the first seed's evaluation after training.
        """
        logs, after = {name: [] for name in self.objectives}, {}
        for seed in self.seeds:
            for name in self.objectives:
                trainer = self.trainer(name, seed)
                trainer.train()
                logs[name].append(runs.read_run(trainer.output))
                if seed == self.seeds[0]:
                    after[name] = trainer.last or trainer.evaluate()
        return logs, after

    # --------------------------------------------------------------------------------- results

    def keep(self, figure: Figure | bytes, name: str) -> None:
        """Show a figure or an animated GIF, and save it beside the record if there is an output."""
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
        """Record means over prompts and seeds, before training and by objective.

        The means of each seed are in the context, which is not compared.
        """
        values = {"before": {m: _plain(runs.mean(scores[0])) for m, scores in first.items()}}
        per_seed = {}
        for part, metrics in parts.items():
            means = {m: runs.mean(scores) for m, scores in metrics.items()}
            per_seed[part] = {m: [_plain(value) for value in mean] for m, mean in means.items()}
            values[part] = {m: _plain(runs.mean(mean)) for m, mean in means.items()}
            if part in seconds:
                values[part]["seconds_per_iteration"] = seconds[part]
        context = {
            "preset": self.preset,
            "seeds": self.seeds,
            "iterations": self.iterations,
            "overrides": self.overrides,
            "per_seed": per_seed,
            "checkpoint": self.config(self.objectives[0], self.seeds[0]).generator.path,
        }
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
    """The prior of a run for evaluation prompts with rewards (P, S), before training only.

    A number, or (P,) if each prompt has its own prior.
    """
    prior = trainer.prior
    if isinstance(prior, PerPrompt):  # it knows the training prompts only
        prior = make_prior(trainer.config, trainer.policy, trainer.reward, prompts)
    return prior([key_of(prompt) for prompt in prompts], rewards)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _plain(value) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)

"""A prior of your own: a subclass of `Prior`.

On the command line, in the folder of this file:

    bpgo train t2i-tiny --output runs/x prior.name=own_prior:RunningMedian prior.options.window=16

In Python: `Trainer(config, output, prior=RunningMedian(16))`, as in `main` below.
"""

import statistics
import tempfile

import bpgo
from bpgo.files import read_log

SMALL = ["groups=4", "group_size=4", "sampling.steps=4"]
SMALL += ["evaluation.samples=1", "evaluation.steps=2"]


class RunningMedian(bpgo.Prior):
    """The median of the latest group means. Unlike their mean, it ignores a few extreme rewards.

    window: the number of groups to remember. In the first iteration the value is the median of that
    iteration's own group means.
    """

    def __init__(self, window=64):
        self.window, self.means = window, []

    def __call__(self, prompts, rewards):
        return statistics.median(self.means or rewards.mean(1).tolist())

    def update(self, rewards):
        self.means = (self.means + rewards.mean(1).tolist())[-self.window :]

    def state(self):
        return {"means": self.means}

    def restore(self, state):
        self.means = state["means"]


def main(output, iterations=3):
    config = bpgo.read_config("t2i-tiny", [*SMALL, f"iterations={iterations}"])
    trainer = bpgo.Trainer(config, output, prior=RunningMedian(16), progress=False)
    trainer.train()
    for row in read_log(trainer.output / "metrics.jsonl"):
        print(f"prior {row['prior']:.3f}, reward {row['reward']:.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

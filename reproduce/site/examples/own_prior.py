"""A prior of your own: a subclass of `bpgo.priors.Prior`, set as `trainer.prior` before the training begins.

In each iteration it is asked, `prior(prompts, rewards)`, and then shown, `prior.update(rewards)`. rewards: (N, G), all processes' groups.
prompts: this process's own. The answer, a number or one for each of these prompts, is in units of the reward. `sharpness(rewards)` may give
the k of equation 2 as well, per unit of reward; None leaves it to the settings. What `state()` returns is saved as JSON with each
checkpoint, and `restore` takes it back.
"""

import statistics
import tempfile

from bpgo import checkpoint
from bpgo.config import read_config
from bpgo.files import read_log
from bpgo.priors import Prior
from bpgo.trainer import Trainer

PROMPTS = ["a red circle", "a large blue square", "a green cross", "a shape"]
SMALL = ["groups=4", "group_size=4", "sampling.steps=4", "evaluation={samples: 1, steps: 2}"]


class RunningMedian(Prior):
    """The median of the latest group means: unlike their mean, it does not follow a few wild rewards.

    window: how many groups it remembers. Before any it is the median of those at hand.
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
    trainer = Trainer(
        read_config("t2i-tiny", [*SMALL, f"iterations={iterations}"]),
        output,
        prompts=PROMPTS,
        progress=False,
    )
    trainer.prior = RunningMedian()
    if found := checkpoint.checkpoints(
        trainer.output
    ):  # the run is gone on with: take up what this prior had learnt
        trainer.prior.restore(checkpoint.load_state(found[-1])[1]["prior"])
    trainer.train()
    rows = read_log(trainer.output / "metrics.jsonl")
    print(
        "by iteration, the prior:",
        *(f"{row['prior']:.3f}" for row in rows),
        "mean reward:",
        *(f"{row['reward']:.3f}" for row in rows),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

"""An objective of your own: a function of rewards and a prior that returns `Advantages`.

On the command line, in the folder of this file:

    bpgo train t2i-tiny --output runs/x objective.name=own_objective:batch_std \\
        objective.options.floor=0.05

In Python: `Trainer(config, output, objective=batch_std)`, as in `main` below.
"""

import tempfile

import bpgo
from bpgo.files import read_log

SMALL = ["iterations=3", "groups=4", "group_size=4", "sampling.steps=4"]
SMALL += ["evaluation.samples=1", "evaluation.steps=2"]


def batch_std(rewards, prior, *, alpha, k, floor=1e-8):
    """RAS on advantages as Flow-GRPO computes them: one standard deviation for the whole batch.

    A group whose rewards hardly differ then has small advantages, whereas equation 1 gives every
    group the same scale. The standard deviation is taken to be at least `floor`.
    """
    weights = bpgo.ras_weights(rewards, prior, alpha, k)
    centred = rewards - rewards.mean(1, keepdim=True)
    advantages = centred / rewards.std().clamp(min=floor)
    return bpgo.Advantages(weights[:, None] * advantages, None, weights, rewards)


def main(output):
    config = bpgo.read_config("t2i-tiny", [*SMALL, "objective.options.floor=0.05"])
    trainer = bpgo.Trainer(config, output, objective=batch_std, progress=False)
    trainer.train()
    for row in read_log(trainer.output / "metrics.jsonl"):
        print(f"reward {row['reward']:.4f}, largest weight {row['weight_max']:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

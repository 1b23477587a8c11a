"""An objective of your own: a function of rewards (N, G) and a prior that returns `Advantages`, entered in `objective.OBJECTIVES`.

`objective(rewards, prior, *, alpha, k, lam, beta)`: rewards are those of all processes, prior is a number, (N,) or (N, G), k is per unit
of reward. It returns main (N, G), auxiliary (N, G) or None, weights (N,) and transformed (N, G); the loss is the clipped surrogate of main
plus that of auxiliary. A positive advantage makes its sample more likely. No gradient passes through any of it.
The names in a config are fixed, so yours is set after it is read; and such a run cannot be gone on with after a kill, because its
config.json would be read with the fixed names. Where that matters, override `Trainer.weigh` instead: see the page.
"""

import tempfile

from bpgo.config import read_config
from bpgo.files import read_log
from bpgo.objective import OBJECTIVES, Advantages, check_rewards, ras_weights
from bpgo.trainer import Trainer

PROMPTS = ["a red circle", "a large blue square", "a green cross", "a shape"]
SMALL = [
    "iterations=2",
    "groups=4",
    "group_size=4",
    "sampling.steps=4",
    "evaluation={samples: 1, steps: 2}",
]


def batch_spread(rewards, prior, *, alpha, k, lam, beta):
    """RAS on advantages as Flow-GRPO makes them: each group's own mean, but one standard deviation, of the whole batch.

    So a group whose rewards hardly differ has a small say, where equation 1 gives every group the same. lam and beta are not used.
    """
    rewards = check_rewards(rewards)
    weights = ras_weights(rewards, prior, alpha, k)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-8)
    return Advantages(weights[:, None] * advantages, None, weights, rewards)


OBJECTIVES["batch_spread"] = batch_spread


def main(output):
    config = read_config("t2i-tiny", SMALL)
    config.objective.name = "batch_spread"
    trainer = Trainer(config, output, prompts=PROMPTS, progress=False)
    trainer.train()
    last = read_log(trainer.output / "metrics.jsonl")[-1]
    print(
        f"trained by {config.objective.name}: reward {last['reward']:.4f}, weights {last['weight_min']:.2f} to {last['weight_max']:.2f}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

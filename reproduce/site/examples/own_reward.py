"""A reward of your own: a function `reward(pixels, prompts) -> (B,)`, higher is better, passed as `Trainer(reward=...)`.

pixels: (B, 3, H, W) pictures or (B, F, 3, H, W) videos, float32 in [0, 1], on the policy's device; row i was made for prompts[i]. The
values must be finite, in any unit: the prior, 1 / k and 1 / lam are in the same one, and CRT takes their exponential, so scale them to a
spread of 1 or less. Nothing is differentiated. Samples of one prompt that all get the same value teach nothing. A reward that raises, or
returns another shape or a value that is not finite, stops the run with a RewardError that names it; mended, the run can go on.
"""

import tempfile

import torch

from bpgo.config import read_config
from bpgo.files import read_log
from bpgo.rewards import load_reward
from bpgo.trainer import Trainer

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.2, 0.3, 0.9)}
PROMPTS = ["a red circle", "a large blue square", "a green cross", "a shape"]
SMALL = [
    "groups=4",
    "group_size=4",
    "sampling.steps=4",
    "evaluation={samples: 4, steps: 8}",
    "optimiser.ema_decay=0",
]


def colour(pixels, prompts):
    """The share of a picture that has the colour its prompt names, in [0, 1]; 0 where it names none."""
    shares = torch.zeros(len(prompts))
    for i, prompt in enumerate(prompts):
        for name in COLOURS.keys() & prompt.split():
            near = (
                pixels[i] - torch.tensor(COLOURS[name], device=pixels.device)[:, None, None]
            ).abs().amax(0) < 0.25
            shares[i] = near.float().mean()
    return shares


def main(output, iterations=2):
    judge = load_reward("clip", "tiny-reward")

    def reward(pixels, prompts):
        """Yours and a shipped one, added: the weights say what a unit of each is worth."""
        return judge(pixels, prompts) + 2 * colour(pixels, prompts).to(pixels.device)

    config = read_config(
        "t2i-tiny", [*SMALL, f"iterations={iterations}", "reward={name: clip + 2 colour}"]
    )  # the name is for the records
    trainer = Trainer(
        config, output, reward=reward, prompts=PROMPTS, metrics={"colour": colour}, progress=False
    )
    trainer.train()
    found = [row["colour"] for row in read_log(trainer.output / "evaluations.jsonl")]
    print(
        f"trained on {config.reward[0].name}; share of the named colour: {found[0]:.4f} before, {found[-1]:.4f} after"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

"""A reward of your own: a function `reward(pixels, prompts) -> (B,)`, or a class with weights.

On the command line, in the folder of this file:

    bpgo train t2i-tiny --output runs/x reward.name=own_reward:colour reward.path=null
    bpgo train t2i-tiny --output runs/y reward.name=own_reward:Symmetry reward.options.axis=vertical

In Python: `Trainer(config, output, reward=colour)`, as in `main` below. Either of the two can also
be a metric, as there.
"""

import tempfile

import torch

import bpgo
from bpgo.files import read_log, resolve

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.2, 0.3, 0.9)}
SMALL = ["groups=4", "group_size=4", "sampling.steps=4"]
SMALL += ["evaluation.samples=1", "evaluation.steps=2"]


def colour(pixels, prompts):
    """The fraction of each image that has the colour its prompt names, in [0, 1]; else 0."""
    fractions = torch.zeros(len(prompts))
    for i, prompt in enumerate(prompts):
        for name in COLOURS.keys() & prompt.split():
            fractions[i] = fraction(pixels[i], name)
    return fractions


def target_colour(pixels, prompts, target):
    """The same for the colour in the column `target` of the prompt file."""
    return torch.stack([fraction(image, name) for image, name in zip(pixels, target, strict=True)])


def fraction(image, name):
    """The fraction of an image that has a colour."""
    distance = (image - image.new_tensor(COLOURS[name])[:, None, None]).abs().amax(0)
    return (distance < 0.25).float().mean()


class Symmetry(torch.nn.Module):
    """How similar a CLIP model finds an image and its mirror image, in [-1, 1].

    path: folder or shipped name of the CLIP model. axis: "vertical" to compare left with right, or
    "horizontal" to compare top with bottom.
    """

    def __init__(self, path, axis="vertical"):
        from transformers import CLIPModel

        super().__init__()
        self.model = CLIPModel.from_pretrained(resolve(path), dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        self.dimension = {"vertical": -1, "horizontal": -2}[axis]

    def forward(self, pixels, prompts):
        vision = self.model.vision_model
        side = vision.config.image_size
        small = torch.nn.functional.interpolate(pixels.to(self.model.device), (side, side))
        features = vision(small).pooler_output
        mirrored = vision(small.flip(self.dimension)).pooler_output
        return torch.nn.functional.cosine_similarity(features, mirrored)


def main(output, iterations=3):
    config = bpgo.read_config("t2i-tiny", [*SMALL, f"iterations={iterations}"])
    metrics = {"symmetry": Symmetry("tiny-reward")}
    trainer = bpgo.Trainer(config, output, reward=colour, metrics=metrics, progress=False)
    trainer.train()
    for row in read_log(trainer.output / "evaluations.jsonl"):
        print(f"fraction of the named colour {row['reward']:.4f}, symmetry {row['symmetry']:.4f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

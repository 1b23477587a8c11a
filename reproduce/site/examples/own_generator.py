"""A generator of your own: a class with the attributes and methods of `HalfLight`.

On the command line, in the folder of this file:

    bpgo train t2i-tiny --output runs/x generator.policy=own_generator:HalfLight \\
        generator.options.width=64 reward.name=own_generator:lit reward.path=null

In Python: `Trainer(config, output, policy=HalfLight(width=64), reward=lit)`, as in `main` below.
"""

import tempfile

import torch
from safetensors.torch import save_file

import bpgo

SIDES = {"left": -1.0, "right": 1.0}
SMALL = ["groups=2", "group_size=8", "optimiser.learning_rate=0.01"]
SMALL += ["evaluation={samples: 16, steps: 8}"]


class HalfLight:
    """A flow over 8 x 8 grey images, whose prompt may say which half should be bright."""

    encoders = ()  # parts of the pipeline that only `encode` needs

    def __init__(self, width=128, device="cpu"):
        self.device = torch.device(device)
        layers = torch.nn.Linear(66, width), torch.nn.SiLU(), torch.nn.Linear(width, 64)
        self.net = torch.nn.Sequential(*layers).to(device)
        self.modules = {"net": self.net}  # what is trained, by its name in the pipeline
        self.pipeline = self

    def check(self, prompts, images=None):
        """Raise ValueError for prompts that `encode` would refuse."""
        if images is not None or not all(prompts):
            raise ValueError("prompts must not be empty or have images")

    def encode(self, prompts, images=None):
        """Tensors with one row per prompt, by any names."""
        rows = [[sum(SIDES.get(word, 0.0) for word in prompt.split())] for prompt in prompts]
        return {"side": torch.tensor(rows, device=self.device)}

    def latent_shape(self):
        """The shape of one sample's latent."""
        return 1, 8, 8

    def velocity(self, x, sigma, cond):
        """noise - data, float32, at x (B, 1, 8, 8) and a level sigma from 1 to 0."""
        level = x.new_full((len(x), 1), sigma)
        features = torch.cat([x.flatten(1), cond["side"], level], 1)
        return self.modules["net"](features).view_as(x)

    def decode(self, x):
        """Pixels (B, 3, 32, 32) in [0, 1]."""
        large = torch.nn.functional.interpolate(x, scale_factor=4)
        return torch.sigmoid(2 * large).expand(-1, 3, -1, -1)

    def save(self, folder, lora):
        """Write the trained model. lora: whether it consists of adapters."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.net.state_dict(), folder / "net.safetensors")


def lit(pixels, prompts):
    """A reward: brightness of the half that the prompt names minus the other, in [-1, 1]."""
    sides = torch.tensor([sum(SIDES.get(word, 0.0) for word in p.split()) for p in prompts])
    left, right = pixels.mean((1, 2)).chunk(2, -1)
    return sides.to(pixels.device) * (right.mean(1) - left.mean(1))


def main(output, iterations=40):
    torch.manual_seed(0)
    config = bpgo.read_config("t2i-tiny", [*SMALL, f"iterations={iterations}"])
    given = {"policy": HalfLight(width=64), "reward": lit, "prompts": ["left", "right"]}
    trainer = bpgo.Trainer(config, output, **given, progress=False)
    before = trainer.evaluate().means()["reward"]
    trainer.train()
    print(f"reward {before:.3f} before, {trainer.evaluate().means()['reward']:.3f} after")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

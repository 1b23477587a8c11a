"""A generator of your own: an object with the attributes and methods of `HalfLight`, passed as `Trainer(policy=...)`.

x: (B, *latent_shape()) float32, at a level sigma from 1 (noise) to 0 (data). velocity predicts noise - data, with gradients, by the same
function in rollout and update; decode gives pixels (B, 3, H, W) in [0, 1]. Here: a flow over 8 x 8 pictures, for prompts "left", "right".
"""

import tempfile

import torch
from safetensors.torch import save_file

from bpgo.config import read_config
from bpgo.trainer import Trainer


class HalfLight:
    def __init__(self):
        self.net = torch.nn.Sequential(
            torch.nn.Linear(66, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64)
        )
        self.modules, self.pipeline = (
            {"net": self.net},
            self,
        )  # what is trained, by its name in `pipeline`
        self.encoders, self.device = (
            (),
            torch.device("cpu"),
        )  # encoders: parts that several processes let go of once prompts are encoded

    def check(self, prompts, images=None):  # raises ValueError for what `encode` would refuse
        if images is not None or not set(prompts) <= {"left", "right"}:
            raise ValueError(f"prompts are left or right, without images, not {prompts}")

    def encode(self, prompts, images=None):  # tensors of one row a prompt, under names of your own
        return {"side": torch.tensor([[-1.0 if p == "left" else 1.0] for p in prompts])}

    def latent_shape(self):
        return 1, 8, 8

    def velocity(self, x, sigma, cond):  # by way of `modules`, which several processes wrap
        return self.modules["net"](
            torch.cat([x.flatten(1), cond["side"], torch.full((len(x), 1), sigma)], 1)
        ).view_as(x)

    def decode(self, x):
        return torch.sigmoid(2 * x).expand(-1, 3, -1, -1)

    def save(
        self, folder, lora
    ):  # lora: whether the config trains adapters (`generator.lora_rank`)
        folder.mkdir(parents=True)
        save_file(self.net.state_dict(), folder / "net.safetensors")


def lit(pixels, prompts):
    """The brightness of the half that the prompt names, less that of the other, in [-1, 1]."""
    return torch.tensor([1.0 if p == "left" else -1.0 for p in prompts]) * (
        pixels[..., :4] - pixels[..., 4:]
    ).mean((1, 2, 3))


def main(output, iterations=40):
    torch.manual_seed(0)
    config = read_config(
        "t2i-tiny",
        [
            "generator={path: half-light}",
            "reward={name: lit}",
            f"iterations={iterations}",
            "groups=2",
            "optimiser={learning_rate: 0.01}",
            "evaluation={samples: 16, steps: 8}",
        ],
    )
    trainer = Trainer(
        config, output, policy=HalfLight(), reward=lit, prompts=["left", "right"], progress=False
    )
    before = trainer.evaluate().means()["reward"]
    trainer.train()
    print(
        f"a generator of one's own, from random weights: reward {before:.3f} before, {trainer.evaluate().means()['reward']:.3f} after"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

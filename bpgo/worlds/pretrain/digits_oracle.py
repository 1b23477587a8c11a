"""How the judge, the oracle of the digits world, is trained, and how its error is measured."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from bpgo.worlds import shared
from bpgo.worlds.digits.oracle import CONFIDENT, NOTHING, Judge, judge_network
from bpgo.worlds.digits.scenes import enlarge, handwriting, sample_pixels, sample_scenes, vary
from bpgo.worlds.pretrain.fit import card, optimise, stage_steps, store, write_card
from bpgo.worlds.pretrain.stages import STAGES


def no_digits(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, 32, 32) images of NOTHING, made from B images of digits.

    A quarter each: two digits on top of each other, collages, negatives and noise.
    """
    crowd, collage, negative, flat = images.chunk(4)
    other = images[torch.randperm(len(images), generator=generator)[: len(crowd)]]
    crowd = torch.maximum(crowd.roll(4, 3), other.roll(-4, 3))
    # Sixteen tiles of 8 x 8 pixels, in another order.
    tiles = collage.unflatten(2, (4, 8)).unflatten(4, (4, 8))
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    tiles = tiles[:, torch.randperm(16, generator=generator)].unflatten(1, (4, 4))
    tiles = tiles.permute(0, 3, 1, 4, 2, 5).reshape(collage.shape)
    level, noise = torch.rand(2, len(flat), 1, 1, 1, generator=generator)
    grain = torch.rand(len(flat), 1, 32, 32, generator=generator).expand_as(flat)
    return torch.cat([crowd, tiles, 1 - negative, level + noise * (grain - 0.5)]).clamp(0, 1)


def train_judge(output: Path, scale: float) -> None:
    """Train with cross-entropy on varied images with noise and random contrast.

    A fifth of the images shows NOTHING. Each member is trained on its own draws.
    """
    generator = torch.Generator().manual_seed(STAGES["digits_judge"].seed)
    members = judge_network().train()

    def loss_of(member) -> Tensor:
        digits = sample_scenes(160, generator)
        images = sample_pixels(digits, generator, "judge_train")
        target = torch.tensor(digits)
        images[128:], target[128:] = no_digits(images[128:], generator), NOTHING
        contrast = 0.8 + 0.3 * torch.rand(len(images), 1, 1, 1, generator=generator)
        noise = torch.randn(len(images), 1, 32, 32, generator=generator)
        grey = images[:, :1] * contrast + 0.04 * noise
        return F.cross_entropy(member(grey.clamp(0, 1)), target)

    steps = stage_steps("digits_judge", scale)
    for i, member in enumerate(members, 1):
        parameters = list(member.parameters())
        optimise(parameters, steps, 3e-3, lambda m=member: loss_of(m), f"judge {i}")
    members.eval().half()

    def save(folder: Path) -> None:
        weights = {name: tensor.contiguous() for name, tensor in members.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        parts = [handwriting(split) for split in ("judge_train", "judge_test")]
        levels, digits = (torch.cat(column) for column in zip(*parts, strict=True))
        stored = {"levels": levels, "digits": digits.to(torch.uint8)}
        save_file(stored, folder / "pictures.safetensors")

    what = (
        "The judge of the digits world: three small convolutional networks. A digit is recognised "
        f"above a probability of {CONFIDENT}."
    )
    data = (
        "397 images of the judge's split, varied. Errors are measured on its other 300 images, and "
        "distances from the rewards' 500 images to these 697, which are stored here (optical "
        "recognition of handwritten digits, Alpaydin and Kaynak, UCI, CC BY 4.0)"
    )
    folder = output / "tiny-digits-judge"
    store(folder, save, card("digits_judge", what, data, {}))
    metrics = measure_judge(Judge(folder))
    print(json.dumps(metrics, indent=1))
    write_card(folder, card("digits_judge", what, data, metrics), folder.name)


def measure_judge(judge: Judge) -> dict[str, float]:
    """Errors and entropy on the test split, false positives, and distances of real images."""
    generator = torch.Generator().manual_seed(301)
    levels, target = handwriting("judge_test")
    images, digits = enlarge(levels), target.tolist()
    plain = judge.read(images)
    errors = shared.error_rate(plain.scenes, digits)
    varied = shared.error_rate(judge.read(vary(images, generator)).scenes, digits)
    p = plain.probabilities
    some = sample_pixels(sample_scenes(400, generator), generator, "judge_test")
    nothing = judge.read(no_digits(some, generator)).scenes
    far = judge.read(enlarge(handwriting("reward")[0])).distance
    return {
        "misread or not recognised, test": errors["misread"],
        "not recognised, test": errors["unrecognised"],
        "misread or not recognised, test, varied": varied["misread"],
        "mean entropy of the reading, bits, test": -(p * (p + 1e-12).log2()).sum(1).mean().item(),
        "reads a digit where there is none": sum(d is not None for d in nothing) / len(nothing),
        "distance of other real images, mean": far.mean().item(),
        "distance of other real images, 99 %": far.quantile(0.99).item(),
    }

"""How the judge is trained, and how its error is measured."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from bpgo.worlds.digits.judge import CONFIDENT, NOTHING, Judge, judge_network
from bpgo.worlds.digits.scenes import handwriting, sample_pictures, show, vary
from bpgo.worlds.pretrain.fit import SEEDS, STEPS, card, optimise, steps, store, write_card

SEEDS["digits_judge"], STEPS["digits_judge"] = 31, 1000


def no_digits(pictures: Tensor, digits: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, 32, 32) pictures of NOTHING, made of B that show something: crowds, collages, negatives and noise, a quarter each."""
    crowd, collage, negative, flat = pictures.chunk(4)
    other = pictures[torch.randperm(len(pictures), generator=generator)[: len(crowd)]]
    crowd = torch.maximum(crowd.roll(4, 3), other.roll(-4, 3))
    tiles = (
        collage.unflatten(2, (4, 8)).unflatten(4, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    )
    tiles = (
        tiles[:, torch.randperm(16, generator=generator)]
        .unflatten(1, (4, 4))
        .permute(0, 3, 1, 4, 2, 5)
    )
    level, noise = torch.rand(2, len(flat), 1, 1, 1, generator=generator)
    grain = torch.rand(len(flat), 1, 32, 32, generator=generator).expand_as(flat)
    return torch.cat(
        [crowd, tiles.reshape(collage.shape), 1 - negative, level + noise * (grain - 0.5)]
    ).clamp(0, 1)


def train_judge(output: Path, scale: float) -> None:
    """Cross-entropy on varied pictures with noise and of any contrast, a fifth of each batch NOTHING; each member on draws of its own."""
    generator = torch.Generator().manual_seed(SEEDS["digits_judge"])
    members = judge_network().train()

    def loss_of(member) -> Tensor:
        pictures, digits = sample_pictures("judge_train", 160, generator)
        target = torch.tensor(digits)
        pictures[128:], target[128:] = no_digits(pictures[128:], target[128:], generator), NOTHING
        contrast = 0.8 + 0.3 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
        grey = pictures[:, :1] * contrast + 0.04 * torch.randn(
            len(pictures), 1, 32, 32, generator=generator
        )
        return F.cross_entropy(member(grey.clamp(0, 1)), target)

    for i, member in enumerate(members):
        optimise(
            list(member.parameters()),
            steps("digits_judge", scale),
            3e-3,
            lambda m=member: loss_of(m),
            f"judge {i + 1}",
        )
    members.eval().half()

    def save(folder: Path) -> None:
        save_file(
            {name: t.contiguous() for name, t in members.state_dict().items()},
            folder / "model.safetensors",
        )
        parts = [handwriting(split) for split in ("judge_train", "judge_test")]
        levels, digits = (torch.cat(column) for column in zip(*parts, strict=True))
        save_file(
            {"levels": levels, "digits": digits.to(torch.uint8)}, folder / "pictures.safetensors"
        )

    what = f"The judge of the digits world: three small convolutional networks, a digit seen above probability {CONFIDENT}."
    data = (
        "397 pictures of the judge's split, varied; errors on its other 300; distances of the rewards' 500 to these 697, stored here "
        "(optical recognition of handwritten digits, Alpaydin and Kaynak, UCI, CC BY 4.0)"
    )
    folder = output / "tiny-digits-judge"
    store(folder, save, card("digits_judge", what, data, {}))
    metrics = measure_judge(Judge(folder))
    print(json.dumps(metrics, indent=1))
    write_card(folder, card("digits_judge", what, data, metrics))


def measure_judge(judge: Judge) -> dict[str, float]:
    """Its error and doubt on the test split, how often it sees a digit where there is none, and how far real pictures are from its own."""
    generator = torch.Generator().manual_seed(301)
    levels, digits = handwriting("judge_test")
    pictures = show(levels)
    read, varied = judge.read(pictures), judge.read(vary(pictures, generator))
    p = judge.probabilities(pictures)
    nothing = judge.read(
        no_digits(sample_pictures("judge_test", 400, generator)[0], digits, generator)
    )
    far = judge.distances(show(handwriting("reward")[0]))
    n = len(digits)
    return {
        "misread or not seen, test": sum(a != b for a, b in zip(read, digits.tolist(), strict=True))
        / n,
        "of these not seen, test": sum(a is None for a in read) / n,
        "misread or not seen, test, varied": sum(
            a != b for a, b in zip(varied, digits.tolist(), strict=True)
        )
        / n,
        "mean entropy of the reading, bits, test": -(p * (p + 1e-12).log2()).sum(1).mean().item(),
        "sees a digit where there is none": sum(a is not None for a in nothing) / len(nothing),
        "distance of other real pictures, mean": far.mean().item(),
        "distance of other real pictures, 99 %": far.quantile(0.99).item(),
    }

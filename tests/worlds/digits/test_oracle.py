"""The oracle of digits: a learned judge, its errors, and a run that it measures."""

import math
import random

import pytest
import torch

from bpgo.config import read_config
from bpgo.files import SHIPPED, read_log
from bpgo.trainer import Trainer
from bpgo.worlds.digits import oracle
from bpgo.worlds.digits.captions import WORDINGS, parse, sample_caption
from bpgo.worlds.digits.scenes import enlarge, handwriting
from bpgo.worlds.pretrain.digits_oracle import no_digits
from tests.worlds.common import generator


@pytest.fixture(scope="module")
def shown():
    """The judge's test split: images and digits."""
    levels, digits = handwriting("judge_test")
    return enlarge(levels), digits.tolist()


def test_the_judge_reads_its_test_split(shown):
    images, digits = shown
    rates = oracle.error_rate(images, digits)
    assert 0 < rates["misread"] <= 0.03
    probabilities = oracle.read(images).probabilities
    assert probabilities.shape == (300, 11)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(300))


def test_nothing_is_read_where_there_is_no_digit(shown):
    images, _ = shown
    assert oracle.read(1 - images[:2]).scenes == [None, None]
    made = no_digits(images, generator(1))
    assert made.shape == images.shape
    recognised = [digit for digit in oracle.read(made).scenes if digit is not None]
    assert len(recognised) / len(made) < 0.03


def test_accuracy_and_share_are_low_for_captions_that_name_another_digit(shown):
    images, digits = shown
    rng, own, others = random.Random(0), [], []
    for digit in digits:
        own.append(sample_caption(digit, rng))
        other = rng.choice([d for d in range(10) if d != digit])
        others.append(rng.choice(WORDINGS[frozenset({other})]))
    assert oracle.measure(images, own)["accuracy"].mean() > 0.97
    assert oracle.measure(images, others)["accuracy"].mean() < 0.02
    assert oracle.share_right(images, own).mean() > 0.97
    assert oracle.share_right(images, others).mean() < 0.02
    noise = torch.rand(3, 3, 32, 32, generator=generator())
    assert oracle.share_right(noise, ["a digit"] * 3).max() < 0.5


def test_the_distance_is_to_the_nearest_image_of_the_judge(shown):
    images, _ = shown
    assert oracle.read(images).distance.max() < 2e-3  # they are the judge's own
    others = enlarge(handwriting("reward")[0][:20])
    world = torch.cat([enlarge(handwriting(s)[0]) for s in ("judge_train", "judge_test")])
    nearest = [(world - image).square().mean((1, 2, 3)).sqrt().min() for image in others]
    found = oracle.read(others).distance
    torch.testing.assert_close(found, torch.stack(nearest), atol=2e-3, rtol=0)


@pytest.mark.parametrize("prompt", ["an even digit", "a digit above five", "either four or nine"])
def test_diversity_is_one_on_average_for_what_the_prompt_leaves_open(prompt):
    rng, fitting = random.Random(1), sorted(parse(prompt))
    groups = [oracle.diversity(rng.choices(fitting, k=4), prompt) for _ in range(3000)]
    assert sum(groups) / len(groups) == pytest.approx(1, abs=0.04)


def test_digits_that_the_prompt_does_not_fit_do_not_count():
    assert oracle.diversity([4, 9], "either four or nine") == 2
    assert oracle.diversity([4, 4, 1, 3, None], "an even digit") == 0
    assert oracle.diversity([4, 1, 3, None], "an even digit") is None  # one is left


def test_the_preset_trains_and_is_measured_by_the_judge(tmp_path):
    lines = (SHIPPED / "prompts" / "digits-evaluation.jsonl").read_text().splitlines(keepends=True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(lines[:16]))
    overrides = [
        "iterations=1",
        "groups=2",
        "group_size=2",
        "evaluation.samples=3",
        f"evaluation.prompts={prompts}",
        "sampling.steps=3",
    ]
    Trainer(read_config("t2i-digits", overrides), tmp_path / "run").train()
    rows = read_log(tmp_path / "run" / "evaluations.jsonl")
    assert [row["iteration"] for row in rows] == [0, 1]
    for row in rows:
        for name in ("reward", "held_out", "accuracy", "distance", "diversity"):
            assert math.isfinite(row[name]), name

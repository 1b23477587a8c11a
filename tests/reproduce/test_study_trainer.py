"""What the study does to a run: corrupted rewards, other rules for advantages, mixes of prompts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bpgo.analysis.statistics import agreement
from bpgo.config import read_config
from bpgo.objective import bpgo, group_advantages
from bpgo.worlds.shapes.captions import parse
from reproduce import study_trainer
from reproduce.study_trainer import CORRUPTIONS, MEAN, STD, StudyTrainer


@pytest.fixture(scope="module")
def scored():
    """Rewards, pixels, and whether each prompt is ambiguous."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4000, 3, 2, 2, generator=generator)
    rewards = MEAN + STD * torch.randn(4000, generator=generator)
    return rewards, pixels, [i % 2 == 0 for i in range(4000)]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_the_sample(name, scored):
    """A resumed run, another micro-batch and another order therefore get the same rewards."""
    rewards, pixels, ambiguous = (values[:64] for values in scored)
    corrupt = CORRUPTIONS[name]
    together = corrupt(rewards, pixels, ambiguous, 2.0)
    assert together.isfinite().all() and not torch.equal(together, rewards)
    reversed_ = corrupt(rewards.flip(0), pixels.flip(0), ambiguous[::-1], 2.0).flip(0)
    alone = []
    for i in range(64):
        row = slice(i, i + 1)
        alone.append(corrupt(rewards[row], pixels[row], ambiguous[row], 2.0))
    torch.testing.assert_close(reversed_, together, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def corrupted(scored):
    """The rewards of `scored` after each corruption at level 2."""
    return {name: corrupt(*scored, 2.0) for name, corrupt in CORRUPTIONS.items()}


def added(corrupted, scored, name):
    return (corrupted[name] - scored[0]) / STD


def test_noise_has_the_level_as_its_standard_deviation(corrupted, scored):
    noise = added(corrupted, scored, "noise")
    assert noise.std().item() == pytest.approx(2, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.1)


def test_noise_on_ambiguous_prompts_leaves_the_others_alone(corrupted, scored):
    ambiguous = torch.tensor(scored[2])
    noise = added(corrupted, scored, "noise_ambiguous")
    assert (noise[~ambiguous] == 0).all()
    assert noise[ambiguous].std().item() == pytest.approx(2, rel=0.05)


def test_heavy_tails_are_those_of_cauchy(corrupted, scored):
    tails = added(corrupted, scored, "heavy_tails").abs() / 0.5
    assert tails.median().item() == pytest.approx(1, rel=0.1)  # that of |Cauchy|
    assert 30 < tails.max() < 50.01


def test_a_fifth_of_the_samples_is_mirrored(corrupted, scored):
    mirrored = corrupted["flipped"] != scored[0]
    assert mirrored.float().mean().item() == pytest.approx(0.2, abs=0.02)
    expected = 2 * MEAN - scored[0][mirrored]
    torch.testing.assert_close(corrupted["flipped"][mirrored], expected)


def test_scale_origin_and_saturation(corrupted, scored):
    rewards = scored[0]
    torch.testing.assert_close(corrupted["stretched"], MEAN + 10 * (rewards - MEAN))
    torch.testing.assert_close(corrupted["shifted"], rewards - 4)
    torch.testing.assert_close(corrupted["saturated"], rewards.clamp(max=MEAN))


def test_the_bias_likes_red():
    reward, images = torch.tensor([0.5]), torch.zeros(2, 1, 3, 10, 10)
    images[0, :, 0, 0] = 1.0  # a tenth is red
    images[1, :, 1] = 1.0  # green
    red, green = (CORRUPTIONS["biased"](reward, image, [False], 2.0) for image in images)
    assert red.item() == pytest.approx(0.5 + 2 * STD) and green.item() == 0.5


def test_a_corrupted_reward_knows_which_prompts_are_ambiguous():
    def clean(pixels, prompts):
        return torch.full((len(prompts),), 0.5)

    left_open = {"a shape": True, "a red circle": False}
    reward = study_trainer.Corrupted(clean, "noise_ambiguous", 1.0, left_open)
    found = reward(torch.rand(2, 3, 4, 4), ["a shape", "a red circle"])
    assert found[0] != 0.5 and found[1] == 0.5


def test_the_ceiling_weighs_groups_by_their_agreement_with_the_truth():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    truth = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.3, 0.2, 0.1, 0.0], [0.5] * 4]).flatten()
    settings = SimpleNamespace(alpha=0.5)
    found = study_trainer.ceiling(settings, rewards, bpgo(rewards, 0.5), truth)
    assert found.weights.tolist() == pytest.approx([1.5, 0.5, 1.0])
    torch.testing.assert_close(found.main, found.weights[:, None] * group_advantages(rewards))


def test_raw_rewards_are_divided_by_the_standard_deviation_of_the_batch():
    rewards = torch.tensor([[0.0, 0.02], [0.0, 2.0]])
    advantages = bpgo(rewards, 0.5, alpha=0.0)
    found = study_trainer.raw(SimpleNamespace(beta=0.5), rewards, advantages, None)
    assert found.main[1].tolist() == pytest.approx([100 * x for x in found.main[0].tolist()])
    assert found.main.std().item() == pytest.approx(1)
    assert (found.auxiliary / 0.5).std().item() == pytest.approx(1)


@pytest.fixture
def trainer(tmp_path):
    """Makes a StudyTrainer of two groups of four samples."""
    small = ["groups=2", "group_size=4", "sampling.steps=3", "evaluation.samples=1"]
    config = read_config("t2i-tiny", [*small, "evaluation.steps=2", "optimiser.updates=1"])

    def make(**given):
        return StudyTrainer(config, tmp_path / "run", progress=False, **given)

    return make


def test_an_iteration_with_the_ceiling_follows_the_truth_and_not_the_prior(trainer, monkeypatch):
    """The truth weights the groups and is not part of the reward."""
    made = trainer(rule="ceiling")
    seen, compute = {}, study_trainer.Trainer.compute_advantages

    def spy(trainer, batch, scores):
        seen.update(scores)
        return compute(trainer, batch, scores)

    monkeypatch.setattr(study_trainer.Trainer, "compute_advantages", spy)
    truth = torch.arange(8.0)
    made.rewards["truth"] = lambda pixels, prompts: truth
    logged = made.step()
    assert list(seen) == ["clip"]
    rewards = seen["clip"].view(2, 4)
    assert logged["reward"] == pytest.approx(rewards.mean().item())
    expected = 1 + 0.5 * agreement(rewards.numpy(), truth.view(2, 4).numpy())
    assert logged["weight_min"] == pytest.approx(expected.min())
    assert logged["weight_max"] == pytest.approx(expected.max())


def test_a_corruption_changes_the_training_reward_only(trainer):
    made = trainer(corruption="shifted", level=2.0)
    assert made.step()["reward"] < -3
    pixels, prompts = torch.rand(2, 3, 32, 32), ["a red circle", "a shape"]
    assert made.metrics["reward"](pixels, prompts).min() > -1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_a_mix_has_the_share_it_says(share):
    prompts = study_trainer.mixed("prompts/train.jsonl", share)
    is_open = [any(v is None for v in parse(p).attributes.values()) for p in prompts]
    assert len(prompts) == study_trainer.MIXED and np.mean(is_open) == share


def test_a_mix_that_has_too_few_prompts_is_refused():
    with pytest.raises(ValueError, match="too few prompts for a mix with 75% ambiguous ones"):
        study_trainer.mixed("prompts/evaluation.jsonl", 0.75)

"""`bpgo bench`: two ratios of times that are measured side by side."""

import os
import re

import pytest
import torch

from bpgo.__main__ import main
from bpgo.bench import model_calls
from tests.small_trainers import all_equal, weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("task", ["t2i", "t2v", "i2v"])
def test_it_prints_two_ratios_and_samples_nothing_for_a_prior(
    resume_presets, monkeypatch, capsys, tmp_path, task
):
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    reward = "clip" if task == "t2i" else "video_clip_xl"
    overrides = [f"reward.name={reward}", *(["prior.name=sft"] if task == "t2v" else [])]
    assert main(["bench", str(resume_presets[task]), "--rounds", "1", *overrides]) == 0
    head, *ratios = capsys.readouterr().out.splitlines()
    assert head == "2 prompts x 3 samples, 1 rounds, 1 threads"
    titles = []
    for line in ratios:
        title, *numbers = re.fullmatch(
            r"(.*\S) +([\d.]+) +\(([\d.]+) \.\. ([\d.]+)\)", line
        ).groups()
        titles.append(title)
        assert len(set(numbers)) == 1  # one round
        assert float(numbers[0]) > 0
    assert titles == ["iteration / model calls", "BPGO / GRPO"]
    assert not os.path.exists(tmp_path / "cache")


def test_the_model_calls_are_those_of_an_iteration(make):
    """The same rows and sigmas, in the same order, and the weights stay."""
    trainer = make(optimiser={"epochs": 2}, sampling={"micro_batch": 3})
    calls, velocity = [], trainer.policy.velocity

    def noted(x, sigma, cond):
        calls.append((len(x), sigma, torch.is_grad_enabled()))
        return velocity(x, sigma, cond)

    replay = model_calls(trainer)
    trainer.policy.velocity = noted
    start = weights(trainer)
    replay()
    assert all_equal(weights(trainer), start)
    assert all(p.grad is None for p in trainer.parameters.values())
    replayed = list(calls)
    calls.clear()
    trainer.step()
    assert replayed == calls
    assert len(calls) == 2 * 4 + 2 * 2 * len(trainer.draw_batch().steps.trained)

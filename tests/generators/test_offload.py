"""Frozen weights that stay on the CPU until they are needed; the "device" is the CPU itself."""

import pytest
import torch

from bpgo.conditioning import encode
from bpgo.generators import load_generator
from bpgo.generators.offload import Parking
from bpgo.prompt_files import read_prompts
from tests import small_runs as runs
from tests.small_trainers import TASKS, prompts_of


def on_device(policy):
    """The parts whose frozen weights are copies of what the CPU keeps."""
    parts = set()
    for name, frozen in policy.parking.frozen.items():
        if any(t.data_ptr() != kept.data_ptr() for t, kept in frozen):
            parts.add(name)
    return parts


def test_only_what_is_in_use_is_on_the_device():
    policy = load_generator("tiny-wan-image", height=32, width=32, frames=9, guidance=1.0)
    policy.add_lora(2, 4)
    policy.offload("cpu")
    assert set(policy.parking.frozen) == {"transformer", "transformer_2", "vae", "text_encoder"}
    assert on_device(policy) == set()
    prompt = read_prompts("prompts/image-clip-evaluation.jsonl")[0]
    cond = encode(policy, [prompt])
    assert on_device(policy) == {"vae"}  # the image is encoded after the text
    x = torch.randn(1, *policy.latent_shape())
    for sigma, expert in ((1.0, "transformer"), (0.5, "transformer_2")):
        policy.velocity(x, sigma, cond)
        assert on_device(policy) == {expert}
    policy.decode(x)
    assert on_device(policy) == {"vae"}


def test_weights_that_are_trained_stay():
    module = torch.nn.Linear(3, 3)
    module.bias.requires_grad_(False)
    other = torch.nn.Linear(2, 2).requires_grad_(False)
    parking = Parking({"it": module, "other": other}, "cpu")
    place, kept = module.weight.data_ptr(), module.bias.data_ptr()
    parking.use("it")
    assert module.weight.data_ptr() == place
    assert module.bias.data_ptr() != kept
    parking.use("other")
    assert module.weight.data_ptr() == place
    assert module.bias.data_ptr() == kept


@pytest.mark.parametrize("task", TASKS)
def test_offloading_changes_no_number(make, task, tmp_path, monkeypatch):
    """But for rounding, which depends on where in memory the weights are."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    logged, scores = [], []
    for offload in (False, True):
        trainer = make(task, generator={"lora_rank": 2, "offload": offload})
        logged.append([trainer.step() for _ in range(2)])
        scores.append(trainer.evaluate().scores["reward"])
    for before, after in zip(*logged, strict=True):
        assert before == pytest.approx(after, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)
    files = list((tmp_path / "cache").glob("conditions-*/*.safetensors"))
    assert len(files) == len(prompts_of(task))


def test_offloading_supports_a_single_process_only(resume_presets, tmp_path):
    overrides = ["generator.offload=true", "generator.lora_rank=2"]
    command = ["train", resume_presets["t2i"], "--output", tmp_path / "run", *overrides]
    for code, output in runs.run_together(2, command, tmp_path / "log"):
        assert code == 2
        assert "generator.offload supports a single process only" in output

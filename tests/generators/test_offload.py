"""Frozen weights that stay on the CPU until they are needed; the "device" is the CPU itself."""

import gc
import warnings

import pytest
import torch

from bpgo.conditioning import encode
from bpgo.config import read_config
from bpgo.generators import load_generator
from bpgo.generators import offload as offload_module
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
    monkeypatch.setattr(offload_module, "SHARE_THE_MEMORY", ())  # the CPU stands for a GPU
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


@pytest.mark.parametrize("task", ["t2i", "i2v"])
def test_on_the_cpu_offloading_holds_nothing_twice(make, task, tmp_path, monkeypatch):
    """The same numbers bit for bit, from the same bytes of weights, and nothing on disk."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    logged, held = [], []
    for offload in (False, True):
        trainer = make(task, generator={"lora_rank": 2, "offload": offload})
        logged.append(trainer.step())
        held.append(bytes_of_weights())
        del trainer
        gc.collect()
    assert logged[0] == logged[1]
    assert held[0] == held[1]
    assert not (tmp_path / "cache").exists()


def bytes_of_weights():
    """Bytes of all storages of tensors that are alive."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking for the class of some objects warns
        tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    tensors = [tensor for tensor in tensors if tensor.layout == torch.strided]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("device", ["cpu", "mps", "mps:0", "cuda", "cuda:1"])
def test_only_a_device_with_memory_of_its_own_offloads(device):
    config = read_config("t2v-tiny", ["generator.offload=true"])
    assert offload_module.offloads(config, device) == device.startswith("cuda")
    assert not offload_module.offloads(read_config("t2v-tiny"), device)


def test_offloading_supports_a_single_process_only(resume_presets, tmp_path):
    overrides = ["generator.offload=true", "generator.lora_rank=2"]
    command = ["train", resume_presets["t2i"], "--output", tmp_path / "run", *overrides]
    for code, output in runs.run_together(2, command, tmp_path / "log"):
        assert code == 2
        assert "generator.offload supports a single process only" in output

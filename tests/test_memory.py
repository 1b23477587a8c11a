"""Running out of memory, anywhere in a run, names the settings to change."""

import re

import pytest
import torch

from bpgo import trainer as trainer_module
from bpgo.config import list_presets, read_config
from bpgo.memory import advice, memory_explained

FULL_TINY = read_config("t2v-tiny", ["generator.lora_rank=0"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "CUDA out of memory."),
        (MemoryError(), "MemoryError"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "MPS backend out of"),
    ],
)
def test_running_out_of_memory_names_what_to_change(error, reason):
    with pytest.raises(MemoryError) as found, memory_explained(FULL_TINY):
        raise error
    assert str(found.value).startswith(f"out of memory ({reason}")
    assert str(found.value).endswith(advice(FULL_TINY))


def test_so_does_running_out_of_memory_on_the_cpu():
    with pytest.raises(MemoryError, match=r"^out of memory \(.*DefaultCPUAllocator"):
        with memory_explained(FULL_TINY):
            torch.empty(2**60, dtype=torch.uint8)


def advised(config):
    """The overrides of an advice: for the same run, and for a branch of it."""
    resume, _, branch = advice(config).partition("bpgo branch RUN")
    return [re.findall(r"[\w.]+\.\w+=\w+", text) for text in (resume, branch)]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("preset", list_presets())
def test_the_advice_exists_in_the_config_and_is_not_in_force(monkeypatch, preset, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    config = read_config(preset)
    same_run, branch = advised(config)
    for override in (*same_run, *branch):
        assert read_config(preset, [override]) != config, override
    moved = [override for override in same_run if "offload" in override or "device" in override]
    assert gpu or not moved, "without a GPU there is only one memory"
    assert all(
        override.startswith(("generator.", "reward.", "evaluation.")) for override in same_run
    )
    assert ("lora_rank=32" in advice(config)) == (config.generator.lora_rank == 0)
    assert len(advice(config)) < 600


def test_rewards_of_a_list_are_advised_by_their_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rewards = "reward=[{name: clip}, {name: hpsv2, device: cpu}, {name: pickscore}]"
    same_run, _ = advised(read_config("t2i-tiny", [rewards]))
    moved = [override for override in same_run if override.startswith("reward")]
    assert moved == ["reward.0.device=cpu", "reward.2.device=cpu"]


def test_other_errors_are_not_explained():
    with pytest.raises(RuntimeError, match=r"^something else$"):
        with memory_explained(read_config("t2v-tiny")):
            raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("owner", "name", "changes"),
    [
        (trainer_module.setup, "load_policy", {}),
        (trainer_module, "load_rewards", {"reward": None}),
        (trainer_module.setup, "make_conditions", {}),
    ],
)
def test_running_out_of_memory_while_loading_names_what_to_change(
    make, monkeypatch, owner, name, changes
):
    def full(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(owner, name, full)
    message = r"^out of memory \(CUDA out of memory\.\)\. .*sampling\.micro_batch="
    with pytest.raises(MemoryError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("owner", "name"), [(trainer_module.checkpoint, "pack"), (trainer_module, "export")]
)
def test_running_out_of_memory_while_saving_names_what_to_change(make, monkeypatch, owner, name):
    def full(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = make(iterations=1)
    monkeypatch.setattr(owner, name, full)
    message = r"^out of memory \(CUDA out of memory\.\)\. .*sampling\.micro_batch="
    with pytest.raises(MemoryError, match=message):
        trainer.train()

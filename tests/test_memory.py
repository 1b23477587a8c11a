"""Running out of memory, anywhere in a run, names the settings to change."""

import pytest
import torch

from bpgo import trainer as trainer_module
from bpgo.config import read_config
from bpgo.memory import memory_explained

REMEDIES = (
    r"^out of memory: try sampling\.micro_batch below 32, "
    r"generator\.gradient_checkpointing=true.*generator\.lora_rank=32.*first line of the error: "
)


@pytest.mark.parametrize(
    ("error", "first_line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), r"CUDA out of memory\.\)$"),
        (MemoryError("none"), r"none\)$"),
    ],
)
def test_running_out_of_memory_names_what_to_change(error, first_line):
    config = read_config("t2v-tiny", ["generator.lora_rank=0"])
    with pytest.raises(MemoryError, match=REMEDIES + first_line), memory_explained(config):
        raise error


def test_so_does_running_out_of_memory_on_the_cpu():
    config = read_config("t2v-tiny", ["generator.lora_rank=0"])
    with pytest.raises(MemoryError, match=f"{REMEDIES}.*DefaultCPUAllocator"):
        with memory_explained(config):
            torch.empty(2**60, dtype=torch.uint8)


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
    message = r"try sampling\.micro_batch below .*CUDA out of memory\."
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
    message = r"try sampling\.micro_batch below .*CUDA out of memory\."
    with pytest.raises(MemoryError, match=message):
        trainer.train()

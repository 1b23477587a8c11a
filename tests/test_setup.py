"""What is tried before training: running out of memory, and the settings of the run in a folder."""

import json

import pytest
import torch

from bpgo import trainer as trainer_module
from bpgo.checkpoint import CheckpointError
from bpgo.config import build_config, read_config, to_dict
from bpgo.setup import memory_explained, open_output

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


def test_settings_that_are_newer_than_a_run_have_their_defaults(tmp_path):
    """A run without them can be resumed. One with another value is refused."""
    config = read_config("t2v-tiny")
    older = to_dict(config)
    del older["generator"]["offload"], older["sampling"]["shared_noise"]
    older["reward"] = older["reward"][0]  # as it was written when there was only one
    (tmp_path / "config.json").write_text(json.dumps(older))
    message = r"other settings \(sampling\.shared_noise: False -> True\)"
    with pytest.raises(CheckpointError, match=message):
        open_output(tmp_path, config)
    older["sampling"]["shared_noise"] = True
    (tmp_path / "config.json").write_text(json.dumps(older))
    open_output(tmp_path, build_config(to_dict(config)))

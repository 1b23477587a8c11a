"""What Apple's GPUs (MPS) lack. None was there: these tests keep code from relying on it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bpgo
from bpgo import bench
from bpgo.devices import as_float64
from bpgo.memory import is_out_of_memory

PACKAGE = Path(bpgo.__file__).parent
ALLOWED = {  # patterns of code that fails on MPS, and the modules that use them only elsewhere
    r"torch\.cuda\.": {"preflight/machine.py", "memory.py"},
    r"pin_memory\(": {"generators/offload.py"},
    r"non_blocking=True": set(),
    r"\.double\(\)|torch\.double": {
        "devices.py",  # on the CPU if the device is MPS
        "analysis/runs.py",  # tables of finished runs, on the CPU
        "rewards/qwen3_vl_embedding.py",  # indices of frames, made on the CPU
    },
    r"torch\.float64": {
        "sde.py",  # the sigma grid, on the CPU
        "worlds/shapes/scenes.py",  # random numbers, on the CPU
        "report/__init__.py",  # scores from a file, on the CPU
    },
    r"Generator\((?!\))|autocast\(.cuda": set(),
}


@pytest.mark.parametrize("pattern", ALLOWED)
def test_only_these_modules_use_what_mps_does_not_have(pattern):
    sources = {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if "pretrain" not in path.parts
    }
    found = {name for name, source in sources.items() if re.search(pattern, source)}
    assert found <= ALLOWED[pattern]


class OnMPS:
    """A tensor that refuses float64, as those on MPS do."""

    device = SimpleNamespace(type="mps")

    def __init__(self, tensor):
        self.tensor = tensor

    def cpu(self):
        return self.tensor

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_float64_is_on_the_cpu_where_the_device_has_none():
    values = torch.tensor([0.1, 0.2])
    torch.testing.assert_close(as_float64(OnMPS(values)), values.double(), rtol=0, atol=0)
    assert as_float64(values.to("meta")).device.type == "meta", "others stay where they are"
    assert as_float64(values).dtype == torch.float64


def test_running_out_of_memory_on_mps_is_recognised():
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"))
    assert not is_out_of_memory(RuntimeError("Placeholder storage has not been allocated on MPS"))


def test_times_wait_for_any_accelerator(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(True))
    assert bench.seconds(lambda: None) >= 0
    assert len(waited) == 2, "before and after"
